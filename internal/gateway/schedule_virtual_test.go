//go:build synctests

package gateway

import (
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
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

// TestWebhooksScheduleOfThreeDaysIsKeptWithoutHoldingAnything runs the schedule of
// Standard Webhooks: failures, then a success. Meanwhile the source's position has
// moved on, a restart changes nothing, and the next event of the key waits. All 75
// hours and a half, a minute and a half of real time, with POSTERN_TEST_WHOLE_SCHEDULE
// set; else the first 7 hours and a half.
func TestWebhooksScheduleOfThreeDaysIsKeptWithoutHoldingAnything(t *testing.T) {
	failures := 5
	if os.Getenv("POSTERN_TEST_WHOLE_SCHEDULE") != "" {
		failures = 9
	}
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("patient", 1)
		network := new(kfake.VirtualNetwork)
		began := time.Now()
		var mu sync.Mutex
		var calls []time.Duration
		var ids, after []string
		done := make(chan struct{})
		defer receive(t, network, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			if string(b) != "first" {
				if after = append(after, string(b)); strings.Join(after, " ") == "other second" {
					close(done)
				}
				return
			}
			calls, ids = append(calls, time.Since(began)), append(ids, r.Header.Get("Webhook-Id"))
			if len(calls) <= failures {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})()
		settings := func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("patient", topic, receivesAt, delivery.Retry{})}
		}
		b := inBubble(t, cluster, network, settings)
		for _, e := range []*posternv1.Event{{Key: []byte("k"), Data: []byte("first")}, {Key: []byte("k"), Data: []byte("second")}, {Key: []byte("o"), Data: []byte("other")}} {
			if _, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{e}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(4 * time.Hour) // simulated time: between the fifth attempt and the sixth
		b.stop()
		if offset, _ := cluster.Committed("patient", topic, 0); offset != 3 {
			t.Errorf("offset %d is committed while the first event waits for hours", offset)
		}
		mu.Lock()
		if len(calls) != 5 || len(after) != 1 {
			t.Errorf("after four hours there were attempts at %v, and of others %v", calls, after)
		}
		mu.Unlock()
		b = inBubble(t, cluster, network, settings)
		<-done
		b.stop()
		want := []time.Duration{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		}
		if len(calls) != failures+1 {
			t.Fatalf("attempts at %v", calls)
		}
		for i, w := range want[:failures] {
			if wait := calls[i+1] - calls[i]; wait < w*8/10 || wait > w*12/10+time.Minute {
				t.Errorf("the wait before attempt %d was %s, want %s give or take a fifth", i+2, wait, w)
			}
			if ids[i+1] != ids[0] {
				t.Errorf("attempt %d is the message %s, the first was %s", i+2, ids[i+1], ids[0])
			}
		}
	})
}
