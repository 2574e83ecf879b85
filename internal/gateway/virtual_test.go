//go:build synctests

package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// TestReceiverThatFailsForAnHourGetsItsEventInTheEnd runs the whole gateway, a
// broker and a receiver in simulated time: seven failures, each wait twice the
// one before, then an ack that is committed.
func TestReceiverThatFailsForAnHourGetsItsEventInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("patient", 1)
		network := new(kfake.VirtualNetwork)
		began := time.Now()
		var calls []time.Duration
		acked := make(chan struct{})
		receiver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			calls = append(calls, time.Since(began))
			if len(calls) <= 7 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			close(acked)
		})}
		l, err := network.Listen("tcp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = receiver.Serve(l) }() // ends with Close
		defer func() { _ = receiver.Close() }()

		c := config.Config{Kafka: cluster.Options()}
		c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:7600", "127.0.0.1:7601", "127.0.0.1:7602"
		c.Listen.Listen, c.Authz.Mode = network.Listen, "open" // the virtual network has no addresses to tell callers by
		c.Subscriptions = []subscription.Spec{hook("patient", topic, "http://127.0.0.1:8080/", delivery.Retry{MinBackoff: 30 * time.Second, MaxBackoff: time.Hour})}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		g, err := New(t.Context(), c.WithDefaults(), Options{Version: "test", Log: slog.New(slog.DiscardHandler), WebhookDial: network.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		conn, err := grpc.NewClient("passthrough:///127.0.0.1:7601", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return network.DialContext(ctx, "tcp", address)
			}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = posternv1.NewPublisherClient(conn).Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}})
		if err != nil {
			t.Fatal(err)
		}
		<-acked
		_ = conn.Close() // nothing is left to send
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if offset, _ := cluster.Committed("patient", topic, 0); offset != 1 {
			t.Errorf("offset %d is committed", offset)
		}
		want := 30 * time.Second
		for i := 1; i < len(calls); i++ {
			if wait := calls[i] - calls[i-1]; wait < want*8/10 || wait > want*12/10+time.Second {
				t.Errorf("the wait before attempt %d was %s, want %s give or take a fifth", i+1, wait, want)
			}
			want *= 2
		}
		if total := calls[len(calls)-1]; total < 48*time.Minute {
			t.Errorf("it took %s of simulated time", total)
		}
		t.Logf("%d attempts over %s of simulated time", len(calls), calls[len(calls)-1])
	})
}
