// Package eventstream owns writing a stream of events as an HTTP answer:
// server-sent events or NDJSON, as the caller accepts. What is in the events is
// its callers' (subscribe and tail).
package eventstream

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Media types of the two forms.
const (
	mediaSSE    = "text/event-stream"
	mediaNDJSON = event.MediaNDJSON
)

// writeTimeout is how long a client may take to read a full buffer before it
// is cut: what it does not read is held by us.
const writeTimeout = 30 * time.Second

// What is written is gathered up to gather bytes, in a buffer that writers share: one
// without events has none. A buffer that a large event has grown beyond keep is not kept.
const (
	gather = 64 << 10
	keep   = 4 * gather
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, gather+gather/8); return &b }}

// Writer writes events to one client. Not for concurrent use.
type Writer struct {
	response http.ResponseWriter
	control  *http.ResponseController
	out      *[]byte // what is not sent yet; nil: nothing is
	sse      bool
	began    bool
}

// New chooses the form by the request's Accept; nothing is written yet, so
// that an error can still become a problem.
func New(w http.ResponseWriter, r *http.Request) (*Writer, error) {
	sse, err := choose(r.Header.Values("Accept"))
	if err != nil {
		return nil, err
	}
	return &Writer{response: w, control: http.NewResponseController(w), sse: sse}, nil
}

// choose takes the first type of Accept that is offered; NDJSON for a caller without a wish, such as curl.
func choose(accept []string) (sse bool, err error) {
	if len(accept) == 0 {
		return false, nil
	}
	for one := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		media, _, err := mime.ParseMediaType(strings.TrimSpace(one))
		if err != nil {
			continue
		}
		switch media {
		case mediaSSE:
			return true, nil
		case mediaNDJSON, "application/*", "*/*":
			return false, nil
		case "text/*":
			return true, nil
		}
	}
	return false, fault.New(fault.NotAcceptable, "nothing in Accept: %s is offered: accept %s or %s", strings.Join(accept, ", "), mediaSSE, mediaNDJSON)
}

// begin writes the headers.
func (w *Writer) begin() {
	if w.began {
		return
	}
	w.began = true
	h := w.response.Header()
	h.Set("Content-Type", mediaNDJSON)
	if w.sse {
		h.Set("Content-Type", mediaSSE)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies in front must not hold events back
	w.response.WriteHeader(http.StatusOK)
}

// Begin starts an event and gives the bytes to append its data to, for End. name and id
// are the server-sent event's; NDJSON has only data, one line of JSON.
func (w *Writer) Begin(name, id string) []byte {
	if w.out == nil {
		w.out, _ = buffers.Get().(*[]byte) // nothing else is put there
	}
	b := *w.out
	if !w.sse {
		return b
	}
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	return append(append(append(b, "event: "...), name...), "\ndata: "...)
}

// End ends the event whose data was appended to what Begin gave. It is sent when there is
// enough, or by Flush.
func (w *Writer) End(b []byte) error {
	b = append(b, '\n')
	if w.sse {
		b = append(b, '\n')
	}
	*w.out = b
	if len(b) < gather {
		return nil
	}
	return w.send()
}

// send writes what there is to the connection, which gets a while for that.
func (w *Writer) send() error {
	w.begin()
	if err := w.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := w.response.Write(*w.out)
	*w.out = (*w.out)[:0]
	return err
}

// Flush sends what was written.
func (w *Writer) Flush() error {
	w.begin()
	if w.out != nil {
		if err := w.send(); err != nil {
			return err
		}
		if cap(*w.out) <= keep {
			buffers.Put(w.out)
		}
		w.out = nil
	}
	return w.control.Flush()
}

// Event writes and sends what is not an event of the topic: NDJSON readers get
// only events, so it is an empty line to them once the answer has begun.
func (w *Writer) Event(name, id string, data []byte) error {
	if !w.sse {
		data = nil
	}
	if w.sse || w.began {
		if err := w.End(append(w.Begin(name, id), data...)); err != nil {
			return err
		}
	}
	return w.Flush()
}

// AppendPosition writes where a record is as JSON members.
func AppendPosition(b []byte, r *event.Record) []byte {
	b = append(append(append(b, `"topic":"`...), r.Topic...), '"') // a topic's name needs no escaping
	b = strconv.AppendInt(append(b, `,"partition":`...), int64(r.Partition), 10)
	b = strconv.AppendInt(append(b, `,"offset":`...), r.Offset, 10)
	b = append(b, `,"timestamp":"`...)
	b = r.Timestamp.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}
