//go:build synctests

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/workload"
)

// fleet is several gateways on hosts of their own, in simulated time.
type fleet struct {
	t       testing.TB
	cluster *brokertest.Cluster
	network *kfake.VirtualNetwork
	change  func(*config.Config)
	log     *slog.Logger
	ending  sync.WaitGroup // of gateways that are stopping

	mu    sync.Mutex
	nodes []*node
	hosts []*host // all there were
}

// node is one place for a gateway, and the gateway that runs there, if any.
type node struct {
	index  int
	target *workload.Target
	conn   *grpc.ClientConn
	web    *http.Client
	turn   chan struct{} // one: who kills and starts takes turns

	// Guarded by the fleet's lock.
	host     *host
	gateway  *Gateway
	stop     context.CancelFunc
	done     chan error
	serving  bool
	stopping bool
}

func newFleet(t testing.TB, cluster *brokertest.Cluster, log *slog.Logger, change func(*config.Config)) *fleet {
	return &fleet{t: t, cluster: cluster, network: new(kfake.VirtualNetwork), change: change, log: log}
}

func (n *node) port(i int) string { return fmt.Sprintf("127.0.0.1:%d", 7600+10*n.index+i) }

func (f *fleet) node(i int) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[i]
}

// add makes a place for one more gateway, and starts one there.
func (f *fleet) add() *node {
	f.t.Helper()
	f.mu.Lock()
	n := &node{index: len(f.nodes), turn: make(chan struct{}, 1)}
	f.nodes = append(f.nodes, n)
	f.mu.Unlock()
	n.web = &http.Client{Transport: &http.Transport{DialContext: f.network.DialContext}}
	var err error
	n.conn, err = grpc.NewClient("passthrough:///"+n.port(1), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second}, MinConnectTimeout: time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return f.network.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		f.t.Fatal(err)
	}
	n.target = &workload.Target{GRPC: n.conn, Web: n.web, Base: "http://" + n.port(0)}
	f.start(n)
	return n
}

// start runs a gateway at n.
func (f *fleet) start(n *node) {
	f.t.Helper()
	h := newHost(f.network, f.cluster.Dial)
	c := config.Config{Kafka: f.cluster.Options(), DrainTimeout: 5 * time.Second}
	c.Kafka.Dial = h.dialKafka
	c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = n.port(0), n.port(1), n.port(2)
	c.Listen.Listen, c.Authz.Mode = h.listen, "open"
	f.change(&c)
	if err := c.Validate(); err != nil {
		f.t.Fatal(err)
	}
	g, err := New(f.t.Context(), c.WithDefaults(), Options{Version: "test", Log: f.log.With("gateway", n.index), WebhookDial: h.dialWeb})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = append(f.hosts, h)
	n.host, n.gateway, n.stop, n.done, n.serving, n.stopping = h, g, stop, done, true, false
	f.ending.Go(func() {
		err := g.Run(ctx)
		if ctx.Err() == nil && fault.Is(err, fault.KafkaNotAuthorized) {
			// A gateway that may not do what it needs says so at its start and ends.
			// Its supervisor starts it again: here, when the faults are over.
			f.mu.Lock()
			if n.done == done {
				n.serving = false
			}
			f.mu.Unlock()
			err = nil
		}
		done <- err
	})
}

// hostNow is the host of the gateway that runs at n, or ran there last.
func (n *node) hostNow(f *fleet) *host {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.host
}

// targets are the gateways that serve; one that does not, if none does.
func (f *fleet) targets() []*workload.Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*workload.Target
	for _, n := range f.nodes {
		if n.serving {
			all = append(all, n.target)
		}
	}
	if len(all) == 0 {
		all = append(all, f.nodes[0].target)
	}
	return all
}

// kill switches n's host off. What is left of the gateway goes on in the void
// until it has stopped there; nothing of it reaches anybody.
func (f *fleet) kill(n *node) {
	f.mu.Lock()
	h, stop := n.host, n.stop
	serving := n.serving
	n.serving = false
	f.mu.Unlock()
	if serving {
		h.switchOff()
		stop()
	}
}

// drain stops n in order and waits for its end.
func (f *fleet) drain(n *node) error {
	f.mu.Lock()
	stop, done, serving := n.stop, n.done, n.serving
	if serving && n.stopping {
		serving = false
	}
	n.stopping = true
	f.mu.Unlock()
	if !serving {
		return nil
	}
	n.web.CloseIdleConnections()
	stop()
	err := <-done
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.done == done {
		n.serving = false
	}
	return err
}

// close stops everything and waits for it.
func (f *fleet) close() {
	for _, n := range f.nodes {
		if err := f.drain(n); err != nil {
			f.t.Errorf("gateway %d ended with: %v", n.index, err)
		}
		n.web.CloseIdleConnections()
		_ = n.conn.Close() // nothing is left to send
	}
	f.ending.Wait()
	for _, h := range f.hosts {
		h.bury()
	}
}
