package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Reader reads one topic without a group, from positions the caller gives.
// Poll and Add from one goroutine.
type Reader struct {
	topic string
	kgo   *kgo.Client
}

// NewReader begins to read each partition at its offset.
func (c *Client) NewReader(topic string, at map[int32]int64) (*Reader, error) {
	opts := append([]kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, c.base...)
	partitions := map[int32]kgo.Offset{}
	for p, offset := range at {
		partitions[p] = kgo.NewOffset().At(offset)
	}
	if len(partitions) > 0 {
		opts = append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: partitions}))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("kafka reader for %s: %w", topic, err)
	}
	return &Reader{topic, cl}, nil
}

// Add begins to read one more partition.
func (r *Reader) Add(partition int32, offset int64) {
	r.kgo.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {partition: kgo.NewOffset().At(offset)}})
}

// Poll waits for records and gives them to take. A context that ends is no error.
func (r *Reader) Poll(ctx context.Context, most int, take func(*event.Record)) error {
	fetches := r.kgo.PollRecords(ctx, most)
	fetches.EachRecord(func(k *kgo.Record) { take(fromRecord(k)) })
	if fetches.IsClientClosed() {
		return fault.New(fault.ShuttingDown, "the reader of %s is closed", r.topic)
	}
	for _, f := range fetches.Errors() {
		if errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, context.DeadlineExceeded) {
			continue
		}
		return toFault(f.Err, fmt.Sprintf("read %s", TopicPartition{f.Topic, f.Partition}))
	}
	return nil
}

// Close ends the reader.
func (r *Reader) Close() { r.kgo.Close() }
