//go:build synctests

package gateway

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// TestQueueWebhooksScheduleOfHoursSurvivesAGatewayThatIsKilled runs the first five
// waits of the schedule of Standard Webhooks, 7 hours and a half. While the event waits,
// it has no place in the share group; the gateway that put it aside is killed in the
// wait of two hours, and the one after it stopped in the wait of five.
func TestQueueWebhooksScheduleOfHoursSurvivesAGatewayThatIsKilled(t *testing.T) {
	const failures = 5
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t, kfake.BrokerConfigs(map[string]string{"group.share.delivery.count.limit": "10"}))
		topic := cluster.Topic("patient", 1)
		network := new(kfake.VirtualNetwork)
		began := time.Now()
		var mu sync.Mutex
		var calls []time.Duration
		var attempts, ids, others []string
		done := make(chan struct{})
		receiver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			if string(b) != "first" {
				others = append(others, string(b)+r.Header.Get("Postern-Attempt"))
				return
			}
			calls, ids, attempts = append(calls, time.Since(began)), append(ids, r.Header.Get("Webhook-Id")), append(attempts, r.Header.Get("Postern-Attempt"))
			if len(calls) <= failures {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			close(done)
		})}
		l, err := network.Listen("tcp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = receiver.Serve(l) }() // ends with Close
		defer func() { _ = receiver.Close() }()
		of := hook("patient", topic, "http://127.0.0.1:8080/", delivery.Retry{})
		of.Order = delivery.OrderQueue
		wire := &cuttable{dial: cluster.Dial}
		settings := func(c *config.Config) { c.Subscriptions = []subscription.Spec{of} }
		b := inBubble(t, cluster, network, func(c *config.Config) { settings(c); c.Kafka.Dial = wire.Dial })
		for _, e := range []*posternv1.Event{{Key: []byte("k"), Data: []byte("first")}, {Key: []byte("k"), Data: []byte("second")}} {
			if _, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{e}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour) // simulated time: between the fourth attempt and the fifth
		if lag := shareLag(t, cluster, "patient", topic) + shareLag(t, cluster, "patient", "_postern.again.patient"); lag != 0 {
			t.Errorf("%d events have their place in the share group while one waits for hours", lag)
		}
		wire.end() // killed: what it has to say now, nobody hears
		b.cancel()
		<-b.done
		_ = b.conn.Close()
		b.web.CloseIdleConnections()
		b = inBubble(t, cluster, network, settings)
		time.Sleep(3 * time.Hour) // between the fifth and the sixth
		b.stop()
		b = inBubble(t, cluster, network, settings)
		<-done
		time.Sleep(time.Minute)
		b.stop()
		want := []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour}
		if len(calls) != failures+1 || len(others) != 1 || others[0] != "second1" {
			t.Fatalf("attempts at %v, others %v", calls, others)
		}
		for i, w := range want {
			if wait := calls[i+1] - calls[i]; wait < w*8/10 || wait > w*12/10+time.Minute {
				t.Errorf("the wait before attempt %d was %s, want %s give or take a fifth", i+2, wait, w)
			}
			if ids[i+1] != ids[0] {
				t.Errorf("attempt %d is the message %s, the first was %s", i+2, ids[i+1], ids[0])
			}
			if is := attempts[i+1]; is != string(rune('2'+i)) {
				t.Errorf("attempt %d is told as %s", i+2, is)
			}
		}
	})
}

// TestQueueEventsThatWaitAreNotLostWhenGatewaysAreKilledAllTheTime has each event fail
// twice, with waits of two and of five minutes, while a gateway is killed every minute
// or so, wherever its events happen to be.
func TestQueueEventsThatWaitAreNotLostWhenGatewaysAreKilledAllTheTime(t *testing.T) {
	const events, kills = 60, 12
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t, kfake.BrokerConfigs(map[string]string{"group.share.delivery.count.limit": "10"}))
		topic := cluster.Topic("hunted", 2)
		network := new(kfake.VirtualNetwork)
		var mu sync.Mutex
		calls, repeats := map[string]int{}, 0
		succeeded := map[string]bool{}
		receiver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if calls[string(b)]++; calls[string(b)] <= 2 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			if succeeded[string(b)] {
				repeats++
			}
			succeeded[string(b)] = true
		})}
		l, err := network.Listen("tcp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = receiver.Serve(l) }() // ends with Close
		defer func() { _ = receiver.Close() }()
		of := hook("hunted", topic, "http://127.0.0.1:8080/", delivery.Retry{Schedule: []time.Duration{2 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute}})
		of.Order = delivery.OrderQueue
		for n := range events {
			cluster.Put(&event.Record{Topic: topic, Partition: int32(n % 2), Key: []byte("k"), Value: fmt.Append(nil, "e", n)})
		}
		random := rand.New(rand.NewPCG(6, 1))
		var dead []*bubble
		for range kills {
			wire := &cuttable{dial: cluster.Dial}
			b := inBubble(t, cluster, network, func(c *config.Config) {
				c.Subscriptions = []subscription.Spec{of}
				c.Kafka.Dial = wire.Dial
			})
			time.Sleep(time.Duration(random.IntN(120_000)) * time.Millisecond)
			wire.end()
			b.cancel()
			<-b.done
			_ = b.conn.Close()
			b.web.CloseIdleConnections()
			dead = append(dead, b)
		}
		b := inBubble(t, cluster, network, func(c *config.Config) { c.Subscriptions = []subscription.Spec{of} })
		for range 60 {
			time.Sleep(time.Minute)
			mu.Lock()
			n := len(succeeded)
			mu.Unlock()
			if n == events {
				break
			}
		}
		time.Sleep(time.Minute)
		b.stop()
		if len(succeeded) != events {
			t.Errorf("%d of %d events succeeded after %d gateways were killed", len(succeeded), events, len(dead))
		}
		t.Logf("%d gateways killed, %d successes repeated", len(dead), repeats)
	})
}
