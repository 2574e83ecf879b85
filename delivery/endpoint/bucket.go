package endpoint

import (
	"math"
	"time"
)

// Bucket is a token bucket: the most requests a second. It holds a tenth of a
// second's worth, and one at least: what an endpoint allows a minute is not
// spent in its first second.
type Bucket struct {
	rate   float64 // tokens a second; 0: no limit
	most   float64
	tokens float64
	at     time.Time
}

// NewBucket makes a full bucket.
func NewBucket(perSecond float64, now time.Time) Bucket {
	most := max(1, perSecond/10)
	return Bucket{rate: perSecond, most: most, tokens: most, at: now}
}

func (b *Bucket) fill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(b.most, b.tokens+b.rate*d.Seconds())
		b.at = now
	}
}

// Tokens is how many requests may begin now.
func (b *Bucket) Tokens(now time.Time) int {
	if b.rate <= 0 {
		return math.MaxInt32
	}
	b.fill(now)
	return int(b.tokens + tokenSlack)
}

// tokenSlack forgives the rounding of seconds to floats.
const tokenSlack = 1e-9

// Take uses one up.
func (b *Bucket) Take(now time.Time) {
	if b.rate > 0 {
		b.fill(now)
		b.tokens = max(0, b.tokens-1)
	}
}

// Next is when there will be a token; now if there is one.
func (b *Bucket) Next(now time.Time) time.Time {
	if b.Tokens(now) > 0 {
		return now
	}
	return now.Add(time.Duration(math.Ceil((1 - b.tokens) / b.rate * float64(time.Second))))
}

// SetRate changes the rate; what was saved up stays, within the new most.
func (b *Bucket) SetRate(perSecond float64, now time.Time) {
	if perSecond == b.rate {
		return
	}
	b.fill(now)
	tokens := b.tokens
	*b = NewBucket(perSecond, now)
	b.tokens = min(tokens, b.most)
}
