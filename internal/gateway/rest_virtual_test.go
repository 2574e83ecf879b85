//go:build synctests

package gateway

import (
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

// TestWebhookThatIsPausedLeavesItsGroupAndComesBackWhenResumed is in simulated
// time: it leaves after a minute, also over a restart, and nothing is lost.
func TestWebhookThatIsPausedLeavesItsGroupAndComesBackWhenResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("rested", 1)
		network := new(kfake.VirtualNetwork)
		var posts atomic.Int32
		receiver := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			posts.Add(1)
		})}
		l, err := network.Listen("tcp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = receiver.Serve(l) }() // ends with Close
		defer func() { _ = receiver.Close() }()
		settings := func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("rested", topic, "http://127.0.0.1:8080/", delivery.Retry{})}
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
