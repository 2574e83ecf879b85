package delivery_test

import (
	"errors"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// expectCause waits until the instance names the cause.
func (i *instance) expectCause(o delivery.Options, want delivery.CauseKind) delivery.Cause {
	i.t.Helper()
	var c delivery.Cause
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(20 * time.Second)
	for {
		r, err := i.queues.Report(i.t.Context(), o)
		if err != nil {
			i.t.Fatal(err)
		}
		if c = r.Cause; c.Kind == want {
			return c
		}
		select {
		case <-ticker.C:
		case <-limit:
			i.t.Fatalf("the cause is %d (%s), want %d", c.Kind, c.Summary, want)
		}
	}
}

type onlyEven struct{}

func (onlyEven) Match(r *event.Record, _ []byte) (bool, error) {
	if len(r.Value) == 0 {
		return false, errors.New("there is no data")
	}
	return r.Value[len(r.Value)-1]%2 == 0, nil
}
func (onlyEven) String() string { return "even" }

func TestWhyASubscriptionLagsIsNamedAsItHappens(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "why", topic)
	o.Retry.HoldLimit = time.Minute
	i := borrow(t, c, o)
	i.expectCause(o, delivery.CauseNone)
	c.Put(events(topic, "a0", "a1", "b0")...)
	l, other := i.next(), i.next()
	i.expectCause(o, delivery.CauseHandlerSlow)
	i.ack(other)
	i.nack(l, 30*time.Second, "no stock")
	why := i.expectCause(o, delivery.CauseBlockedKey)
	if b := why.Blocked; string(b.Key) != "a" || b.Position.Offset != 0 || b.Attempts != 1 || b.Error != "no stock" || b.Waiting != 1 {
		t.Errorf("blocked by %+v", b)
	}
	i.a.SetWindow(delivery.Window{Messages: 1})
	c.Put(events(topic, "c0", "c1", "d0")...)
	i.next()
	i.expectCause(o, delivery.CauseWindowFull)
	i.queues.Desire(o.Name, delivery.Desired{Paused: true})
	i.expectCause(o, delivery.CausePaused)
	i.queues.Desire(o.Name, delivery.Desired{})
	i.a.Detach(0)
	i.expectCause(o, delivery.CauseNoConsumer)
}

func TestEventsThatTheFilterDoesNotPassMoveThePositionAndThoseItFailsOnAreDeadLettered(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "filter", topic)
	o.Filter = onlyEven{}
	all := events(topic, "a1", "a2", "a3")
	all = append(all, &event.Record{Topic: topic, Key: []byte("a"), Value: []byte{}}, &event.Record{Topic: topic, Key: []byte("a"), Value: []byte("a4")})
	c.Put(all...)
	i := borrow(t, c, o)
	for _, want := range []string{"a2", "a4"} {
		l := i.next()
		if string(l.Record.Value) != want {
			t.Errorf("%s came, want %s", l.Record.Value, want)
		}
		i.ack(l)
	}
	eventually(t, "all is committed", func() bool { return committed(c, o, topic) == 5 })
	dead := c.Read(o.DeadLetterTopic)
	if len(dead) != 1 {
		t.Fatalf("%d dead letters", len(dead))
	}
	for name, want := range map[string]string{event.DeadLetterReason: "filter_error", event.DeadLetterDetail: "there is no data", event.DeadLetterAttempts: "0"} {
		if v, _ := dead[0].Header(name); string(v) != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
}

func TestEventsThatRetentionRemovedAreReportedAndTheRestIsDelivered(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "gone", topic)
	c.Put(events(topic, "a0")...)
	i := borrow(t, c, o)
	i.ack(i.next())
	i.stop()
	c.Put(events(topic, "b0", "b1", "b2", "b3")...)
	if err := c.Client().DeleteBefore(t.Context(), map[broker.TopicPartition]int64{{Topic: topic}: 3}); err != nil {
		t.Fatal(err)
	}
	again := borrow(t, c, o)
	for _, want := range []string{"b2", "b3"} {
		l := again.next()
		if string(l.Record.Value) != want {
			t.Errorf("%s came, want %s", l.Record.Value, want)
		}
		again.ack(l)
	}
	why := again.expectCause(o, delivery.CauseRetentionPassed)
	if want := "It does not lag, but retention removed offsets 1 to 2 of " + topic + "[0] before they were delivered."; why.Summary != want {
		t.Errorf("told as %s", why.Summary)
	}
}
