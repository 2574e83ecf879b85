//go:build synctests

package gateway

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Found by seed 57: while Kafka refused a commit at once, a client that waited for
// it made the gateway ask again without a pause, as fast as a processor can.
func TestACommitThatIsRefusedIsNotAskedForWithoutAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("refused", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		if r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil || r.Results[0].Error != nil {
			t.Fatal(r, err)
		}
		stream, err := posternv1.NewSubscriberClient(b.conn).Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open := &posternv1.Open{Inline: &posternv1.Subscription{Name: "waits", Topics: []string{topic}}, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT}
		if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		var id uint64
		for id == 0 {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.GetDeliveries().GetDeliveries() {
				id = d.GetDeliveryId()
			}
		}
		time.Sleep(time.Second) // its attempt is committed
		var asked atomic.Int64
		refused := cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownServerError, Count: -1, When: func(kmsg.Request) bool {
			if asked.Add(1) > 1000 {
				panic("it spins") // in simulated time it would for ever
			}
			return true
		}})
		settle := &posternv1.SettleBatch{Acks: []uint64{id}}
		if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: settle}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n := asked.Load(); n < 5 || n > 15 {
			t.Errorf("in ten seconds of refusals the commit was asked for %d times", n)
		}
		refused.Remove()
		for committed := false; !committed; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			committed = len(m.GetReceipts().GetCommitted()) == 1
		}
		b.stop()
	})
}

// Found by seed 121: a dead letter whose first try may have reached Kafka is tried
// for ever, and a gateway that was told to stop waited for it as long.
func TestAGatewayStopsThoughADeadLetterIsNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("unanswered", 1)
		dead := cluster.Topic("rejects.dead", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		if r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil || r.Results[0].Error != nil {
			t.Fatal(r, err)
		}
		cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: dead, Err: kerr.RequestTimedOut, Count: -1})
		stream, err := posternv1.NewSubscriberClient(b.conn).Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open := &posternv1.Open{Inline: &posternv1.Subscription{Name: "rejects", Topics: []string{topic}}}
		if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		for rejected := false; !rejected; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.GetDeliveries().GetDeliveries() {
				one := &posternv1.Settlement{DeliveryId: d.GetDeliveryId(), Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{}}}
				settle := &posternv1.SettleBatch{Settlements: []*posternv1.Settlement{one}}
				if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: settle}}); err != nil {
					t.Fatal(err)
				}
				rejected = true
			}
		}
		time.Sleep(time.Second)
		late := time.AfterFunc(10*time.Minute, func() { panic("ten minutes later it has not stopped") })
		b.stop()
		late.Stop()
	})
}
