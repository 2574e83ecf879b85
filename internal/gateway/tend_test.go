package gateway

import "testing"

func TestIdleGatewayThatHoldsMuchIsCollectedMoreOften(t *testing.T) {
	for live, want := range map[uint64]int{0: gcPercent, 10 << 20: gcPercent, 32 << 20: 100, 1 << 30: leastGCPercent} {
		if got := idlePercent(live); got != want {
			t.Errorf("%d MiB live: %d, want %d", live>>20, got, want)
		}
	}
}

func TestGatewayOfManySubscriptionsIsCollectedMoreOften(t *testing.T) {
	for queues, want := range map[int]int{0: gcPercent, 1: gcPercent, 100: gcPercent, 200: 100, 1000: leastGCPercent} {
		if got := busyPercent(queues); got != want {
			t.Errorf("%d queues: %d, want %d", queues, got, want)
		}
	}
}
