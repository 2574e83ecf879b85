// Package eventstream owns writing a stream of events as an HTTP answer:
// server-sent events or NDJSON, as the caller accepts. What is in the events is
// its callers' (subscribe and tail).
package eventstream

import (
	"bufio"
	"mime"
	"net/http"
	"strconv"
	"strings"
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

// Writer writes events to one client. Not for concurrent use.
type Writer struct {
	response http.ResponseWriter
	control  *http.ResponseController
	out      *bufio.Writer
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
	return &Writer{response: w, control: http.NewResponseController(w), out: bufio.NewWriterSize(w, 32<<10), sse: sse}, nil
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

// Write adds an event without sending it yet. name and id are the server-sent
// event's; NDJSON has only data, one line of JSON.
func (w *Writer) Write(name, id string, data []byte) error {
	w.begin()
	if err := w.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if w.sse {
		if id != "" {
			_, _ = w.out.WriteString("id: ") // a bufio.Writer keeps its first error for the last call
			_, _ = w.out.WriteString(id)
			_ = w.out.WriteByte('\n')
		}
		_, _ = w.out.WriteString("event: ")
		_, _ = w.out.WriteString(name)
		_, _ = w.out.WriteString("\ndata: ")
		_, _ = w.out.Write(data)
		_, err := w.out.WriteString("\n\n")
		return err
	}
	_, _ = w.out.Write(data)
	return w.out.WriteByte('\n')
}

// Flush sends what was written.
func (w *Writer) Flush() error {
	w.begin()
	if err := w.out.Flush(); err != nil {
		return err
	}
	return w.control.Flush()
}

// Event is Write for what is not an event of the topic: NDJSON readers get
// only events, so a heartbeat is an empty line to them and the rest is left out.
func (w *Writer) Event(name, id string, data []byte) error {
	if w.sse {
		if err := w.Write(name, id, data); err != nil {
			return err
		}
		return w.Flush()
	}
	if w.began {
		if err := w.out.WriteByte('\n'); err != nil {
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
