//go:build synctests

package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestATopicWithoutReplicasDoesNotStopOtherTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		bad, good := c.Topic("bad", 1), c.Topic("good", 1)
		o := c.Options()
		o.PublishBuffer = 1 << 20
		client, err := broker.New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		p := c.Producer(client)
		if a := produce(t, p, broker.AllReplicas, record(bad, "", ""))[0]; a.err != nil {
			t.Fatal(a.err)
		}
		c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, TopicID: c.Fake.TopicInfo(bad).TopicID, Err: kerr.NotEnoughReplicas, Count: -1})
		large := func(topic string) *event.Record {
			r := record(topic, "", "")
			r.Value = make([]byte, 100_000)
			return r
		}
		const half = 5 // of these fit into the topic's half of the buffer
		given := make(chan answered, half)
		for range half {
			p.Produce(large(bad), broker.AllReplicas, func(at event.Position, err error) { given <- answered{at, err} })
		}
		expectReason(t, produce(t, p, broker.AllReplicas, large(bad))[0].err, fault.BufferFull)
		if a := produce(t, p, broker.AllReplicas, large(good))[0]; a.err != nil {
			t.Errorf("while the other topic is stuck: %v", a.err)
		}
		time.Sleep(90 * time.Second)
		for range half {
			expectReason(t, (<-given).err, fault.BrokerUnavailable, bad, "nothing is stored")
		}
		if n := len(c.Read(bad)); n != 1 {
			t.Errorf("%d are stored, want the first one", n)
		}
		if _, bytes := p.Buffered(); bytes != 0 {
			t.Errorf("%d bytes are still held for a topic that was given up", bytes)
		}
		p.Close()
	})
}

// A caller who waits longer than a minute gets what it waits for.
func TestALongWaitIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic := c.Topic("orders", 1)
		p := c.Producer(c.Client())
		produce(t, p, broker.AllReplicas, record(topic, "", "warm"))
		stuck := c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, TopicID: c.Fake.TopicInfo(topic).TopicID, Err: kerr.NotEnoughReplicas, Count: -1})
		send := func(wait time.Duration) chan error {
			answer := make(chan error, 1)
			p.ProduceAll([]*event.Record{record(topic, "k", "x")}, broker.How{Wait: wait}, func(_ int, _ event.Position, err error) { answer <- err })
			return answer
		}
		long := send(200 * time.Second)
		time.Sleep(3 * time.Minute)
		stuck.Remove()
		if err := <-long; err != nil {
			t.Errorf("the replicas were back after three minutes: %v", err)
		}
		p.Close()
	})
}
