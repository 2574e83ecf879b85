package gateway

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// held is the memory in use, in bytes.
func held() float64 {
	var m runtime.MemStats
	for range 3 { // pools are emptied by the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse + m.StackInuse)
}

// TestPausedAndDisabledWebhooksCostLittle declares 10,000 webhooks, of which 9,900
// are paused, or disabled. A record of each is in Kafka; on the stand-in broker its
// memory counts as ours.
func TestPausedAndDisabledWebhooksCostLittle(t *testing.T) {
	t.Run("paused", func(t *testing.T) {
		declareMany(t, []string{subscriptionsTopic}, func(g *running, name string) {
			if _, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name}); err != nil {
				t.Fatal(err)
			}
		}, func(s *posternv1.SubscriptionStatus) bool {
			return s.Cause.Kind == posternv1.CauseKind_CAUSE_KIND_PAUSED
		})
	})
	t.Run("disabled", func(t *testing.T) {
		// The endpoint's state first: one that is declared disabled never begins.
		declareMany(t, []string{"endpoints", subscriptionsTopic}, func(g *running, name string) {
			if _, err := g.endpoints().DisableEndpoint(t.Context(), &posternv1.DisableEndpointRequest{Name: name, Reason: "to count"}); err != nil {
				t.Fatal(err)
			}
		}, func(s *posternv1.SubscriptionStatus) bool {
			return s.Cause.Kind == posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED && len(s.Members) == 0
		})
	})
}

func declareMany(t *testing.T, ledgers []string, rest func(g *running, name string), rests func(*posternv1.SubscriptionStatus) bool) {
	const declared, active, most = 10_000, 100, 8 << 10
	cluster := brokertest.New(t)
	topic := cluster.Topic("declared", 1)
	r := newReceiver(t, 200)
	settings := func(c *config.Config) {
		prefixed(cluster)(c)
		c.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true}
	}
	g := start(t, cluster, settings)
	name := func(i int) string { return cluster.Name(fmt.Sprintf("declared-%05d", i)) }
	for i := range active {
		g.create(&posternv1.Subscription{Name: name(i), Topics: []string{topic}, Webhook: &posternv1.Webhook{Url: r.URL, AllowHttp: true, AllowLoopback: true}})
	}
	// One is put to rest by the API; the others' records are as that one's are.
	sample := name(active)
	g.create(&posternv1.Subscription{Name: sample, Topics: []string{topic}, Webhook: &posternv1.Webhook{Url: r.URL, AllowHttp: true, AllowLoopback: true}})
	rest(g, sample)
	var models []*event.Record
	for _, ledger := range ledgers {
		var model *event.Record
		eventually(t, "the record of "+sample+" in "+ledger, func() bool {
			for _, r := range cluster.Read(cluster.Name("st") + "." + ledger) {
				if string(r.Key) == sample {
					model = r
				}
			}
			return model != nil && bytes.Contains(model.Value, []byte(sample))
		})
		models = append(models, model)
	}
	put(cluster, topic, 1, "k")
	eventually(t, "the active ones are at work", func() bool { return r.count() >= active })
	before := held()
	for _, model := range models {
		var records []*event.Record
		for i := active + 1; i < declared; i++ {
			records = append(records, &event.Record{
				Topic: model.Topic, Key: []byte(name(i)), Headers: model.Headers, Value: bytes.ReplaceAll(model.Value, []byte(sample), []byte(name(i))),
			})
		}
		cluster.Put(records...)
	}
	added := float64(declared - active - 1)
	eventually(t, "all are known, and rest", func() bool {
		s, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name(declared - 1)})
		return err == nil && rests(s)
	})
	each := (held() - before) / added
	t.Logf("%.1f KiB for each of %.0f beside %d active ones", each/1024, added, active)
	if each > most {
		t.Errorf("%.1f KiB each, at most %d", each/1024, most>>10)
	}
	// Those that are at work are not disturbed.
	already := r.count()
	put(cluster, topic, 1, "k")
	eventually(t, "the active ones push on", func() bool { return r.count() >= already+active })
	if n := r.count(); n > already+active {
		t.Errorf("%d came, of %d active ones", n-already, active)
	}
}
