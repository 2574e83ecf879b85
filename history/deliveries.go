package history

import (
	"slices"
	"time"
)

// life is what one subscription saw of one event. Times are of entries, plus
// one, so that 0 is never.
type life struct {
	lastSeen   time.Duration
	until      time.Duration // of the lease that is out, while it is
	settled    time.Duration // when an ack or reject was first sent
	accepted   time.Duration // of the latest ack's receipt, until it is forgotten
	committed  time.Duration
	buried     time.Duration // when its dead letter was written; 1: not known when
	deliveries int32
	attempt    int32
	instance   int32 // of the last delivery; 0 is unknown
	open       bool  // delivered, and not settled since
	rejected   bool  // ... and the last word was a reject
	acked      bool  // ... or an ack
	skipped    bool  // reported
}

// settledBy reports whether the event was settled at a moment: its ack was sent,
// or, if it was rejected or had no attempts left, its dead letter was written.
func (l *life) settledBy(at time.Duration) bool {
	if l.buried > 0 && l.buried <= at+1 {
		return true
	}
	return l.settled > 0 && (l.acked || l.buried == 0)
}

// subscriber is the state of one subscription.
type subscriber struct {
	name   string
	lives  []life            // by index in the log
	passed map[*extent]int32 // the first index that no committed position has passed
}

// deliveries judges what each subscription saw.
func (c *checker) deliveries() {
	c.report.DeadLetters = len(c.h.DeadLetters)
	predecessor := c.predecessors()
	traces := c.traces()
	subscribers := map[string]*subscriber{}
	var names []string
	get := func(name string) *subscriber {
		s := subscribers[name]
		if s == nil {
			s = &subscriber{name: name, lives: make([]life, len(c.log)), passed: map[*extent]int32{}}
			subscribers[name] = s
			names = append(names, name)
			c.bury(s)
		}
		return s
	}
	for name := range c.h.Subscriptions {
		get(name)
	}
	instances := map[string]int32{"": 0}
	for i := range c.h.Entries {
		e := &c.h.Entries[i]
		if e.Subscription == "" {
			continue
		}
		s := get(e.Subscription)
		if e.Kind == Committal {
			c.passes(s, e)
			continue
		}
		at := c.lookup(e.Topic, e.Partition, e.Offset)
		if e.Kind == Delivered {
			if at < 0 || c.log[at].Value != e.Value {
				c.found(Phantom, "%s was delivered as %s, where the log holds %s", e.Value, e.at(), c.valueAt(at))
			}
			if c.rules.Traced && traces[e.Value] != "" && traces[e.Value] != e.Trace {
				c.found(MissingTrace, "%s (%s) was published with trace %s and came to %s with %q", e.at(), e.Value, traces[e.Value], e.Subscription, e.Trace)
			}
		}
		if at < 0 {
			continue
		}
		l := &s.lives[at]
		switch e.Kind {
		case Delivered:
			instance, ok := instances[e.Instance]
			if !ok {
				instance = int32(len(instances))
				instances[e.Instance] = instance
			}
			if predecessor != nil && predecessor[at] >= 0 {
				c.afterPredecessor(e, s, predecessor[at], instance)
			}
			c.delivered(e, l, instance)
		case Acked, Rejected:
			if l.settled == 0 {
				l.settled = e.At + 1
			}
			l.rejected, l.acked = e.Kind == Rejected, l.acked || e.Kind == Acked
			l.open, l.until = false, 0
		case Accepted:
			l.accepted = e.At + 1
		case Committed:
			l.accepted, l.committed = e.At+1, e.At+1
		case Returned:
			l.until = 0
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.ends(subscribers[name])
	}
}

// bury notes which events are in the dead letters of s.
func (c *checker) bury(s *subscriber) {
	for _, d := range c.h.DeadLetters {
		if d.Subscription != "" && d.Subscription != s.name {
			continue
		}
		if at := c.lookup(d.Topic, d.Partition, d.Offset); at >= 0 {
			if l := &s.lives[at]; l.buried == 0 || d.At < l.buried {
				l.buried = max(1, d.At)
			}
		}
	}
}

// traces gives the trace each value was published with.
func (c *checker) traces() map[string]string {
	if !c.rules.Traced {
		return nil
	}
	traces := map[string]string{}
	for i := range c.h.Entries {
		if e := &c.h.Entries[i]; e.Kind == Invoked && e.Trace != "" {
			traces[e.Value] = e.Trace
		}
	}
	return traces
}

// predecessors gives each event of a key the one before it in its partition, or -1.
func (c *checker) predecessors() []int32 {
	if !c.rules.Ordered {
		return nil
	}
	before := make([]int32, len(c.log))
	last := map[string]int32{}
	for i := range c.log {
		r := &c.log[i]
		if i > 0 && (r.Partition != c.log[i-1].Partition || r.Topic != c.log[i-1].Topic) {
			clear(last)
		}
		before[i] = -1
		if r.Key == "" {
			continue
		}
		if p, ok := last[r.Key]; ok {
			before[i] = p
		}
		last[r.Key] = int32(i)
	}
	return before
}

// afterPredecessor judges a delivery whose key has an event before it: that one
// is settled, and its instance has not taken it up again since.
func (c *checker) afterPredecessor(e *Entry, s *subscriber, p int32, instance int32) {
	before := &s.lives[p]
	switch {
	case !before.settledBy(e.At):
		c.found(KeyOrder, "%s (%s) was delivered to %s before %s of its key was settled", e.at(), e.Value, e.Subscription, c.log[p].at())
	case before.open && instance != 0 && before.instance == instance && before.buried == 0:
		c.found(KeyOrder, "%s (%s) was delivered to %s by %s before %s of its key, which it had delivered again, was settled", e.at(), e.Value, e.Subscription, e.Instance, c.log[p].at())
	}
}

func (c *checker) delivered(e *Entry, l *life, instance int32) {
	c.report.Deliveries++
	if l.deliveries > 0 {
		c.report.Redelivered++
		c.repeated(e, l)
	}
	l.deliveries++
	l.lastSeen, l.attempt, l.instance, l.until, l.open, l.rejected = e.At, e.Attempt, instance, e.Until, true, false
}

// repeated judges a delivery that is not the first.
func (c *checker) repeated(e *Entry, l *life) {
	switch {
	case l.committed > 0 && c.cutOff(e):
		// An instance that hears nothing of its group lends on until it knows.
	case l.committed > 0:
		c.found(CommittedAgain, "%s (%s) was delivered to %s again, attempt %d, %s after its ack was committed", e.at(), e.Value, e.Subscription, e.Attempt, e.At+1-l.committed)
	case l.accepted > 0:
		c.forgotten(e, l)
		l.accepted = 0 // the next ack counts anew
	}
	if l.open && l.until > e.At && !c.disturbed(l.lastSeen, e.At) {
		c.found(LentTwice, "%s (%s) was delivered to %s again, attempt %d, %s before its lease ended", e.at(), e.Value, e.Subscription, e.Attempt, l.until-e.At)
	}
	if e.Attempt < l.attempt && !c.disturbed(l.lastSeen, e.At) {
		c.found(AttemptsWentBack, "%s (%s) came to %s as attempt %d after attempt %d", e.at(), e.Value, e.Subscription, e.Attempt, l.attempt)
	}
}

// cutOff reports whether e was delivered by an instance that a fault held apart.
func (c *checker) cutOff(e *Entry) bool {
	return e.Instance != "" && slices.ContainsFunc(c.apart, func(w window) bool {
		return w.instance == e.Instance && w.begin <= e.At && e.At <= w.end
	})
}

// forgotten judges an accepted ack that came undone: a fault after it, at most
// the allowance later, or one that was going on, explains it.
func (c *checker) forgotten(e *Entry, l *life) {
	accepted := l.accepted - 1
	nearest := time.Duration(-1)
	if n := c.begunBy(accepted); n > 0 && c.lasting[n-1] >= accepted {
		nearest = 0
	} else if n < len(c.faults) && c.faults[n].begin <= e.At {
		nearest = c.faults[n].begin - accepted
	}
	switch {
	case nearest < 0:
		c.found(DuplicateDelivery, "%s (%s) was delivered to %s again after its ack was accepted, without a fault", e.at(), e.Value, e.Subscription)
	case nearest > c.rules.Allowance:
		c.found(DuplicateDelivery, "%s (%s) was delivered to %s again: its ack was accepted %s before the fault, %s are allowed",
			e.at(), e.Value, e.Subscription, nearest, c.rules.Allowance)
	}
	c.report.WorstForgotten = max(c.report.WorstForgotten, nearest)
}

// passes judges a committed position: everything below it is settled.
func (c *checker) passes(s *subscriber, e *Entry) {
	at := c.parts[e.Topic][e.Partition]
	if at == nil {
		return
	}
	i, ok := s.passed[at]
	if !ok {
		i = at.lo
	}
	for ; i < at.hi && c.log[i].Offset < e.Offset; i++ {
		if l := &s.lives[i]; !l.settledBy(e.At) && !l.skipped {
			l.skipped = true
			c.found(SkippedOffset, "%s committed %s at %s, and %s (%s) was not settled: %d deliveries", s.name, e.at(), e.At, c.log[i].at(), c.log[i].Value, l.deliveries)
		}
	}
	s.passed[at] = i
}

// ends judges where each event of a subscription ended.
func (c *checker) ends(s *subscriber) {
	topics, listed := c.h.Subscriptions[s.name]
	for i := range c.log {
		r, l := &c.log[i], &s.lives[i]
		if listed && !slices.Contains(topics, r.Topic) {
			continue
		}
		switch {
		case l.deliveries == 0 && l.buried == 0:
			c.found(LostDelivery, "%s (%s) was never delivered to %s", r.at(), r.Value, s.name)
		case l.settled == 0 && l.buried == 0:
			c.found(Stuck, "%s (%s) was delivered to %s %d times and never settled", r.at(), r.Value, s.name, l.deliveries)
		case l.rejected && l.buried == 0 && l.accepted == 0:
			c.found(MissingDeadLetter, "%s (%s) was rejected by %s and is not in the dead letters", r.at(), r.Value, s.name)
		default:
			c.report.Settled++
		}
	}
}
