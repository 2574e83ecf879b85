package broker_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestAtomicRequestsOfATopicLeaveOthersHalfOfTheBuffer(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic, other := c.Topic("orders", 1), c.Topic("other", 1)
	o := c.Options()
	o.PublishBuffer = 1 << 20
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := c.Producer(client)
	produce(t, p, broker.AllReplicas, record(other, "", "warm"))
	release := make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.InitProducerID), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	refused := make(chan error, 100)
	var kept sync.WaitGroup
	for range 20 {
		kept.Add(1)
		p.ProduceAtomic(t.Context(), []*event.Record{record(topic, "", string(make([]byte, 64<<10)))}, "", func(_ int, _ event.Position, err error) {
			if fault.Is(err, fault.BufferFull) {
				refused <- err
			}
			kept.Done()
		})
	}
	if n := len(refused); n < 12 {
		t.Errorf("%d of 20 requests were refused: one topic has more than its half", n)
	}
	if a := produce(t, p, broker.AllReplicas, record(other, "", string(make([]byte, 64<<10))))[0]; a.err != nil {
		t.Errorf("another topic: %v", a.err)
	}
	close(release)
	kept.Wait()
	if records, bytes := p.Buffered(); records != 0 || bytes != 0 {
		t.Errorf("%d records, %d bytes still hold room", records, bytes)
	}
}

func TestATopicHasOneHalfHoweverItIsWritten(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 1)
	o := c.Options()
	o.PublishBuffer = 1 << 20
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := c.Producer(client)
	release := make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) { // no line has met the topic
		c.Fake.KeepControl()
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	var kept sync.WaitGroup
	refused := make(chan error, 100)
	for i := range 16 {
		kept.Add(1)
		p.ProduceAll([]*event.Record{record(topic, "", string(make([]byte, 64<<10)))}, broker.How{Durability: broker.Durability(i % 2)}, func(_ int, _ event.Position, err error) {
			if err != nil {
				refused <- err
			}
			kept.Done()
		})
	}
	if n := len(refused); n < 8 {
		t.Errorf("%d of 16 were refused: the topic has more than its half", n)
	} else {
		expectReason(t, <-refused, fault.BufferFull, "half")
	}
	close(release)
	kept.Wait()
}

func TestNamesOfTopicsThatDoNotExistAreForgotten(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	for i := range 5 {
		expectReason(t, produce(t, p, broker.AllReplicas, record(fmt.Sprint("nowhere-", i), "", "x"))[0].err, fault.UnknownTopic)
	}
	expectReason(t, atomically(t, t.Context(), p, record("nowhere-atomic", "", "x"))[0].err, fault.UnknownTopic)
	asked := make(chan int, 100)
	c.Fake.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		n := 0
		for _, t := range r.(*kmsg.MetadataRequest).Topics {
			if t.Topic != nil && strings.HasPrefix(*t.Topic, "nowhere-") {
				n++
			}
		}
		asked <- n
		return nil, nil, false
	})
	produce(t, p, broker.AllReplicas, record(c.Topic("new", 1), "", "x"), record(topic, "", "x"))
	atomically(t, t.Context(), p, record(c.Topic("new2", 1), "", "x"))
	for n := len(asked); n > 0; n-- {
		if names := <-asked; names > 1 { // the last may not be gone yet
			t.Errorf("Kafka is asked for %d topics that do not exist", names)
		}
	}
}
