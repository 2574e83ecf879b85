package delivery

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/postern-dev/postern/broker"
)

// A share group's position can be set only while nobody is in it. So each gateway
// that works on a sought subscription lets go of all and leaves the group; one that
// finds it empty sets the position, and has that kept beside the subscription's
// record (Desired.Begun). Only then do they come back, so nothing is lent between
// the two, and a gateway that is killed there sets the same position once more.
// What waits in delay topics, or was redriven, is not in the topics that are
// sought: it still comes.

// seekPause is between two tries to set a share group's position.
const seekPause = 200 * time.Millisecond

// soughtShared reports whether a share group has a seek to apply. q.mu is held.
func (q *Queue) soughtShared() bool {
	return q.shared != nil && q.desired.SeekEpoch > q.desired.applied()
}

// seekLoop applies seeks to the share group.
func (q *Queue) seekLoop() {
	for {
		q.mu.Lock()
		sought := q.soughtShared()
		if sought {
			for _, h := range q.shared.held {
				q.lose(h, "the subscription was sought")
			}
			clear(q.shared.stories)
		}
		q.mu.Unlock()
		if sought && !q.shared.consumer.Apart(q.seekShared) {
			return
		}
		select {
		case <-q.ctx.Done():
			return
		case <-q.shared.sought:
		}
	}
}

// seekShared returns when the seek is applied, here or by another gateway, and kept
// to be, or ctx ends. This instance is not in the group meanwhile.
func (q *Queue) seekShared(ctx context.Context) {
	var set uint64
	for {
		q.mu.Lock()
		desired, sought := q.desired, q.soughtShared()
		q.mu.Unlock()
		if !sought {
			return
		}
		if set < desired.SeekEpoch {
			err := q.setShared(ctx, desired)
			q.mu.Lock()
			q.readFailing = err
			q.mu.Unlock()
			if err == nil {
				set = desired.SeekEpoch
				q.tellBegun(set)
				q.log.Info("share group sought", "group", q.options.Group, "epoch", set)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-q.shared.sought:
		case <-time.After(seekPause):
		}
	}
}

// setShared sets the group's position where it was sought and is not there yet.
func (q *Queue) setShared(ctx context.Context, desired Desired) error {
	if len(desired.Seeks) == 0 {
		return nil
	}
	read := map[string]bool{}
	for at := range desired.Seeks {
		read[at.Topic] = true
	}
	topics, err := q.kafka.Existing(ctx, slices.Collect(maps.Keys(read))...) // in one that was deleted there is nothing to seek
	if err != nil {
		return err
	}
	targets := map[broker.TopicPartition]int64{}
	for at := range desired.Seeks {
		topic, there := topics[at.Topic]
		if seek, ok := desired.SeekOf(at, topic.ID, desired.applied()); there && ok {
			targets[at] = seek.Offset
		}
	}
	if len(targets) == 0 {
		return nil
	}
	return q.kafka.AlterShareGroup(ctx, q.options.Group, targets)
}
