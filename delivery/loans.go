package delivery

import (
	"time"

	"github.com/postern-dev/postern/event"
)

// Events are offered in the memory of the fetch that they came in: most are settled
// a moment later, and copying each costs a sixth of what a delivery does. But one
// event keeps the whole of the broker's answer in memory, eight megabytes, or all of
// its batch when that was compressed. So those that stay are copied: once
// maxLoaned more was read, or after loanTime.
//
// What leaves the queue by a lease is on loan too. Streams and pulls encode it at
// once; an endpoint, which may keep one for minutes, copies it (endpoint.Pusher.Run). Side topics and share groups
// are read by other clients, which copy.

const (
	// maxLoaned bounds the bytes of events that may be on loan.
	maxLoaned = trackerBytes
	loanTime  = 5 * time.Second
	// loansAtOnce is how much is copied at a time, while the queue's lock is held.
	loansAtOnce = 1 << 20
	loanPause   = time.Millisecond
)

// loan is a run of events of one partition in the memory of their fetch.
type loan struct {
	partition *partition
	upTo      int64 // the first offset behind it
	bytes     int64
	since     time.Duration
}

// loans are the runs on loan, the oldest first. Its queue's lock guards it.
type loans struct {
	runs  []loan
	bytes int64
}

// noteLoan notes that r, read of p at now, is on loan: with what was read of p just
// before it in one run. q.mu is held.
func (q *Queue) noteLoan(p *partition, r *event.Record, now time.Duration) {
	runs := q.loans.runs
	if len(runs) == 0 {
		q.rearm() // for loanTime
	}
	if n := len(runs); n == 0 || runs[n-1].partition != p || runs[n-1].since != now {
		runs = append(runs, loan{partition: p, since: now})
	}
	run, size := &runs[len(runs)-1], int64(r.Size())
	run.upTo, run.bytes = r.Offset+1, run.bytes+size
	q.loans.runs, q.loans.bytes = runs, q.loans.bytes+size
}

// endLoans copies what has stayed too long, and says when to look again; false: not
// before something is read. q.mu is held.
func (q *Queue) endLoans(now time.Duration) (wait time.Duration, again bool) {
	done := int64(0)
	for len(q.loans.runs) > 0 {
		l := q.loans.runs[0]
		if q.loans.bytes <= maxLoaned {
			if left := l.since + loanTime - now; left > 0 {
				return left, true
			}
			if done >= loansAtOnce {
				return loanPause, true
			}
		}
		done += l.bytes
		q.loans.bytes -= l.bytes
		q.loans.runs[0] = loan{}
		q.loans.runs = q.loans.runs[1:]
		if q.trackers[l.partition.at] == l.partition {
			q.takeOver(l.partition, l.upTo)
		}
	}
	q.loans.runs = nil
	return 0, false
}

// takeOver copies the events of p below upTo that are still on loan. q.mu is held.
func (q *Queue) takeOver(p *partition, upTo int64) {
	if !p.own(upTo) {
		return
	}
	for _, a := range q.attachments {
		for i := range a.pending {
			if e := q.leases.get(a.pending[i].ID); e != nil {
				a.pending[i].Record = e.record
			}
		}
	}
}

// own copies the unsettled events below upTo that were not copied before, and
// reports whether there were any.
func (t *Tracker) own(upTo int64) (any bool) {
	for e := t.first; e != nil && e.from < upTo; e = e.next {
		if e.record != nil && e.from >= t.owned {
			e.record, any = e.record.Clone(), true
		}
	}
	t.owned = max(t.owned, upTo)
	return any
}
