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
)

// A running member finds a new partition by itself, within the client's
// metadata age of 5 minutes, and skips nothing of it.
func TestARunningMemberReadsANewPartitionFromItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic := c.Topic("orders", 1)
		m := join(t, c.Client(), broker.ConsumerOptions{Group: c.Name("mail"), Topics: []string{topic}, Start: broker.Start{Latest: true}})
		take(t, m.assigned, 1, "partitions")
		grow(t, c, topic, 2)
		c.Put(at(topic, 1, "before anyone noticed"))
		began := time.Now()
		time.Sleep(6 * time.Minute)
		if a := take(t, m.assigned, 1, "partitions")[0]; a.Partition != 1 || a.Offset != 0 {
			t.Errorf("assigned %+v", a)
		}
		expectValues(t, m.taken(1), "before anyone noticed")
		if waited := time.Since(began); waited > 7*time.Minute {
			t.Errorf("it took %s", waited)
		}
		m.stop()
	})
}

// What Kafka refuses for a while is stored once it takes it, exactly once.
func TestAnEventOutlastsHalfAMinuteWithoutReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic := c.Topic("orders", 1)
		p := c.Producer(c.Client())
		fault := c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
		answers := make(chan answered, 1)
		p.Produce(record(topic, "", "x"), broker.AllReplicas, func(at event.Position, err error) { answers <- answered{at, err} })
		time.Sleep(30 * time.Second)
		select {
		case a := <-answers:
			t.Fatalf("answered %v", a)
		default:
		}
		fault.Remove()
		if a := <-answers; a.err != nil {
			t.Error(a.err)
		}
		expectValues(t, c.Read(topic), "x")
		p.Close()
	})
}

// A topic that appears later and matches is read from its start; the gateway's
// own, and those that are left out, are not.
func TestATopicCreatedLaterThatMatchesIsReadFromItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		first := c.Topic("orders.a", 1)
		m := join(t, c.Client(), broker.ConsumerOptions{
			Group: c.Name("mail"), Pattern: "orders.*", Start: broker.Start{Latest: true}, Except: func(topic string) bool { return topic == "orders.dead" },
		})
		take(t, m.assigned, 1, "partitions")
		later := c.Topic("orders.b", 1)
		c.Topic("orders.dead", 1)
		c.Topic("_orders.own", 1)
		c.Topic("other", 1)
		c.Put(at(later, 0, "before anyone noticed"), at("orders.dead", 0, "x"), at("other", 0, "x"), at(first, 0, "y"))
		time.Sleep(2 * time.Minute)
		if a := take(t, m.assigned, 1, "partitions")[0]; a.Topic != later || a.Offset != 0 {
			t.Errorf("assigned %+v", a)
		}
		expectValues(t, m.taken(2), "y", "before anyone noticed")
		m.stop()
	})
}
