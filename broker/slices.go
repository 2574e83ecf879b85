package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Slices reads slices of one topic's partitions, each from its start to its
// end, one set after the other over the same connections. From one goroutine.
type Slices struct {
	client *Client
	topic  string
	kgo    *kgo.Client
}

const (
	// slicesFetchWait is short: a slice has an end, so that a fetch has something to bring.
	slicesFetchWait = 100 * time.Millisecond
	// slicesStall is how long nothing may come before Kafka is asked what is still there.
	slicesStall = time.Second
	// slicesAtOnce bounds the records taken from the client at once.
	slicesAtOnce = 500
)

// NewSlices makes a reader of topic, which connects when it first reads.
func (c *Client) NewSlices(topic string) (*Slices, error) {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // the last offset may be a transaction's marker: without it the end is never reached
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.FetchMaxWait(slicesFetchWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, c.base...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka reader for %s: %w", topic, err)
	}
	return &Slices{c, topic, cl}, nil
}

// Read gives take the committed records of the slices, in offset order for each
// partition, and returns when all of them are read, or take's first error. What
// retention removes meanwhile is passed over.
func (s *Slices) Read(ctx context.Context, slices map[int32]Range, take func(*event.Record) error) error {
	left := map[int32]int64{}
	at := map[int32]kgo.Offset{}
	var all []int32
	for p, r := range slices {
		if r.Start < r.End {
			left[p], at[p], all = r.End, kgo.NewOffset().At(r.Start), append(all, p)
		}
	}
	if len(left) == 0 {
		return nil
	}
	defer func() { s.kgo.RemoveConsumePartitions(map[string][]int32{s.topic: all}) }()
	s.kgo.AddConsumePartitions(map[string]map[int32]kgo.Offset{s.topic: at})
	for len(left) > 0 {
		came, err := s.poll(ctx, left, take)
		if err != nil {
			return err
		}
		if came {
			continue
		}
		ranges, err := s.client.Ranges(ctx, s.topic)
		if err != nil {
			return err
		}
		for p, end := range left {
			if r, ok := ranges[p]; !ok || r.Start >= end || r.End <= slices[p].Start {
				delete(left, p)
			}
		}
	}
	return nil
}

// poll takes what comes; false when nothing did for a while.
func (s *Slices) poll(ctx context.Context, left map[int32]int64, take func(*event.Record) error) (came bool, err error) {
	limited, cancel := context.WithTimeout(ctx, slicesStall)
	fetches := s.kgo.PollRecords(limited, slicesAtOnce)
	cancel()
	if ctx.Err() != nil {
		return false, fault.Of(ctx.Err())
	}
	if fetches.IsClientClosed() {
		return false, fault.New(fault.ShuttingDown, "the reader of %s is closed", s.topic)
	}
	var done []int32
	fetches.EachRecord(func(k *kgo.Record) {
		end, reading := left[k.Partition]
		if err != nil || !reading {
			return
		}
		came = true
		if k.Offset < end && !k.Attrs.IsControl() {
			err = take(fromRecord(k))
		}
		if k.Offset+1 >= end {
			delete(left, k.Partition)
			done = append(done, k.Partition)
		}
	})
	if err != nil {
		return came, err
	}
	for _, f := range fetches.Errors() {
		if errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, context.DeadlineExceeded) {
			continue
		}
		return came, toFault(f.Err, fmt.Sprintf("read %s", TopicPartition{f.Topic, f.Partition}))
	}
	if len(done) > 0 && len(left) > 0 {
		s.kgo.RemoveConsumePartitions(map[string][]int32{s.topic: done})
	}
	return came, nil
}

// Close ends the reader.
func (s *Slices) Close() { s.kgo.Close() }
