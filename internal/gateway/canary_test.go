package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// canaries are secrets, and the texts that would give them away.
type canaries struct {
	t    *testing.T
	mu   sync.Mutex
	tell map[string]string // what it is, by a text that must be nowhere
}

func (c *canaries) add(what, text string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tell == nil {
		c.tell = map[string]string{}
	}
	c.tell[text] = what
	c.tell[base64.StdEncoding.EncodeToString([]byte(text))] = what + ", in base64"
	return text
}

func (c *canaries) secret(what, text string) setting.Secret {
	return setting.NewSecret(c.add(what, text))
}

// nowhere looks for each in text, which must have something in it.
func (c *canaries) nowhere(where, text string) {
	c.t.Helper()
	if len(text) < 20 {
		c.t.Errorf("%s: there is next to nothing to look at: %q", where, text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for secret, what := range c.tell {
		if i := strings.Index(text, secret); i >= 0 {
			c.t.Errorf("%s shows the %s: ...%s...", where, what, text[max(0, i-200):min(len(text), i+len(secret)+40)])
		}
	}
}

// logged is a log that several goroutines write.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// parrot is an endpoint that answers an error and says back all that it was sent.
func parrot(t *testing.T, saw func(http.Header)) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		saw(r.Header)
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(r.Header) // the caller may be gone
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestSecretsOfEndpointsAreNowhere plants every kind of secret an endpoint can
// have, has each endpoint say back what it was sent, and looks at everything
// that people and programs can see of it.
func TestSecretsOfEndpointsAreNowhere(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("canary", 1)
	c := &canaries{t: t}
	private, _ := webhook.GenerateKeyPair()
	whsec := func(b byte) string { return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
	token := c.add("OAuth2 token", "canary-oauth2-token")
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token)
	}))
	defer tokens.Close()
	denying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":"who is %s?","error_description":%q}`, r.Header.Get("Authorization"), b)
	}))
	defer denying.Close()

	sent := make(chan string, 1000) // which secret an endpoint got
	endpointOf := func(want ...string) string {
		return parrot(t, func(h http.Header) {
			if h.Get("Webhook-Sample") != "" {
				return
			}
			all := fmt.Sprint(h)
			for _, w := range want {
				if strings.Contains(all, w) {
					sent <- w
				}
			}
			if jwt, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ey"); ok {
				c.add("minted token", "ey"+jwt)
				sent <- "minted"
			}
		})
	}
	var specs []subscription.Spec
	add := func(kind, url string, change func(*webhook.Options)) {
		s := hook(cluster.Name("canary-"+kind), topic, url, delivery.Retry{MaxAttempts: 2, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond})
		s.DeadLetter.Topic = cluster.Name("canary-dead-" + kind)
		s.Webhook.Secrets = []setting.Secret{c.secret("whsec secret of "+kind, whsec(byte(len(specs)+1)))}
		change(s.Webhook)
		specs = append(specs, s)
	}
	oauth := func(what, tokenURL, style string) *webhook.Auth {
		return &webhook.Auth{OAuth2: &webhook.OAuth2{TokenURL: tokenURL, ClientID: "canary-client", ClientSecret: c.secret(what, "canary/"+what+"+secret"), AuthStyle: style}}
	}
	add("bearer", endpointOf("canary-bearer-token"), func(o *webhook.Options) {
		o.Auth = &webhook.Auth{Bearer: c.secret("bearer token", "canary-bearer-token")}
	})
	pair := c.add("user and password", "anna:canary-password")
	add("basic", endpointOf(base64.StdEncoding.EncodeToString([]byte(pair))), func(o *webhook.Options) {
		o.Auth = &webhook.Auth{Basic: &webhook.Basic{Username: "anna", Password: c.secret("password", "canary-password")}}
	})
	add("header", endpointOf("canary-header"), func(o *webhook.Options) {
		o.Headers = map[string]setting.Secret{"X-Api-Key": c.secret("header", "canary-header-value")}
	})
	add("oauth2", endpointOf(token), func(o *webhook.Options) { o.Auth = oauth("client secret", tokens.URL, "") })
	add("denied", endpointOf(), func(o *webhook.Options) { o.Auth = oauth("denied client secret", denying.URL, "") })
	add("body", endpointOf(), func(o *webhook.Options) { o.Auth = oauth("client secret in a body", denying.URL, "body") })
	add("jwt", endpointOf(), func(o *webhook.Options) {
		o.Auth, o.Asymmetric = &webhook.Auth{JWT: &webhook.JWT{Audience: "canary"}}, true
	})
	add("proxy", "http://hooks.example.com/", func(o *webhook.Options) {
		proxy, err := url.Parse(endpointOf("Basic " + base64.StdEncoding.EncodeToString([]byte(c.add("proxy's user and password", "me:canary-proxy-password")))))
		if err != nil {
			t.Fatal(err)
		}
		proxy.User = url.UserPassword("me", c.add("proxy's password", "canary-proxy-password"))
		o.Proxy = setting.NewSecret(proxy.String())
	})
	add("nowhere", "http://127.0.0.1:1/", func(o *webhook.Options) {
		o.Auth = &webhook.Auth{Bearer: c.secret("unsent token", "canary-unsent-token")}
	})

	application := &parrotApp{saw: func(md metadata.MD) {
		if strings.Contains(fmt.Sprint(map[string][]string(md)), "canary-metadata") {
			sent <- "canary-metadata"
		}
	}}
	called := subscription.Spec{Name: cluster.Name("canary-push"), Topics: []string{topic}, Retry: specs[0].Retry, Push: &push.Options{
		Address: serveApp(t, application), Metadata: map[string]setting.Secret{"x-token": c.secret("metadata of a push", "canary-metadata-value")},
	}}
	called.DeadLetter.Topic = cluster.Name("canary-dead-push")
	specs = append(specs, called)

	dir := t.TempDir()
	made := cluster.Name("canary-made")
	if err := os.Mkdir(filepath.Join(dir, made), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, made, "password"), []byte(c.add("file of the API's", "canary-of-the-api")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	var log logged
	settings := config.Config{Kafka: cluster.Options(), DrainTimeout: 5 * time.Second}
	settings.Listen.HTTP, settings.Listen.GRPC, settings.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	prefixed(cluster, specs...)(&settings)
	settings.Webhooks.Issuer = "https://events.example.com"
	settings.Webhooks.SigningKeys = []webhook.Key{{Secret: c.secret("JWT key", private)}}
	c.add("JWT key's bytes", strings.TrimPrefix(private, "whsk_"))
	settings.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true, SecretsDir: dir}
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	settings.Kafka.Logger = logger
	g := startLogged(t, settings, logger)
	g.create(&posternv1.Subscription{
		Name: made, Topics: []string{topic}, Retry: &posternv1.RetryPolicy{MaxAttempts: 2},
		Webhook: &posternv1.Webhook{Url: endpointOf("canary-of-the-api"), AllowHttp: true, AllowLoopback: true, Auth: &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Bearer{
			Bearer: &posternv1.SecretReference{Name: "password"},
		}}},
	})
	put(cluster, topic, 1, "k")
	arrived := map[string]bool{}
	for limit := time.After(patience); len(arrived) < 8; {
		select {
		case what := <-sent:
			arrived[what] = true
		case <-limit:
			t.Fatalf("only these were sent as they are: %v", arrived)
		}
	}
	names := []string{made}
	for _, s := range specs {
		names = append(names, s.Name)
	}
	for _, name := range names[1:] {
		eventually(t, name+": both attempts are logged", func() bool {
			a, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{Subscription: name})
			return err == nil && len(a.Attempts) == 2
		})
	}

	// What the API answers.
	tell := func(where string, m proto.Message, err error) {
		t.Helper()
		if err != nil {
			c.nowhere(where, err.Error()+" (an error of the API)")
			return
		}
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		c.nowhere(where, string(b))
	}
	ctx := t.Context()
	for _, name := range names {
		s, err := g.subscriptions().GetSubscription(ctx, &posternv1.GetSubscriptionRequest{Name: name})
		tell("GetSubscription", s, err)
		status, err := g.subscriptions().GetSubscriptionStatus(ctx, &posternv1.GetSubscriptionStatusRequest{Name: name})
		tell("GetSubscriptionStatus", status, err)
		e, err := g.endpoints().GetEndpoint(ctx, &posternv1.GetEndpointRequest{Name: name})
		tell("GetEndpoint", e, err)
		a, err := g.endpoints().ListAttempts(ctx, &posternv1.ListAttemptsRequest{Subscription: name})
		tell("ListAttempts", a, err)
		sample, err := g.endpoints().TestEndpoint(ctx, &posternv1.TestEndpointRequest{Name: name})
		tell("TestEndpoint", sample, err)
		again, err := g.endpoints().ResendEvent(ctx, &posternv1.ResendEventRequest{Name: name, Position: &posternv1.Position{Topic: topic}})
		tell("ResendEvent", again, err)
	}
	list, err := g.subscriptions().ListSubscriptions(ctx, &posternv1.ListSubscriptionsRequest{})
	tell("ListSubscriptions", list, err)
	all, err := g.endpoints().ListEndpoints(ctx, &posternv1.ListEndpointsRequest{})
	tell("ListEndpoints", all, err)
	for _, path := range []string{"/asyncapi.json", "/.well-known/jwks.json", "/v1/subscriptions", "/v1/endpoints", "/v1/attempts?subscription=" + names[1], "/v1/subscriptions/" + names[1]} {
		c.nowhere(path, g.do("GET", path, "").Body)
	}
	c.nowhere("/metrics", g.metrics())

	// What is kept: the gateway's own topics, dead letters and operational events.
	details, err := cluster.Admin().ListTopics(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, name := range details.Names() {
		if name == topic || !strings.Contains(name, "st.") && !strings.Contains(name, "st-events") && !strings.Contains(name, "canary-dead") {
			continue
		}
		for _, r := range cluster.Read(name) {
			kept++
			c.nowhere(name, fmt.Sprintf("a record: %q %q %q", r.Key, r.Value, r.Headers))
		}
	}
	if kept < 2*len(specs) {
		t.Errorf("only %d records were looked at", kept)
	}
	// The configuration, however it is printed, and what is said of a wrong one.
	c.nowhere("the configuration", fmt.Sprintf("%v %+v %#v", settings, settings, settings))
	for _, s := range specs {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		c.nowhere("the subscription in JSON", string(b))
		if s.Webhook != nil {
			o := *s.Webhook
			o.URL, o.Timeout, o.Mode = "http://me:x@y/", -1, "loud"
			c.nowhere("what is wrong with it", fmt.Sprint(o.Validate()))
		}
	}
	g.stop()
	c.nowhere("the log", log.String())
	for _, want := range []string{"level=DEBUG", "level=INFO", names[1]} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %s in it: was all of it looked at?", want)
		}
	}
}

// parrotApp is an application that answers an error and says back its metadata.
type parrotApp struct {
	posternv1.UnimplementedEventHandlerServer
	saw func(metadata.MD)
}

func (p *parrotApp) Handle(ctx context.Context, _ *posternv1.HandleRequest) (*posternv1.HandleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p.saw(md)
	return nil, status.Error(codes.Internal, fmt.Sprint(map[string][]string(md)))
}
