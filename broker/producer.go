package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Durability is what "stored" means.
type Durability uint8

const (
	AllReplicas Durability = iota // every in-sync replica, idempotent producer
	Leader                        // the partition's leader only
)

// recordLife bounds how long a record may occupy the buffer while Kafka does not
// take it: without a bound one topic short of replicas fills the buffer, and
// publishing to every other topic stops with it. Longer than any caller waits by
// default, so that it never answers before the caller's own deadline. The
// client's RecordDeliveryTimeout would count from the record's timestamp, which
// a publisher may set to years ago.
const recordLife = 60 * time.Second

// Producer writes records. It is safe for concurrent use.
type Producer struct {
	all, leader *kgo.Client
	auto        bool
	generation  atomic.Pointer[generation]
}

// generation is the context of all records produced within a second: one timer
// for them instead of one for each. It is cancelled, not left to expire: the
// client takes a deadline that passes while it asks for its producer id for a
// fatal failure. The client heeds it only while Kafka surely does not have the record.
type generation struct {
	context.Context
	closes time.Time // to new records
}

const generationSpan = time.Second

func (p *Producer) life(now time.Time) context.Context {
	current := p.generation.Load()
	if current != nil && now.Before(current.closes) {
		return current
	}
	ctx, cancel := context.WithCancel(context.Background())
	next := &generation{ctx, now.Add(generationSpan)}
	if !p.generation.CompareAndSwap(current, next) {
		cancel()
		return p.generation.Load()
	}
	time.AfterFunc(recordLife+generationSpan, cancel)
	return next
}

// NewProducer makes the cluster's producer: one client for ALL_REPLICAS, one
// for LEADER, which sends nothing until it is used.
func (c *Client) NewProducer() (*Producer, error) {
	shared := append([]kgo.Opt{
		kgo.RecordPartitioner(partitioner{kgo.StickyKeyPartitioner(nil)}),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedBytes(int(c.options.PublishBuffer)),
		kgo.MaxBufferedRecords(1 << 20),
		// Kafka compares the compressed batch with the topic's limit; ours is on
		// the event. The client refuses a batch above this by itself.
		kgo.ProducerBatchMaxBytes(int32(c.options.MaxEventBytes) + 64<<10),
		// No delivery timeout of the client's: see recordLife.
		kgo.UnknownTopicRetries(2),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	}, c.base...)
	if c.options.AutoCreateTopics {
		shared = append(shared, kgo.AllowAutoTopicCreation())
	}
	all, err := kgo.NewClient(append(shared, kgo.RequiredAcks(kgo.AllISRAcks()))...)
	if err != nil {
		return nil, fmt.Errorf("kafka producer: %w", err)
	}
	leader, err := kgo.NewClient(append(shared, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())...)
	if err != nil {
		all.Close()
		return nil, fmt.Errorf("kafka producer for LEADER durability: %w", err)
	}
	return &Producer{all: all, leader: leader, auto: c.options.AutoCreateTopics}, nil
}

// Produce hands r to Kafka and calls done once, on another goroutine, with r's
// position or with why it is not (or not surely) stored. It does not block: a
// full buffer is BUFFER_FULL at once. r's bytes must not change until done.
//
// No context: a record that a request's context could cancel may be lost after
// it was acknowledged (franz-go#1217), so a caller bounds its own wait only.
func (p *Producer) Produce(r *event.Record, durability Durability, done func(event.Position, error)) {
	client := p.all
	if durability == Leader {
		client = p.leader
	}
	k := toRecord(r)
	k.Context = p.life(time.Now())
	var chosen *choice
	if k.Partition != event.AnyPartition {
		chosen = &choice{Context: k.Context, partition: k.Partition}
		k.Context = chosen
	}
	client.TryProduce(context.Background(), k, func(k *kgo.Record, err error) {
		if err != nil {
			done(event.Position{}, p.produceFault(err, k.Topic, chosen))
			return
		}
		done(event.Position{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset}, nil)
	})
}

func (p *Producer) produceFault(err error, topic string, chosen *choice) error {
	if chosen != nil && chosen.missing {
		return fault.New(fault.UnknownPartition, "topic %s has no partition %d: leave the partition out or choose one it has (%w)", topic, chosen.partition, err).
			With("topic", topic).With("partition", fmt.Sprint(chosen.partition))
	}
	if errors.Is(err, context.Canceled) {
		return fault.New(fault.OutcomeUnknown, "publish to %s: Kafka did not take the event within %s: it is given up (%w)", topic, recordLife, err).With("topic", topic)
	}
	f := fault.Of(toFault(err, "publish to "+topic)).With("topic", topic)
	if f.Reason == fault.UnknownTopic && !p.auto {
		f.Message = fmt.Sprintf("topic %s does not exist: create it first, for example with "+
			"kafka-topics --bootstrap-server BROKER --create --topic %s", topic, topic)
	}
	return f
}

// choice rides on a record whose publisher chose the partition, so that the
// partitioner can say that it does not exist: the client's own error for that
// has no type.
type choice struct {
	context.Context
	partition int32
	missing   bool
}

// Flush waits until everything produced is answered.
func (p *Producer) Flush(ctx context.Context) error {
	if err := p.all.Flush(ctx); err != nil {
		return toFault(err, "flush the producer")
	}
	if err := p.leader.Flush(ctx); err != nil {
		return toFault(err, "flush the LEADER producer")
	}
	return nil
}

// Buffered is how many records and bytes wait for Kafka.
func (p *Producer) Buffered() (records, bytes int64) {
	return p.all.BufferedProduceRecords() + p.leader.BufferedProduceRecords(),
		p.all.BufferedProduceBytes() + p.leader.BufferedProduceBytes()
}

// Close ends the producer; what is still buffered fails with SHUTTING_DOWN.
func (p *Producer) Close() {
	p.all.Close()
	p.leader.Close()
}

// partitioner is Java's default partitioner, except that an event that names its partition gets it.
type partitioner struct{ keyed kgo.Partitioner }

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{p.keyed.ForTopic(topic)}
}

type topicPartitioner struct{ kgo.TopicPartitioner }

func (p *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition != event.AnyPartition || p.TopicPartitioner.RequiresConsistency(r)
}

func (p *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition != event.AnyPartition {
		if int(r.Partition) >= n { // the client then fails the record
			if c, ok := r.Context.(*choice); ok {
				c.missing = true
			}
		}
		return int(r.Partition)
	}
	return p.TopicPartitioner.Partition(r, n)
}

// OnNewBatch passes on that the sticky choice may change.
func (p *topicPartitioner) OnNewBatch() {
	if sticky, ok := p.TopicPartitioner.(kgo.TopicPartitionerOnNewBatch); ok {
		sticky.OnNewBatch()
	}
}
