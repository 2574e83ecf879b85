package endpoint

import (
	"context"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/chore"
)

// Pusher carries one subscription's events to one endpoint.
type Pusher struct {
	options Options
	carrier Carrier
	env     Environment
	log     *slog.Logger
	metrics *metrics
	trail   *trail
	seed    maphash.Seed

	mu       sync.Mutex
	health   *Health
	gather   *gatherer
	messages int       // in requests under way
	window   int       // what the lender was told last
	next     time.Time // what the governor was told last
	lender   Lender    // while it runs
	// offerKey is the key of the callback that was offered last.
	offerKey  string
	offeredAt time.Time

	idle         chan []delivery.Lease       // to a goroutine that waits for more
	governor     atomic.Pointer[chore.Chore] // while it runs
	wakeGatherer chan struct{}
}

// New makes a Pusher that hands its requests to carrier.
func New(o Options, carrier Carrier, env Environment) *Pusher {
	o.Retry = o.Retry.WithDefaults()
	if o.Batch.MaxEvents < 1 {
		o.Batch = Batch{MaxEvents: 1}
	}
	_, asks := carrier.(Consenter)
	return &Pusher{
		options: o, carrier: carrier, env: env, log: env.Log.With("subscription", o.Subscription, "host", o.Host),
		metrics: newMetrics(env.Meter, o.Subscription), trail: newTrail(), seed: maphash.MakeSeed(),
		health: NewHealth(o, asks, time.Now()), gather: newGatherer(o.Batch),
		idle: make(chan []delivery.Lease), wakeGatherer: make(chan struct{}, 1),
	}
}

// hostPatience bounds an event's wait for a place at its host; then it goes back, untried.
const hostPatience = 10 * time.Second

// Lease is how long the pusher needs an event: the waits before an attempt, the
// attempt, and time to settle it.
func (p *Pusher) Lease() time.Duration {
	need := p.options.Timeout + hostPatience + 5*time.Second
	if p.options.Batch.MaxEvents > 1 { // a full batch may wait for a request to end
		need += p.options.Batch.MaxWait + p.options.Timeout
	}
	return min(max(need, delivery.MinLease), delivery.MaxLease)
}

// Window is how many events the pusher may have in hand now.
func (p *Pusher) Window() delivery.Window {
	p.mu.Lock()
	defer p.mu.Unlock()
	return delivery.Window{Messages: p.room(time.Now())}
}

// room counts what is in hand and what more may be. p.mu is held.
func (p *Pusher) room(now time.Time) int {
	waiting := min(len(p.gather.waiting), p.options.Concurrency*p.options.Batch.MaxEvents)
	return p.messages + max(waiting, p.health.Free(now)*p.options.Batch.MaxEvents)
}

// Status tells how the endpoint is doing.
func (p *Pusher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.health.Status(time.Now())
}

// Close lets go of the endpoint's connections, after Run.
func (p *Pusher) Close() {
	if c, ok := p.carrier.(interface{ Close() }); ok {
		c.Close()
	}
}

// Host is the endpoint's host and port.
func (p *Pusher) Host() string { return p.options.Host }

// begin admits a request for n events. p.mu is held.
func (p *Pusher) begin(n int, now time.Time) bool {
	ok := p.health.Admit(now)
	if ok {
		p.messages += n
	}
	p.adjust(now)
	return ok
}

// adjust tells the lender how much may be in hand, and the governor when that
// changes by time. p.mu is held.
func (p *Pusher) adjust(now time.Time) {
	if room := p.room(now); room != p.window && p.lender != nil {
		p.window = room
		p.lender.SetWindow(delivery.Window{Messages: room})
	}
	if next := p.health.Next(now); !next.Equal(p.next) {
		p.next = next
		p.regovern()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// carry pushes one event, if the endpoint may be sent one, and gives in next's room
// the one to go on with.
func (p *Pusher) carry(ctx context.Context, leases []delivery.Lease, lender Lender, next []delivery.Lease) []delivery.Lease {
	p.mu.Lock()
	ok := p.begin(len(leases), time.Now())
	p.mu.Unlock()
	if !ok {
		// Lent before the endpoint asked for a pause: it goes back, and was no attempt.
		p.decline(leases, lender)
		return nil
	}
	return p.deliver(ctx, leases, lender, next)
}

// decline gives leases back that may not be sent now. The window is told anew
// once more may be sent.
func (p *Pusher) decline(leases []delivery.Lease, lender Lender) {
	lender.Decline(leases)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window = -1
	if now := time.Now(); p.health.Free(now) > 0 {
		p.adjust(now)
	}
}

// deliver makes the request that was admitted and settles its leases by the answer,
// which may bring others, in next's room.
func (p *Pusher) deliver(ctx context.Context, leases []delivery.Lease, lender Lender, next []delivery.Lease) []delivery.Lease {
	if p.options.View != nil {
		taken := len(leases)
		leases = p.show(ctx, leases, lender)
		p.abandon(taken-len(leases), len(leases) == 0)
		if len(leases) == 0 {
			return nil
		}
	}
	if !p.place(ctx) {
		p.abandon(len(leases), true)
		lender.Return(leases)
		return nil
	}
	parcel := &Parcel{ID: batchID(p.options.Subscription, leases), Records: make([]*event.Record, len(leases))}
	for i := range leases {
		parcel.Records[i] = leases[i].Record
		parcel.Attempt = max(parcel.Attempt, leases[i].Attempt)
	}
	began := time.Now()
	answer, span := p.attempt(context.Background(), parcel)
	now := time.Now()
	p.mu.Lock()
	if answer.Action == Split {
		p.gather.split(leases)
	}
	change := p.health.Done(answer.Outcome, maphash.Bytes(p.seed, lane(leases[0].Record)), began, now)
	p.messages -= len(leases)
	p.adjust(now)
	p.mu.Unlock()
	p.env.Hosts.Release(p.options.Host)
	wake(p.wakeGatherer)
	p.tell(change, false, now)
	return p.settle(ctx, leases, parcel, answer, change, span, began, lender, next)
}

// abandon notes that events of a request that was admitted are not sent, or that
// all of it is not.
func (p *Pusher) abandon(events int, request bool) {
	p.mu.Lock()
	if request {
		p.health.Abandon()
	}
	p.messages -= events
	p.adjust(time.Now())
	p.mu.Unlock()
	wake(p.wakeGatherer)
}

// place waits for a place at the host.
func (p *Pusher) place(ctx context.Context) bool {
	if p.env.Hosts.Try(p.options.Host) {
		return true
	}
	patience, cancel := context.WithTimeout(ctx, hostPatience)
	defer cancel()
	return p.env.Hosts.Acquire(patience, p.options.Host)
}

// lane is what an event waits for: its key's events, or only itself.
func lane(r *event.Record) []byte {
	if r.Key != nil {
		return r.Key
	}
	return []byte(r.Position().String())
}

// attempt makes one request. ctx must not end: a request is not cut short when
// the gateway begins to stop. The drain gives it time, and the carrier's own
// timeout ends it.
func (p *Pusher) attempt(ctx context.Context, parcel *Parcel) (Answer, trace.SpanContext) {
	ctx, span := p.start(ctx, parcel)
	defer span.End()
	answer := p.carrier.Carry(ctx, parcel)
	if span.IsRecording() {
		if answer.Status != 0 {
			span.SetAttributes(attribute.Int("http.response.status_code", answer.Status))
		}
		if answer.Action != Ack {
			span.SetStatus(codes.Error, answer.Class)
			span.SetAttributes(attribute.String("error.type", answer.Class))
		}
	}
	p.metrics.attempt(answer.Outcome, len(parcel.Records), answer.Timings.Total)
	return answer, span.SpanContext()
}

// settle says of each lease what its outcome means. Once ctx has ended it takes no more.
func (p *Pusher) settle(ctx context.Context, leases []delivery.Lease, parcel *Parcel, answer Answer, change Change, span trace.SpanContext, began time.Time, lender Lender, next []delivery.Lease) []delivery.Lease {
	if p.env.Attempts != nil {
		for i := range leases {
			p.env.Attempts.Attempted(p.record(&leases[i], answer.outcomeOf(i), parcel, &answer, span, began))
		}
	}
	if answer.Action == Split {
		p.note(ctx, &leases[0], parcel, answer, "returned")
		lender.Return(leases)
		return nil
	}
	settlements := make([]delivery.Settlement, len(leases))
	for i := range leases {
		o := answer.outcomeOf(i)
		settlements[i] = p.settlement(&leases[i], o, change)
		at := leases[i].Record.Position()
		if settlements[i].Word == delivery.Nack {
			p.trail.note(at, span)
			if p.options.Retry.Exhausted(leases[i].Attempt) {
				p.notify(Notice{Type: NoticeExhausted, Detail: o.Why, Position: at, WebhookID: MessageID(p.options.Subscription, at), Attempts: leases[i].Attempt})
			}
			continue
		}
		if leases[i].Attempt > 1 {
			p.trail.forget(at)
		}
		if p.options.Batch.MaxEvents > 1 {
			p.mu.Lock()
			p.gather.forget(at)
			p.mu.Unlock()
		}
	}
	if ctx.Err() != nil {
		next = nil
	}
	first := leases[0] // the room for the next may be its own
	results, next := lender.Settle(settlements, next)
	own(next)
	p.note(ctx, &first, parcel, answer, results[0].Outcome.String())
	return next
}

func (a *Answer) outcomeOf(i int) Outcome {
	if i < len(a.Each) {
		return a.Each[i]
	}
	return a.Outcome
}

// settlement turns an outcome into a word. An event that must wait waits as long
// as the endpoint asked for, and never less than its retry policy says: an
// endpoint that asks for one second each time would be through with an event's
// attempts at once.
func (p *Pusher) settlement(lease *delivery.Lease, o Outcome, change Change) delivery.Settlement {
	s := delivery.Settlement{ID: lease.ID, Reason: o.Why}
	switch o.Action {
	case Ack:
		s.Word = delivery.Ack
	case Reject:
		s.Word = delivery.Reject
	case Drop:
		s.Word = delivery.Drop
	case Retry, Throttle, Disable, Split:
		s.Word = delivery.Nack
		pause := o.Pause
		if o.Action == Throttle {
			pause = max(pause, change.Pause)
		}
		if pause > 0 {
			s.HasDelay, s.Delay = true, max(pause, p.options.Retry.Delay(lease.Attempt, rand.Float64()))
		}
	}
	return s
}

// note writes the attempt's line into the log.
func (p *Pusher) note(ctx context.Context, lease *delivery.Lease, parcel *Parcel, answer Answer, outcome string) {
	level := slog.LevelInfo
	if answer.Action == Ack {
		level = slog.LevelDebug
	}
	if !p.log.Enabled(ctx, level) {
		return
	}
	p.log.Log(ctx, level, "webhook attempt", "position", lease.Record.Position().String(), "events", len(parcel.Records), "attempt", parcel.Attempt,
		"webhook_id", parcel.ID, "status", answer.Status, "class", answer.Class, "why", cut(answer.Why),
		"duration_ms", answer.Timings.Total.Milliseconds(), "settlement", answer.Action.String(), "outcome", outcome)
}

// cut keeps a log line readable; the whole text is in the log of attempts.
func cut(s string) string {
	if len(s) > 256 {
		return s[:256]
	}
	return s
}
