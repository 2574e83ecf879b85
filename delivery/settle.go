package delivery

import (
	"context"
	"time"
)

// Ticket names the state of the partitions after a Settle, for Committed.
type Ticket struct{ versions map[*partition]uint64 }

// Settle takes what borrowers say of leases and answers each in order. The
// ticket tells Committed what to wait for; its zero value waits for nothing.
func (q *Queue) Settle(settlements []Settlement) ([]Result, Ticket) {
	results := make([]Result, len(settlements))
	var t Ticket
	var last *partition
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for i := range settlements {
		p := q.settleOne(&settlements[i], now, &results[i])
		if p == nil || settlements[i].Word == Extend {
			continue
		}
		if p != last {
			if t.versions == nil {
				t.versions = map[*partition]uint64{}
			}
			last = p
		}
		t.versions[p] = p.version
	}
	q.dispatch()
	q.checkRoom()
	return results, t
}

// Committed waits until Kafka has what was settled up to the ticket; false
// when ctx ends first or a partition went to another instance meanwhile.
func (q *Queue) Committed(ctx context.Context, t Ticket) bool {
	return len(t.versions) == 0 || q.awaitCommit(ctx, t.versions)
}

// SettleCommitted is Settle and Committed in one: what was accepted is
// answered Committed if Kafka has it when this returns.
func (q *Queue) SettleCommitted(ctx context.Context, settlements []Settlement) []Result {
	results, ticket := q.Settle(settlements)
	if len(ticket.versions) == 0 || !q.Committed(ctx, ticket) {
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
	e := q.leases[s.ID]
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
		q.takeBack(e)
		q.touch(p)
		q.budget.succeeded()
		q.settle(p, e)
	case Nack:
		delay := time.Duration(-1)
		if s.HasDelay {
			delay = s.Delay
		}
		q.failed(p, e, s.Reason, delay)
	case Reject:
		q.takeBack(e)
		q.touch(p)
		q.bury(p, e, reasonRejected, s.Reason)
	case Extend:
		p.extend(e, now+s.Lease)
		r.Deadline = q.start.Add(e.due)
	}
	return p
}

// settle ends e for good, wherever it stands. q.mu is held.
func (q *Queue) settle(p *partition, e *entry) {
	record := e.record
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
