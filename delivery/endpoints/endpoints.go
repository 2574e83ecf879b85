// Package endpoints owns what the gateway knows of all endpoints together: the
// topics that keep their states, their attempts and what is told of them, the
// pushers that run on this instance, and the service Endpoints.
//
// Three topics, created on first need: <prefix>endpoints (compacted, one
// partition, so that every instance reads the same order) has each endpoint's
// last state; <prefix>attempts (seven days) has every attempt; the topic of
// operational events, whose name is a setting because any subscription may read
// it, has CloudEvents. Losing any of them loses no event: delivery goes on.
//
// What one endpoint does is package endpoint's.
package endpoints

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// Producer writes records; broker.Producer is one.
type Producer interface {
	ProduceAll(records []*event.Record, how broker.How, done func(i int, at event.Position, err error))
}

// Options of New.
type Options struct {
	Prefix   string // of the topics' names
	Events   string // the topic of operational events
	Attempts string // which are kept: all, failures or none
	Instance string
}

// Endpoints are the gateway's.
type Endpoints struct {
	options  Options
	kafka    *broker.Client
	producer Producer
	log      *slog.Logger
	topics   *topics
	states   *states
	journal  *journal

	mu      sync.Mutex
	running map[string]*endpoint.Pusher
}

// New makes them; Run works.
func New(o Options, kafka *broker.Client, producer Producer, log *slog.Logger, meter metric.Meter) *Endpoints {
	t := &topics{kafka: kafka, known: map[string]int32{}, log: log}
	return &Endpoints{
		options: o, kafka: kafka, producer: producer, log: log, topics: t, running: map[string]*endpoint.Pusher{},
		states:  newStates(o.Prefix+"endpoints", o.Instance, t, kafka, producer, log),
		journal: newJournal(o, t, producer, log, meter),
	}
}

// Run keeps the topics until ctx ends; then it writes what is left.
func (e *Endpoints) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { e.states.follow(ctx) })
	work.Go(func() { e.states.write(ctx) })
	work.Go(func() { e.journal.run(ctx) })
	work.Wait()
}

// Attempts takes attempts.
func (e *Endpoints) Attempts() endpoint.AttemptLog {
	if e.options.Attempts == "none" {
		return nil
	}
	return e.journal
}

// States keeps states.
func (e *Endpoints) States() endpoint.StateLog { return e.states }

// Notices takes operational events.
func (e *Endpoints) Notices() endpoint.NoticeLog { return e.journal }

// Await waits until the states that were saved are known, so that nothing is sent
// to an endpoint that is disabled. It gives up with ctx, and after a while.
func (e *Endpoints) Await(ctx context.Context) { e.states.await(ctx) }

// WhenEnabled has enabled called when an endpoint is not disabled any more, whoever
// enabled it. It must not block. Before Run.
func (e *Endpoints) WhenEnabled(enabled func(name string)) { e.states.enabled = enabled }

// Begin notes that a pusher runs here. The returned function notes its end.
func (e *Endpoints) Begin(name string, p *endpoint.Pusher) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running[name] = p
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.running[name] == p {
			delete(e.running, name)
		}
	}
}

// Disabled reports whether an endpoint is disabled, and why: it is in no queue that could tell.
func (e *Endpoints) Disabled(name string) (why string, disabled bool) {
	if p := e.pusher(name); p != nil {
		s := p.Status()
		return s.Reason, s.State == endpoint.Disabled
	}
	r, ok := e.states.get(name)
	return r.Reason, ok && r.State == endpoint.Disabled
}

// pusher gives the one that runs here.
func (e *Endpoints) pusher(name string) *endpoint.Pusher {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.running[name]
}

// ready waits until the endpoint takes events, whoever enables it meanwhile, and
// gives its pusher; nil when ctx ends first.
func (e *Endpoints) ready(ctx context.Context, name string) *endpoint.Pusher {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if p := e.pusher(name); p != nil && p.Status().State == endpoint.Active {
			return p
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
