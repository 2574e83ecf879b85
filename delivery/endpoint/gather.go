package endpoint

import (
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

// Batch says how many events an endpoint takes in one request. The zero Batch is one.
type Batch struct {
	// MaxEvents of a batch. Default 100, at most 10000.
	MaxEvents int `yaml:"max_events"`
	// MaxBytes of a batch's events: keys, values and headers. Default 256KiB, at most 16MiB. A larger event goes alone.
	MaxBytes setting.Bytes `yaml:"max_bytes"`
	// MaxWait is how long an event waits for others, at most 1m. Default 100ms.
	MaxWait time.Duration `yaml:"max_wait"`
}

// WithDefaults returns b with empty settings filled in.
func (b Batch) WithDefaults() Batch {
	if b.MaxEvents == 0 {
		b.MaxEvents = 100
	}
	if b.MaxBytes == 0 {
		b.MaxBytes = 256 << 10
	}
	if b.MaxWait == 0 {
		b.MaxWait = 100 * time.Millisecond
	}
	return b
}

// Validate reports everything wrong with b, by setting.
func (b Batch) Validate(bad func(path, format string, args ...any)) {
	if b.MaxEvents < 0 || b.MaxEvents > 10_000 {
		bad("max_events", "%d is out of range: 1 to 10000", b.MaxEvents)
	}
	if b.MaxBytes < 0 || b.MaxBytes > 16<<20 {
		bad("max_bytes", "%s is out of range: at most 16MiB", b.MaxBytes)
	}
	if b.MaxWait < 0 || b.MaxWait > time.Minute {
		bad("max_wait", "%s is out of range: at most 1m", b.MaxWait)
	}
}

// gatherer makes batches of leases. It is pure: the times are given.
//
// The order of leases is kept within a batch. Two events of one key never meet
// in one of an ordered subscription: the second is lent when the first is settled.
type gatherer struct {
	batch   Batch
	waiting []delivery.Lease
	bytes   int
	due     time.Time // of the first that waits
	// alone are events that were in a batch that was refused as a whole: each is
	// sent by itself, so that the one to blame is found. Bounded by maxAlone: past it
	// all are forgotten, and those still there find their way here again.
	alone map[event.Position]bool
}

const maxAlone = 20_000 // two batches of the largest size

func newGatherer(b Batch) *gatherer { return &gatherer{batch: b, alone: map[event.Position]bool{}} }

func (g *gatherer) add(leases []delivery.Lease, now time.Time) {
	if len(g.waiting) == 0 && len(leases) > 0 {
		g.due = now.Add(g.batch.MaxWait)
	}
	for i := range leases {
		g.bytes += leases[i].Record.Size()
	}
	g.waiting = append(g.waiting, leases...)
}

// ready reports whether a batch is full, has waited long enough, or must go alone.
func (g *gatherer) ready(now time.Time) bool {
	return len(g.waiting) > 0 && (len(g.waiting) >= g.batch.MaxEvents || g.bytes >= int(g.batch.MaxBytes) || !now.Before(g.due) ||
		g.alone[g.waiting[0].Record.Position()])
}

// take gives the next batch out.
func (g *gatherer) take(now time.Time) []delivery.Lease {
	n, bytes := 0, 0
	for n < len(g.waiting) && n < g.batch.MaxEvents {
		r := g.waiting[n].Record
		if n > 0 && (bytes+r.Size() > int(g.batch.MaxBytes) || g.alone[r.Position()]) {
			break
		}
		bytes += r.Size()
		n++
		if g.alone[r.Position()] {
			break
		}
	}
	taken := append([]delivery.Lease(nil), g.waiting[:n]...)
	g.waiting = append(g.waiting[:0], g.waiting[n:]...)
	g.bytes -= bytes
	if len(g.waiting) > 0 {
		g.due = now // they have waited as long
	}
	return taken
}

// giveBack gives out all that wait.
func (g *gatherer) giveBack() []delivery.Lease {
	taken := g.waiting
	g.waiting, g.bytes = nil, 0
	return taken
}

// split has the events sent alone from now on.
func (g *gatherer) split(leases []delivery.Lease) {
	if len(g.alone)+len(leases) > maxAlone {
		clear(g.alone) // some are of partitions that went to other instances
	}
	for i := range leases {
		g.alone[leases[i].Record.Position()] = true
	}
}

func (g *gatherer) forget(at event.Position) { delete(g.alone, at) }
