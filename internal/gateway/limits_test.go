package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/server"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func TestACallerOverItsRequestsIsToldWhenToComeAgain(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("limited", 1)
	g := start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.RequestsPerSecond = 0.01 })
	path := "/v1/topics/" + topic + "/events"
	g.do("POST", path, "x").position(t)
	a := g.do("POST", path, "x")
	if a.Status != http.StatusTooManyRequests || a.Reason != fault.RateLimited || a.Header.Get("Retry-After") == "" || a.Metadata["unit"] != "requests" {
		t.Errorf("%d %v %s", a.Status, a.Header, a.Body)
	}
	_, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}})
	if reasonOfStatus(err) != fault.RateLimited {
		t.Errorf("by gRPC, from the same caller: %v", err)
	}
	told := time.Duration(0)
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			told = info.RetryDelay.AsDuration()
		}
	}
	if told < time.Minute || told > 100*time.Second { // one request in 100 s
		t.Errorf("by gRPC it is told to come again after %s", told)
	}
	if n := len(cluster.Read(topic)); n != 1 {
		t.Errorf("%d are stored", n)
	}
}

func TestACallerOverItsBytesIsServedOnceAndThenWaits(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("limited-bytes", 1)
	g := start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.BytesPerSecond = 1000 })
	large := strings.Repeat("x", 60_000)
	for name, send := range map[string]func() fault.Reason{
		"HTTP": func() fault.Reason { return g.do("POST", "/v1/topics/"+topic+"/events", large).Reason },
		"HTTP through the gateway": func() fault.Reason {
			return g.do("POST", "/v1/topics/"+topic+":publish", `{"events":[{"data":"`+large+`"}]}`).Reason
		},
		"gRPC": func() fault.Reason {
			_, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte(large)}}})
			if err == nil {
				return ""
			}
			return reasonOfStatus(err)
		},
	} {
		g.stop()
		g = start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.BytesPerSecond = 1000 })
		if r := send(); r != "" {
			t.Errorf("%s: the first is %s", name, r)
		}
		if r := send(); r != fault.RateLimited {
			t.Errorf("%s: the second, a minute in debt, is %s", name, r)
		}
	}
}

func TestACallerHasAsManyStreamsAsItMay(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("limited-streams", 1)
	g := start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.Streams = 2 })
	lines := g.talk(topic, http.DefaultClient)
	lines.send("{\"value\":1}\n")
	lines.next()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := g.publisher().PublishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	third, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := third.Recv(); reasonOfStatus(err) != fault.TooManyStreams {
		t.Errorf("a third by gRPC: %v", err)
	}
	if a := g.do("GET", "/v1/topics/"+topic+"/events", "", "Accept", "text/event-stream"); a.Status != 429 || a.Reason != fault.TooManyStreams {
		t.Errorf("a third by HTTP: %d %s", a.Status, a.Body)
	}
	g.do("POST", "/v1/topics/"+topic+"/events", "no stream").position(t)
	if err := lines.in.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(lines.out); err != nil {
		t.Fatal(err)
	}
	eventually := time.Now().Add(10 * time.Second)
	for {
		again, err := g.publisher().PublishStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = again.Recv(); err == nil {
			break
		}
		if time.Now().After(eventually) {
			t.Fatalf("a stream that ended still counts: %v", err)
		}
	}
}

func TestCompressedMessagesAreReadAndBombsAreNot(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("grpc-gzip", 1)
	g := start(t, cluster, nil)
	send := func(n int) error {
		_, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: make([]byte, n)}}}, grpc.UseCompressor(gzip.Name))
		return err
	}
	if err := send(100_000); err != nil {
		t.Error(err)
	}
	if err := send(64 << 20); err == nil {
		t.Error("a message of 64 MiB in some 64 KiB is read")
	}
	if n := len(cluster.Read(topic)); n != 1 {
		t.Errorf("%d are stored", n)
	}
}

// certificate writes a certificate for 127.0.0.1 and gives the pool that trusts it.
func certificate(t *testing.T, cert, key string, serial int64) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "postern test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, content := range map[string][]byte{key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), cert: public} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stamp := time.Unix(1_700_000_000+serial, 0) // file times are coarse
	if err := os.Chtimes(cert, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(public)
	return pool
}

func TestTLSServesBothProtocolsAndFollowsARotatedCertificate(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("tls", 1)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pool := certificate(t, cert, key, 1)
	g := start(t, cluster, func(c *config.Config) {
		c.Listen.TLS = &server.TLS{CertFile: cert, KeyFile: key}
	})
	post := func(pool *x509.CertPool, http2 bool) (string, error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: http2, DisableKeepAlives: true}
		answer, err := (&http.Client{Transport: transport}).Post("https://"+g.gateway.Addrs().HTTP+"/v1/topics/"+topic+"/events", "text/plain", bytes.NewReader([]byte("x")))
		if err != nil {
			return "", err
		}
		defer answer.Body.Close() //nolint:errcheck // the status is all
		return answer.Proto + " " + answer.Status, nil
	}
	for http2, want := range map[bool]string{false: "HTTP/1.1 200 OK", true: "HTTP/2.0 200 OK"} {
		if got, err := post(pool, http2); err != nil || got != want {
			t.Errorf("got %s (%v), want %s", got, err, want)
		}
	}
	call := func(pool *x509.CertPool) error {
		conn, err := grpc.NewClient("passthrough:///"+g.gateway.Addrs().GRPC, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(pool, "")))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // nothing is left to send
		_, err = posternv1.NewPublisherClient(conn).Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}})
		return err
	}
	if err := call(pool); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	next := certificate(t, cert, key, 2)
	if _, err := post(next, true); err != nil {
		t.Errorf("HTTP with the new certificate: %v", err)
	}
	if err := call(next); err != nil {
		t.Errorf("gRPC with the new certificate: %v", err)
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := post(next, false); err != nil {
		t.Errorf("a broken new certificate stops the old one: %v", err)
	}
}
