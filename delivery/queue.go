// Package delivery owns what becomes of an event from the moment it is read
// until it is settled: acknowledged, dead-lettered with its evidence, or
// dropped by a word of the user.
//
// A [Queue] is one subscription on this instance: a member of its consumer
// group. For each assigned partition a pure Tracker (tracker.go) holds what is
// offered, lent and settled. Attachments (streams, pullers, webhook pushers)
// borrow events as leases within their windows, the least loaded first, and
// say of each lease one of: Ack, Nack, Reject, Drop, Extend. Silence past the
// deadline is a Nack.
//
// What is committed is the first unsettled offset of each partition, with the
// settled ranges above it and the attempt counts in the commit's metadata
// (metadata.go), so that neither a restart nor a rebalance forgets an ack.
//
// Carrying leases over a wire is packages subscribe's and webhook's; talking
// to Kafka is package broker's.
package delivery

import (
	"context"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Options is what a queue does, with every default filled in.
type Options struct {
	Name            string
	Group           string
	Topics          []string
	TopicsPattern   string // in place of Topics
	Order           Order
	Start           broker.Start
	Lease           time.Duration
	Retry           Retry
	DeadLetterTopic string
	// Filter passes the events that are delivered; nil passes all. FilterErrors
	// says what becomes of one that it cannot judge.
	Filter       Filter
	FilterErrors FilterErrors
	// SidePrefix begins the names of the topics for events that must wait (side.go).
	SidePrefix string
}

// Filter decides whether an event is a subscription's. Safe for concurrent use.
type Filter interface {
	// Match judges r. What it answers may depend on data that is in the schema
	// registry's wire format: then it says ErrEncoded, and is asked again with that
	// data as JSON.
	Match(r *event.Record, decoded []byte) (bool, error)
	String() string // equal for filters that are the same
}

// FilterErrors says what becomes of an event that the filter fails on.
type FilterErrors uint8

const (
	FilterDeadLetters FilterErrors = iota // dead-lettered with the error
	FilterSkips                           // as one that does not match
)

// isLetters reports whether a pattern leaves topic out because it holds dead letters.
func (o Options) isLetters(topic string) bool {
	return topic == o.DeadLetterTopic || strings.HasSuffix(topic, ".dead")
}

// Reads reports whether topic is one of the subscription's.
func (o Options) Reads(topic string) bool {
	if o.TopicsPattern == "" {
		return slices.Contains(o.Topics, topic)
	}
	ok, _ := path.Match(o.TopicsPattern, topic) // checked where it was declared
	return ok && !strings.HasPrefix(topic, "_") && !o.isLetters(topic)
}

// consumer is who reads the subscription's topics.
func (o Options) consumer() broker.ConsumerOptions {
	return broker.ConsumerOptions{Group: o.Group, Topics: o.Topics, Start: o.Start, Pattern: o.TopicsPattern, Except: o.isLetters}
}

// differences names the options that differ.
func (o Options) differences(p Options) []string {
	var names []string
	if text(o.Filter) != text(p.Filter) {
		names = append(names, "Filter")
	}
	o.Filter, p.Filter = nil, nil
	a, b := reflect.ValueOf(o), reflect.ValueOf(p)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, a.Type().Field(i).Name)
		}
	}
	return names
}

func text(f Filter) string {
	if f == nil {
		return ""
	}
	return f.String()
}

// Defaults and limits of a queue. Each buffer has its byte limit here.
const (
	DefaultLease  = 60 * time.Second
	MinLease      = time.Second
	MaxLease      = time.Hour // of one lease and of all its extensions together
	DefaultWindow = 256
	// DefaultWindowBytes bounds what one attachment has in hand.
	DefaultWindowBytes = 8 << 20

	// trackerBytes bounds the unsettled events a queue holds in memory, shared
	// evenly by its partitions. Larger lets more keys flow past a blocked one.
	trackerBytes = 64 << 20
	// trackerEvents bounds the entries of a partition, each some 150 bytes beside its event.
	trackerEvents = 100_000
	// pollEvents is how many records are taken at once, while no partition may change hands.
	pollEvents = 1000

	commitInterval = 200 * time.Millisecond
	// revokeGrace is how long a partition that must go waits for the words of
	// those who have its events. Longer delays every other member's rebalance.
	revokeGrace = 2 * time.Second
	// deadLetterRetry bounds the wait between tries to write a dead letter.
	deadLetterRetry = 30 * time.Second
)

// Mover copies events to dead-letter and side topics; broker.Mover is one. A
// record whose Partition is event.AnyPartition goes where its key goes.
type Mover interface {
	Move(ctx context.Context, records []*event.Record) ([]event.Position, []error)
}

// Queue is one subscription on this instance.
type Queue struct {
	options  Options
	kafka    *broker.Client
	consumer *broker.Consumer // nil in a share group
	shared   *sharing         // of OrderQueue (share.go), else nil
	mover    Mover
	decode   Decode // nil: there is no schema registry
	log      *slog.Logger
	metrics  *metrics
	instance Instance
	sequence *atomic.Uint64 // shared by the instance's queues: an id is never given twice
	seed     maphash.Seed   // of lanes
	start    time.Time

	ctx    context.Context // ends when the queue is closed
	cancel context.CancelFunc
	done   sync.WaitGroup

	pacing     sync.Mutex    // over pace: pauses and resumes reach the client in the order decided
	committing chan struct{} // one slot: a commit's snapshot is never sent after a later one

	mu          sync.Mutex
	trackers    map[broker.TopicPartition]*partition
	rotation    []*partition // the partitions in the order they are asked for events
	turn        int
	leases      leaseTable
	expired     expiredLeases
	attachments []*Attachment
	draining    bool
	stopping    bool // with the whole gateway
	desired     Desired
	begun       func(epoch uint64) // told that the group has commits of this seek epoch; returns soon
	interrupt   context.CancelFunc // of the poll under way
	changed     chan struct{}      // closed and replaced when a commit ends or leases come back, if someone waits
	waiters     int                // of changed
	timerWake   chan struct{}
	commitWake  chan struct{} // something is to be committed
	commitNow   chan struct{} // and somebody waits for it
	letterWake  chan struct{}
	unburied    []*entry // dead letters to write
	judgeWake   chan struct{}
	unjudged    []*entry // to be judged again (judge.go)
	judgeError  error    // why they could not be judged
	budget      budget
	assignments uint64 // counts them, to name each

	// Of side topics (aside.go).
	prepareWake chan struct{}
	moveWake    chan struct{}
	followWake  chan struct{}
	moveAtOnce  int              // moveEvents; fewer in tests
	follower    *broker.Follower // nil until something was put aside
	following   []follow
	unfollowing []broker.TopicPartition
	redrives    redrives // redrive.go

	// What does not work now, for people; nil when it does.
	readFailing, commitFailing, letterFailing, moveFailing, prepareFailing error

	missed                 *gap       // the last range that retention removed before it was read
	filterError, undecoded *lastError // the last ones
}

// partition is an assigned partition, or a side partition of one: its tracker
// and what the queue does around it.
type partition struct {
	*Tracker
	at        broker.TopicPartition
	side      side       // noSide: assigned by the group
	source    *partition // of a side partition
	shared    *sharing   // of a share group
	sides     []*partition
	sought    bool   // a seek is to be applied: what is read is not taken
	giveUp    bool   // what was put aside is given up, by a seek
	preparing bool   // what earlier owners put aside is not known yet: lends nothing
	held      []held // records read meanwhile
	heldBytes int64
	suspects  map[copyID]bool // what may stand in side topics twice; true: met once
	copies    map[int64]struct{}
	redriven  *redriven     // of a redrive partition: what was read lately
	looked    uint64        // of the source: the look for redrive topics that covered it
	fences    fences        // of a side partition
	owner     ownerID       // of the source: this assignment
	relieved  time.Duration // not to be searched for what holds it up before
	release   time.Duration // of the last event read from a tier
	trimTo    int64         // of a side partition: everything below is settled and committed
	trimmed   int64
	revoking  bool   // lends nothing more
	stopped   bool   // its metadata is of a newer version: neither lends nor commits
	paused    bool   // not fetched, because it is full
	version   uint64 // counts changes
	committed uint64 // the version that is in Kafka
	burying   int    // dead letters on their way
}

// held is a record that was read before its partition may lend.
type held struct {
	record  *event.Record
	verdict verdict
}

// full reports whether no more of p should be fetched.
func (p *partition) full(share int64, now, hold time.Duration) bool {
	return p.bytes+p.heldBytes >= share || p.unsettled+len(p.held) >= trackerEvents || p.release-now > hold
}

// roomy reports whether a paused partition may be fetched again.
func (p *partition) roomy(share int64, now, hold time.Duration) bool {
	return p.bytes+p.heldBytes <= share/2 && p.unsettled+len(p.held) <= trackerEvents/2 && p.release-now <= hold/2
}

// newQueue makes a queue that run starts.
func newQueue(o Options, kafka *broker.Client, mover Mover, instance Instance, sequence *atomic.Uint64, log *slog.Logger, m *metrics) *Queue {
	ctx, cancel := context.WithCancel(context.Background())
	return &Queue{
		options: o, kafka: kafka, mover: mover, instance: instance, sequence: sequence, metrics: m, seed: maphash.MakeSeed(), moveAtOnce: moveEvents,
		log: log.With("subscription", o.Name), start: time.Now(), ctx: ctx, cancel: cancel,
		trackers:   map[broker.TopicPartition]*partition{},
		committing: make(chan struct{}, 1), changed: make(chan struct{}), timerWake: make(chan struct{}, 1),
		commitWake: make(chan struct{}, 1), commitNow: make(chan struct{}, 1), letterWake: make(chan struct{}, 1), judgeWake: make(chan struct{}, 1),
		prepareWake: make(chan struct{}, 1), moveWake: make(chan struct{}, 1), followWake: make(chan struct{}, 1),
	}
}

// Options tells what the queue does.
func (q *Queue) Options() Options { return q.options }

// Instance is who gives out the queue's leases.
func (q *Queue) Instance() Instance { return q.instance }

// open joins the group and starts the queue's goroutines, which close waits for.
func (q *Queue) open(ctx context.Context) error {
	if q.options.Order == OrderQueue {
		return q.openShared(ctx)
	}
	o := q.options.consumer()
	q.mu.Lock()
	desired := q.desired
	q.mu.Unlock()
	o.Begun = desired.Lost()
	o.Heard = func() { wake(q.timerWake) }
	o.Metadata = func(a broker.Assigned) string {
		p := progress{topicID: a.TopicID, base: a.Offset, epoch: desired.applied()}
		if p.empty() {
			return ""
		}
		return p.encode()
	}
	q.consumer = q.kafka.NewConsumer(o, owner{q})
	if err := q.consumer.Join(ctx); err != nil {
		q.cancel()
		return err
	}
	q.mu.Lock()
	q.tellBegun(desired.applied())
	q.mu.Unlock()
	q.done.Go(q.pollLoop)
	q.done.Go(q.timerLoop)
	q.done.Go(q.commitLoop)
	q.done.Go(q.letterLoop)
	q.done.Go(q.judgeLoop)
	q.done.Go(q.prepareLoop)
	q.done.Go(q.moveLoop)
	q.done.Go(q.followLoop)
	return nil
}

// close commits, leaves the group and waits for the queue's goroutines.
func (q *Queue) close() {
	q.closeFor(fault.New(fault.ShuttingDown, "subscription %s is stopping on this instance", q.options.Name))
}

// closeFor is close for a reason that who is attached is told.
func (q *Queue) closeFor(why error) {
	q.mu.Lock()
	forGood := !q.stopping
	q.mu.Unlock()
	q.drain()
	if q.shared != nil {
		q.closeShared()
	} else {
		q.consumer.Close(forGood) // calls Revoked, which commits
	}
	q.cancel()
	q.done.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.metrics.tell()
	for _, a := range q.attachments {
		a.end(why)
	}
}

// stop is drain with the whole gateway.
func (q *Queue) stop() {
	q.mu.Lock()
	q.stopping = true
	q.mu.Unlock()
	q.drain()
}

// drain lends nothing more. Settlements are taken until close. What broken
// streams hold goes back: nobody can take it over here any more.
func (q *Queue) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
	for _, a := range slices.Clone(q.attachments) {
		if a.detached != nil && a.detached.Stop() {
			q.release(a)
		}
	}
}

// idle reports whether nothing is lent.
func (q *Queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.leases.count == 0
}

func (q *Queue) now() time.Duration { return time.Since(q.start) }

// signal wakes whoever waits for the queue's state to change. q.mu is held.
func (q *Queue) signal() {
	if q.waiters > 0 {
		close(q.changed)
		q.changed = make(chan struct{})
	}
}

// await waits until done holds; it is asked under the lock, now and after each
// signal. It answers false when ctx or the queue ends first.
func (q *Queue) await(ctx context.Context, done func() bool) bool {
	q.mu.Lock()
	q.waiters++
	for !done() {
		changed := q.changed
		q.mu.Unlock()
		stop := false
		select {
		case <-changed:
		case <-ctx.Done():
			stop = true
		case <-q.ctx.Done():
			stop = true
		}
		q.mu.Lock()
		if stop {
			q.waiters--
			defer q.mu.Unlock()
			return done()
		}
	}
	q.waiters--
	q.mu.Unlock()
	return true
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pollLoop reads the group's partitions into their trackers.
func (q *Queue) pollLoop() {
	lastText := ""
	for q.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(q.ctx)
		q.mu.Lock()
		q.interrupt = cancel
		q.mu.Unlock()
		q.applySeeks()
		q.pace()
		err := q.consumer.Poll(ctx, pollEvents, q.offer)
		cancel()
		switch {
		case fault.Is(err, fault.ShuttingDown):
			return
		case err == nil:
			lastText = ""
		case err.Error() != lastText: // the client goes on trying: say it once
			lastText = err.Error()
			q.log.Warn("reading is failing", "error", err)
		}
		q.mu.Lock()
		q.readFailing = err
		q.mu.Unlock()
	}
}

// pace stops fetching partitions that are full and starts those that have room
// again. A pause drops what the client has buffered, so the gap between the
// two marks is wide.
func (q *Queue) pace() {
	if q.shared != nil {
		return // it fetches what there is room for
	}
	q.pacing.Lock()
	defer q.pacing.Unlock()
	var pause, resume, pauseAside, resumeAside []broker.TopicPartition
	q.mu.Lock()
	share, now, hold := q.share(), q.now(), q.options.Retry.HoldLimit
	for tp, p := range q.trackers {
		switch {
		case !p.paused && p.full(share, now, hold):
			p.paused = true
			if p.side == noSide {
				pause = append(pause, tp)
			} else {
				pauseAside = append(pauseAside, tp)
			}
		case p.paused && p.roomy(share, now, hold):
			p.paused = false
			if p.side == noSide {
				resume = append(resume, tp)
			} else {
				resumeAside = append(resumeAside, tp)
			}
		}
	}
	follower := q.follower
	q.mu.Unlock()
	if follower != nil { // what Unfollow and Follow meet again begins unpaused
		follower.Resume(resumeAside)
		follower.Pause(pauseAside)
	}
	if len(resume) > 0 {
		q.consumer.Resume(resume)
	}
	if len(pause) == 0 {
		return
	}
	q.consumer.Pause(pause)
	// One that was taken away and given back meanwhile is a new partition,
	// which does not know that it is paused.
	var again []broker.TopicPartition
	q.mu.Lock()
	for _, tp := range pause {
		if p := q.trackers[tp]; p == nil || !p.paused {
			again = append(again, tp)
		}
	}
	q.mu.Unlock()
	if len(again) > 0 {
		q.consumer.Resume(again)
	}
}

// share is what one partition may hold: the queue's bytes, divided among the
// partitions that hold something, so that a single busy one has all of them,
// or among all of them once they are used up. q.mu is held.
func (q *Queue) share() int64 {
	held, busy := int64(0), 0
	for _, p := range q.trackers {
		held += p.bytes + p.heldBytes
		if p.bytes+p.heldBytes > 0 {
			busy++
		}
	}
	if held >= trackerBytes {
		busy = len(q.trackers)
	}
	return trackerBytes / int64(max(1, busy))
}

// offer hands polled records to their trackers and lends what can be lent.
func (q *Queue) offer(records []*event.Record) {
	if len(records) == 0 {
		return
	}
	var verdicts []verdict
	if q.options.Filter != nil { // outside the lock: it may take a while
		ctx, cancel := context.WithTimeout(q.ctx, judgePatience)
		verdicts = make([]verdict, len(records))
		for i, r := range records {
			verdicts[i] = q.judge(ctx, r)
		}
		cancel()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var last *partition
	for i, r := range records {
		p := last
		if p == nil || p.at.Partition != r.Partition || p.at.Topic != r.Topic {
			p = q.trackers[broker.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
			last = p
		}
		if p == nil || p.stopped || p.sought {
			continue
		}
		v := verdict{}
		if verdicts != nil {
			v = verdicts[i]
		}
		if r.Offset > p.next && len(p.held) == 0 {
			q.checkMissed(p, r.Offset)
		}
		if p.preparing {
			p.held = append(p.held, held{r, v})
			p.heldBytes += int64(r.Size())
			continue
		}
		q.take(p, r, v)
	}
	q.dispatch()
	if q.options.movesAside() {
		share, now := q.share(), q.now()
		for _, p := range q.rotation {
			q.relieve(p, share, now)
		}
	}
}

// checkMissed notes what retention removed before it was read, when offset comes
// where an earlier one was expected. (Compaction and transactions leave gaps too:
// nothing is missing there.) q.mu is held.
func (q *Queue) checkMissed(p *partition, offset int64) {
	start := min(q.consumer.LogStart(p.at), offset)
	if start <= p.next {
		return
	}
	q.missed = &gap{p.at.String(), p.next, start, time.Now()}
	q.metrics.missed(start - p.next)
	q.log.Error("retention removed events before they were delivered; the subscription goes on behind them",
		"partition", p.at.String(), "from", p.next, "to", start)
}

// take offers one record to its tracker. q.mu is held.
func (q *Queue) take(p *partition, r *event.Record, v verdict) {
	switch {
	case r.Offset < p.next:
		p.repeats++
		q.metrics.repeated(1)
	case v.skip:
		p.pass(r.Offset)
		q.touch(p)
		q.metrics.filtered(1)
	default:
		e := p.take(r.Offset, r, past{})
		switch e.state {
		case settled:
			q.touch(p)
		case moving: // it is judged again where it goes
			wake(q.moveWake)
		default:
			q.judged(p, e, v)
		}
	}
}

// dispatch lends ready events to attachments with room. q.mu is held.
func (q *Queue) dispatch() {
	if q.shared != nil {
		defer q.shared.consumer.Wake()
	}
	if q.draining || q.desired.Paused || len(q.attachments) == 0 || len(q.rotation) == 0 || q.silent() {
		return
	}
	now := q.now()
	wall := time.Now()
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
	for _, a := range q.attachments {
		if len(a.pending) > 0 {
			wake(a.ready)
		}
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
		wake(q.commitWake)
	}
	if p.source != nil { // committed together
		q.touch(p.source)
	}
}

// rearm tells the timer loop when to wake. q.mu is held.
func (q *Queue) rearm() { wake(q.timerWake) }

// timerLoop ends leases that ran out and makes retries ready.
func (q *Queue) timerLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		q.mu.Lock()
		next := q.onTime()
		q.mu.Unlock()
		q.pace()
		timer.Reset(next)
		select {
		case <-q.ctx.Done():
			return
		case <-timer.C:
		case <-q.timerWake:
		}
	}
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
				wake(q.letterWake)
			default:
				q.released(p, e, now)
			}
		}
	}
	q.dispatch()
	wait := time.Hour
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

// checkRoom wakes the loop that paces when a paused partition has room again. q.mu is held.
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
			wake(q.timerWake)
			return
		}
	}
}

// Positions gives, by topic and partition, the first offset that is not settled;
// none of a share group, in which events are settled in any order.
func (q *Queue) Positions() map[string]map[int32]int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := map[string]map[int32]int64{}
	for _, p := range q.rotation {
		if p.side != noSide || p.shared != nil {
			continue
		}
		if at[p.at.Topic] == nil {
			at[p.at.Topic] = map[int32]int64{}
		}
		at[p.at.Topic][p.at.Partition] = p.position()
	}
	return at
}

// Backlog is how many events this instance has still to deliver, as far as it
// knows: those it holds and those behind them in its partitions.
func (q *Queue) Backlog() int64 {
	ends := q.ends()
	q.mu.Lock()
	defer q.mu.Unlock()
	n := int64(0)
	if q.shared != nil {
		return max(0, q.shared.lag-int64(q.leases.count))
	}
	for tp, p := range q.trackers {
		n += int64(p.unsettled - p.lent)
		if end := ends[tp]; end > p.next {
			n += end - p.next
		}
	}
	return n
}
