package endpoint

import "time"

// Breaker finds out that an endpoint is broken, so that a crowd of events is not
// spent on it: it is left alone, and then one request probes it.
//
// It opens when at least breakerRequests were made in the last breakerWindow, 70 %
// of them failed, and the failures were of at least breakerLanes different lanes
// since the last success. The last condition keeps one poisoned key, which its
// backoff paces already, from closing the door on all others.
//
// While open it waits probeFirst, doubling to probeMost with each probe that fails.
type Breaker struct {
	buckets  [breakerBuckets]bucketCount
	lanes    [breakerLanes]uint64
	distinct int
	open     bool
	probeAt  time.Time
	wait     time.Duration
	probing  bool
}

type bucketCount struct {
	span         int64 // which one it counts, in units of bucketSpan since 1970
	good, failed int
}

const (
	breakerWindow   = 5 * time.Minute
	breakerBuckets  = 10
	bucketSpan      = breakerWindow / breakerBuckets
	breakerRequests = 10
	breakerPercent  = 70
	breakerLanes    = 3
	probeFirst      = 30 * time.Second
	probeMost       = 5 * time.Minute
)

// Open reports whether the endpoint is taken for broken.
func (b *Breaker) Open() bool { return b.open }

// ProbeAt is when the next probe may be made, while open.
func (b *Breaker) ProbeAt() time.Time { return b.probeAt }

// May reports whether a request may be made now; while open, only as the one probe.
func (b *Breaker) May(now time.Time) bool {
	return !b.open || !b.probing && !now.Before(b.probeAt)
}

// Begin notes that a request begins: while open it is the probe.
func (b *Breaker) Begin() {
	if b.open {
		b.probing = true
	}
}

// Abandoned notes that the probe came to nothing that says anything.
func (b *Breaker) Abandoned() { b.probing = false }

// Succeeded notes a success, and reports whether it closed the breaker.
func (b *Breaker) Succeeded(now time.Time) (closed bool) {
	b.distinct = 0
	if b.open {
		*b = Breaker{}
		closed = true
	}
	b.bucket(now).good++
	return closed
}

// Failed notes a failure of an event of the lane, and reports whether it opened
// the breaker, or was a probe and keeps it open.
func (b *Breaker) Failed(lane uint64, now time.Time) (opened bool) {
	if b.open {
		if b.probing {
			b.probing = false
			b.wait = min(2*b.wait, probeMost)
			b.probeAt = now.Add(b.wait)
			return true
		}
		return false // one that was under way when it opened
	}
	b.bucket(now).failed++
	b.sawLane(lane)
	if b.distinct < breakerLanes {
		return false
	}
	good, failed := b.count(now)
	if good+failed < breakerRequests || failed*100 < (good+failed)*breakerPercent {
		return false
	}
	b.Trip(now.Add(probeFirst), probeFirst)
	return true
}

// Trip opens the breaker until a probe at the time given.
func (b *Breaker) Trip(probeAt time.Time, wait time.Duration) {
	*b = Breaker{open: true, probeAt: probeAt, wait: max(wait, probeFirst)}
}

func (b *Breaker) sawLane(lane uint64) {
	for _, seen := range b.lanes[:b.distinct] {
		if seen == lane {
			return
		}
	}
	if b.distinct < breakerLanes {
		b.lanes[b.distinct] = lane
		b.distinct++
	}
}

func (b *Breaker) bucket(now time.Time) *bucketCount {
	span := now.UnixNano() / int64(bucketSpan)
	c := &b.buckets[span%breakerBuckets]
	if c.span != span {
		*c = bucketCount{span: span}
	}
	return c
}

func (b *Breaker) count(now time.Time) (good, failed int) {
	oldest := now.UnixNano()/int64(bucketSpan) - breakerBuckets
	for _, c := range b.buckets {
		if c.span > oldest {
			good, failed = good+c.good, failed+c.failed
		}
	}
	return good, failed
}
