package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Partitions are a member's: what follows keeps those of an earlier member id of
// ours from being taken for the present one's.

// assign tells the owner, and notes as whom.
func (consumer *Consumer) assign(all []Assigned) {
	id, _ := consumer.member().GroupMetadata()
	consumer.mu.Lock()
	for _, a := range all {
		consumer.members[a.TopicPartition] = id
		consumer.last[a.TopicPartition] = Committing{a.Offset, a.Metadata}
	}
	consumer.mu.Unlock()
	consumer.owner.Assigned(all)
}

func (consumer *Consumer) forget(tps []TopicPartition) {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	for _, tp := range tps {
		delete(consumer.members, tp)
		delete(consumer.last, tp)
	}
}

// takeUpAgain is called at the beginning of each session with the group, after
// what must go was revoked, while no record is being polled. Of partitions that
// were assigned to an earlier member id of ours it keeps those of which Kafka still
// has what we committed last: nobody else can have called anything committed. The
// others are lost, and begin anew where the group stands.
func (consumer *Consumer) takeUpAgain(ctx context.Context) {
	me := consumer.member()
	id, _ := me.GroupMetadata()
	stale := consumer.ofOthers(id)
	if len(stale) == 0 {
		return
	}
	var topics []string
	for topic := range nest(stale) {
		topics = append(topics, topic)
	}
	committed, err := consumer.client.Committed(ctx, consumer.options.Group, topics...)
	for err != nil {
		select {
		case <-time.After(beginPause):
		case <-ctx.Done():
			return // the consumer is closed
		}
		committed, err = consumer.client.Committed(ctx, consumer.options.Group, topics...)
	}
	stale = consumer.adopt(id, stale, committed)
	if len(stale) == 0 {
		return
	}
	consumer.owner.Lost(stale)
	consumer.forget(stale)
	all := make([]Assigned, len(stale))
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for i, tp := range stale {
		at := committed[tp]
		all[i] = Assigned{TopicPartition: tp, TopicID: consumer.idOf(ctx, tp.Topic), Offset: at.Offset, Metadata: at.Metadata}
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: at.Offset}
	}
	consumer.assign(all)
	me.SetOffsets(offsets)
	consumer.Resume(stale)
}

// ofOthers lists what was assigned to other members than this one.
func (consumer *Consumer) ofOthers(member string) []TopicPartition {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	var stale []TopicPartition
	for tp, was := range consumer.members {
		if was != member {
			stale = append(stale, tp)
		}
	}
	return sortedPartitions(stale)
}

// adopt makes those of stale the member's own that Kafka has as we left them, or
// has nothing of, and gives the others.
func (consumer *Consumer) adopt(member string, stale []TopicPartition, committed map[TopicPartition]Committing) []TopicPartition {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	var changed []TopicPartition
	for _, tp := range stale {
		if at, ok := committed[tp]; ok && at != consumer.last[tp] {
			changed = append(changed, tp)
			continue
		}
		consumer.members[tp] = member
	}
	return changed
}

// refuseStale fails a commit of partitions that were assigned to another member
// than the one that commits: the client takes a commit that it held back during a
// rebalance for the new member's, and it would undo what others have committed
// meanwhile. The next commit is without them.
func (consumer *Consumer) refuseStale(member string, what map[TopicPartition]Committing) error {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	for tp := range what {
		if was, ours := consumer.members[tp]; ours && was != member {
			return fmt.Errorf("%s was assigned to this gateway before the group forgot it: %w", tp, kerr.UnknownMemberID)
		}
	}
	return nil
}

// committed notes what Kafka has taken.
func (consumer *Consumer) committed(tp TopicPartition, what Committing) {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	if _, ours := consumer.members[tp]; ours {
		consumer.last[tp] = what
	}
}
