package endpoint

import (
	"context"
	"sync"
	"time"

	"github.com/postern-dev/postern/internal/chore"
)

// newGovernor makes what governs a run: until ctx ends, and calling leave when the
// endpoint was disabled for long. Its goroutines are in group.
func (p *Pusher) newGovernor(ctx context.Context, group *sync.WaitGroup, leave func()) *chore.Chore {
	var governor *chore.Chore
	var disabled time.Time // since when; zero: it is not
	governor = chore.New(group, func() {
		now := time.Now()
		status, ask, due := p.govern(now)
		if ask {
			group.Go(func() { p.ask(ctx) })
		}
		switch {
		case status.State != Disabled:
			disabled = time.Time{}
		case disabled.IsZero():
			disabled = now
			due = sooner(due, now.Add(disabledRest))
		case now.Sub(disabled) < disabledRest:
			due = sooner(due, disabled.Add(disabledRest))
		default:
			leave()
		}
		if !due.IsZero() {
			governor.AskIn(due.Sub(now))
		}
	})
	return governor
}

// sooner is the sooner of two times, of which a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// govern changes the window when time does: at the end of a pause, for a probe, with
// the next token. It says whether consent is to be asked for, and when to look again;
// zero: when something changes.
func (p *Pusher) govern(now time.Time) (status Status, ask bool, due time.Time) {
	p.mu.Lock()
	ask = p.health.AskNow(now)
	p.adjust(now)
	due, status = p.next, p.health.Status(now)
	p.mu.Unlock()
	p.metrics.health(status.State, status.Limit)
	wake(p.wakeGatherer)
	return status, ask, due
}

// regovern has the governor look now, while there is one.
func (p *Pusher) regovern() {
	if g := p.governor.Load(); g != nil {
		g.Ask()
	}
}

// ask asks for the endpoint's consent.
func (p *Pusher) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.options.Timeout)
	defer cancel()
	consent, err := p.carrier.(Consenter).Consent(ctx, p.offer(time.Now()))
	now := time.Now()
	consent.At = now
	p.mu.Lock()
	change := p.health.Asked(consent, err, now)
	p.adjust(now)
	p.mu.Unlock()
	p.regovern()
	p.tell(change, false, now)
}

// offer gives the key of the callback that is offered now: the one before, while
// it is young and was not used. It is known everywhere before it is out.
func (p *Pusher) offer(now time.Time) string {
	if !p.options.Callback {
		return ""
	}
	p.mu.Lock()
	if p.offerKey != "" && now.Sub(p.offeredAt) < offerLife/2 && p.health.holds(hashOf(p.offerKey), now) {
		key := p.offerKey
		p.mu.Unlock()
		return key
	}
	p.offerKey, p.offeredAt = newOfferKey(), now
	key, change := p.offerKey, p.health.Offered(hashOf(p.offerKey), now)
	p.mu.Unlock()
	p.tell(change, false, now)
	return key
}

// AskedRate is how many requests a minute consent is asked for; 0: any number.
func (p *Pusher) AskedRate() int { return p.options.AskedRate }

// CalledBack takes the endpoint's consent, given with the key of a callback that
// some instance offered; false when the key is none, or is used up. perMinute is
// what it allows, 0 any number.
func (p *Pusher) CalledBack(key string, perMinute int) bool {
	now := time.Now()
	p.mu.Lock()
	change, ok := p.health.CalledBack(hashOf(key), perMinute, now)
	p.adjust(now)
	p.mu.Unlock()
	if ok {
		p.regovern()
		wake(p.wakeGatherer)
		p.tell(change, false, now)
		p.log.Info("endpoint consented at its callback", "per_minute", perMinute)
	}
	return ok
}

// Recall takes over what was saved of the endpoint, for a pusher that does not run.
func (p *Pusher) Recall(r Record) {
	r.Instance = "" // even if it was saved here
	p.apply(r)
}

// apply obeys what another instance, or a person, made of the endpoint.
func (p *Pusher) apply(r Record) {
	if r.Instance == p.env.Instance {
		return // our own words coming back
	}
	now := time.Now()
	p.mu.Lock()
	before := p.health.Status(now).State
	p.health.Apply(r, now)
	after := p.health.Status(now)
	p.adjust(now)
	p.mu.Unlock()
	p.regovern()
	if before != after.State {
		p.metrics.health(after.State, after.Limit)
		p.log.Info("endpoint state taken over", "from", before, "state", after.State, "by", r.Instance, "by_hand", r.ByHand, "why", cut(after.Reason))
	}
}

// Enable begins the endpoint anew, by a person's word, on every instance.
func (p *Pusher) Enable(why string) Status {
	return p.byHand(func(now time.Time) Change { return p.health.Enable(why, now) })
}

// Disable stops the endpoint, by a person's word, on every instance.
func (p *Pusher) Disable(why string) Status {
	return p.byHand(func(time.Time) Change { return p.health.Disable(why) })
}

func (p *Pusher) byHand(do func(time.Time) Change) Status {
	now := time.Now()
	p.mu.Lock()
	change := do(now)
	p.adjust(now)
	p.mu.Unlock()
	p.regovern()
	p.tell(change, true, now)
	return p.Status()
}

// tell saves a change, and says it to whoever watches.
func (p *Pusher) tell(c Change, byHand bool, now time.Time) {
	if !c.Save && c.Notice == "" && c.From == c.To {
		return
	}
	p.mu.Lock()
	record := p.health.Record(byHand, now)
	status := p.health.Status(now)
	p.mu.Unlock()
	record.Instance = p.env.Instance
	if c.Save && p.env.States != nil {
		p.env.States.Save(record)
	}
	p.metrics.health(status.State, status.Limit)
	if c.From != c.To {
		p.regovern()
	}
	if c.Notice == "" {
		return
	}
	p.log.Warn("endpoint "+string(status.State), "event", c.Notice, "until", status.Until, "why", cut(c.Detail))
	p.notify(Notice{Type: c.Notice, Detail: c.Detail, State: status.State, Until: status.Until})
}

func (p *Pusher) notify(n Notice) {
	if p.env.Notices == nil {
		return
	}
	n.Subscription, n.Host, n.At = p.options.Subscription, p.options.Host, time.Now()
	p.env.Notices.Notify(n)
}
