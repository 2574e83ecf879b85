//go:build synctests

package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// bubble is a gateway in simulated time: everything it talks to, and everybody
// who talks to it, is on a virtual network.
type bubble struct {
	t       testing.TB
	network *kfake.VirtualNetwork
	gateway *Gateway
	web     *http.Client
	conn    *grpc.ClientConn
	cancel  context.CancelFunc
	done    chan error
}

// receivesAt is where receive serves.
const receivesAt = "http://127.0.0.1:8080/"

// receive serves an endpoint on the virtual network until stop is called.
func receive(t testing.TB, network *kfake.VirtualNetwork, handler http.HandlerFunc) (stop func()) {
	t.Helper()
	l, err := network.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(l) }() // ends with Close
	return func() { _ = server.Close() }
}

func inBubble(t testing.TB, cluster *brokertest.Cluster, network *kfake.VirtualNetwork, change func(*config.Config)) *bubble {
	t.Helper()
	c := config.Config{Kafka: cluster.Options()}
	c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:7600", "127.0.0.1:7601", "127.0.0.1:7602"
	c.Listen.Listen, c.Authz.Mode = network.Listen, "open" // the virtual network has no addresses to tell callers by
	if change != nil {
		change(&c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g, err := New(t.Context(), c.WithDefaults(), Options{Version: "test", Log: slog.New(slog.DiscardHandler), WebhookDial: network.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b := &bubble{t: t, network: network, gateway: g, cancel: cancel, done: make(chan error, 1)}
	go func() { b.done <- g.Run(ctx) }()
	b.web = &http.Client{Transport: &http.Transport{DialContext: network.DialContext}}
	b.conn, err = grpc.NewClient("passthrough:///"+c.Listen.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return network.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bubble) publisher() posternv1.PublisherClient { return posternv1.NewPublisherClient(b.conn) }

// stop drains the gateway and waits for it.
func (b *bubble) stop() {
	b.t.Helper()
	b.web.CloseIdleConnections()
	_ = b.conn.Close() // nothing is left to send
	b.cancel()
	if err := <-b.done; err != nil {
		b.t.Errorf("the gateway ended with: %v", err)
	}
}
