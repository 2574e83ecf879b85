// Package publish owns the way of an event from a request to an acknowledged
// record.
//
// Publisher.Publish reads top to bottom: may the caller, does the event fit
// the topic's rule and schema, hand it to the producer, wait for Kafka's
// answer, say where it is. gRPC, grpc-gateway and the events route over HTTP
// are adapters to it (server.go, events.go). Batching, retries and idempotence
// are the producer's, in package broker.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/schema"
)

// Options of publishing.
type Options struct {
	// MaxWait bounds a caller's wait for Kafka when the caller gives no deadline. Default 30s.
	MaxWait time.Duration `yaml:"max_wait"`
	// MaxEventBytes bounds one event's key, value and headers. Default 976KiB: what a topic of Kafka's defaults takes.
	MaxEventBytes setting.Bytes `yaml:"max_event_bytes"`
	// MaxBodyBytes bounds one HTTP request's body, after it is decompressed. Default 16MiB.
	MaxBodyBytes setting.Bytes `yaml:"max_body_bytes"`
	// BodyBuffer bounds the HTTP request bodies that are being read or answered, after they
	// are decompressed; beyond it requests are refused, BUFFER_FULL. Default 64MiB.
	BodyBuffer setting.Bytes `yaml:"body_buffer"`
	// DedupeAge is how long a dedupe key is remembered. Default 5m.
	DedupeAge time.Duration `yaml:"dedupe_age"`
	// DedupeBytes bounds the memory for dedupe keys, 256 bytes each; the oldest are forgotten first. Default 16MiB.
	DedupeBytes setting.Bytes `yaml:"dedupe_bytes"`
}

// MaxEvents bounds the events of one request.
const MaxEvents = 10_000

// maxEventLimit bounds what max_event_bytes may be set to.
const maxEventLimit = 64 << 20

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.MaxWait == 0 {
		o.MaxWait = 30 * time.Second
	}
	if o.MaxEventBytes == 0 {
		o.MaxEventBytes = broker.DefaultMaxEventBytes
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 16 << 20
	}
	if o.BodyBuffer == 0 {
		o.BodyBuffer = max(64<<20, o.MaxBodyBytes)
	}
	if o.DedupeAge == 0 {
		o.DedupeAge = 5 * time.Minute
	}
	if o.DedupeBytes == 0 {
		o.DedupeBytes = 16 << 20
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	var faults setting.Faults
	if o.MaxWait < 0 {
		faults.Add("max_wait", "it cannot be negative")
	}
	if o.MaxEventBytes < 0 || o.MaxEventBytes > maxEventLimit {
		faults.Add("max_event_bytes", "%s is out of range: at most %s", o.MaxEventBytes, setting.Bytes(maxEventLimit))
	}
	if o.MaxBodyBytes < 0 {
		faults.Add("max_body_bytes", "it cannot be negative")
	}
	if full := o.WithDefaults(); full.BodyBuffer < full.MaxBodyBytes {
		faults.Add("body_buffer", "%s does not hold one body of max_body_bytes, %s", full.BodyBuffer, full.MaxBodyBytes)
	}
	if o.DedupeAge < 0 {
		faults.Add("dedupe_age", "it cannot be negative")
	}
	if o.DedupeBytes < 0 || o.DedupeBytes > 0 && o.DedupeBytes < 64<<10 {
		faults.Add("dedupe_bytes", "%s is too small: at least 64KiB", o.DedupeBytes)
	}
	return faults.Err()
}

// Producer writes records; broker.Producer is one.
type Producer interface {
	// ProduceAll answers for each record that is not nil.
	ProduceAll(records []*event.Record, how broker.How, done func(i int, at event.Position, err error))
	// ProduceAtomic stores all of records or none.
	ProduceAtomic(ctx context.Context, records []*event.Record, compression broker.Compression, done func(i int, at event.Position, err error))
}

// Topics tells what Kafka knows; broker.Client does.
type Topics interface {
	Partitions(ctx context.Context, topic string) (int32, error)
}

// Request is events to publish.
type Request struct {
	Topic      string // of the events that name none
	Events     []event.Event
	Durability broker.Durability
	Atomic     bool
}

// Receipt says what became of one event: stored at Position, or Err, whose
// reason tells not stored from unknown.
type Receipt struct {
	Position  event.Position
	Err       error
	Duplicate bool // the position is of an earlier publish
}

// Publisher publishes.
type Publisher struct {
	options  Options
	policy   authz.Policy
	rules    *ruleBook
	schemas  *schema.Checker
	producer Producer
	topics   Topics
	window   *window
	patience patience
	tracer   trace.Tracer // for traces that callers began
	root     trace.Tracer // for those that begin here, when sample says so
	sample   func() bool
	metrics  *metrics
	log      *slog.Logger

	draining      <-chan struct{}
	drainTime     func() time.Time
	ratePerMinute int
}

// Parts are what a Publisher works with.
type Parts struct {
	Policy   authz.Policy
	Rules    []TopicRules
	Schemas  *schema.Checker
	Producer Producer
	Topics   Topics
	Tracer   trace.Tracer // for traces that callers began
	Root     trace.Tracer // for traces that begin here
	Sample   func() bool  // whether one that begins now is recorded; nil: never
	Meter    metric.Meter
	Log      *slog.Logger
	// Draining is closed when the gateway begins to stop; DrainTime then tells until when it serves.
	Draining  <-chan struct{}
	DrainTime func() time.Time
	// RatePerMinute is what one caller may send, as webhook senders are told; 0 is no limit.
	RatePerMinute int
}

// New makes a Publisher.
func New(o Options, parts Parts) *Publisher {
	o = o.WithDefaults()
	p := &Publisher{
		options: o, policy: parts.Policy, rules: newRuleBook(parts.Rules, o.MaxEventBytes), schemas: parts.Schemas,
		producer: parts.Producer, topics: parts.Topics, tracer: parts.Tracer, root: parts.Root, sample: parts.Sample, log: parts.Log,
		patience: patience{wait: o.MaxWait}, draining: parts.Draining, drainTime: parts.DrainTime, ratePerMinute: parts.RatePerMinute,
	}
	p.metrics = newMetrics(parts.Meter, func() (entries, bytes int) { return p.window.size() })
	p.window = newWindow(o.DedupeAge, int(o.DedupeBytes), p.metrics.forgotten)
	return p
}

// Options tells the limits in force.
func (p *Publisher) Options() Options { return p.options }

// Publish stores the request's events and gives one receipt for each, in order.
// It fails as a whole only when nothing was tried. When ctx ends first, the
// receipts of events still under way say OUTCOME_UNKNOWN; the write goes on.
func (p *Publisher) Publish(ctx context.Context, who authz.Identity, request Request) ([]Receipt, error) {
	pending, err := p.Start(ctx, who, request)
	if err != nil {
		return nil, err
	}
	return pending.Wait(ctx), nil
}

// Pending is a request whose events are with the producer.
type Pending struct {
	publisher *Publisher
	topic     string   // of all events, or of the first
	rule      *rule    // of topic
	topics    []string // of each; nil when they are all the same
	began     time.Time
	tracer    trace.Tracer
	spans     []trace.Span   // nil when none is recorded
	carried   []event.Header // the caller's trace, for events without spans; made with the first
	keys      []digest       // of the events with a dedupe key that are under way; nil without any
	first     []bool         // whether this request is the first to publish it; else it waits for the first
	one       struct {       // memory for a request of one event
		receipt  [1]Receipt
		answered [1]bool
		slab     [1]event.Record
		records  [1]*event.Record
	}
	waiting atomic.Int32 // events without an answer

	mu       sync.Mutex
	done     chan struct{} // closed when all are answered; made for who waits: in a stream most are answered before
	receipts []Receipt
	answered []bool
	left     bool // nobody waits any more
}

// Start hands the events to the producer and does not wait for Kafka. ctx is not
// kept: only Wait is bounded by a caller's deadline (see broker.Producer).
func (p *Publisher) Start(ctx context.Context, who authz.Identity, request Request) (*Pending, error) {
	if err := p.admit(ctx, who, &request); err != nil {
		return nil, err
	}
	events := request.Events
	topic := events[0].Topic
	w := &Pending{publisher: p, topic: topic, rule: p.rules.of(topic), began: time.Now()}
	w.waiting.Store(int32(len(events)))
	slab, records := w.one.slab[:], w.one.records[:]
	if w.receipts, w.answered = w.one.receipt[:], w.one.answered[:]; len(events) > 1 {
		w.receipts, w.answered = make([]Receipt, len(events)), make([]bool, len(events))
		slab, records = make([]event.Record, len(events)), make([]*event.Record, len(events))
	}
	for i := range events {
		if events[i].Topic != w.topic && w.topics == nil {
			w.topics = make([]string, len(events))
			for j := range events {
				w.topics[j] = events[j].Topic
			}
		}
	}
	switch parent := trace.SpanContextFromContext(ctx); {
	case parent.IsSampled():
		w.spans, w.tracer = make([]trace.Span, len(events)), p.tracer
	case !parent.IsValid() && p.sample != nil && p.sample():
		w.spans, w.tracer = make([]trace.Span, len(events)), p.root
	}
	failed := false
	for i := range events {
		if err := p.record(ctx, &slab[i], &events[i], w.ruleOf(events[i].Topic), request.Atomic); err != nil {
			failed = true
			w.answer(i, Receipt{Err: err})
			continue
		}
		records[i] = &slab[i]
	}
	if request.Atomic {
		p.startAtomic(ctx, w, records, failed)
		return w, nil
	}
	for i, record := range records {
		if record != nil && !p.claim(w, who, &events[i], i, record, request.Durability) {
			records[i], *record = nil, event.Record{} // it is not kept while the first one is waited for
		}
	}
	for i, record := range records {
		if record != nil {
			p.carryTrace(ctx, w, i, record)
		}
	}
	wait := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		wait = deadline.Sub(w.began)
	}
	p.produce(w, records, request.Durability, wait)
	return w, nil
}

// admit checks the request as a whole, and that the caller may publish to each topic.
func (p *Publisher) admit(ctx context.Context, who authz.Identity, request *Request) error {
	switch n := len(request.Events); {
	case n == 0:
		return fault.New(fault.InvalidArgument, "there is no event to publish: send at least one").Field("events", "at least one is needed")
	case n > MaxEvents:
		return fault.New(fault.InvalidArgument, "%d events in one request: send at most %d", n, MaxEvents).Field("events", "at most %d", MaxEvents)
	}
	last := ""
	for i := range request.Events {
		e := &request.Events[i]
		if e.Topic == "" {
			e.Topic = request.Topic
		}
		if e.Topic == last && last != "" {
			continue
		}
		topic, err := event.ParseTopic(e.Topic)
		if err != nil {
			return fault.New(fault.InvalidTopic, "%w", err).Field("topic", "%v", err)
		}
		if err := p.policy.Check(who, authz.Publish, topic); err != nil {
			return err
		}
		last = topic
	}
	if err := ctx.Err(); err != nil {
		return fault.Of(err)
	}
	return nil
}

// ruleOf is the rule of a topic of the request.
func (w *Pending) ruleOf(topic string) *rule {
	if topic == w.topic {
		return w.rule
	}
	return w.publisher.rules.of(topic)
}

// record checks e and writes it as its topic's record, by the topic's rule r.
func (p *Publisher) record(ctx context.Context, to *event.Record, e *event.Event, r *rule, atomic bool) error {
	if err := e.Validate(); err != nil {
		return invalid(err)
	}
	if atomic && e.DedupeKey != "" {
		return fault.New(fault.InvalidArgument, "an atomic request cannot be deduplicated: leave the dedupe key out").Field("dedupe_key", "not with atomic")
	}
	if err := r.admit(e.Topic, e); err != nil {
		return err
	}
	if err := p.schemas.Check(ctx, e.Topic, e); err != nil {
		return err
	}
	return r.record(to, e.Topic, e)
}

// dedupeKey names an event that is to be stored once; ok is false for others.
func (p *Publisher) dedupeKey(who authz.Identity, e *event.Event) (name digest, ok bool) {
	switch {
	case e.DedupeKey != "":
		return keyDigest(who.Name, e.Topic, e.DedupeKey), true
	case e.IsCloudEvent() && p.rules.of(e.Topic).DedupeByID:
		return keyDigest(who.Name, e.Topic, e.Source, e.ID), true
	}
	return name, false
}

// contentOf stands for what an event under a dedupe key says.
func (p *Publisher) contentOf(e *event.Event, record *event.Record, asked broker.Durability) digest {
	rule, said := p.rules.of(e.Topic), *record
	if e.Sent != nil && rule.CloudEvents != "structured" {
		said.Value = e.Sent // a retry may meet a newer schema: it is the same event all the same
	}
	return contentDigest(&said, rule.how(asked).Durability)
}

// claim looks an event with a dedupe key up, and reports whether it is to be
// produced: else its receipt is there, or comes with the first one's.
func (p *Publisher) claim(w *Pending, who authz.Identity, e *event.Event, i int, record *event.Record, asked broker.Durability) bool {
	name, ok := p.dedupeKey(who, e)
	if !ok {
		return true
	}
	found, receipt := p.window.claim(name, p.contentOf(e, record, asked), w.began, joiner{w, i})
	switch found {
	case isFirst, isJoined:
		if w.first == nil {
			w.keys, w.first = make([]digest, len(w.receipts)), make([]bool, len(w.receipts))
		}
		w.keys[i], w.first[i] = name, found == isFirst
	case isKnown:
		w.answer(i, receipt)
	case isOther:
		w.answer(i, Receipt{Err: reused(e.Topic)})
	case isFull:
		w.answer(i, Receipt{Err: windowFull(int(p.options.DedupeBytes))})
	}
	if found == isKnown || found == isJoined {
		p.metrics.duplicate(e.Topic)
	}
	return found == isFirst
}

// produce hands the records over, those that are written alike together.
func (p *Publisher) produce(w *Pending, records []*event.Record, asked broker.Durability, wait time.Duration) {
	for records != nil {
		first := slices.IndexFunc(records, func(r *event.Record) bool { return r != nil })
		if first < 0 {
			return
		}
		topic := records[first].Topic
		how := w.ruleOf(topic).how(asked)
		var now, later []*event.Record
		for i := first + 1; i < len(records); i++ {
			if r := records[i]; r != nil && r.Topic != topic && w.ruleOf(r.Topic).how(asked) != how {
				if later == nil {
					now, later = slices.Clone(records), make([]*event.Record, len(records))
				}
				now[i], later[i] = nil, r
			}
		}
		if later == nil {
			now = records
		}
		how.Wait = wait
		p.producer.ProduceAll(now, how, w.stored)
		records = later
	}
}

// startAtomic hands the records over together, unless one has failed already.
func (p *Publisher) startAtomic(ctx context.Context, w *Pending, records []*event.Record, failed bool) {
	for i, record := range records {
		switch {
		case record == nil:
		case failed:
			w.answer(i, Receipt{Err: broker.Aborted()})
		default:
			p.carryTrace(ctx, w, i, record)
		}
	}
	if !failed {
		p.producer.ProduceAtomic(ctx, records, w.rule.Compression, w.stored)
	}
}

// carryTrace writes the context of the event's own span, or the caller's, into
// the record, unless the publisher set the header itself. Without a caller's
// context and without a sampled span the record stays as it was sent.
func (p *Publisher) carryTrace(ctx context.Context, w *Pending, i int, r *event.Record) {
	if w.spans == nil && !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	if _, has := r.Header(event.HeaderTraceParent); has {
		return
	}
	if w.spans != nil {
		var span trace.Span
		ctx, span = w.tracer.Start(ctx, "publish "+r.Topic, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
			attribute.String("messaging.system", "kafka"),
			attribute.String("messaging.operation.name", "publish"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.destination.name", r.Topic)))
		w.spans[i] = span
		if span.SpanContext().IsSampled() {
			propagation.TraceContext{}.Inject(ctx, (*headerCarrier)(r))
		}
		return
	}
	if w.carried == nil {
		var one event.Record
		propagation.TraceContext{}.Inject(ctx, (*headerCarrier)(&one))
		w.carried = slices.Clip(one.Headers)
	}
	if len(r.Headers) == 0 {
		r.Headers = w.carried // shared by the request's events: nobody writes in it
		return
	}
	r.Headers = append(r.Headers, w.carried...)
}

// headerCarrier writes trace headers into a record.
type headerCarrier event.Record

var _ propagation.TextMapCarrier = (*headerCarrier)(nil)

func (c *headerCarrier) Get(name string) string {
	v, _ := (*event.Record)(c).Header(name)
	return string(v)
}

func (c *headerCarrier) Set(name, value string) {
	if name == event.HeaderTraceParent || name == event.HeaderTraceState && value != "" {
		c.Headers = append(c.Headers, event.Header{Name: name, Value: []byte(value)})
	}
}

func (c *headerCarrier) Keys() []string {
	names := make([]string, len(c.Headers))
	for i, h := range c.Headers {
		names[i] = h.Name
	}
	return names
}

// stored takes Kafka's answer.
func (w *Pending) stored(i int, at event.Position, err error) {
	r := Receipt{Position: at, Err: err}
	if w.first != nil && w.first[i] {
		w.publisher.window.settle(w.keys[i], r, time.Now())
	}
	w.answer(i, r)
}

func (w *Pending) answer(i int, r Receipt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left {
		return
	}
	w.receipts[i], w.answered[i] = r, true
	if w.waiting.Add(-1) == 0 && w.done != nil {
		close(w.done)
	}
}

// ready reports whether Wait would not wait.
func (w *Pending) ready() bool { return w.waiting.Load() == 0 }

// all is closed when all are answered.
func (w *Pending) all() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done == nil {
		if w.done = make(chan struct{}); w.ready() {
			close(w.done)
		}
	}
	return w.done
}

// Wait waits for Kafka's answers until ctx ends, and no longer than max_wait
// when it has no deadline.
func (w *Pending) Wait(ctx context.Context) []Receipt {
	if why := w.await(ctx, nil); why != nil {
		w.leave(why)
	}
	w.finish()
	return w.receipts
}

// WaitAhead is Wait for a caller whose transport drops the answer when ctx's
// deadline has passed: it ends a little before.
func (w *Pending) WaitAhead(ctx context.Context) []Receipt {
	deadline, ok := ctx.Deadline()
	if !ok || w.ready() {
		return w.Wait(ctx)
	}
	left := time.Until(deadline)
	ahead := time.NewTimer(left - min(answerAhead, left/4))
	defer ahead.Stop()
	if why := w.await(ctx, ahead.C); why != nil {
		w.leave(why)
	}
	w.finish()
	return w.receipts
}

// answerAhead is what an answer needs to be back before its caller's deadline.
const answerAhead = 50 * time.Millisecond

// errStopping is why a wait ends with the gateway.
var errStopping = errors.New("the gateway is stopping")

// await waits until everything is answered, nil, or tells why it does not. It
// ends with the drain time, while there is a connection to say so.
func (w *Pending) await(ctx context.Context, ahead <-chan time.Time) error {
	if w.ready() { // most of a stream's are
		return nil
	}
	var over <-chan struct{}
	if _, ok := ctx.Deadline(); !ok {
		over = w.publisher.patience.over(w.began)
	}
	var cut <-chan time.Time
	all := w.all()
	for draining := w.publisher.draining; ; {
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over:
			return context.DeadlineExceeded
		case <-ahead:
			return context.DeadlineExceeded
		case <-draining:
			draining = nil
			timer := time.NewTimer(time.Until(w.publisher.drainTime()))
			defer timer.Stop()
			cut = timer.C
		case <-cut:
			return errStopping
		}
	}
}

// leave takes the answers that are there and calls the others unknown.
func (w *Pending) leave(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = true
	for i := range w.receipts {
		if w.answered[i] {
			continue
		}
		if w.keys != nil && !w.first[i] && w.keys[i] != (digest{}) {
			w.publisher.window.leave(w.keys[i], joiner{w, i})
		}
		w.receipts[i].Err = fault.New(fault.OutcomeUnknown,
			"Kafka had not answered when the wait ended: the event may or may not be stored (%w)", why).With("topic", w.topicOf(i))
	}
}

func (w *Pending) topicOf(i int) string {
	if w.topics != nil {
		return w.topics[i]
	}
	return w.topic
}

// finish counts, says how it ended, and ends the spans.
func (w *Pending) finish() {
	stored := int64(0)
	var failure *fault.Error
	for i := range w.receipts {
		err := w.receipts[i].Err
		switch {
		case w.receipts[i].Duplicate:
		case err == nil:
			stored++
			if w.topics != nil {
				w.publisher.metrics.attributes(w.topics[i]).sent.Add(1)
			}
		default:
			failure = fault.Of(err)
			w.publisher.metrics.failed(w.topicOf(i), failure.Reason)
		}
		if w.spans == nil || w.spans[i] == nil {
			continue
		}
		if err != nil {
			w.spans[i].SetStatus(codes.Error, string(fault.Of(err).Reason))
			w.spans[i].SetAttributes(attribute.String("error.type", string(fault.Of(err).Reason)))
		} else {
			w.spans[i].SetAttributes(
				attribute.String("messaging.destination.partition.id", fmt.Sprint(w.receipts[i].Position.Partition)),
				attribute.Int64("messaging.kafka.offset", w.receipts[i].Position.Offset))
		}
		w.spans[i].End()
	}
	took := time.Since(w.began)
	series := w.rule.series(w.publisher.metrics, w.topic)
	if w.topics == nil && stored > 0 {
		series.sent.Add(stored)
	}
	w.publisher.metrics.took(series, took)
	if failure != nil { // what is stored is told to its publisher and counted; a line for each would cost more than the event
		w.publisher.log.Info("publish failed", "topic", w.topic, "events", len(w.receipts), "stored", stored,
			"reason", failure.Reason, "error", failure, "duration_ms", took.Milliseconds())
	}
}

// invalid says what is wrong with an event as a fault.
func invalid(err error) *fault.Error {
	var wrong *event.InvalidError
	if !errors.As(err, &wrong) {
		return fault.New(fault.InvalidBody, "%w", err)
	}
	reason := fault.InvalidCloudEvent
	switch {
	case wrong.Form:
		reason = fault.InvalidBody
	case strings.HasPrefix(wrong.Field, "Postern-") || wrong.Field == event.HTTPIdempotencyKey:
		reason = fault.InvalidHeader
	}
	field := wrong.Field
	if field == "" {
		field = "body"
	}
	return fault.New(reason, "%w", err).Field(field, "%s", wrong.Message)
}
