package delivery

import (
	"slices"

	"github.com/postern-dev/postern/broker"
)

// Desire tells what people want the subscription called name to do: now, and
// when it is opened later.
func (qs *Queues) Desire(name string, d Desired) {
	qs.mu.Lock()
	qs.desired[name] = d
	var q *Queue
	if r := qs.running[name]; r != nil {
		q = r.queue
	}
	qs.mu.Unlock()
	if q != nil {
		q.desire(d)
	}
}

// Forget drops what was desired of a subscription that is no more.
func (qs *Queues) Forget(name string) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	delete(qs.desired, name)
}

// desire pauses, resumes, and has the poll loop apply seeks: only between its
// polls is no record of a partition under way.
func (q *Queue) desire(d Desired) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.desired = d
	for _, p := range q.rotation {
		if q.isSought(p) {
			p.sought = true
		}
	}
	if q.shared != nil {
		wake(q.shared.sought)
	}
	q.interruptPoll()
	q.dispatch()
}

// isSought reports whether p has a seek to apply. q.mu is held.
func (q *Queue) isSought(p *partition) bool {
	if p.side != noSide || p.stopped || p.shared != nil {
		return false
	}
	_, ok := q.desired.SeekOf(p.at, p.topicID, p.epoch)
	return ok
}

// interruptPoll lets the poll loop come round. q.mu is held.
func (q *Queue) interruptPoll() {
	if q.interrupt != nil {
		q.interrupt()
	}
}

// applySeeks moves each partition that was sought to its target, once: the epoch
// is committed with the new position. What is lent of it is revoked, and what it
// had put aside is given up: the subscription stands exactly at the target. Only
// from the poll loop.
func (q *Queue) applySeeks() {
	targets := map[broker.TopicPartition]int64{}
	q.mu.Lock()
	for _, p := range slices.Clone(q.rotation) {
		seek, ok := q.desired.SeekOf(p.at, p.topicID, p.epoch)
		if !p.sought || !ok {
			continue
		}
		n := &partition{at: p.at, owner: q.owner(), preparing: true, giveUp: true}
		n.Tracker = newTracker(q.options.Order, seek.Offset, progress{topicID: p.topicID, epoch: seek.Epoch}, q.seed)
		n.Tracker.home = n
		q.drop(p, "the subscription was sought")
		q.trackers[n.at] = n
		q.rotation = append(q.rotation, n)
		q.touch(n)
		if n.preparing {
			q.preparing.Ask()
		}
		targets[p.at] = seek.Offset
		q.log.Info("partition sought", "partition", p.at.String(), "from", p.position(), "to", seek.Offset, "epoch", seek.Epoch)
	}
	q.mu.Unlock()
	if len(targets) == 0 {
		return
	}
	var paused []broker.TopicPartition
	for tp := range targets {
		paused = append(paused, tp)
	}
	q.consumer.Resume(paused) // the partition it was may have been paused
	q.consumer.Seek(targets)
	q.commits.Ask()
}

// drop forgets p and its side partitions. q.mu is held.
func (q *Queue) drop(p *partition, why string) {
	for _, s := range p.sides {
		q.unfollowing = append(q.unfollowing, s.at)
		q.forget(s, why)
	}
	if len(p.sides) > 0 {
		q.followed.Ask()
	}
	q.forget(p, why)
}
