package delivery

import (
	"context"
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// doMoving writes what the trackers move.
func (q *Queue) doMoving() {
	move := q.moveOnce
	if q.shared != nil {
		move = q.moveShared
	}
	if err := move(); err != nil {
		q.moveWait = min(max(time.Second, 2*q.moveWait), moveRetryMax)
		q.moving.AskIn(q.moveWait)
		return
	}
	q.moveWait = 0
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
			q.moving.Ask()
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
		return partitions, true, createLike(ctx, kafka, name, source, partitions)
	case len(t.Partitions) < partitions:
		return partitions, false, kafka.GrowTopic(ctx, name, partitions)
	}
	return partitions, false, nil
}

// createLike makes a topic that keeps all until it is trimmed, as durable as source.
func createLike(ctx context.Context, kafka *broker.Client, name, source string, partitions int) error {
	configs, err := kafka.TopicConfigs(ctx, source, "min.insync.replicas")
	if err != nil {
		return err
	}
	configs["cleanup.policy"] = "delete"
	configs["retention.ms"], configs["retention.bytes"] = "-1", "-1"
	configs["max.message.bytes"] = strconv.Itoa(trackerBytes) // an event may have been compressed in its source
	return kafka.CreateTopic(ctx, name, int32(partitions), configs)
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
