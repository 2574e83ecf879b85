package publish

import (
	"sync/atomic"
	"time"
)

// patience ends the waits of callers who gave no deadline. A timer of its own
// for each publish costs a twentieth of it, so publishes that begin within a
// tenth of the wait (a second at most) share one, and wait that much longer at most.
type patience struct {
	wait    time.Duration
	current atomic.Pointer[patienceTurn]
}

type patienceTurn struct {
	closes time.Time // to new waits
	over   chan struct{}
}

// over gives what is closed when a wait that begins now is over.
func (p *patience) over(now time.Time) <-chan struct{} {
	current := p.current.Load()
	if current != nil && now.Before(current.closes) {
		return current.over
	}
	share := min(time.Second, p.wait/10)
	next := &patienceTurn{closes: now.Add(share), over: make(chan struct{})}
	if !p.current.CompareAndSwap(current, next) {
		return p.over(now)
	}
	time.AfterFunc(p.wait+share, func() { close(next.over) })
	return next.over
}
