//go:build synctests

package gateway

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func (b *bubble) subscribe(open *posternv1.Open) posternv1.Subscriber_SubscribeClient {
	b.t.Helper()
	stream, err := posternv1.NewSubscriberClient(b.conn).Subscribe(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		b.t.Fatal(err)
	}
	return stream
}

func TestAClientThatStopsReadingIsCutWithItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("slow", 1)
		var all []*event.Record
		for range 200 {
			all = append(all, &event.Record{Topic: topic, Value: []byte(strings.Repeat("x", 50_000))})
		}
		cluster.Put(all...)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		open := inline("slow", topic)
		open.Window = &posternv1.Window{MaxMessages: 1000, MaxBytes: 64 << 20}
		stream := b.subscribe(open)
		if _, err := stream.Recv(); err != nil { // opened
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute) // it reads nothing
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if got := reasonOfStatus(err); got != fault.SlowConsumer {
			t.Errorf("the stream ended with %v", err)
		}
		b.stop()
	})
}

func TestLeasesOfAnOpenStreamDoNotRunOutWhenAskedSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("long", 1)
		cluster.Put(&event.Record{Topic: topic, Value: []byte("x")})
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		open := inline("long", topic)
		open.AutoExtend, open.Lease = true, durationpb.New(10*time.Second)
		stream := b.subscribe(open)
		attempts := make(chan int32, 10)
		go func() {
			for {
				m, err := stream.Recv()
				if err != nil {
					if err != io.EOF && t.Context().Err() == nil {
						close(attempts)
					}
					return
				}
				for _, d := range m.GetDeliveries().GetDeliveries() {
					attempts <- d.Attempt
				}
			}
		}()
		if n := <-attempts; n != 1 {
			t.Fatalf("attempt %d", n)
		}
		time.Sleep(50 * time.Minute)
		if len(attempts) != 0 {
			t.Errorf("attempt %d came while its stream was open", <-attempts)
		}
		time.Sleep(11 * time.Minute) // an hour is the most
		if n := <-attempts; n != 2 {
			t.Errorf("attempt %d", n)
		}
		_ = stream.CloseSend() // nothing more is sent
		b.stop()
	})
}
