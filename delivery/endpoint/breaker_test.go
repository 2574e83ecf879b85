package endpoint

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBreakerOpensWhenMostRequestsOfSeveralLanesFail(t *testing.T) {
	for _, c := range []struct {
		name         string
		good, failed int
		lanes        uint64
		opens        bool
	}{
		{"all fail", 0, 10, 10, true},
		{"fewer than ten requests", 0, 9, 9, false},
		{"seven of ten fail", 3, 7, 7, true},
		{"six of ten fail", 4, 6, 6, false},
		{"one poisoned key fails for ever", 0, 1000, 1, false},
		{"two poisoned keys", 0, 1000, 2, false},
		{"three lanes are a crowd", 0, 10, 3, true},
	} {
		var b Breaker
		now := epoch
		for range c.good {
			b.Succeeded(now)
		}
		for i := range c.failed {
			now = now.Add(time.Millisecond)
			b.Failed(uint64(i)%c.lanes, now)
		}
		if b.Open() != c.opens {
			t.Errorf("%s: open is %v", c.name, b.Open())
		}
	}
}

func TestBreakerForgetsWhatIsOlderThanItsWindow(t *testing.T) {
	var b Breaker
	for i := range uint64(9) {
		b.Failed(i, epoch)
	}
	if b.Failed(10, epoch.Add(breakerWindow+bucketSpan)) || b.Open() {
		t.Error("failures of long ago opened it")
	}
}

func TestPoisonedKeyAmongHealthyOnesNeverOpensTheBreaker(t *testing.T) {
	var b Breaker
	now := epoch
	for i := range 100_000 {
		now = now.Add(2 * time.Millisecond)
		if i%32 == 0 {
			b.Failed(7, now)
		} else {
			b.Succeeded(now)
		}
	}
	if b.Open() {
		t.Error("one failing key of 32 opened it")
	}
}

func TestOneProbeAtATimeAndEachThatFailsDoublesTheWait(t *testing.T) {
	var b Breaker
	now := epoch
	for i := range uint64(10) {
		b.Begin()
		b.Failed(i, now)
	}
	for _, want := range []time.Duration{probeFirst, 2 * probeFirst, 4 * probeFirst, 8 * probeFirst, probeMost, probeMost} {
		if wait := b.ProbeAt().Sub(now); wait != want {
			t.Errorf("the wait is %s, want %s", wait, want)
		}
		if b.May(b.ProbeAt().Add(-time.Nanosecond)) {
			t.Error("it may be probed too early")
		}
		now = b.ProbeAt()
		if !b.May(now) {
			t.Fatal("it may not be probed")
		}
		b.Begin()
		if b.May(now) {
			t.Error("a second probe may begin beside the first")
		}
		if b.Failed(99, now) != true {
			t.Error("a failed probe does not keep it open")
		}
	}
	b.Begin()
	if !b.Succeeded(now) || b.Open() || !b.May(now) {
		t.Error("a probe that succeeds does not close it")
	}
}

func TestRequestsUnderWayWhenItOpenedAreNoProbes(t *testing.T) {
	var b Breaker
	for i := range uint64(10) {
		b.Failed(i, epoch)
	}
	at := b.ProbeAt()
	for i := range uint64(50) {
		b.Failed(i, epoch.Add(time.Second))
	}
	if b.ProbeAt() != at {
		t.Errorf("stragglers moved the probe from %s to %s", at, b.ProbeAt())
	}
}

func TestBreakerIsNeverShutForEverNorOpenWithoutCause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Breaker
		now, begun, sinceSuccess := epoch, false, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, int(time.Minute)).Draw(t, "wait")))
			if !b.May(now) {
				if b.Open() && !begun && b.ProbeAt().Sub(now) > probeMost {
					t.Fatalf("the next probe is %s away", b.ProbeAt().Sub(now))
				}
				if !begun {
					now = b.ProbeAt()
				}
			}
			if !begun && b.May(now) {
				b.Begin()
				begun = true
			}
			if begun {
				if rapid.IntRange(0, 3).Draw(t, "result") == 0 {
					b.Succeeded(now)
					sinceSuccess = 0
					if b.Open() {
						t.Fatal("open after a success")
					}
				} else {
					sinceSuccess++
					b.Failed(uint64(rapid.IntRange(0, 5).Draw(t, "lane")), now)
				}
				begun = false
			}
			if b.Open() && sinceSuccess < breakerLanes {
				t.Fatalf("open after %d failures since the last success", sinceSuccess)
			}
		}
	})
}
