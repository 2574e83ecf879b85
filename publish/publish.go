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
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

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
	// MaxEventBytes bounds one event's key, value and headers. Default 1MiB.
	MaxEventBytes setting.Bytes `yaml:"max_event_bytes"`
	// MaxBodyBytes bounds one HTTP request's body. Default 16MiB.
	MaxBodyBytes setting.Bytes `yaml:"max_body_bytes"`
}

// MaxEvents bounds the events of one request.
const MaxEvents = 10_000

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
	return o
}

// Producer writes records; broker.Producer is one.
type Producer interface {
	Produce(r *event.Record, durability broker.Durability, done func(event.Position, error))
}

// Receipt says what became of one event: stored at Position, or Err, whose
// reason tells not stored from unknown.
type Receipt struct {
	Position event.Position
	Err      error
}

// Publisher publishes.
type Publisher struct {
	options  Options
	policy   authz.Policy
	schemas  *schema.Checker
	producer Producer
	tracer   trace.Tracer
	tracing  bool // somebody takes spans, so that traces may begin here
	metrics  *metrics
	log      *slog.Logger
}

// New makes a Publisher.
func New(o Options, policy authz.Policy, schemas *schema.Checker, producer Producer, tracer trace.Tracer, meter metric.Meter, log *slog.Logger) *Publisher {
	_, silent := tracer.(noop.Tracer)
	return &Publisher{o.WithDefaults(), policy, schemas, producer, tracer, !silent, newMetrics(meter), log}
}

// Options tells the limits in force.
func (p *Publisher) Options() Options { return p.options }

// Publish stores events in topic and gives one receipt for each, in order. It
// fails as a whole only when nothing was tried. When ctx ends first, the
// receipts of events still under way say OUTCOME_UNKNOWN; the write goes on.
func (p *Publisher) Publish(ctx context.Context, who authz.Identity, topic string, events []event.Event, durability broker.Durability) ([]Receipt, error) {
	pending, err := p.Start(ctx, who, topic, events, durability)
	if err != nil {
		return nil, err
	}
	ctx, cancel := p.bound(ctx)
	defer cancel()
	return pending.Wait(ctx), nil
}

// bound gives a caller without a deadline one.
func (p *Publisher) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, p.options.MaxWait)
}

// Pending is a request whose events are with the producer.
type Pending struct {
	publisher *Publisher
	topic     string
	began     time.Time
	receipts  []Receipt
	answers   chan answer // one for each event that was tried; roomy enough that no promise ever blocks
	waiting   int
	answered  []bool
	spans     []trace.Span
}

type answer struct {
	index int
	Receipt
}

// Start hands events to the producer and does not wait for Kafka. ctx is not
// kept: only Wait is bounded by a caller's deadline (see broker.Producer).
func (p *Publisher) Start(ctx context.Context, who authz.Identity, topic string, events []event.Event, durability broker.Durability) (*Pending, error) {
	topic, err := event.ParseTopic(topic)
	if err != nil {
		return nil, fault.New(fault.InvalidTopic, "%w", err).Field("topic", "%v", err)
	}
	if err := p.policy.Check(who, authz.Publish, topic); err != nil {
		return nil, err
	}
	switch {
	case len(events) == 0:
		return nil, fault.New(fault.InvalidArgument, "there is no event to publish: send at least one").Field("events", "at least one is needed")
	case len(events) > MaxEvents:
		return nil, fault.New(fault.InvalidArgument, "%d events in one request: send at most %d", len(events), MaxEvents).Field("events", "at most %d", MaxEvents)
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Of(err)
	}
	pending := &Pending{
		publisher: p, topic: topic, began: time.Now(),
		receipts: make([]Receipt, len(events)), answers: make(chan answer, len(events)), answered: make([]bool, len(events)),
	}
	parent := trace.SpanContextFromContext(ctx)
	if parent.IsSampled() || !parent.IsValid() && p.tracing {
		pending.spans = make([]trace.Span, len(events))
	}
	for i := range events {
		record, err := p.record(ctx, topic, &events[i])
		if err != nil {
			pending.receipts[i] = Receipt{Err: err}
			pending.answered[i] = true
			continue
		}
		p.carryTrace(ctx, pending, i, record)
		pending.waiting++
		p.producer.Produce(record, durability, func(at event.Position, err error) {
			pending.answers <- answer{i, Receipt{at, err}}
		})
	}
	return pending, nil
}

// record checks e and writes it as topic's record.
func (p *Publisher) record(ctx context.Context, topic string, e *event.Event) (*event.Record, error) {
	if err := e.Validate(); err != nil {
		return nil, invalid(err)
	}
	if err := p.schemas.Check(ctx, topic, e); err != nil {
		return nil, err
	}
	r := e.Record(topic)
	if size := r.Size(); size > int(p.options.MaxEventBytes) {
		return nil, fault.New(fault.EventTooLarge, "the event has %d bytes with key and headers, at most %d are allowed: send less, or a reference to the data",
			size, int64(p.options.MaxEventBytes)).With("limit", fmt.Sprint(int64(p.options.MaxEventBytes)))
	}
	return r, nil
}

// carryTrace writes the context of the event's own span, or the caller's, into
// the record, unless the publisher set the header itself. Without a caller's
// context and without a sampled span the record stays as it was sent.
func (p *Publisher) carryTrace(ctx context.Context, pending *Pending, i int, r *event.Record) {
	if _, has := r.Header(event.HeaderTraceParent); has {
		return
	}
	if pending.spans != nil {
		var span trace.Span
		ctx, span = p.tracer.Start(ctx, "publish "+r.Topic, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
			attribute.String("messaging.system", "kafka"),
			attribute.String("messaging.operation.name", "publish"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.destination.name", r.Topic)))
		pending.spans[i] = span
		if !span.SpanContext().IsSampled() {
			return
		}
	}
	otel.GetTextMapPropagator().Inject(ctx, (*headerCarrier)(r))
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

// Wait waits for Kafka's answers until ctx ends.
func (w *Pending) Wait(ctx context.Context) []Receipt {
	for w.waiting > 0 {
		select {
		case a := <-w.answers:
			w.take(a)
		case <-ctx.Done():
			w.giveUp(ctx)
		}
	}
	w.finish()
	return w.receipts
}

func (w *Pending) take(a answer) {
	w.receipts[a.index], w.answered[a.index] = a.Receipt, true
	w.waiting--
}

// giveUp takes the answers that are there and calls the others unknown.
func (w *Pending) giveUp(ctx context.Context) {
	for more := true; more && w.waiting > 0; {
		select {
		case a := <-w.answers:
			w.take(a)
		default:
			more = false
		}
	}
	for i := range w.receipts {
		if !w.answered[i] {
			w.receipts[i].Err = fault.New(fault.OutcomeUnknown,
				"Kafka had not answered when the wait ended: the event may or may not be stored (%w)", context.Cause(ctx)).With("topic", w.topic)
		}
	}
	w.waiting = 0
}

// finish counts, says how it ended, and ends the spans.
func (w *Pending) finish() {
	stored := int64(0)
	var failure *fault.Error
	for i := range w.receipts {
		err := w.receipts[i].Err
		if err == nil {
			stored++
		} else {
			failure = fault.Of(err)
			w.publisher.metrics.failed(w.topic, failure.Reason)
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
	w.publisher.metrics.stored(w.topic, stored, took)
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
	if strings.HasPrefix(wrong.Field, "Postern-") || wrong.Field == event.HTTPIdempotencyKey {
		reason = fault.InvalidHeader
	}
	return fault.New(reason, "%w", err).Field(wrong.Field, "%s", wrong.Message)
}
