package delivery

import (
	"context"
	"time"
)

// Ticket names the state of the partitions after a Settle, for Committed.
type Ticket struct {
	versions    map[*partition]uint64
	last        *partition // noted and not in versions yet: most settlements are of one partition
	lastVersion uint64
	fates       []*fate // in a share group: of each event
}

// Settle takes what borrowers say of leases and answers each in order. The
// ticket tells Committed what to wait for; its zero value waits for nothing.
func (q *Queue) Settle(settlements []Settlement) ([]Result, Ticket) {
	var t Ticket
	results := q.SettleMore(settlements, &t)
	return results, t
}

// SettleMore is Settle that adds to a ticket.
func (q *Queue) SettleMore(settlements []Settlement, t *Ticket) []Result {
	if len(settlements) == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	results := q.settleAll(settlements, t)
	q.dispatch()
	q.checkRoom()
	return results
}

// settleAll applies settlements and answers each. q.mu is held.
func (q *Queue) settleAll(settlements []Settlement, t *Ticket) []Result {
	results := make([]Result, len(settlements))
	now := q.now()
	for i := range settlements {
		p := q.settleOne(&settlements[i], now, &results[i])
		if p != nil && settlements[i].Word != Extend {
			t.note(p)
		}
	}
	return results
}

// Ack is Settle with Ack for all ids; it answers only those that were not taken,
// in their order.
func (q *Queue) Ack(ids []uint64) (refused []Result, t Ticket) {
	if len(ids) == 0 {
		return nil, t
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := int64(0)
	for _, id := range ids {
		e := q.leases.get(ID(id))
		if e == nil {
			r := Result{ID: ID(id), Outcome: q.gone(ID(id))}
			q.metrics.settled(r.Outcome.String(), 1)
			refused = append(refused, r)
			continue
		}
		p := e.tracker.home
		q.ack(p, e)
		t.note(p)
		taken++
	}
	q.metrics.settled(Ack.String(), taken)
	q.dispatch()
	q.checkRoom()
	return refused, t
}

// ack settles e. q.mu is held.
func (q *Queue) ack(p *partition, e *entry) {
	q.takeBack(e)
	q.touch(p)
	q.budget.succeeded()
	q.settle(p, e)
}

// note lets the ticket wait for p as it is now.
func (t *Ticket) note(p *partition) {
	if s := p.shared; s != nil {
		if s.said != nil {
			t.fates = append(t.fates, s.said)
			s.said = nil
		}
		return
	}
	if p == t.last {
		t.lastVersion = p.version
		return
	}
	t.flush()
	t.last, t.lastVersion = p, p.version
}

// flush moves the partition noted last into the map.
func (t *Ticket) flush() {
	if t.last == nil {
		return
	}
	if t.versions == nil {
		t.versions = map[*partition]uint64{}
	}
	t.versions[t.last] = t.lastVersion
}

// Committed waits until Kafka has what was settled up to the ticket; false
// when ctx ends first or a partition went to another instance meanwhile.
func (q *Queue) Committed(ctx context.Context, t Ticket) bool {
	if q.shared != nil {
		return q.awaitFates(ctx, t.fates)
	}
	if t.last == nil {
		return true
	}
	t.flush()
	return q.awaitCommit(ctx, t.versions)
}

// SettleCommitted is Settle and Committed in one: what was accepted is
// answered Committed if Kafka has it when this returns.
func (q *Queue) SettleCommitted(ctx context.Context, settlements []Settlement) []Result {
	results, ticket := q.Settle(settlements)
	if ticket.last == nil && ticket.fates == nil || !q.Committed(ctx, ticket) {
		return results
	}
	for i := range results {
		if results[i].Outcome == Accepted && settlements[i].Word != Extend {
			results[i].Outcome = Committed
		}
	}
	return results
}

// settleOne applies one settlement; it returns the partition it changed.
func (q *Queue) settleOne(s *Settlement, now time.Duration, r *Result) *partition {
	r.ID = s.ID
	e := q.leases.get(s.ID)
	if e == nil {
		r.Outcome = q.gone(s.ID)
		q.metrics.settled(r.Outcome.String(), 1)
		return nil
	}
	p := e.tracker.home
	r.Outcome = Accepted
	if s.Word != Extend {
		q.metrics.settled(s.Word.String(), 1)
	}
	switch s.Word {
	case Ack, Drop:
		q.ack(p, e)
	case Nack:
		delay := time.Duration(-1)
		if s.HasDelay {
			delay = s.Delay
		}
		q.failed(p, e, s.Reason, delay)
	case Reject:
		q.takeBack(e)
		q.touch(p)
		reason := reasonRejected
		if s.Undecodable {
			reason = reasonUndecodable
		}
		q.bury(p, e, reason, s.Reason)
	case Extend:
		p.extend(e, now+s.Lease)
		r.Deadline = q.start.Add(e.due)
	}
	return p
}

// settle ends e for good, wherever it stands. q.mu is held.
func (q *Queue) settle(p *partition, e *entry) {
	record := e.record
	if p.shared != nil {
		q.finishShared(e)
	}
	p.settle(e)
	if p.side == sidePark {
		q.unpark(p, record)
	}
}

// gone says why there is no such lease.
func (q *Queue) gone(id ID) Outcome {
	switch {
	case id.Instance() != q.instance:
		return WrongInstance
	case uint64(id)&(1<<sequenceBits-1) > q.sequence.Load():
		return UnknownID
	case q.expired.has(id):
		return LeaseExpired
	}
	return Stale
}
