package endpoints

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// journal writes attempts and notices. Deliveries never wait for it: what comes
// while it is full is dropped, and counted.
type journal struct {
	attemptsTopic, eventsTopic string
	failuresOnly               bool
	instance                   string
	topics                     *topics
	producer                   Producer
	log                        *slog.Logger
	written, dropped           metric.Int64Counter
	some, full                 chan struct{} // something waits; a batch's worth does

	mu       sync.Mutex
	attempts []event.Record // without a partition
	memory   []byte         // of their keys and values
	expected int            // how many come together, by those before
	spare    []event.Record // memory of attempts that were answered
	notices  []endpoint.Notice
	bytes    int
	said     time.Time
	turn     uint32 // run's alone: which partition takes the next batch
}

const (
	// journalEvery is how long an attempt waits for others: they are written
	// together, which costs a tenth of writing each by itself.
	journalEvery = 100 * time.Millisecond
	journalBatch = 2000
	journalBytes = 2 << 20 // or that much of them
	// maxJournal bounds what waits.
	maxJournal      = 8 << 20
	maxNotices      = 1000
	attemptBytes    = 400 // of a usual attempt
	attemptOverhead = 200 // of one, beside its bytes
	journalKept     = "604800000"
	journalFlush    = 2 * time.Second // at the end
	journalSayEvery = 30 * time.Second
)

func newJournal(o Options, t *topics, producer Producer, log *slog.Logger, meter metric.Meter) *journal {
	written, _ := meter.Int64Counter("postern.attempts.logged", metric.WithDescription("Attempts written to the log of attempts"))
	dropped, _ := meter.Int64Counter("postern.attempts.dropped", metric.WithDescription("Attempts that the log of attempts could not take"))
	return &journal{
		attemptsTopic: o.Prefix + "attempts", eventsTopic: o.Events, failuresOnly: o.Attempts == "failures", instance: o.Instance,
		topics: t, producer: producer, log: log, written: written, dropped: dropped, some: make(chan struct{}, 1), full: make(chan struct{}, 1),
	}
}

// Attempted takes an attempt. It is written at once, behind those that wait: the
// structure is larger than its text, and what waits is moved when there is more of it.
func (j *journal) Attempted(a endpoint.Attempt) {
	if j.failuresOnly && a.Action == endpoint.Ack.String() {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.bytes >= maxJournal {
		j.dropped.Add(context.Background(), 1)
		return
	}
	if j.attempts == nil {
		if cap(j.spare) < j.expected {
			j.spare = make([]event.Record, 0, j.expected)
		}
		j.attempts, j.spare = j.spare, nil
	}
	if cap(j.memory)-len(j.memory) < attemptBytes {
		j.memory = make([]byte, 0, attemptBytes*max(1, min(j.expected-len(j.attempts), journalBatch)))
	}
	key := len(j.memory)
	value := key + len(a.WebhookID)
	j.memory = a.Append(append(j.memory, a.WebhookID...))
	end := len(j.memory)
	j.attempts = append(j.attempts, event.Record{
		Topic: j.attemptsTopic, Partition: event.AnyPartition, Offset: -1, Timestamp: a.At, Key: j.memory[key:value:value], Value: j.memory[value:end:end],
	})
	j.bytes += end - key + attemptOverhead
	j.wake()
}

// Notify takes an operational event.
func (j *journal) Notify(n endpoint.Notice) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.notices) < maxNotices {
		j.notices = append(j.notices, n)
	}
	j.wake()
}

// wake says that something waits, or much. j.mu is held.
func (j *journal) wake() {
	signal := func(c chan struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	if len(j.attempts)+len(j.notices) > 0 {
		signal(j.some)
	}
	if len(j.attempts) >= journalBatch || j.bytes >= journalBytes {
		signal(j.full)
	}
}

func (j *journal) run(ctx context.Context) {
	timer := time.NewTimer(journalEvery)
	defer timer.Stop()
	for {
		select {
		case <-j.some:
			timer.Reset(journalEvery)
			select {
			case <-timer.C:
			case <-j.full:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalFlush)
			defer cancel()
			j.flush(last)
			return
		}
		j.flush(ctx)
	}
}

// flush hands what waits to Kafka and does not wait for it.
func (j *journal) flush(ctx context.Context) {
	j.mu.Lock()
	attempts, notices := j.attempts, j.notices
	j.expected = min(len(attempts)+len(attempts)/4, 2*journalBatch)
	j.attempts, j.memory, j.notices, j.bytes = nil, nil, nil, 0
	j.mu.Unlock()
	if partitions := j.ready(ctx, j.attemptsTopic, len(attempts)); partitions > 0 {
		// All go to one partition: spread by their keys they would be as many small batches
		// as there are partitions, which cost Kafka three times as much. Readers read all
		// partitions anyway.
		j.turn++
		records := make([]*event.Record, len(attempts))
		for i := range attempts {
			records[i] = &attempts[i]
			records[i].Partition = int32(j.turn % uint32(partitions))
		}
		j.produce(records, func() {
			clear(attempts)
			j.mu.Lock()
			defer j.mu.Unlock()
			j.spare = attempts[:0]
		})
	}
	if j.ready(ctx, j.eventsTopic, len(notices)) > 0 {
		records := make([]*event.Record, 0, len(notices))
		for _, n := range notices {
			e := n.Event(j.instance, rand.Text())
			records = append(records, e.Record(j.eventsTopic))
		}
		j.produce(records, func() {})
	}
}

// ready says how many partitions the topic has that is to take n records; 0: there
// are none, or it cannot.
func (j *journal) ready(ctx context.Context, topic string, n int) int32 {
	if n == 0 {
		return 0
	}
	partitions, err := j.topics.ensure(ctx, topic, 0, map[string]string{"cleanup.policy": "delete", "retention.ms": journalKept})
	if err != nil {
		j.lost(n, err)
	}
	return partitions
}

// produce writes records, and calls done when all are answered.
func (j *journal) produce(records []*event.Record, done func()) {
	var answered, stored atomic.Int64
	j.producer.ProduceAll(records, broker.How{}, func(_ int, _ event.Position, err error) {
		if err != nil {
			j.lost(1, err)
		} else {
			stored.Add(1)
		}
		if answered.Add(1) == int64(len(records)) { // counted together: an instrument costs more than an addition
			j.written.Add(context.Background(), stored.Load())
			done()
		}
	})
}

func (j *journal) lost(n int, err error) {
	j.dropped.Add(context.Background(), int64(n))
	j.mu.Lock()
	defer j.mu.Unlock()
	if time.Since(j.said) >= journalSayEvery {
		j.said = time.Now()
		j.log.Warn("attempts or operational events are not logged", "error", err)
	}
}
