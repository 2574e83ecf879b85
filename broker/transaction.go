package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// An atomic request is one Kafka transaction, or a share of one: requests that
// came while a transaction was under way are committed together in the next
// (group commit), because a commit costs as much for one as for a hundred. When
// a record of one of them fails, the transaction is aborted, that request is
// told, and the others are tried again without it; so each stays all or nothing.
//
// There are a few transactors, each with a transactional id of its own, and a
// request goes to the one of its first record's topic: requests to one topic are
// stored in the order they came, and a topic that Kafka does not take holds back
// few others.
const (
	transactorCount = 4
	// transactionTimeout is when Kafka aborts a transaction whose gateway died. Readers
	// of committed records wait for it that long.
	transactionTimeout = 10 * time.Second
	// transactionWork bounds the time for records to be taken, so that the commit comes
	// before Kafka's own abort.
	transactionWork = 7 * time.Second
	// transactionGroup bounds the records that share a commit.
	transactionGroup = 10_000
	// transactionQueue bounds the requests that wait for a transactor; the bytes are the buffer's.
	transactionQueue = 1000
)

type transactors struct {
	producer *Producer
	slots    [transactorCount]transactor
	closing  chan struct{}
	stop     sync.Once
	working  sync.WaitGroup
	waiting  tally // requests not answered
}

// tally counts, and tells when there is nothing left. Unlike a WaitGroup it may
// be added to while somebody waits.
type tally struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // closed when n is 0 again
}

func (t *tally) add() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n++; t.n == 1 {
		t.zero = make(chan struct{})
	}
}

func (t *tally) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 {
		close(t.zero)
	}
}

func (t *tally) wait(ctx context.Context) error {
	t.mu.Lock()
	n, zero := t.n, t.zero
	t.mu.Unlock()
	if n == 0 {
		return nil
	}
	select {
	case <-zero:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type transactor struct {
	id      string
	start   sync.Once
	queue   chan *atomicRequest
	client  *kgo.Client
	pending []*atomicRequest // taken from the queue, for the next transaction
}

// atomicRequest is records that are stored together or not at all.
type atomicRequest struct {
	ctx     context.Context // the caller's: a request whose caller left before its transaction began is not begun
	records []*event.Record
	size    int
	done    func(i int, at event.Position, err error)

	mu        sync.Mutex // promises are not all on one goroutine
	positions []event.Position
	failures  []error
	failed    bool
}

func newTransactors(p *Producer) *transactors {
	t := &transactors{producer: p, closing: make(chan struct{})}
	instance := rand.Text()[:12]
	for i := range t.slots {
		t.slots[i].id = fmt.Sprintf("%s-%s-%d", p.client.options.TransactionalIDPrefix, instance, i)
		t.slots[i].queue = make(chan *atomicRequest, transactionQueue)
	}
	return t
}

// ProduceAtomic stores all of records in one transaction, or none, and calls
// done once for each. A failed record has its own reason, the others
// ATOMIC_ABORTED; when the commit's answer is lost all are OUTCOME_UNKNOWN.
func (p *Producer) ProduceAtomic(ctx context.Context, records []*event.Record, done func(i int, at event.Position, err error)) {
	r := &atomicRequest{ctx: ctx, records: records, done: done}
	for _, record := range records {
		r.size += record.Size() + recordOverhead
	}
	if err := p.reserve(r.size, nil); err != nil {
		r.answerAll(err)
		return
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(records[0].Topic)) // never fails
	slot := &p.atomics.slots[h.Sum32()%transactorCount]
	err := p.atomics.enqueue(slot, r)
	if err != nil {
		p.free(r.size, nil)
		r.answerAll(err)
	}
}

func (t *transactors) enqueue(slot *transactor, r *atomicRequest) error {
	t.producer.mu.Lock()
	defer t.producer.mu.Unlock()
	if t.producer.closed {
		return fault.New(fault.ShuttingDown, "the gateway is stopping")
	}
	slot.start.Do(func() { t.working.Go(func() { t.run(slot) }) })
	t.waiting.add()
	select {
	case slot.queue <- r:
		return nil
	default:
		t.waiting.done()
		return bufferFull("%d atomic requests are waiting", transactionQueue)
	}
}

func (t *transactors) flush(ctx context.Context) error {
	return toFault(t.waiting.wait(ctx), "finish the atomic requests")
}

func (t *transactors) close() {
	t.stop.Do(func() { close(t.closing) })
	t.working.Wait()
}

// run is one transactor's loop.
func (t *transactors) run(slot *transactor) {
	defer func() {
		if slot.client != nil {
			slot.client.Close()
		}
	}()
	for {
		select {
		case r := <-slot.queue:
			slot.pending = append(slot.pending, r)
		case <-t.closing:
			t.refuse(slot)
			return
		}
		for len(slot.pending) > 0 {
			t.turn(slot, t.gather(slot))
		}
	}
}

// refuse answers what is queued when the producer closes.
func (t *transactors) refuse(slot *transactor) {
	for {
		select {
		case r := <-slot.queue:
			t.answer(r, fault.New(fault.ShuttingDown, "the gateway is stopping; nothing was stored"))
		default:
			return
		}
	}
}

// gather takes what shares the next transaction, in order.
func (t *transactors) gather(slot *transactor) []*atomicRequest {
	for more := true; more && len(slot.pending) < transactionQueue; {
		select {
		case r := <-slot.queue:
			slot.pending = append(slot.pending, r)
		default:
			more = false
		}
	}
	var together []*atomicRequest
	records := 0
	for len(slot.pending) > 0 {
		r := slot.pending[0]
		if len(together) > 0 && records+len(r.records) > transactionGroup {
			break
		}
		slot.pending = slot.pending[1:]
		if err := r.ctx.Err(); err != nil {
			t.answer(r, fault.Of(err))
			continue
		}
		together, records = append(together, r), records+len(r.records)
	}
	return together
}

// answer ends a request that was not stored as a whole.
func (t *transactors) answer(r *atomicRequest, err error) {
	t.producer.free(r.size, nil)
	r.answerAll(err)
	t.waiting.done()
}

func (r *atomicRequest) answerAll(err error) {
	for i := range r.records {
		r.done(i, event.Position{}, err)
	}
}

// turn runs transactions until every request of together has an answer.
func (t *transactors) turn(slot *transactor, together []*atomicRequest) {
	for len(together) > 0 {
		err := t.transact(slot, together)
		if err != nil { // of the transaction itself: nothing of it is stored, or it is unknown
			for _, r := range together {
				t.answer(r, err)
			}
			return
		}
		var again []*atomicRequest
		failed := false
		for _, r := range together {
			failed = failed || r.failed
		}
		for _, r := range together {
			switch {
			case r.failed:
				t.answerFailed(r)
			case failed:
				again = append(again, r)
			default:
				t.producer.free(r.size, nil)
				for i, at := range r.positions {
					r.done(i, at, nil)
				}
				t.waiting.done()
			}
		}
		together = again
	}
}

func (t *transactors) answerFailed(r *atomicRequest) {
	t.producer.free(r.size, nil)
	for i, err := range r.failures {
		if err == nil {
			err = Aborted()
		}
		r.done(i, event.Position{}, err)
	}
	t.waiting.done()
}

// Aborted is what the events of an atomic request answer when another one failed.
func Aborted() error {
	return fault.New(fault.AtomicAborted, "another event of the atomic request failed, so nothing of it is stored: see the other results")
}

// transact writes the requests in one transaction, committed when none failed. Its
// error concerns all of them.
func (t *transactors) transact(slot *transactor, together []*atomicRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), transactionWork)
	defer cancel()
	if err := t.begin(ctx, slot); err != nil {
		return err
	}
	var failed atomic.Bool
	for _, r := range together {
		r.positions, r.failures, r.failed = make([]event.Position, len(r.records)), make([]error, len(r.records)), false
		for i, record := range r.records {
			f := &flight{Context: context.Background(), group: &group{producer: t.producer}, index: i}
			fillRecord(&f.record, record)
			f.record.Context = f
			slot.client.TryProduce(f, &f.record, func(k *kgo.Record, err error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				if err != nil {
					failed.Store(true)
					r.failed, r.failures[i] = true, notStored(t.producer.produceFault(err, f))
					return
				}
				r.positions[i] = event.Position{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset}
			})
		}
	}
	flushErr := slot.client.Flush(ctx)
	if flushErr == nil && !failed.Load() {
		err := slot.client.EndTransaction(ctx, kgo.TryCommit)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kerr.OperationNotAttempted):
			t.abort(slot)
			return fault.New(fault.BrokerUnavailable, "the transaction could not be committed and is aborted, nothing is stored: retry (%w)", err)
		case definitely(err):
			t.abort(slot)
			return fault.New(fault.BrokerUnavailable, "Kafka refused the commit, nothing is stored: retry (%w)", err)
		}
		t.abort(slot)
		return fault.New(fault.OutcomeUnknown, "Kafka's answer to the commit was lost: the events may or may not be stored, all or none (%w)", err)
	}
	t.abort(slot)
	if flushErr != nil {
		return fault.New(fault.BrokerUnavailable, "Kafka did not take the events of the transaction within %s: it is aborted, nothing is stored", transactionWork)
	}
	return nil
}

// notStored turns an unknown outcome of a record into a known one: a record of a
// transaction that was never committed is not there for any reader.
func notStored(err error) error {
	if f := fault.Of(err); f.Reason == fault.OutcomeUnknown {
		return fault.New(fault.BrokerUnavailable, "%w; the transaction is aborted, nothing is stored", err)
	}
	return err
}

// definitely reports whether err is Kafka's own word that the commit was not done.
func definitely(err error) bool {
	var code *kerr.Error
	if !errors.As(err, &code) || code.Retriable {
		return false
	}
	switch code {
	case kerr.UnknownServerError:
		return false
	}
	return true
}

// begin starts a transaction, with a new client where there is none that works.
func (t *transactors) begin(ctx context.Context, slot *transactor) error {
	for try := 0; ; try++ {
		if slot.client == nil {
			client, err := t.connect(slot)
			if err != nil {
				return err
			}
			slot.client = client
		}
		// Asked for here, with a limit: the client would ask without one when it produces.
		_, _, err := slot.client.ProducerID(ctx)
		if err == nil {
			err = slot.client.BeginTransaction()
		}
		if err == nil {
			return nil
		}
		slot.client.Close()
		slot.client = nil
		if try > 0 || ctx.Err() != nil {
			return notStored(toFault(err, "begin a transaction as "+slot.id))
		}
	}
}

func (t *transactors) connect(slot *transactor) (*kgo.Client, error) {
	options := append(t.producer.client.produceOptions(""),
		kgo.TransactionalID(slot.id), kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordPartitioner(partitioner{kgo.StickyKeyPartitioner(nil), &gates{}}))
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("kafka transactions: %w", err)
	}
	return client, nil
}

// abort ends a transaction that is not to be. A client that cannot even do that
// is given up: its successor's first request makes Kafka abort what is left.
func (t *transactors) abort(slot *transactor) {
	ctx, cancel := context.WithTimeout(context.Background(), transactionTimeout-transactionWork)
	defer cancel()
	err := slot.client.AbortBufferedRecords(ctx)
	if err == nil {
		err = slot.client.EndTransaction(ctx, kgo.TryAbort)
	}
	if err != nil {
		t.producer.client.options.Logger.Warn("a transaction could not be aborted; its successor or Kafka will", "transactional_id", slot.id, "error", err)
		slot.client.Close()
		slot.client = nil
	}
}
