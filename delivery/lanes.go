package delivery

import (
	"time"

	"github.com/postern-dev/postern/event"
)

// parkedLane is a lane whose events go to the park, until all that is there of
// it is settled.
type parkedLane struct {
	moving int   // entries in the tracker whose copies are not in Kafka yet
	last   int64 // offset in the park of the lane's last event that is known to be there
	// there are events of the source that an earlier owner parked without
	// committing so, by offset; nil when there are none.
	there map[int64]stamp
	// until is behind the last of them: before the source has been read so far,
	// an event there could be taken for a new one.
	until int64
}

// stamp is an event's timestamp as a copy keeps it, Unix milliseconds. A source that
// was deleted and made again has other events at the same offsets.
type stamp int64

func stampOf(r *event.Record) stamp { return stamp(r.Timestamp.UnixMilli()) }

// has reports whether r, which stands at offset, is in the park.
func (l *parkedLane) has(offset int64, r *event.Record) bool {
	if l == nil {
		return false
	}
	at, ok := l.there[offset]
	return ok && at == stampOf(r)
}

// move marks e, which is not in a lane or leaves it, to be written to a side topic.
func (t *Tracker) move(e *entry, to side) {
	e.state, e.target = moving, to
	t.moving = append(t.moving, e)
}

// putAside moves e, which is not lent, to the tier for its wait; the next of its
// lane goes on without it.
func (t *Tracker) putAside(e *entry, due, now time.Duration) {
	t.unlend(e)
	t.timers.clear(e)
	t.leaveLane(e)
	e.tell().due = due
	t.move(e, tierFor(due-now))
}

// park moves e's lane, of which e is the first and not lent, to the park: all
// of it, and all that comes later.
func (t *Tracker) park(e *entry, due time.Duration) {
	t.unlend(e)
	t.timers.clear(e)
	e.tell().due = due
	l := &parkedLane{last: -1}
	if t.parked == nil {
		t.parked = map[uint64]*parkedLane{}
	}
	t.parked[e.lane] = l
	delete(t.tails, e.lane)
	for e != nil {
		next := e.behind
		e.behind = nil
		t.move(e, sidePark)
		l.moving++
		e = next
	}
}

// nextMoves gives the first entries to be written, at most count and about bytes of them.
func (t *Tracker) nextMoves(count int, bytes int64) []*entry {
	n := 0
	for n < len(t.moving) && n < count && (n == 0 || bytes > 0) {
		bytes -= int64(t.moving[n].size)
		n++
	}
	return t.moving[:n:n]
}

// moved settles the entries whose copies are in Kafka, at those offsets; the
// others (negative offsets) stay first in line. all is what nextMoves gave.
func (t *Tracker) moved(all []*entry, at []int64) {
	rest := t.moving[len(all):]
	var again []*entry
	for i, e := range all {
		if at[i] < 0 {
			again = append(again, e)
			continue
		}
		lane := e.lane
		if e.target == sidePark {
			l := t.parked[lane]
			l.moving--
			l.last = max(l.last, at[i])
		}
		parked := e.target == sidePark
		t.settle(e)
		if parked {
			t.unpark(lane, t.next)
		}
	}
	switch {
	case len(again) > 0:
		t.moving = append(again, rest...)
	case len(rest) == 0:
		t.moving = nil
	default:
		t.moving = rest
	}
}

// unpark ends the parking of lane if everything of it is settled in the park,
// the source being read up to next.
func (t *Tracker) unpark(lane uint64, next int64) {
	l := t.parked[lane]
	if l == nil || l.moving > 0 || t.parking == nil || t.parking.next <= l.last || t.parking.tails[lane] != nil || next < l.until {
		return
	}
	delete(t.parked, lane)
	if len(t.parked) == 0 {
		t.parked = nil
	}
}

// laneLength counts the entries of e's lane from e on, up to most.
func laneLength(e *entry, most int) int {
	n := 0
	for ; e != nil && n < most; e = e.behind {
		n++
	}
	return n
}
