package broker

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// DefaultOffsetsRetention is Kafka's own offsets.retention.minutes.
const DefaultOffsetsRetention = 7 * 24 * time.Hour

// OffsetsRetention is how long Kafka keeps the positions of a group that has no
// members (offsets.retention.minutes); its default where the broker does not tell.
func (c *Client) OffsetsRetention(ctx context.Context) time.Duration {
	brokers, err := c.admin.ListBrokers(ctx)
	if err != nil || len(brokers) == 0 {
		return DefaultOffsetsRetention
	}
	described, err := c.admin.DescribeBrokerConfigs(ctx, brokers[0].NodeID)
	if err != nil {
		return DefaultOffsetsRetention
	}
	return offsetsRetention(described)
}

func offsetsRetention(described kadm.ResourceConfigs) time.Duration {
	for _, of := range described {
		for _, config := range of.Configs {
			if config.Key != "offsets.retention.minutes" || config.Value == nil {
				continue
			}
			if minutes, err := strconv.Atoi(*config.Value); err == nil && minutes > 0 {
				return time.Duration(minutes) * time.Minute
			}
		}
	}
	return DefaultOffsetsRetention
}

// Refresh has Kafka keep the positions of a group for another retention time. It
// joins, commits what it finds as it is, and leaves: a commit from outside alone
// does not keep a classic group's. A group that has members, or no positions, is
// left alone; refreshed says that it was not. o is as for NewConsumer.
func (c *Client) Refresh(ctx context.Context, o ConsumerOptions) (refreshed bool, err error) {
	group, err := c.Group(ctx, o.Group)
	if err != nil || len(group.Members) > 0 {
		return false, err
	}
	if o.Pattern != "" {
		if o.Topics, err = c.Matching(ctx, o.matches); err != nil {
			return false, err
		}
	}
	committed, err := c.Committed(ctx, o.Group, o.Topics...)
	if err != nil || len(committed) == 0 {
		return false, err
	}
	there, err := c.Existing(ctx, slices.Sorted(topicsOf(committed))...)
	if err != nil || len(there) == 0 {
		return false, err
	}
	o.Topics, o.Pattern, o.Idle, o.Begun = slices.Sorted(maps.Keys(there)), "", true, true // a deleted topic is nothing to join for
	visitor := make(visitor, 1)
	consumer := c.NewConsumer(o, visitor)
	if err := consumer.Join(ctx); err != nil {
		return false, err
	}
	defer consumer.Close(true)
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case mine := <-visitor:
		what := map[TopicPartition]Committing{}
		for _, a := range mine {
			if _, ok := committed[a.TopicPartition]; ok {
				what[a.TopicPartition] = Committing{a.Offset, a.Metadata}
			}
		}
		refused, err := consumer.Commit(ctx, what)
		for _, why := range refused {
			err = why
		}
		return err == nil, err
	}
}

func topicsOf(committed map[TopicPartition]Committing) func(yield func(string) bool) {
	topics := map[string]bool{}
	for tp := range committed {
		topics[tp.Topic] = true
	}
	return maps.Keys(topics)
}

// visitor owns partitions for a moment; it gets those of the first assignment.
type visitor chan []Assigned

func (v visitor) Assigned(all []Assigned) {
	select {
	case v <- all:
	default:
	}
}

func (visitor) Revoked(context.Context, []TopicPartition) {}
func (visitor) Lost([]TopicPartition)                     {}
