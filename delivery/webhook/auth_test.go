package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/setting"
)

// authorizations gathers what an endpoint was sent.
func authorizations(t *testing.T) (url string, got chan string) {
	got = make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Authorization") }))
	t.Cleanup(server.Close)
	return server.URL, got
}

func TestStaticCredentialsAreSentAsTheStandardsWriteThem(t *testing.T) {
	for name, c := range map[string]struct {
		auth Auth
		want string
	}{
		"basic":  {Auth{Basic: &Basic{Username: "Aladdin", Password: setting.NewSecret("open sesame")}}, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}, // RFC 7617, section 2
		"bearer": {Auth{Bearer: setting.NewSecret("abc.def")}, "Bearer abc.def"},
	} {
		endpoint, got := authorizations(t)
		l := newLender(t, record("k", "v"))
		run(t, pusherTo(t, endpoint, func(o *Options) { o.Auth = &c.auth }), l)
		if a := <-got; a != c.want {
			t.Errorf("%s: %q", name, a)
		}
		l.only()
	}
}

// tokenServer is an authorization server.
type tokenServer struct {
	*httptest.Server
	fetched atomic.Int32
	life    atomic.Int64
	status  atomic.Int32
	form    chan url.Values
	header  chan http.Header
}

func newTokenServer(t *testing.T) *tokenServer {
	s := &tokenServer{form: make(chan url.Values, 100), header: make(chan http.Header, 100)}
	s.life.Store(3600)
	s.status.Store(200)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.fetched.Add(1)
		_ = r.ParseForm()
		s.form <- r.PostForm
		s.header <- r.Header
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(s.status.Load()))
		if s.status.Load() != 200 {
			// Some servers send back what they were sent.
			_, _ = fmt.Fprintf(w, `{"error":"invalid_client","error_description":"no client with secret %s"}`, r.PostForm.Get("client_secret"))
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, n, s.life.Load())
	}))
	t.Cleanup(s.Close)
	return s
}

func TestTokenIsFetchedOnceForManyEventsAndAgainWhenItIsRefused(t *testing.T) {
	tokens := newTokenServer(t)
	var refuse atomic.Bool
	got := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Authorization")
		if refuse.Load() && r.Header.Get("Authorization") == "Bearer token-1" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	l := newLender(t)
	p := pusherTo(t, server.URL, func(o *Options) {
		o.Auth = &Auth{OAuth2: &OAuth2{TokenURL: tokens.URL, ClientID: "client id", ClientSecret: setting.NewSecret("s3cret&"), Scopes: []string{"a", "b"}, Audience: "shop"}}
	})
	run(t, p, l)
	var many []delivery.Lease
	for i := range 4 {
		many = append(many, delivery.Lease{ID: delivery.ID(i + 1), Record: record(fmt.Sprint(i), "v"), Attempt: 1})
	}
	l.leases <- many
	for range many {
		if a := <-got; a != "Bearer token-1" {
			t.Errorf("authorization %q", a)
		}
		l.only()
	}
	if n := tokens.fetched.Load(); n != 1 {
		t.Errorf("%d tokens were fetched", n)
	}
	form, header := <-tokens.form, <-tokens.header
	if form.Get("grant_type") != "client_credentials" || form.Get("scope") != "a b" || form.Get("audience") != "shop" || form.Has("client_secret") {
		t.Errorf("form %v", form)
	}
	// RFC 6749, section 2.3.1: both are form-encoded first.
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("client+id:s3cret%26")); header.Get("Authorization") != want {
		t.Errorf("the client said %q", header.Get("Authorization"))
	}
	refuse.Store(true)
	l.leases <- []delivery.Lease{{ID: 10, Record: record("k", "v"), Attempt: 1}}
	if s := l.only(); s.Word != delivery.Nack {
		t.Errorf("%+v", s)
	}
	<-got
	l.leases <- []delivery.Lease{{ID: 11, Record: record("k", "v"), Attempt: 2}}
	if s := l.only(); s.Word != delivery.Ack {
		t.Errorf("%+v", s)
	}
	if a := <-got; a != "Bearer token-2" {
		t.Errorf("after a refusal %q was sent", a)
	}
}

func TestRefusedClientCostsAnAttemptAndItsSecretIsNowhere(t *testing.T) {
	tokens := newTokenServer(t)
	tokens.status.Store(401)
	var log strings.Builder
	var mu sync.Mutex
	endpoint, got := authorizations(t)
	o := Options{
		URL: endpoint, AllowHTTP: true, AllowLoopback: true, Timeout: time.Second,
		Auth: &Auth{OAuth2: &OAuth2{TokenURL: tokens.URL, ClientID: "c", ClientSecret: setting.NewSecret("s3cret"), AuthStyle: "body"}},
	}
	p, err := New("mail", o, Environment{Log: slog.New(slog.NewTextHandler(locked{&mu, &log}, nil)), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	l := newLender(t, record("k", "v"))
	run(t, p, l)
	s := l.only()
	if s.Word != delivery.Nack || !strings.Contains(s.Reason, "invalid_client") {
		t.Errorf("%+v", s)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, text := range []string{s.Reason, log.String(), fmt.Sprintf("%v %+v %#v", o, o, o), p.Status().Reason} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("the secret shows: %s", text)
		}
	}
	if len(got) != 0 {
		t.Error("the endpoint was sent a request without credentials")
	}
	if (<-tokens.form).Get("client_secret") != "s3cret" {
		t.Error("the secret was not where the server wants it")
	}
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func TestTokenEndpointIsReachedThroughTheGuard(t *testing.T) {
	tokens := newTokenServer(t)
	o := Options{Auth: &Auth{OAuth2: &OAuth2{TokenURL: tokens.URL, ClientID: "c", ClientSecret: setting.NewSecret("s")}}, AllowHTTP: true, URL: "http://example.com/"}
	c, err := newCarrier("mail", o.WithDefaults(), Environment{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.auth.authorize(t.Context(), http.Header{}, time.Now())
	var refused *refusedError
	if err == nil || !strings.Contains(err.Error(), "private, local or special") || tokens.fetched.Load() != 0 {
		t.Errorf("%v (%v)", err, errors.As(err, &refused))
	}
}

func TestTokenIsRefreshedBeforeItEndsWithoutAnyoneWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetches := 0
		tokens := newTokens(func(context.Context) (string, time.Duration, error) {
			fetches++
			time.Sleep(10 * time.Second)
			return fmt.Sprint("token-", fetches), 100 * time.Second, nil
		})
		get := func() (string, time.Duration) {
			began := time.Now()
			text, err := tokens.get(t.Context(), time.Now())
			if err != nil {
				t.Error(err)
			}
			return text, time.Since(began)
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if text, waited := get(); text != "token-1" || waited != 10*time.Second {
					t.Errorf("%s after %s", text, waited)
				}
			})
		}
		all.Wait()
		time.Sleep(81 * time.Second)
		if text, waited := get(); text != "token-1" || waited != 0 {
			t.Errorf("%s after %s", text, waited)
		}
		time.Sleep(11 * time.Second)
		if text, waited := get(); text != "token-2" || waited != 0 || fetches != 2 {
			t.Errorf("%s after %s, %d fetches", text, waited, fetches)
		}
		tokens.close()
	})
}

func TestTokenServerThatIsDownIsNotAskedByEveryEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fetches := 0
		tokens := newTokens(func(context.Context) (string, time.Duration, error) {
			fetches++
			return "", 0, errors.New("down")
		})
		for range 1000 {
			if _, err := tokens.get(t.Context(), time.Now()); err == nil {
				t.Fatal("a token came out of nothing")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if fetches > 11 {
			t.Errorf("%d fetches in ten seconds", fetches)
		}
		tokens.close()
	})
}

func FuzzReadToken(f *testing.F) {
	f.Add(200, []byte(`{"access_token":"a","expires_in":3600}`))
	f.Add(400, []byte(`{"error":"invalid_client"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		text, life, err := readToken(status, body)
		if err == nil && (text == "" || life <= 0 || life > maxTokenLife || strings.ContainsAny(text, "\r\n ")) {
			t.Errorf("%q for %s", text, life)
		}
	})
}

func TestMintedTokenIsVerifiedByTheGatewaysKeysAndSaysForWhom(t *testing.T) {
	private, _ := GenerateKeyPair()
	identity, err := NewIdentity(Settings{Issuer: "https://events.example.com/", SigningKeys: []Key{{Secret: setting.NewSecret(private)}}})
	if err != nil {
		t.Fatal(err)
	}
	endpoint, got := authorizations(t)
	o := Options{URL: endpoint, AllowHTTP: true, AllowLoopback: true, Auth: &Auth{JWT: &JWT{Audience: "https://shop.example.com"}}}
	p, err := New("mail", o, Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}, Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	l := newLender(t, record("k", "v"))
	run(t, p, l)
	parts := strings.Split(strings.TrimPrefix(<-got, "Bearer "), ".")
	l.only()
	if len(parts) != 3 {
		t.Fatalf("token %q", parts)
	}
	var header struct{ Alg, Kid, Typ string }
	var claims struct {
		Iss, Sub, Aud string
		Iat, Exp      int64
	}
	var set struct {
		Keys []struct{ Kid, X string }
	}
	for i, into := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := json.Unmarshal(identity.JWKS(time.Now()), &set); err != nil || len(set.Keys) != 1 || set.Keys[0].Kid != header.Kid {
		t.Fatalf("%v %v", set, header)
	}
	public, _ := base64.RawURLEncoding.DecodeString(set.Keys[0].X)
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	if header.Alg != "EdDSA" || !ed25519.Verify(public, []byte(parts[0]+"."+parts[1]), signature) {
		t.Error("the JWKS does not verify the token")
	}
	if claims.Iss != "https://events.example.com" || claims.Sub != "mail" || claims.Aud != "https://shop.example.com" || claims.Exp-claims.Iat != 300 {
		t.Errorf("claims %+v", claims)
	}
	if _, err := New("mail", o, Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}}); err == nil {
		t.Error("a gateway without keys promises tokens")
	}
}

// authority makes certificates for a test.
type authority struct {
	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, serial: 1}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) issue(name string) (cert, key []byte) {
	a.serial++
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	bytes, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: bytes})
}

func TestCertificatesAreUsedFromTheirChangeOn(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	serverCert, serverKey := a.issue("server")
	pair, err := tls.X509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	got := make(chan string, 10)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.TLS.PeerCertificates[0].Subject.CommonName
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	defer server.Close()
	cert, key := a.issue("first")
	o := Options{URL: server.URL, AllowLoopback: true, TLS: &TLS{CAFile: ca, CertFile: write("c.pem", cert), KeyFile: write("k.pem", key)}}
	c, err := newCarrier("mail", o.WithDefaults(), Environment{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" || <-got != "first" || a.Timings.TLS == 0 || a.Timings.Connect == 0 {
		t.Fatalf("%+v", a)
	}
	cert, key = a.issue("second")
	write("c.pem", cert)
	// A certificate and a key that do not belong together are being written: the old one goes on.
	c.files.checked = time.Time{}
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" || <-got != "first" {
		t.Errorf("%+v", a)
	}
	write("k.pem", key)
	c.files.checked = time.Time{}
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" || <-got != "second" {
		t.Errorf("%+v", a)
	}
	// So is the authority: what another one vouches for is not trusted any more, until it is again.
	write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newAuthority(t).cert.Raw}))
	c.files.checked = time.Time{}
	if a := c.Carry(t.Context(), parcel()); a.Class != "tls" {
		t.Errorf("%+v", a)
	}
	write("ca.pem", []byte("half a cert"))
	c.files.checked = time.Time{}
	if a := c.Carry(t.Context(), parcel()); a.Class != "tls" {
		t.Errorf("%+v", a)
	}
	write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	c.files.checked = time.Time{}
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" || <-got != "second" {
		t.Errorf("%+v", a)
	}
	// Without one, and with a server that nobody vouches for, TLS fails and says so.
	for name, wrong := range map[string]*TLS{"no certificate": {CAFile: ca}, "unknown authority": nil} {
		o.TLS = wrong
		c, err := newCarrier("mail", o.WithDefaults(), Environment{})
		if err != nil {
			t.Fatal(err)
		}
		if a := c.Carry(t.Context(), parcel()); a.Class != "tls" {
			t.Errorf("%s: %+v", name, a.Outcome)
		}
		c.Close()
	}
}
