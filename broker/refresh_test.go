package broker_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
)

// A refresh leaves a group as it found it: positions, metadata, no members.
func TestRefreshLeavesAGroupAsItWas(t *testing.T) {
	cluster := brokertest.New(t)
	orders, bills := cluster.Topic("orders", 3), cluster.Topic("bills", 1)
	client, group := cluster.Client(), cluster.Name("mail")
	o := broker.ConsumerOptions{Group: group, Topics: []string{orders, bills}}
	if refreshed, err := client.Refresh(t.Context(), o); refreshed || err != nil {
		t.Errorf("a group that never was: %t, %v", refreshed, err)
	}
	m := join(t, client, o)
	what := map[broker.TopicPartition]broker.Committing{}
	for range 4 {
		a := <-m.assigned
		what[a.TopicPartition] = broker.Committing{Offset: int64(a.Partition) + 5, Metadata: fmt.Sprintf("of %s", a.TopicPartition)}
	}
	if refused, err := m.Commit(t.Context(), what); len(refused) > 0 || err != nil {
		t.Fatal(refused, err)
	}
	if refreshed, err := client.Refresh(t.Context(), o); refreshed || err != nil {
		t.Errorf("a group that has a member: %t, %v", refreshed, err)
	}
	select {
	case tp := <-m.gone:
		t.Errorf("its member lost %s", tp)
	default:
	}
	m.stop()
	if err := client.DeleteTopics(t.Context(), bills); err != nil {
		t.Fatal(err)
	}
	delete(what, broker.TopicPartition{Topic: bills})
	eventually(t, "the refresh", func() bool {
		refreshed, err := client.Refresh(t.Context(), o)
		if err != nil {
			t.Log(err) // the brokers may not all know yet that the topic is gone
		}
		return refreshed
	})
	for tp, want := range what {
		if at, metadata := cluster.Committed(group, tp.Topic, tp.Partition); at != want.Offset || metadata != want.Metadata {
			t.Errorf("%s stands at %d with %q, want %v", tp, at, metadata, want)
		}
	}
	if g, err := client.Group(t.Context(), group); err != nil || len(g.Members) > 0 {
		t.Errorf("the group has %v, %v", g.Members, err)
	}
}

// Kafka forgets the position of a group without members after
// offsets.retention.minutes; not that of one that is refreshed. It takes Kafka at
// least a minute, so a broker set to that is needed: POSTERN_TEST_EXPIRY names one.
func TestRefreshedPositionsDoNotExpire(t *testing.T) {
	bootstrap := os.Getenv("POSTERN_TEST_EXPIRY")
	if bootstrap == "" {
		t.Skip("it needs a broker with offsets.retention.minutes=1; tools/test-kafka starts one")
	}
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			cluster := brokertest.At(t, bootstrap)
			options := cluster.Options()
			options.GroupProtocol = protocol
			client, err := broker.New(options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			topic := cluster.Topic("orders", 1)
			retention := client.OffsetsRetention(t.Context())
			if retention != time.Minute {
				t.Fatalf("the broker's retention is %s", retention)
			}
			kept := broker.ConsumerOptions{Group: cluster.Name("kept"), Topics: []string{topic}}
			lost := broker.ConsumerOptions{Group: cluster.Name("lost"), Topics: []string{topic}}
			for _, o := range []broker.ConsumerOptions{kept, lost} {
				m := join(t, client, o)
				a := <-m.assigned
				if refused, err := m.Commit(t.Context(), map[broker.TopicPartition]broker.Committing{a.TopicPartition: {Offset: 0, Metadata: "mine"}}); len(refused) > 0 || err != nil {
					t.Fatal(refused, err)
				}
				m.stop()
			}
			ticker := time.NewTicker(retention / 4)
			defer ticker.Stop()
			for end := time.Now().Add(4 * retention); ; {
				if _, err := client.Refresh(t.Context(), kept); err != nil {
					t.Fatal(err)
				}
				if at, _ := cluster.Committed(lost.Group, topic, 0); at < 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the position that nobody refreshed is still there: this test shows nothing")
				}
				<-ticker.C
			}
			if at, metadata := cluster.Committed(kept.Group, topic, 0); at != 0 || metadata != "mine" {
				t.Errorf("the refreshed position is %d with %q", at, metadata)
			}
		})
	}
}
