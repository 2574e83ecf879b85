package endpoints

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
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
	attempts []endpoint.Attempt
	notices  []endpoint.Notice
	bytes    int
	said     time.Time
	turn     uint32 // run's alone: which partition takes the next batch
}

const (
	// journalEvery is how long an attempt waits for others: they are written
	// together, which costs a tenth of writing each by itself.
	journalEvery = 100 * time.Millisecond
	journalBatch = 500
	// maxJournal bounds what waits.
	maxJournal      = 8 << 20
	maxNotices      = 1000
	attemptBytes    = 400 // of an attempt beside its texts
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

// Attempted takes attempts.
func (j *journal) Attempted(attempts []endpoint.Attempt) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range attempts {
		a := &attempts[i]
		if j.failuresOnly && a.Action == endpoint.Ack.String() {
			continue
		}
		size := attemptBytes + len(a.Why) + len(a.EventID) + len(a.EventSource)
		if j.bytes+size > maxJournal {
			j.dropped.Add(context.Background(), 1)
			continue
		}
		j.bytes += size
		j.attempts = append(j.attempts, *a)
	}
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
	if len(j.attempts) >= journalBatch {
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
	j.attempts, j.notices, j.bytes = nil, nil, 0
	j.mu.Unlock()
	if partitions := j.ready(ctx, j.attemptsTopic, len(attempts)); partitions > 0 {
		j.turn++
		j.produce(j.records(attempts, int32(j.turn%uint32(partitions))))
	}
	if j.ready(ctx, j.eventsTopic, len(notices)) > 0 {
		records := make([]*event.Record, 0, len(notices))
		for _, n := range notices {
			e := n.Event(j.instance, rand.Text())
			records = append(records, e.Record(j.eventsTopic))
		}
		j.produce(records)
	}
}

// records writes attempts into one piece of memory, for one partition: spread by
// their keys they would be as many small batches as there are partitions, which
// cost Kafka three times as much. Readers read all partitions anyway.
func (j *journal) records(attempts []endpoint.Attempt, partition int32) []*event.Record {
	values := make([]byte, 0, len(attempts)*attemptBytes*2)
	memory := make([]event.Record, len(attempts))
	records := make([]*event.Record, len(attempts))
	for i := range attempts {
		begin := len(values)
		values = attempts[i].Append(values)
		memory[i] = event.Record{
			Topic: j.attemptsTopic, Partition: partition, Offset: -1, Timestamp: attempts[i].At,
			Key: []byte(attempts[i].WebhookID), Value: values[begin:len(values):len(values)],
		}
		records[i] = &memory[i]
	}
	return records
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

func (j *journal) produce(records []*event.Record) {
	j.producer.ProduceAll(records, broker.How{}, func(_ int, _ event.Position, err error) {
		if err != nil {
			j.lost(1, err)
			return
		}
		j.written.Add(context.Background(), 1)
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
