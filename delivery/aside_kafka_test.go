package delivery_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// instance is a gateway's queues, and one queue of them with a borrower.
type instance struct {
	t      *testing.T
	queues *delivery.Queues
	queue  *delivery.Queue
	a      *delivery.Attachment
	had    []delivery.Lease // borrowed and not asked for yet
}

// borrow opens a queue on the cluster and attaches to it.
func borrow(t *testing.T, c *brokertest.Cluster, o delivery.Options) *instance {
	t.Helper()
	i := prepare(t, c)
	i.open(o)
	return i
}

// prepare makes an instance that works on nothing yet.
func prepare(t *testing.T, c *brokertest.Cluster) *instance {
	t.Helper()
	client := c.Client()
	mover := client.NewMover()
	t.Cleanup(mover.Close)
	// The side topics' names begin as the group's does, so that they are the test's own.
	return &instance{t: t, queues: delivery.NewQueues(delivery.NewInstance(), client, mover, c.Name("_side."), slog.New(slog.DiscardHandler), noop.Meter{})}
}

func (i *instance) open(o delivery.Options) {
	i.t.Helper()
	var err error
	if i.queue, err = i.queues.Open(i.t.Context(), o); err != nil {
		i.t.Fatal(err)
	}
	if i.a, _, err = i.queue.Attach(delivery.AttachOptions{Window: delivery.Window{Messages: 1000}}); err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(i.stop)
}

// stop drains what nobody settles any more, and leaves.
func (i *instance) stop() {
	i.a.Detach(0)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	i.queues.Close(ctx)
}

// next gives the next lease.
func (i *instance) next() delivery.Lease {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	for len(i.had) == 0 {
		leases, _, err := i.a.Next(ctx)
		if err != nil {
			i.t.Fatalf("nothing is delivered: %v", err)
		}
		i.had = leases
	}
	l := i.had[0]
	i.had = i.had[1:]
	return l
}

func (i *instance) say(s delivery.Settlement) {
	i.t.Helper()
	results := i.queue.SettleCommitted(i.t.Context(), []delivery.Settlement{s})
	if o := results[0].Outcome; o != delivery.Committed {
		i.t.Errorf("the settlement is %s", o)
	}
}

func (i *instance) ack(l delivery.Lease) {
	i.t.Helper()
	i.say(delivery.Settlement{ID: l.ID, Word: delivery.Ack})
}

func (i *instance) nack(l delivery.Lease, delay time.Duration, why string) {
	i.t.Helper()
	i.say(delivery.Settlement{ID: l.ID, Word: delivery.Nack, HasDelay: true, Delay: delay, Reason: why})
}

// options are a queue's, whose events wait no longer than a second in memory.
func options(c *brokertest.Cluster, name string, topics ...string) delivery.Options {
	return delivery.Options{
		Name: name, Group: c.Name(name), Topics: topics, Lease: time.Minute, DeadLetterTopic: c.Name(name + ".dead"),
		Retry: delivery.Retry{HoldLimit: time.Second}.WithDefaults(),
	}
}

func values(leases []delivery.Lease) string {
	var all []string
	for _, l := range leases {
		all = append(all, fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
	}
	return strings.Join(all, " ")
}

func events(topic string, texts ...string) []*event.Record {
	var all []*event.Record
	for _, text := range texts {
		all = append(all, &event.Record{Topic: topic, Key: []byte(text[:1]), Value: []byte(text), Headers: []event.Header{{Name: "h", Value: []byte(text)}}})
	}
	return all
}

// eventually waits until yes holds.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(time.Minute)
	for !yes() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func committed(c *brokertest.Cluster, o delivery.Options, topic string) int64 {
	offset, _ := c.Committed(o.Group, topic, 0)
	return offset
}

func TestAStuckKeyLeavesThePartitionAndKeepsItsOrder(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "stuck", topic)
	c.Put(events(topic, "a0", "b0", "a1", "b1", "a2")...)
	i := borrow(t, c, o)
	for range 3 {
		switch l := i.next(); string(l.Record.Value) {
		case "a0":
			i.nack(l, 3*time.Second, "not now")
		default:
			i.ack(l)
		}
	}
	eventually(t, "the position is past the stuck key", func() bool { return committed(c, o, topic) == 5 })
	c.Put(events(topic, "a3", "b2")...)
	var rest []delivery.Lease
	for range 5 {
		l := i.next()
		rest = append(rest, l)
		i.ack(l)
	}
	if got := values(rest); got != "b2#1 a0#2 a1#1 a2#1 a3#1" {
		t.Errorf("delivered %s", got)
	}
	for _, l := range rest {
		if l.Record.Topic != topic || l.Record.Partition != 0 || len(l.Record.Headers) != 1 || string(l.Record.Headers[0].Value) != string(l.Record.Value) {
			t.Errorf("%s came as %+v", l.Record.Value, l.Record)
		}
	}
	if rest[1].LastFailure != "not now" {
		t.Errorf("its last failure is told as %q", rest[1].LastFailure)
	}
	// The key is free again: what comes now needs no detour.
	c.Put(events(topic, "a4")...)
	i.ack(i.next())
	eventually(t, "all is committed", func() bool { return committed(c, o, topic) == 8 })
}

func TestAStuckKeyIsStillInOrderAfterRestartsAndRebalances(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 2)
	o := options(c, "moved", topic)
	put := func(texts ...string) {
		all := events(topic, texts...)
		for _, r := range all {
			r.Partition = int32(r.Key[0]) % 2
		}
		c.Put(all...)
	}
	put("a0", "b0", "a1", "b1")
	first := borrow(t, c, o)
	for range 2 { // a0 and b0
		first.nack(first.next(), 4*time.Second, "")
	}
	for p := range int32(2) {
		eventually(t, "the position is past the stuck keys", func() bool {
			offset, _ := c.Committed(o.Group, topic, p)
			return offset == 2
		})
	}
	put("a2", "b2")
	second := borrow(t, c, o) // one partition goes to it
	first.stop()              // and now the other
	put("a3", "b3")
	got := map[byte][]string{}
	for range 8 {
		l := second.next()
		got[l.Record.Key[0]] = append(got[l.Record.Key[0]], fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
		second.ack(l)
	}
	for _, key := range "ab" {
		want := fmt.Sprintf("%c0#2 %c1#1 %c2#1 %c3#1", key, key, key, key)
		if text := strings.Join(got[byte(key)], " "); text != want {
			t.Errorf("delivered %s, want %s", text, want)
		}
	}
}

func TestAnEventThatWaitsLongHoldsNothingUpWhereNoOrderIsKept(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "tiers", topic)
	o.Order = delivery.OrderNone
	c.Put(events(topic, "a0", "a1")...)
	i := borrow(t, c, o)
	l := i.next()
	began := time.Now()
	i.nack(l, 3*time.Second, "later")
	i.ack(i.next())
	eventually(t, "the position is past both", func() bool { return committed(c, o, topic) == 2 })
	again := i.next()
	if again.Attempt != 2 || string(again.Record.Value) != string(l.Record.Value) || again.LastFailure != "later" || again.Record.Position() != l.Record.Position() {
		t.Errorf("it came back as %+v of %+v", again, again.Record)
	}
	if waited := time.Since(began); waited < 3*time.Second {
		t.Errorf("it came back after %s", waited)
	}
	i.ack(again)
}

func TestAKeyMovesOnWithoutItsFailedEventWhereThatIsAllowed(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "on", topic)
	o.Retry.OnBlock = delivery.MoveOn
	c.Put(events(topic, "a0", "a1")...)
	i := borrow(t, c, o)
	i.nack(i.next(), 3*time.Second, "")
	var rest []delivery.Lease
	for range 2 {
		l := i.next()
		rest = append(rest, l)
		i.ack(l)
	}
	if got := values(rest); got != "a1#1 a0#2" {
		t.Errorf("delivered %s", got)
	}
}

func TestAttemptsAreCountedAcrossTheDetourAndEndInADeadLetter(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "count", topic)
	o.Retry.MaxAttempts = 3
	c.Put(events(topic, "a0", "a1")...)
	i := borrow(t, c, o)
	for attempt := 1; attempt <= 3; attempt++ {
		l := i.next()
		if l.Attempt != attempt || string(l.Record.Value) != "a0" {
			t.Fatalf("%s comes as attempt %d, want %d of a0", l.Record.Value, l.Attempt, attempt)
		}
		i.nack(l, 1500*time.Millisecond, "no")
	}
	i.ack(i.next()) // a1
	dead := c.Read(o.DeadLetterTopic)
	if len(dead) != 1 {
		t.Fatalf("%d dead letters", len(dead))
	}
	for name, want := range map[string]string{
		event.DeadLetterAttempts: "3", event.DeadLetterTopic: topic, event.DeadLetterOffset: "0", event.DeadLetterReason: "attempts_exhausted", "h": "a0",
	} {
		if v, _ := dead[0].Header(name); string(v) != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
	if slices.ContainsFunc(dead[0].Headers, func(h event.Header) bool { return strings.HasPrefix(h.Name, "postern-move-") }) {
		t.Errorf("the detour shows in the dead letter: %v", dead[0].Headers)
	}
}

func TestAConsumerThatSucceedsAtNothingDoesNotFlushTheTopicIntoTheDeadLetters(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "outage", topic)
	o.Retry.MaxAttempts = 1
	o.Order = delivery.OrderNone
	const many = 150
	var all []*event.Record
	for n := range many {
		all = append(all, &event.Record{Topic: topic, Value: fmt.Append(nil, n)})
	}
	c.Put(all...)
	i := borrow(t, c, o)
	for range many {
		i.queue.Settle([]delivery.Settlement{{ID: i.next().ID, Word: delivery.Nack, HasDelay: true, Delay: 500 * time.Millisecond}})
	}
	l := i.next() // one that comes again although its attempts are over
	if l.Attempt != 2 {
		t.Errorf("it comes as attempt %d", l.Attempt)
	}
	i.ack(l)
	eventually(t, "the budget is in the dead letters", func() bool { return len(c.Read(o.DeadLetterTopic)) == 100 })
}

// A large share of one stuck key must not take the others' room, nor their time: it
// is compared with the same events in the same partition when no key is stuck.
func TestHalfAPartitionOfOneStuckKeyDoesNotStopTheOthers(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	const many = 100_000
	var all []*event.Record
	payload := make([]byte, 1000)
	for n := range many {
		r := &event.Record{Topic: topic, Key: []byte("stuck"), Value: payload}
		if n%2 == 1 {
			r.Key = fmt.Append(nil, n%1000)
		}
		if all = append(all, r); len(all) == 10_000 {
			c.Put(all...)
			all = nil
		}
	}
	// drain settles everything, or everything but the stuck key's, and tells the 99th
	// percentile of the times between the deliveries of the other keys.
	drain := func(name string, stuck bool) time.Duration {
		o := options(c, name, topic)
		o.Retry.HoldLimit = time.Minute
		i := borrow(t, c, o)
		gaps := make([]time.Duration, 0, many/2)
		for last, done, refused := time.Now(), 0, 0; len(gaps) < many/2 || !stuck && done < many/2; {
			l := i.next()
			if string(l.Record.Key) != "stuck" {
				gaps = append(gaps, time.Since(last))
				last = time.Now()
				i.queue.Settle([]delivery.Settlement{{ID: l.ID, Word: delivery.Ack}})
				continue
			}
			if !stuck {
				done++
				i.queue.Settle([]delivery.Settlement{{ID: l.ID, Word: delivery.Ack}})
				continue
			}
			if refused++; refused > 1 {
				t.Fatal("the stuck key's next event came")
			}
			i.queue.Settle([]delivery.Settlement{{ID: l.ID, Word: delivery.Nack, HasDelay: true, Delay: 50 * time.Second}})
		}
		eventually(t, "the position is at the end", func() bool { return committed(c, o, topic) == many })
		slices.Sort(gaps)
		return gaps[len(gaps)*99/100]
	}
	without, with := drain("free", false), drain("half", true)
	t.Logf("p99 between deliveries of the other keys: %s without, %s with half the partition stuck (%.2f x)", without, with, float64(with)/float64(without))
}
