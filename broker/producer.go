package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

func (d Durability) String() string {
	if d == Leader {
		return "leader"
	}
	return "all_replicas"
}

// Compression of the batches that Kafka stores; "" is none.
type Compression string

// Compressions are the codecs that may be asked for.
var Compressions = []Compression{"none", "gzip", "snappy", "lz4", "zstd"}

func (c Compression) codec() kgo.CompressionCodec {
	switch c {
	case "gzip":
		return kgo.GzipCompression()
	case "snappy":
		return kgo.SnappyCompression()
	case "lz4":
		return kgo.Lz4Compression()
	case "zstd":
		return kgo.ZstdCompression()
	}
	return kgo.NoCompression()
}

// How says how records are written.
type How struct {
	Durability  Durability
	Compression Compression
	// Wait is how long the caller waits; the records are tried at least that long,
	// up to an hour. 0: recordLife.
	Wait time.Duration
}

// recordLife bounds how long a record may occupy the buffer while Kafka does not
// take it: without a bound one topic short of replicas fills the buffer, and
// publishing to every other topic stops with it. Longer than any caller waits by
// default, so that it never answers before the caller's own deadline; a caller
// who waits longer gets whole minutes more. The client's RecordDeliveryTimeout
// would count from the record's timestamp, which a publisher may set to years ago.
const (
	recordLife = 60 * time.Second
	maxLives   = 60 // times recordLife
)

// recordOverhead is what a record on its way costs beside its own bytes: ours, the
// client's and the waiter's structures.
const recordOverhead = 512

// Producer writes records. It is safe for concurrent use.
//
// The client compresses and acknowledges by client and not by topic, so there
// is one client (a line) for each How in use, made when it is first asked for.
type Producer struct {
	client      *Client
	generations [maxLives]atomic.Pointer[generation] // by how often recordLife they live
	buffered    atomic.Int64                         // bytes not answered, recordOverhead included
	records     atomic.Int64
	accounts    sync.Map // string -> *account: topics with records, or that exist
	batches     batchLimits

	mu      sync.Mutex
	lines   atomic.Pointer[map[How]*line] // copied on change; by durability and compression
	closed  bool
	closing atomic.Bool // closed, for those without mu

	atomics *transactors
	strays  strays
}

// line is one client and its gates.
type line struct {
	client *kgo.Client
	gates  *gates
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

func (p *Producer) life(now time.Time, wait time.Duration) context.Context {
	lives := min(max(1, (wait+recordLife-1)/recordLife), maxLives)
	slot := &p.generations[lives-1]
	current := slot.Load()
	if current != nil && now.Before(current.closes) {
		return current
	}
	ctx, cancel := context.WithCancel(context.Background())
	next := &generation{ctx, now.Add(generationSpan)}
	if !slot.CompareAndSwap(current, next) {
		cancel()
		return slot.Load()
	}
	time.AfterFunc(lives*recordLife+generationSpan, cancel)
	return next
}

// NewProducer makes the cluster's producer.
func (c *Client) NewProducer() (*Producer, error) {
	p := &Producer{client: c, batches: batchLimits{client: c}}
	p.lines.Store(&map[How]*line{})
	if _, err := p.line(How{}); err != nil {
		return nil, err
	}
	p.atomics = newTransactors(p)
	return p, nil
}

// line finds or makes the client for how.
func (p *Producer) line(how How) (*line, error) {
	if how.Wait = 0; how.Compression == "none" {
		how.Compression = ""
	}
	if p.closing.Load() {
		return nil, shuttingDown()
	}
	if l := (*p.lines.Load())[how]; l != nil {
		return l, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := *p.lines.Load()
	if l := lines[how]; l != nil {
		return l, nil
	}
	if p.closed {
		return nil, shuttingDown()
	}
	l := &line{gates: &gates{brokers: map[int32]*gate{}}}
	options := append(p.produceOptions(how.Compression), kgo.RecordPartitioner(partitioner{kgo.StickyKeyPartitioner(nil), l.gates}))
	if how.Durability == Leader {
		options = append(options, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	} else {
		options = append(options, kgo.RequiredAcks(kgo.AllISRAcks()))
	}
	client, err := p.client.writer(options...)
	if err != nil {
		return nil, fmt.Errorf("kafka producer for %s %s: %w", how.Durability, how.Compression, err)
	}
	l.client, l.gates.client = client, client
	next := make(map[How]*line, len(lines)+1)
	for k, v := range lines {
		next[k] = v
	}
	next[how] = l
	p.lines.Store(&next)
	return l, nil
}

// produceOptions are what all producing clients have in common.
func (p *Producer) produceOptions(compression Compression) []kgo.Opt {
	c := p.client
	options := append([]kgo.Opt{
		kgo.ProducerLinger(0), // the gates do better
		// The buffer's limit is counted here (reserve), over all lines and with what gates hold.
		kgo.MaxBufferedRecords(1 << 30),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return p.batches.of(topic, compression) }),
		// No delivery timeout of the client's: see recordLife.
		kgo.UnknownTopicRetries(2),
		kgo.ProducerBatchCompression(compression.codec()),
	}, c.base...)
	if c.options.AutoCreateTopics {
		options = append(options, kgo.AllowAutoTopicCreation())
	}
	return options
}

// flight is a record on its way. It is the record's Context for the client, so
// that the promise and the partitioner find it without a closure for each.
type flight struct {
	context.Context
	group   *group
	index   int
	size    int
	gate    *gate
	account *account
	missing bool      // the partition it names does not exist
	placed  time.Time // when the client gave it a partition, and so may have sent it; zero: it did not
	record  kgo.Record
}

// onlyTry is how long after its placing a record's answer is surely that of the
// first try: less than the client's shortest wait before a second.
const onlyTry = 150 * time.Millisecond

// triedBefore reports whether Kafka may have been sent the record before the try
// that was answered now. The client does not tell how often it tried: a first
// answer that took long counts too, for "unknown" is then true, if less than
// could be said.
func (f *flight) triedBefore(now time.Time) bool {
	return !f.placed.IsZero() && now.Sub(f.placed) >= onlyTry
}

// group is records produced together.
type group struct {
	producer *Producer
	line     *line
	surely   bool // a record that is given up is surely not stored: the idempotent client heeds a cancel only then
	done     func(i int, at event.Position, err error)
	flights  []flight
	one      [1]flight // memory for a group of one
}

// Produce is ProduceAll for one record.
func (p *Producer) Produce(r *event.Record, durability Durability, done func(event.Position, error)) {
	p.ProduceAll([]*event.Record{r}, How{Durability: durability}, func(_ int, at event.Position, err error) { done(at, err) })
}

// ProduceAll hands records to Kafka and calls done once for each, on other
// goroutines or this one, with the record's index and its position or why it is
// not (or not surely) stored. It does not block: without room in the buffer a
// record is BUFFER_FULL at once. The records' bytes must not change until done.
// Records of one partition are stored in their order here; nil records are skipped.
//
// No context: a record that a request's context could cancel may be lost after
// it was acknowledged (franz-go#1217), so a caller bounds its own wait only.
func (p *Producer) ProduceAll(records []*event.Record, how How, done func(i int, at event.Position, err error)) {
	l, err := p.line(how)
	if err != nil {
		for i, r := range records {
			if r != nil {
				done(i, event.Position{}, err)
			}
		}
		return
	}
	now := time.Now()
	life := p.life(now, how.Wait)
	g := &group{producer: p, line: l, surely: how.Durability == AllReplicas, done: done}
	if g.flights = g.one[:]; len(records) > 1 {
		g.flights = make([]flight, len(records))
	}
	var last *route
	var room *account
	topic := ""
	alone := len(records) < gateGroup
	for i, r := range records {
		if r == nil {
			continue
		}
		if room == nil || topic != r.Topic {
			topic, last, room = r.Topic, l.gates.route(r.Topic), p.account(r.Topic)
		}
		size := r.Size() + recordOverhead
		if err := p.reserve(size, room); err != nil {
			done(i, event.Position{}, err)
			continue
		}
		f := &g.flights[i]
		f.Context, f.group, f.index, f.size, f.account = life, g, i, size, room
		fillRecord(&f.record, r)
		f.record.Context = f
		if f.record.Timestamp.IsZero() {
			f.record.Timestamp = now // the client would ask the clock for each
		}
		l.gates.pass(f, last, alone, now)
	}
}

// promise is every record's promise.
func promise(k *kgo.Record, err error) {
	f := k.Context.(*flight)
	g := f.group
	if f.gate != nil {
		f.gate.answered(g.line.gates)
	}
	g.producer.free(f.size, f.account)
	if err != nil {
		wrong := g.producer.produceFault(err, f)
		if fault.Is(wrong, fault.UnknownTopic) {
			g.producer.strays.met(g.producer, k.Topic)
		}
		g.done(f.index, event.Position{}, wrong)
		return
	}
	g.done(f.index, event.Position{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset}, nil)
}

func (p *Producer) produceFault(err error, f *flight) error {
	topic := f.record.Topic
	if f.missing {
		return fault.New(fault.UnknownPartition, "topic %s has no partition %d: leave the partition out or choose one it has (%w)", topic, f.record.Partition, err).
			With("topic", topic).With("partition", fmt.Sprint(f.record.Partition))
	}
	switch {
	case errors.Is(err, context.Canceled) && f.group.surely:
		return fault.New(fault.BrokerUnavailable, "publish to %s: Kafka did not take the event in a minute or more, and it is given up: nothing is stored; "+
			"is the topic's leader there, and are enough of its replicas in sync? (%w)", topic, err).With("topic", topic)
	case errors.Is(err, context.Canceled):
		return fault.New(fault.OutcomeUnknown, "publish to %s: Kafka did not answer in a minute or more: the event may or may not be stored (%w)", topic, err).With("topic", topic)
	case errors.Is(err, kgo.ErrClientClosed): // it was handed over before
		return fault.New(fault.OutcomeUnknown, "publish to %s: the gateway stopped before Kafka answered: the event may or may not be stored (%w)", topic, err).With("topic", topic)
	}
	wrong := p.wrong(topic, err)
	if f.triedBefore(time.Now()) && !ofRecord(wrong.Reason) && wrong.Kind() != fault.KindUnknown {
		return fault.New(fault.OutcomeUnknown, "publish to %s: Kafka refused the event, but may have taken it at an earlier try whose answer was lost (%w)", topic, err).With("topic", topic)
	}
	return wrong
}

// ofRecord reports whether a refusal is of the record itself: an earlier try was
// refused as well. Even one that Kafka calls retriable may be the last word: the
// client ends a batch by whatever error comes once its topic was missing a few times.
func ofRecord(r fault.Reason) bool {
	return r == fault.EventTooLarge || r == fault.InvalidRecord || r == fault.InvalidTopic
}

// wrong is what err means for a publish to topic.
func (p *Producer) wrong(topic string, err error) *fault.Error {
	wrong := fault.Of(toFault(err, "publish to "+topic)).With("topic", topic)
	if wrong.Reason == fault.UnknownTopic && !p.client.options.AutoCreateTopics {
		wrong.Message = fmt.Sprintf("topic %s does not exist: create it first, for example with "+
			"kafka-topics --bootstrap-server BROKER --create --topic %s", topic, topic)
	}
	return wrong
}

func shuttingDown() error {
	return fault.New(fault.ShuttingDown, "the gateway is stopping; nothing was stored")
}

// Warm asks Kafka for the producer's id, so that the first publish need not.
func (p *Producer) Warm(ctx context.Context) error {
	l, err := p.line(How{})
	if err != nil {
		return err
	}
	_, _, err = l.client.ProducerID(ctx)
	return toFault(err, "ask Kafka for a producer id")
}

// Flush waits until everything produced is answered.
func (p *Producer) Flush(ctx context.Context) error {
	if err := p.atomics.flush(ctx); err != nil {
		return err
	}
	for how, l := range *p.lines.Load() {
		l.gates.flush()
		if err := l.client.Flush(ctx); err != nil {
			return toFault(err, fmt.Sprintf("flush the %s producer", how.Durability))
		}
	}
	return nil
}

// Buffered is how many records wait for Kafka, and their bytes with what they cost beside.
func (p *Producer) Buffered() (records, bytes int64) { return p.records.Load(), p.buffered.Load() }

// Close ends the producer: what comes after it is SHUTTING_DOWN, what Kafka has
// not answered is OUTCOME_UNKNOWN (Flush first).
func (p *Producer) Close() {
	p.mu.Lock()
	p.closed = true
	p.closing.Store(true)
	p.mu.Unlock()
	p.strays.close()
	p.atomics.close()
	for _, l := range *p.lines.Load() {
		l.gates.flush()
		l.client.Close()
	}
}

// partitioner is Java's default partitioner, except that an event that names its
// partition gets it. It tells the gates what the client knows of a topic.
type partitioner struct {
	keyed kgo.Partitioner
	gates *gates
}

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{p.keyed.ForTopic(topic), p.gates}
}

type topicPartitioner struct {
	kgo.TopicPartitioner
	gates *gates
}

func (p *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition != event.AnyPartition || p.TopicPartitioner.RequiresConsistency(r)
}

func (p *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if f, ok := r.Context.(*flight); ok && f.placed.IsZero() {
		f.placed = time.Now()
	}
	if r.Partition != event.AnyPartition {
		p.gates.met(r.Topic, int32(n), true)
		if f, ok := r.Context.(*flight); ok && int(r.Partition) >= n {
			f.missing = true // the client then fails the record; its own error for that has no type
		}
		return int(r.Partition)
	}
	choice := p.TopicPartitioner.Partition(r, n)
	p.gates.met(r.Topic, int32(n), r.Key != nil)
	if r.Key == nil {
		p.gates.stuck(r.Topic, int32(choice))
	}
	return choice
}

// OnNewBatch passes on that the sticky choice may change.
func (p *topicPartitioner) OnNewBatch() {
	if sticky, ok := p.TopicPartitioner.(kgo.TopicPartitionerOnNewBatch); ok {
		sticky.OnNewBatch()
	}
}
