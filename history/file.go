package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// line is one line of a history's file; exactly one field is set.
type line struct {
	Entry      *Entry              `json:"entry,omitempty"`
	Log        *Record             `json:"log,omitempty"`
	DeadLetter *DeadLetter         `json:"dead_letter,omitempty"`
	Reads      map[string][]string `json:"reads,omitempty"`
}

// Write writes h as lines of JSON, to be read by Read and by people.
func (h History) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	to := json.NewEncoder(out)
	var errs []error
	put := func(l line) { errs = append(errs, to.Encode(l)) }
	if h.Subscriptions != nil {
		put(line{Reads: h.Subscriptions})
	}
	for i := range h.Entries {
		put(line{Entry: &h.Entries[i]})
	}
	for i := range h.Log {
		put(line{Log: &h.Log[i]})
	}
	for i := range h.DeadLetters {
		put(line{DeadLetter: &h.DeadLetters[i]})
	}
	return errors.Join(append(errs, out.Flush())...)
}

// Read reads what Write wrote.
func Read(r io.Reader) (History, error) {
	var h History
	from := json.NewDecoder(r)
	for n := 1; ; n++ {
		var l line
		err := from.Decode(&l)
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return h, fmt.Errorf("line %d of the history: %w", n, err)
		}
		switch {
		case l.Entry != nil:
			h.Entries = append(h.Entries, *l.Entry)
		case l.Log != nil:
			h.Log = append(h.Log, *l.Log)
		case l.DeadLetter != nil:
			h.DeadLetters = append(h.DeadLetters, *l.DeadLetter)
		case l.Reads != nil:
			h.Subscriptions = l.Reads
		}
	}
}
