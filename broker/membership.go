package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// membership is who a consumer is in its group: one client's member at a time, and
// another's once a topic was made again.
type membership struct {
	entering sync.RWMutex // held while member is made: callbacks may come before it is there
	current  *member      // nil before Join
	turning  sync.Mutex   // held while one member gives way to another, or to none
}

// member is one client's life in the group.
type member struct {
	*kgo.Client
	heard    *heard
	patience *patience
	followed chan struct{} // closed when there is another
}

// member gives the present one; nil before Join.
func (m *membership) member() *member {
	m.entering.RLock()
	defer m.entering.RUnlock()
	return m.current
}

// enter joins the group, with a client of its own.
func (consumer *Consumer) enter() error {
	c, o, owner := consumer.client, consumer.options, consumer.owner
	consumer.entering.Lock()
	defer consumer.entering.Unlock()
	me := &member{heard: newHeard(c.options, o.Heard), followed: make(chan struct{})}
	me.patience = &patience{paused: consumer.paused, conns: map[*patientConn]bool{}}
	me.patience.note()
	var extra []kgo.Opt
	if c.options.GroupProtocol == "consumer" {
		extra = append(extra, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	}
	if c.options.StaticMembership != "" {
		extra = append(extra, kgo.InstanceID(c.options.StaticMembership))
	}
	var err error
	me.Client, err = kgo.NewClient(slices.Concat([]kgo.Opt{
		kgo.ConsumerGroup(o.Group),
		kgo.ConsumeTopics(consumer.reading()...),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // a polled record must not outlive its assignment: its offset would be taken for a later one's
		kgo.SessionTimeout(c.options.SessionTimeout),
		kgo.HeartbeatInterval(c.options.HeartbeatInterval()),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		// A position below the log's start continues there; see begin for positions that were never committed.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.WithHooks(me.heard),
		kgo.OnOffsetsFetched(consumer.keepFetched),
		kgo.AdjustFetchOffsetsFn(consumer.assigned),
		kgo.OnPartitionsAssigned(func(ctx context.Context, _ *kgo.Client, _ map[string][]int32) {
			consumer.takeUpAgain(ctx)
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
			if tps := flatten(gone); len(tps) > 0 {
				owner.Revoked(ctx, tps)
				consumer.forget(tps)
				consumer.Resume(tps) // a pause outlives revocation in the client
			}
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			if tps := flatten(gone); len(tps) > 0 {
				owner.Lost(tps)
				consumer.forget(tps)
				consumer.Resume(tps)
			}
		}),
	}, extra, c.base, []kgo.Opt{kgo.Dialer(me.patience.dial(c.dial)), kgo.WithLogger(reborn{logger{c.options.Logger}, func(topic string) { consumer.readAnew(me, topic) }})})...)
	if err != nil {
		return fmt.Errorf("kafka consumer for group %s: %w", o.Group, err)
	}
	if o.Idle {
		me.PauseFetchTopics(consumer.reading()...)
	}
	if before := consumer.current; before != nil {
		close(before.followed)
	}
	consumer.current = me
	return nil
}
