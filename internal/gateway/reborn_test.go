package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// What somebody deletes and makes again is another topic of the same name: it is
// written to and read from its start, without a restart.
func TestATopicThatWasDeletedAndMadeAgainIsWrittenAndReadByAllGateways(t *testing.T) {
	for _, kind := range []string{"classic", "consumer", "share group"} {
		t.Run(kind, func(t *testing.T) {
			cluster := brokertest.New(t)
			topic, name := cluster.Topic("orders", 4), cluster.Name("mail")
			set := func(c *config.Config) {
				if kind == "consumer" {
					c.Kafka.GroupProtocol = kind
				}
			}
			one, two := start(t, cluster, set), start(t, cluster, set)
			order := posternv1.Order_ORDER_KEY
			if kind == "share group" {
				order = posternv1.Order_ORDER_QUEUE
			}
			one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: order, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}}})
			two.awaitKnown(name)
			a, b := one.subscribe(&posternv1.Open{Subscription: name}), two.subscribe(&posternv1.Open{Subscription: name})
			if kind != "share group" {
				eventually(t, "each one's having half", func() bool { return shared(members(t, one, name), 2, 2) })
			}
			round := func(n int) {
				t.Helper()
				want := map[string]bool{}
				for p := range int32(4) {
					data := fmt.Sprintf("%d-%d", n, p)
					want[data] = true
					eventually(t, "the publishing of "+data, func() bool {
						r, err := one.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Partition: &p, Data: []byte(data)}}})
						return err == nil && r.Results[0].GetPosition() != nil
					})
				}
				limit := time.After(patience)
				for len(want) > 0 {
					s := a
					var d *posternv1.Delivery
					select {
					case d = <-a.events:
					case d = <-b.events:
						s = b
					case <-limit:
						t.Fatalf("not delivered: %v", want)
					}
					if !want[string(d.Event.Data)] {
						t.Errorf("%s came unasked for", d.Event.Data)
					}
					delete(want, string(d.Event.Data))
					s.ack(d)
				}
			}
			round(1)
			if _, err := cluster.Admin().DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the topic's being gone", func() bool {
				topics, err := cluster.Admin().ListTopics(t.Context(), topic)
				return err == nil && topics[topic].Err != nil
			})
			cluster.Topic("orders", 4)
			round(2)
			round(3)
		})
	}
}
