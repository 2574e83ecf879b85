package delivery

import (
	"strconv"
	"testing"
	"time"

	"github.com/postern-dev/postern/event"
)

// BenchmarkLane is what an event of a key costs that waits behind others of the key:
// lent one after the other, or parked together with all of them.
func BenchmarkLane(b *testing.B) {
	const depth = 1000
	records := func(from int64) []*event.Record {
		key := []byte(strconv.FormatInt(from, 10)) // a lane of its own each time
		all := make([]*event.Record, depth)
		for i := range all {
			all[i] = &event.Record{Offset: from + int64(i), Key: key, Value: key}
		}
		return all
	}
	perEvent := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*depth), "ns/event")
	}
	b.Run("in order", func(b *testing.B) {
		tracker := newTracker(OrderKey, 0, progress{}, seed)
		at := int64(0)
		b.ReportAllocs()
		for b.Loop() {
			for _, r := range records(at) {
				tracker.offer(r)
			}
			for range depth {
				e := tracker.peek()
				at++
				tracker.lend(e, ID(at), nil, 0, time.Duration(at), time.Hour)
				if tracker.peek() != nil {
					b.Fatal("two events of a lane are ready")
				}
				tracker.settle(e)
			}
		}
		perEvent(b)
	})
	b.Run("parked", func(b *testing.B) {
		tracker := newTracker(OrderKey, 0, progress{}, seed)
		tracker.parking = newTracker(OrderKey, 1<<60, progress{}, seed) // has settled all that comes to it
		places := make([]int64, depth)
		at := int64(0)
		b.ReportAllocs()
		for b.Loop() {
			for _, r := range records(at) {
				tracker.offer(r)
			}
			at += depth
			e := tracker.peek()
			tracker.lend(e, ID(at), nil, 0, time.Duration(at), time.Hour)
			tracker.park(e, time.Hour)
			moves := tracker.nextMoves(depth, 1<<30)
			for i := range moves {
				places[i] = at + int64(i)
			}
			tracker.moved(moves, places[:len(moves)])
			if len(moves) != depth || len(tracker.parked) > 0 {
				b.Fatalf("%d of %d moved, %d lanes are left", len(moves), depth, len(tracker.parked))
			}
		}
		perEvent(b)
	})
}
