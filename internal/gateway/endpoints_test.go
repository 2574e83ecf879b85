package gateway

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

func (r *running) endpoints() posternv1.EndpointsClient { return posternv1.NewEndpointsClient(r.conn) }

// receiver is an endpoint that answers as the test says, and counts.
type receiver struct {
	*httptest.Server
	status  atomic.Int32
	mu      sync.Mutex
	headers []http.Header
	bodies  []string
}

func newReceiver(t *testing.T, status int) *receiver {
	r := &receiver{}
	r.status.Store(int32(status))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		r.headers, r.bodies = append(r.headers, q.Header), append(r.bodies, string(b))
		r.mu.Unlock()
		w.WriteHeader(int(r.status.Load()))
		_, _ = io.WriteString(w, "as the test says")
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.bodies)
}

// prefixed gives a test its own state topics, also on a shared Kafka.
func prefixed(cluster *brokertest.Cluster, specs ...subscription.Spec) func(*config.Config) {
	return func(c *config.Config) {
		c.TopicsPrefix, c.Webhooks.EventsTopic = cluster.Name("st")+".", cluster.Name("st-events")
		c.Subscriptions = specs
	}
}

func TestGoneEndpointIsDisabledOnEveryInstanceUntilAPersonEnablesIt(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("gone", 2), cluster.Name("gone-sub")
	r := newReceiver(t, http.StatusGone)
	settings := prefixed(cluster, hook(name, topic, r.URL, delivery.Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, MaxAttempts: 1000}))
	a, b := start(t, cluster, settings), start(t, cluster, settings)
	put(cluster, topic, 1, "a")
	for _, g := range []*running{a, b} {
		eventually(t, "both know that it is disabled", func() bool {
			e, err := g.endpoints().GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: name})
			return err == nil && e.GetState() == posternv1.EndpointState_ENDPOINT_STATE_DISABLED && strings.Contains(e.GetReason(), "410")
		})
	}
	// One that starts now learns it before it sends anything.
	before := r.count()
	c := start(t, cluster, settings)
	put(cluster, topic, 5, "a", "b", "c", "d")
	eventually(t, "the third knows too", func() bool {
		e, err := c.endpoints().GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: name})
		return err == nil && e.GetState() == posternv1.EndpointState_ENDPOINT_STATE_DISABLED
	})
	if n := r.count(); n != before {
		t.Errorf("%d requests went to an endpoint that is gone", n-before)
	}
	r.status.Store(http.StatusOK)
	if e, err := c.endpoints().EnableEndpoint(t.Context(), &posternv1.EnableEndpointRequest{Name: name, Reason: "it is back"}); err != nil || e.GetState() != posternv1.EndpointState_ENDPOINT_STATE_ACTIVE {
		t.Fatalf("%v %v", e, err)
	}
	eventually(t, "all events come", func() bool {
		seen := map[string]bool{}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, h := range r.headers[before:] {
			seen[h.Get("Postern-Partition")+"/"+h.Get("Postern-Offset")] = true
		}
		return len(seen) == 21
	})
	if _, err := a.endpoints().DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: name, Reason: "enough"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second obeys", func() bool {
		e, err := b.endpoints().GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: name})
		return err == nil && e.GetState() == posternv1.EndpointState_ENDPOINT_STATE_DISABLED && strings.Contains(e.GetReason(), "enough")
	})
}

func TestEveryAttemptOfAnEventIsFoundByItsID(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("tried", 1), cluster.Name("tried-sub")
	r := newReceiver(t, http.StatusInternalServerError)
	g := start(t, cluster, prefixed(cluster, hook(name, topic, r.URL, delivery.Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond, MaxAttempts: 3})))
	for _, id := range []string{"e-1", "e-2"} {
		if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "ce-specversion", "1.0", "ce-id", id, "ce-source", "/s", "ce-type", "t",
			"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"); a.Status != 200 {
			t.Fatal(a.Body)
		}
	}
	var attempts []*posternv1.Attempt
	eventually(t, "three attempts are logged", func() bool {
		answer, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{EventId: "e-1"})
		if err != nil {
			t.Fatal(err)
		}
		attempts = answer.Attempts
		return len(attempts) == 3
	})
	for i, a := range attempts {
		if a.GetNumber() != int32(i+1) || a.GetStatus() != 500 || a.GetSubscription() != name || a.GetPosition().GetTopic() != topic ||
			a.GetEventSource() != "/s" || !strings.Contains(a.GetDetail(), "as the test says") || a.GetTotal().AsDuration() <= 0 || len(a.GetKeys()) != 1 ||
			a.GetWebhookId() != endpoint.MessageID(name, event.Position{Topic: topic}) || a.GetTraceId() != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("attempt %d: %v", i+1, a)
		}
	}
	// The first to go over a new connection took time to connect.
	eventually(t, "the other event's attempts are logged", func() bool {
		answer, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{Subscription: name, Failed: true, Since: timestamppb.New(time.Now().Add(-time.Hour))})
		return err == nil && len(answer.Attempts) == 6
	})
	answer, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{Subscription: name, Limit: 2})
	if err != nil || len(answer.Attempts) != 2 || !answer.Truncated || answer.Attempts[1].GetEventId() == "" {
		t.Errorf("%v %v", answer, err)
	}
	// The same over HTTP.
	if a := g.do("GET", "/v1/attempts?event_id=e-2&failed=true", ""); a.Status != 200 || !strings.Contains(a.Body, `"event_id":"e-2"`) || strings.Contains(a.Body, "e-1") {
		t.Errorf("%d %s", a.Status, a.Body)
	}

	// Out of attempts is told.
	eventually(t, "exhaustion is told", func() bool {
		events := cluster.Read(cluster.Name("st-events"))
		return len(events) == 2 && header(events[0], "ce_type") == endpoint.NoticeExhausted && strings.Contains(string(events[0].Value), topic)
	})

	// They are resent by hand, one by its place, all by a time.
	r.status.Store(http.StatusOK)
	again, err := g.endpoints().ResendEvent(t.Context(), &posternv1.ResendEventRequest{Name: name, Position: attempts[0].GetPosition()})
	if err != nil || again.GetAttempt().GetAction() != "ack" || !again.GetAttempt().GetReplay() || again.GetAttempt().GetWebhookId() != attempts[0].GetWebhookId() {
		t.Errorf("%v %v", again, err)
	}
	eventually(t, "the resent one is not lost any more", func() bool {
		last := recoverAll(t, g, &posternv1.RecoverEndpointRequest{Name: name, Since: timestamppb.New(time.Now().Add(-time.Hour)), DryRun: true})
		return last.GetTotal() == 1
	})
	last := recoverAll(t, g, &posternv1.RecoverEndpointRequest{Name: name, Since: timestamppb.New(time.Now().Add(-time.Hour)), RequestsPerSecond: 100})
	if last.GetTotal() != 1 || last.GetSucceeded() != 1 || last.GetFailed() != 0 {
		t.Errorf("%v", last)
	}
	last = recoverAll(t, g, &posternv1.RecoverEndpointRequest{Name: name, Since: timestamppb.New(time.Now().Add(-time.Hour)), RequestsPerSecond: 100, All: true})
	if last.GetTotal() != 2 || last.GetSucceeded() != 2 {
		t.Errorf("%v", last)
	}
	r.mu.Lock()
	if h := r.headers[len(r.headers)-1]; h.Get("Webhook-Replay") != "true" {
		t.Errorf("%v", h)
	}
	r.mu.Unlock()
	for _, at := range []*posternv1.Position{{Topic: topic, Offset: 99}, {Topic: topic, Partition: 7}} {
		if _, err := g.endpoints().ResendEvent(t.Context(), &posternv1.ResendEventRequest{Name: name, Position: at}); status.Code(err) != codes.NotFound {
			t.Errorf("%v: %v", at, err)
		}
	}
	other := cluster.Topic("other", 1)
	put(cluster, other, 1, "k")
	if _, err := g.endpoints().ResendEvent(t.Context(), &posternv1.ResendEventRequest{Name: name, Position: &posternv1.Position{Topic: other}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a topic that is none of the subscription's was sent: %v", err)
	}
}

func recoverAll(t *testing.T, g *running, request *posternv1.RecoverEndpointRequest) *posternv1.RecoverEndpointResponse {
	t.Helper()
	stream, err := g.endpoints().RecoverEndpoint(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var last *posternv1.RecoverEndpointResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !last.GetDone() {
				t.Errorf("it ended with %v", last)
			}
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = m
	}
}

func TestEndpointIsTriedWithASignedSampleWhateverItsState(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("sampled", 1), cluster.Name("sampled-sub")
	r := newReceiver(t, http.StatusTeapot)
	g := start(t, cluster, prefixed(cluster, hook(name, topic, r.URL, delivery.Retry{})))
	eventually(t, "it runs", func() bool {
		list, err := g.endpoints().ListEndpoints(t.Context(), &posternv1.ListEndpointsRequest{})
		return err == nil && len(list.Endpoints) == 1 && list.Endpoints[0].Running
	})
	if _, err := g.endpoints().DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	answer, err := g.endpoints().TestEndpoint(t.Context(), &posternv1.TestEndpointRequest{Name: name})
	if err != nil || answer.GetAttempt().GetStatus() != 418 || answer.GetAttempt().GetAction() != "retry" {
		t.Fatalf("%v %v", answer, err)
	}
	if h := r.headers[0]; h.Get("Webhook-Signature") == "" || h.Get("Ce-Type") != "dev.postern.sample" || h.Get("Webhook-Sample") != "true" {
		t.Errorf("%v", h)
	}
	if _, err := g.endpoints().TestEndpoint(t.Context(), &posternv1.TestEndpointRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("%v", err)
	}
}

func TestSignaturesOfTheGatewaysOwnKeysAreVerifiedByItsJWKS(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("asym", 1), cluster.Name("asym-sub")
	private, _ := webhook.GenerateKeyPair()
	r := newReceiver(t, http.StatusOK)
	g := start(t, cluster, func(c *config.Config) {
		s := hook(name, topic, r.URL, delivery.Retry{})
		s.Webhook.Asymmetric = true
		prefixed(cluster, s)(c)
		c.Webhooks.Issuer = "https://events.example.com"
		c.Webhooks.SigningKeys = []webhook.Key{{Secret: setting.NewSecret(private)}}
	})
	put(cluster, topic, 1, "k")
	eventually(t, "it is pushed", func() bool { return r.count() == 1 })
	var set struct {
		Keys []struct{ X, Kty, Crv string }
	}
	if err := json.Unmarshal([]byte(g.do("GET", "/.well-known/jwks.json", "").Body), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%v %v", set, err)
	}
	public, err := base64.RawURLEncoding.DecodeString(set.Keys[0].X)
	if err != nil {
		t.Fatal(err)
	}
	h := r.headers[0]
	tokens := strings.Split(h.Get("Webhook-Signature"), " ")
	if len(tokens) != 2 || !strings.HasPrefix(tokens[0], "v1,") || !strings.HasPrefix(tokens[1], "v1a,") {
		t.Fatalf("signatures %q", tokens)
	}
	signature, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(tokens[1], "v1a,"))
	if !ed25519.Verify(public, []byte(h.Get("Webhook-Id")+"."+h.Get("Webhook-Timestamp")+"."+r.bodies[0]), signature) {
		t.Error("the JWKS does not verify the signature")
	}
	if a := g.do("GET", "/.well-known/openid-configuration", ""); a.Status != 200 || !strings.Contains(a.Body, `"jwks_uri":"https://events.example.com/.well-known/jwks.json"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// app is an application that serves EventHandler.
type app struct {
	posternv1.UnimplementedEventHandlerServer
	mu      sync.Mutex
	got     []*posternv1.HandleRequest
	batches []int
	answer  func(*posternv1.HandleRequest) error
}

func (a *app) Handle(_ context.Context, r *posternv1.HandleRequest) (*posternv1.HandleResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got = append(a.got, r)
	return &posternv1.HandleResponse{}, a.answer(r)
}

func (a *app) HandleBatch(_ context.Context, b *posternv1.HandleBatchRequest) (*posternv1.HandleBatchResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.batches = append(a.batches, len(b.Requests))
	answer := &posternv1.HandleBatchResponse{}
	for _, r := range b.Requests {
		a.got = append(a.got, r)
		s := status.Convert(a.answer(r))
		answer.Results = append(answer.Results, &posternv1.HandleResult{Code: int32(s.Code()), Message: s.Message()})
	}
	return answer, nil
}

func (a *app) serve(t *testing.T) string { return serveApp(t, a) }

func serveApp(t *testing.T, a posternv1.EventHandlerServer) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	posternv1.RegisterEventHandlerServer(s, a)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func TestApplicationGetsItsEventsOverGRPCAndItsStatusSaysWhatBecomesOfThem(t *testing.T) {
	for _, batch := range []*endpoint.Batch{nil, {MaxEvents: 4}} {
		t.Run(strconv.FormatBool(batch != nil), func(t *testing.T) {
			cluster := brokertest.New(t)
			topic, name, dead := cluster.Topic("handled", 1), cluster.Name("handled-sub"), cluster.Name("handled-dead")
			a := &app{}
			a.answer = func(r *posternv1.HandleRequest) error {
				switch string(r.Event.Key) {
				case "reject":
					return status.Error(codes.InvalidArgument, "no such order")
				case "retry":
					if r.Attempt < 3 {
						return status.Error(codes.Internal, "not yet")
					}
				case "unimplemented":
					if r.Attempt < 3 {
						return status.Error(codes.Unimplemented, "which method?")
					}
				}
				return nil
			}
			spec := subscription.Spec{
				Name: name, Topics: []string{topic}, DeadLetter: subscription.DeadLetter{Topic: dead}, Retry: delivery.Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond},
				Push: &push.Options{Address: a.serve(t), Batch: batch, Metadata: map[string]setting.Secret{"x-token": setting.NewSecret("t")}},
			}
			g := start(t, cluster, prefixed(cluster, spec))
			put(cluster, topic, 1, "fine", "reject", "retry", "unimplemented")
			eventually(t, "each is handled as often as it must", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				tries := map[string]int{}
				for _, r := range a.got {
					tries[string(r.Event.Key)]++
				}
				return tries["fine"] == 1 && tries["reject"] == 1 && tries["retry"] == 3 && tries["unimplemented"] == 3
			})
			eventually(t, "the rejected one is a dead letter", func() bool {
				letters := cluster.Read(dead)
				return len(letters) == 1 && strings.Contains(header(letters[0], event.DeadLetterDetail), "no such order")
			})
			a.mu.Lock()
			defer a.mu.Unlock()
			if (batch != nil) != (len(a.batches) > 0) {
				t.Errorf("batches %v", a.batches)
			}
			if r := a.got[0]; r.GetSubscription() != name || r.GetPosition().GetTopic() != topic || r.GetMessageId() == "" || r.GetAppended() == nil {
				t.Errorf("%v", r)
			}
			g.stop()
		})
	}
}

func TestApplicationThatIsExhaustedIsLeftAloneAsLongAsItSays(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("busy", 1), cluster.Name("busy-sub")
	a := &app{answer: func(*posternv1.HandleRequest) error {
		s, err := status.New(codes.ResourceExhausted, "too much").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
		if err != nil {
			return err
		}
		return s.Err()
	}}
	g := start(t, cluster, prefixed(cluster, subscription.Spec{Name: name, Topics: []string{topic}, Push: &push.Options{Address: a.serve(t)}}))
	put(cluster, topic, 1, "k")
	eventually(t, "it is throttled", func() bool {
		e, err := g.endpoints().GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: name})
		return err == nil && e.GetState() == posternv1.EndpointState_ENDPOINT_STATE_THROTTLED && time.Until(e.GetUntil().AsTime()) > 59*time.Minute
	})
}

func TestLagOfAnEndpointThatIsThrottledBrokenOrDisabledNamesIt(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("why", 2), cluster.Name("why-sub")
	r := newReceiver(t, http.StatusTooManyRequests)
	g := start(t, cluster, prefixed(cluster, hook(name, topic, r.URL, delivery.Retry{MinBackoff: 50 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, MaxAttempts: 1000})))
	put(cluster, topic, 5, "a", "b", "c", "d")
	told := func(kind posternv1.CauseKind, says string) {
		t.Helper()
		var last *posternv1.SubscriptionStatus
		eventually(t, kind.String(), func() bool {
			status, err := posternv1.NewSubscriptionsClient(g.conn).GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			last = status
			return status.GetCause().GetKind() == kind && strings.Contains(status.GetCause().GetSummary(), says)
		})
		if last.GetLag() != 20 || last.GetCause().GetFigures()["host"] == "" {
			t.Errorf("%v", last)
		}
		disabled := kind == posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED
		if stopped := last.GetState() == posternv1.SubscriptionState_SUBSCRIPTION_STATE_STOPPED; stopped != disabled {
			t.Errorf("%s: it is %s", kind, last.GetState())
		}
	}
	told(posternv1.CauseKind_CAUSE_KIND_ENDPOINT_THROTTLED, "429 Too Many Requests: as the test says")
	if _, err := g.endpoints().DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: name, Reason: "for the weekend"}); err != nil {
		t.Fatal(err)
	}
	told(posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED, "for the weekend")
	r.status.Store(http.StatusInternalServerError)
	if _, err := g.endpoints().EnableEndpoint(t.Context(), &posternv1.EnableEndpointRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	told(posternv1.CauseKind_CAUSE_KIND_ENDPOINT_OPEN, "500 Internal Server Error")
}

func TestEndpointsMadeThroughTheAPIAreWhatTheFilesWouldBe(t *testing.T) {
	cluster := brokertest.New(t)
	topic, hooked, called := cluster.Topic("made", 1), cluster.Name("made-hook"), cluster.Name("made-app")
	dir := t.TempDir()
	for _, name := range []string{hooked, called} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "password"), []byte("open sesame\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newReceiver(t, http.StatusConflict)
	got := make(chan string, 100)
	a := &app{answer: func(r *posternv1.HandleRequest) error { got <- string(r.Event.Data); return nil }}
	address := a.serve(t)
	g := start(t, cluster, func(c *config.Config) {
		prefixed(cluster)(c)
		c.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true, SecretsDir: dir, PushAddresses: []string{address}}
	})
	g.create(&posternv1.Subscription{Name: hooked, Topics: []string{topic}, Webhook: &posternv1.Webhook{
		Url: r.URL, AllowHttp: true, AllowLoopback: true, Mode: posternv1.WebhookMode_WEBHOOK_MODE_BATCH, Outcomes: map[string]string{"409": "ack"},
		Batch: &posternv1.PushBatch{MaxEvents: 3, MaxWait: durationpb.New(time.Minute)},
		Auth: &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Basic{Basic: &posternv1.BasicAuth{
			Username: "postern", Password: &posternv1.SecretReference{Name: "password"},
		}}},
	}})
	made := g.create(&posternv1.Subscription{Name: called, Topics: []string{topic}, Push: &posternv1.Push{
		Address: address, Metadata: map[string]*posternv1.SecretReference{"token": {Name: "password"}},
	}})
	if text := made.String(); strings.Contains(text, "sesame") || !strings.Contains(text, "password") {
		t.Error(text)
	}
	put(cluster, topic, 1, "a", "b", "c")
	eventually(t, "the batch, which 409 acknowledges", func() bool {
		e, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{Subscription: hooked})
		return err == nil && len(e.GetAttempts()) == 3 && e.GetAttempts()[0].GetAction() == "ack" && e.GetAttempts()[0].GetBatchSize() == 3
	})
	if user, password, ok := (&http.Request{Header: r.headers[0]}).BasicAuth(); !ok || user != "postern" || password != "open sesame" || r.count() != 1 {
		t.Errorf("%q %q, %d requests", user, password, r.count())
	}
	for range 3 {
		select {
		case <-got:
		case <-time.After(patience):
			t.Fatal("the application is not called")
		}
	}
	_, err := g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{
		Name: "other", Topics: []string{topic}, Push: &posternv1.Push{Address: "127.0.0.1:22"},
	}})
	if !strings.Contains(status.Convert(err).Message(), "push.address") {
		t.Errorf("an address that the operator does not allow: %v", err)
	}
}

func TestEndpointConsentsLaterAtTheCallbackOfAnyInstanceAndOnce(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("asked", 1), cluster.Name("asked-sub")
	var posts atomic.Int32
	offers := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			offers <- r.Header.Get("WebHook-Request-Callback") // it withholds the headers, and calls back later
			return
		}
		posts.Add(1)
	}))
	defer receiver.Close()
	spec := hook(name, topic, receiver.URL, delivery.Retry{})
	spec.Webhook.Handshake = &webhook.Handshake{Origin: "events.example.com", RequestRate: 6000, Callback: true}
	settings := prefixed(cluster, spec)
	with := func(c *config.Config) { settings(c); c.Webhooks.CallbackURL = "https://events.example.com" }
	a, b := start(t, cluster, with), start(t, cluster, with)
	put(cluster, topic, 3, "k")
	offer := ""
	for range 2 { // each instance asks
		select {
		case offer = <-offers:
		case <-time.After(patience):
			t.Fatal("nothing is offered")
		}
	}
	eventually(t, "the one that has the partition names the consent as the cause", func() bool {
		for _, g := range []*running{a, b} {
			status, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
			if err == nil && status.GetCause().GetKind() == posternv1.CauseKind_CAUSE_KIND_ENDPOINT_OPEN && strings.Contains(status.GetCause().GetSummary(), "callback") {
				return true
			}
		}
		return false
	})
	path, ok := strings.CutPrefix(offer, "https://events.example.com")
	if !ok {
		t.Fatalf("offered %q", offer)
	}
	for _, wrong := range []string{path + "x", strings.Replace(path, name, "other", 1), strings.Split(path, "?")[0]} {
		if got := b.do("GET", wrong, ""); got.Status != http.StatusNotFound || !strings.Contains(got.Body, "UNKNOWN_CONSENT") {
			t.Errorf("%s: %d %s", wrong, got.Status, got.Body)
		}
	}
	if got := a.do("GET", path, "", "WebHook-Allowed-Rate", "many"); got.Status != http.StatusBadRequest {
		t.Errorf("a rate that cannot be read: %d %s", got.Status, got.Body)
	}
	if n := posts.Load(); n != 0 {
		t.Fatalf("%d events before consent", n)
	}
	// One of the two instances did not make this offer.
	if got := a.do("POST", path, "", "WebHook-Allowed-Rate", "600"); got.Status != http.StatusOK || !strings.Contains(got.Body, name) {
		t.Fatalf("%d %s", got.Status, got.Body)
	}
	eventually(t, "the events come", func() bool { return posts.Load() == 3 })
	for _, g := range []*running{a, b} {
		eventually(t, "both know", func() bool {
			e, err := g.endpoints().GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: name})
			return err == nil && e.GetState() == posternv1.EndpointState_ENDPOINT_STATE_ACTIVE
		})
		if got := g.do("GET", path, ""); got.Status != http.StatusNotFound {
			t.Errorf("the link works twice: %d %s", got.Status, got.Body)
		}
	}
}
