package endpoint

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// Resend makes one request with an event once more, whatever the endpoint's
// state, because a person asks for it. It settles nothing, and the endpoint's
// health does not count it. The message id is the event's own, as it always was.
func (p *Pusher) Resend(ctx context.Context, r *event.Record) (Attempt, error) {
	return p.once(ctx, &Parcel{ID: MessageID(p.options.Subscription, r.Position()), Records: []*event.Record{r}, Attempt: 1, Replay: true})
}

// Sample makes one request with an event that is of no topic, to try the endpoint.
// id names it.
func (p *Pusher) Sample(ctx context.Context, r *event.Record, id string) (Attempt, error) {
	return p.once(ctx, &Parcel{ID: "msg_" + id, Records: []*event.Record{r}, Attempt: 1, Sample: true})
}

// Forward makes one request with an event that somebody else lent, and will settle.
func (p *Pusher) Forward(ctx context.Context, r *event.Record, attempt int) (Attempt, error) {
	return p.once(ctx, &Parcel{ID: MessageID(p.options.Subscription, r.Position()), Records: []*event.Record{r}, Attempt: attempt})
}

func (p *Pusher) once(ctx context.Context, parcel *Parcel) (Attempt, error) {
	if p.env.Hosts != nil {
		if !p.env.Hosts.Acquire(ctx, p.options.Host) {
			return Attempt{}, ctx.Err()
		}
		defer p.env.Hosts.Release(p.options.Host)
	}
	began := time.Now()
	answer, span := Answer{Outcome: Outcome{Action: Retry, Class: "consent", Why: "the endpoint has not consented to events: nothing was sent"}}, trace.SpanContext{}
	if p.consented() {
		answer, span = p.attempt(context.WithoutCancel(ctx), parcel)
	}
	lease := delivery.Lease{Record: parcel.Records[0], Attempt: parcel.Attempt}
	a := p.record(&lease, answer.Outcome, parcel, &answer, span, began)
	if p.env.Attempts != nil && !parcel.Sample {
		p.env.Attempts.Attempted(a)
	}
	return a, nil
}

// consented reports whether the endpoint may be sent anything: not even a person's
// word goes before its own.
func (p *Pusher) consented() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.health.waitsForConsent()
}

// record writes what the log of attempts keeps of an event of the parcel, with its outcome.
func (p *Pusher) record(lease *delivery.Lease, o Outcome, parcel *Parcel, answer *Answer, span trace.SpanContext, began time.Time) Attempt {
	r := lease.Record
	a := Attempt{
		WebhookID: parcel.ID, Subscription: p.options.Subscription, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Number: lease.Attempt, Replay: parcel.Replay, At: began.UTC(), Action: o.Action.String(), Class: o.Class, Status: answer.Status,
		Why: o.Why, Host: p.options.Host, Keys: answer.Keys, DNS: milliseconds(answer.Timings.DNS), Connect: milliseconds(answer.Timings.Connect),
		TLS: milliseconds(answer.Timings.TLS), FirstByte: milliseconds(answer.Timings.FirstByte), Total: milliseconds(answer.Timings.Total),
		Instance: p.env.Instance,
	}
	if span.HasTraceID() {
		a.TraceID, a.SpanID = span.TraceID().String(), span.SpanID().String()
	}
	if n := len(parcel.Records); n > 1 {
		a.WebhookID, a.BatchID, a.BatchSize = MessageID(p.options.Subscription, r.Position()), parcel.ID, n
	}
	if id, ok := r.Header("ce_id"); ok {
		a.EventID = string(id)
	}
	if source, ok := r.Header("ce_source"); ok {
		a.EventSource = string(source)
	}
	return a
}
