package broker

import (
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/fault"
)

// While a group waits for a member that has died on its way to a rebalance, the
// client commits nothing and cannot be closed: its JoinGroup is answered when the
// last member came, or was given up. What is acknowledged meanwhile would be lost
// with this gateway, and one that is told to stop would not. Kafka takes both a
// commit and a goodbye then: the assignment of the generation before holds until
// the rebalance has all its members (GroupCoordinator, PreparingRebalance).

// commitBesideJoin is Commit while a JoinGroup waits.
func (consumer *Consumer) commitBesideJoin(ctx context.Context, what map[TopicPartition]Committing) (map[TopicPartition]error, error) {
	me := consumer.member()
	id, generation := me.GroupMetadata()
	if err := consumer.refuseStale(id, what); err != nil {
		return nil, toFault(err, "commit for group "+consumer.options.Group)
	}
	names := map[[16]byte]string{}
	topics, err := consumer.client.Existing(ctx, slices.Sorted(topicsOf(what))...)
	if err != nil {
		return nil, err
	}
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.MemberID, request.Generation = consumer.options.Group, id, generation
	if name := consumer.client.options.StaticMembership; name != "" {
		request.InstanceID = &name
	}
	for _, topic := range topics {
		names[topic.ID] = topic.Name
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic, t.TopicID = topic.Name, topic.ID
		for tp, c := range what {
			if tp.Topic != topic.Name {
				continue
			}
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = tp.Partition, c.Offset, -1, &c.Metadata
			t.Partitions = append(t.Partitions, p)
		}
		request.Topics = append(request.Topics, t)
	}
	answer, err := request.RequestWith(ctx, me.Client)
	if err != nil {
		return nil, toFault(err, "commit for group "+consumer.options.Group)
	}
	return consumer.settle(answer, what, func(id [16]byte) string { return names[id] }), nil
}

// leaveBesideJoin leaves the group while a JoinGroup waits, so that closing the
// client has nothing to wait for. It does not say goodbye for a static member.
func (consumer *Consumer) leaveBesideJoin(me *member) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	consumer.mu.Lock()
	tps := slices.Collect(maps.Keys(consumer.members))
	consumer.mu.Unlock()
	consumer.owner.Revoked(ctx, sortedPartitions(tps))
	consumer.forget(tps)
	id, _ := me.GroupMetadata()
	// First: told that the group does not know it any more, the client would join anew.
	me.patience.end()
	if consumer.client.options.StaticMembership != "" || id == "" {
		return
	}
	request := kmsg.NewPtrLeaveGroupRequest()
	request.Group, request.MemberID = consumer.options.Group, id // the one for brokers before version 3
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = id
	request.Members = append(request.Members, m)
	if _, err := request.RequestWith(ctx, consumer.client.kgo); err != nil && consumer.client.options.Logger != nil {
		consumer.client.options.Logger.Warn("a member could not leave its group; its partitions wait for its session to end",
			"group", consumer.options.Group, "error", fault.Of(toFault(err, "leave")))
	}
}
