package endpoint

import (
	"fmt"
	"time"
)

// State of an endpoint.
type State string

// The states.
const (
	Active    State = "ACTIVE"    // events flow
	Throttled State = "THROTTLED" // it asked to be left alone until a time
	Open      State = "OPEN"      // it is broken, or has not consented; one probe at a time
	Disabled  State = "DISABLED"  // until somebody enables it
)

// Status is how an endpoint is doing.
type Status struct {
	State  State
	Reason string
	Until  time.Time // THROTTLED: when it is tried again; OPEN: when it is probed
	// Limit is how many requests may be under way, InFlight how many are.
	Limit, InFlight int
	// FailingSince is the first failure after the last success; zero when the last attempt succeeded.
	FailingSince time.Time
	// LastSuccess is zero when this instance saw none.
	LastSuccess time.Time
	Consent     Consent
	// Unconsented says that it is OPEN because it has not consented yet.
	Unconsented bool
	// Rate is how many requests a second it may be sent, 0 any number; Starved says
	// that only this keeps one from being sent now.
	Rate    float64
	Starved bool
}

// Consent is what an endpoint answered when it was asked whether it wants events
// (CloudEvents webhook specification 1.0, section 4).
type Consent struct {
	Granted   bool
	PerMinute int       // allowed requests a minute; 0: any number
	At        time.Time // when it was asked
	Why       string    // what was missing, if it was not granted
	Target    string    // what it was asked for
	// Pending says that the answer neither allows nor refuses, and that a callback is offered.
	Pending bool `json:"-"`
}

// Health is everything known of one endpoint, and what follows: how many more
// requests may begin now. It is pure: no clock, no network, no lock.
type Health struct {
	options Options
	now     time.Time // of the last call

	state   State
	reason  string
	until   time.Time // THROTTLED
	aimd    AIMD
	breaker Breaker
	bucket  Bucket

	inFlight     int
	pauses       int // in a row that nobody asked for by a time
	failingSince time.Time
	lastSuccess  time.Time
	savedFailing bool // that it fails was saved
	warned       int  // percent of the way to being disabled that was told

	asks       bool // it must consent first
	consent    Consent
	asking     bool
	askAgainAt time.Time
	refusals   int
	grantedAt  time.Time // callbacks offered before are over
	offers     []Offer   // the oldest first
}

// Waits between tries to get an endpoint's consent, and what a consent is worth
// when the endpoint cannot be asked again.
const (
	askFirst = 30 * time.Second
	askMost  = time.Hour
	// pauseFirst and pauseMost bound the pause after an endpoint said "too much" without saying how long.
	pauseFirst = 5 * time.Second
	pauseMost  = 5 * time.Minute
	// saveFailing is how long an endpoint fails before that is kept for the time after a restart.
	saveFailing = time.Hour
)

// warnings are the percents of the way to being disabled that are told.
var warnings = [...]int{50, 70, 90}

// NewHealth begins with an endpoint that nothing is known of.
func NewHealth(o Options, asks bool, now time.Time) *Health {
	return &Health{options: o, state: Active, aimd: NewAIMD(o.Concurrency), bucket: NewBucket(o.Rate, now), asks: asks, askAgainAt: now}
}

// Change is what a call changed, for whoever keeps and tells it.
type Change struct {
	From, To State
	Save     bool          // the state is to be saved
	Pause    time.Duration // how long the endpoint is left alone from now
	Notice   string        // an operational event's type; "" is none
	Detail   string
}

// Free is how many more requests may begin now.
func (h *Health) Free(now time.Time) int {
	h.tick(now)
	if h.waitsForConsent() {
		return 0
	}
	switch h.state {
	case Active:
		return max(0, min(h.aimd.Limit()-h.inFlight, h.bucket.Tokens(now)))
	case Open:
		if h.breaker.May(now) {
			return min(1, h.bucket.Tokens(now))
		}
	case Throttled, Disabled:
	}
	return 0
}

// Full reports whether only the requests under way keep more from beginning:
// then one that is ready waits for them.
func (h *Health) Full(now time.Time) bool {
	h.tick(now)
	return h.state == Active && !h.waitsForConsent()
}

// Admit asks to begin a request.
func (h *Health) Admit(now time.Time) bool {
	if h.Free(now) < 1 {
		return false
	}
	h.bucket.Take(now)
	h.breaker.Begin()
	h.inFlight++
	h.aimd.Began(h.inFlight)
	return true
}

// Done notes what a request came to that was begun then; lane is its event's.
func (h *Health) Done(o Outcome, lane uint64, began, now time.Time) Change {
	h.tick(now)
	h.inFlight--
	from := h.state
	if o.Overload {
		h.aimd.Overloaded(began, now)
	}
	switch o.Action {
	case Ack:
		return h.succeeded(from, now)
	case Reject, Drop, Split: // about the event; the endpoint is well
		h.aimd.Succeeded()
		return h.succeeded(from, now)
	case Disable:
		return h.disable(from, o.Why)
	case Throttle:
		return h.throttle(from, o, lane, now)
	}
	return h.failed(from, o, lane, now)
}

// Abandon notes that a request that was admitted was never made.
func (h *Health) Abandon() {
	h.inFlight--
	h.breaker.Abandoned()
}

func (h *Health) succeeded(from State, now time.Time) Change {
	h.aimd.Succeeded()
	h.lastSuccess = now
	h.failingSince, h.warned, h.pauses = time.Time{}, 0, 0
	c := Change{From: from, Save: h.savedFailing}
	h.savedFailing = false
	if h.breaker.Succeeded(now) && h.state == Open {
		h.state, h.reason = Active, ""
		h.aimd.Restart()
		c.Save, c.Notice, c.Detail = true, NoticeRecovered, "the probe was answered"
	}
	c.To = h.state
	return c
}

func (h *Health) failed(from State, o Outcome, lane uint64, now time.Time) Change {
	c, over := h.stillFailing(from, o, now)
	if over {
		return c
	}
	c.From = from
	after, failing := h.options.DisableAfter, now.Sub(h.failingSince)
	if failing >= saveFailing && !h.savedFailing {
		h.savedFailing, c.Save = true, true
	}
	for _, percent := range warnings {
		if after > 0 && percent > h.warned && failing*100 >= after*time.Duration(percent) {
			h.warned = percent
			c.Notice = NoticeFailing
			c.Detail = fmt.Sprintf("no request succeeded for %s; at %s the endpoint is disabled", failing.Round(time.Minute), after)
		}
	}
	if h.breaker.Failed(lane, now) && h.state != Disabled {
		if h.state != Open {
			c.Notice, c.Detail = NoticeOpened, o.Why
		}
		h.state, h.reason, h.savedFailing = Open, o.Why, true
		c.Save = true
	}
	c.To = h.state
	return c
}

// throttle leaves the endpoint alone as long as it asked for; when it gave no
// time, for pauseFirst, doubling to pauseMost with each in a row. Being told to
// wait is an answer: the breaker counts it only if it was the probe.
func (h *Health) throttle(from State, o Outcome, lane uint64, now time.Time) Change {
	if c, over := h.stillFailing(from, o, now); over {
		return c
	}
	c := Change{From: from, To: h.state, Pause: o.Pause}
	if o.Pause <= 0 {
		c.Pause = min(pauseFirst<<min(h.pauses, 10), pauseMost)
		if h.state == Active { // the others that were under way say the same once more
			h.pauses++
		}
	}
	until := now.Add(c.Pause)
	switch h.state {
	case Disabled:
		return c
	case Open:
		h.breaker.Failed(lane, now)
		if until.After(h.breaker.probeAt) {
			h.breaker.probeAt = until
		}
		c.Save = true
		return c
	case Throttled:
		if !until.After(h.until) {
			c.Pause = h.until.Sub(now)
			return c
		}
	case Active:
		c.Notice, c.Detail = NoticeThrottled, o.Why
	}
	h.state, h.reason, h.until = Throttled, o.Why, until
	c.To, c.Save = Throttled, true
	return c
}

// stillFailing counts the time without a success. over says that it was too long.
func (h *Health) stillFailing(from State, o Outcome, now time.Time) (c Change, over bool) {
	if h.failingSince.IsZero() {
		h.failingSince = now
	}
	after, failing := h.options.DisableAfter, now.Sub(h.failingSince)
	if after > 0 && failing >= after {
		return h.disable(from, fmt.Sprintf("no request succeeded for %s; the last failure: %s", failing.Round(time.Minute), o.Why)), true
	}
	return c, false
}

func (h *Health) disable(from State, why string) Change {
	if h.state == Disabled {
		return Change{From: from, To: Disabled}
	}
	h.state, h.reason, h.until = Disabled, why, time.Time{}
	return Change{From: from, To: Disabled, Save: true, Notice: NoticeDisabled, Detail: why}
}

// Disable is a person's word.
func (h *Health) Disable(why string) Change { return h.disable(h.state, why) }

// Enable is a person's word: the endpoint begins anew.
func (h *Health) Enable(why string, now time.Time) Change {
	c := Change{From: h.state, To: Active, Save: true}
	if h.state != Active {
		c.Notice, c.Detail = NoticeEnabled, why
	}
	h.reset()
	h.askAgainAt, h.refusals = now, 0
	return c
}

func (h *Health) reset() {
	h.state, h.reason, h.until = Active, "", time.Time{}
	h.breaker = Breaker{}
	h.aimd.Restart()
	h.failingSince, h.warned, h.pauses, h.savedFailing = time.Time{}, 0, 0, false
}

// tick ends a pause whose time is over.
func (h *Health) tick(now time.Time) {
	if now.After(h.now) {
		h.now = now
	}
	if h.state == Throttled && !now.Before(h.until) {
		h.state, h.reason, h.until = Active, "", time.Time{}
	}
}

// Next is when the window changes by time alone; zero when it does not.
func (h *Health) Next(now time.Time) time.Time {
	h.tick(now)
	var next time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	switch {
	case h.waitsForConsent():
	case h.state == Throttled:
		sooner(h.until)
	case h.state == Open && !h.breaker.probing && now.Before(h.breaker.probeAt):
		sooner(h.breaker.probeAt)
	case h.state != Disabled && h.bucket.Tokens(now) < 1:
		sooner(h.bucket.Next(now))
	}
	if h.asks && !h.asking && h.state != Disabled {
		sooner(h.askAgainAt)
	}
	return next
}

// Status tells how the endpoint is doing.
func (h *Health) Status(now time.Time) Status {
	h.tick(now)
	s := Status{
		State: h.state, Reason: h.reason, Until: h.until, Limit: h.aimd.Limit(), InFlight: h.inFlight,
		FailingSince: h.failingSince, LastSuccess: h.lastSuccess, Consent: h.consent, Rate: h.bucket.rate,
	}
	s.Starved = h.bucket.Tokens(now) < 1 && h.inFlight < s.Limit
	if h.state == Open {
		s.Until = h.breaker.probeAt
	}
	if h.state == Active && h.waitsForConsent() {
		s.Unconsented = true
		s.State, s.Until, s.Reason = Open, h.askAgainAt, "it has not consented to events yet"
		if h.consent.Why != "" {
			s.Reason = h.consent.Why
		}
	}
	return s
}
