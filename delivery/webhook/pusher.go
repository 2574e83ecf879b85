package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// Lender is the attachment a Pusher borrows from; delivery.Attachment is one.
type Lender interface {
	Next(ctx context.Context) ([]delivery.Lease, []delivery.Revocation, error)
	SetWindow(delivery.Window)
	Return([]delivery.Lease)
}

// Settler takes what became of leases; delivery.Queue is one.
type Settler interface {
	Settle([]delivery.Settlement) ([]delivery.Result, delivery.Ticket)
}

// Environment is what a Pusher works with that nobody configures.
type Environment struct {
	Log    *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter
	// Dial opens connections; nil is net.Dialer behind the guard. Tests pass a virtual network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// View shows a record as JSON, for endpoints with view: json.
	View func(ctx context.Context, r *event.Record) (*event.Record, error)
}

// Pusher carries one subscription's events to one endpoint.
type Pusher struct {
	subscription string
	options      Options
	keys         [][]byte
	client       *http.Client
	log          *slog.Logger
	tracer       trace.Tracer
	metrics      *metrics
	host         string
	view         func(ctx context.Context, r *event.Record) (*event.Record, error)

	mu     sync.Mutex
	status Status
}

// Status is how an endpoint is doing.
type Status struct {
	State  State
	Reason string
	Until  time.Time // THROTTLED: when it is tried again
}

// State of an endpoint.
type State string

// The states.
const (
	Active    State = "ACTIVE"
	Throttled State = "THROTTLED"
	Disabled  State = "DISABLED"
)

// New makes a Pusher of valid options.
func New(subscription string, o Options, env Environment) (*Pusher, error) {
	o = o.WithDefaults()
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, err
	}
	g, err := newGuard(o)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("webhook.url: %w", err)
	}
	p := &Pusher{
		subscription: subscription, options: o, host: u.Host, view: env.View,
		log: env.Log.With("subscription", subscription, "host", u.Host), tracer: env.Tracer,
		metrics: newMetrics(env.Meter, subscription), status: Status{State: Active},
	}
	for _, s := range o.Secrets {
		key, err := secretKey(s)
		if err != nil {
			return nil, err
		}
		p.keys = append(p.keys, key)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	p.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:       nil, // a proxy from the environment would dial past the guard
			DialContext: g.dialer(env.Dial), TLSHandshakeTimeout: tlsTimeout,
			MaxIdleConnsPerHost: o.Concurrency, MaxConnsPerHost: o.Concurrency, IdleConnTimeout: 90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, // a compressed answer is not unpacked: it could be a bomb
			Protocols: protocols,
		},
	}
	return p, nil
}

// Lease is how long the pusher needs an event: an attempt, and time to settle it.
func (p *Pusher) Lease() time.Duration {
	return min(max(p.options.Timeout+15*time.Second, delivery.MinLease), delivery.MaxLease)
}

// Window is how many events the pusher has in hand.
func (p *Pusher) Window() delivery.Window { return delivery.Window{Messages: p.options.Concurrency} }

// Status tells how the endpoint is doing.
func (p *Pusher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Run posts what lender lends until ctx ends or lender does. Requests under way are finished.
func (p *Pusher) Run(ctx context.Context, lender Lender, settler Settler) error {
	var attempts sync.WaitGroup
	defer p.client.CloseIdleConnections()
	defer attempts.Wait()
	for {
		leases, _, err := lender.Next(ctx)
		if err != nil {
			return err
		}
		for i := range leases {
			attempts.Go(func() { p.carry(ctx, leases[i], lender, settler) })
		}
	}
}

// carry posts one event and settles it.
func (p *Pusher) carry(ctx context.Context, lease delivery.Lease, lender Lender, settler Settler) {
	if p.Status().State != Active {
		// Lent before the endpoint asked for a pause: it goes back, and was no attempt.
		lender.Return([]delivery.Lease{lease})
		return
	}
	if !p.show(ctx, &lease, lender, settler) {
		return
	}
	began := time.Now()
	o, status := p.attempt(ctx, &lease)
	took := time.Since(began)
	s := delivery.Settlement{ID: lease.ID, Word: o.word, Reason: o.why}
	if o.pause > 0 {
		s.HasDelay, s.Delay = true, o.pause
	}
	p.note(ctx, o, lender)
	results, _ := settler.Settle([]delivery.Settlement{s})
	p.metrics.attempt(o, took)
	level := slog.LevelInfo
	if o.word == delivery.Ack {
		level = slog.LevelDebug
	}
	p.log.Log(ctx, level, "webhook attempt", "position", lease.Record.Position().String(), "attempt", lease.Attempt,
		"webhook_id", messageID(p.subscription, lease.Record.Position()), "status", status, "class", o.class, "why", excerptText(o.why),
		"duration_ms", took.Milliseconds(), "settlement", o.word.String(), "outcome", results[0].Outcome.String())
}

func excerptText(s string) string {
	if len(s) > 256 {
		return s[:256]
	}
	return s
}

// attempt makes one request. It is not cut short when the gateway begins to
// stop: the drain gives it time, and its own timeout ends it.
func (p *Pusher) attempt(ctx context.Context, lease *delivery.Lease) (outcome, int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.Timeout)
	defer cancel()
	carrier := traceOf(lease.Record)
	origin := trace.SpanContextFromContext(otel.GetTextMapPropagator().Extract(context.Background(), carrier))
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("messaging.system", "kafka"), attribute.String("messaging.operation.name", "webhook"),
		attribute.String("messaging.operation.type", "process"), attribute.String("messaging.destination.name", lease.Record.Topic),
		attribute.String("messaging.consumer.group.name", p.subscription), attribute.String("server.address", p.host),
		attribute.Int("postern.attempt", lease.Attempt))}
	if origin.IsValid() {
		// The attempt is its own trace's or its caller's; a link leads back to the
		// publisher, which may be days away. Unsampled, the context still goes on.
		ctx = trace.ContextWithRemoteSpanContext(ctx, origin)
		options = append(options, trace.WithLinks(trace.Link{SpanContext: origin}))
	}
	ctx, span := p.tracer.Start(ctx, "webhook "+lease.Record.Topic, options...)
	defer span.End()
	request, err := p.request(ctx, lease, time.Now())
	if err != nil {
		return outcome{word: delivery.Nack, class: "request", why: "the request could not be written: " + err.Error()}, 0
	}
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(request.Header))
	answer, err := p.client.Do(request)
	if err != nil {
		o := failure(withoutURL(err))
		span.SetStatus(codes.Error, o.class)
		span.SetAttributes(attribute.String("error.type", o.class))
		return o, 0
	}
	excerpt := ""
	if answer.StatusCode >= 300 {
		excerpt = excerptOf(answer.Body)
	} else {
		excerptOf(answer.Body) // read, so that the connection can be used again
	}
	_ = answer.Body.Close() // nothing more is read of it
	o := judge(answer.StatusCode, answer.Header.Get("Retry-After"), excerpt, time.Now())
	span.SetAttributes(attribute.Int("http.response.status_code", answer.StatusCode))
	if o.word != delivery.Ack {
		span.SetStatus(codes.Error, o.class)
	}
	return o, answer.StatusCode
}

// withoutURL drops the *url.Error around err, which quotes the URL: its query may hold a token.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// traceOf reads the trace context a record carries.
func traceOf(r *event.Record) propagation.MapCarrier {
	c := propagation.MapCarrier{}
	for _, name := range [...]string{event.HeaderTraceParent, event.HeaderTraceState} {
		if v, ok := r.Header(name); ok {
			c[name] = string(v)
		}
	}
	return c
}

// note draws the conclusions for the endpoint.
func (p *Pusher) note(ctx context.Context, o outcome, lender Lender) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.status.State == Disabled:
	case o.disable:
		p.status = Status{State: Disabled, Reason: o.why}
		lender.SetWindow(delivery.Window{})
		p.log.WarnContext(ctx, "endpoint disabled: it answered 410 Gone; restart the gateway to try it again", "why", excerptText(o.why))
	case o.pause > 0:
		until := time.Now().Add(o.pause)
		if p.status.State == Throttled && !until.After(p.status.Until) {
			return
		}
		if p.status.State == Active {
			p.log.WarnContext(ctx, "endpoint throttled", "until", until, "why", excerptText(o.why))
		}
		p.status = Status{State: Throttled, Reason: o.why, Until: until}
		lender.SetWindow(delivery.Window{})
		time.AfterFunc(o.pause, func() { p.unthrottle(lender) })
	}
}

// unthrottle opens the window again when the latest pause is over.
func (p *Pusher) unthrottle(lender Lender) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State == Throttled && !time.Now().Before(p.status.Until) {
		p.status = Status{State: Active}
		lender.SetWindow(p.Window())
	}
}
