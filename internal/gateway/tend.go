package gateway

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is what the garbage collector aims at. The live heap is small beside
	// what passes through it: at Go's own 100 a stream of batches paid a fifth of its
	// CPU for collecting, at 200 a tenth, for some 12 MiB more (400: 40 MiB more for
	// another twentieth). A lower target while there is little to do cost a burst its
	// first seconds at half the speed: tried, and left.
	gcPercent = 200
	// tendEvery, busyCycles and quietTicks say when work has ended: fewer than two
	// collections in two seconds, five times in a row.
	tendEvery  = 2 * time.Second
	busyCycles = 2
	quietTicks = 5
)

// tend sets the collector's target, and gives memory back when work has ended: a
// sidecar with nothing to do should weigh little.
func tend(ctx context.Context) {
	cycles := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	count := func() uint64 {
		metrics.Read(cycles)
		return cycles[0].Value.Uint64()
	}
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	debug.SetGCPercent(gcPercent)
	quiet, last := 0, count()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := count()
		if now-last >= busyCycles {
			quiet = 0
		} else {
			quiet++
		}
		if quiet == quietTicks {
			runtime.GC() // each collection halves the stacks that grew in the work
			runtime.GC()
			debug.FreeOSMemory()
			now = count() // its own collections are no work
		}
		last = now
	}
}
