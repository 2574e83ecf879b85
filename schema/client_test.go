package schema

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
)

// guarded is a registry that gives one schema to whom admit lets in.
func guarded(admit func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !admit(r) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"schema": `"int"`})
	})
}

func clientOf(t *testing.T, o Options) *Client {
	t.Helper()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestCredentialsReachTheRegistry(t *testing.T) {
	var tokens atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		if err := r.ParseForm(); err != nil || r.Form.Get("grant_type") != "client_credentials" || r.Form.Get("scope") != "registry" || id != "me" || secret != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		tokens.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"access_token":"fresh","token_type":"Bearer","expires_in":3600}`)
	}))
	defer issuer.Close()
	for name, one := range map[string]struct {
		options Options
		admit   func(*http.Request) bool
	}{
		"basic": {
			Options{Basic: &Basic{"me", setting.NewSecret("pw")}},
			func(r *http.Request) bool { u, p, _ := r.BasicAuth(); return u == "me" && p == "pw" },
		},
		"bearer": {
			Options{BearerToken: setting.NewSecret("abc")},
			func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer abc" },
		},
		"oauth": {
			Options{OAuth: &OAuth{TokenURL: issuer.URL, ClientID: "me", ClientSecret: setting.NewSecret("s3cret"), Scopes: []string{"registry"}}},
			func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer fresh" },
		},
		"headers": {
			Options{Headers: map[string]setting.Secret{"Target-Sr-Cluster": setting.NewSecret("lsrc-1")}},
			func(r *http.Request) bool { return r.Header.Get("Target-Sr-Cluster") == "lsrc-1" },
		},
	} {
		server := httptest.NewServer(guarded(one.admit))
		one.options.URLs = []string{server.URL}
		c := clientOf(t, one.options)
		for range 3 {
			if d, err := c.ByID(t.Context(), 1); err != nil || d.Text != `"int"` {
				t.Errorf("%s: %v %v", name, d, err)
			}
		}
		bare := clientOf(t, Options{URLs: []string{server.URL}})
		_, err := bare.ByID(t.Context(), 1)
		if !fault.Is(err, fault.RegistryUnavailable) || !strings.Contains(err.Error(), "credentials") {
			t.Errorf("%s, without: %v", name, err)
		}
		server.Close()
	}
	if n := tokens.Load(); n != 1 {
		t.Errorf("%d tokens were fetched for one that is good for an hour", n)
	}
}

func TestMutualTLSTowardsTheRegistry(t *testing.T) {
	dir := t.TempDir()
	ca, caKey := certificate(t, nil, nil, "ca")
	server, serverKey := certificate(t, ca, caKey, "localhost")
	client, clientKey := certificate(t, ca, caKey, "postern")
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keyDER, err := x509.MarshalECPrivateKey(clientKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	front := httptest.NewUnstartedServer(guarded(func(r *http.Request) bool {
		return len(r.TLS.PeerCertificates) == 1 && r.TLS.PeerCertificates[0].Subject.CommonName == "postern"
	}))
	front.TLS = &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}},
	}
	front.StartTLS()
	defer front.Close()
	files := TLS{
		CAFile: write("ca.pem", "CERTIFICATE", ca.Raw), CertFile: write("cert.pem", "CERTIFICATE", client.Raw),
		KeyFile: write("key.pem", "EC PRIVATE KEY", keyDER), ServerName: "localhost",
	}
	if _, err := clientOf(t, Options{URLs: []string{front.URL}, TLS: &files}).ByID(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if _, err := clientOf(t, Options{URLs: []string{front.URL}, TLS: &TLS{CAFile: files.CAFile, ServerName: "localhost"}}).ByID(t.Context(), 1); !fault.Is(err, fault.RegistryUnavailable) {
		t.Errorf("without our certificate: %v", err)
	}
}

func certificate(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: parent == nil, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

func TestOtherURLsAnswerWhenOneIsDownHangsOrIsBroken(t *testing.T) {
	var good atomic.Int64
	answering := httptest.NewServer(guarded(func(*http.Request) bool { good.Add(1); return true }))
	defer answering.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hanging.Close()
	defer close(release)
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }))
	defer broken.Close()
	var asked atomic.Int64
	missing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(404)
		_, _ = fmt.Fprint(w, `{"error_code":40403,"message":"Schema not found"}`)
	}))
	defer missing.Close()
	for name, url := range map[string]string{"down": down, "hanging": hanging.URL, "broken": broken.URL} {
		c := clientOf(t, Options{URLs: []string{url, answering.URL}, Timeout: 200 * time.Millisecond})
		for i := range 3 {
			began := time.Now()
			if _, err := c.ByID(t.Context(), 1); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if i > 0 && time.Since(began) > 150*time.Millisecond {
				t.Errorf("%s is asked first again: %s", name, time.Since(began))
			}
		}
	}
	// That there is no such schema is an answer: nobody else is asked.
	before := good.Load()
	c := clientOf(t, Options{URLs: []string{missing.URL, answering.URL}})
	if _, err := c.ByID(t.Context(), 1); !fault.Is(err, fault.UnknownSchema) || good.Load() != before {
		t.Errorf("%v, the second was asked %d times", err, good.Load()-before)
	}
	c = clientOf(t, Options{URLs: []string{down, broken.URL}})
	if _, err := c.ByID(t.Context(), 1); !fault.Is(err, fault.RegistryUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestAnswerThatIsTooLargeIsCut(t *testing.T) {
	big := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		chunk := []byte(strings.Repeat("x", 1<<20))
		_, _ = w.Write([]byte(`{"schema":"`))
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer big.Close()
	_, err := clientOf(t, Options{URLs: []string{big.URL}}).ByID(t.Context(), 1)
	if !fault.Is(err, fault.RegistryUnavailable) || !strings.Contains(fault.Of(err).Metadata["cause"], "larger") {
		t.Errorf("%v %v", err, fault.Of(err).Metadata)
	}
}

func TestContextIsPartOfEveryRequest(t *testing.T) {
	paths := make(chan string, 1)
	front := httptest.NewServer(guarded(func(r *http.Request) bool { paths <- r.URL.Path; return true }))
	defer front.Close()
	if _, err := clientOf(t, Options{URLs: []string{front.URL + "/apis/ccompat/v7"}, Context: "left"}).ByID(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got := <-paths; got != "/apis/ccompat/v7/contexts/left/schemas/ids/1" {
		t.Error(got)
	}
}

func TestNoSecretIsInAFault(t *testing.T) {
	front := httptest.NewServer(guarded(func(*http.Request) bool { return false }))
	defer front.Close()
	o := Options{URLs: []string{front.URL}, Basic: &Basic{"me", setting.NewSecret("pa55word")}}
	_, err := clientOf(t, o).ByID(t.Context(), 1)
	if text := fmt.Sprintf("%+v %v %#v", err, fault.Of(err).Metadata, o); strings.Contains(text, "pa55word") {
		t.Error(text)
	}
}

func TestOptionsAreCheckedAllAtOnce(t *testing.T) {
	err := Options{
		URLs: []string{"registry:8081", "https://a:b@host", "http://host?x=1"}, Context: "a/b", Timeout: time.Hour, LatestTTL: -1,
		Basic: &Basic{}, BearerToken: setting.NewSecret("x"), OAuth: &OAuth{}, TLS: &TLS{CertFile: "x"}, Headers: map[string]setting.Secret{"a b": {}},
	}.Validate()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 12 {
		t.Errorf("%v", err)
	}
}
