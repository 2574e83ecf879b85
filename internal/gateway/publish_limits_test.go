package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// heapMiB is what lives after a collection.
func heapMiB() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc >> 20)
}

func gzipped(t *testing.T, data []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Clients that retry under one key while Kafka is silent do not fill the gateway.
func TestRetriesThatTimedOutKeepNoMemory(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Kafka.PublishBuffer = 4 << 20 })
	topic := cluster.Topic("joined", 1)
	g.publish(topic, "k", "warm")
	release := make(chan struct{})
	holdProduce(cluster, release)
	body := strings.Repeat("x", 900<<10)
	before := heapMiB()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 16 {
				g.do("POST", "/v1/topics/"+topic+"/events", body, "Idempotency-Key", "k", "Grpc-Timeout", "20m")
			}
		})
	}
	all.Wait()
	if grown := heapMiB() - before; grown > 32 {
		t.Errorf("128 timed-out retries of 900 KiB keep %d MiB beside a buffer of 4 MiB", grown)
	}
	close(release)
}

// A Content-Length is a promise and costs nothing until it is kept.
func TestBodiesThatAreOnlyAnnouncedCostNothing(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("announced", 1)
	before, goroutines := heapMiB(), runtime.NumGoroutine()
	for range 100 {
		c, err := net.Dial("tcp", g.gateway.Addrs().HTTP)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // it is left open on purpose
		if _, err := fmt.Fprintf(c, "POST /v1/topics/%s/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 16777216\r\n\r\nx", topic); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all connections are served", func() bool { return runtime.NumGoroutine() >= goroutines+100 })
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "after them"); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if grown := heapMiB() - before; grown > 32 {
		t.Errorf("100 connections that sent one byte each hold %d MiB", grown)
	}
}

// All bodies together have a limit; who is beyond it is told when to come again.
func TestTheMemoryForBodiesIsBounded(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Publish.MaxBodyBytes, c.Publish.BodyBuffer = 1<<20, 1<<20 })
	topic := cluster.Topic("bodies", 1)
	g.publish(topic, "k", "warm")
	release := make(chan struct{})
	holdProduce(cluster, release)
	body := strings.Repeat("x", 700<<10)
	first := make(chan answer, 1)
	go func() { first <- g.do("POST", "/v1/topics/"+topic+"/events", body) }()
	eventually(t, "the first is with the producer", func() bool { n, _ := g.gateway.producer.Buffered(); return n == 1 })
	for name, again := range map[string]answer{
		"plain":    g.do("POST", "/v1/topics/"+topic+"/events", body),
		"gzip":     g.do("POST", "/v1/topics/"+topic+"/events", gzipped(t, []byte(body)), "Content-Encoding", "gzip"),
		":publish": g.do("POST", "/v1/topics/"+topic+":publish", `{"events":[{"data":"`+strings.Repeat("A", 700<<10)+`"}]}`),
	} {
		if again.Status != http.StatusTooManyRequests || again.Reason != fault.BufferFull || again.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", name, again.Status, again.Body)
		}
	}
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "small", "Grpc-Timeout", "50m"); a.Reason != fault.OutcomeUnknown {
		t.Errorf("one that fits: %d %s", a.Status, a.Body)
	}
	close(release)
	if a := <-first; a.Status != 200 {
		t.Errorf("the first: %d %s", a.Status, a.Body)
	}
	eventually(t, "the memory is given back", func() bool {
		return g.do("POST", "/v1/topics/"+topic+"/events", body).Status == 200
	})
}

func TestCompressedBodiesCountAsWhatTheyHold(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.BytesPerSecond = 10_000 })
	topic := cluster.Topic("zip", 1)
	body, stored := gzipped(t, make([]byte, 900<<10)), 0
	for range 6 {
		switch a := g.do("POST", "/v1/topics/"+topic+"/events", body, "Content-Encoding", "gzip"); a.Status {
		case 200:
			stored++
		case http.StatusTooManyRequests:
		default:
			t.Errorf("%d %s", a.Status, a.Body)
		}
	}
	if stored != 1 {
		t.Errorf("%d of 6 bodies of 900 KiB are served at once at 10 KB a second, want the first", stored)
	}
}

func TestEveryRouteReadsCompressedBodies(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("every-route", 1)
	body := gzipped(t, []byte(`{"events":[{"data":"eA=="}]}`))
	if a := g.do("POST", "/v1/topics/"+topic+":publish", body, "Content-Encoding", "gzip"); a.Status != 200 {
		t.Errorf(":publish: %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", "/v1/topics/"+topic+":publish", "x", "Content-Encoding", "br"); a.Status != http.StatusUnsupportedMediaType ||
		a.Reason != fault.UnsupportedEncoding || !strings.Contains(a.Header.Get("Accept-Encoding"), "zstd") {
		t.Errorf("br on :publish: %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", "/v1/topics/"+topic+":publish", "no gzip", "Content-Encoding", "gzip"); a.Status != 400 || a.Reason != fault.InvalidBody {
		t.Errorf("what is no gzip: %d %s", a.Status, a.Body)
	}
	l := g.talk(topic, http.DefaultClient, "Content-Encoding", "gzip", "Prefer", "wait=20")
	go func() {
		w := gzip.NewWriter(l.in)
		_, _ = io.WriteString(w, "{\"value\":1}\n{\"value\":2}\n") // the reader sees what is missing
		_ = w.Close()
		_ = l.in.Close()
	}()
	for range 2 {
		if r := l.next(); r.Status != 200 {
			t.Errorf("a compressed line: %+v", r)
		}
	}
	if n := len(cluster.Read(topic)); n != 3 {
		t.Errorf("%d are stored, want 3", n)
	}
}

// Connections beyond the limit wait; a connection's streams beyond its limit do too.
func TestConnectionsAndTheirStreamsAreLimited(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Listen.MaxConnections = 2 })
	ask := func() net.Conn {
		c, err := net.Dial("tcp", g.gateway.Addrs().HTTP)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	read := func(c net.Conn, within time.Duration) error {
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
	first, second := ask(), ask()
	for _, c := range []net.Conn{first, second} {
		if err := read(c, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	third := ask()
	if err := read(third, 300*time.Millisecond); err == nil {
		t.Error("a third connection is served where two may be")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := read(third, 10*time.Second); err != nil {
		t.Errorf("when one has gone, the third: %v", err)
	}
	_, _ = second.Close(), third.Close() // they were read

	conn, err := grpc.NewClient("passthrough:///"+g.gateway.Addrs().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	client := posternv1.NewPublisherClient(conn)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 1000 {
		s, err := client.PublishStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	short, cancelShort := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelShort()
	if s, err := client.PublishStream(short); err == nil {
		if _, err := s.Recv(); err == nil {
			t.Error("a connection has more than 1000 streams")
		}
	}
}

func TestPagesOfAllowedOriginsSeeWhatAnswersSay(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Listen.AllowedOrigins = []string{"https://shop.example"} })
	a := g.do("POST", "/v1/topics/"+cluster.Topic("pages", 1)+"/events", "x", "Origin", "https://shop.example")
	if exposed := a.Header.Get("Access-Control-Expose-Headers"); a.Status != 200 || !strings.Contains(exposed, "Idempotent-Replayed") || !strings.Contains(exposed, "Retry-After") {
		t.Errorf("%d, exposed %q", a.Status, exposed)
	}
}
