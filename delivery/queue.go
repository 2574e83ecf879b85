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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/chore"
)

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
	// maxExpired bounds the leases that are remembered to have run out.
	maxExpired = 4096
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
	expired     recent[ID] // leases that ran out: a late word is told LEASE_EXPIRED and not merely STALE
	attachments []*Attachment
	loans       loans
	draining    bool
	stopping    bool // with the whole gateway
	desired     Desired
	begun       func(name string, epoch uint64) // told that the group has commits of this seek epoch (NoteBegun); nil tells nobody
	interrupt   context.CancelFunc              // of the poll under way
	changed     chan struct{}                   // closed and replaced when a commit ends or leases come back, if someone waits
	waiters     int                             // of changed
	timing      *chore.Chore                    // what comes due
	commits     *chore.Chore
	lettering   *chore.Chore
	letterTopic bool     // it is known to be there; of lettering alone
	unburied    []*entry // dead letters to write
	rejudging   *chore.Chore
	unjudged    []*entry // to be judged again (judge.go)
	judgeError  error    // why they could not be judged
	judgeSaid   string   // ... and was logged; of rejudging alone
	budget      budget
	assignments uint64 // counts them, to name each

	// Of side topics (aside.go, prepare.go, move.go).
	lookAgain   chan struct{} // in a share group, for the topics of its own
	preparing   *chore.Chore
	prepareWait time.Duration // after the last failure; of preparing alone
	moving      *chore.Chore
	moveWait    time.Duration // after the last failure; of moving alone
	followed    *chore.Chore
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
	redriven  *recent[redrivenID] // of a redrive partition: what was read lately
	looked    uint64              // of the source: the look for redrive topics that covered it
	fences    fences              // of a side partition
	owner     ownerID             // of the source: this assignment
	relieved  time.Duration       // not to be searched for what holds it up before
	release   time.Duration       // of the last event read from a tier
	trimTo    int64               // of a side partition: everything below is settled and committed
	trimmed   int64
	watched   watched
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
	q := &Queue{
		options: o, kafka: kafka, mover: mover, instance: instance, sequence: sequence, metrics: m, seed: maphash.MakeSeed(), moveAtOnce: moveEvents,
		log: log.With("subscription", o.Name), start: time.Now(), ctx: ctx, cancel: cancel,
		trackers: map[broker.TopicPartition]*partition{}, expired: recent[ID]{most: maxExpired},
		committing: make(chan struct{}, 1), changed: make(chan struct{}),
		lookAgain: make(chan struct{}, 1),
	}
	q.commits = chore.New(&q.done, q.doCommits)
	q.timing = chore.New(&q.done, q.doTiming)
	q.lettering = chore.New(&q.done, q.doLettering)
	q.rejudging = chore.New(&q.done, q.doRejudging)
	q.preparing = chore.New(&q.done, q.doPreparing)
	q.moving = chore.New(&q.done, q.doMoving)
	q.followed = chore.New(&q.done, q.doFollowing)
	return q
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
	o.Heard = q.rearm
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
	if desired.Begun == 0 {
		q.tellBegun(0)
	}
	q.done.Go(q.pollLoop)
	for _, c := range q.chores() {
		c.Begin()
	}
	return nil
}

// chores are the queue's; a share group has no use for commits, preparing and following.
func (q *Queue) chores() []*chore.Chore {
	return []*chore.Chore{q.commits, q.timing, q.lettering, q.rejudging, q.preparing, q.moving, q.followed}
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
	for _, c := range q.chores() {
		c.End()
	}
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
		return max(0, q.shared.lag-int64(q.leases.count)) + q.shared.relay.waiting()
	}
	for tp, p := range q.trackers {
		n += int64(p.unsettled-p.lent) + p.unread(ends[tp])
	}
	return n
}
