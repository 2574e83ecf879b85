package webhook

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

const (
	secretA = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	secretB = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

func TestSignatureIsThatOfTheSpecificationsVector(t *testing.T) {
	key, err := parseKey(Key{Secret: setting.NewSecret(secretA)})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := sign([]signingKey{key}, "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", time.Unix(1649367553, 0), []byte(`{"email":"test@example.com","username":"test_user"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWrongSecretsAreRefusedAndNeverQuoted(t *testing.T) {
	for _, s := range []string{"", "hunter2", "whsec_", "whsec_!!!", "whsec_" + base64.StdEncoding.EncodeToString([]byte("short"))} {
		_, err := secretKey(setting.NewSecret(s))
		if err == nil {
			t.Errorf("%q is taken", s)
		} else if len(s) > 6 && strings.Contains(err.Error(), s) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

// addresses that no webhook may reach unless somebody allows it.
var forbidden = []string{
	"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.1.2.3", "127.255.255.255",
	"169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.170", "192.0.2.1", "192.88.99.1",
	"192.168.0.1", "192.168.255.255", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250",
	"240.0.0.1", "255.255.255.255",
	"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
	"64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1",
	"2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1", "fd12:3456::1",
	"fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff05::2",
}

func TestAddressesThatAreNotPublicAreRefusedAtTheDial(t *testing.T) {
	g, err := newGuard(Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range forbidden {
		if err := g.check(net.JoinHostPort(ip, "443")); err == nil {
			t.Errorf("%s is let through", ip)
		}
	}
	for _, spelled := range []string{"2130706433:80", "0x7f000001:80", "017700000001:80", "127.1:80", "localhost:80", "[::1:80", "", "10.0.0.1"} {
		if err := g.check(spelled); err == nil {
			t.Errorf("%q is let through", spelled)
		}
	}
	for _, ip := range []string{"8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"} {
		if err := g.check(net.JoinHostPort(ip, "443")); err != nil {
			t.Errorf("%s: %v", ip, err)
		}
	}
	if len(forbidden) < 50 {
		t.Errorf("only %d spellings", len(forbidden))
	}
}

func TestNamesThatLeadToThisMachineAreRefusedAtTheDialWhateverTheySay(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was reached") }))
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1"} {
		p := pusherTo(t, "http://"+host+":"+port, func(o *Options) { o.AllowLoopback = false })
		l := newLender(t, record("k", "v"))
		run(t, p, l)
		if s := l.only(); s.Word != delivery.Nack {
			t.Errorf("%s: %+v", host, s)
		}
	}
}

func TestAllowedRangesOpenTheGuardAndNothingElse(t *testing.T) {
	g, err := newGuard(Options{AllowCIDRs: []string{"10.1.0.0/16"}, AllowLoopback: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for ip, allowed := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.1": false, "127.0.0.1": true, "::1": true, "169.254.169.254": false} {
		if err := g.check(net.JoinHostPort(ip, "80")); (err == nil) != allowed {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

func TestEverythingWrongWithAnEndpointIsSaidAtOnce(t *testing.T) {
	errs := Options{
		URL: "http://user:pass@example.com/#x", Secrets: []setting.Secret{setting.NewSecret("hunter2")}, Mode: "loud", Outcomes: Outcomes{"9xx": "ack", "409": "maybe", "302": "ack"}, AllowPorts: []int{0}, Handshake: &Handshake{Origin: "a b"}, Auth: &Auth{}, TLS: &TLS{CertFile: "x"}, Proxy: setting.NewSecret("socks://pass@"), Keys: []Key{{Secret: setting.NewSecret("whsk_hunter2")}}, Timeout: time.Hour,
		Concurrency: -1, Headers: map[string]setting.Secret{"Content-Length": setting.NewSecret("1"), "X-Ok": setting.NewSecret("a\r\nb")}, AllowCIDRs: []string{"ten"},
	}.Validate()
	all := fmt.Sprint(errors.Join(errs...))
	for _, want := range []string{"webhook.url", "webhook.secrets[0]", "webhook.mode", "webhook.timeout", "webhook.concurrency", "9xx", "409", "302", "webhook.allow_ports[0]", "webhook.handshake.origin", "webhook.auth", "webhook.tls", "webhook.proxy", "webhook.keys[0]", "Content-Length", "X-Ok", "webhook.allow_cidrs[0]"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing is said of %s: %s", want, all)
		}
	}
	if strings.Contains(all, "hunter2") || strings.Contains(all, "pass@") {
		t.Errorf("a secret shows: %s", all)
	}
}

// lender lends what it was given, once, and keeps what is said of it.
type lender struct {
	t       *testing.T
	leases  chan []delivery.Lease
	settled chan delivery.Settlement
	mu      sync.Mutex
	windows []delivery.Window
	given   []delivery.Lease // returned without an attempt
}

func newLender(t *testing.T, records ...*event.Record) *lender {
	l := &lender{t: t, leases: make(chan []delivery.Lease, 1), settled: make(chan delivery.Settlement, 1000)}
	var leases []delivery.Lease
	for i, r := range records {
		leases = append(leases, delivery.Lease{ID: delivery.ID(i + 1), Record: r, Attempt: 1})
	}
	l.leases <- leases
	return l
}

func (l *lender) Next(ctx context.Context) ([]delivery.Lease, []delivery.Revocation, error) {
	select {
	case leases := <-l.leases:
		return leases, nil, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (l *lender) SetWindow(w delivery.Window) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.windows = append(l.windows, w)
}

func (l *lender) Return(leases []delivery.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.given = append(l.given, leases...)
}

func (l *lender) Decline(leases []delivery.Lease) { l.Return(leases) }

func (l *lender) Settle(settlements []delivery.Settlement, _ []delivery.Lease) ([]delivery.Result, []delivery.Lease) {
	var results []delivery.Result
	for _, s := range settlements {
		l.settled <- s
		results = append(results, delivery.Result{ID: s.ID, Outcome: delivery.Accepted})
	}
	return results, nil
}

func (l *lender) only() delivery.Settlement {
	l.t.Helper()
	select {
	case s := <-l.settled:
		return s
	case <-time.After(time.Minute):
		l.t.Fatal("nothing was settled")
	}
	return delivery.Settlement{}
}

func record(key, value string, headers ...string) *event.Record {
	r := &event.Record{Topic: "orders", Partition: 2, Offset: 7, Key: []byte(key), Value: []byte(value)}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Headers = append(r.Headers, event.Header{Name: headers[i], Value: []byte(headers[i+1])})
	}
	return r
}

func cloudEvent(value string) *event.Record {
	return record("k", value, "ce_specversion", "1.0", "ce_id", "1", "ce_source", "/s", "ce_type", "t", "ce_subject", "caf\u00e9 %", "content-type", "application/json")
}

func pusherTo(t *testing.T, url string, change func(*Options)) *endpoint.Pusher {
	t.Helper()
	o := Options{URL: url, AllowHTTP: true, AllowLoopback: true, Timeout: 2 * time.Second, Secrets: []setting.Secret{setting.NewSecret(secretA), setting.NewSecret(secretB)}}
	if change != nil {
		change(&o)
	}
	p, err := New("mail", o, Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run keeps p running until the test ends.
func run(t *testing.T, p *endpoint.Pusher, l *lender) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx, l) }() // ends with ctx
	t.Cleanup(func() { cancel(); <-done; p.Close() })
}

func TestOfficialLibraryVerifiesWhatIsSentWithEitherKey(t *testing.T) {
	for _, mode := range []Mode{Binary, Structured} {
		for _, body := range []string{`{"a":1}`, "", "\u00fcber"} {
			got := make(chan error, 2)
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				for _, secret := range []string{secretA, secretB} {
					wh, err := standardwebhooks.NewWebhook(secret)
					if err == nil {
						err = wh.Verify(b, r.Header)
					}
					got <- err
				}
				if id := r.Header.Get("Webhook-Id"); strings.Contains(id, ".") || id == r.Header.Get("Ce-Id") {
					t.Errorf("webhook-id %q", id)
				}
			}))
			l := newLender(t, cloudEvent(body))
			run(t, pusherTo(t, server.URL, func(o *Options) { o.Mode = mode }), l)
			for range 2 {
				if err := <-got; err != nil {
					t.Errorf("%s %q: %v", mode, body, err)
				}
			}
			if s := l.only(); s.Word != delivery.Ack {
				t.Errorf("%+v", s)
			}
			server.Close()
		}
	}
}

func TestReceiverGetsTheCloudEventAndWhereItCameFrom(t *testing.T) {
	got := make(chan http.Header, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
	defer server.Close()
	r := cloudEvent(`{"a":1}`)
	r.Headers = append(r.Headers, event.Header{Name: "evil\r\nname", Value: []byte{0, '\n'}}, event.Header{Name: "plain", Value: []byte("x")}, event.Header{Name: "host", Value: []byte("y")})
	r.Key = []byte{0xff, '\n'}
	l := newLender(t, r)
	run(t, pusherTo(t, server.URL, func(o *Options) {
		o.Headers = map[string]setting.Secret{"Authorization": setting.NewSecret("Bearer x")}
	}), l)
	h := <-got
	for name, want := range map[string]string{
		"Ce-Id": "1", "Ce-Specversion": "1.0", "Ce-Subject": "caf%C3%A9%20%25", "Content-Type": "application/json", "Authorization": "Bearer x",
		"Postern-Topic": "orders", "Postern-Partition": "2", "Postern-Offset": "7", "Postern-Attempt": "1", "Postern-Subscription": "mail",
		"Postern-Key-Base64": "/wo=", "Postern-Header-Plain": "x", "Postern-Header-Host": "y",
		"Postern-Headers-Base64": base64.StdEncoding.EncodeToString([]byte("evil\r\nname")) + ":" + base64.StdEncoding.EncodeToString([]byte{0, '\n'}),
	} {
		if h.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, h.Get(name), want)
		}
	}
	l.only()
}

// TestReceiversOfEveryKindCostOneAttemptAndNothingElse is the zoo.
func TestReceiversOfEveryKindCostOneAttemptAndNothingElse(t *testing.T) {
	release := make(chan struct{})
	raw := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, answer)
				_ = c.Close()
			}
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"hangs":            func(http.ResponseWriter, *http.Request) { <-release },
		"resets":           func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"half closes":      raw("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\nhalf"),
		"speaks no HTTP":   raw("SSH-2.0-OpenSSH_9\r\n"),
		"has huge headers": raw("HTTP/1.1 500 x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"),
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		},
		"never ends": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"answers a bomb": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(500)
		},
		"says control bytes": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte("\x1b[31m\x00 no\r\n"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			attempts := 0
			var mu sync.Mutex
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				attempts++
				mu.Unlock()
				handler(w, r)
			}))
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
			server.Start()
			l := newLender(t, record("k", "v"))
			run(t, pusherTo(t, server.URL, func(o *Options) { o.Timeout = 300 * time.Millisecond }), l)
			s := l.only()
			if s.Word != delivery.Nack || s.Reason == "" || len(s.Reason) > endpoint.MaxExcerpt+256 || strings.ContainsAny(s.Reason, "\x1b\x00\r\n") {
				t.Errorf("settled as %+v", s)
			}
			mu.Lock()
			if attempts != 1 {
				t.Errorf("%d requests for one attempt", attempts)
			}
			mu.Unlock()
			if name == "hangs" {
				close(release)
			}
			server.CloseClientConnections()
			server.Close()
		})
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	now := time.Date(2026, 1, 31, 10, 0, 0, 0, time.UTC)
	for _, s := range []string{"", "0", "120", "Sat, 31 Jan 2026 11:00:00 GMT", "-1", "1e9", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if d := parseRetryAfter(v, now); d < 0 || d > maxPause {
			t.Errorf("%q: %s", v, d)
		}
	})
}
