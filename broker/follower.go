package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Follower reads partitions without a group, each from a position that the
// caller gives and may change. Poll from one goroutine; the rest is safe for
// concurrent use.
//
// A record that was read under an earlier position of its partition is never
// handed over under a later one: its offset would hide what lies between.
type Follower struct {
	kgo *kgo.Client

	mu    sync.Mutex // held while records are handed over
	polls uint64     // begun so far
	at    map[TopicPartition]followed
}

// followed is where a partition was begun, and before which poll.
type followed struct {
	offset int64
	since  uint64
}

// NewFollower makes a follower of nothing yet.
func (c *Client) NewFollower() (*Follower, error) {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, c.base...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka follower: %w", err)
	}
	return &Follower{kgo: cl, at: map[TopicPartition]followed{}}, nil
}

// Follow reads tp from offset on, whatever was read of it before.
func (f *Follower) Follow(tp TopicPartition, offset int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin(tp, offset)
}

func (f *Follower) begin(tp TopicPartition, offset int64) {
	one := []TopicPartition{tp}
	if _, known := f.at[tp]; known {
		f.kgo.RemoveConsumePartitions(nest(one))
	}
	f.at[tp] = followed{offset, f.polls}
	f.kgo.ResumeFetchPartitions(nest(one)) // a pause outlives what it was for
	f.kgo.AddConsumePartitions(map[string]map[int32]kgo.Offset{tp.Topic: {tp.Partition: kgo.NewOffset().At(offset)}})
}

// Unfollow reads no more of tps.
func (f *Follower) Unfollow(tps ...TopicPartition) {
	if len(tps) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tp := range tps {
		delete(f.at, tp)
	}
	f.kgo.RemoveConsumePartitions(nest(tps))
}

// Pause stops fetching tps and drops what is buffered of them; Resume goes on
// from where the last record handed over ended.
func (f *Follower) Pause(tps []TopicPartition) { f.kgo.PauseFetchPartitions(nest(tps)) }

// Resume undoes Pause.
func (f *Follower) Resume(tps []TopicPartition) { f.kgo.ResumeFetchPartitions(nest(tps)) }

// Poll waits for records, at most most, and gives them to offer, in offset
// order for each partition. offer must not block and must not call the
// Follower. Errors that Kafka or the client goes on after are returned joined.
func (f *Follower) Poll(ctx context.Context, most int, offer func([]*event.Record)) error {
	f.mu.Lock()
	f.polls++
	poll := f.polls
	f.mu.Unlock()
	fetches := f.kgo.PollRecords(ctx, most)
	f.mu.Lock()
	defer f.mu.Unlock()
	records := make([]*event.Record, 0, fetches.NumRecords())
	again := map[TopicPartition]int64{}
	fetches.EachRecord(func(k *kgo.Record) {
		tp := TopicPartition{k.Topic, k.Partition}
		switch at, ok := f.at[tp]; {
		case !ok:
		case at.since >= poll: // begun while this poll waited: it may be of the earlier reading
			again[tp] = at.offset
		default:
			records = append(records, fromRecord(k))
		}
	})
	for tp, offset := range again {
		f.begin(tp, offset)
	}
	if len(records) > 0 {
		offer(records)
	}
	if fetches.IsClientClosed() {
		return fault.New(fault.ShuttingDown, "the follower is closed")
	}
	var errs []error
	for _, e := range fetches.Errors() {
		if errors.Is(e.Err, context.Canceled) || errors.Is(e.Err, context.DeadlineExceeded) {
			continue
		}
		errs = append(errs, toFault(e.Err, fmt.Sprintf("read %s", TopicPartition{e.Topic, e.Partition})))
	}
	return errors.Join(errs...)
}

// Close ends the follower.
func (f *Follower) Close() { f.kgo.Close() }
