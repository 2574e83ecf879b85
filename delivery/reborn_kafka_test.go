package delivery_test

import (
	"testing"

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
