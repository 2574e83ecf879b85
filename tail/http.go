package tail

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/eventstream"
	"github.com/postern-dev/postern/internal/wire"
)

// Events is the route GET /v1/topics/{topic}/events: the topic as it grows, as
// server-sent events or NDJSON. ?from= says where to begin: earliest, latest
// (the default), a cursor, or an RFC 3339 time; a Last-Event-ID wins over it.
// ?view=json shows events as JSON, whatever the topic holds; one that cannot be
// shown so is raw, and its line has the member "view_error". ?limit= ends the answer after that many events. The id of each server-sent
// event, and the member "cursor" of each line, resumes right after it.
func (s *Server) Events(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	from := query.Get("from")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		from = id
	}
	start, err := parseFrom(from)
	if err != nil {
		return err
	}
	limit := int64(0)
	if v := query.Get("limit"); v != "" {
		if limit, err = strconv.ParseInt(v, 10, 64); err != nil || limit < 0 {
			return fault.New(fault.InvalidArgument, "limit=%s is not a number of events", v).Field("limit", "not a number")
		}
	}
	asJSON := false
	switch v := query.Get("view"); v {
	case "", "raw":
	case "json":
		asJSON = true
	default:
		return fault.New(fault.InvalidArgument, "view=%s is not offered: use raw or json", v).Field("view", "not offered")
	}
	out, err := eventstream.New(w, r)
	if err != nil {
		return err
	}
	at := Cursor{}
	return s.follow(r.Context(), r.PathValue("topic"), start, limit, func(f frame) error {
		for _, gap := range f.missed {
			if err := out.Event("missed", "", appendMissed(nil, gap)); err != nil {
				return err
			}
		}
		if len(f.records) == 0 {
			at = maps.Clone(f.cursor) // the reader goes on with its own
			name := "heartbeat"
			if f.draining {
				name = "drain"
			}
			return out.Event(name, f.cursor.String(), append(append([]byte(`{"cursor":"`), f.cursor.String()...), `"}`...))
		}
		// The cursor after each event, not only after the last: a client may break off anywhere.
		for _, record := range f.records {
			at.pass(record)
			text := at.String()
			seen, viewError := s.show(r.Context(), record, asJSON)
			if err := out.End(appendLine(out.Begin("event", text), seen, text, viewError)); err != nil {
				return err
			}
		}
		return out.Flush()
	})
}

// pass moves c past record.
func (c Cursor) pass(record *event.Record) { c[record.Partition] = record.Offset + 1 }

func appendLine(b []byte, r *event.Record, cursor string, viewError error) []byte {
	b = append(b, '{')
	b = eventstream.AppendPosition(b, r)
	b = append(append(append(b, `,"cursor":"`...), cursor...), '"')
	if viewError != nil {
		if problem, err := json.Marshal(wire.ProblemOf(viewError)); err == nil {
			b = append(append(b, `,"view_error":`...), problem...)
		}
	}
	b = append(b, `,"event":`...)
	b = r.AppendJSON(b)
	return append(b, '}')
}

func appendMissed(b []byte, m Missed) []byte {
	b = strconv.AppendInt(append(b, `{"partition":`...), int64(m.Partition), 10)
	b = strconv.AppendInt(append(b, `,"from":`...), m.From, 10)
	b = strconv.AppendInt(append(b, `,"to":`...), m.To, 10)
	return append(b, '}')
}

func parseFrom(from string) (Start, error) {
	switch from {
	case "", "latest":
		return Start{}, nil
	case "earliest":
		return Start{Earliest: true}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, from); err == nil {
		return Start{Time: t}, nil
	}
	c, err := ParseCursor(from)
	return Start{Cursor: c}, err
}
