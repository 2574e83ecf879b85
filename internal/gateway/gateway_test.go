package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// running is a gateway in the test's own process, on ports of its own.
type running struct {
	t       *testing.T
	gateway *Gateway
	stop    func() // drains, and waits
	stopAny func() // stop that may leave events unanswered
	conn    *grpc.ClientConn
}

// start runs a gateway on the cluster. change may alter its configuration.
func start(t *testing.T, cluster *brokertest.Cluster, change func(*config.Config)) *running {
	t.Helper()
	c := config.Config{Kafka: cluster.Options(), DrainTimeout: 5 * time.Second, TopicsPrefix: cluster.Name("_own.")}
	cluster.Name("_own." + subscriptionsTopic) // removed at the end
	c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if change != nil {
		change(&c)
	}
	return startWith(t, c)
}

// startWith runs a gateway of the configuration.
func startWith(t *testing.T, c config.Config) *running {
	t.Helper()
	said := &lastWords{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", said)
		}
	})
	return startLogged(t, c, slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelInfo})))
}

// lastWords keeps the end of a log, for tests that fail.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	if over := len(l.text) - 16<<10; over > 16<<10 {
		l.text = slices.Clone(l.text[over:])
	}
	return len(b), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func startLogged(t *testing.T, c config.Config, log *slog.Logger) *running {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g, err := New(t.Context(), c.WithDefaults(), Options{Version: "test", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	r := &running{t: t, gateway: g}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	r.stop = func() {
		if err := stop(); err != nil {
			t.Errorf("the gateway ended with: %v", err)
		}
	}
	r.stopAny = func() { _ = stop() } // it says what was left
	t.Cleanup(r.stop)
	r.conn = dialGRPC(t, g)
	return r
}

func dialGRPC(t *testing.T, g *Gateway) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+g.Addrs().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // nothing is left to send
	return conn
}

func (r *running) url(path string) string { return "http://" + r.gateway.Addrs().HTTP + path }

func (r *running) publisher() posternv1.PublisherClient { return posternv1.NewPublisherClient(r.conn) }

func (r *running) subscriber() posternv1.SubscriberClient {
	return posternv1.NewSubscriberClient(r.conn)
}

// answer is what an HTTP request got.
type answer struct {
	Status int
	Header http.Header
	Body   string
	wire.Problem
}

// do sends a request with headers given as name, value pairs.
func (r *running) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, r.url(path), strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
			continue
		}
		request.Header.Add(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	a := answer{Status: response.StatusCode, Header: response.Header, Body: string(b)}
	if response.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.Unmarshal(b, &a.Problem); err != nil {
			r.t.Fatalf("a problem that is no JSON: %s", b)
		}
	}
	return a
}

// publish stores one event by gRPC and gives where.
func (r *running) publish(topic, key, data string) *posternv1.Position {
	r.t.Helper()
	results, err := r.publisher().Publish(r.t.Context(), &posternv1.PublishRequest{
		Topic: topic, Events: []*posternv1.Event{{Key: []byte(key), Data: []byte(data)}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if e := results.Results[0].Error; e != nil {
		r.t.Fatal(e)
	}
	return results.Results[0].Position
}

// stream is an open Subscribe, its frames sorted into channels.
type stream struct {
	t        *testing.T
	status   func() string // of the subscription, for tests that fail
	raw      grpc.BidiStreamingClient[posternv1.SubscribeRequest, posternv1.SubscribeResponse]
	opened   *posternv1.Opened
	events   chan *posternv1.Delivery
	receipts chan *posternv1.Receipts
	revoked  chan *posternv1.Revoked
	drained  chan *posternv1.Drain
	beats    chan *posternv1.Heartbeat
	ended    chan error
	cancel   context.CancelFunc
}

func (r *running) subscribe(open *posternv1.Open) *stream {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	raw, err := r.subscriber().Subscribe(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		r.t.Fatal(err)
	}
	first, err := raw.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	s := &stream{
		t: r.t, raw: raw, opened: first.GetOpened(), cancel: cancel,
		status: func() string {
			st, err := r.subscriptions().GetSubscriptionStatus(r.t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: open.Subscription})
			return fmt.Sprint(st, err)
		},
		events: make(chan *posternv1.Delivery, 100_000), receipts: make(chan *posternv1.Receipts, 10_000),
		revoked: make(chan *posternv1.Revoked, 1000), drained: make(chan *posternv1.Drain, 1), beats: make(chan *posternv1.Heartbeat, 1000), ended: make(chan error, 1),
	}
	if s.opened == nil {
		r.t.Fatalf("the first frame is %v, not opened", first)
	}
	go func() {
		for {
			m, err := raw.Recv()
			if err != nil {
				s.ended <- err
				return
			}
			for _, d := range m.GetDeliveries().GetDeliveries() {
				s.events <- d
			}
			if m.GetReceipts() != nil {
				s.receipts <- m.GetReceipts()
			}
			if m.GetRevoked() != nil {
				s.revoked <- m.GetRevoked()
			}
			if m.GetDrain() != nil {
				s.drained <- m.GetDrain()
			}
			if m.GetHeartbeat() != nil {
				s.beats <- m.GetHeartbeat()
			}
		}
	}()
	return s
}

// patience bounds every wait of these tests; it is never reached when all is well.
const patience = 60 * time.Second

func (s *stream) next() *posternv1.Delivery {
	s.t.Helper()
	select {
	case d := <-s.events:
		return d
	case err := <-s.ended:
		s.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		s.t.Fatalf("no delivery came: %s", s.status())
	}
	return nil
}

func (s *stream) settle(settlements ...*posternv1.Settlement) {
	s.t.Helper()
	batch := &posternv1.SettleBatch{}
	for _, one := range settlements {
		if one.Action == nil {
			batch.Acks = append(batch.Acks, one.DeliveryId)
		} else {
			batch.Settlements = append(batch.Settlements, one)
		}
	}
	if err := s.raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) ack(deliveries ...*posternv1.Delivery) {
	s.t.Helper()
	all := make([]*posternv1.Settlement, len(deliveries))
	for i, d := range deliveries {
		all[i] = &posternv1.Settlement{DeliveryId: d.DeliveryId}
	}
	s.settle(all...)
}

func (s *stream) receipt() *posternv1.Receipts {
	s.t.Helper()
	select {
	case r := <-s.receipts:
		return r
	case err := <-s.ended:
		s.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		s.t.Fatalf("no receipt came: %s", s.status())
	}
	return nil
}

// close ends the stream in order and waits for its end.
func (s *stream) close() {
	s.t.Helper()
	if err := s.raw.CloseSend(); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if !errors.Is(err, io.EOF) {
			s.t.Fatalf("the stream ended with: %v", err)
		}
	case <-time.After(patience):
		s.t.Fatal("the stream did not end")
	}
}

func inline(name string, topics ...string) *posternv1.Open {
	return &posternv1.Open{Inline: &posternv1.Subscription{Name: name, Topics: topics}, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT}
}

func reasonOf(t *testing.T, err error) fault.Reason {
	t.Helper()
	return reasonOfStatus(err)
}
