package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// heard is when the group's coordinator last had a word of a member that it
// answered. From then on it waits one session before it gives the member's
// partitions away: a member that was frozen or cut off for longer may have a
// successor, and hears of it only later.
type heard struct {
	session time.Duration
	again   func() // it was silent, and is not any more; nil tells nobody
	began   time.Time
	last    atomic.Int64 // nanoseconds from began; 0: nothing yet

	mu      sync.Mutex
	settled context.Context // over while a JoinGroup was sent and is not answered
	join    context.CancelFunc
}

// serverSession is how long brokers wait for a member of KIP-848's protocol, where
// that is theirs to say (group.consumer.session.timeout.ms).
const serverSession = 45 * time.Second

func newHeard(o Options, again func()) *heard {
	h := &heard{session: o.SessionTimeout, again: again, began: time.Now()}
	h.settled, h.join = context.WithCancel(context.Background())
	if o.GroupProtocol == "consumer" {
		h.session = max(h.session, serverSession)
	}
	return h
}

// joins gives a context that is over while a JoinGroup waits for its answer.
func (h *heard) joins() context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settled
}

// OnBrokerWrite is kgo.HookBrokerWrite's.
func (h *heard) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if kmsg.Key(key) != kmsg.JoinGroup || err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.join()
}

// OnBrokerE2E is kgo.HookBrokerE2E's.
func (h *heard) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if kmsg.Key(key) == kmsg.JoinGroup {
		h.mu.Lock()
		h.join()
		h.settled, h.join = context.WithCancel(context.Background())
		h.mu.Unlock()
	}
	switch kmsg.Key(key) {
	case kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.ConsumerGroupHeartbeat:
	default:
		return
	}
	if e2e.Err() != nil {
		return
	}
	// The coordinator's clock began when it got the request, at the latest.
	silent := !h.alive()
	h.last.Store(max(1, int64(time.Since(h.began)-e2e.DurationE2E())))
	if silent && h.alive() && h.again != nil {
		h.again()
	}
}

// alive reports whether the coordinator must still take us for a member.
func (h *heard) alive() bool {
	last := h.last.Load()
	return last != 0 && time.Since(h.began)-time.Duration(last) < h.session
}

// Alive reports whether the coordinator heard of us within the last session: until
// then no other member can have our partitions. Safe before Join: false.
func (consumer *Consumer) Alive() bool {
	me := consumer.member()
	return me != nil && me.heard.alive()
}
