package delivery

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// What the queue does with side topics (side.go): it prepares them when a
// partition is assigned, writes what the trackers move, reads what was moved.

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
	wake(q.moveWake)
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
	for i, e := range p.timers.heap {
		if i == blockersSeen {
			break
		}
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

// prepareLoop looks after the side topics of partitions that were assigned, and
// removes what is settled in them.
func (q *Queue) prepareLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	wait := time.Duration(0)
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-q.prepareWake:
		case <-timer.C:
		}
		q.trim()
		if q.lookForRedrives() {
			timer.Reset(redriveLookAgain)
		}
		q.mu.Lock()
		var todo []*partition
		for _, p := range q.rotation {
			if p.preparing {
				todo = append(todo, p)
			}
		}
		q.mu.Unlock()
		if len(todo) == 0 {
			continue
		}
		err := q.prepare(todo)
		q.mu.Lock()
		q.prepareFailing = err
		q.mu.Unlock()
		if err != nil && q.ctx.Err() == nil {
			wait = min(max(time.Second, 2*wait), moveRetryMax)
			q.log.Warn("what the subscription put aside cannot be read yet; its partitions wait", "error", err, "again_after", wait)
			timer.Reset(wait)
			continue
		}
		wait = 0
	}
}

// found is a side partition as prepare found it.
type found struct {
	side     side
	at       broker.TopicPartition
	id       [16]byte
	offset   int64
	end      int64
	metadata string
	scanned  *scanned
}

// prepare finds out what earlier owners put aside for each of ps, and lets them begin.
func (q *Queue) prepare(ps []*partition) error {
	ctx, cancel := context.WithTimeout(q.ctx, scanPatience)
	defer cancel()
	var names []string
	asked := map[string]bool{}
	for _, p := range ps {
		if !asked[p.at.Topic] {
			asked[p.at.Topic] = true
			for _, s := range sides {
				names = append(names, s.topic(q.options.SidePrefix, q.options.Name, p.at.Topic))
			}
		}
	}
	existing, err := q.kafka.Existing(ctx, names...)
	if err != nil {
		return err
	}
	committed, err := q.kafka.Committed(ctx, q.options.Group, names...)
	if err != nil {
		return err
	}
	ranges := map[string]map[int32]broker.Range{}
	for name := range existing {
		if ranges[name], err = q.kafka.Ranges(ctx, name); err != nil {
			return err
		}
	}
	for at := range committed {
		if _, ok := ranges[at.Topic][at.Partition]; !ok { // a broker that has not heard of it yet
			return fault.New(fault.BrokerUnavailable, "%s has a position, and the broker does not know it", at)
		}
	}
	for _, p := range ps {
		var all []found
		for _, s := range sides {
			at := broker.TopicPartition{Topic: s.topic(q.options.SidePrefix, q.options.Name, p.at.Topic), Partition: p.at.Partition}
			is, ok := ranges[at.Topic][at.Partition]
			if !ok {
				continue
			}
			end := is.End
			if s != sideRedrive {
				if end, err = q.fence(ctx, at, p.owner); err != nil {
					return err
				}
			}
			f := found{side: s, at: at, id: existing[at.Topic].ID, offset: is.Start, end: end}
			switch c, ok := committed[at]; {
			case p.giveUp && s != sideRedrive: // a redriven event is not of the position's
				f.offset = end - 1 // at the fence
			case ok && c.Offset >= is.Start:
				f.offset, f.metadata = c.Offset, c.Metadata
			}
			if s == sidePark && !p.giveUp && f.end > f.offset {
				if f.scanned, err = q.scan(ctx, f); err != nil {
					return err
				}
			}
			all = append(all, f)
		}
		q.begin(p, all)
	}
	return nil
}

// fence makes void what earlier owners still write to a side partition, and
// gives its end.
func (q *Queue) fence(ctx context.Context, at broker.TopicPartition, owner ownerID) (end int64, err error) {
	where, errs := q.mover.Move(ctx, []*event.Record{fence(at, owner, time.Now())})
	return where[0].Offset + 1, errs[0]
}

// scanned is what stands unsettled in a park: for each lane where its last
// event is, and which events of the source are there.
type scanned struct {
	lanes map[uint64]*parkedLane
	// copies are offsets in the park of events that stand there before already.
	copies map[int64]struct{}

	laner   Tracker
	fences  fences
	settled []span // by the park's last commit
	origins int
}

func newScanned(seed maphash.Seed, was progress) *scanned {
	s := &scanned{
		lanes: map[uint64]*parkedLane{}, copies: map[int64]struct{}{},
		laner: Tracker{order: OrderKey, seed: seed}, settled: was.settled,
	}
	if was.epoch != 0 {
		s.fences.raise(was.base-1, ownerID(was.epoch))
	}
	return s
}

// see takes the park's next record.
func (s *scanned) see(r *event.Record) {
	for len(s.settled) > 0 && s.settled[0].to <= r.Offset {
		s.settled = s.settled[1:]
	}
	origin, a, err := unmoved(r)
	switch {
	case err != nil:
		return // met again when it is to be delivered
	case a.fence: // settled or not
		s.fences.raise(r.Offset, a.owner)
		return
	case s.fences.void(a.owner), len(s.settled) > 0 && s.settled[0].from <= r.Offset:
		return
	}
	lane := s.laner.laneOf(origin)
	l := s.lanes[lane]
	if l == nil {
		l = &parkedLane{there: map[int64]struct{}{}}
		s.lanes[lane] = l
	}
	l.last = r.Offset
	if l.has(origin.Offset) {
		s.copies[r.Offset] = struct{}{}
	} else if s.origins++; s.origins <= scanOrigins {
		l.there[origin.Offset] = struct{}{}
		l.until = max(l.until, origin.Offset+1)
	}
}

// scan reads a park from its position to its end.
func (q *Queue) scan(ctx context.Context, f found) (*scanned, error) {
	restored, _ := decodeMetadata(f.metadata, f.id, f.offset) // addSide says what is wrong with it
	s := newScanned(q.seed, restored)
	reader, err := q.kafka.NewReader(f.at.Topic, map[int32]int64{f.at.Partition: f.offset})
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for next := f.offset; next < f.end; {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("read %s from %d to %d: %w", f.at, next, f.end, fault.Of(ctx.Err()))
		}
		err := reader.Poll(ctx, pollEvents, func(r *event.Record) {
			next = r.Offset + 1
			s.see(r)
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin gives p its side partitions and lets it lend.
func (q *Queue) begin(p *partition, all []found) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.trackers[p.at] != p || !p.preparing {
		return
	}
	p.preparing = false
	q.touch(p)
	wake(q.commitWake) // a commit that came while it was uncommittable passed it over
	for _, f := range all {
		if s := q.addSide(p, f); p.giveUp {
			q.touch(s)
		}
		if f.scanned != nil && len(f.scanned.lanes) > 0 {
			p.parked = f.scanned.lanes
		}
	}
	held := p.held
	p.held, p.heldBytes = nil, 0
	for _, h := range held {
		q.take(p, h.record, h.verdict)
	}
	q.dispatch()
}

// addSide begins to follow a side partition. q.mu is held.
func (q *Queue) addSide(p *partition, f found) *partition {
	restored, err := decodeMetadata(f.metadata, f.id, f.offset)
	order := OrderNone
	switch f.side {
	case sidePark:
		order = OrderKey
	case sideRedrive:
		order = q.options.Order
	}
	s := &partition{at: f.at, side: f.side, source: p}
	if restored.epoch != 0 {
		s.fences.raise(f.offset-1, ownerID(restored.epoch))
	}
	switch {
	case f.metadata == "" || err == nil:
	case errors.Is(err, errNewer):
		s.stopped = true
		q.log.Error("a side partition is stopped: its acknowledgements were written by a newer Postern; upgrade this instance", "partition", f.at.String(), "offset", f.offset)
	default:
		q.metrics.metadataIgnored(1)
	}
	s.Tracker = newTracker(order, f.offset, restored, q.seed)
	s.Tracker.home = s
	if f.scanned != nil {
		s.copies = f.scanned.copies
	}
	if f.side == sidePark {
		p.parking = s.Tracker
	}
	p.sides = append(p.sides, s)
	q.trackers[s.at] = s
	q.rotation = append(q.rotation, s)
	q.following = append(q.following, follow{s.at, f.offset})
	wake(q.followWake)
	return s
}

// sideOf is p's side partition of a kind; nil when it has none yet.
func (p *partition) sideOf(kind side) *partition {
	for _, s := range p.sides {
		if s.side == kind {
			return s
		}
	}
	return nil
}

// follow asks the follow loop to read a side partition from offset on.
type follow struct {
	at     broker.TopicPartition
	offset int64
}

// followLoop reads side partitions. Its client is made when there is something to read.
func (q *Queue) followLoop() {
	select {
	case <-q.ctx.Done():
		return
	case <-q.followWake:
		wake(q.followWake)
	}
	follower, err := q.kafka.NewFollower()
	if err != nil { // only settings can be wrong, and they were good for every other client
		q.log.Error("what was put aside cannot be read", "error", err)
		return
	}
	defer follower.Close()
	q.mu.Lock()
	q.follower = follower
	q.mu.Unlock()
	q.done.Go(func() {
		for {
			select {
			case <-q.ctx.Done():
				return
			case <-q.followWake:
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
	})
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
		wake(q.moveWake)
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

// moveLoop writes what the trackers move.
func (q *Queue) moveLoop() {
	wait := time.Duration(0)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-q.moveWake:
		case <-timer.C:
		}
		err := q.moveOnce()
		switch {
		case err == nil:
			wait = 0
		case q.ctx.Err() == nil:
			wait = min(max(time.Second, 2*wait), moveRetryMax)
			timer.Reset(wait)
		}
	}
}

// moving is one partition's entries on their way.
type movingBatch struct {
	p       *partition
	entries []*entry
}

// moveOnce writes one batch of each partition, and says why not all of it went well.
func (q *Queue) moveOnce() error {
	batches, records, err := q.gather()
	if len(records) == 0 {
		return err
	}
	at, errs := q.mover.Move(q.ctx, records)
	q.mu.Lock()
	defer q.mu.Unlock()
	i, more := 0, false
	for _, b := range batches {
		offsets := make([]int64, len(b.entries))
		for k, e := range b.entries {
			offsets[k] = at[i].Offset
			if errs[i] != nil {
				offsets[k] = -1
				err = errs[i]
				if fault.Is(errs[i], fault.OutcomeUnknown) {
					b.p.sourceOf().suspect(copyID{b.p.origin(e), e.record.Offset})
				}
			}
			i++
		}
		if q.trackers[b.p.at] != b.p {
			continue // somebody else's now, who delivers them
		}
		b.p.moved(b.entries, offsets)
		q.touch(b.p)
		more = more || len(b.p.moving) > 0
	}
	if err != nil {
		q.metrics.moveFailed(1)
		q.moveFailing = err
		q.log.Error("events that must wait cannot be put aside; they hold their partition up until that works", "error", err)
	} else {
		q.moveFailing = nil
		if more {
			wake(q.moveWake)
		}
	}
	q.dispatch()
	q.checkRoom()
	q.signal()
	return err
}

// sourceOf is p itself, or the source of the side partition p.
func (p *partition) sourceOf() *partition {
	if p.source != nil {
		return p.source
	}
	return p
}

// gather takes what is to be written next, after making the topics it goes to.
func (q *Queue) gather() ([]movingBatch, []*event.Record, error) {
	type want struct {
		p    *partition
		kind side
	}
	missing := map[want]bool{}
	q.mu.Lock()
	for _, p := range q.rotation {
		for _, e := range p.nextMoves(q.moveAtOnce, moveBytes) {
			if p.sourceOf().sideOf(e.target) == nil {
				missing[want{p.sourceOf(), e.target}] = true
			}
		}
	}
	q.mu.Unlock()
	var failed error
	for w := range missing {
		if err := q.makeSide(w.p, w.kind); err != nil {
			failed = err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var batches []movingBatch
	var records []*event.Record
	now := time.Now()
	for _, p := range q.rotation {
		source := p.sourceOf()
		all := p.nextMoves(q.moveAtOnce, moveBytes)
		for i, e := range all {
			if source.sideOf(e.target) == nil {
				all = all[:i] // order is kept: nothing behind it goes first
				break
			}
		}
		if len(all) == 0 {
			continue
		}
		for _, e := range all {
			to := source.sideOf(e.target).at
			a := arrival{attempts: e.attempt(), failure: e.failure(), owner: source.owner, timestamp: now, from: p.origin(e)}
			if e.story != nil && e.story.due > 0 {
				a.due = q.start.Add(e.story.due)
			}
			if e.firstLent != 0 {
				a.first = q.start.Add(e.firstLent)
			}
			records = append(records, moved(to.Topic, to.Partition, e.record, a))
		}
		batches = append(batches, movingBatch{p, all})
	}
	if failed != nil {
		q.moveFailing = failed
		q.metrics.moveFailed(1)
		q.log.Error("a topic for events that must wait cannot be made; they hold their partition up until that works", "error", failed)
	}
	return batches, records, failed
}

// makeSide makes a side topic, as durable as its source, and begins to follow p's partition of it.
func (q *Queue) makeSide(p *partition, kind side) error {
	ctx, cancel := context.WithTimeout(q.ctx, moveRetryMax)
	defer cancel()
	name := kind.topic(q.options.SidePrefix, q.options.Name, p.at.Topic)
	partitions, created, err := createSide(ctx, q.kafka, name, p.at.Topic, int(p.at.Partition)+1)
	if err != nil {
		return err
	}
	if created {
		q.log.Info("topic for events that must wait created", "topic", name, "partitions", partitions)
	}
	at := broker.TopicPartition{Topic: name, Partition: p.at.Partition}
	for {
		topics, err := q.kafka.Existing(ctx, name)
		if err != nil {
			return err
		}
		if len(topics[name].Partitions) > int(at.Partition) {
			if end, err := q.fence(ctx, at, p.owner); err == nil {
				q.mu.Lock()
				defer q.mu.Unlock()
				if q.trackers[p.at] == p && p.sideOf(kind) == nil {
					// Nothing there is ours yet: what stands before the fence was written by
					// owners that had lost the partition when it was given to us.
					q.addSide(p, found{side: kind, at: at, id: topics[name].ID, offset: end - 1, end: end})
				}
				return nil
			}
		}
		select {
		case <-time.After(sideTopicPause):
		case <-ctx.Done():
			return fault.New(fault.BrokerUnavailable, "topic %s is not there yet", name)
		}
	}
}

// createSide makes the side topic called name of source, as durable as it and with
// as many partitions, at least least.
func createSide(ctx context.Context, kafka *broker.Client, name, source string, least int) (partitions int, created bool, err error) {
	existing, err := kafka.Existing(ctx, name, source)
	if err != nil {
		return 0, false, err
	}
	partitions = max(len(existing[source].Partitions), least)
	switch t, ok := existing[name]; {
	case !ok:
		configs, err := kafka.TopicConfigs(ctx, source, "min.insync.replicas")
		if err != nil {
			return 0, false, err
		}
		configs["cleanup.policy"] = "delete"
		configs["retention.ms"], configs["retention.bytes"] = "-1", "-1"
		configs["max.message.bytes"] = strconv.Itoa(trackerBytes) // an event may have been compressed in its source
		return partitions, true, kafka.CreateTopic(ctx, name, int32(partitions), configs)
	case len(t.Partitions) < partitions:
		return partitions, false, kafka.GrowTopic(ctx, name, partitions)
	}
	return partitions, false, nil
}

// sideTopicPause is the wait for a topic just made to be known to all brokers.
const sideTopicPause = 100 * time.Millisecond

// trim lets Kafka remove what is settled in side topics.
func (q *Queue) trim() {
	at := map[broker.TopicPartition]int64{}
	q.mu.Lock()
	for _, p := range q.rotation {
		if p.side != noSide && p.trimTo > p.trimmed {
			at[p.at] = p.trimTo
			p.trimmed = p.trimTo
		}
	}
	q.mu.Unlock()
	if len(at) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(q.ctx, moveRetryMax)
	defer cancel()
	if err := q.kafka.DeleteBefore(ctx, at); err != nil && q.ctx.Err() == nil {
		q.log.Warn("settled records of side topics could not be removed; they stay until that is allowed", "error", err)
	}
}
