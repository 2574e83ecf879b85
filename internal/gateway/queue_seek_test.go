package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// ackAll acknowledges n events that the streams bring, and tells how often each came.
func ackAll(t *testing.T, n int, one, two *stream) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for got := 0; got < n; got++ {
		select {
		case d := <-one.events:
			seen[string(d.Event.Data)]++
			one.ack(d)
		case d := <-two.events:
			seen[string(d.Event.Data)]++
			two.ack(d)
		case <-time.After(patience):
			t.Fatalf("%d of %d events came, then none: %s", got, n, one.status())
		}
	}
	return seen
}

func lag(t *testing.T, g *running, name string) int64 {
	t.Helper()
	st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return st.Lag
}

func TestSoughtQueueBringsEverythingOnceMoreAtAllGateways(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-sought", 3), cluster.Name("share-sought-sub")
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE})
	put(cluster, topic, 4, "anna", "bert", "cleo")
	open := &posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT}
	a := one.subscribe(open)
	two.awaitKnown(name)
	b := two.subscribe(open)
	ackAll(t, 12, a, b)
	eventually(t, "no lag", func() bool { return lag(t, one, name) == 0 })
	put(cluster, topic, 1, "held")
	var held *posternv1.Delivery
	var holder *stream
	select {
	case held = <-a.events:
		holder = a
	case held = <-b.events:
		holder = b
	case <-time.After(patience):
		t.Fatal("no delivery came")
	}
	seek := &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}, DryRun: true}
	if dry, err := one.subscriptions().SeekSubscription(t.Context(), seek); err != nil || len(dry.Partitions) != 3 || dry.Subscription != nil {
		t.Fatalf("a dry run: %v %v", dry, err)
	}
	seek.DryRun = false
	if done, err := one.subscriptions().SeekSubscription(t.Context(), seek); err != nil || done.Subscription.SeekEpoch == 0 {
		t.Fatalf("%v %v", done, err)
	}
	select {
	case r := <-holder.revoked:
		if len(r.DeliveryIds) != 1 || r.DeliveryIds[0] != held.DeliveryId || !strings.Contains(r.Reason, "sought") {
			t.Errorf("revoked: %v", r)
		}
	case <-time.After(patience):
		t.Fatal("what was at work is not revoked")
	}
	seen := ackAll(t, 13, a, b)
	if len(seen) != 13 {
		t.Errorf("after the seek came %v", seen)
	}
	eventually(t, "no lag", func() bool { return lag(t, one, name) == 0 })

	// It was sought once: neither a gateway that comes later nor those that are there do it again.
	three := start(t, cluster, nil)
	three.awaitKnown(name)
	a.close()
	b.close()
	c := three.subscribe(open)
	put(cluster, topic, 1, "new")
	if d := c.next(); string(d.Event.Data) != "new0" {
		t.Errorf("%s came", d.Event.Data)
	}
}

func TestQueueThatWasSoughtBeforeAnybodyCameBeginsThere(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-sought-first", 1), cluster.Name("share-sought-first-sub")
	g := start(t, cluster, nil)
	put(cluster, topic, 3, "anna")
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE})
	to := &posternv1.SeekPositions{Positions: []*posternv1.Position{{Topic: topic, Partition: 0, Offset: 2}}}
	if _, err := g.subscriptions().SeekSubscription(t.Context(), &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Positions{Positions: to}}); err != nil {
		t.Fatal(err)
	}
	s := g.subscribe(&posternv1.Open{Subscription: name})
	if d := s.next(); string(d.Event.Data) != "anna2" {
		t.Errorf("%s came first", d.Event.Data)
	}
}

// bystander is a member of a share group that wants nothing.
type bystander struct{}

func (bystander) Acquired([]broker.Acquired, time.Time)          {}
func (bystander) Acknowledged(broker.ShareAck, time.Time, error) {}
func (bystander) Ended(session *broker.ShareSession, err error)  {}

func TestQueueSeekWaitsForAForeignMemberAndSaysSo(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-foreign", 1), cluster.Name("share-foreign-sub")
	g := start(t, cluster, nil)
	put(cluster, topic, 1, "anna")
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE})
	s := g.subscribe(&posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT})
	s.ack(s.next())
	s.receipt()
	client := cluster.Client()
	foreign := client.NewShareConsumer(broker.ShareOptions{Group: name, Topics: []string{topic}, Room: func() int { return 0 }}, bystander{})
	if err := foreign.Join(t.Context(), func(broker.ShareSettings) {}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two members", func() bool {
		group, err := client.ShareGroup(t.Context(), name)
		return err == nil && len(group.Members) == 2
	})
	if _, err := g.subscriptions().SeekSubscription(t.Context(), &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the status's saying what the seek waits for", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && strings.Contains(st.Cause.Summary, "NON_EMPTY_GROUP")
	})
	foreign.Close()
	if d := s.next(); string(d.Event.Data) != "anna0" {
		t.Errorf("%s came", d.Event.Data)
	}
}
