package endpoint

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 31, 10, 0, 0, 0, time.UTC)

// rounds has n windows of requests succeed, each using the limit up.
func rounds(a *AIMD, n int) (limits []int) {
	for range n {
		limit := a.Limit()
		for i := range limit {
			a.Began(i + 1)
		}
		for range limit {
			a.Succeeded()
		}
		limits = append(limits, a.Limit())
	}
	return limits
}

func TestLimitDoublesUntilTheFirstOverloadAndThenGrowsByOne(t *testing.T) {
	a := NewAIMD(100)
	if a.Limit() != firstLimit {
		t.Fatalf("it begins at %d", a.Limit())
	}
	if got := rounds(&a, 3); got[0] != 8 || got[1] != 16 || got[2] != 32 {
		t.Errorf("slow start went %v", got)
	}
	a.Overloaded(epoch, epoch.Add(time.Second))
	if a.Limit() != 16 {
		t.Errorf("after an overload the limit is %d", a.Limit())
	}
	if got := rounds(&a, 3); got[0] != 17 || got[1] != 18 || got[2] != 19 {
		t.Errorf("it grew %v", got)
	}
}

func TestRequestsThatWereUnderWayTogetherLowerTheLimitOnce(t *testing.T) {
	a := NewAIMD(64)
	rounds(&a, 4)
	for i := range 64 {
		a.Overloaded(epoch, epoch.Add(time.Second+time.Duration(i)*time.Millisecond))
	}
	if a.Limit() != 32 {
		t.Errorf("64 failures of one moment lowered the limit to %d", a.Limit())
	}
	a.Overloaded(epoch.Add(2*time.Second), epoch.Add(3*time.Second))
	if a.Limit() != 16 {
		t.Errorf("a later one lowered it to %d", a.Limit())
	}
}

func TestLimitThatIsNotUsedUpDoesNotGrow(t *testing.T) {
	a := NewAIMD(64)
	for range 10_000 {
		a.Began(1)
		a.Succeeded()
	}
	if a.Limit() != firstLimit {
		t.Errorf("one request at a time raised the limit to %d", a.Limit())
	}
}

func TestLimitStaysBetweenOneAndItsMost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 300).Draw(t, "most")
		a := NewAIMD(most)
		now := epoch
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Millisecond)
			before := a.Limit()
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				rounds(&a, 1)
				if a.Limit() < before {
					t.Fatalf("successes lowered the limit from %d to %d", before, a.Limit())
				}
			case 1:
				a.Overloaded(now, now)
				if a.Limit() > before || a.Limit() < before/2 {
					t.Fatalf("an overload moved the limit from %d to %d", before, a.Limit())
				}
			case 2:
				a.Began(rapid.IntRange(1, most).Draw(t, "in flight"))
			}
			if a.Limit() < 1 || a.Limit() > most {
				t.Fatalf("the limit is %d of %d", a.Limit(), most)
			}
		}
	})
}

func TestBucketNeverGivesMoreThanItsRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.01, 5000).Draw(t, "rate")
		b := NewBucket(rate, epoch)
		now, taken := epoch, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			if b.Tokens(now) > 0 && rapid.Bool().Draw(t, "take") {
				b.Take(now)
				taken++
				continue
			}
			next := b.Next(now)
			if next.Before(now) {
				t.Fatalf("the next token was at %s, before %s", next, now)
			}
			if b.Tokens(now) == 0 && b.Tokens(next) == 0 {
				t.Fatalf("at %s there was to be a token", next)
			}
			now = next.Add(time.Duration(rapid.IntRange(0, 1e9).Draw(t, "wait")))
		}
		if most := max(1, rate/10) + rate*now.Sub(epoch).Seconds() + 1e-6; float64(taken) > most {
			t.Fatalf("%d were taken in %s at %g a second", taken, now.Sub(epoch), rate)
		}
	})
}

func TestBucketThatSlowsDownKeepsWhatItMayAndNoMore(t *testing.T) {
	b := NewBucket(1000, epoch)
	b.SetRate(10, epoch)
	if n := b.Tokens(epoch); n != 1 {
		t.Errorf("%d tokens after slowing down", n)
	}
	b.SetRate(0, epoch)
	if n := b.Tokens(epoch); n < 1e6 {
		t.Errorf("%d tokens without a limit", n)
	}
}
