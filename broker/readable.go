package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Ends gives the partitions of topics their ends, for a read_committed reader, and
// of those that Kafka does not tell, why.
func (c *Client) Ends(ctx context.Context, topics ...string) (map[TopicPartition]int64, map[TopicPartition]error, error) {
	listed, err := c.admin.ListCommittedOffsets(ctx, topics...)
	if err != nil && len(listed) == 0 {
		return nil, nil, toFault(err, "find the ends of partitions")
	}
	ends, failed := map[TopicPartition]int64{}, map[TopicPartition]error{}
	listed.Each(func(o kadm.ListedOffset) {
		if at := (TopicPartition{o.Topic, o.Partition}); o.Err != nil {
			failed[at] = toFault(o.Err, "find the end of "+at.String())
		} else {
			ends[at] = o.Offset
		}
	})
	return ends, failed, nil
}

// Undecided gives the partitions of topics in which a transaction is open, neither
// committed nor aborted. What is stored behind its first record cannot be read yet,
// and is not counted by Ends and Ranges.
func (c *Client) Undecided(ctx context.Context, topics ...string) ([]TopicPartition, error) {
	// In this order: what is written between the two questions must not look undecided.
	written, err := whole(c.admin.ListEndOffsets(ctx, topics...))
	if err != nil {
		return nil, toFault(err, "find what is stored")
	}
	stable, err := whole(c.admin.ListCommittedOffsets(ctx, topics...))
	if err != nil {
		return nil, toFault(err, "find what can be read")
	}
	var open []TopicPartition
	written.Each(func(o kadm.ListedOffset) {
		if s, ok := stable.Lookup(o.Topic, o.Partition); !ok || s.Offset < o.Offset {
			open = append(open, TopicPartition{o.Topic, o.Partition})
		}
	})
	return open, nil
}

// readableRetry is how long a read waits after an error before it is tried again.
const readableRetry = 100 * time.Millisecond

// Readable reports whether a committed record of at can be read in held: false where
// there are only a transaction's markers, or nothing came until ctx ended. The error
// is the last that Kafka answered, also one that a client tries again after.
func (c *Client) Readable(ctx context.Context, at TopicPartition, held Range) (bool, error) {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // the last offset may be a marker
		kgo.KeepRetryableFetchErrors(),
		kgo.FetchMaxWait(slicesFetchWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{at.Topic: {at.Partition: kgo.NewOffset().At(held.Start)}}),
	}, c.base...)...)
	if err != nil {
		return false, fmt.Errorf("kafka reader for %s: %w", at, err)
	}
	defer cl.Close()
	var last error
	for ctx.Err() == nil {
		fetches := cl.PollRecords(ctx, 1)
		for _, k := range fetches.Records() {
			switch {
			case k.Offset >= held.End, k.Attrs.IsControl() && k.Offset+1 >= held.End:
				return false, nil
			case !k.Attrs.IsControl():
				return true, nil
			}
		}
		for _, f := range fetches.Errors() {
			if !errors.Is(f.Err, context.Canceled) && !errors.Is(f.Err, context.DeadlineExceeded) {
				last = f.Err
			}
		}
		if len(fetches.Errors()) > 0 {
			select {
			case <-time.After(readableRetry):
			case <-ctx.Done():
			}
		}
	}
	if last != nil {
		return false, toFault(last, "read "+at.String())
	}
	return false, nil
}
