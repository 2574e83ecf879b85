package delivery

import (
	"hash/maphash"
	"math"
	"time"

	"github.com/postern-dev/postern/event"
)

// Tracker knows what became of each event of one assigned partition. It is
// pure: no goroutine, no clock, no lock; its owner is a Queue.
//
// Entries stand in a list by offset. An unsettled entry keeps its event; a
// settled one is merged with settled neighbours into a single run, so memory
// follows what is unsettled, not what was read. The list never begins with a
// run: the first unsettled offset, or the next one to be offered, is what may
// be committed, and the runs above it are the sparse acks of the metadata.
//
// Entries of one lane (a record key's, or the whole partition's) stand behind
// one another, and only the first may be lent. An entry without a lane waits
// for nobody. What may be lent now is in the ready heap, lowest offset first,
// which keeps the span above the committed offset short; what waits for a time
// (a lease's end, a retry) is in the timers.
//
// A lane may be parked: its events, those here and those still to come, leave
// for the park in their order (moving), until all of them are settled there.
type Tracker struct {
	order Order
	seed  maphash.Seed
	home  *partition // nil in tests of the tracker alone

	topicID [16]byte
	epoch   uint64

	first, last *entry // by offset; first is never a run
	next        int64  // the lowest offset that may still be offered
	restored    progress
	tails       map[uint64]*entry // the last of each lane that has entries
	ready       readyHeap
	timers      timers
	parked      map[uint64]*parkedLane
	parking     *Tracker // of the park, where parked's events are; nil while there is none
	moving      []*entry // to be written to side topics, in this order

	bytes     int64 // of unsettled events
	unsettled int
	lent      int
	runs      int   // settled runs in the list
	runsEnd   int64 // end of the highest settled run or lent entry so far
	attempted int   // unsettled entries lent at least once
	repeated  int   // ... more than once
	repeats   int64 // offered below next and dropped
	owned     int64 // events below have memory of their own (loans.go)
}

type state uint8

const (
	queued  state = iota // behind another entry of its lane, or about to be ready
	ready                // in the ready list
	lent                 // with a borrower until due
	waiting              // for its next attempt at due
	burying              // its dead letter is being written
	judging              // its turn has come, and the filter is asked again
	moving               // its copy in a side topic is to be written
	settled              // a run
)

// entry is one unsettled event or a run of settled ones. 128 bytes: the memory
// of an outstanding event beside the event itself is this, its place in the
// tails, in a heap, and among the leases.
type entry struct {
	prev, next *entry // by offset
	behind     *entry // the next of its lane
	tracker    *Tracker
	record     *event.Record // nil in a run
	holder     *Attachment   // while lent
	story      *story        // nil until something went wrong
	lane       uint64        // hash of its lane; 0 has none
	from, to   int64         // [from, to); to is from+1 but for runs
	due        time.Duration // since the queue's start: end of the lease, or next attempt; 0: at once
	firstLent  time.Duration // 0: never lent
	lease      ID            // of the current lease
	until      time.Duration // the lease may not be extended past this
	size       int32
	timer      int32 // index in timers plus one; 0: none
	attempts   int16 // by owners of this partition: what the commit's metadata says
	carried    int16 // before it was moved here
	state      state
	target     side // while moving
	extended   bool // the current lease was extended
	cancelled  bool // the current lease's holder was told that the event holds everybody up
}

// story is what is known of an event that did not go well.
type story struct {
	failure   string        // why the last attempt failed
	reason    string        // of the dead letter, while burying
	due       time.Duration // of the next attempt, while the event is moved or in a tier; 0: at once
	filter    error         // of the filter, met when the event's turn comes
	unjudged  bool          // the filter could not tell for now; it is asked again when the event's turn comes
	buryTries int8
}

func (e *entry) tell() *story {
	if e.story == nil {
		e.story = &story{}
	}
	return e.story
}

// failure is why the last attempt failed; "" when there is nothing to say.
func (e *entry) failure() string {
	if e.story == nil {
		return ""
	}
	return e.story.failure
}

// attempt counts every lend of the event, wherever it stood.
func (e *entry) attempt() int { return int(e.attempts) + int(e.carried) }

// newTracker makes the tracker of a partition that begins at offset, with what
// the last owner's commit said. Trackers of one seed give a key the same lane.
func newTracker(order Order, offset int64, restored progress, seed maphash.Seed) *Tracker {
	return &Tracker{
		order: order, seed: seed,
		topicID: restored.topicID, epoch: restored.epoch, next: offset, runsEnd: offset, restored: restored,
		tails: map[uint64]*entry{},
	}
}

// past is what is known of an event that a side topic brings.
type past struct {
	attempts  int16
	due       time.Duration // not to be lent before; 0: at once
	firstLent time.Duration
	story     *story
}

// offer takes the partition's next event. One at or below an offset offered
// before is dropped (a leader move may repeat offsets): false.
func (t *Tracker) offer(r *event.Record) bool { return t.take(r.Offset, r, past{}) != nil }

// take is offer for an event that may stand at another offset than its own. It
// gives the entry, or the run the event was added to.
func (t *Tracker) take(offset int64, r *event.Record, was past) *entry {
	if offset < t.next {
		t.repeats++
		return nil
	}
	lane := t.laneOf(r)
	t.unpark(lane, offset)
	parked := t.parked[lane]
	if t.wasSettled(offset) || parked.has(offset, r) {
		e := t.pass(offset)
		t.unpark(lane, t.next)
		return e
	}
	t.next = offset + 1
	e := &entry{
		tracker: t, record: r, from: offset, to: offset + 1, size: int32(r.Size()), lane: lane,
		attempts: t.hadAttempts(offset), carried: was.attempts, due: was.due, firstLent: was.firstLent, story: was.story,
	}
	t.append(e)
	t.unsettled++
	t.bytes += int64(e.size)
	t.countAttempts(e, 1)
	switch {
	case parked != nil:
		t.move(e, sidePark)
		parked.moving++
	case lane == 0:
		t.begin(e)
	default:
		if tail := t.tails[lane]; tail != nil {
			tail.behind = e
		} else {
			t.begin(e)
		}
		t.tails[lane] = e
	}
	return e
}

// pass counts an offset as settled that nobody has to see.
func (t *Tracker) pass(offset int64) *entry {
	t.next = offset + 1
	e := &entry{tracker: t, from: offset, to: offset + 1, state: settled}
	t.append(e)
	t.mergeRun(e)
	t.runsEnd = max(t.runsEnd, e.to)
	t.trim()
	return e
}

// begin makes e, the first of its lane, ready, or lets it wait until it is due.
func (t *Tracker) begin(e *entry) {
	if e.due > 0 {
		e.state = waiting
		t.timers.set(e)
		return
	}
	t.makeReady(e)
}

// wasSettled asks the restored progress, and forgets what lies below.
func (t *Tracker) wasSettled(offset int64) bool {
	s := t.restored.settled
	for len(s) > 0 && s[0].to <= offset {
		s = s[1:]
	}
	t.restored.settled = s
	return len(s) > 0 && s[0].from <= offset
}

func (t *Tracker) hadAttempts(offset int64) int16 {
	a := t.restored.attempts
	for len(a) > 0 && a[0].offset < offset {
		a = a[1:]
	}
	t.restored.attempts = a
	if len(a) > 0 && a[0].offset == offset {
		t.restored.attempts = a[1:]
		return int16(min(a[0].count, math.MaxInt16))
	}
	return 0
}

// triedBefore is how often an owner before lent the event at offset, which is not taken yet.
func (t *Tracker) triedBefore(offset int64) int {
	for _, a := range t.restored.attempts {
		if a.offset >= offset {
			if a.offset == offset {
				return a.count
			}
			break
		}
	}
	return 0
}

// laneOf hashes the lane with 64 bits: two keys that collide wait for each
// other, which keeps every promise but independence, once in 2^64.
func (t *Tracker) laneOf(r *event.Record) uint64 {
	switch {
	case t.order == OrderPartition:
		return 1
	case t.order == OrderKey && r.Key != nil:
		return maphash.Bytes(t.seed, r.Key) | 1<<63
	}
	return 0
}

func (t *Tracker) append(e *entry) {
	e.prev = t.last
	if t.last != nil {
		t.last.next = e
	} else {
		t.first = e
	}
	t.last = e
}

func (t *Tracker) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		t.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		t.last = e.prev
	}
}

func (t *Tracker) makeReady(e *entry) {
	e.state = ready
	t.ready.push(e)
}

// peek gives the entry that lend would lend, nil when there is none or its
// settlement might not fit the metadata. The first unsettled entry, when it is
// ready, is on top of the heap and always fits: lending cannot stop for good.
func (t *Tracker) peek() *entry {
	e := t.ready.top()
	if e == nil || !t.fits(e) {
		return nil
	}
	return e
}

// fits reports whether the metadata would still fit if e were lent, whatever
// becomes of everything that is lent. The first entry always fits: settling it
// only takes away. A share group's events have no metadata.
func (t *Tracker) fits(e *entry) bool {
	return e == t.first || t.order == OrderQueue || t.metadataBound(e.to) <= metadataMaxSets
}

// metadataBound is the most that the metadata's sets may take once one more
// event, ending at end, is lent.
func (t *Tracker) metadataBound(end int64) int {
	if t.first == nil {
		return 0
	}
	end = max(end, t.runsEnd)
	if n := len(t.restored.settled); n > 0 {
		end = max(end, t.restored.settled[n-1].to)
	}
	if n := len(t.restored.attempts); n > 0 {
		end = max(end, t.restored.attempts[n-1].offset+1)
	}
	width := end - t.first.from
	return setBound(t.runs+len(t.restored.settled)+t.lent+1, width) +
		setBound(t.attempted+len(t.restored.attempts)+1, width) +
		repeatsBound(t.repeated+len(t.restored.attempts)+1, width)
}

// lend lends the entry that peek gave.
func (t *Tracker) lend(e *entry, id ID, holder *Attachment, now, due, until time.Duration) {
	t.ready.pop()
	t.countAttempts(e, -1)
	e.attempts++
	t.countAttempts(e, 1)
	e.state, e.lease, e.holder, e.due, e.until, e.extended, e.cancelled = lent, id, holder, due, until, false, false
	if e.firstLent == 0 {
		e.firstLent = max(now, 1)
	}
	t.lent++
	t.runsEnd = max(t.runsEnd, e.to)
	t.timers.set(e)
}

// extend moves the end of e's lease.
func (t *Tracker) extend(e *entry, due time.Duration) {
	e.due, e.extended = min(due, e.until), true
	t.timers.set(e)
}

// settle ends e for good.
func (t *Tracker) settle(e *entry) {
	t.unlend(e)
	t.timers.clear(e)
	t.countAttempts(e, -1)
	t.unsettled--
	t.bytes -= int64(e.size)
	if e.state != moving {
		t.leaveLane(e)
	}
	e.state, e.record, e.story = settled, nil, nil
	t.runsEnd = max(t.runsEnd, e.to)
	t.mergeRun(e)
	t.trim()
}

// leaveLane takes e, the first of its lane, out of it and lets the next begin.
func (t *Tracker) leaveLane(e *entry) {
	switch {
	case e.lane == 0:
	case e.behind != nil:
		t.begin(e.behind)
		e.behind = nil
	default:
		delete(t.tails, e.lane)
	}
}

// retryAt lends e again once due has come.
func (t *Tracker) retryAt(e *entry, due time.Duration, why string) {
	t.unlend(e)
	e.state, e.due = waiting, due
	e.tell().failure = why
	t.timers.set(e)
}

// bury marks e as out of attempts or rejected; it stays unsettled, and at the
// head of its lane, until its dead letter is written and settle is called.
func (t *Tracker) bury(e *entry, why string) {
	t.unlend(e)
	t.timers.clear(e)
	e.state = burying
	e.tell().failure = why
}

func (t *Tracker) unlend(e *entry) {
	if e.state == lent {
		t.lent--
		e.holder = nil
	}
}

// unlendUnseen undoes a lend that nobody has seen; e goes first again.
func (t *Tracker) unlendUnseen(e *entry) {
	t.unlend(e)
	t.timers.clear(e)
	t.countAttempts(e, -1)
	e.attempts--
	t.countAttempts(e, 1)
	t.makeReady(e)
}

// wake makes an entry ready whose retry has come due.
func (t *Tracker) wake(e *entry) {
	t.timers.clear(e)
	e.due = 0
	t.makeReady(e)
}

// mergeRun joins the settled e with settled neighbours.
func (t *Tracker) mergeRun(e *entry) {
	t.runs++
	if p := e.prev; p != nil && p.state == settled {
		e.from = p.from
		t.unlink(p)
		t.runs--
	}
	if n := e.next; n != nil && n.state == settled {
		e.to = n.to
		t.unlink(n)
		t.runs--
	}
}

// trim drops the settled run at the front: it is what the offset commits.
func (t *Tracker) trim() {
	if t.first != nil && t.first.state == settled {
		t.unlink(t.first)
		t.runs--
	}
}

func (t *Tracker) countAttempts(e *entry, by int) {
	if e.attempts >= 1 {
		t.attempted += by
	}
	if e.attempts >= 2 {
		t.repeated += by
	}
}

// position is the offset that may be committed: everything below is settled.
func (t *Tracker) position() int64 {
	if t.first != nil {
		return t.first.from
	}
	return t.next
}

// commit gives the offset and metadata to commit now.
func (t *Tracker) commit() (offset int64, metadata string) {
	p := progress{topicID: t.topicID, base: t.position(), epoch: t.epoch}
	for e := t.first; e != nil; e = e.next {
		if e.state == settled {
			p.settled = append(p.settled, span{e.from, e.to})
		} else if e.attempts > 0 {
			p.attempts = append(p.attempts, attempts{e.from, int(e.attempts)})
		}
	}
	// What was restored and not yet read again stays known.
	for _, s := range t.restored.settled {
		s.from = max(s.from, t.next, p.base)
		switch n := len(p.settled); {
		case s.to <= s.from:
		case n > 0 && p.settled[n-1].to == s.from:
			p.settled[n-1].to = s.to
		default:
			p.settled = append(p.settled, s)
		}
	}
	for _, a := range t.restored.attempts {
		if a.offset >= t.next {
			p.attempts = append(p.attempts, a)
		}
	}
	if p.empty() {
		return p.base, ""
	}
	return p.base, p.encode()
}
