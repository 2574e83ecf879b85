package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

func (r *running) subscriptions() posternv1.SubscriptionsClient {
	return posternv1.NewSubscriptionsClient(r.conn)
}

// eventually waits until done holds.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(30 * time.Second)
	for !done() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("%s: it never came", what)
		}
	}
}

func (r *running) create(m *posternv1.Subscription) *posternv1.Subscription {
	r.t.Helper()
	made, err := r.subscriptions().CreateSubscription(r.t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: m})
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

// awaitKnown waits until the gateway knows a subscription that was made at another.
func (r *running) awaitKnown(name string) {
	r.t.Helper()
	eventually(r.t, "the gateway's knowing "+name, func() bool {
		_, err := r.subscriptions().GetSubscription(r.t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
		return err == nil
	})
}

func TestSubscriptionCreatedAtOneGatewayIsServedByAnotherWithinASecond(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 2)
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	name := cluster.Name("mail")
	made := one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Labels: map[string]string{"team": "a"}})
	if made.Etag == "" || made.Generation != 1 || made.DeclaredIn != posternv1.DeclaredIn_DECLARED_IN_API || made.CreateTime == nil {
		t.Errorf("made %v", made)
	}
	began := time.Now()
	eventually(t, "the other gateway's knowing it", func() bool {
		got, err := two.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
		return err == nil && got.Etag == made.Etag
	})
	if took := time.Since(began); took > time.Second {
		t.Errorf("the other gateway knew it after %s", took)
	}
	two.publish(topic, "anna", "tea")
	s := two.subscribe(&posternv1.Open{Subscription: name})
	d := s.next()
	if string(d.Event.Data) != "tea" {
		t.Errorf("got %v", d)
	}
	s.ack(d)
	list, err := two.subscriptions().ListSubscriptions(t.Context(), &posternv1.ListSubscriptionsRequest{Labels: []string{"team=a"}, Topic: topic})
	if err != nil || len(list.Subscriptions) != 1 {
		t.Errorf("%v %v", list, err)
	}
	if list, _ = two.subscriptions().ListSubscriptions(t.Context(), &posternv1.ListSubscriptionsRequest{Labels: []string{"team=b"}}); len(list.GetSubscriptions()) != 0 {
		t.Errorf("another label gives %v", list)
	}
	s.close()
	one.stop()
	two.stop()
	three := start(t, cluster, nil)
	if got, err := three.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name}); err != nil || got.Etag != made.Etag {
		t.Errorf("after a restart: %v %v", got, err)
	}
}

func TestStaleEtagIsRefusedAndTheLastWordStandsWithout(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	name := cluster.Name("mail")
	made := one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Lease: durationpb.New(5 * time.Second), Labels: map[string]string{"a": "1"}})
	if _, err := two.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: made}); reasonOf(t, err) != fault.SubscriptionExists {
		t.Errorf("made twice: %v", err)
	}
	update := func(r *running, m *posternv1.Subscription, paths ...string) (*posternv1.Subscription, error) {
		return r.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{Subscription: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
	}
	changed, err := update(two, &posternv1.Subscription{Name: name, Etag: made.Etag, Lease: durationpb.New(7 * time.Second)}, "lease")
	if err != nil || changed.Lease.AsDuration() != 7*time.Second || changed.Labels["a"] != "1" || changed.Generation != 2 || changed.Etag == made.Etag {
		t.Fatalf("%v %v", changed, err)
	}
	_, err = update(one, &posternv1.Subscription{Name: name, Etag: made.Etag, Lease: durationpb.New(9 * time.Second)}, "lease")
	if reasonOf(t, err) != fault.EtagMismatch || status.Code(err) != codes.Aborted {
		t.Errorf("a stale etag: %v", err)
	}
	if again, err := update(one, &posternv1.Subscription{Name: name, Retry: &posternv1.RetryPolicy{MaxAttempts: 3}}, "retry.max_attempts", "labels"); err != nil ||
		again.Retry.MaxAttempts != 3 || len(again.Labels) != 0 || again.Lease.AsDuration() != 7*time.Second {
		t.Errorf("%v %v", again, err)
	}
	for want, m := range map[string]*posternv1.UpdateSubscriptionRequest{
		"subscription.order": {Subscription: &posternv1.Subscription{Name: name, Order: posternv1.Order_ORDER_NONE}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"order"}}},
		"subscription.group": {Subscription: &posternv1.Subscription{Name: name, Group: "other"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"group"}}},
		"subscription.start": {Subscription: &posternv1.Subscription{Name: name, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"start"}}},
		"update_mask":        {Subscription: &posternv1.Subscription{Name: name}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"colour"}}},
		"subscription.filter.cel": {
			Subscription: &posternv1.Subscription{Name: name, Filter: &posternv1.Filter{Cel: "event.type =="}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"filter"}},
		},
	} {
		_, err := one.subscriptions().UpdateSubscription(t.Context(), m)
		s, _ := status.FromError(err)
		if f := wire.FromStatus(s.Proto()); f.Reason != fault.InvalidArgument || len(f.Violations) == 0 || f.Violations[0].Field != want {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := update(one, &posternv1.Subscription{Name: cluster.Name("nobody")}, "lease"); reasonOf(t, err) != fault.UnknownSubscription {
		t.Error(err)
	}
	got, err := one.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name, Etag: made.Etag}); reasonOf(t, err) != fault.EtagMismatch {
		t.Error(err)
	}
	if _, err := one.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name, Etag: got.Etag}); err != nil {
		t.Error(err)
	}
	if _, err := one.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name}); reasonOf(t, err) != fault.UnknownSubscription {
		t.Error(err)
	}
}

func TestChangingOneSubscriptionEndsItsStreamsAndNoOthers(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	changing, other := cluster.Name("changing"), cluster.Name("other")
	for _, name := range []string{changing, other} {
		g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	}
	s, o := g.subscribe(&posternv1.Open{Subscription: changing}), g.subscribe(&posternv1.Open{Subscription: other})
	g.publish(topic, "anna", "1")
	s.ack(s.next())
	held := o.next()

	if _, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{
		Subscription: &posternv1.Subscription{Name: changing, Labels: map[string]string{"a": "b"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
	}); err != nil {
		t.Fatal(err)
	}
	g.publish(topic, "anna", "2") // a label changes nothing of what is delivered
	s.ack(s.next())

	if _, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{
		Subscription: &posternv1.Subscription{Name: changing, Lease: durationpb.New(5 * time.Second)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"lease"}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; reasonOf(t, err) != fault.SubscriptionChanged {
		t.Errorf("the stream ended with %v", err)
	}
	again := g.subscribe(&posternv1.Open{Subscription: changing})
	if again.opened.Lease.AsDuration() != 5*time.Second {
		t.Errorf("opened %v", again.opened)
	}
	g.publish(topic, "anna", "3")
	if d := again.next(); string(d.Event.Data) != "3" {
		t.Errorf("after the change %s is delivered", d.Event.Data)
	}
	if _, err := g.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: changing}); err != nil {
		t.Fatal(err)
	}
	if err := <-again.ended; reasonOf(t, err) != fault.SubscriptionDeleted {
		t.Errorf("the stream ended with %v", err)
	}
	o.ack(held)
	for i := 2; i <= 3; i++ { // the other one went on all the time
		if d := o.next(); string(d.Event.Data) != fmt.Sprint(i) || d.Attempt != 1 {
			t.Errorf("the other subscription got %s, attempt %d", d.Event.Data, d.Attempt)
		} else {
			o.ack(d)
		}
	}
}

func TestWebhookCreatedChangedAndDeletedThroughTheAPIStartsMovesAndStops(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	var first, second atomic.Int64
	receiver := func(n *atomic.Int64) string {
		s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { n.Add(1) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	a, b := receiver(&first), receiver(&second)
	g := start(t, cluster, func(c *config.Config) {
		c.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true}
	})
	name := cluster.Name("hook")
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Webhook: &posternv1.Webhook{Url: a, AllowHttp: true, AllowLoopback: true}})
	g.publish(topic, "anna", "1")
	eventually(t, "the first request", func() bool { return first.Load() == 1 })
	if _, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{
		Subscription: &posternv1.Subscription{Name: name, Webhook: &posternv1.Webhook{Url: b}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"webhook.url"}},
	}); err != nil {
		t.Fatal(err)
	}
	g.publish(topic, "anna", "2")
	defer func() { t.Logf("%d and %d requests", first.Load(), second.Load()) }()
	eventually(t, "a request at the new URL", func() bool { return second.Load() == 1 })
	if _, err := g.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the webhook's end", func() bool {
		g.gateway.webhooks.mu.Lock()
		defer g.gateway.webhooks.mu.Unlock()
		return len(g.gateway.webhooks.all) == 0
	})
	g.publish(topic, "anna", "3")
	if first.Load() != 1 || second.Load() != 1 {
		t.Errorf("%d and %d requests", first.Load(), second.Load())
	}
}

func TestFileDeclaredSubscriptionIsReadOnlyButCanBePaused(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	name := cluster.Name("mail")
	declare := func(c *config.Config) {
		c.Subscriptions = []subscription.Spec{{Name: name, Topics: []string{topic}}}
	}
	g := start(t, cluster, declare)
	got, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
	if err != nil || got.DeclaredIn != posternv1.DeclaredIn_DECLARED_IN_FILE || got.Paused {
		t.Fatalf("%v %v", got, err)
	}
	for _, call := range []func() error{
		func() error {
			_, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{Subscription: got})
			return err
		},
		func() error {
			_, err := g.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name})
			return err
		},
	} {
		if err := call(); reasonOf(t, err) != fault.DeclaredInFile || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v", err)
		}
	}
	paused, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name})
	if err != nil || !paused.Paused {
		t.Fatalf("%v %v", paused, err)
	}
	if again, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name, Etag: paused.Etag}); err != nil || again.Etag != paused.Etag {
		t.Errorf("paused twice: %v %v", again, err)
	}
	if st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name}); err != nil ||
		st.State != posternv1.SubscriptionState_SUBSCRIPTION_STATE_PAUSED || st.Cause.Kind != posternv1.CauseKind_CAUSE_KIND_PAUSED {
		t.Errorf("%v %v", st, err)
	}
	g.stop()
	again := start(t, cluster, declare)
	if got, err := again.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name}); err != nil || !got.Paused {
		t.Errorf("after a restart: %v %v", got, err)
	}
	if got, err := again.subscriptions().ResumeSubscription(t.Context(), &posternv1.ResumeSubscriptionRequest{Name: name}); err != nil || got.Paused {
		t.Errorf("%v %v", got, err)
	}
}

func TestGatewaysWithDifferentFilesRunBothUnlessOrderOrGroupDiffer(t *testing.T) {
	cluster := brokertest.New(t)
	topic, more := cluster.Topic("orders", 1), cluster.Topic("returns", 1)
	name := cluster.Name("mail")
	with := func(s subscription.Spec) func(*config.Config) {
		s.Name = name
		return func(c *config.Config) { c.Subscriptions = []subscription.Spec{s} }
	}
	get := func(r *running) *posternv1.Subscription {
		got, err := r.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	old := start(t, cluster, with(subscription.Spec{Topics: []string{topic}}))
	eventually(t, "the declaration's record", func() bool { return get(old).UpdateTime != nil })

	rolling := start(t, cluster, with(subscription.Spec{Topics: []string{topic, more}}))
	eventually(t, "the old gateway's note", func() bool { return get(old).Note != "" })
	if got := get(rolling); got.Problem != "" || len(got.Topics) != 2 {
		t.Errorf("the new gateway says %v", got)
	}
	if got := get(old); got.Problem != "" || len(got.Topics) != 1 {
		t.Errorf("the old gateway says %v", got)
	}
	old.subscribe(&posternv1.Open{Subscription: name})

	other := start(t, cluster, with(subscription.Spec{Topics: []string{topic}, Group: "another"}))
	eventually(t, "the refusal", func() bool { return get(other).Problem != "" })
	if _, err := other.subscriber().Pull(t.Context(), &posternv1.PullRequest{Name: name}); reasonOf(t, err) != fault.SubscriptionMismatch {
		t.Errorf("it is served: %v", err)
	}
	without := start(t, cluster, nil)
	if got := get(without); got.Problem == "" || got.DeclaredIn != posternv1.DeclaredIn_DECLARED_IN_FILE {
		t.Errorf("a gateway without it says %v", got)
	}
	// The way out: those with the old file stop, its record goes, the new one goes on.
	old.stop()
	rolling.stop()
	if _, err := other.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the refusal", func() bool { return get(other).Problem == "" })
}

func TestWebhookOfTheAPIReachesOnlyWhatTheOperatorAllows(t *testing.T) {
	cluster := brokertest.Fake(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, func(c *config.Config) { c.SubscriptionsAPI.AllowCIDRs = []string{"10.1.0.0/16"} })
	for want, w := range map[string]*posternv1.Webhook{
		"subscription.webhook.allow_http":     {Url: "http://example.com/", AllowHttp: true},
		"subscription.webhook.allow_loopback": {Url: "https://example.com/", AllowLoopback: true},
		"subscription.webhook.allow_cidrs[1]": {Url: "https://example.com/", AllowCidrs: []string{"10.1.2.0/24", "10.0.0.0/8"}},
		"subscription.webhook.secrets":        {Url: "https://example.com/", Secrets: []*posternv1.SecretReference{{Name: "key"}}},
		"subscription.webhook.url":            {Url: "ftp://example.com/"},
	} {
		_, err := g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{
			Subscription: &posternv1.Subscription{Name: "hook", Topics: []string{topic}, Webhook: w}, ValidateOnly: true,
		})
		s, _ := status.FromError(err)
		if f := wire.FromStatus(s.Proto()); f.Reason != fault.InvalidArgument || len(f.Violations) == 0 || f.Violations[0].Field != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestSubscriptionsOverHTTPAreWhatTheProtoSays(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	name := cluster.Name("mail")
	path := "/v1/subscriptions/" + name
	if a := g.do("POST", "/v1/subscriptions", fmt.Sprintf(`{"name":%q,"topics":[%q],"filter":{"exact":{"type":"order.created"}}}`, name, topic)); a.Status != 200 || !strings.Contains(a.Body, `"exact"`) {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if a := g.do("PATCH", path, `{"filter":{"cel":"event.type == 'x'"},"retry":{"max_attempts":2}}`); a.Status != 200 || strings.Contains(a.Body, `"exact"`) || !strings.Contains(a.Body, `"generation":"2"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("PATCH", path, `{"filter":{"cel":"evnt.type == 'x'"}}`); a.Status != 400 || a.Reason != "INVALID_ARGUMENT" || !strings.Contains(a.Body, "undeclared reference") {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path+":pause", `{}`); a.Status != 200 || !strings.Contains(a.Body, `"paused":true`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("GET", "/v1/subscriptions?topic="+topic, ""); a.Status != 200 || !strings.Contains(a.Body, name) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("GET", path+"/status", ""); a.Status != 200 || !strings.Contains(a.Body, "CAUSE_KIND_PAUSED") {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path+":seek", `{"edge":"EDGE_LATEST","dry_run":true}`); a.Status != 200 || !strings.Contains(a.Body, `"partitions"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("DELETE", path+"?etag=stale", ""); a.Status != 409 || a.Reason != "ETAG_MISMATCH" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("DELETE", path, ""); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("GET", path, ""); a.Status != 404 || a.Reason != "UNKNOWN_SUBSCRIPTION" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

func TestDryRunOfASeekTellsWhatTheSeekThenDoes(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 2)
	g := start(t, cluster, nil)
	name := cluster.Name("mail")
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	for i := range 6 {
		p := int32(i % 2)
		if _, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x"), Partition: &p}}}); err != nil {
			t.Fatal(err)
		}
	}
	s := g.subscribe(&posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT})
	for range 6 {
		s.ack(s.next())
	}
	eventually(t, "the commits", func() bool {
		a, _ := cluster.Committed(name, topic, 0)
		b, _ := cluster.Committed(name, topic, 1)
		return a == 3 && b == 3
	})
	seek := func(m *posternv1.SeekSubscriptionRequest) (*posternv1.SeekSubscriptionResponse, error) {
		m.Name = name
		return g.subscriptions().SeekSubscription(t.Context(), m)
	}
	earliest := &posternv1.SeekSubscriptionRequest{To: &posternv1.SeekSubscriptionRequest_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}, DryRun: true}
	dry, err := seek(earliest)
	if err != nil || dry.Redelivered != 6 || dry.Skipped != 0 || len(dry.Partitions) != 2 || dry.Subscription != nil {
		t.Fatalf("%v %v", dry, err)
	}
	positions := func(all ...*posternv1.Position) *posternv1.SeekSubscriptionRequest {
		return &posternv1.SeekSubscriptionRequest{To: &posternv1.SeekSubscriptionRequest_Positions{Positions: &posternv1.SeekPositions{Positions: all}}}
	}
	for _, wrong := range []*posternv1.SeekSubscriptionRequest{
		positions(&posternv1.Position{Topic: topic, Partition: 1, Offset: 9}), positions(&posternv1.Position{Topic: topic, Partition: 7}), positions(&posternv1.Position{Topic: "another"}),
		{To: &posternv1.SeekSubscriptionRequest_Cursor{Cursor: &posternv1.SeekCursor{Cursor: "c1.x"}}},
	} {
		if _, err := seek(wrong); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", wrong, err)
		}
	}
	done, err := seek(positions(&posternv1.Position{Topic: topic, Partition: 1, Offset: 1}))
	if err != nil || done.Redelivered != 2 || len(done.Partitions) != 1 || done.Subscription.SeekEpoch == 0 {
		t.Fatalf("%v %v", done, err)
	}
	e, err := g.gateway.registry.Entry(t.Context(), name)
	if err != nil || len(e.Desired.Seeks) != 1 {
		t.Errorf("%+v %v", e.Desired, err)
	}
}

func TestPausedSubscriptionDeliversNothingUntilItIsResumedAtAnyGateway(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	name := cluster.Name("mail")
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	s := one.subscribe(&posternv1.Open{Subscription: name})
	one.publish(topic, "anna", "1")
	held := s.next()
	if _, err := two.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pause at the other gateway", func() bool {
		st, err := one.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && st.State == posternv1.SubscriptionState_SUBSCRIPTION_STATE_PAUSED
	})
	s.ack(held) // what is delivered may still be settled
	one.publish(topic, "anna", "2")
	one.publish(topic, "bert", "3")
	if answer, err := one.subscriber().Pull(t.Context(), &posternv1.PullRequest{Name: name, Wait: durationpb.New(500 * time.Millisecond)}); err != nil || len(answer.Deliveries) != 0 {
		t.Errorf("paused, and delivered: %v %v", answer, err)
	}
	select {
	case d := <-s.events:
		t.Errorf("paused, and delivered: %s", d.Event.Data)
	default:
	}
	// A gateway that starts knows it before it delivers anything.
	three := start(t, cluster, nil)
	if answer, err := three.subscriber().Pull(t.Context(), &posternv1.PullRequest{Name: name, Wait: durationpb.New(500 * time.Millisecond)}); err != nil || len(answer.Deliveries) != 0 {
		t.Errorf("paused, and delivered after a start: %v %v", answer, err)
	}
	three.stop()
	if _, err := one.subscriptions().ResumeSubscription(t.Context(), &posternv1.ResumeSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for range 2 {
		d := s.next()
		got[string(d.Event.Data)] = true
		s.ack(d)
	}
	if !got["2"] || !got["3"] {
		t.Errorf("resumed, and got %v", got)
	}
}

func TestSeekThroughTheAPIDeliversTheSliceAgain(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	name := cluster.Name("mail")
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	s := one.subscribe(&posternv1.Open{Subscription: name})
	for i := range 5 {
		one.publish(topic, "anna", fmt.Sprint(i))
		s.ack(s.next())
	}
	eventually(t, "the commit", func() bool { at, _ := cluster.Committed(name, topic, 0); return at == 5 })
	two.awaitKnown(name)
	for round, seek := range []*posternv1.SeekSubscriptionRequest{
		{To: &posternv1.SeekSubscriptionRequest_Positions{Positions: &posternv1.SeekPositions{Positions: []*posternv1.Position{{Topic: topic, Offset: 3}}}}},
		{To: &posternv1.SeekSubscriptionRequest_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}},
	} {
		seek.Name = name
		answer, err := two.subscriptions().SeekSubscription(t.Context(), seek)
		want := int64([]int{2, 5}[round])
		if err != nil || answer.Redelivered != want {
			t.Fatalf("%v %v", answer, err)
		}
		for i := 5 - want; i < 5; i++ {
			d := s.next()
			if string(d.Event.Data) != fmt.Sprint(i) {
				t.Fatalf("round %d: got %s, want %d", round, d.Event.Data, i)
			}
			s.ack(d)
		}
		eventually(t, "the commit", func() bool { at, _ := cluster.Committed(name, topic, 0); return at == 5 })
	}
}

func TestFilteredEventsAreNotDeliveredAndThePositionMovesPastThem(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	for _, c := range []struct {
		name   string
		filter *posternv1.Filter
		skip   posternv1.OnFilterError
		dead   int
	}{
		{"cel", &posternv1.Filter{Cel: `data.total > 100`}, 0, 1},
		{"skip", &posternv1.Filter{Cel: `data.total > 100`}, posternv1.OnFilterError_ON_FILTER_ERROR_SKIP, 0},
		{"exact", &posternv1.Filter{Exact: map[string]string{"type": "big"}}, 0, 0},
		{"sql", &posternv1.Filter{Sql: `type = 'big'`}, 0, 0},
	} {
		g.create(&posternv1.Subscription{Name: cluster.Name(c.name), Topics: []string{topic}, Filter: c.filter, OnFilterError: c.skip, DeadLetter: &posternv1.DeadLetter{Topic: cluster.Name(c.name + ".dead")}})
	}
	for i, e := range []struct{ kind, data string }{{"small", `{"total":1}`}, {"big", `{"total":200}`}, {"odd", `no json`}, {"small", `{"total":2}`}} {
		if _, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{
			Id: fmt.Sprint(i), Source: "/t", Type: e.kind, Key: []byte(fmt.Sprint(i)), Data: []byte(e.data),
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, dead := range map[string]int{"cel": 1, "skip": 0, "exact": 0, "sql": 0} {
		s := g.subscribe(&posternv1.Open{Subscription: cluster.Name(name)})
		d := s.next()
		if d.Event.Type != "big" {
			t.Errorf("%s: got %v", name, d.Event)
		}
		s.ack(d)
		eventually(t, name+"'s position", func() bool { at, _ := cluster.Committed(cluster.Name(name), topic, 0); return at == 4 })
		select {
		case d := <-s.events:
			t.Errorf("%s: got %v too", name, d.Event)
		default:
		}
		if dead > 0 {
			letters := cluster.Read(cluster.Name(name + ".dead"))
			if reason, _ := letters[0].Header(event.DeadLetterReason); len(letters) != dead || string(reason) != "filter_error" {
				t.Errorf("%s: %d dead letters, reason %s", name, len(letters), reason)
			}
		}
	}
}

func TestStatusTellsPositionsLagAndWhoWorksOnIt(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 2)
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	name := cluster.Name("mail")
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	status := func(g *running) *posternv1.SubscriptionStatus {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(one); st.State != posternv1.SubscriptionState_SUBSCRIPTION_STATE_IDLE || len(st.Partitions) != 2 || st.Partitions[0].Position != nil {
		t.Errorf("before it was used: %v", st)
	}
	s := one.subscribe(&posternv1.Open{Subscription: name})
	one.publish(topic, "anna", "1")
	one.publish(topic, "anna", "2")
	s.ack(s.next())
	held := s.next()
	eventually(t, "the status of the gateway that works on it", func() bool {
		st := status(one)
		return st.State == posternv1.SubscriptionState_SUBSCRIPTION_STATE_ACTIVE && st.Lag == 1 && len(st.Members) == 1
	})
	two.awaitKnown(name)
	// It does not work on it, and tells what Kafka knows, which the first one tells Kafka within its commit interval.
	eventually(t, "the status of the other gateway", func() bool {
		st := status(two)
		return st.Lag == 1 && len(st.Members) == 1 && st.Partitions[0].Instance != ""
	})
	s.ack(held)
	eventually(t, "no lag", func() bool { return status(two).Lag == 0 })
}
