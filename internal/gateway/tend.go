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
	// fewQueues keep that target. What more of them hold is no longer small beside
	// what passes through it: a thousand that begin left half as much memory again
	// between what is live as with a target of 50.
	fewQueues = 100
	// tendEvery, busyCycles and quietTicks say when work has ended: fewer than two
	// collections in two seconds, five times in a row.
	tendEvery  = 2 * time.Second
	busyCycles = 2
	quietTicks = 5
	// idleGarbage is what may lie about when there is little to do. A thousand idle
	// subscriptions hold 100 MiB; three times as much would be resident for nothing.
	idleGarbage    = 32 << 20
	leastGCPercent = 50
)

// busyPercent is the collector's target while n queues are at work.
func busyPercent(n int) int {
	return max(leastGCPercent, gcPercent*fewQueues/max(n, fewQueues))
}

// idlePercent is the collector's target while there is little to do and live bytes
// are held. What holds little keeps the target of work, so that a burst is not slowed.
func idlePercent(live uint64) int {
	return int(min(gcPercent, max(leastGCPercent, 100*idleGarbage/max(live, 1))))
}

// tend sets the collector's target, and gives memory back when work has ended: a
// sidecar with nothing to do should weigh little.
func tend(ctx context.Context, queues func() int) {
	samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"}}
	count := func() uint64 {
		metrics.Read(samples)
		return samples[0].Value.Uint64()
	}
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	percent := gcPercent
	debug.SetGCPercent(percent)
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
		busy := busyPercent(queues())
		want := busy
		if quiet >= quietTicks {
			want = min(busy, idlePercent(samples[1].Value.Uint64()))
		}
		// Not for every small change: each stops the world.
		if diff := want - percent; want == busy && percent != want || diff < -10 || diff > 10 {
			percent = want
			debug.SetGCPercent(percent)
		}
		last = now
	}
}
