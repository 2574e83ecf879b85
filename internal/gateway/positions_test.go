package gateway

import (
	"fmt"
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// loseGroup has Kafka forget a group that nobody is a member of, as it does by
// itself after offsets.retention.minutes.
func loseGroup(t *testing.T, cluster *brokertest.Cluster, group string) {
	t.Helper()
	eventually(t, "the group's being empty", func() bool {
		_, err := cluster.Admin().DeleteGroup(t.Context(), group)
		return err == nil
	})
}

// begun waits until it is kept that the group has commits after the last seek.
func begun(t *testing.T, r *running, name string) {
	t.Helper()
	eventually(t, "the record's saying that it has begun", func() bool {
		e, err := r.gateway.registry.Entry(t.Context(), name)
		return err == nil && e.Desired.Begun == e.Desired.SeekEpoch+1
	})
}

func TestLostPositionStopsTheSubscriptionUntilASeekSaysWhereToGoOn(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 2)
	name := cluster.Name("mail")
	seek := func(r *running, edge posternv1.Edge) {
		t.Helper()
		if _, err := r.subscriptions().SeekSubscription(t.Context(), &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Edge{Edge: edge}}); err != nil {
			t.Fatal(err)
		}
	}
	stateOf := func(r *running) *posternv1.SubscriptionStatus {
		t.Helper()
		s, err := r.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	one := start(t, cluster, nil)
	made := one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}}})
	s := one.subscribe(&posternv1.Open{Subscription: name})
	begun(t, one, name)
	for i := range 3 {
		one.publish(topic, "anna", fmt.Sprint(i))
		s.ack(s.next())
	}
	if got, err := one.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name}); err != nil || got.Etag != made.Etag || !got.UpdateTime.AsTime().Equal(made.UpdateTime.AsTime()) {
		t.Errorf("that it has begun counts as a change: %v %v", got, err)
	}
	seek(one, posternv1.Edge_EDGE_EARLIEST) // a seek of the past, not to be applied again
	for range 3 {
		s.ack(s.next())
	}
	begun(t, one, name)
	s.close()
	one.stop()
	loseGroup(t, cluster, name)

	two := start(t, cluster, nil)
	for range 2 { // also the second one who asks is told
		raw, err := two.subscriber().Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: &posternv1.Open{Subscription: name}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Recv(); reasonOf(t, err) != fault.PositionLost {
			t.Fatalf("the stream gives %v", err)
		}
	}
	if got := stateOf(two); got.Cause.Kind != posternv1.CauseKind_CAUSE_KIND_POSITION_LOST || got.State != posternv1.SubscriptionState_SUBSCRIPTION_STATE_STOPPED {
		t.Errorf("its status is %v", got)
	}
	seek(two, posternv1.Edge_EDGE_LATEST)
	if got := stateOf(two); got.Cause.Kind == posternv1.CauseKind_CAUSE_KIND_POSITION_LOST {
		t.Errorf("after the seek its status is %v", got)
	}
	s = two.subscribe(&posternv1.Open{Subscription: name})
	begun(t, two, name)
	two.publish(topic, "anna", "new")
	if d := s.next(); string(d.Event.Data) != "new" {
		t.Errorf("after a seek to the end it gets %q", d.Event.Data)
	}
}

func TestSeekToOneOffsetAfterALostPositionDoesNotRepeatOlderSeeks(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 2)
	name := cluster.Name("mail")
	one := start(t, cluster, nil)
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}})
	publish := func(r *running, partition int32, data string) {
		t.Helper()
		if _, err := r.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Partition: &partition, Data: []byte(data)}}}); err != nil {
			t.Fatal(err)
		}
	}
	to := func(r *running, positions ...*posternv1.Position) {
		t.Helper()
		_, err := r.subscriptions().SeekSubscription(t.Context(), &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Positions{Positions: &posternv1.SeekPositions{Positions: positions}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for p := range int32(2) {
		publish(one, p, fmt.Sprintf("old-%d", p))
	}
	to(one, &posternv1.Position{Topic: topic, Partition: 0, Offset: 0}, &posternv1.Position{Topic: topic, Partition: 1, Offset: 0})
	s := one.subscribe(&posternv1.Open{Subscription: name})
	s.ack(s.next(), s.next())
	begun(t, one, name)
	s.close()
	one.stop()
	loseGroup(t, cluster, name)

	two := start(t, cluster, nil)
	to(two, &posternv1.Position{Topic: topic, Partition: 0, Offset: 0})
	s = two.subscribe(&posternv1.Open{Subscription: name})
	if d := s.next(); string(d.Event.Data) != "old-0" {
		t.Errorf("got %q first", d.Event.Data)
	}
	publish(two, 1, "new-1")
	if d := s.next(); string(d.Event.Data) != "new-1" {
		t.Errorf("partition 1, which no seek named since, gives %q: an older seek was applied again", d.Event.Data)
	}
}
