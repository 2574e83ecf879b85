package push

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/test/bufconn"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// issuer signs certificates for a test.
type issuer struct {
	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{t: t}
	i.cert, i.key = i.sign("authority")
	return i
}

// sign makes a certificate of a name; the first is the issuer's own.
func (i *issuer) sign(name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	i.serial++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(i.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	parent, by := i.cert, i.key
	if parent == nil {
		template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return cert, key
}

func (i *issuer) pem(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// handler says who called it.
type handler struct {
	posternv1.UnimplementedEventHandlerServer
	callers chan string
}

func (h *handler) Handle(ctx context.Context, _ *posternv1.HandleRequest) (*posternv1.HandleResponse, error) {
	p, _ := peer.FromContext(ctx)
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		h.callers <- info.State.PeerCertificates[0].Subject.CommonName
	}
	return &posternv1.HandleResponse{}, nil
}

// TestNewCertificatesAreUsedFromTheNextConnectionOn is in simulated time: files
// are looked at every five seconds.
func TestNewCertificatesAreUsedFromTheNextConnectionOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, dir := newIssuer(t), t.TempDir()
		path := func(name string) string { return filepath.Join(dir, name) }
		age := time.Now()
		write := func(name string, b []byte) {
			t.Helper()
			age = age.Add(time.Second) // files of one size differ by their time
			if err := os.WriteFile(path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path(name), age, age); err != nil {
				t.Fatal(err)
			}
		}
		keyOf := func(k *ecdsa.PrivateKey) []byte {
			b, err := x509.MarshalECPrivateKey(k)
			if err != nil {
				t.Fatal(err)
			}
			return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b})
		}
		write("ca.pem", authority.pem(authority.cert))
		cert, key := authority.sign("first")
		write("cert.pem", authority.pem(cert))
		write("key.pem", keyOf(key))

		h := &handler{callers: make(chan string, 10)}
		// serve runs the application until the returned function is called.
		var listener *bufconn.Listener
		serve := func(by *issuer) (stop func()) {
			listener = bufconn.Listen(1 << 20)
			server, serverKey := by.sign("app")
			pool := x509.NewCertPool()
			pool.AddCert(authority.cert)
			s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
				Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12,
			})))
			posternv1.RegisterEventHandlerServer(s, h)
			done := make(chan struct{})
			go func() { defer close(done); _ = s.Serve(listener) }() // ends with Stop
			return func() { s.Stop(); <-done }
		}
		stop := serve(authority)
		p, err := New("orders", Options{
			Address: "app:9000", Timeout: 10 * time.Second, TLS: &webhook.TLS{CAFile: path("ca.pem"), CertFile: path("cert.pem"), KeyFile: path("key.pem"), ServerName: "app"},
		}, Environment{
			Endpoint: endpoint.Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}},
			Dial:     func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		// call has an event handled, trying on while the application comes back, and says who it took us for.
		call := func() string {
			t.Helper()
			for range 10 {
				a, err := p.Sample(t.Context(), &event.Record{Topic: "orders", Value: []byte("x")}, "sample")
				if err != nil {
					t.Fatal(err)
				}
				if a.Action == endpoint.Ack.String() {
					return <-h.callers
				}
				time.Sleep(5 * time.Second)
			}
			return "nobody"
		}
		if got := call(); got != "first" {
			t.Fatalf("it was called by %s", got)
		}
		// What was changed is for new connections; an open one goes on.
		cert, key = authority.sign("second")
		write("cert.pem", authority.pem(cert))
		time.Sleep(time.Minute)
		if got := call(); got != "first" {
			t.Errorf("over the open connection it was called by %s", got)
		}
		// The certificate is there and its key is not yet: the old ones go on.
		stop()
		stop = serve(authority)
		if got := call(); got != "first" {
			t.Errorf("with half of the new files it was called by %s", got)
		}
		write("key.pem", keyOf(key))
		stop()
		time.Sleep(time.Minute)
		stop = serve(authority)
		if got := call(); got != "second" {
			t.Errorf("after the change it was called by %s", got)
		}
		// Another authority's application is not trusted until the file says so.
		other := newIssuer(t)
		stop()
		stop = serve(other)
		if got := call(); got != "nobody" {
			t.Errorf("an application that nobody vouches for was called by %s", got)
		}
		write("ca.pem", other.pem(other.cert))
		time.Sleep(time.Minute)
		if got := call(); got != "second" {
			t.Errorf("with the new authority it was called by %s", got)
		}
		stop()
	})
}
