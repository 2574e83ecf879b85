package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func TestAllThatFailedSinceATimeComesAgainAtTheRateAskedFor(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("outage", 3), cluster.Name("outage-sub")
	type push struct {
		at     string
		replay bool
		when   time.Time
	}
	var mu sync.Mutex
	var pushes []push
	var status atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		mu.Lock()
		pushes = append(pushes, push{r.Header.Get("Postern-Partition") + "@" + r.Header.Get("Postern-Offset"), r.Header.Get("Webhook-Replay") == "true", now})
		mu.Unlock()
		w.WriteHeader(int(status.Load()))
	}))
	defer receiver.Close()
	spec := hook(name, topic, receiver.URL, delivery.Retry{})
	spec.Webhook.DisableAfter = -1
	g := start(t, cluster, prefixed(cluster, spec))
	logged := func(n int, failed bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d attempts are logged", n), func() bool {
			a, err := g.endpoints().ListAttempts(t.Context(), &posternv1.ListAttemptsRequest{Subscription: name, Failed: failed, Limit: 1000})
			return err == nil && len(a.GetAttempts()) == n
		})
	}
	status.Store(http.StatusUnprocessableEntity)
	put(cluster, topic, 1, "long", "ago") // failed, and nobody asks for it
	logged(2, true)
	since := timestamppb.Now()
	const lost, rate = 30, 20.0
	put(cluster, topic, lost/3, "a", "b", "c")
	logged(2+lost, true)
	status.Store(http.StatusOK)
	put(cluster, topic, 4, "fine")
	logged(2+lost+4, false)
	mu.Lock()
	failed := map[string]bool{}
	for _, p := range pushes[2 : 2+lost] {
		failed[p.at] = true
	}
	before := len(pushes)
	mu.Unlock()

	asked := time.Now()
	last := recoverAll(t, g, &posternv1.RecoverEndpointRequest{Name: name, Since: since, RequestsPerSecond: rate})
	if last.GetTotal() != lost || last.GetSucceeded() != lost || last.GetFailed() != 0 || last.GetMissing() != 0 {
		t.Errorf("%v", last)
	}
	mu.Lock()
	defer mu.Unlock()
	again := pushes[before:]
	if len(again) != lost {
		t.Fatalf("%d events came again, %d had failed", len(again), lost)
	}
	for i, p := range again {
		if !failed[p.at] || !p.replay {
			t.Errorf("%+v had not failed, came twice, or is not called a replay", p)
		}
		delete(failed, p.at)
		// One that was slow may be followed by the next at once, but what was missed is not made up for.
		if took, least := p.when.Sub(asked), time.Duration(float64(i+1)/rate*float64(time.Second)); took < least {
			t.Errorf("the %dth came after %s, at %g a second it may after %s", i+1, took, rate, least)
		}
	}
	// What came is not lost any more, what failed before still is.
	for from, want := range map[*timestamppb.Timestamp]int64{since: 0, timestamppb.New(since.AsTime().Add(-time.Hour)): 2} {
		eventually(t, "it is not lost any more", func() bool {
			return recoverAll(t, g, &posternv1.RecoverEndpointRequest{Name: name, Since: from, DryRun: true}).GetTotal() == want
		})
	}
}
