package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
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
// few others. Topics of another compression have transactors of their own.
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
	producer      *Producer
	instance      string
	byCompression map[Compression]*[transactorCount]transactor // guarded by the producer's mu
	closing       chan struct{}
	stop          sync.Once
	working       sync.WaitGroup
	waiting       tally // requests not answered
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
	id          string
	compression Compression
	start       sync.Once
	queue       chan *atomicRequest
	client      *kgo.Client
	gates       *gates           // of the client; they know the topics it has written to
	met         map[string]bool  // topics the client knows the partitions of
	pending     []*atomicRequest // taken from the queue, for the next transaction
}

// atomicRequest is records that are stored together or not at all.
type atomicRequest struct {
	ctx     context.Context // the caller's: a request whose caller left before its transaction began is not begun
	records []*event.Record
	shares  []share
	done    func(i int, at event.Position, err error)
	attempt *attempt // the last transaction it was part of
}

// attempt is what became of a request's records in one transaction.
type attempt struct {
	mu        sync.Mutex // promises are not all on one goroutine
	positions []event.Position
	failures  []error
	answered  int
	failed    bool
}

func (a *attempt) answer(i int, at event.Position, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answered++
	if a.failures[i] != nil {
		return // stuck, and aborted since
	}
	a.positions[i] = at
	if err != nil {
		a.failures[i], a.failed = err, true
	}
}

// verdict is taken when all promises are kept, or will be kept in vain.
func (a *attempt) verdict() (answered int, failed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answered, a.failed
}

// stuck fails every record that Kafka has not answered.
func (a *attempt) stuck() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = true
	for i := range a.failures {
		if a.failures[i] == nil && a.positions[i].Topic == "" {
			a.failures[i] = fault.New(fault.BrokerUnavailable, "Kafka did not take the event within %s: the transaction is aborted, nothing is stored", transactionWork)
		}
	}
}

func newTransactors(p *Producer) *transactors {
	return &transactors{
		producer: p, instance: rand.Text()[:12], byCompression: map[Compression]*[transactorCount]transactor{}, closing: make(chan struct{}),
	}
}

// ProduceAtomic stores all of records in one transaction, or none, and calls
// done once for each. A failed record has its own reason, the others
// ATOMIC_ABORTED; when the commit's answer is lost all are OUTCOME_UNKNOWN.
// compression is that of all of them: a transaction is one client's.
func (p *Producer) ProduceAtomic(ctx context.Context, records []*event.Record, compression Compression, done func(i int, at event.Position, err error)) {
	r := &atomicRequest{ctx: ctx, records: records, done: done}
	var err error
	if r.shares, err = p.reserveAll(records); err != nil {
		r.answerAll(err)
		return
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(records[0].Topic)) // never fails
	if err := p.atomics.enqueue(compression, int(h.Sum32()%transactorCount), r); err != nil {
		p.freeAll(r.shares)
		r.answerAll(err)
	}
}

// slots finds or makes the transactors of a compression. The caller has the producer's lock.
func (t *transactors) slots(compression Compression) *[transactorCount]transactor {
	if compression == "none" {
		compression = ""
	}
	if slots := t.byCompression[compression]; slots != nil {
		return slots
	}
	name := t.producer.client.options.TransactionalIDPrefix + "-" + t.instance
	if compression != "" {
		name += "-" + string(compression)
	}
	slots := &[transactorCount]transactor{}
	for i := range slots {
		slots[i].id = fmt.Sprintf("%s-%d", name, i)
		slots[i].compression = compression
		slots[i].queue = make(chan *atomicRequest, transactionQueue)
	}
	t.byCompression[compression] = slots
	return slots
}

func (t *transactors) enqueue(compression Compression, index int, r *atomicRequest) error {
	t.producer.mu.Lock()
	defer t.producer.mu.Unlock()
	if t.producer.closed {
		return shuttingDown()
	}
	slot := &t.slots(compression)[index]
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
			t.answer(r, shuttingDown())
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
	t.producer.freeAll(r.shares)
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
		var again, failed []*atomicRequest
		for _, r := range together {
			if _, bad := r.attempt.verdict(); bad {
				failed = append(failed, r)
			} else {
				again = append(again, r)
			}
		}
		for _, r := range failed {
			t.answerFailed(r)
		}
		if len(failed) == 0 {
			for _, r := range together {
				t.producer.freeAll(r.shares)
				for i, at := range r.attempt.positions {
					r.done(i, at, nil)
				}
				t.waiting.done()
			}
			return
		}
		together = again
	}
}

func (t *transactors) answerFailed(r *atomicRequest) {
	t.producer.freeAll(r.shares)
	for i, err := range r.attempt.failures {
		switch {
		case err == nil:
			err = Aborted()
		case fault.Is(err, fault.UnknownTopic):
			t.producer.strays.met(t.producer, r.records[i].Topic)
		}
		r.done(i, event.Position{}, err)
	}
	t.waiting.done()
}

// maxMet bounds the topics that are remembered.
const maxMet = 10_000

// meet sees to it that the client knows the partitions of all topics that were
// written to (awaitPartitions).
func (s *transactor) meet(together []*atomicRequest) {
	fresh := false
	for _, r := range together {
		for _, record := range r.records {
			if !s.met[record.Topic] {
				fresh = true
				if s.met == nil || len(s.met) >= maxMet {
					s.met = map[string]bool{}
				}
				s.met[record.Topic] = true
			}
		}
	}
	if fresh {
		awaitPartitions(s.client)
	}
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
	for _, r := range together {
		a := &attempt{positions: make([]event.Position, len(r.records)), failures: make([]error, len(r.records))}
		r.attempt = a
		for i, record := range r.records {
			f := &flight{Context: context.Background(), group: &group{producer: t.producer}, index: i}
			fillRecord(&f.record, record)
			f.record.Context = f
			slot.client.TryProduce(f, &f.record, func(k *kgo.Record, err error) {
				if err != nil {
					a.answer(i, event.Position{}, notStored(t.producer.produceFault(err, f)))
					return
				}
				a.answer(i, event.Position{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset}, nil)
			})
		}
	}
	flushErr := slot.client.Flush(ctx)
	failed := false
	var stuck []*attempt
	for _, r := range together {
		answered, bad := r.attempt.verdict()
		failed = failed || bad
		if answered < len(r.records) {
			stuck = append(stuck, r.attempt)
		}
	}
	if flushErr == nil && !failed {
		slot.meet(together)
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
	for _, a := range stuck { // before the abort answers them in its own words
		a.stuck()
	}
	t.abort(slot)
	t.forget(slot, together)
	if flushErr != nil && len(stuck) == 0 {
		return fault.New(fault.BrokerUnavailable, "Kafka did not take the events of the transaction within %s: it is aborted, nothing is stored", transactionWork)
	}
	return nil
}

// forget takes topics that do not exist out of the transactor's client (see strays).
func (t *transactors) forget(slot *transactor, together []*atomicRequest) {
	var topics []string
	for _, r := range together {
		for i, err := range r.attempt.failures {
			if fault.Is(err, fault.UnknownTopic) {
				topics = append(topics, r.records[i].Topic)
			}
		}
	}
	if slot.client != nil {
		forget(slot.client, slot.gates, topics)
	}
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
			if err := t.connect(slot); err != nil {
				return err
			}
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

func (t *transactors) connect(slot *transactor) (err error) {
	slot.gates, slot.met = &gates{}, nil
	options := append(t.producer.produceOptions(slot.compression),
		kgo.TransactionalID(slot.id), kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordPartitioner(partitioner{kgo.StickyKeyPartitioner(nil), slot.gates}))
	if slot.client, err = t.producer.client.writer(options...); err != nil {
		return fmt.Errorf("kafka transactions: %w", err)
	}
	return nil
}

// abort ends a transaction that is not to be. A client that cannot even do that
// is given up: its successor's first request makes Kafka abort what is left.
func (t *transactors) abort(slot *transactor) {
	ctx, cancel := context.WithTimeout(context.Background(), transactionTimeout-transactionWork)
	defer cancel()
	slot.met = nil // a topic may have been the reason, and be met anew
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
