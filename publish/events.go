package publish

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// Events is the route POST /v1/topics/{topic}/events: a body of bytes, not a
// message. Its Content-Type says how it carries events (event.DetectMode). One
// event is answered by its own status; several by 200 when all are stored and
// else by 207, with a result for each in order.
func (p *Publisher) Events(w http.ResponseWriter, r *http.Request) error {
	topic, err := event.ParseTopic(r.PathValue("topic"))
	if err != nil {
		return fault.New(fault.InvalidTopic, "%w", err).Field("topic", "%v", err)
	}
	ctx, cancel, err := deadline(r)
	if err != nil {
		return err
	}
	defer cancel()
	body, err := p.readBody(w, r)
	if err != nil {
		return err
	}
	mode := event.DetectMode(r.Header)
	switch mode {
	case event.Unsupported:
		return fault.New(fault.UnsupportedMediaType, "%q is not a CloudEvents format this route reads: send %s, %s, or binary mode",
			r.Header.Get("Content-Type"), event.MediaStructured, event.MediaBatch)
	case event.Plain, event.Binary, event.Structured:
		var e event.Event
		switch mode {
		case event.Plain:
			e, err = event.FromPlain(r.Header, body)
		case event.Binary:
			e, err = event.FromHTTPBinary(r.Header, body)
		default:
			if e, err = event.FromStructuredJSON(body); err == nil {
				err = e.ApplyHTTPHeaders(r.Header)
			}
		}
		if err != nil {
			return invalid(err)
		}
		return p.one(ctx, w, r, topic, e)
	}
	items, err := itemsOf(mode, body)
	if err != nil {
		return invalid(err)
	}
	return p.several(ctx, w, r, topic, items)
}

// itemsOf reads a body of several events.
func itemsOf(mode event.Mode, body []byte) ([]event.Item, error) {
	if mode == event.Batch {
		return event.FromBatchJSON(body, MaxEvents)
	}
	var items []event.Item
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, len(body)+1)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if len(items) == MaxEvents {
			return nil, &event.InvalidError{Field: "body", Message: "more than " + strconv.Itoa(MaxEvents) + " lines: split the batch"}
		}
		e, err := event.FromNDJSON(line)
		items = append(items, event.Item{Event: e, Err: err})
	}
	return items, lines.Err()
}

func (p *Publisher) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, fault.New(fault.UnsupportedEncoding, "Content-Encoding %q is not read: send the body unencoded", coding)
	}
	limit := int64(p.options.MaxBodyBytes)
	if r.ContentLength > limit {
		return nil, fault.New(fault.BodyTooLarge, "the body has %d bytes, at most %d are allowed: split the batch", r.ContentLength, limit)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // HTTP/2 has its own ways
	if r.ContentLength > 0 {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, fault.New(fault.InvalidBody, "the body ended before its Content-Length: %w", err)
		}
		return body, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fault.New(fault.BodyTooLarge, "the body is larger than %d bytes: split the batch", limit)
	case err != nil:
		return nil, fault.New(fault.InvalidBody, "the body could not be read: %w", err)
	}
	return body, nil
}

// bodyTimeout is how long a client may take to send its body.
const bodyTimeout = 60 * time.Second

// deadline reads how long the caller wants to wait: Grpc-Timeout as gRPC
// writes it, or Prefer: wait= (RFC 7240, section 4.3) in seconds.
func deadline(r *http.Request) (context.Context, context.CancelFunc, error) {
	ctx := r.Context()
	wait := time.Duration(0)
	if v := r.Header.Get("Grpc-Timeout"); v != "" {
		d, ok := grpcTimeout(v)
		if !ok {
			return nil, nil, fault.New(fault.InvalidHeader, "Grpc-Timeout %q is not digits and one of H M S m u n", v).Field("Grpc-Timeout", "unreadable")
		}
		wait = d
	} else {
		for _, prefer := range r.Header.Values("Prefer") {
			for one := range strings.SplitSeq(prefer, ",") {
				if v, ok := strings.CutPrefix(strings.TrimSpace(one), "wait="); ok {
					n, err := strconv.ParseUint(v, 10, 31)
					if err != nil || n == 0 {
						return nil, nil, fault.New(fault.InvalidHeader, "Prefer: wait=%s is not a number of seconds", v).Field("Prefer", "unreadable")
					}
					wait = time.Duration(n) * time.Second
				}
			}
		}
	}
	if wait == 0 {
		return ctx, func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	return ctx, cancel, nil
}

var timeoutUnits = map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}

func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	unit, ok := timeoutUnits[v[len(v)-1]]
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	return time.Duration(n) * unit, ok && err == nil && n > 0
}

// position is where an event is, in an answer.
type position struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func positionOf(p event.Position) *position { return &position{p.Topic, p.Partition, p.Offset} }

func (p *Publisher) one(ctx context.Context, w http.ResponseWriter, r *http.Request, topic string, e event.Event) error {
	receipts, err := p.Publish(ctx, authz.FromContext(r.Context()), topic, []event.Event{e}, broker.AllReplicas)
	if err != nil {
		return err
	}
	if receipts[0].Err != nil {
		return receipts[0].Err
	}
	b := make([]byte, 0, 64+len(topic))
	b = append(b, `{"topic":"`...) // a topic's name needs no escaping
	b = append(b, topic...)
	b = append(b, `","partition":`...)
	b = strconv.AppendInt(b, int64(receipts[0].Position.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, receipts[0].Position.Offset, 10)
	b = append(b, '}', '\n')
	w.Header()["Content-Type"] = jsonContent
	_, _ = w.Write(b) // the caller may be gone; the event is stored
	return nil
}

var jsonContent = []string{"application/json"}

// result is one line of the answer to several events.
type result struct {
	Status   int           `json:"status"`
	Position *position     `json:"position,omitempty"`
	Problem  *wire.Problem `json:"problem,omitempty"`
}

func (p *Publisher) several(ctx context.Context, w http.ResponseWriter, r *http.Request, topic string, items []event.Item) error {
	if len(items) == 0 {
		return fault.New(fault.InvalidBody, "the body holds no event: send at least one")
	}
	answer := struct {
		Results []result `json:"results"`
	}{make([]result, len(items))}
	failed := func(i int, err error) {
		problem := wire.ProblemOf(err)
		answer.Results[i] = result{Status: problem.Status, Problem: &problem}
	}
	status := http.StatusOK
	events, at := make([]event.Event, 0, len(items)), make([]int, 0, len(items))
	for i := range items {
		if items[i].Err != nil {
			failed(i, invalid(items[i].Err))
			status = http.StatusMultiStatus
			continue
		}
		events, at = append(events, items[i].Event), append(at, i)
	}
	if len(events) > 0 {
		receipts, err := p.Publish(ctx, authz.FromContext(r.Context()), topic, events, broker.AllReplicas)
		if err != nil {
			return err
		}
		for j, receipt := range receipts {
			if receipt.Err != nil {
				failed(at[j], receipt.Err)
				status = http.StatusMultiStatus
				continue
			}
			answer.Results[at[j]] = result{Status: http.StatusOK, Position: positionOf(receipt.Position)}
		}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return fault.New(fault.Internal, "write the results: %w", err)
	}
	w.Header()["Content-Type"] = jsonContent
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the caller may be gone; what is stored is stored
	return nil
}

// Handshake answers OPTIONS on the events route: the abuse-protection handshake
// of the CloudEvents webhook specification (section 4), by which a sender asks
// whether it may deliver here. Callers admitted to the listener may.
func (p *Publisher) Handshake(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Allow", "GET, POST, OPTIONS")
	if origin := r.Header.Get("WebHook-Request-Origin"); origin != "" {
		h.Set("WebHook-Allowed-Origin", origin)
		if r.Header.Get("WebHook-Request-Rate") != "" {
			h.Set("WebHook-Allowed-Rate", "*")
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
