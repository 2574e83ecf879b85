package broker

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
)

// A gate holds new records for a broker back while a round of earlier ones is
// with it, and hands them over together when the round is answered: group
// commit. The client without a linger sends whatever is there at once, and an
// idempotent producer may have five requests under way, so that without gates
// batches stay small under load and cost both sides twice the CPU; a fixed
// linger would cost an idle publisher its whole length. With one publisher at a
// time there is never a round under way, and the gate holds nothing.
//
// There is a gate for each broker, so that a slow one does not hold the others'
// records, and a record never waits longer than gateWait. Which broker a record
// goes to is found as the client will find it (partition of the key, leader of
// the partition); where that is not known yet, the record goes to the client at
// once. A wrong guess costs a little batching and nothing else. Records of one
// partition pass in the order they came: they pass one gate, and before a
// partition moves to another gate all gates are emptied.
type gates struct {
	client *kgo.Client
	topics sync.Map // string -> *route; only topics that exist

	mu      sync.Mutex // guards brokers and a change of any route's table; taken before gates' locks
	brokers map[int32]*gate
}

const (
	// gateWait bounds what the gate adds to a publish. Longer than a round trip to a
	// broker that is well, and what one slow partition costs the others of its broker.
	gateWait = 2 * time.Millisecond
	// gateBytes is what is worth a request of its own: more is handed over at once.
	gateBytes = 256 << 10
	// gateGroup is how many records of one request make a batch by themselves.
	gateGroup = 8
	// tableAge is how soon a moved leader is noticed; until then records pass the
	// gate of the old one.
	tableAge = time.Second
)

// route is what is known of a topic.
type route struct {
	partitions atomic.Int32 // as the client last saw it
	sticky     atomic.Int32 // the partition it last chose for a record without a key
	table      atomic.Pointer[table]
}

// table says which gate each partition's records pass.
type table struct {
	gates   []*gate
	leaders []int32
	until   atomic.Int64 // UnixNano; looked up again then
}

type gate struct {
	mu     sync.Mutex
	flying int // records with the client, not answered
	held   []*flight
	bytes  int
	timer  *time.Timer
	timing bool
}

// route finds a topic the client has met.
func (g *gates) route(topic string) *route {
	r, ok := g.topics.Load(topic)
	if !ok {
		return nil
	}
	return r.(*route)
}

// met is told by the partitioner of how many partitions the client chooses: of
// all (exact), or, for a record without a key, of those that have a leader.
func (g *gates) met(topic string, partitions int32, exact bool) {
	r := g.route(topic)
	if r == nil {
		made, _ := g.topics.LoadOrStore(topic, &route{})
		r = made.(*route)
	}
	if n := r.partitions.Load(); n < partitions || exact && n != partitions {
		r.partitions.Store(partitions)
	}
}

// stuck is told which partition records without a key go to for now.
func (g *gates) stuck(topic string, partition int32) {
	if r := g.route(topic); r != nil && r.sticky.Load() != partition {
		r.sticky.Store(partition)
	}
}

// pass hands a record to the client, now or with the next round. alone is
// whether few others come with it.
func (g *gates) pass(f *flight, r *route, alone bool, now time.Time) {
	if r == nil {
		g.hand(f)
		return
	}
	for {
		n := r.partitions.Load()
		p := partitionOf(&f.record, n)
		if p == event.AnyPartition {
			p = r.sticky.Load()
		}
		if p >= n {
			g.hand(f) // a partition that does not exist, or does not yet
			return
		}
		t := r.table.Load()
		if t == nil || int32(len(t.gates)) != n || now.UnixNano() > t.until.Load() {
			t = g.look(f.record.Topic, r, n, now)
		}
		to := t.gates[p]
		to.mu.Lock()
		if r.table.Load() == t { // else the partition moved to another gate meanwhile
			f.gate = to
			if alone && to.flying > 0 && to.bytes < gateBytes {
				to.hold(g, f)
			} else {
				to.release(g) // those who came before first
				to.flying++
				g.hand(f)
			}
			to.mu.Unlock()
			return
		}
		to.mu.Unlock()
	}
}

func (to *gate) hold(g *gates, f *flight) {
	to.held = append(to.held, f)
	to.bytes += f.size
	if !to.timing {
		to.timing = true
		if to.timer == nil {
			to.timer = time.AfterFunc(gateWait, func() { to.waited(g) })
		} else {
			to.timer.Reset(gateWait)
		}
	}
}

func (to *gate) waited(g *gates) {
	to.mu.Lock()
	defer to.mu.Unlock()
	to.timing = false
	to.release(g)
}

// release hands over what is held. The caller has the lock.
func (to *gate) release(g *gates) {
	if len(to.held) == 0 {
		return
	}
	if to.timing && to.timer.Stop() {
		to.timing = false
	}
	to.flying += len(to.held)
	for i, f := range to.held {
		g.hand(f)
		to.held[i] = nil
	}
	to.held, to.bytes = to.held[:0], 0
}

// answered ends a record's round.
func (to *gate) answered(g *gates) {
	to.mu.Lock()
	to.flying--
	if to.flying == 0 {
		to.release(g)
	}
	to.mu.Unlock()
}

func (g *gates) hand(f *flight) { g.client.TryProduce(f, &f.record, promise) }

// look makes a topic's table anew.
func (g *gates) look(topic string, r *route, n int32, now time.Time) *table {
	g.mu.Lock()
	defer g.mu.Unlock()
	leaders := make([]int32, n)
	for p := range n {
		leaders[p], _, _ = g.client.PartitionLeader(topic, p) // -1 while it has none: a gate like any other
	}
	until := now.Add(tableAge).UnixNano()
	if t := r.table.Load(); t != nil && slices.Equal(t.leaders, leaders) {
		t.until.Store(until)
		return t
	}
	next := &table{gates: make([]*gate, n), leaders: leaders}
	next.until.Store(until)
	for p, leader := range leaders {
		if g.brokers[leader] == nil {
			g.brokers[leader] = &gate{}
		}
		next.gates[p] = g.brokers[leader]
	}
	g.empty(func() { r.table.Store(next) })
	return next
}

// empty hands over everything held, and runs do before anything new is held. The caller has g.mu.
func (g *gates) empty(do func()) {
	ids := make([]int32, 0, len(g.brokers))
	for id := range g.brokers {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, cmp.Compare[int32])
	for _, id := range ids {
		to := g.brokers[id]
		to.mu.Lock()
		defer to.mu.Unlock()
		to.release(g)
	}
	do()
}

// flush hands over everything held.
func (g *gates) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.empty(func() {})
}

// byKey is Kafka's own choice of a partition for a key: murmur2, as Java's client.
var byKey = kgo.StickyKeyPartitioner(nil).ForTopic("")

// partitionOf is the partition that r names or that its key decides, of n;
// AnyPartition without either.
func partitionOf(r *kgo.Record, n int32) int32 {
	switch {
	case r.Partition != event.AnyPartition:
		return r.Partition
	case r.Key != nil && n > 0:
		return int32(byKey.Partition(r, int(n)))
	}
	return event.AnyPartition
}

// PartitionOf is the partition of n that key goes to; AnyPartition for none.
func PartitionOf(key []byte, n int32) int32 {
	return partitionOf(&kgo.Record{Key: key, Partition: event.AnyPartition}, n)
}
