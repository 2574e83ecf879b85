package broker

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/postern-dev/postern/fault"
)

// Topic is what Kafka says of a topic.
type Topic struct {
	Name       string
	ID         [16]byte // zero where the broker gives none
	Partitions []int32
	Internal   bool
}

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

func (tp TopicPartition) String() string { return fmt.Sprintf("%s[%d]", tp.Topic, tp.Partition) }

// Topics lists topics: those named, or all. A named one that does not exist is UNKNOWN_TOPIC.
func (c *Client) Topics(ctx context.Context, names ...string) ([]Topic, error) {
	details, err := c.admin.ListTopicsWithInternal(ctx, names...)
	if err != nil {
		return nil, toFault(err, "list topics")
	}
	topics := make([]Topic, 0, len(details))
	for _, d := range details.Sorted() {
		if d.Err != nil {
			if len(names) == 0 {
				continue // being created or deleted just now
			}
			return nil, fault.Of(toFault(d.Err, "look up topic "+d.Topic)).With("topic", d.Topic)
		}
		topics = append(topics, topicOf(d))
	}
	return topics, nil
}

// Existing gives those of the named topics that exist.
func (c *Client) Existing(ctx context.Context, names ...string) (map[string]Topic, error) {
	details, err := c.admin.ListTopicsWithInternal(ctx, names...)
	if err != nil {
		return nil, toFault(err, "list topics")
	}
	found := map[string]Topic{}
	for _, d := range details.Sorted() {
		switch {
		case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
		case d.Err != nil:
			return nil, fault.Of(toFault(d.Err, "look up topic "+d.Topic)).With("topic", d.Topic)
		default:
			found[d.Topic] = topicOf(d)
		}
	}
	return found, nil
}

func topicOf(d kadm.TopicDetail) Topic {
	t := Topic{Name: d.Topic, ID: d.ID, Internal: d.IsInternal}
	for _, p := range d.Partitions.Sorted() {
		t.Partitions = append(t.Partitions, p.Partition)
	}
	return t
}

// Partitions is how many partitions topic has; 0 when it does not exist and a
// publish would create it.
func (c *Client) Partitions(ctx context.Context, topic string) (int32, error) {
	topics, err := c.Topics(ctx, topic)
	if fault.Is(err, fault.UnknownTopic) && c.options.AutoCreateTopics {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return int32(len(topics[0].Partitions)), nil
}

// Range is the offsets a partition holds: [Start, End).
type Range struct{ Start, End int64 }

// whole is what was listed if Kafka told it of every partition.
func whole(listed kadm.ListedOffsets, err error) (kadm.ListedOffsets, error) {
	if err == nil {
		err = listed.Error()
	}
	return listed, err
}

// Ranges gives each partition of topic its range. End is the last stable
// offset's: what a read_committed reader may reach now.
func (c *Client) Ranges(ctx context.Context, topic string) (map[int32]Range, error) {
	start, err := whole(c.admin.ListStartOffsets(ctx, topic))
	if err != nil {
		return nil, fault.Of(toFault(err, "find the start of "+topic)).With("topic", topic)
	}
	end, err := whole(c.admin.ListCommittedOffsets(ctx, topic))
	if err != nil {
		return nil, fault.Of(toFault(err, "find the end of "+topic)).With("topic", topic)
	}
	ranges := map[int32]Range{}
	end.Each(func(o kadm.ListedOffset) {
		s, _ := start.Lookup(topic, o.Partition)
		ranges[o.Partition] = Range{s.Offset, o.Offset}
	})
	return ranges, nil
}

// OffsetsAt gives each partition of topic the first offset at or after t.
func (c *Client) OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int32]int64, error) {
	listed, err := whole(c.admin.ListOffsetsAfterMilli(ctx, t.UnixMilli(), topic))
	if err != nil {
		return nil, fault.Of(toFault(err, "find a time in "+topic)).With("topic", topic)
	}
	at := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { at[o.Partition] = o.Offset })
	return at, nil
}

// coordinatorWait is how long a coordinator may take to be there: a new cluster
// makes its topic at the first question.
const (
	coordinatorWait  = 10 * time.Second
	coordinatorRetry = 250 * time.Millisecond
)

// coordinated asks again while the group's coordinator is not there yet: the Kafka
// client does not, of the questions that it splits by coordinator.
func coordinated[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for began := time.Now(); ; {
		got, err := ask()
		if !errors.Is(err, kerr.CoordinatorNotAvailable) && !errors.Is(err, kerr.CoordinatorLoadInProgress) || time.Since(began) > coordinatorWait {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, err
		case <-time.After(coordinatorRetry):
		}
	}
}

// Committed gives the group's commits on topics; partitions without a commit are absent.
func (c *Client) Committed(ctx context.Context, group string, topics ...string) (map[TopicPartition]Committing, error) {
	offsets, err := coordinated(ctx, func() (kadm.OffsetResponses, error) { return c.admin.FetchOffsets(ctx, group) })
	if err == nil {
		err = offsets.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, toFault(err, "read the position of group "+group)
	}
	wanted := map[string]bool{}
	for _, t := range topics {
		wanted[t] = true
	}
	committed := map[TopicPartition]Committing{}
	offsets.Each(func(o kadm.OffsetResponse) {
		if wanted[o.Topic] && o.At >= 0 {
			committed[TopicPartition{o.Topic, o.Partition}] = Committing{o.At, o.Metadata}
		}
	})
	return committed, nil
}

// commitOutside commits for a group that has no members.
func (c *Client) commitOutside(ctx context.Context, group string, at map[TopicPartition]Committing) error {
	var offsets kadm.Offsets
	for tp, what := range at {
		offsets.Add(kadm.Offset{Topic: tp.Topic, Partition: tp.Partition, At: what.Offset, LeaderEpoch: -1, Metadata: what.Metadata})
	}
	answers, err := c.admin.CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = answers.Error()
	}
	return err
}

// CreateTopic creates a topic with the cluster's replication factor. One that
// is there already is no error. partitions < 1 means the cluster's default.
func (c *Client) CreateTopic(ctx context.Context, name string, partitions int32, configs map[string]string) error {
	if partitions < 1 {
		partitions = -1
	}
	pointers := make(map[string]*string, len(configs))
	for k, v := range configs {
		pointers[k] = &v
	}
	_, err := c.admin.CreateTopic(ctx, partitions, -1, pointers, name)
	if errors.Is(err, kerr.TopicAlreadyExists) {
		return nil
	}
	if err != nil {
		return fault.Of(toFault(err, "create topic "+name)).With("topic", name)
	}
	return nil
}

// GrowTopic gives topic at least that many partitions.
func (c *Client) GrowTopic(ctx context.Context, name string, partitions int) error {
	answers, err := c.admin.UpdatePartitions(ctx, partitions, name)
	if err == nil {
		err = answers.Error()
	}
	if errors.Is(err, kerr.InvalidPartitions) { // it has as many, or more
		return nil
	}
	if err != nil {
		return fault.Of(toFault(err, "add partitions to topic "+name)).With("topic", name)
	}
	return nil
}

// DeleteBefore lets Kafka remove the records below each offset.
func (c *Client) DeleteBefore(ctx context.Context, at map[TopicPartition]int64) error {
	var offsets kadm.Offsets
	for tp, offset := range at {
		offsets.AddOffset(tp.Topic, tp.Partition, offset, -1)
	}
	answers, err := c.admin.DeleteRecords(ctx, offsets)
	if err == nil {
		err = answers.Error()
	}
	return toFault(err, "remove records that are settled")
}

// DeleteTopics deletes topics; used by tests and `postern dev`.
func (c *Client) DeleteTopics(ctx context.Context, names ...string) error {
	answers, err := c.admin.DeleteTopics(ctx, names...)
	if err == nil {
		err = answers.Error()
	}
	return toFault(err, "delete topics")
}

// sortedPartitions orders tps by topic and partition, for logs and stable tests.
func sortedPartitions(tps []TopicPartition) []TopicPartition {
	sort.Slice(tps, func(i, j int) bool {
		if tps[i].Topic != tps[j].Topic {
			return tps[i].Topic < tps[j].Topic
		}
		return tps[i].Partition < tps[j].Partition
	})
	return tps
}

// TopicConfigs gives the values of the named settings of topic; those the broker does not tell are absent.
func (c *Client) TopicConfigs(ctx context.Context, topic string, names ...string) (map[string]string, error) {
	described, err := c.admin.DescribeTopicConfigs(ctx, topic)
	var of kadm.ResourceConfig
	if err == nil {
		of, err = described.On(topic, nil)
	}
	if err == nil {
		err = of.Err
	}
	if err != nil {
		return nil, fault.Of(toFault(err, "read the settings of topic "+topic)).With("topic", topic)
	}
	values := map[string]string{}
	for _, config := range of.Configs {
		if config.Value == nil {
			continue
		}
		for _, name := range names {
			if config.Key == name {
				values[name] = *config.Value
			}
		}
	}
	return values, nil
}
