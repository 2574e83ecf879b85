package broker

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Ledger is a small state that all instances share: a compacted topic of one
// partition, which everyone reads as a whole and one at a time writes.
//
// A write is a transaction under one transactional id, the topic's name. Beginning one fences whoever was about to write: Kafka aborts what they
// have begun, and refuses what they send from then on. After that the topic is
// read to its end, so that the writer decides by all that was ever written, and
// its records are committed only if nobody else has begun meanwhile. So writers are
// in one order, Kafka's, and none overwrites what it has not seen. A loser leaves
// nothing behind: compaction, which keeps the last record of a key, keeps a winner.
// (An optimistic write with the losers ignored by its readers would not survive it.)
type Ledger struct {
	client *Client
	topic  string

	mu     sync.Mutex
	next   int64         // every offset below was taken by Follow
	exists bool          // as far as Follow knows
	behind bool          // Follow has not taken yet what was there when it began
	moved  chan struct{} // closed and replaced when next changes
	recent []string      // the writes taken last, ours and others'
	ended  chan struct{} // closed when Follow has ended
	made   chan struct{} // a writer made the topic: look now
	writes chan struct{} // one slot: this instance's writers do not fence one another
}

// Ledger gives the ledger that topic is.
func (c *Client) Ledger(topic string) *Ledger {
	return &Ledger{client: c, topic: topic, behind: true, moved: make(chan struct{}), ended: make(chan struct{}), made: make(chan struct{}, 1), writes: make(chan struct{}, 1)}
}

const (
	// ledgerSeek is how often a ledger that is not there is looked for: how late an
	// instance may learn that another began one.
	ledgerSeek = 700 * time.Millisecond
	// ledgerFetchWait is how long a broker holds a fetch when there is nothing; an
	// idle ledger costs a request this often. What is written comes at once.
	ledgerFetchWait = 5 * time.Second
	// ledgerGone is how long a ledger that was there must be unknown to Kafka to be
	// taken for deleted.
	ledgerGone = 10 * time.Second
	// ledgerTries bounds the attempts to write while others do.
	ledgerTries = 20
)

// LedgerReader takes what Follow reads, from one goroutine.
type LedgerReader interface {
	// Reset begins anew, because the topic is another one. What was taken before
	// stands until the next CaughtUp.
	Reset()
	// Take takes the next record; a nil value ends its key.
	Take(r *event.Record)
	// CaughtUp is called when everything written before Follow began, or Reset, is taken.
	CaughtUp()
}

// Follow reads the ledger from its beginning until ctx ends, once. It waits out what
// passes by itself (Kafka is away, the topic is not there yet) and tells it to
// trouble; what it returns is for people to mend, when it could never read:
// KAFKA_NOT_AUTHORIZED, or a topic that cannot be a ledger.
func (l *Ledger) Follow(ctx context.Context, to LedgerReader, trouble func(error)) error {
	defer close(l.ended)
	var id [16]byte
	reading, caughtUp, missing := false, false, time.Time{}
	for ctx.Err() == nil {
		now, err := l.check(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.UnknownTopic) && reading && (missing.IsZero() || time.Since(missing) < ledgerGone):
			// A broker that has just started may not know it yet.
			if missing.IsZero() {
				missing = time.Now()
			}
		case fault.Is(err, fault.UnknownTopic):
			if reading {
				to.Reset()
				l.restart(0)
				reading, caughtUp = false, false
			}
			if !caughtUp {
				caughtUp = true
				to.CaughtUp()
			}
		case err == nil:
			missing = time.Time{}
			var began bool
			if began, err = l.read(ctx, to, !reading || now != id); began {
				id, reading = now, true
			}
			caughtUp = caughtUp || !l.isBehind()
			fallthrough
		default:
			if err != nil && ctx.Err() == nil {
				if !caughtUp && (fault.Is(err, fault.KafkaNotAuthorized) || fault.KindOf(err) == fault.KindPrecondition) {
					return l.rights(err)
				}
				trouble(l.rights(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-l.made:
		case <-time.After(ledgerSeek):
		}
	}
	return nil
}

// isBehind reports whether what was there when reading began is not taken yet.
func (l *Ledger) isBehind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.behind
}

// check looks whether the topic is there and can be a ledger, and gives its id.
func (l *Ledger) check(ctx context.Context) ([16]byte, error) {
	topics, err := l.client.Topics(ctx, l.topic)
	l.mu.Lock()
	l.exists = err == nil
	l.mu.Unlock()
	if err != nil {
		return [16]byte{}, l.rights(err)
	}
	if n := len(topics[0].Partitions); n != 1 {
		return [16]byte{}, fault.New(fault.KafkaRefused, "topic %s has %d partitions, and what is kept there needs exactly one: give the gateway another topics_prefix, or create the topic anew with one partition and cleanup.policy=compact", l.topic, n)
	}
	return topics[0].ID, nil
}

// rights says which rights are missing, where that is what err is.
func (l *Ledger) rights(err error) error {
	if !fault.Is(err, fault.KafkaNotAuthorized) {
		return err
	}
	if f := fault.Of(err); f.Metadata["transactional_id"] != "" {
		return err // said already
	}
	return fault.New(fault.KafkaNotAuthorized, "%w: give the gateway's Kafka user Read, Write, Describe and Create on topic %s, and Describe and Write on transactional id %s", err, l.topic, l.topic).With("topic", l.topic).With("transactional_id", l.topic)
}

// restart goes to next without what was taken before.
func (l *Ledger) restart(next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next, l.recent, l.behind = next, nil, true
	close(l.moved)
	l.moved = make(chan struct{})
}

func (l *Ledger) caughtUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behind = false
	close(l.moved)
	l.moved = make(chan struct{})
}

// recentWrites is how many writes are remembered for one whose answer was lost.
const recentWrites = 256

// advance notes that all below next is taken, and wakes who waits for it.
func (l *Ledger) advance(next int64, more []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recent = append(l.recent, more...)
	if extra := len(l.recent) - recentWrites; extra > 0 {
		l.recent = append(l.recent[:0], l.recent[extra:]...)
	}
	if next > l.next {
		l.next = next
		close(l.moved)
		l.moved = make(chan struct{})
	}
}

// read takes the topic's records until ctx ends or the topic is no longer
// readable: from where it left off, or anew. It says whether it began to.
func (l *Ledger) read(ctx context.Context, to LedgerReader, anew bool) (bool, error) {
	ranges, err := l.client.Ranges(ctx, l.topic)
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	from, end := l.next, ranges[0].End
	l.mu.Unlock()
	anew = anew || from < ranges[0].Start || from > end
	if anew {
		from = ranges[0].Start
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.topic: {0: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // the last offset is a transaction's marker: without it the end is never reached
		kgo.FetchMaxWait(ledgerFetchWait),
		kgo.FetchMaxBytes(4 << 20),
	}, l.client.base...)...)
	if err != nil {
		return false, fmt.Errorf("kafka reader for %s: %w", l.topic, err)
	}
	defer client.Close()
	if anew {
		to.Reset()
		l.restart(from)
	}
	for next := from; ; {
		if next >= end && l.isBehind() {
			to.CaughtUp()
			l.caughtUp()
		}
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return true, nil
		}
		var more []string
		fetches.EachRecord(func(k *kgo.Record) {
			next = k.Offset + 1
			if k.Attrs.IsControl() {
				return
			}
			r := fromRecord(k)
			if id, ok := r.Header(ledgerWrite); ok {
				more = append(more, string(id))
			}
			to.Take(r)
		})
		l.advance(next, more)
		for _, f := range fetches.Errors() {
			return true, toFault(f.Err, "read "+l.topic)
		}
	}
}

// await waits until all below end is taken.
func (l *Ledger) await(ctx context.Context, end int64) error {
	for {
		l.mu.Lock()
		there, moved := l.next >= end && !l.behind, l.moved
		l.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-moved:
		case <-l.ended:
			return fault.New(fault.ShuttingDown, "%s is not read any more", l.topic)
		case <-ctx.Done():
			return fault.New(fault.BrokerUnavailable, "%s could not be read to its end in time: %w", l.topic, ctx.Err())
		}
	}
}

// Write makes one change. decide is called when everything written before is
// taken, and gives the records (their topic and partition are the ledger's), or
// none when there is nothing to change; it may be called again when others write
// at the same time. Write returns when Follow has taken the records.
func (l *Ledger) Write(ctx context.Context, decide func() ([]*event.Record, error)) error {
	select {
	case l.writes <- struct{}{}:
		defer func() { <-l.writes }()
	case <-ctx.Done():
		return fault.Of(ctx.Err())
	}
	unanswered := ""
	for try := 1; ; try++ {
		again, err := l.writeOnce(ctx, decide, &unanswered)
		if err == nil || !again || try == ledgerTries || ctx.Err() != nil {
			return l.rights(err)
		}
		select { // others get their turn; each waits differently long
		case <-time.After(time.Duration(float64(min(try, 5)) * 10 * float64(time.Millisecond) * (1 + random()))):
		case <-ctx.Done():
			return err
		}
	}
}

// random is from [0, 1).
func random() float64 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return float64(uint16(b[0])<<8|uint16(b[1])) / (1 << 16)
}

// ledgerWrite is the header that names a write, so that one whose commit was not
// answered is found again.
const ledgerWrite = "postern-write"

// writeOnce tries once; again says whether another try makes sense. unanswered
// names a write of an earlier try of which Kafka has not said whether it is there.
func (l *Ledger) writeOnce(ctx context.Context, decide func() ([]*event.Record, error), unanswered *string) (again bool, err error) {
	// A caller who leaves must not leave an open transaction, which would hide what
	// others write until Kafka ends it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionWork)
	defer cancel()
	if err := l.create(ctx); err != nil {
		return false, err
	}
	client, err := l.fence(ctx)
	if err != nil {
		return fault.KindOf(err) == fault.KindUnavailable || fault.KindOf(err) == fault.KindUnknown, notStored(err)
	}
	defer client.Close()
	ranges, err := l.client.Ranges(ctx, l.topic)
	if err == nil {
		err = l.await(ctx, ranges[0].End)
	}
	if err != nil {
		return false, err
	}
	if l.taken(*unanswered) {
		return false, nil
	}
	*unanswered = "" // fenced: it will never be there
	records, err := decide()
	if err != nil || len(records) == 0 {
		return false, err
	}
	if err := client.BeginTransaction(); err != nil {
		return true, toFault(err, "write "+l.topic)
	}
	id := rand.Text()
	batch := make([]*kgo.Record, len(records))
	for i, r := range records {
		batch[i] = &kgo.Record{}
		fillRecord(batch[i], r)
		batch[i].Topic, batch[i].Partition = l.topic, 0
		batch[i].Headers = append(batch[i].Headers, kgo.RecordHeader{Key: ledgerWrite, Value: []byte(id)})
	}
	if err := produceWithin(ctx, client, batch); err != nil {
		l.abort(ctx, client)
		return !terminal(err), notStored(toFault(err, "write "+l.topic))
	}
	awaitPartitions(client)
	if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		if definitely(err) { // fenced: somebody else began
			return true, notStored(toFault(err, "write "+l.topic))
		}
		*unanswered = id
		return true, fault.New(fault.OutcomeUnknown, "the change of %s may or may not be made, Kafka's answer was lost: look, and make it again (%w)", l.topic, err)
	}
	if err := l.await(ctx, batch[len(batch)-1].Offset+1); err != nil {
		return false, err
	}
	if !l.taken(id) {
		return true, notStored(fault.New(fault.BrokerUnavailable, "the change of %s was aborted although Kafka took its commit", l.topic))
	}
	return false, nil
}

// produceWithin produces the records and waits for their answers, not beyond ctx.
// The client waits beyond it: it never gives up a record that it sent and was not
// answered, and ends it when it is closed.
func produceWithin(ctx context.Context, client *kgo.Client, records []*kgo.Record) error {
	answers := make(chan error, len(records))
	for _, r := range records {
		client.Produce(ctx, r, func(_ *kgo.Record, err error) { answers <- err })
	}
	var first error
	for range records {
		select {
		case err := <-answers:
			if first == nil {
				first = err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return first
}

// taken reports whether the write called id is there.
func (l *Ledger) taken(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return id != "" && slices.Contains(l.recent, id)
}

// abort ends a transaction that is not to be. Where that fails the next writer
// does it, or Kafka in time.
func (l *Ledger) abort(ctx context.Context, client *kgo.Client) {
	if client.AbortBufferedRecords(ctx) == nil {
		_ = client.EndTransaction(ctx, kgo.TryAbort)
	}
}

// terminal reports whether Kafka will refuse the record however often it is sent.
func terminal(err error) bool {
	switch fault.KindOf(toFault(err, "")) {
	case fault.KindUnavailable, fault.KindUnknown, fault.KindPrecondition:
		return false
	}
	return true
}

// fence begins as the one writer. Kafka has then ended whatever another one had
// begun, so that the topic's end is final.
func (l *Ledger) fence(ctx context.Context) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(append([]kgo.Opt{kgo.ProducerLinger(0), kgo.UnknownTopicRetries(2)}, l.client.base...),
		kgo.TransactionalID(l.topic), kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return nil, fmt.Errorf("kafka writer for %s: %w", l.topic, err)
	}
	if _, _, err := client.ProducerID(ctx); err != nil {
		client.Close()
		return nil, toFault(err, "begin to write "+l.topic)
	}
	return client, nil
}

// create makes the topic on first need, as durable as the cluster's default for topics.
func (l *Ledger) create(ctx context.Context) error {
	l.mu.Lock()
	exists := l.exists
	l.mu.Unlock()
	if exists {
		return nil
	}
	if _, err := l.check(ctx); !fault.Is(err, fault.UnknownTopic) {
		return err
	}
	if err := l.client.CreateTopic(ctx, l.topic, 1, map[string]string{
		"cleanup.policy": "compact",
		// A small topic: what was overwritten is gone soon, and a start reads little.
		"segment.bytes": strconv.Itoa(16 << 20),
	}); err != nil {
		return l.rights(err)
	}
	for { // until every broker that is asked knows it
		_, err := l.check(ctx)
		if !fault.Is(err, fault.UnknownTopic) {
			select {
			case l.made <- struct{}{}:
			default:
			}
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-l.ended:
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// CheckCompacted reports a topic whose records Kafka deletes by age: what is kept
// there would be forgotten.
func (l *Ledger) CheckCompacted(ctx context.Context) error {
	configs, err := l.client.TopicConfigs(ctx, l.topic, "cleanup.policy")
	if err != nil || configs["cleanup.policy"] == "" {
		return err
	}
	if p := configs["cleanup.policy"]; !strings.Contains(p, "compact") || strings.Contains(p, "delete") {
		return fault.New(fault.KafkaRefused, "topic %s has cleanup.policy=%s, so that Kafka deletes what is kept there after a while: set cleanup.policy=compact", l.topic, p)
	}
	return nil
}
