package delivery_test

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker/brokertest"
)

func TestATopicThatWasDeletedAndMadeAgainIsReadFromItsStart(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "mail", topic)
	c.Put(events(topic, "a0", "b0", "a1")...)
	i := borrow(t, c, o)
	for range 3 {
		i.ack(i.next())
	}
	if _, err := c.Admin().DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is gone", func() bool {
		topics, err := c.Admin().ListTopics(t.Context(), topic)
		return err == nil && topics[topic].Err != nil
	})
	c.Topic("orders", 1)
	c.Put(events(topic, "new0", "new1")...)
	for _, want := range []string{"new0", "new1"} {
		l := i.next()
		if string(l.Record.Value) != want {
			t.Errorf("%s came, want %s", l.Record.Value, want)
		}
		i.ack(l)
	}
}

func TestAnEventOfATopicMadeAgainIsNotTakenForOneThatWasParked(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "parked", topic)
	c.Put(events(topic, "a0", "b0")...)
	i := borrow(t, c, o)
	stuck, other := i.next(), i.next()
	i.nack(stuck, 10*time.Second, "later") // a is parked
	i.ack(other)
	eventually(t, "the position is past the stuck key", func() bool { return committed(c, o, topic) == 2 })
	if _, err := c.Admin().DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is gone", func() bool {
		topics, err := c.Admin().ListTopics(t.Context(), topic)
		return err == nil && topics[topic].Err != nil
	})
	c.Topic("orders", 1)
	c.Put(events(topic, "a-new", "b-new")...) // where a0 and b0 were
	came := map[string]int{}
	order := ""
	for range 3 {
		l := i.next()
		came[string(l.Record.Value)]++
		order += string(l.Record.Value) + " "
		i.ack(l)
	}
	if came["a0"] != 1 || came["a-new"] != 1 || came["b-new"] != 1 || strings.Index(order, "a0") > strings.Index(order, "a-new") {
		t.Errorf("delivered were %s", order)
	}
}
