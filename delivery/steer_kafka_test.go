package delivery_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
)

// seek is what people desire after their epoch-th seek.
func seek(epoch uint64, topic string, offset int64) delivery.Desired {
	at := broker.TopicPartition{Topic: topic}
	return delivery.Desired{SeekEpoch: epoch, Seeks: map[broker.TopicPartition]delivery.Seek{at: {Epoch: epoch, Offset: offset}}}
}

func TestASubscriptionThatIsSoughtBackDeliversAgainOnceAndNotAfterARestart(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "back", topic)
	c.Put(events(topic, "a0", "b0", "a1", "b1")...)
	i := borrow(t, c, o)
	for range 4 {
		i.ack(i.next())
	}
	i.queues.Desire(o.Name, seek(1, topic, 1))
	for _, want := range []string{"b0", "a1", "b1"} {
		l := i.next()
		if string(l.Record.Value) != want || l.Attempt != 1 {
			t.Errorf("%s came as attempt %d, want %s", l.Record.Value, l.Attempt, want)
		}
		i.ack(l)
	}
	i.stop()
	again := start(t, c, o, seek(1, topic, 1))
	c.Put(events(topic, "a2")...)
	if l := again.next(); string(l.Record.Value) != "a2" {
		t.Errorf("after a restart %s comes again", l.Record.Value)
	} else {
		again.ack(l)
	}
}

// start is borrow for a subscription of which something is desired already.
func start(t *testing.T, c *brokertest.Cluster, o delivery.Options, d delivery.Desired) *instance {
	t.Helper()
	i := prepare(t, c)
	i.queues.Desire(o.Name, d)
	i.open(o)
	return i
}

func TestASeekThatNobodyWasThereForIsAppliedByTheNextOwner(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "later", topic)
	c.Put(events(topic, "a0", "b0", "a1")...)
	i := borrow(t, c, o)
	for range 3 {
		i.ack(i.next())
	}
	i.stop()
	again := start(t, c, o, seek(4, topic, 2))
	if l := again.next(); string(l.Record.Value) != "a1" {
		t.Errorf("%s came", l.Record.Value)
	}
}

func TestASeekGivesUpWhatIsLentAndWhatWasPutAside(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "skip", topic)
	c.Put(events(topic, "a0", "b0", "a1", "b1")...)
	i := borrow(t, c, o)
	stuck, held := i.next(), i.next()
	i.nack(stuck, 3*time.Second, "") // a is parked
	eventually(t, "the position is past the stuck key", func() bool { return committed(c, o, topic) == 1 })
	i.queues.Desire(o.Name, seek(1, topic, 4))
	eventually(t, "the seek is committed", func() bool { return committed(c, o, topic) == 4 })
	if r, _ := i.queue.Settle([]delivery.Settlement{{ID: held.ID, Word: delivery.Ack}}); r[0].Outcome != delivery.Stale {
		t.Errorf("what was lent before the seek is settled as %s", r[0].Outcome)
	}
	c.Put(events(topic, "a2", "b2")...)
	for _, want := range []string{"a2", "b2"} {
		l := i.next()
		if string(l.Record.Value) != want {
			t.Errorf("%s came, want %s", l.Record.Value, want)
		}
		i.ack(l)
	}
	// Nor does it come back with the next owner.
	i.stop()
	again := start(t, c, o, seek(1, topic, 4))
	c.Put(events(topic, "a3")...)
	if l := again.next(); string(l.Record.Value) != "a3" {
		t.Errorf("%s came", l.Record.Value)
	}
}

func TestAPausedSubscriptionDeliversNothingAndTakesAcks(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "paused", topic)
	i := borrow(t, c, o)
	c.Put(events(topic, "a0")...)
	l := i.next()
	i.queues.Desire(o.Name, delivery.Desired{Paused: true})
	c.Put(events(topic, "b0", "b1")...)
	i.ack(l)
	eventually(t, "what is there has been read", func() bool { return i.queue.Backlog() == 2 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if leases, _, _ := i.a.Next(ctx); len(leases) > 0 {
		t.Errorf("%s was delivered", leases[0].Record.Value)
	}
	i.queues.Desire(o.Name, delivery.Desired{})
	for n := range 2 {
		l := i.next()
		if string(l.Record.Value) != fmt.Sprintf("b%d", n) {
			t.Errorf("%s came", l.Record.Value)
		}
		i.ack(l)
	}
}
