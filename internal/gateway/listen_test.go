package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func TestUnixSocketsServeBothProtocols(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("unix", 1)
	dir := t.TempDir()
	web, rpc := filepath.Join(dir, "http.sock"), filepath.Join(dir, "grpc.sock")
	start(t, cluster, func(c *config.Config) { c.Listen.HTTP, c.Listen.GRPC = "unix:"+web, "unix:"+rpc })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", web)
	}}}
	answer, err := client.Post("http://anything/v1/topics/"+topic+"/events", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(answer.Body)
	_ = answer.Body.Close() // it was read
	if answer.StatusCode != 200 {
		t.Errorf("HTTP: %d %s", answer.StatusCode, b)
	}
	conn, err := grpc.NewClient("unix:"+rpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	if _, err := posternv1.NewPublisherClient(conn).Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
}

// What a killed gateway left in the file system is no reason not to start; what
// another one listens on is.
func TestAUnixSocketIsTakenOverOnlyWhenNobodyListens(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("unix-again", 1)
	dir := t.TempDir()
	web, rpc := filepath.Join(dir, "http.sock"), filepath.Join(dir, "grpc.sock")
	for _, path := range []string{web, rpc} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as kill -9 leaves it
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	sockets := func(c *config.Config) { c.Listen.HTTP, c.Listen.GRPC = "unix:"+web, "unix:"+rpc }
	start(t, cluster, sockets)
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", web)
	}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	publish := func() {
		t.Helper()
		answer, err := (&http.Client{Transport: transport}).Post("http://anything/v1/topics/"+topic+"/events", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close() // the status is all
		if answer.StatusCode != 200 || answer.ProtoMajor != 2 {
			t.Errorf("%s %s", answer.Proto, answer.Status)
		}
	}
	publish()
	c := config.Config{Kafka: cluster.Options()}
	c.Listen.Admin = "127.0.0.1:0"
	sockets(&c)
	if _, err := New(t.Context(), c.WithDefaults(), Options{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second gateway on the same sockets: %v", err)
	}
	publish() // the first one still has them
}

func TestAddressThatOthersCanReachIsRefusedUnlessOpen(t *testing.T) {
	c := config.Config{Kafka: brokertest.New(t).Options()}
	c.Listen.GRPC = "0.0.0.0:0"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "authz: {mode: open}") {
		t.Errorf("got %v", err)
	}
	c.Authz.Mode = "open"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestOperatorsSeeHealthReadinessMetricsAndReflection(t *testing.T) {
	g := start(t, brokertest.New(t), nil)
	admin := "http://" + g.gateway.Addrs().Admin
	get := func(path string) (int, string) {
		answer, err := http.Get(admin + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close() //nolint:errcheck // it was read
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(b)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz %d", code)
	}
	for code := 0; code != 200; { // ready as soon as Kafka has answered
		code, _ = get("/readyz")
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics %d", code)
	}
	health, err := healthpb.NewHealthClient(g.conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health %v %v", health, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(g.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, s := range m.GetListServicesResponse().GetService() {
		names += s.Name + " "
	}
	for _, want := range []string{"postern.v1.Publisher", "postern.v1.Subscriber", "postern.v1.Topics"} {
		if !strings.Contains(names, want) {
			t.Errorf("%s is not among %s", want, names)
		}
	}
}

func TestKafkaThatIsNotThereMakesTheGatewayNotReadyAndNotDead(t *testing.T) {
	c := config.Config{DrainTimeout: 1}
	c.Kafka.Brokers = []string{"127.0.0.1:1"} // nobody listens there
	c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	g, err := New(t.Context(), c.WithDefaults(), Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	answer, err := http.Get("http://" + g.Addrs().Admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close() // only its status is wanted
	if answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("readyz answered %d", answer.StatusCode)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
