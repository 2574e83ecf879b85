package broker

import (
	"context"
	"errors"
	"path"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/postern-dev/postern/fault"
)

// Start is where a group begins a topic it has never committed on.
type Start struct {
	Latest bool      // else earliest
	Time   time.Time // the first record at or after it, when not zero
}

// matchesPattern reports whether a group that reads by a pattern reads topic: a glob
// as in path.Match, never a name that begins with an underscore, nor one that except
// names.
func matchesPattern(pattern string, except func(topic string) bool, topic string) bool {
	ok, _ := path.Match(pattern, topic) // checked where it was declared
	return ok && !strings.HasPrefix(topic, "_") && (except == nil || !except(topic))
}

// Matching lists the topics for which reads is true, but for Kafka's own.
func (c *Client) Matching(ctx context.Context, reads func(topic string) bool) ([]string, error) {
	all, err := c.Topics(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, t := range all {
		if !t.Internal && reads(t.Name) {
			found = append(found, t.Name)
		}
	}
	return found, nil
}

// topicsToRead looks topics up that a group is to read; with create, and where the
// options allow it, those that are not there are created.
func (c *Client) topicsToRead(ctx context.Context, names []string, create bool) ([]Topic, error) {
	topics, err := c.Topics(ctx, names...)
	if !fault.Is(err, fault.UnknownTopic) || !create || !c.options.AutoCreateTopics {
		return topics, err
	}
	for _, t := range names {
		if err := c.CreateTopic(ctx, t, 0, nil); err != nil {
			return nil, err
		}
	}
	return c.Topics(ctx, names...)
}

// startOffsets finds where a new group begins.
func (c *Client) startOffsets(ctx context.Context, topics []Topic, start Start) (map[TopicPartition]int64, error) {
	first := map[TopicPartition]int64{}
	for _, t := range topics {
		ranges, err := c.Ranges(ctx, t.Name)
		if err != nil {
			return nil, err
		}
		var at map[int32]int64
		if !start.Time.IsZero() {
			if at, err = c.OffsetsAt(ctx, t.Name, start.Time); err != nil {
				return nil, err
			}
		}
		for _, p := range t.Partitions {
			offset := ranges[p].Start
			if start.Latest || !start.Time.IsZero() {
				offset = ranges[p].End
			}
			if found, ok := at[p]; ok && found >= 0 {
				offset = found
			}
			first[TopicPartition{t.Name, p}] = offset
		}
	}
	return first, nil
}

// How long Join puts up with a coordinator that is not there yet: a fresh
// cluster makes its offsets topic when the first group asks for it.
const (
	beginPatience = 15 * time.Second
	beginPause    = 200 * time.Millisecond
)

func (consumer *Consumer) beginPatiently(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beginPatience)
	defer cancel()
	for {
		err := consumer.begin(ctx)
		// A topic created a moment ago may not be in the client's metadata yet.
		created := consumer.client.options.AutoCreateTopics && fault.Is(err, fault.UnknownTopic)
		if fault.KindOf(err) != fault.KindUnavailable && !created {
			return err
		}
		select {
		case <-time.After(beginPause):
		case <-ctx.Done():
			return err
		}
	}
}

// begin writes the group's first commit, on every partition of its topics, if
// it has none at all on any of them. From then on where the group stands is
// always written down: a restart before the first ack begins where this one
// did, not at a later "latest". When the group has commits, partitions without
// one appeared later and begin at their start.
func (consumer *Consumer) begin(ctx context.Context) error {
	c, o := consumer.client, consumer.options
	if o.Pattern != "" {
		found, err := c.Matching(ctx, o.matches)
		if err != nil || len(found) == 0 { // those that come later begin at their start
			return err
		}
		consumer.mu.Lock()
		consumer.topics = found
		consumer.mu.Unlock()
	}
	// What matched a pattern a moment ago and is gone is not made anew.
	topics, err := c.topicsToRead(ctx, consumer.reading(), o.Pattern == "")
	if err != nil {
		return err
	}
	for _, t := range topics {
		consumer.ids[t.Name] = t.ID
	}
	committed, err := c.Committed(ctx, o.Group, consumer.reading()...)
	if err != nil || len(committed) > 0 {
		return err
	}
	if o.Begun {
		return fault.New(fault.PositionLost, "Kafka has no position of group %s any more, which had one: say with a seek where to go on", o.Group).With("group", o.Group)
	}
	at, err := c.startOffsets(ctx, topics, o.Start)
	if err != nil {
		return err
	}
	first := make(map[TopicPartition]Committing, len(at))
	for tp, offset := range at {
		what := Committing{Offset: offset}
		if o.Metadata != nil {
			what.Metadata = o.Metadata(Assigned{TopicPartition: tp, TopicID: consumer.ids[tp.Topic], Offset: offset})
		}
		first[tp] = what
	}
	err = c.commitOutside(ctx, o.Group, first)
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.RebalanceInProgress) {
		return nil // another instance was quicker: the group has members, so it has its commits
	}
	return toFault(err, "write the first position of group "+o.Group)
}
