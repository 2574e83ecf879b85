package endpoint

import "time"

// AIMD is how many requests may be under way at once: additive increase,
// multiplicative decrease (Chiu and Jain, 1989), as TCP does it.
//
// It begins at firstLimit and doubles with every window of successes that used
// it up (slow start) until the first sign of overload; from then on a window
// adds one. A sign of overload halves it, once for all the requests that were
// under way together: they tell of the same moment.
//
// A limit that was not used up says nothing about more, and does not grow.
type AIMD struct {
	most    int
	limit   int
	slow    bool      // slow start
	good    int       // successes in this window
	full    bool      // the limit was used up in this window
	lowered time.Time // requests begun before do not lower it again
}

const firstLimit = 4

// NewAIMD makes a limit that ends at most.
func NewAIMD(most int) AIMD {
	return AIMD{most: max(1, most), limit: min(firstLimit, max(1, most)), slow: true}
}

// Limit is how many requests may be under way.
func (a *AIMD) Limit() int { return a.limit }

// Began notes that a request begins, the inFlight-th under way.
func (a *AIMD) Began(inFlight int) {
	if inFlight >= a.limit {
		a.full = true
	}
}

// Succeeded notes an answer in time.
func (a *AIMD) Succeeded() {
	a.good++
	if a.good < a.limit {
		return
	}
	if a.full {
		if a.slow {
			a.limit *= 2
		} else {
			a.limit++
		}
		a.limit = min(a.limit, a.most)
	}
	a.good, a.full = 0, false
}

// Overloaded notes a sign of overload by a request that began then.
func (a *AIMD) Overloaded(began, now time.Time) {
	a.slow = false
	a.good, a.full = 0, false
	if began.Before(a.lowered) {
		return
	}
	a.limit = max(1, a.limit/2)
	a.lowered = now
}

// Restart is for an endpoint that is back: it begins anew, gently.
func (a *AIMD) Restart() { *a = NewAIMD(a.most) }
