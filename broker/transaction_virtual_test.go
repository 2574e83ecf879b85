//go:build synctests

package broker_test

import (
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestAtomicRequestsFailAloneWhenATopicIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic, stuck := c.Topic("orders", 1), c.Topic("stuck", 1)
		p := c.Producer(c.Client())
		if a := atomically(t, t.Context(), p, record(topic, "", "warm"))[0]; a.err != nil {
			t.Fatal(a.err)
		}
		c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, TopicID: c.Fake.TopicInfo(stuck).TopicID, Err: kerr.NotEnoughReplicas, Count: -1})
		release := make(chan struct{})
		c.Fake.ControlKey(int16(kmsg.AddPartitionsToTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.SleepControl(func() { <-release }) // so that the others share the next transaction
			return nil, nil, false
		})
		answers := map[string]chan error{}
		send := func(name string, records ...*event.Record) {
			to := make(chan error, len(records))
			answers[name] = to
			p.ProduceAtomic(t.Context(), records, "", func(_ int, _ event.Position, err error) { to <- err })
		}
		send("first", record(topic, "", "first"))
		send("bad", record(topic, "", "bad"), record(stuck, "", "bad"))
		send("good", record(topic, "", "good"))
		close(release)
		for _, name := range []string{"first", "good"} {
			if err := <-answers[name]; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for range 2 {
			if err := <-answers["bad"]; !fault.Is(err, fault.BrokerUnavailable) && !fault.Is(err, fault.AtomicAborted) {
				t.Errorf("bad: %v", err)
			}
		}
		for _, r := range c.Read(topic) {
			if string(r.Value) == "bad" {
				t.Error("half of the failed request is seen")
			}
		}
		p.Close()
	})
}
