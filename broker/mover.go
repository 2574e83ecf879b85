package broker

import (
	"context"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Mover copies records to partitions that are named or that their keys decide,
// every in-sync replica and idempotent, apart from the Producer: what moves has been acknowledged once and
// may be larger than publishing admits, and must not wait behind publishers.
type Mover struct {
	client  *Client
	produce sync.Once
	kgo     *kgo.Client
	err     error
}

// moveMaxBytes is the largest record that can be moved: what a queue may hold.
const moveMaxBytes = 64 << 20

// NewMover makes a mover, which connects when it is first used.
func (c *Client) NewMover() *Mover { return &Mover{client: c} }

func (m *Mover) open() (*kgo.Client, error) {
	m.produce.Do(func() {
		m.kgo, m.err = m.client.writer(append([]kgo.Opt{
			kgo.RecordPartitioner(namedPartitioner{kgo.StickyKeyPartitioner(nil)}),
			kgo.RequiredAcks(kgo.AllISRAcks()),
			kgo.ProducerLinger(0),
			kgo.ProducerBatchMaxBytes(moveMaxBytes),
			kgo.MaxBufferedRecords(1 << 30), // callers bound what is under way
			kgo.UnknownTopicRetries(2),
		}, m.client.base...)...)
		if m.err != nil {
			m.err = fmt.Errorf("kafka client for moving records: %w", m.err)
		}
	})
	return m.kgo, m.err
}

// Move writes records, in order for each partition, and returns when each is
// answered: where it is, or why it is not (or not surely) there. When a record
// of a partition failed, none behind it is there by this call unless it was
// answered so: the client fails everything behind a failure. When ctx ends first,
// what is unanswered is OUTCOME_UNKNOWN: a gateway that stops while Kafka cannot
// be reached does not wait for it, and the client may try for ever what it may
// have sent already.
func (m *Mover) Move(ctx context.Context, records []*event.Record) ([]event.Position, []error) {
	at, errs := make([]event.Position, len(records)), make([]error, len(records))
	cl, err := m.open()
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
		return at, errs
	}
	// One context for all, so that they end together; not the caller's (see Producer.ProduceAll).
	life, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLife)
	defer cancel()
	answered := make(chan struct{})
	var mu sync.Mutex // over what follows and the results; gone: nobody reads them any more
	left, gone := len(records), false
	known := make([]bool, len(records))
	flights := make([]kgo.Record, len(records))
	for i, r := range records {
		fillRecord(&flights[i], r)
		cl.Produce(life, &flights[i], func(k *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if gone {
				return
			}
			known[i] = true
			if err != nil {
				errs[i] = fault.Of(toFault(err, "move to "+k.Topic)).With("topic", k.Topic)
			} else {
				at[i] = event.Position{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset}
			}
			if left--; left == 0 {
				close(answered)
			}
		})
	}
	if len(records) == 0 {
		return at, errs
	}
	select {
	case <-answered:
	case <-ctx.Done():
		mu.Lock()
		defer mu.Unlock()
		gone = true
		for i, r := range records {
			if !known[i] {
				errs[i] = fault.New(fault.OutcomeUnknown, "move to %s: stopped before Kafka answered: %w", r.Topic, ctx.Err()).With("topic", r.Topic)
			}
		}
	}
	return at, errs
}

// Close ends the mover.
func (m *Mover) Close() {
	m.produce.Do(func() { m.err = fault.New(fault.ShuttingDown, "the gateway is stopping") })
	if m.kgo != nil {
		m.kgo.Close()
	}
}

// namedPartitioner is Java's default partitioner, except that a record that names
// its partition gets it.
type namedPartitioner struct{ keyed kgo.Partitioner }

func (p namedPartitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return namedTopicPartitioner{p.keyed.ForTopic(topic)}
}

type namedTopicPartitioner struct{ kgo.TopicPartitioner }

func (p namedTopicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition != event.AnyPartition || p.TopicPartitioner.RequiresConsistency(r)
}

func (p namedTopicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition != event.AnyPartition {
		return int(r.Partition)
	}
	return p.TopicPartitioner.Partition(r, n)
}
