package delivery

import (
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// What the queue does with side topics (side.go): it prepares them when a partition
// is assigned (prepare.go), writes what the trackers move (move.go), and reads what
// was moved.

const (
	// moveEvents and moveBytes bound what is copied to side topics at once for a
	// partition. One such batch is under way at a time, so that a failed record
	// never ends up behind one that came after it.
	moveEvents = 500
	moveBytes  = 1 << 20
	// moveRetryMax bounds the wait between tries to write, or to prepare.
	moveRetryMax = 30 * time.Second
	// trimEvery is how many settled records a side topic keeps before Kafka is
	// asked to remove them: they have no retention of their own.
	trimEvery = 1000
	// scanPatience ends the reading of a park that does not come to its end.
	scanPatience = time.Minute
	// scanOrigins bounds what a scan remembers to tell copies of one event apart;
	// past it a copy may be delivered twice, and never not at all.
	scanOrigins = 1 << 20
)

// movesAside reports whether the queue's events ever go to side topics.
func (o Options) movesAside() bool { return o.Order != OrderPartition || o.Retry.OnBlock == MoveOn }

// keepsOrder reports whether what is behind e in its lane waits for it, however long.
func (q *Queue) keepsOrder(e *entry) bool { return e.lane != 0 && q.options.Retry.OnBlock == Wait }

// longWait puts e, whose next attempt is due later than the queue holds events
// for, where it holds nothing up; false when it must wait where it is.
func (q *Queue) longWait(p *partition, e *entry, due, now time.Duration) bool {
	if q.draining || p.revoking {
		return false
	}
	switch {
	case !q.keepsOrder(e):
		if !q.budget.take() {
			return false
		}
		p.putAside(e, due, now)
	case p.side == noSide && q.options.Order == OrderKey:
		if !q.budget.take() {
			return false
		}
		p.park(e, due)
	default:
		return false // it is in the park already, or its order is the partition's
	}
	q.metrics.putAside(e.target, 1)
	q.moving.Ask()
	return true
}

// relieve moves what holds p up when p is nearly full: of events in memory, or
// of what its commits can say. q.mu is held.
func (q *Queue) relieve(p *partition, share int64, now time.Duration) {
	for q.pressed(p, share) {
		if now < p.relieved {
			return
		}
		e := q.blocker(p)
		if e == nil || !q.longWait(p, e, e.due, now) {
			p.relieved = now + relieveEvery
			return
		}
	}
}

// relieveEvery is how soon a search for what holds a partition up that found
// nothing is made again.
const relieveEvery = 100 * time.Millisecond

// pressed reports whether p has used three quarters of a limit, not counting
// what is on its way out.
func (q *Queue) pressed(p *partition, share int64) bool {
	if p.side != noSide || p.first == nil || p.stopped || p.preparing || p.revoking {
		return false
	}
	staying := p.unsettled - len(p.moving)
	return p.bytes >= share*3/4 && staying > p.unsettled/4 || staying >= trackerEvents*3/4 ||
		p.narrow() && staying > p.unsettled/2
}

// narrow reports whether the metadata has used three quarters of its limit.
func (p *partition) narrow() bool { return p.metadataBound(p.first.to) >= metadataMaxSets*3/4 }

// blocker is the event to move away: one that failed and waits for its next
// attempt, with the longest lane behind it. A partition full of events that
// consumers are merely slow with has none. When nothing at all can be lent, the
// holder of the first event is told to stop: once its lease has ended the event
// is moved instead of lent again.
func (q *Queue) blocker(p *partition) *entry {
	var longest *entry
	length := 0
	for i, slot := range p.timers.heap {
		if i == blockersSeen {
			break
		}
		e := slot.e
		if e.state != waiting || e.attempt() == 0 {
			continue
		}
		if n := laneLength(e, trackerEvents); n > length {
			longest, length = e, n
		}
	}
	starved := p.peek() == nil
	if longest != nil && (starved || p.narrow() || 4*length >= p.unsettled) {
		return longest
	}
	if e := p.first; starved && e.state == lent && !e.extended && !e.cancelled && q.hasRoom() {
		e.cancelled = true
		e.holder.revoke(e.lease, "the event holds up its partition; it will be delivered again")
		q.metrics.cancelled(1)
	}
	return nil
}

// hasRoom reports whether somebody could take another event. q.mu is held.
func (q *Queue) hasRoom() bool {
	for _, a := range q.attachments {
		if a.hasRoom(0) {
			return true
		}
	}
	return false
}

// blockersSeen bounds the search for the longest lane.
const blockersSeen = 4096

// follow asks to read a side partition from offset on.
type follow struct {
	at     broker.TopicPartition
	offset int64
}

// doFollowing begins and ends the reading of side partitions. Its client is made
// when there is something to read.
func (q *Queue) doFollowing() {
	q.mu.Lock()
	follower := q.follower
	q.mu.Unlock()
	if follower == nil {
		var err error
		follower, err = q.kafka.NewFollower()
		if err != nil { // only settings can be wrong, and they were good for every other client
			q.log.Error("what was put aside cannot be read", "error", err)
			return
		}
		q.mu.Lock()
		q.follower = follower
		q.mu.Unlock()
		q.done.Go(func() { q.pollAside(follower) })
	}
	q.mu.Lock()
	begin, end := q.following, q.unfollowing
	q.following, q.unfollowing = nil, nil
	q.mu.Unlock()
	follower.Unfollow(end...)
	for _, f := range begin {
		follower.Follow(f.at, f.offset)
	}
}

// pollAside reads side partitions until the queue is closed.
func (q *Queue) pollAside(follower *broker.Follower) {
	defer follower.Close()
	lastText := ""
	for q.ctx.Err() == nil {
		q.pace()
		switch err := follower.Poll(q.ctx, pollEvents, q.offerAside); {
		case fault.Is(err, fault.ShuttingDown):
			return
		case err == nil:
			lastText = ""
		case err.Error() != lastText:
			lastText = err.Error()
			q.log.Warn("reading what was put aside is failing", "error", err)
		}
	}
}

// offerAside hands records of side partitions to their trackers.
func (q *Queue) offerAside(records []*event.Record) {
	verdicts := q.judgeAside(records)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range records {
		p := q.trackers[broker.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
		if p != nil && p.side != noSide && !p.stopped {
			q.takeAside(p, r, verdicts[r])
		}
	}
	q.dispatch()
}

// takeAside offers one record of a side partition. q.mu is held.
func (q *Queue) takeAside(p *partition, r *event.Record, v verdict) {
	origin, a, err := unmoved(r)
	switch {
	case errors.Is(err, errNewer):
		p.stopped = true
		q.log.Error("a side partition is stopped: a record in it was written by a newer Postern; upgrade this instance", "position", r.Position().String())
		return
	case err != nil:
		if e := p.take(r.Offset, r, past{}); e != nil && e.state != settled {
			p.timers.clear(e)
			q.log.Error("a record in a side topic is none of ours; it is dead-lettered", "position", r.Position().String(), "error", err)
			q.unready(p, e)
			q.bury(p, e, reasonUndecodable, err.Error())
		}
		return
	}
	if a.fence {
		p.fences.raise(r.Offset, a.owner)
		p.pass(r.Offset)
		q.touch(p)
		return
	}
	if p.side == sideRedrive {
		q.takeRedriven(p, r.Offset, origin, a, v)
		return
	}
	_, copied := p.copies[r.Offset]
	if copied || p.fences.void(a.owner) || p.source.copied(copyID{a.from, origin.Offset}) {
		delete(p.copies, r.Offset)
		p.pass(r.Offset)
		q.touch(p)
		q.unpark(p, origin)
		return
	}
	if v.skip {
		p.pass(r.Offset)
		q.touch(p)
		q.unpark(p, origin)
		q.metrics.filtered(1)
		return
	}
	was := past{attempts: int16(min(a.attempts, math.MaxInt16)), firstLent: q.at(a.first)}
	due := q.at(a.due)
	if p.side == sidePark && !a.due.IsZero() {
		due = q.at(a.due.Add(q.options.Retry.waits(a.attempts, p.triedBefore(r.Offset))))
	}
	if a.failure != "" || due > 0 {
		was.story = &story{failure: a.failure, due: due}
	}
	if was.due = due; p.side != sidePark && due > 0 {
		was.due = min(due, max(q.at(a.timestamp.Add(p.side.delay())), 1))
		p.release = was.due
	}
	e := p.take(r.Offset, origin, was)
	if e == nil || e.state == settled {
		return
	}
	if q.judged(p, e, v); e.timer != 0 {
		q.rearm()
	}
}

// unready takes e out of the ready heap, where take put it. q.mu is held.
func (q *Queue) unready(p *partition, e *entry) {
	if e.state == ready {
		p.ready.remove(e)
	}
}

// suspect notes that a copy may have been written more than once.
func (p *partition) suspect(id copyID) {
	if p.suspects == nil {
		p.suspects = map[copyID]bool{}
	}
	if _, known := p.suspects[id]; !known {
		p.suspects[id] = false
	}
}

// copied reports whether a copy has been met before. A write whose outcome was
// unknown is made again.
func (p *partition) copied(id copyID) bool {
	met, suspect := p.suspects[id]
	if suspect {
		p.suspects[id] = true
	}
	return met
}

// origin says where e is copied from.
func (p *partition) origin(e *entry) string {
	if p.side == noSide {
		return ""
	}
	return p.side.String() + "@" + strconv.FormatInt(e.from, 10)
}

// at is a wall-clock time as the queue counts; 0 for the zero time, never 0 for another.
func (q *Queue) at(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	if d := t.Sub(q.start); d != 0 {
		return d
	}
	return 1
}

// owner names a new assignment. q.mu is held.
func (q *Queue) owner() ownerID {
	q.assignments++
	return ownerID(uint64(q.instance)<<assignmentBits | q.assignments&(1<<assignmentBits-1))
}

const assignmentBits = 40

// released decides about an event of a tier whose time there is over: it is
// ready, waits here for the rest, or goes to another tier. q.mu is held.
func (q *Queue) released(p *partition, e *entry, now time.Duration) {
	if p.shared != nil {
		q.dueShared(p, e)
		return
	}
	due := time.Duration(0)
	if e.story != nil {
		due = e.story.due
	}
	switch {
	case p.side < sideTier || due <= now:
		p.wake(e)
	case due-now > q.options.Retry.HoldLimit && !q.draining && !p.revoking:
		p.putAside(e, due, now) // no token: it has been paid for
		q.moving.Ask()
	default:
		e.due = due
		p.timers.set(e)
	}
}

// unpark ends the parking of the lane of an event that was settled in the park p. q.mu is held.
func (q *Queue) unpark(p *partition, r *event.Record) {
	if p.side == sidePark {
		p.source.unpark(p.laneOf(r), p.source.next)
	}
}
