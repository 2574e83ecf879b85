//go:build synctests

package gateway

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// muteLink is a network on which, while it is mute, everything sent is swallowed.
type muteLink struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	mu   sync.Mutex
	mute bool
}

func (l *muteLink) set(mute bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = mute
}

func (l *muteLink) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := l.dial(ctx, network, address)
	return &muteConn{Conn: c, link: l}, err
}

type muteConn struct {
	net.Conn
	link *muteLink
}

func (c *muteConn) Write(b []byte) (int, error) {
	c.link.mu.Lock()
	mute := c.link.mute
	c.link.mu.Unlock()
	if mute {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// A gateway that Kafka has not answered for a session may have a successor: it
// lends nothing more until it is heard again.
func TestAGatewayThatKafkaDoesNotAnswerLendsNothingThatAnotherMayHave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("cut", 1)
		put(cluster, topic, 2, "a", "b")
		link := &muteLink{dial: cluster.Dial}
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), func(c *config.Config) { c.Kafka.Dial = link.Dial })
		stream, err := posternv1.NewSubscriberClient(b.conn).Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open := inline("mail", topic)
		open.Window = &posternv1.Window{MaxMessages: 1}
		if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		deliveries := make(chan *posternv1.Delivery, 10)
		go func() {
			for {
				m, err := stream.Recv()
				if err != nil {
					return
				}
				for _, d := range m.GetDeliveries().GetDeliveries() {
					deliveries <- d
				}
			}
		}()
		ack := func(d *posternv1.Delivery) {
			if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: &posternv1.SettleBatch{Acks: []uint64{d.DeliveryId}}}}); err != nil {
				t.Error(err)
			}
		}
		ack(<-deliveries)
		d := <-deliveries
		link.set(true)
		time.Sleep(12 * time.Second) // longer than its session
		ack(d)
		select {
		case d := <-deliveries:
			t.Errorf("it lends %v, which another gateway may have", d.Position)
		case <-time.After(5 * time.Second):
		}
		link.set(false)
		for want := map[int64]bool{1: true, 2: true, 3: true}; len(want) > 0; {
			d := <-deliveries
			delete(want, d.Position.Offset) // the first may come again: its acks were never committed
			ack(d)
		}
		b.stop()
	})
}
