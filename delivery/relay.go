package delivery

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// relay carries what waits in a subscription's delay topics on when its time
// there is over: to the delay topic for what is left of its wait, or, when it is
// due, to the again topic. The gateways that work on the subscription share the
// topics in an ordinary consumer group, so that each is read by one of them.
//
// Records of one delay topic come due in about the order they stand in; those
// loaded are in the tracker of its partition, which carries them in the order
// they are due, and commits as a queue does: the first that is not carried, and
// those above it that are, in the metadata.
type relay struct {
	q        *Queue
	consumer *broker.Consumer
	working  chan struct{} // one slot: what is on its way is not given up, and commits are in order

	ctx    context.Context // ends when nothing more is to be carried
	cancel context.CancelFunc
	joined chan struct{} // closed once it is a member of its group
	ended  chan struct{}

	mu      sync.Mutex
	parts   map[broker.TopicPartition]*partition
	trouble error
}

const (
	// relayBytes bounds what is loaded of a delay topic.
	relayBytes = 8 << 20
	// relayIdle is the longest wait for records between looks at what is due.
	relayIdle = 30 * time.Second
)

// startRelay gives the relay, which it starts unless there is one. It ends with the
// queue.
func (q *Queue) startRelay() *relay {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r := q.shared.relay; r != nil {
		return r
	}
	r := &relay{q: q, working: make(chan struct{}, 1), joined: make(chan struct{}), ended: make(chan struct{}), parts: map[broker.TopicPartition]*partition{}}
	r.ctx, r.cancel = context.WithCancel(q.ctx)
	q.shared.relay = r
	q.done.Go(r.run)
	return r
}

// await waits until it is a member, or says why it is not.
func (r *relay) await(ctx context.Context) error {
	select {
	case <-r.joined:
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble != nil {
		return r.trouble
	}
	return fault.New(fault.BrokerUnavailable, "group %s, which carries on what waits, is not joined yet", delayGroup(r.q.options.SidePrefix, r.q.options.Name))
}

// stop lets what is on its way arrive, commits and leaves the group; not for longer than ctx.
func (r *relay) stop(ctx context.Context) {
	r.cancel()
	select {
	case <-r.ended:
	case <-ctx.Done():
	}
}

// join becomes a member of the relay's group; false when it is stopped first.
func (r *relay) join() bool {
	q := r.q
	for wait := time.Second; ; wait = min(2*wait, moveRetryMax) {
		r.consumer = q.kafka.NewConsumer(broker.ConsumerOptions{Group: delayGroup(q.options.SidePrefix, q.options.Name), Topics: q.delayTopics()}, r)
		err := r.consumer.Join(r.ctx)
		if err == nil {
			close(r.joined)
			return true
		}
		if r.ctx.Err() == nil {
			r.fail(err)
		}
		select {
		case <-r.ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// fail notes what keeps events from being carried; nil: nothing.
func (r *relay) fail(err error) {
	r.mu.Lock()
	before := reasonOf(r.trouble)
	r.trouble = err
	r.mu.Unlock()
	if err != nil && err.Error() != before {
		r.q.log.Warn("what the subscription put aside cannot be carried on yet; it waits", "error", err)
	}
	r.q.mu.Lock()
	r.q.prepareFailing = err
	r.q.mu.Unlock()
}

func (r *relay) run() {
	defer close(r.ended)
	if !r.join() {
		return
	}
	defer r.consumer.Close(true) // calls Revoked, which commits
	for r.ctx.Err() == nil {
		wait, err := r.step()
		ctx, cancel := context.WithTimeout(r.ctx, wait)
		reading := r.consumer.Poll(ctx, pollEvents, r.offer)
		cancel()
		if fault.Is(reading, fault.ShuttingDown) {
			return
		}
		if r.ctx.Err() == nil {
			r.fail(errors.Join(err, reading))
		}
	}
}

// waiting is how many events are loaded here; of no relay none.
func (r *relay) waiting() (n int64) {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parts {
		n += int64(p.unsettled)
	}
	return n
}

// offer takes records of the delay topics.
func (r *relay) offer(records []*event.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, record := range records {
		if p := r.parts[broker.TopicPartition{Topic: record.Topic, Partition: record.Partition}]; p != nil && !p.stopped {
			r.take(p, record)
		}
	}
}

// take takes one record. r.mu is held.
func (r *relay) take(p *partition, record *event.Record) {
	q := r.q
	origin, a, err := unmoved(record)
	switch {
	case errors.Is(err, errNewer):
		p.stopped = true
		q.log.Error("a delay topic is stopped: a record in it was written by a newer Postern; upgrade this instance", "position", record.Position().String())
		return
	case err != nil || a.fence: // it goes on as it is, and is dead-lettered where it is acquired
		p.take(record.Offset, record, past{due: 1, story: &story{reason: reasonUndecodable, due: 1}})
		return
	}
	due := max(q.at(a.due), 1)
	p.release = min(due, max(q.at(a.timestamp.Add(p.side.delay())), 1))
	p.take(record.Offset, origin, past{
		attempts: int16(a.attempts), firstLent: q.at(a.first), due: p.release, story: &story{failure: a.failure, due: due},
	})
}

// step carries what is due, commits, and tells how long nothing is due.
func (r *relay) step() (time.Duration, error) {
	select {
	case r.working <- struct{}{}:
		defer func() { <-r.working }()
	case <-r.ctx.Done():
		return 0, nil
	}
	var failed error
	for failed == nil && r.ctx.Err() == nil {
		entries, records := r.due()
		if len(records) == 0 {
			break
		}
		_, errs := r.q.mover.Move(r.q.ctx, records)
		failed = r.carried(entries, errs)
	}
	if fault.Is(failed, fault.UnknownTopic) { // somebody deleted the again topic
		failed = errors.Join(failed, createAgain(r.ctx, r.q.kafka, r.q.shared.again, r.q.sourceTopic()))
	}
	if err := r.commit(r.q.ctx, nil); err != nil {
		failed = errors.Join(failed, err)
	}
	r.trim()
	r.pace()
	if failed != nil {
		return relayRetry, failed
	}
	wait := relayIdle
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.q.now()
	for _, p := range r.parts {
		if due, ok := p.timers.next(); ok {
			wait = min(wait, max(due-now, 0))
		}
	}
	return wait, nil
}

// relayRetry is the wait after a failed write or commit.
const relayRetry = time.Second

// due takes some of what is due where it stands.
func (r *relay) due() (entries []*entry, records []*event.Record) {
	q := r.q
	r.mu.Lock()
	defer r.mu.Unlock()
	now, wall, bytes := q.now(), time.Now(), int64(0)
	for _, p := range r.parts {
		for e := p.timers.first(now); e != nil && len(records) < moveEvents && bytes < moveBytes; e = p.timers.first(now) {
			var record *event.Record
			switch left := e.story.due - now; {
			case e.story.reason != "":
				as := *e.record
				as.Topic, as.Partition = q.shared.again, event.AnyPartition
				record = &as
			case left > q.options.Retry.HoldLimit:
				record = q.aside(delayTopic(q.options.SidePrefix, q.options.Name, tierFor(left)), 0, e, wall)
			case left > 0:
				e.due = e.story.due
				p.timers.set(e)
				continue
			default:
				e.story.due = 0
				record = q.aside(q.shared.again, event.AnyPartition, e, wall)
			}
			p.timers.clear(e)
			e.state = moving
			entries, records = append(entries, e), append(records, record)
			bytes += int64(e.size)
		}
	}
	return entries, records
}

// carried settles what Kafka has; the rest is carried again after a while.
func (r *relay) carried(entries []*entry, errs []error) (failed error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.q.now()
	for i, e := range entries {
		p := e.tracker.home
		if r.parts[p.at] != p {
			continue // somebody else's now, who carries it again
		}
		if errs[i] != nil {
			failed = errs[i]
			e.state, e.due = waiting, now+relayRetry
			p.timers.set(e)
			continue
		}
		p.settle(e)
		p.version++
	}
	return failed
}

// commit writes where the given partitions (nil: all) stand.
func (r *relay) commit(ctx context.Context, only map[broker.TopicPartition]bool) error {
	what, versions := map[broker.TopicPartition]broker.Committing{}, map[*partition]uint64{}
	r.mu.Lock()
	for at, p := range r.parts {
		if p.version == p.committed || only != nil && !only[at] {
			continue
		}
		offset, metadata := p.commit()
		if len(metadata) > metadataMaxText {
			metadata = "" // what is carried above the offset is carried again by another owner
		}
		what[at], versions[p] = broker.Committing{Offset: offset, Metadata: metadata}, p.version
	}
	r.mu.Unlock()
	refused, err := r.consumer.Commit(ctx, what)
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, version := range versions {
		if why := errors.Join(err, refused[p.at]); why != nil {
			r.q.metrics.commitFailed(1)
			err = why
			continue
		}
		p.committed = version
		if at := what[p.at].Offset; at >= p.trimmed+trimEvery || at > p.trimmed && p.unsettled == 0 {
			p.trimTo = at
		}
	}
	return err
}

// trim lets Kafka remove what is carried: delay topics have no retention.
func (r *relay) trim() {
	at := map[broker.TopicPartition]int64{}
	r.mu.Lock()
	for tp, p := range r.parts {
		if p.trimTo > p.trimmed {
			at[tp], p.trimmed = p.trimTo, p.trimTo
		}
	}
	r.mu.Unlock()
	if len(at) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.q.ctx, moveRetryMax)
	defer cancel()
	if err := r.q.kafka.DeleteBefore(ctx, at); err != nil && r.q.ctx.Err() == nil {
		r.q.log.Warn("what was carried on could not be removed from delay topics; it stays until that is allowed", "error", err)
	}
}

// pace stops reading delay topics of which enough is loaded.
func (r *relay) pace() {
	var pause, resume []broker.TopicPartition
	r.mu.Lock()
	// Of the shortest delay all that is there is loaded, so that waits below it, of
	// a short hold limit, do not wait for one another.
	now, hold := r.q.now(), max(r.q.options.Retry.HoldLimit, tiers[0].delay)
	for tp, p := range r.parts {
		switch {
		case !p.paused && p.full(relayBytes, now, hold):
			p.paused = true
			pause = append(pause, tp)
		case p.paused && p.roomy(relayBytes, now, hold):
			p.paused = false
			resume = append(resume, tp)
		}
	}
	r.mu.Unlock()
	if len(pause) > 0 {
		r.consumer.Pause(pause)
	}
	if len(resume) > 0 {
		r.consumer.Resume(resume)
	}
}

// Assigned begins each partition where its last owner's commit says.
func (r *relay) Assigned(all []broker.Assigned) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range all {
		restored, err := decodeMetadata(a.Metadata, a.TopicID, a.Offset)
		p := &partition{at: a.TopicPartition, trimmed: a.Offset, side: r.sideOf(a.Topic), stopped: errors.Is(err, errNewer)}
		if p.stopped {
			r.q.log.Error("a delay topic is stopped: its position was written by a newer Postern; upgrade this instance", "partition", a.TopicPartition.String())
		}
		p.Tracker = newTracker(OrderNone, a.Offset, restored, r.q.seed)
		p.Tracker.home = p
		r.parts[a.TopicPartition] = p
	}
}

// sideOf tells which delay a topic is for.
func (r *relay) sideOf(topic string) side {
	for i, name := range r.q.delayTopics() {
		if name == topic {
			return sideTier + side(i)
		}
	}
	return sideTier
}

// Revoked waits a little for what is on its way, commits, and lets go.
func (r *relay) Revoked(ctx context.Context, tps []broker.TopicPartition) {
	only := map[broker.TopicPartition]bool{}
	for _, tp := range tps {
		only[tp] = true
	}
	grace := time.NewTimer(revokeGrace)
	defer grace.Stop()
	select {
	case r.working <- struct{}{}:
		defer func() { <-r.working }()
		if err := r.commit(context.WithoutCancel(ctx), only); err != nil {
			r.q.log.Warn("a commit of what was carried on failed; it may be carried again", "error", err)
		}
	case <-grace.C: // a commit after a later one would undo it
	}
	r.Lost(tps)
}

// Lost forgets partitions that are somebody else's.
func (r *relay) Lost(tps []broker.TopicPartition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, tp := range tps {
		delete(r.parts, tp)
	}
}
