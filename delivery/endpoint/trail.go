package endpoint

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/event"
)

// trail remembers the span of an event's last attempt, so that the next one can
// link to it. It is this instance's memory and bounded: where it does not reach,
// the log of attempts has the trace ids.
type trail struct {
	mu    sync.Mutex
	spans map[event.Position]trace.SpanContext
}

const (
	maxTrail = 10_000
	// maxLinks bounds the links of a batch's span; the SDK keeps 128.
	maxLinks = 100
)

func newTrail() *trail { return &trail{spans: map[event.Position]trace.SpanContext{}} }

func (t *trail) last(at event.Position) trace.SpanContext {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.spans[at]
}

// note keeps the span of an attempt that is to be followed by another.
func (t *trail) note(at event.Position, span trace.SpanContext) {
	if !span.IsSampled() {
		return // nobody could follow the link
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) >= maxTrail {
		clear(t.spans) // some are of events that other instances have now
	}
	t.spans[at] = span
}

func (t *trail) forget(at event.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.spans, at)
}

// start begins the attempt's span. A single event's attempt goes on with its
// publisher's trace, so that the receiver is in it; of a batch each event's is
// linked. A link leads to the publishing span, which may be days away, and
// another to the attempt before.
func (p *Pusher) start(ctx context.Context, parcel *Parcel) (context.Context, trace.Span) {
	first := parcel.Records[0]
	var parent trace.SpanContext
	if len(parcel.Records) == 1 {
		if parent = originOf(first); parent.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
		}
	}
	tracer := p.env.Tracer
	if p.env.TracerFor != nil {
		if tracer = p.env.TracerFor(parent); tracer == nil {
			if parent.IsValid() {
				return ctx, trace.SpanFromContext(ctx)
			}
			return ctx, noop.Span{} // not one of ctx, which is a caller's
		}
	}
	ctx, span := tracer.Start(ctx, "webhook "+first.Topic, trace.WithSpanKind(trace.SpanKindClient))
	if !span.IsRecording() { // what nobody sees is not worth writing
		return ctx, span
	}
	span.SetAttributes(
		attribute.String("messaging.system", "kafka"), attribute.String("messaging.operation.name", "webhook"),
		attribute.String("messaging.operation.type", "process"), attribute.String("messaging.destination.name", first.Topic),
		attribute.String("messaging.consumer.group.name", p.options.Subscription), attribute.String("messaging.message.id", parcel.ID),
		attribute.String("server.address", p.options.Host), attribute.Int("postern.attempt", parcel.Attempt))
	if n := len(parcel.Records); n > 1 {
		span.SetAttributes(attribute.Int("messaging.batch.message_count", n))
	}
	for _, r := range parcel.Records[:min(len(parcel.Records), maxLinks)] {
		if origin := originOf(r); origin.IsValid() {
			span.AddLink(trace.Link{SpanContext: origin})
		}
		if before := p.trail.last(r.Position()); before.IsValid() {
			span.AddLink(trace.Link{SpanContext: before, Attributes: []attribute.KeyValue{attribute.Bool("postern.previous_attempt", true)}})
		}
	}
	return ctx, span
}

// originOf reads the trace context a record carries.
func originOf(r *event.Record) trace.SpanContext {
	if _, ok := r.Header(event.HeaderTraceParent); !ok {
		return trace.SpanContext{}
	}
	c := propagation.MapCarrier{}
	for _, name := range [...]string{event.HeaderTraceParent, event.HeaderTraceState} {
		if v, ok := r.Header(name); ok {
			c[name] = string(v)
		}
	}
	return trace.SpanContextFromContext(otel.GetTextMapPropagator().Extract(context.Background(), c))
}
