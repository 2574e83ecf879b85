package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// members gives the partitions of each member of a group.
func members(t *testing.T, r *running, group string) [][]broker.TopicPartition {
	t.Helper()
	g, err := r.gateway.kafka.Group(t.Context(), group)
	if err != nil {
		return nil // just being balanced
	}
	var all [][]broker.TopicPartition
	for _, m := range g.Members {
		slices.SortFunc(m.Partitions, func(a, b broker.TopicPartition) int { return int(a.Partition - b.Partition) })
		all = append(all, m.Partitions)
	}
	return all
}

func shared(all [][]broker.TopicPartition, members, each int) bool {
	if len(all) != members {
		return false
	}
	for _, m := range all {
		if len(m) != each {
			return false
		}
	}
	return true
}

func TestGatewaysOfEitherGroupProtocolShareASubscriptionAndHandItOver(t *testing.T) {
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) {
			cluster := brokertest.New(t)
			topic, name := cluster.Topic("orders", 4), cluster.Name("mail")
			set := func(c *config.Config) { c.Kafka.GroupProtocol = protocol }
			one, two := start(t, cluster, set), start(t, cluster, set)
			described, err := cluster.Admin().DescribeConsumerGroups(t.Context(), name)
			if err == nil && described[name].Err == nil && described[name].State != "" {
				t.Fatalf("the group is there already: %v", described)
			}
			a := one.subscribe(inline(name, topic))
			eventually(t, "the first one's having all partitions", func() bool { return shared(members(t, one, name), 1, 4) })
			b := two.subscribe(inline(name, topic))
			eventually(t, "each one's having half", func() bool { return shared(members(t, one, name), 2, 2) })
			described, err = cluster.Admin().DescribeConsumerGroups(t.Context(), name)
			if is := err == nil && described[name].Err == nil && len(described[name].Members) == 2; is != (protocol == "consumer") {
				t.Errorf("that the group is one of KIP-848 is %t: %v %v", is, described, err)
			}
			seen := map[string]int{}
			publish := func(round int) {
				for p := range int32(4) {
					data := fmt.Sprintf("%d-%d", round, p)
					if _, err := one.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Partition: &p, Data: []byte(data)}}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			take := func(s *stream, n int) {
				t.Helper()
				for range n {
					d := s.next()
					seen[string(d.Event.Data)]++
					s.ack(d)
				}
			}
			publish(1)
			take(a, 2)
			take(b, 2)
			b.close()
			two.stop()
			eventually(t, "the first one's having all again", func() bool { return shared(members(t, one, name), 1, 4) })
			publish(2)
			take(a, 4)
			for data, n := range seen {
				if n != 1 {
					t.Errorf("%s was delivered %d times", data, n)
				}
			}
			if len(seen) != 8 {
				t.Errorf("%d events were delivered", len(seen))
			}
		})
	}
}

func TestStaticMemberKeepsItsPartitionsOverARestartAndLeavesWhenNobodyReads(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("orders", 4), cluster.Name("mail")
	as := func(instance string) func(*config.Config) {
		return func(c *config.Config) {
			c.Kafka.StaticMembership = instance
			c.Kafka.SessionTimeout = 45 * time.Second // what takes less is no expiry
		}
	}
	one, two := start(t, cluster, as("gateway-0")), start(t, cluster, as("gateway-1"))
	a, b := one.subscribe(inline(name, topic)), two.subscribe(inline(name, topic))
	eventually(t, "each one's having half", func() bool { return shared(members(t, two, name), 2, 2) })
	before := two.gateway.queues.Running(name).Positions()

	a.close()
	one.stop()
	if got := len(members(t, two, name)); got != 2 {
		t.Errorf("while one restarts, the group has %d members", got)
	}
	one = start(t, cluster, as("gateway-0"))
	a = one.subscribe(inline(name, topic))
	for p := range int32(4) {
		if _, err := one.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Partition: &p, Data: []byte("x")}}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		a.ack(a.next())
		b.ack(b.next())
	}
	for p := range before[topic] {
		if _, still := two.gateway.queues.Running(name).Positions()[topic][p]; !still {
			t.Errorf("the other gateway lost partition %d to a restart", p)
		}
	}

	a.close() // its gateway stays: after the linger it leaves for good
	eventually(t, "the other one's having all", func() bool { return shared(members(t, two, name), 1, 4) })
}
