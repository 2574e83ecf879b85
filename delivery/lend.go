package delivery

import (
	"math/rand/v2"
	"time"
)

// halted reports whether nothing is lent for now, whoever is there. q.mu is held.
func (q *Queue) halted() bool { return q.draining || q.desired.Paused || q.soughtShared() }

// dispatch lends ready events to attachments with room, and wakes them. q.mu is held.
func (q *Queue) dispatch() {
	q.lend()
	q.wakeBorrowers()
}

// wakeBorrowers wakes each attachment that has something to read. q.mu is held.
func (q *Queue) wakeBorrowers() {
	for _, a := range q.attachments {
		if len(a.pending) > 0 {
			wake(a.ready)
		}
	}
}

// lend lends ready events to attachments with room. q.mu is held.
func (q *Queue) lend() {
	if q.shared != nil {
		defer q.shared.consumer.Wake()
	}
	if q.halted() || len(q.attachments) == 0 || len(q.rotation) == 0 || q.silent() {
		return
	}
	wall := time.Now()
	now := wall.Sub(q.start)
	misses, given := 0, int64(0)
	for misses < len(q.rotation) {
		q.turn = (q.turn + 1) % len(q.rotation)
		p := q.rotation[q.turn]
		if p.revoking || p.stopped || p.preparing || p.sought {
			misses++
			continue
		}
		// A run of events from one partition at a time keeps batches whole.
		for range dispatchRun {
			e := p.peek()
			if e == nil {
				misses++
				break
			}
			a := q.roomiest(int64(e.size))
			if a == nil {
				misses = len(q.rotation)
				break
			}
			misses = 0
			if e.story != nil && e.story.unjudged {
				p.ready.pop()
				q.judgeLater(e)
				continue
			}
			if e.story != nil && e.story.filter != nil {
				p.ready.pop()
				q.bury(p, e, reasonFilter, e.story.filter.Error())
				continue
			}
			q.lendTo(a, p, e, now, wall)
			given++
		}
	}
	if given > 0 {
		q.metrics.lent(given)
	}
}

const dispatchRun = 64

// silent reports whether the group's coordinator has not answered for so long that
// it may have given our partitions to others: then nothing more is lent, until it
// answers or they are lost. q.mu is held.
func (q *Queue) silent() bool { return q.consumer != nil && !q.consumer.Alive() }

// roomiest is the attachment with the smallest share of its window in use.
func (q *Queue) roomiest(size int64) *Attachment {
	if len(q.attachments) == 1 {
		if a := q.attachments[0]; a.hasRoom(size) {
			return a
		}
		return nil
	}
	var best *Attachment
	load := 2.0
	for _, a := range q.attachments {
		if !a.hasRoom(size) {
			continue
		}
		if l := float64(a.messages) / float64(a.window.Messages); l < load {
			best, load = a, l
		}
	}
	return best
}

func (q *Queue) lendTo(a *Attachment, p *partition, e *entry, now time.Duration, wall time.Time) {
	id := q.instance.id(q.sequence.Add(1))
	lease := q.leaseOf(a)
	if due, ok := p.timers.next(); !ok || now+lease < due {
		q.rearm()
	}
	p.lend(e, id, a, now, now+lease, now+max(lease, MaxLease))
	q.touch(p)
	q.leases.add(e)
	a.messages++
	a.bytes += int64(e.size)
	a.pending = append(a.pending, Lease{ID: id, Record: e.record, Attempt: e.attempt(), Deadline: wall.Add(lease), LastFailure: e.failure()})
}

// leaseOf is how long events are lent to a.
func (q *Queue) leaseOf(a *Attachment) time.Duration {
	if a.options.Lease > 0 {
		return a.options.Lease
	}
	return q.options.Lease
}

// touch notes that p must be committed. q.mu is held.
func (q *Queue) touch(p *partition) {
	p.version++
	if p.version == p.committed+1 {
		q.commits.AskWithin(commitInterval)
	}
	if p.source != nil { // committed together
		q.touch(p.source)
	}
}

// rearm has what is due looked for anew.
func (q *Queue) rearm() { q.timing.Ask() }

// doTiming ends leases that ran out and makes retries ready.
func (q *Queue) doTiming() {
	q.mu.Lock()
	next := q.onTime()
	q.mu.Unlock()
	q.pace()
	q.timing.AskIn(next)
}

// onTime does what is due and says how long until the next is. q.mu is held.
func (q *Queue) onTime() time.Duration {
	now := q.now()
	for _, p := range q.rotation {
		for e := p.timers.first(now); e != nil; e = p.timers.first(now) {
			switch e.state {
			case lent:
				if e.holder.unsend(e.lease) {
					q.unlend(p, e)
					continue
				}
				if a := e.holder; a.options.AutoExtend && a.detached == nil && e.due < e.until && !e.cancelled {
					p.extend(e, now+q.leaseOf(a))
					continue
				}
				q.expired.add(e.lease)
				q.metrics.settled("expired", 1)
				e.holder.revoke(e.lease, "the lease ran out")
				q.failed(p, e, "the lease ran out before the event was settled", -1)
			case burying:
				p.timers.clear(e)
				q.unburied = append(q.unburied, e)
				q.lettering.Ask()
			default:
				q.released(p, e, now)
			}
		}
	}
	q.dispatch()
	wait := time.Hour
	if left, again := q.endLoans(now); again {
		wait = left
	}
	for _, p := range q.rotation {
		if due, ok := p.timers.next(); ok {
			wait = min(wait, due-now)
		}
	}
	return max(wait, 0)
}

// failed ends a lease without success: again after delay (negative: when the
// retry policy says), or to the dead letters when that was the last attempt.
func (q *Queue) failed(p *partition, e *entry, why string, delay time.Duration) {
	if q.shared != nil {
		q.failedShared(p, e, why, delay)
		return
	}
	now := q.now()
	q.takeBack(e)
	q.touch(p)
	reason := ""
	switch {
	case q.options.Retry.Exhausted(e.attempt()):
		reason = reasonExhausted
	case now-e.firstLent > q.options.Retry.MaxBlock:
		reason = reasonBlocked
	}
	// Without a token it goes on being tried: a consumer that succeeds at nothing
	// must not flush the topic into the dead letters.
	if reason != "" && q.budget.take() {
		q.bury(p, e, reason, why)
		return
	}
	if delay < 0 {
		delay = q.options.Retry.Delay(e.attempt(), rand.Float64())
	}
	due := now + delay
	if e.cancelled || delay > q.options.Retry.HoldLimit {
		e.tell().failure = why
		if q.longWait(p, e, due, now) {
			return
		}
	}
	if next, ok := p.timers.next(); !ok || due < next {
		q.rearm()
	}
	p.retryAt(e, due, why)
}

// takeBack ends e's lease on the holder's side.
func (q *Queue) takeBack(e *entry) {
	q.leases.remove(e)
	if a := e.holder; a != nil {
		a.messages--
		a.bytes -= int64(e.size)
	}
	if q.waiters > 0 && (q.leases.count == 0 || e.tracker.lent <= 1) {
		q.signal()
	}
}

// unlend takes back an event that was lent but never left the queue: it was no attempt.
func (q *Queue) unlend(p *partition, e *entry) {
	q.takeBack(e)
	p.unlendUnseen(e)
}

// checkRoom wakes what paces when a paused partition has room again. q.mu is held.
func (q *Queue) checkRoom() {
	share, now := int64(-1), time.Duration(0)
	for _, p := range q.rotation {
		if !p.paused {
			continue
		}
		if share < 0 {
			share, now = q.share(), q.now()
		}
		if p.roomy(share, now, q.options.Retry.HoldLimit) {
			q.rearm()
			return
		}
	}
}
