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
	topic  string
	kgo    *kgo.Client
	reborn context.Context // over once the topic was deleted and made again
}

// NewReader begins to read each partition at its offset.
func (c *Client) NewReader(topic string, at map[int32]int64) (*Reader, error) {
	reads, again := context.WithCancel(context.Background())
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
	cl, err := kgo.NewClient(append(opts, kgo.WithLogger(reborn{logger{c.options.Logger}, func(string) { again() }}))...)
	if err != nil {
		again()
		return nil, fmt.Errorf("kafka reader for %s: %w", topic, err)
	}
	return &Reader{topic, cl, reads}, nil
}

// Add begins to read one more partition.
func (r *Reader) Add(partition int32, offset int64) {
	r.kgo.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: {partition: kgo.NewOffset().At(offset)}})
}

// Poll waits for records and gives them to take. A context that ends is no error;
// that the topic was deleted and made again is one, and UNKNOWN_TOPIC: the positions
// are the other one's.
func (r *Reader) Poll(ctx context.Context, most int, take func(*event.Record)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.reborn, cancel)()
	fetches := r.kgo.PollRecords(ctx, most)
	fetches.EachRecord(func(k *kgo.Record) { take(fromRecord(k)) })
	if fetches.IsClientClosed() {
		return fault.New(fault.ShuttingDown, "the reader of %s is closed", r.topic)
	}
	if r.reborn.Err() != nil {
		return fault.New(fault.UnknownTopic, "topic %s was deleted and made again while it was read: begin anew, without a cursor", r.topic).With("topic", r.topic)
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
