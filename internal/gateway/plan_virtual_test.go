//go:build synctests

package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/workload"
)

// plan is what happens in one simulation. It follows from its seed alone.
type plan struct {
	seed       uint64
	gateways   int
	brokers    int
	partitions int32
	order      delivery.Order
	routes     []workload.Route
	deduped    bool
	hook, pull bool
	manner     workload.Manner
	bad        float64 // of the webhook receiver
	span       time.Duration
	faults     []planned
}

// planned is one fault of a plan.
type planned struct {
	at      time.Duration
	what    faultKind
	gateway int           // whom it hits, where it hits one
	lasts   time.Duration // of those that last
	count   int           // of requests that fail
	code    int           // which of the kind's error codes
}

// faultKind is something that can be broken. Brokers that die are not among them:
// the stand-in keeps a dead one's connections, its controller and its epochs (real
// ones are killed by loadtest/faults).
type faultKind string

const (
	produceRefused   faultKind = "produce is refused"
	produceTimedOut  faultKind = "produce times out after it was applied"
	produceLate      faultKind = "produce is answered late"
	fetchFails       faultKind = "fetch fails"
	metadataFails    faultKind = "metadata fails"
	commitFails      faultKind = "commit fails"
	fenced           faultKind = "the group's members are refused"
	leadersMove      faultKind = "leaders move"
	coordinatorsMove faultKind = "coordinators move"
	kafkaReset       faultKind = "connections to Kafka break"
	clientsReset     faultKind = "connections to clients break"
	cutOff           faultKind = "Kafka is unreachable"
	cutOneWay        faultKind = "nothing comes back from Kafka"
	killed           faultKind = "kill"
	restarted        faultKind = "restart in order"
	joins            faultKind = "another gateway joins and leaves"
)

// weights say how often each is chosen.
var weights = []struct {
	what faultKind
	n    int
}{
	{produceRefused, 3},
	{produceTimedOut, 3},
	{produceLate, 2},
	{fetchFails, 2},
	{metadataFails, 1},
	{commitFails, 3},
	{fenced, 3},
	{leadersMove, 2},
	{coordinatorsMove, 2},
	{kafkaReset, 2},
	{clientsReset, 2},
	{cutOff, 2},
	{cutOneWay, 1},
	{killed, 4},
	{restarted, 3},
	{joins, 2},
}

// newPlan draws the plan of a seed.
func newPlan(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 1))
	among := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	p := plan{
		seed: seed, gateways: 1 + r.IntN(3), brokers: 1 + 2*r.IntN(2), partitions: int32(1 + r.IntN(4)), order: delivery.OrderKey,
		span: 20 * time.Second, hook: r.IntN(2) == 0, pull: r.IntN(3) == 0, deduped: r.IntN(2) == 0,
	}
	switch r.IntN(8) {
	case 0:
		p.order = delivery.OrderPartition
	case 1:
		p.order = delivery.OrderNone
	}
	routes := slices.Clone(workload.Routes)
	r.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	p.routes = routes[:2+r.IntN(2)]
	if r.IntN(4) > 0 {
		p.manner = workload.Manner{
			Nack: 0.1 * r.Float64(), Reject: 0.03 * r.Float64(), Hang: 0.02 * r.Float64(), Slow: 0.3 * r.Float64(), AckTwice: 0.1 * r.Float64(),
			Foreign: 0.1 * r.Float64(), Leave: 0.03 * r.Float64(), Resume: r.Float64(), NeverRead: 0.1 * r.Float64(),
		}
		p.bad = 0.2 * r.Float64()
	}
	total := 0
	for _, w := range weights {
		total += w.n
	}
	for range 3 + r.IntN(8) {
		f := planned{
			at: time.Duration(r.Int64N(int64(p.span - 2*time.Second))), gateway: r.IntN(p.gateways), code: r.IntN(100), count: 1 + r.IntN(5),
			lasts: among(300*time.Millisecond, time.Second, 3*time.Second, 8*time.Second, 15*time.Second),
		}
		n := r.IntN(total)
		for _, w := range weights {
			if n < w.n {
				f.what = w.what
				break
			}
			n -= w.n
		}
		p.faults = append(p.faults, f)
	}
	slices.SortFunc(p.faults, func(a, b planned) int { return int(a.at - b.at) })
	return p
}

// alone reports whether no other gateway is ever in the groups.
func (p plan) alone() bool {
	return p.gateways == 1 && !slices.ContainsFunc(p.faults, func(f planned) bool { return f.what == joins })
}

// allowance is how old an accepted ack may be when a crash undoes it: the commit
// interval and no more, for simulated time does not pass while machines work.
// But while a group rebalances nothing is committed, and when a member has died
// that takes as long as its session, or a rebalance that it had begun to join.
func (p plan) allowance() time.Duration {
	if p.alone() && !slices.ContainsFunc(p.faults, func(f planned) bool { return f.what == killed || f.what == restarted }) {
		return 250 * time.Millisecond
	}
	return mourning
}

func (p plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d gateways, %d brokers, %d partitions, order %s, routes %v, dedupe %t, webhook %t (bad %.2f), pull %t, manner %+v\n",
		p.seed, p.gateways, p.brokers, p.partitions, p.order, p.routes, p.deduped, p.hook, p.bad, p.pull, p.manner)
	for _, f := range p.faults {
		fmt.Fprintf(&b, "  %8s %s (gateway %d, %s, %d times, code %d)\n", f.at.Round(time.Millisecond), f.what, f.gateway, f.lasts, f.count, f.code)
	}
	return b.String()
}
