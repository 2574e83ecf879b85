package delivery

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/fault"
)

// Queues are the subscriptions this instance is working on. A queue is a
// member of its group only while somebody uses it.
type Queues struct {
	kafka    *broker.Client
	mover    Mover
	decode   Decode
	prefix   string // of the topics for events that must wait
	log      *slog.Logger
	meter    metric.Meter
	instance Instance
	sequence atomic.Uint64

	mu       sync.Mutex
	running  map[string]*running
	desired  map[string]Desired
	begun    func(name string, epoch uint64)
	redrives map[string]map[string]bool // redrive.go; by subscription, then source
	draining bool
	watching *time.Timer     // nil: nothing was read here lately
	watchFor context.Context // of the watch; ends with the drain
	unwatch  context.CancelFunc
	closing  sync.WaitGroup
}

// running is a queue and who uses it.
type running struct {
	queue  *Queue
	opened chan struct{} // closed when open has ended
	err    error
	users  int
	linger *time.Timer
}

// How long a queue that nobody uses stays in its group, so that a client that
// reconnects, or polls, does not cost everyone a rebalance.
const (
	LingerStream = 5 * time.Second
	LingerPull   = 60 * time.Second
)

// NewInstance chooses the name of a gateway that starts.
func NewInstance() Instance {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return Instance(binary.BigEndian.Uint32(b[:]) >> (32 - (64 - sequenceBits)))
}

// NewQueues makes the instance's queues. prefix begins the names of the topics
// they make for events that must wait.
func NewQueues(instance Instance, kafka *broker.Client, mover Mover, prefix string, log *slog.Logger, meter metric.Meter) *Queues {
	qs := &Queues{kafka: kafka, mover: mover, prefix: prefix, log: log, meter: meter, instance: instance, running: map[string]*running{}, desired: map[string]Desired{}}
	qs.watchFor, qs.unwatch = context.WithCancel(context.Background())
	qs.observe()
	return qs
}

// DecodeWith lets filters see data in the schema registry's wire format. It is
// called before the first Open.
func (qs *Queues) DecodeWith(decode Decode) { qs.decode = decode }

// Instance names this gateway in leases.
func (qs *Queues) Instance() Instance { return qs.instance }

// Open gives the queue of o, joining its group if nobody uses it yet. Each
// Open is ended by one Release. A queue open with other options is
// SUBSCRIPTION_MISMATCH.
func (qs *Queues) Open(ctx context.Context, o Options) (*Queue, error) {
	o.SidePrefix = qs.prefix
	for {
		qs.mu.Lock()
		if qs.draining {
			qs.mu.Unlock()
			return nil, fault.New(fault.ShuttingDown, "the gateway is draining; connect again")
		}
		r := qs.running[o.Name]
		if r == nil {
			r = &running{opened: make(chan struct{}), queue: newQueue(o, qs.kafka, qs.mover, qs.instance, &qs.sequence, qs.log, newMetrics(qs.meter, o.Name))}
			r.queue.decode = qs.decode
			r.queue.expect(qs.expected(o.Name))
			r.users = 1
			r.queue.desired = qs.desired[o.Name]
			r.queue.begun = qs.begun
			qs.running[o.Name] = r
			qs.keepWatch()
			qs.mu.Unlock()
			r.err = r.queue.open(ctx)
			if r.err != nil {
				qs.mu.Lock()
				delete(qs.running, o.Name)
				qs.mu.Unlock()
			}
			close(r.opened)
			if r.err != nil {
				return nil, r.err
			}
			return r.queue, nil
		}
		if differ := r.queue.options.differences(o); len(differ) > 0 {
			qs.mu.Unlock()
			return nil, fault.New(fault.SubscriptionMismatch,
				"subscription %s is open with other settings (%s): open it with the same, or only by its name", o.Name, strings.Join(differ, ", "))
		}
		r.users++
		if r.linger != nil {
			r.linger.Stop()
			r.linger = nil
		}
		qs.mu.Unlock()
		select {
		case <-r.opened:
		case <-ctx.Done():
			qs.Release(r.queue, 0)
			return nil, ctx.Err()
		}
		if r.err == nil {
			return r.queue, nil
		}
		// The one who opened it failed, perhaps by its own deadline: try ourselves.
	}
}

// Len is how many queues are open here, or being opened.
func (qs *Queues) Len() int {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	return len(qs.running)
}

// Running gives the queue called name if it is open here.
func (qs *Queues) Running(name string) *Queue {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if r := qs.running[name]; r != nil {
		select {
		case <-r.opened:
			if r.err == nil {
				return r.queue
			}
		default:
		}
	}
	return nil
}

// Release ends one Open. The last one lets the queue leave its group after
// linger, or when its last lease has ended, whichever is later.
func (qs *Queues) Release(q *Queue, linger time.Duration) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	r := qs.running[q.options.Name]
	if r == nil || r.queue != q {
		return
	}
	r.users--
	if r.users == 0 && !qs.draining {
		r.linger = time.AfterFunc(linger, func() { qs.leave(r) })
	}
}

// leave closes r unless it is used again or still has leases.
func (qs *Queues) leave(r *running) {
	qs.mu.Lock()
	if r.users > 0 || qs.draining || qs.running[r.queue.options.Name] != r {
		qs.mu.Unlock()
		return
	}
	if !r.queue.idle() {
		r.linger = time.AfterFunc(time.Second, func() { qs.leave(r) })
		qs.mu.Unlock()
		return
	}
	delete(qs.running, r.queue.options.Name)
	qs.closing.Add(1)
	qs.mu.Unlock()
	defer qs.closing.Done()
	r.queue.close()
}

// StartDrain lends nothing more on any queue and opens none; settlements are still taken.
func (qs *Queues) StartDrain() {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	qs.draining = true
	qs.unwatch()
	if qs.watching != nil {
		qs.watching.Stop()
	}
	for _, r := range qs.running {
		r.queue.stop()
		if r.linger != nil {
			r.linger.Stop()
		}
	}
}

// Close waits until nothing is lent or ctx ends, then commits and leaves every group.
func (qs *Queues) Close(ctx context.Context) {
	qs.StartDrain()
	qs.mu.Lock()
	all := make([]*running, 0, len(qs.running))
	for _, r := range qs.running {
		all = append(all, r)
	}
	qs.running = map[string]*running{}
	qs.mu.Unlock()
	var group sync.WaitGroup
	for _, r := range all {
		group.Go(func() {
			<-r.opened
			if r.err != nil {
				return
			}
			r.queue.await(ctx, func() bool { return r.queue.leases.count == 0 })
			r.queue.close()
		})
	}
	group.Wait()
	qs.closing.Wait()
}
