package gateway

import "testing"

func TestIdleGatewayThatHoldsMuchIsCollectedMoreOften(t *testing.T) {
	for live, want := range map[uint64]int{0: gcPercent, 10 << 20: gcPercent, 32 << 20: 100, 1 << 30: leastGCPercent} {
		if got := idlePercent(live); got != want {
			t.Errorf("%d MiB live: %d, want %d", live>>20, got, want)
		}
	}
}
