package broker_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// routes are the ways on which events are written.
func routes(t *testing.T, c *brokertest.Cluster) map[string]func(...*event.Record) []answered {
	t.Helper()
	client := c.Client()
	p, mover := c.Producer(client), client.NewMover()
	t.Cleanup(mover.Close)
	return map[string]func(...*event.Record) []answered{
		"all replicas": func(records ...*event.Record) []answered { return produce(t, p, broker.AllReplicas, records...) },
		"leader":       func(records ...*event.Record) []answered { return produce(t, p, broker.Leader, records...) },
		"atomic":       func(records ...*event.Record) []answered { return atomically(t, t.Context(), p, records...) },
		"move": func(records ...*event.Record) (all []answered) {
			at, errs := mover.Move(t.Context(), records)
			for i := range at {
				all = append(all, answered{at[i], errs[i]})
			}
			return all
		},
	}
}

// One event at a time, so that batches are alike: a client that counts from zero
// again is taken for one that repeats itself, and Kafka drops what it says it has.
func TestWhatIsPublishedAfterABrokerForgotATopicForAMomentIsStored(t *testing.T) {
	brokertest.NeedsFake(t)
	ways := []string{"all replicas", "leader", "atomic", "move"}
	for _, forgotten := range ways {
		t.Run(forgotten, func(t *testing.T) {
			c := brokertest.New(t)
			topic, writes := c.Topic("orders", 1), routes(t, c)
			stored := map[int64]string{}
			put := func(way, value string) error {
				a := writes[way](record(topic, "k", value))[0]
				if a.err != nil {
					return a.err
				}
				if stored[a.at.Offset] != "" {
					t.Errorf("%s is said to be at %s, where %s is", value, a.at, stored[a.at.Offset])
				}
				stored[a.at.Offset] = value
				return nil
			}
			for _, way := range ways {
				for i := range 3 {
					if err := put(way, fmt.Sprint(way, " before ", i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var away atomic.Bool
			away.Store(true)
			c.Fake.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
				if !away.Load() {
					return nil, nil, false
				}
				c.Fake.KeepControl()
				request := r.(*kmsg.ProduceRequest)
				answer := request.ResponseKind().(*kmsg.ProduceResponse)
				for _, t := range request.Topics {
					of := kmsg.NewProduceResponseTopic()
					of.Topic, of.TopicID = t.Topic, t.TopicID
					for _, p := range t.Partitions {
						is := kmsg.NewProduceResponseTopicPartition()
						is.Partition, is.ErrorCode = p.Partition, kerr.UnknownTopicOrPartition.Code
						of.Partitions = append(of.Partitions, is)
					}
					answer.Topics = append(answer.Topics, of)
				}
				return answer, nil, true
			})
			times := 0 // what forgets goes on beside
			eventually(t, "the topic is said not to exist", func() bool {
				if fault.Is(put(forgotten, "never"), fault.UnknownTopic) {
					times++
				}
				return times == 10
			})
			away.Store(false)
			for i := range 10 {
				for _, way := range ways {
					eventually(t, "the topic is known again", func() bool { return put(way, fmt.Sprint(way, " after ", i)) == nil })
				}
			}
			eventually(t, "everything is readable", func() bool { return len(c.Read(topic)) >= len(stored) })
			for _, r := range c.Read(topic) {
				if stored[r.Offset] == string(r.Value) {
					delete(stored, r.Offset)
				}
			}
			if len(stored) > 0 {
				t.Errorf("not in the log are %v", stored)
			}
		})
	}
}

func TestATopicThatWasDeletedAndMadeAgainIsWrittenTo(t *testing.T) {
	c := brokertest.New(t)
	for name, write := range routes(t, c) {
		t.Run(name, func(t *testing.T) {
			topic := c.Topic("orders-"+name[:3], 1)
			for i := range 3 {
				if a := write(record(topic, "k", fmt.Sprint("old-", i)))[0]; a.err != nil {
					t.Fatal(a.err)
				}
			}
			if _, err := c.Admin().DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the topic is gone", func() bool {
				a := write(record(topic, "k", "gone"))[0]
				return a.err != nil
			})
			c.Topic("orders-"+name[:3], 1)
			offset := int64(-1)
			eventually(t, "the new topic takes events", func() bool {
				a := write(record(topic, "k", "new"))[0]
				offset = a.at.Offset
				return a.err == nil
			})
			eventually(t, "it is readable", func() bool {
				for _, r := range c.Read(topic) {
					if r.Offset == offset && string(r.Value) == "new" {
						return true
					}
				}
				return false
			})
		})
	}
}

func TestWhoReadsATopicThatIsDeletedAndMadeAgainIsTold(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	c.Put(at(topic, 0, "old"))
	reader, err := c.Client().NewReader(topic, map[int32]int64{0: 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	var came []string
	poll := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return reader.Poll(ctx, 10, func(r *event.Record) { came = append(came, string(r.Value)) })
	}
	eventually(t, "the old event", func() bool { return poll() == nil && len(came) == 1 })
	if _, err := c.Admin().DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is gone", func() bool {
		topics, err := c.Admin().ListTopics(t.Context(), topic)
		return err == nil && topics[topic].Err != nil
	})
	c.Topic("orders", 1)
	c.Put(at(topic, 0, "new"))
	eventually(t, "it is told", func() bool { err = poll(); return err != nil && strings.Contains(err.Error(), "made again") })
	expectReason(t, err, fault.UnknownTopic, "begin anew")
	if len(came) != 1 {
		t.Errorf("what came is %v: events of another topic", came)
	}
}
