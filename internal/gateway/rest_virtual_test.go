//go:build synctests

package gateway

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// expectRested looks how many members the group has, and how many events came.
func expectRested(t *testing.T, cluster *brokertest.Cluster, posts *atomic.Int32, when string, members int, came int32) {
	t.Helper()
	groups, err := cluster.Admin().DescribeGroups(t.Context(), "rested")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(groups["rested"].Members); n != members {
		t.Errorf("%s: %d members, want %d", when, n, members)
	}
	if n := posts.Load(); n != came {
		t.Errorf("%s: %d events came, want %d", when, n, came)
	}
}

// TestWebhookThatIsPausedLeavesItsGroupAndComesBackWhenResumed is in simulated
// time: it leaves after a minute, also over a restart, and nothing is lost.
func TestWebhookThatIsPausedLeavesItsGroupAndComesBackWhenResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("rested", 1)
		network := new(kfake.VirtualNetwork)
		var posts atomic.Int32
		defer receive(t, network, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			posts.Add(1)
		})()
		settings := func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("rested", topic, receivesAt, delivery.Retry{})}
		}
		b := inBubble(t, cluster, network, settings)
		subscriptions := func() posternv1.SubscriptionsClient { return posternv1.NewSubscriptionsClient(b.conn) }
		publish := func() {
			t.Helper()
			if _, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil {
				t.Fatal(err)
			}
		}
		pause := func(paused bool) {
			t.Helper()
			var err error
			if paused {
				_, err = subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: "rested"})
			} else {
				_, err = subscriptions().ResumeSubscription(t.Context(), &posternv1.ResumeSubscriptionRequest{Name: "rested"})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		expect := func(when string, members int, came int32) {
			t.Helper()
			expectRested(t, cluster, &posts, when, members, came)
		}
		publish()
		time.Sleep(30 * time.Second)
		expect("at work", 1, 1)

		pause(true)
		publish()
		time.Sleep(webhookRest / 2)
		expect("paused just now", 1, 1)
		pause(false) // soon: it never left
		time.Sleep(5 * time.Second)
		expect("resumed soon", 1, 2)
		time.Sleep(2 * webhookRest)
		expect("long after", 1, 2)

		pause(true)
		time.Sleep(2 * webhookRest)
		expect("paused", 0, 2)
		status, err := subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: "rested"})
		if err != nil || status.GetCause().GetKind() != posternv1.CauseKind_CAUSE_KIND_PAUSED && status.GetLag() > 0 {
			t.Errorf("%v %v", status, err)
		}
		publish()
		time.Sleep(5 * time.Second)
		status, err = subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: "rested"})
		if err != nil || status.GetCause().GetKind() != posternv1.CauseKind_CAUSE_KIND_PAUSED || status.GetLag() != 1 {
			t.Errorf("%v %v", status, err)
		}
		b.stop()

		b = inBubble(t, cluster, network, settings)
		time.Sleep(time.Minute)
		expect("paused, after a restart", 0, 2)
		pause(false)
		time.Sleep(30 * time.Second)
		expect("resumed", 1, 3)
		b.stop()
	})
}

// TestWebhookThatIsDisabledLeavesItsGroupAndComesBackWhenEnabled has two gateways:
// what one is told, the other obeys.
func TestWebhookThatIsDisabledLeavesItsGroupAndComesBackWhenEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("rested", 2)
		network := new(kfake.VirtualNetwork)
		var posts, samples atomic.Int32
		var gone atomic.Bool
		defer receive(t, network, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			switch {
			case bytes.Contains(body, []byte("sample")):
				samples.Add(1)
			case gone.Load():
				w.WriteHeader(http.StatusGone)
			default:
				posts.Add(1)
			}
		})()
		settings := func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("rested", topic, receivesAt, delivery.Retry{})}
		}
		one := inBubble(t, cluster, network, settings)
		two := inBubble(t, cluster, network, func(c *config.Config) {
			settings(c)
			c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:7610", "127.0.0.1:7611", "127.0.0.1:7612"
		})
		publish := func() {
			t.Helper()
			if _, err := one.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(when string, members int, came int32) {
			t.Helper()
			expectRested(t, cluster, &posts, when, members, came)
		}
		stopped := func(g *bubble) {
			t.Helper()
			st, err := posternv1.NewSubscriptionsClient(g.conn).GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: "rested"})
			if err != nil || st.Cause.Kind != posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED || st.State != posternv1.SubscriptionState_SUBSCRIPTION_STATE_STOPPED {
				t.Errorf("%v %v", st, err)
			}
		}
		endpoints := func(g *bubble) posternv1.EndpointsClient { return posternv1.NewEndpointsClient(g.conn) }
		publish()
		time.Sleep(30 * time.Second)
		expect("at work", 2, 1)

		if _, err := endpoints(one).DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: "rested"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the other hears of it
		publish()
		time.Sleep(30 * time.Second)
		expect("disabled just now", 2, 1)
		stopped(one)
		stopped(two)
		time.Sleep(time.Minute)
		expect("disabled", 0, 1)
		stopped(one)
		stopped(two)
		for _, g := range []*bubble{one, two} { // before it is enabled, people try it
			sent, err := endpoints(g).TestEndpoint(t.Context(), &posternv1.TestEndpointRequest{Name: "rested"})
			if err != nil || sent.Attempt.Status != http.StatusOK {
				t.Errorf("a sample: %v %v", sent, err)
			}
		}
		if n := samples.Load(); n != 2 {
			t.Errorf("%d samples came", n)
		}
		if _, err := endpoints(two).EnableEndpoint(t.Context(), &posternv1.EnableEndpointRequest{Name: "rested"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		expect("enabled", 2, 2)

		gone.Store(true) // 410: it wants nothing any more
		publish()
		time.Sleep(2 * time.Minute)
		expect("gone", 0, 2)
		one.stop()
		two.stop()
		one = inBubble(t, cluster, network, settings)
		time.Sleep(time.Minute)
		expect("gone, after a restart", 0, 2)
		stopped(one)
		gone.Store(false)
		if _, err := endpoints(one).EnableEndpoint(t.Context(), &posternv1.EnableEndpointRequest{Name: "rested"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		expect("enabled again", 1, 3)
		one.stop()
	})
}

// TestEndpointIsKnownAndObeysWhileItsSubscriptionRests disables a paused one.
func TestEndpointIsKnownAndObeysWhileItsSubscriptionRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("rested", 1)
		network := new(kfake.VirtualNetwork)
		var posts atomic.Int32
		defer receive(t, network, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			posts.Add(1)
		})()
		b := inBubble(t, cluster, network, func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("rested", topic, receivesAt, delivery.Retry{})}
		})
		subscriptions, endpoints := posternv1.NewSubscriptionsClient(b.conn), posternv1.NewEndpointsClient(b.conn)
		if _, err := subscriptions.PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: "rested"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * webhookRest)
		expectRested(t, cluster, &posts, "paused", 0, 0)
		e, err := endpoints.GetEndpoint(t.Context(), &posternv1.GetEndpointRequest{Name: "rested"})
		if err != nil || e.Host != "127.0.0.1:8080" || e.State != posternv1.EndpointState_ENDPOINT_STATE_ACTIVE || e.Running {
			t.Errorf("%v %v", e, err)
		}
		list, err := endpoints.ListEndpoints(t.Context(), &posternv1.ListEndpointsRequest{})
		if err != nil || len(list.Endpoints) != 1 || list.Endpoints[0].Name != "rested" {
			t.Errorf("%v %v", list, err)
		}
		if e, err := endpoints.DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: "rested"}); err != nil || e.State != posternv1.EndpointState_ENDPOINT_STATE_DISABLED {
			t.Fatal(e, err)
		}
		if _, err := subscriptions.ResumeSubscription(t.Context(), &posternv1.ResumeSubscriptionRequest{Name: "rested"}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		expectRested(t, cluster, &posts, "resumed, and disabled", 0, 0)
		if e, err := endpoints.EnableEndpoint(t.Context(), &posternv1.EnableEndpointRequest{Name: "rested"}); err != nil || e.State != posternv1.EndpointState_ENDPOINT_STATE_ACTIVE {
			t.Fatal(e, err)
		}
		time.Sleep(30 * time.Second)
		expectRested(t, cluster, &posts, "enabled", 1, 1)
		b.stop()
	})
}
