package gateway

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// rollingReader reads a subscription through one gateway until its stream ends.
type rollingReader struct {
	handler time.Duration

	mu        sync.Mutex
	delivered map[string]int // by position
	last      map[int32]time.Time
	gap       map[int32]time.Duration // the longest between two deliveries
	seen      chan struct{}           // one for each event, the first time
}

func (r *rollingReader) take(d *posternv1.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, now := d.Position.Partition, time.Now()
	if last, ok := r.last[p]; ok {
		r.gap[p] = max(r.gap[p], now.Sub(last))
	}
	r.last[p] = now
	at := fmt.Sprintf("%d/%d", p, d.Position.Offset)
	if r.delivered[at]++; r.delivered[at] == 1 {
		r.seen <- struct{}{}
	}
}

// read handles each event for a while and then acknowledges it; after a drain
// notice it finishes what it has.
func (r *rollingReader) read(ctx context.Context, g *running, open *posternv1.Open) error {
	raw, err := g.subscriber().Subscribe(ctx)
	if err != nil {
		return err
	}
	if err := raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		return err
	}
	var sending sync.Mutex
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		m, err := raw.Recv()
		if err != nil {
			return err
		}
		for _, d := range m.GetDeliveries().GetDeliveries() {
			r.take(d)
			handlers.Go(func() {
				<-time.After(r.handler) // its work
				sending.Lock()
				defer sending.Unlock()
				_ = raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: &posternv1.SettleBatch{Acks: []uint64{d.DeliveryId}}}})
			})
		}
	}
}

// Three gateways are restarted one after the other while events flow. Nothing is
// delivered twice to handlers that finish within the drain's time, and no
// partition stands still for longer than the slowest handler, two heartbeats and
// half a second.
func TestRollingRestartRepeatsNothingAndHardlyStopsAPartition(t *testing.T) {
	for _, session := range []time.Duration{broker.DefaultSessionTimeout, 45 * time.Second} { // ours, and Kafka's default
		t.Run(session.String(), func(t *testing.T) { rollingRestart(t, session) })
	}
}

func rollingRestart(t *testing.T, session time.Duration) {
	set := func(c *config.Config) { c.Kafka.SessionTimeout = session }
	const partitions, most, handler, every = 12, 10_000, 100 * time.Millisecond, 50 * time.Millisecond
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("orders", partitions), cluster.Name("mail")
	gateways := make([]*running, 3)
	for i := range gateways {
		gateways[i] = start(t, cluster, set)
	}
	publisher := start(t, cluster, nil)
	reader := &rollingReader{handler: handler, delivered: map[string]int{}, last: map[int32]time.Time{}, gap: map[int32]time.Duration{}, seen: make(chan struct{}, partitions*most)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	defer work.Wait()
	attach := func(g *running) (ended chan struct{}) {
		ended = make(chan struct{})
		work.Go(func() {
			defer close(ended)
			open := inline(name, topic)
			open.Window = &posternv1.Window{MaxMessages: 1000}
			if err := reader.read(ctx, g, open); ctx.Err() == nil && reasonOfStatus(err) != fault.ShuttingDown {
				t.Errorf("a stream ended with %v", err)
			}
		})
		return ended
	}
	streams := make([]chan struct{}, 3)
	for i, g := range gateways {
		streams[i] = attach(g)
	}
	eventually(t, "each one's having a third", func() bool { return shared(members(t, publisher, name), 3, partitions/3) })

	published := make(chan int, 1)
	stopPublishing := make(chan struct{})
	go func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		n := 0
		for {
			select {
			case <-stopPublishing:
				published <- n
				return
			case <-ticker.C:
			}
			request := &posternv1.PublishRequest{Topic: topic}
			for p := range int32(partitions) {
				request.Events = append(request.Events, &posternv1.Event{Partition: &p, Data: []byte("x")})
			}
			if _, err := publisher.publisher().Publish(t.Context(), request); err != nil {
				t.Errorf("publish: %v", err)
				published <- n
				return
			}
			n += partitions
		}
	}()
	await := func(n int) {
		t.Helper()
		for range n {
			select {
			case <-reader.seen:
			case <-time.After(patience):
				t.Fatal("no event came any more")
			}
		}
	}
	await(10 * partitions)
	for i := range gateways {
		gateways[i].stop()
		<-streams[i]
		await(5 * partitions)
		gateways[i] = start(t, cluster, set)
		streams[i] = attach(gateways[i])
		eventually(t, "each one's having a third again", func() bool { return shared(members(t, publisher, name), 3, partitions/3) })
		await(5 * partitions)
	}
	close(stopPublishing)
	n := <-published
	for reader.count() < n {
		await(1)
	}
	cancel()
	work.Wait()
	again := 0
	for _, times := range reader.delivered {
		again += times - 1
	}
	longest := time.Duration(0)
	for _, gap := range reader.gap {
		longest = max(longest, gap)
	}
	bound := handler + 2*broker.Options{SessionTimeout: session}.HeartbeatInterval() + 500*time.Millisecond
	t.Logf("%d events over three restarts: %d delivered again, the longest gap of a partition %s (promised %s)", n, again, longest.Round(time.Millisecond), bound.Round(time.Millisecond))
	if again > 0 {
		t.Errorf("%d events were delivered again", again)
	}
	if longest > bound {
		t.Errorf("a partition stood still for %s", longest)
	}
}

func (r *rollingReader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.delivered)
}
