//go:build synctests

package broker_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
)

// An idle member asks seldom, and whatever happens to it is not held up by a fetch that waits.
func TestAnIdleMemberAsksSeldomAndMissesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic := c.Topic("orders", 2)
		var fetches atomic.Int32
		c.Fake.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			fetches.Add(1)
			return nil, nil, false
		})
		m := join(t, c.Client(), broker.ConsumerOptions{Group: c.Name("mail"), Topics: []string{topic}})
		take(t, m.assigned, 2, "partitions")
		idle := func() {
			t.Helper()
			time.Sleep(20 * time.Second)
			before := fetches.Load()
			time.Sleep(time.Minute)
			if n := fetches.Load() - before; n > 36 { // three brokers, each 5 s
				t.Errorf("%d fetches in an idle minute", n)
			}
		}
		soon := func(what string, values ...string) {
			t.Helper()
			began := time.Now()
			expectValues(t, m.taken(len(values)), values...)
			if waited := time.Since(began); waited > time.Second {
				t.Errorf("%s: it took %s", what, waited)
			}
		}
		one, other := broker.TopicPartition{Topic: topic}, broker.TopicPartition{Topic: topic, Partition: 1}
		idle()
		c.Put(at(topic, 0, "a"))
		soon("an event after a pause", "a")
		idle()
		m.Seek(map[broker.TopicPartition]int64{one: 0})
		soon("a seek", "a")
		idle()
		m.Pause([]broker.TopicPartition{one})
		c.Put(at(topic, 0, "b"))
		time.Sleep(time.Minute)
		m.Resume([]broker.TopicPartition{one})
		soon("a partition that goes on", "b")
		idle()
		m.Pause([]broker.TopicPartition{one, other})
		m.Resume([]broker.TopicPartition{one, other})
		c.Put(at(topic, 1, "c"))
		soon("partitions that go on at once", "c")
		m.stop()
	})
}
