//go:build synctests

package gateway

import (
	"io"
	"net/http"
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

// TestReceiverThatFailsForAnHourGetsItsEventInTheEnd runs the whole gateway, a
// broker and a receiver in simulated time: seven failures, each wait twice the
// one before, then an ack that is committed.
func TestReceiverThatFailsForAnHourGetsItsEventInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("patient", 1)
		network := new(kfake.VirtualNetwork)
		began := time.Now()
		var calls []time.Duration
		acked := make(chan struct{})
		defer receive(t, network, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			calls = append(calls, time.Since(began))
			if len(calls) <= 7 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			close(acked)
		})()

		b := inBubble(t, cluster, network, func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("patient", topic, receivesAt, delivery.Retry{MinBackoff: 30 * time.Second, MaxBackoff: time.Hour})}
		})
		_, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}})
		if err != nil {
			t.Fatal(err)
		}
		<-acked
		b.stop()
		if offset, _ := cluster.Committed("patient", topic, 0); offset != 1 {
			t.Errorf("offset %d is committed", offset)
		}
		want := 30 * time.Second
		for i := 1; i < len(calls); i++ {
			if wait := calls[i] - calls[i-1]; wait < want*8/10 || wait > want*12/10+time.Second {
				t.Errorf("the wait before attempt %d was %s, want %s give or take a fifth", i+1, wait, want)
			}
			want *= 2
		}
		if total := calls[len(calls)-1]; total < 48*time.Minute {
			t.Errorf("it took %s of simulated time", total)
		}
		t.Logf("%d attempts over %s of simulated time", len(calls), calls[len(calls)-1])
	})
}
