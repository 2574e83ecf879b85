package embedded

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/postern-dev/postern/schema"
)

// entry is one line of the registry's file: everything that ever changed, in order.
type entry struct {
	Register *stored       `json:"register,omitempty"`
	Level    *levelEntry   `json:"level,omitempty"`
	Delete   *deletedEntry `json:"delete,omitempty"`
	Format   int           `json:"format,omitempty"` // of the file, in the first line
}

type stored struct {
	Subject    string             `json:"subject"`
	Version    int                `json:"version"`
	ID         int                `json:"id"`
	SchemaType string             `json:"schemaType,omitempty"`
	Schema     string             `json:"schema"`
	References []schema.Reference `json:"references,omitempty"`
	deleted    bool
}

func (s *stored) definition() schema.Definition {
	f, _ := schema.ParseFormat(s.SchemaType) // checked when it was registered
	return schema.Definition{Format: f, Text: s.Schema, References: s.References}
}

type levelEntry struct {
	Subject string       `json:"subject"` // "": the registry's own
	Level   schema.Level `json:"level"`   // "": as the registry's own
}

type deletedEntry struct {
	Subject   string `json:"subject"`
	Version   int    `json:"version"`
	Permanent bool   `json:"permanent"`
}

const (
	storeFormat = 1
	// maxStored bounds the schemas of the registry, and maxLine one line of its file.
	maxStored = 20_000
	maxLine   = 8 << 20
)

// store is what the registry knows, in memory and as a file of its changes.
type store struct {
	mu       sync.RWMutex
	file     *os.File // nil in memory
	subjects map[string][]*stored
	ids      map[int]*stored // the first that has the id
	same     map[string]int  // the id of each distinct schema
	levels   map[string]schema.Level
	lastID   int
}

// openStore reads the file at path; "" is memory. A last line that a crash cut
// is dropped: its change was not answered.
func openStore(path string) (*store, error) {
	s := &store{subjects: map[string][]*stored{}, ids: map[int]*stored{}, same: map[string]int{}, levels: map[string]schema.Level{}}
	if path == "" {
		return s, nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the schema registry's file: %w", err)
	}
	good, err := s.load(file)
	if err == nil {
		err = file.Truncate(good)
	}
	if err == nil {
		_, err = file.Seek(good, io.SeekStart)
	}
	if err == nil && good == 0 {
		_, err = fmt.Fprintf(file, "{\"format\":%d}\n", storeFormat)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the schema registry's file %s: %w", path, err), file.Close())
	}
	s.file = file
	return s, nil
}

// load applies the file's lines and gives where the last whole one ends.
func (s *store) load(file *os.File) (int64, error) {
	in := bufio.NewReaderSize(file, 64<<10)
	good := int64(0)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return good, nil // what is left has no end
		}
		if err != nil {
			return good, err
		}
		if len(line) > maxLine {
			return good, fmt.Errorf("a line is longer than %d bytes", maxLine)
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return good, fmt.Errorf("at byte %d: %w", good, err)
		}
		if e.Format > storeFormat {
			return good, fmt.Errorf("it is of format %d, this version reads up to %d", e.Format, storeFormat)
		}
		s.apply(e)
		good += int64(len(line))
	}
}

// commit writes e and then applies it.
func (s *store) commit(e entry) error {
	if s.file != nil {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := s.file.Write(append(line, '\n')); err != nil {
			return err
		}
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	s.apply(e)
	return nil
}

func (s *store) apply(e entry) {
	switch {
	case e.Register != nil:
		r := e.Register
		s.subjects[r.Subject] = append(s.subjects[r.Subject], r)
		if s.ids[r.ID] == nil {
			s.ids[r.ID] = r
		}
		s.same[identity(r)] = r.ID
		s.lastID = max(s.lastID, r.ID)
	case e.Level != nil && e.Level.Level == "":
		delete(s.levels, e.Level.Subject)
	case e.Level != nil:
		s.levels[e.Level.Subject] = e.Level.Level
	case e.Delete != nil:
		all := s.subjects[e.Delete.Subject]
		i := slices.IndexFunc(all, func(r *stored) bool { return r.Version == e.Delete.Version })
		if i < 0 {
			return
		}
		all[i].deleted = true // its id is still read by whoever has events of it
		if e.Delete.Permanent {
			s.subjects[e.Delete.Subject] = slices.Delete(all, i, i+1)
			if len(s.subjects[e.Delete.Subject]) == 0 {
				delete(s.subjects, e.Delete.Subject)
			}
		}
	}
}

// identity is what two schemas have in common that get one id: the text without
// the spaces that say nothing, and what it refers to.
func identity(r *stored) string {
	text := r.Schema
	if r.SchemaType != string(schema.Protobuf) {
		var b bytes.Buffer
		if json.Compact(&b, []byte(text)) == nil {
			text = b.String()
		}
	}
	refs, _ := json.Marshal(r.References) // it cannot fail
	return strings.Join([]string{r.SchemaType, text, string(refs)}, "\x00")
}

// live are the versions of a subject that are not deleted, oldest first.
func (s *store) live(subject string) []*stored {
	var all []*stored
	for _, r := range s.subjects[subject] {
		if !r.deleted {
			all = append(all, r)
		}
	}
	return all
}

func (s *store) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
