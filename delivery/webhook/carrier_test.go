package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

func parcel() *endpoint.Parcel {
	return &endpoint.Parcel{ID: "msg_x", Records: []*event.Record{record("k", "v")}, Attempt: 1}
}

func carrierTo(t *testing.T, url string, change func(*Options)) *carrier {
	t.Helper()
	o := Options{URL: url, AllowHTTP: true, AllowLoopback: true, Timeout: 5 * time.Second, Secrets: []setting.Secret{setting.NewSecret(secretA)}}
	if change != nil {
		change(&o)
	}
	if errs := o.Validate(); len(errs) > 0 {
		t.Fatal(errs)
	}
	c, err := newCarrier("mail", o.WithDefaults(), Environment{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestBatchIsSignedAsAWholeAndHasEveryEventInOrder(t *testing.T) {
	type got struct {
		events []map[string]any
		header http.Header
		err    error
	}
	requests := make(chan got, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		g := got{header: r.Header}
		wh, err := standardwebhooks.NewWebhook(secretA)
		if err == nil {
			err = wh.Verify(b, r.Header)
		}
		if err == nil {
			err = json.Unmarshal(b, &g.events)
		}
		g.err = err
		requests <- g
	}))
	defer server.Close()
	c := carrierTo(t, server.URL, func(o *Options) { o.Mode = Batch })
	plain := record("p", "\xff\x00 bytes")
	plain.Offset = 8
	tombstone := cloudEvent("x")
	tombstone.Value = nil
	p := &endpoint.Parcel{ID: "msg_batch", Records: []*event.Record{cloudEvent(`{"a":1}`), plain, tombstone}, Attempt: 2}
	if a := c.Carry(t.Context(), p); a.Class != "ok" {
		t.Fatalf("%+v", a)
	}
	g := <-requests
	if g.err != nil || len(g.events) != 3 || g.header.Get("Content-Type") != batchMedia || g.header.Get("Webhook-Id") != "msg_batch" || g.header.Get("Postern-Batch") != "3" {
		t.Fatalf("%+v", g)
	}
	if e := g.events[0]; e["id"] != "1" || e["subject"] != "café %" || fmt.Sprint(e["data"]) != "map[a:1]" {
		t.Errorf("%v", e)
	}
	if e := g.events[1]; e["id"] != "orders[2]@8" || e["source"] != "/topics/orders" || e["type"] != "dev.postern.record" || e["data_base64"] == nil {
		t.Errorf("%v", e)
	}
	if e := g.events[2]; e["data"] != nil || e["id"] != "1" {
		t.Errorf("%v", e)
	}
}

func TestBatchAnswersAreReadEventByEventOnlyWhenTheyFit(t *testing.T) {
	body := atomic.Pointer[string]{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusMultiStatus)
		_, _ = io.WriteString(w, *body.Load())
	}))
	defer server.Close()
	c := carrierTo(t, server.URL, func(o *Options) { o.Mode = Batch })
	for text, want := range map[string]string{
		`{"results":[{"status":200},{"status":422},{"status":500}]}`: "ack reject retry",
		`{"results":[{"status":200},{"status":200}]}`:                "ack", // not as many: all of it, as 207 says
		`{"results":[{"status":200},{"status":1},{"status":200}]}`:   "ack",
		`nonsense`: "ack",
	} {
		body.Store(&text)
		p := parcel()
		p.Records = []*event.Record{cloudEvent("1"), cloudEvent("2"), cloudEvent("3")}
		a := c.Carry(t.Context(), p)
		got := a.Action.String()
		if a.Each != nil {
			got = ""
			for _, o := range a.Each {
				got = strings.TrimSpace(got + " " + o.Action.String())
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestConsentIsWhatTheEndpointAllowsAndNeverItsStatus(t *testing.T) {
	asked := &Handshake{Origin: "events.example.com", RequestRate: 120}
	unrated := &Handshake{Origin: "events.example.com"}
	for _, c := range []struct {
		origin, rate string
		asked        *Handshake
		granted      bool
		perMinute    int
	}{
		{"events.example.com", "60", asked, true, 60},
		{"EVENTS.example.com", "60", asked, true, 60},
		{"*", "*", asked, true, 0},
		{"*", "", unrated, true, 0},
		{"*", "30", unrated, true, 30},
		{"", "60", asked, false, 0},
		{"*", "", asked, false, 0},
		{"*", "0", asked, false, 0},
		{"*", "-1", asked, false, 0},
		{"*", "many", asked, false, 0},
		{"events.example.com.attacker.tld", "60", asked, false, 0},
		{"example.com", "60", asked, false, 0},
		{"events.example.com, other.example.com", "60", asked, false, 0},
	} {
		h := http.Header{}
		if c.origin != "" {
			h.Set("WebHook-Allowed-Origin", c.origin)
		}
		if c.rate != "" {
			h.Set("WebHook-Allowed-Rate", c.rate)
		}
		if got := readConsent(h, c.asked, false); got.Granted != c.granted || got.PerMinute != c.perMinute || !got.Granted && got.Why == "" {
			t.Errorf("%q %q: %+v", c.origin, c.rate, got)
		}
	}
}

func TestNothingIsSentBeforeConsentAndEverythingNamesTheOriginAfter(t *testing.T) {
	var allowed, asked atomic.Int32
	posts := make(chan http.Header, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodOptions {
			posts <- r.Header
			return
		}
		asked.Add(1)
		if r.Header.Get("WebHook-Request-Origin") != "events.example.com" || r.Header.Get("WebHook-Request-Rate") != "600" {
			t.Errorf("asked with %v", r.Header)
		}
		if allowed.Load() == 1 {
			w.Header().Set("WebHook-Allowed-Origin", "events.example.com")
			w.Header().Set("WebHook-Allowed-Rate", "600")
			w.WriteHeader(http.StatusMethodNotAllowed) // says nothing
		}
	}))
	defer server.Close()
	handshake := func(o *Options) { o.Handshake = &Handshake{Origin: "events.example.com", RequestRate: 600} }
	p := pusherTo(t, server.URL, handshake)
	l := newLender(t)
	run(t, p, l)
	for p.Status().Consent.Why == "" {
		runtime.Gosched() // the asking is the pusher's, and over a real connection
	}
	if s := p.Status(); s.State != endpoint.Open || len(posts) != 0 || p.Window().Messages != 0 {
		t.Errorf("%+v, %d posts", s, len(posts))
	}
	if a, err := p.Sample(t.Context(), record("k", "v"), "x"); err != nil || a.Class != "consent" || len(posts) != 0 {
		t.Errorf("a sample went before the consent: %+v %v", a, err)
	}
	allowed.Store(1)
	p.Enable("ask again")
	l.leases <- nil
	for !p.Status().Consent.Granted {
		runtime.Gosched()
	}
	l.leases <- []delivery.Lease{{ID: 9, Record: record("k", "v"), Attempt: 1}}
	if s := l.only(); s.Word != delivery.Ack {
		t.Errorf("%+v", s)
	}
	if h := <-posts; h.Get("WebHook-Request-Origin") != "events.example.com" {
		t.Errorf("%v", h)
	}
	if s := p.Status(); s.Consent.PerMinute != 600 || asked.Load() != 2 {
		t.Errorf("%+v, asked %d times", s, asked.Load())
	}
}

func TestSuccessIsASuccessHoweverItsBodyComes(t *testing.T) {
	drip := make(chan struct{})
	for name, handler := range map[string]http.HandlerFunc{
		"drips": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusOK)
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("."))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-drip:
					return
				case <-r.Context().Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		},
		"breaks off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte("."))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"never ends": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"answers before the body is there": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
		},
	} {
		server := httptest.NewServer(handler)
		c := carrierTo(t, server.URL, nil)
		p := parcel()
		if strings.HasPrefix(name, "answers before") {
			p.Records[0].Value = make([]byte, 1<<20)
		}
		began := time.Now()
		if a := c.Carry(t.Context(), p); a.Class != "ok" || a.Timings.Total > 3*time.Second || time.Since(began) > 3*time.Second {
			t.Errorf("%s: %+v", name, a)
		}
		c.Close()
		server.CloseClientConnections()
		server.Close()
	}
	close(drip)
}

func TestConnectionsAreKeptBetweenRequests(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "thank you")
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := carrierTo(t, server.URL, nil)
	for i := range 20 {
		a := c.Carry(t.Context(), parcel())
		if a.Class != "ok" || (a.Timings.Connect > 0) != (i == 0) || a.Timings.FirstByte == 0 || a.Timings.FirstByte > a.Timings.Total {
			t.Errorf("%d: %+v", i, a)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 20 requests", n)
	}
}

func TestProxyIsUsedAndGuarded(t *testing.T) {
	seen := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- r.URL.String() + " " + r.Header.Get("Proxy-Authorization")
	}))
	defer proxy.Close()
	address := strings.TrimPrefix(proxy.URL, "http://")
	c := carrierTo(t, "http://hooks.example.com/x", func(o *Options) { o.Proxy = setting.NewSecret("http://me:pass@" + address) })
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" {
		t.Fatalf("%+v", a)
	}
	if got := <-seen; got != "http://hooks.example.com/x Basic bWU6cGFzcw==" {
		t.Errorf("the proxy was asked for %q", got)
	}
	c = carrierTo(t, "http://hooks.example.com/x", func(o *Options) {
		o.Proxy, o.AllowLoopback = setting.NewSecret("http://me:pass@"+address), false
	})
	if a := c.Carry(t.Context(), parcel()); a.Class != "guard" || strings.Contains(a.Why, "pass") {
		t.Errorf("%+v", a)
	}
}

func TestCallbackIsOfferedAndWithheldHeadersAreNoRefusal(t *testing.T) {
	var offered []string
	answer := http.Header{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offered = append(offered, r.Header.Get("WebHook-Request-Callback"))
		for name, v := range answer {
			w.Header()[name] = v
		}
	}))
	defer server.Close()
	s := Settings{CallbackURL: "https://events.example.com/in/"}
	o := Options{URL: server.URL, AllowHTTP: true, AllowLoopback: true, Handshake: &Handshake{Origin: "events.example.com", Callback: true}}
	c, err := newCarrier("mail", o.WithDefaults(), Environment{Callback: s.Callback("mail")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []struct {
		key              string
		origin           string
		pending, granted bool
	}{{"k1", "", true, false}, {"", "", false, false}, {"k2", "other.example.com", false, false}, {"k3", "events.example.com", false, true}} {
		answer = http.Header{}
		if step.origin != "" {
			answer.Set("WebHook-Allowed-Origin", step.origin)
		}
		got, err := consenting{c}.Consent(t.Context(), step.key)
		if err != nil || got.Pending != step.pending || got.Granted != step.granted {
			t.Errorf("%+v: %+v %v", step, got, err)
		}
	}
	if want := "https://events.example.com/in/v1/endpoints/mail/consent?key=k1"; offered[0] != want || offered[1] != "" {
		t.Errorf("offered %q, want %q and nothing", offered, want)
	}
	if err := (Settings{}).ValidateFor(o); err == nil || !strings.Contains(err.Error(), "webhooks.callback_url") {
		t.Errorf("a callback without a URL of ours: %v", err)
	}
	if o.target() == (Options{URL: "https://victim.example.com/", Handshake: o.Handshake}).target() {
		t.Error("a consent for one URL is one for another")
	}
}
