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

func TestATopicWithoutReplicasDoesNotStopOtherTopicsForGood(t *testing.T) {
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
		c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, TopicID: c.Fake.TopicInfo(bad).TopicID, Err: kerr.NotEnoughReplicas, Count: -1})
		given := make(chan answered, 10)
		for range 10 {
			r := record(bad, "", "")
			r.Value = make([]byte, 100_000)
			p.Produce(r, broker.AllReplicas, func(at event.Position, err error) { given <- answered{at, err} })
		}
		other := record(good, "", "")
		other.Value = make([]byte, 100_000)
		expectReason(t, produce(t, p, broker.AllReplicas, other)[0].err, fault.BufferFull)
		time.Sleep(90 * time.Second)
		for range 10 {
			expectReason(t, (<-given).err, fault.OutcomeUnknown, bad)
		}
		if a := produce(t, p, broker.AllReplicas, other)[0]; a.err != nil {
			t.Error(a.err)
		}
		p.Close()
	})
}
