package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/subscription"
)

const secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

// hook is a subscription that pushes topic to url.
func hook(name, topic, url string, retry delivery.Retry) subscription.Spec {
	return subscription.Spec{Name: name, Topics: []string{topic}, Retry: retry, Webhook: &webhook.Options{
		URL: url, AllowHTTP: true, AllowLoopback: true, Secrets: []setting.Secret{setting.NewSecret(secret)},
	}}
}

func TestWebhookIsSignedRetriedInOrderAndDeadLetteredWhenExhausted(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("hooked", 1), cluster.Name("hook-sub")
	type call struct{ data, attempt, id string }
	calls := make(chan call, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		wh, err := standardwebhooks.NewWebhook(secret)
		if err == nil {
			err = wh.Verify(b, r.Header)
		}
		if err != nil {
			t.Errorf("the signature: %v", err)
		}
		if r.Header.Get("Traceparent") == "" {
			t.Error("no trace context came along")
		}
		calls <- call{string(b), r.Header.Get("Postern-Attempt"), r.Header.Get("Webhook-Id")}
		if strings.HasPrefix(string(b), "bad") {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, "out of tea")
		}
	}))
	defer receiver.Close()
	dead := cluster.Name("hook-dead")
	g := start(t, cluster, func(c *config.Config) {
		s := hook(name, topic, receiver.URL, delivery.Retry{MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond})
		s.DeadLetter.Topic = dead
		c.Subscriptions = []subscription.Spec{s}
	})
	for _, e := range []string{"bad", "after"} {
		if a := g.do("POST", "/v1/topics/"+topic+"/events", e, "Postern-Key", "k", "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"); a.Status != 200 {
			t.Fatal(a.Body)
		}
	}
	var got []call
	for range 4 {
		select {
		case c := <-calls:
			got = append(got, c)
		case <-time.After(patience):
			t.Fatalf("only %v came", got)
		}
	}
	for i, want := range []call{{"bad", "1", ""}, {"bad", "2", ""}, {"bad", "3", ""}, {"after", "1", ""}} {
		if got[i].data != want.data || got[i].attempt != want.attempt {
			t.Errorf("request %d was %v, want %v", i, got[i], want)
		}
	}
	if got[0].id != got[2].id || got[0].id == got[3].id {
		t.Errorf("webhook ids %v", got)
	}
	letters := cluster.Read(dead)
	if len(letters) != 1 || !strings.Contains(header(letters[0], event.DeadLetterDetail), "500 Internal Server Error: out of tea") || header(letters[0], event.DeadLetterReason) != "attempts_exhausted" {
		t.Errorf("dead letters %v", letters)
	}
}

func TestFailingEndpointDoesNotHoldUpAnother(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("shared", 1)
	var mu sync.Mutex
	good := map[string]bool{}
	all := make(chan struct{})
	fine := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if !good[string(b)] {
			good[string(b)] = true
			if len(good) == 200 {
				close(all)
			}
		}
	}))
	defer fine.Close()
	hang := make(chan struct{})
	broken := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer broken.Close()
	defer close(hang)
	put(cluster, topic, 50, "a", "b", "c", "d")
	start(t, cluster, func(c *config.Config) {
		slow := hook(cluster.Name("slow"), topic, broken.URL, delivery.Retry{})
		slow.Webhook.Timeout = 500 * time.Millisecond
		c.DrainTimeout = time.Second
		c.Subscriptions = []subscription.Spec{slow, hook(cluster.Name("fine"), topic, fine.URL, delivery.Retry{})}
	})
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatalf("%d of 200 events came", len(good))
	}
}

func TestOpenAPITellsTheHandWrittenRoutesToo(t *testing.T) {
	g := start(t, brokertest.New(t), nil)
	a := g.do("GET", "/openapi.json", "")
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(a.Body), &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("version %q", doc.OpenAPI)
	}
	for path, methods := range map[string][]string{
		"/v1/topics/{topic}/events": {"get", "post"}, "/v1/subscriptions/{name}/events": {"get"}, "/v1/topics/{topic}:publish": {"post"},
		"/v1/subscriptions/{name}": {"get", "patch", "delete"}, "/v1/subscriptions/{name}:pull": {"post"}, "/v1/subscriptions/{name}:settle": {"post"}, "/v1/topics": {"get"}, "/v1/topics/{name}": {"get"},
	} {
		for _, m := range methods {
			if doc.Paths[path][m] == nil {
				t.Errorf("%s %s is missing", m, path)
			}
		}
	}
	for _, schema := range referenced(a.Body) {
		if doc.Components.Schemas[schema] == nil {
			t.Errorf("the schema %s is referred to and missing", schema)
		}
	}
}

func referenced(doc string) []string {
	var names []string
	for _, part := range strings.Split(doc, `"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		names = append(names, name)
	}
	return names
}
