package publish

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// Events is the route POST /v1/topics/{topic}/events: a body of bytes, not a
// message. Its Content-Type says how it carries events (event.DetectMode). One
// event is answered by its own status; several by 200 when all are stored and
// else by 207, with a result for each in order. Lines that are answered in lines
// (Accept: application/x-ndjson) are published while they come (lines.go).
func (p *Publisher) Events(w http.ResponseWriter, r *http.Request) error {
	topic, err := event.ParseTopic(r.PathValue("topic"))
	if err != nil {
		return fault.New(fault.InvalidTopic, "%w", err).Field("topic", "%v", err)
	}
	asked, err := askedOf(r)
	if err != nil {
		return err
	}
	asked.topic = topic
	wait, err := wire.WaitOf(r.Header)
	if err != nil {
		return err
	}
	mode := event.DetectMode(r.Header)
	if mode == event.NDJSON || mode == event.Batch || mode == event.BatchProto {
		if err := event.RefuseHTTPHeaders(r.Header); err != nil {
			return invalid(err)
		}
	}
	if mode == event.NDJSON && !asked.atomic && acceptsLines(r) {
		return p.lines(w, r, asked, wait)
	}
	ctx := r.Context()
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	body, err := p.readBody(r)
	if err != nil {
		return err
	}
	var e event.Event
	switch mode {
	case event.Unsupported:
		return fault.New(fault.UnsupportedMediaType, "%q is not a CloudEvents format this route reads: send %s, %s, their +protobuf forms, or binary mode",
			r.Header.Get("Content-Type"), event.MediaStructured, event.MediaBatch)
	case event.Plain:
		e, err = event.FromPlain(r.Header, body)
	case event.Binary:
		e, err = event.FromHTTPBinary(r.Header, body)
	case event.Structured, event.StructuredProto:
		if mode == event.Structured {
			e, err = event.FromStructuredJSON(body)
		} else {
			e, err = wire.FromCloudEventProto(body)
		}
		if err == nil {
			err = e.ApplyHTTPHeaders(r.Header)
		}
	default:
		items, err := itemsOf(mode, body, asked.dedupe)
		if err != nil {
			return invalid(err)
		}
		if len(items) == 0 && mode == event.NDJSON { // a CloudEvents batch may be empty (HTTP binding, section 3.3.2)
			return fault.New(fault.InvalidBody, "the body holds no event: send at least one")
		}
		return p.several(ctx, w, asked, items)
	}
	if err != nil {
		return invalid(err)
	}
	return p.one(ctx, w, asked, e)
}

// asked is what a request's headers ask for beside its events.
type asked struct {
	who          authz.Identity
	topic        string
	durability   broker.Durability
	atomic       bool
	validateOnly bool
	dedupe       string // Idempotency-Key of a request of several events
}

func (a asked) request(events []event.Event) Request {
	return Request{Topic: a.topic, Events: events, Durability: a.durability, Atomic: a.atomic}
}

func askedOf(r *http.Request) (asked, error) {
	a := asked{who: authz.FromContext(r.Context())}
	h := r.Header
	if v, ok := h[event.HTTPDurability]; ok {
		switch v[0] {
		case broker.AllReplicas.String():
		case broker.Leader.String():
			a.durability = broker.Leader
		default:
			return a, fault.New(fault.InvalidHeader, "%s %q is not offered: send all_replicas or leader", event.HTTPDurability, v[0]).Field(event.HTTPDurability, "not offered")
		}
	}
	var err error
	if a.atomic, err = flagOf(h, event.HTTPAtomic); err != nil {
		return a, err
	}
	if a.validateOnly, err = flagOf(h, event.HTTPValidateOnly); err != nil {
		return a, err
	}
	if a.dedupe, err = event.DedupeKeyOf(h); err != nil {
		return a, invalid(err)
	}
	return a, nil
}

func flagOf(h http.Header, name string) (bool, error) {
	v, ok := h[name]
	if !ok {
		return false, nil
	}
	on, err := strconv.ParseBool(v[0])
	if err != nil {
		return false, fault.New(fault.InvalidHeader, "%s %q is neither true nor false", name, v[0]).Field(name, "neither true nor false")
	}
	return on, nil
}

// itemsOf reads a body of several events. Under one Idempotency-Key each has a
// key of its own: the header's and its place.
func itemsOf(mode event.Mode, body []byte, dedupe string) ([]event.Item, error) {
	var items []event.Item
	var err error
	switch mode {
	case event.Batch:
		items, err = event.FromBatchJSON(body, MaxEvents)
	case event.BatchProto:
		items, err = wire.FromCloudEventBatchProto(body, MaxEvents)
	default:
		items, err = itemsOfLines(body)
	}
	if dedupe != "" {
		for i := range items {
			items[i].Event.DedupeKey = dedupe + "#" + strconv.Itoa(i)
		}
	}
	return items, err
}

func itemsOfLines(body []byte) ([]event.Item, error) {
	var items []event.Item
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, len(body)+1)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if len(items) == MaxEvents {
			return nil, &event.InvalidError{Form: true, Field: "body", Message: "more than " + strconv.Itoa(MaxEvents) + " lines: split the batch"}
		}
		e, err := event.FromNDJSON(line)
		items = append(items, event.Item{Event: e, Err: err})
	}
	return items, lines.Err()
}

// one answers for a single event.
func (p *Publisher) one(ctx context.Context, w http.ResponseWriter, a asked, e event.Event) error {
	events := []event.Event{e}
	if a.validateOnly {
		previews, err := p.Preview(ctx, a.who, a.request(events))
		if err != nil {
			return err
		}
		if previews[0].Err != nil {
			return previews[0].Err
		}
		w.Header()["Content-Type"] = jsonContent
		_, _ = w.Write(append(appendPreview([]byte(`{"preview":`), &previews[0]), '}', '\n')) // the caller may be gone; nothing is stored
		return nil
	}
	receipts, err := p.Publish(ctx, a.who, a.request(events))
	if err != nil {
		return err
	}
	if receipts[0].Err != nil {
		return receipts[0].Err
	}
	b := appendPosition(make([]byte, 0, 96+len(a.topic)), receipts[0].Position)
	if receipts[0].Duplicate {
		w.Header().Set(event.HTTPReplayed, "true")
		b = append(b[:len(b)-1], `,"duplicate":true}`...)
	}
	w.Header()["Content-Type"] = jsonContent
	_, _ = w.Write(append(b, '\n')) // the caller may be gone; the event is stored
	return nil
}

var jsonContent = []string{"application/json"}

// several answers for a request of several events.
func (p *Publisher) several(ctx context.Context, w http.ResponseWriter, a asked, items []event.Item) error {
	results, err := p.resultsOf(ctx, a, items)
	if err != nil {
		return err
	}
	status := http.StatusOK
	b := append(make([]byte, 0, 64+100*len(results)), `{"results":[`...)
	for i := range results {
		if i > 0 {
			b = append(b, ',')
		}
		b = results[i].append(b)
		if results[i].err != nil {
			status = http.StatusMultiStatus
		}
	}
	w.Header()["Content-Type"] = jsonContent
	w.WriteHeader(status)
	_, _ = w.Write(append(b, "]}\n"...)) // the caller may be gone; what is stored is stored
	return nil
}

// resultsOf publishes, or checks, the items that are events.
func (p *Publisher) resultsOf(ctx context.Context, a asked, items []event.Item) ([]result, error) {
	if !a.atomic {
		p.denyItems(a, items)
	}
	results := make([]result, len(items))
	events, at := make([]event.Event, 0, len(items)), make([]int, 0, len(items))
	for i := range items {
		if items[i].Err != nil {
			results[i].err = invalidItem(items[i].Err)
			continue
		}
		events, at = append(events, items[i].Event), append(at, i)
	}
	switch {
	case len(events) == 0:
	case a.atomic && len(events) < len(items):
		for _, i := range at {
			results[i].err = broker.Aborted()
		}
	case a.validateOnly:
		previews, err := p.Preview(ctx, a.who, a.request(events))
		if err != nil {
			return nil, err
		}
		for j := range previews {
			results[at[j]] = result{preview: &previews[j], err: previews[j].Err}
		}
	default:
		receipts, err := p.Publish(ctx, a.who, a.request(events))
		if err != nil {
			return nil, err
		}
		for j, r := range receipts {
			results[at[j]] = result{position: r.Position, duplicate: r.Duplicate, err: r.Err}
		}
	}
	return results, nil
}

// denyItems marks the items that name a topic of their own which the caller may
// not publish to: one of them is no reason to refuse those beside it. The
// request's own topic is checked for the request.
func (p *Publisher) denyItems(a asked, items []event.Item) {
	for i := range items {
		if topic := items[i].Event.Topic; items[i].Err == nil && topic != "" && topic != a.topic {
			items[i].Err = p.policy.Check(a.who, authz.Publish, topic)
		}
	}
}

// result is what is answered for one event of several.
type result struct {
	position  event.Position
	duplicate bool
	preview   *Preview
	err       error
}

// append writes r as JSON: {status, position | preview | problem}.
func (r *result) append(b []byte) []byte {
	if r.err != nil {
		problem := wire.ProblemOf(r.err)
		b = append(strconv.AppendInt(append(b, `{"status":`...), int64(problem.Status), 10), `,"problem":`...)
		text, err := json.Marshal(problem)
		if err != nil { // no member can fail; keep the promise of a problem all the same
			text = []byte(`{"reason":"INTERNAL"}`)
		}
		return append(append(b, text...), '}')
	}
	if r.preview != nil {
		return append(appendPreview(append(b, `{"status":200,"preview":`...), r.preview), '}')
	}
	b = appendPosition(append(b, `{"status":200,"position":`...), r.position)
	if r.duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	return append(b, '}')
}

func appendPosition(b []byte, at event.Position) []byte {
	b = append(b, `{"topic":"`...) // a topic's name needs no escaping
	b = append(b, at.Topic...)
	b = append(b, `","partition":`...)
	b = strconv.AppendInt(b, int64(at.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, at.Offset, 10)
	return append(b, '}')
}

// previewJSON is a Preview over HTTP, with PublishPreview's names.
type previewJSON struct {
	Topic      string  `json:"topic"`
	Rule       string  `json:"rule,omitempty"`
	Key        *string `json:"key,omitempty"`
	KeyBase64  []byte  `json:"key_base64,omitempty"`
	Partition  *int32  `json:"partition,omitempty"`
	Durability string  `json:"durability"`
	Bytes      int     `json:"bytes"`
	Value      []byte  `json:"value_base64,omitempty"`
}

func appendPreview(b []byte, p *Preview) []byte {
	m := previewJSON{Topic: p.Record.Topic, Rule: p.Rule, Durability: p.How.Durability.String(), Bytes: p.Record.Size()}
	if key := string(p.Record.Key); p.Record.Key != nil && utf8.ValidString(key) {
		m.Key = &key
	} else {
		m.KeyBase64 = p.Record.Key
	}
	if p.Record.Partition != event.AnyPartition {
		m.Partition = &p.Record.Partition
	}
	if p.Rewritten {
		m.Value = p.Record.Value
	}
	text, err := json.Marshal(m)
	if err != nil { // no member can fail
		return append(b, "null"...)
	}
	return append(b, text...)
}

// Handshake answers OPTIONS on the events route: the abuse-protection handshake
// of the CloudEvents webhook specification (section 4), by which a sender asks
// whether it may deliver here. Who may publish to the topic may, at the rate that
// the caller's limit allows; others, and who names no topic, are told nothing.
func (p *Publisher) Handshake(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Allow", "GET, POST, OPTIONS")
	topic, err := event.ParseTopic(r.PathValue("topic"))
	allowed := err == nil && p.policy.Check(authz.FromContext(r.Context()), authz.Publish, topic) == nil
	if origin := r.Header.Get("WebHook-Request-Origin"); origin != "" && allowed {
		h.Set("WebHook-Allowed-Origin", origin)
		rate := "*"
		if p.ratePerMinute > 0 {
			rate = strconv.Itoa(p.ratePerMinute)
		}
		h.Set("WebHook-Allowed-Rate", rate)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
