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

// TestPausedWebhooksCostNoMoreThanTheirSpecification declares 10,000 webhooks, of
// which 9,900 are paused. A record of each is in Kafka; on the stand-in broker
// its memory counts as ours.
func TestPausedWebhooksCostNoMoreThanTheirSpecification(t *testing.T) {
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
	// One is paused by the API; the others' records are as that one's is.
	sample := name(active)
	g.create(&posternv1.Subscription{Name: sample, Topics: []string{topic}, Webhook: &posternv1.Webhook{Url: r.URL, AllowHttp: true, AllowLoopback: true}})
	if _, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: sample}); err != nil {
		t.Fatal(err)
	}
	state := cluster.Name("st") + "." + subscriptionsTopic
	var record *event.Record
	for _, r := range cluster.Read(state) {
		if string(r.Key) == sample {
			record = r
		}
	}
	if record == nil || !bytes.Contains(record.Value, []byte(sample)) {
		t.Fatalf("the record of %s is %v", sample, record)
	}
	put(cluster, topic, 1, "k")
	eventually(t, "the active ones are at work", func() bool { return r.count() >= active })
	before := held()
	var records []*event.Record
	for i := active + 1; i < declared; i++ {
		records = append(records, &event.Record{
			Topic: state, Key: []byte(name(i)), Headers: record.Headers, Value: bytes.ReplaceAll(record.Value, []byte(sample), []byte(name(i))),
		})
	}
	cluster.Put(records...)
	added := float64(len(records))
	var last *posternv1.Subscription
	eventually(t, "all are known", func() bool {
		s, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name(declared - 1)})
		last = s
		return err == nil
	})
	if !last.GetPaused() || last.GetWebhook().GetUrl() != r.URL {
		t.Fatalf("%v", last)
	}
	each := (held() - before) / added
	t.Logf("%.1f KiB for each of %.0f paused webhooks beside %d active ones", each/1024, added, active)
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
