package delivery

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Timers, beside a list of what they hold.
func TestWhateverIsDueFirstIsFoundFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h timers
		held := map[*entry]bool{}
		some := func() *entry { // by rank: the order of a map is no choice of rapid's
			at := rapid.IntRange(0, len(held)-1).Draw(t, "which")
			for e := range held {
				if rank(held, e) == at {
					return e
				}
			}
			return nil
		}
		made := int64(0)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			switch step := rapid.SampledFrom([]string{"lease", "lease", "lease", "short lease", "wait", "extend", "clear", "first", "clear first"}).Draw(t, "step"); {
			case step == "lease" || step == "short lease" || step == "wait":
				e := &entry{from: made, state: lent, due: time.Duration(made) + 1000}
				switch step {
				case "short lease":
					e.due = time.Duration(made) + time.Duration(rapid.IntRange(0, 1000).Draw(t, "due"))
				case "wait":
					e.state, e.due = waiting, time.Duration(rapid.IntRange(0, 3000).Draw(t, "due"))
				}
				made++
				h.set(e)
				held[e] = true
			case len(held) == 0:
			case step == "extend":
				e := some()
				e.due += time.Duration(rapid.IntRange(0, 500).Draw(t, "by"))
				h.set(e)
			case step == "clear":
				e := some()
				h.clear(e)
				delete(held, e)
			default:
				e := h.first(1 << 40)
				if !held[e] {
					t.Fatal("what is first was taken out, or never put in")
				}
				if step == "clear first" {
					h.clear(e)
					delete(held, e)
				}
			}
			least := time.Duration(-1)
			for e := range held {
				if least < 0 || e.due < least {
					least = e.due
				}
				if e.timer == 0 {
					t.Fatal("an entry that is held has no place")
				}
			}
			due, ok := h.next()
			if ok != (len(held) > 0) || ok && due != least {
				t.Fatalf("next is %d %v, of %d the first is due at %d", due, ok, len(held), least)
			}
			if e := h.first(least - 1); e != nil {
				t.Fatal("one was found before it was due")
			}
		}
		for range len(held) {
			e := h.first(1 << 40)
			h.clear(e)
			if e.timer != 0 || !held[e] {
				t.Fatal("an entry was not taken out")
			}
			delete(held, e)
		}
		if _, ok := h.next(); ok {
			t.Fatal("something is left")
		}
	})
}

// rank is e's place among all by when it was made.
func rank(all map[*entry]bool, e *entry) int {
	n := 0
	for other := range all {
		if other.from < e.from {
			n++
		}
	}
	return n
}

func TestLeasesThatEndInOrderTakeMemoryOfThoseThatAreLent(t *testing.T) {
	var h timers
	old := &entry{state: lent, due: 1}
	h.set(old) // and is not settled meanwhile
	var out []*entry
	for i := range 100_000 {
		e := &entry{state: lent, due: time.Duration(i + 2)}
		h.set(e)
		out = append(out, e)
		if len(out) > 100 {
			h.clear(out[0])
			out = out[1:]
		}
	}
	if n := len(h.line.ring); n > 512 || len(h.heap) > 0 {
		t.Errorf("101 leases stand in %d slots, %d in the heap", n, len(h.heap))
	}
	for _, e := range out {
		h.clear(e)
	}
	h.clear(old)
	if n := len(h.line.ring); n > lineMin {
		t.Errorf("no lease stands in %d slots", n)
	}
}

func BenchmarkLeaseSettledInOrder(b *testing.B) {
	for _, outstanding := range []int{100, 10_000} {
		b.Run(fmt.Sprint(outstanding), func(b *testing.B) {
			var h timers
			all := make([]entry, outstanding)
			for i := range all {
				all[i] = entry{state: lent, due: time.Duration(i)}
				h.set(&all[i])
			}
			due := time.Duration(outstanding)
			b.ResetTimer()
			for i := range b.N {
				e := &all[i%outstanding]
				h.clear(e)
				e.due = due
				due++
				h.set(e)
			}
		})
	}
}
