package delivery

import (
	"fmt"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// Retry says when an event that was not acknowledged is lent again, and when
// that is enough.
type Retry struct {
	// MaxAttempts is how often an event is lent before it is dead-lettered. Default 10.
	MaxAttempts int `yaml:"max_attempts"`
	// MinBackoff is the wait before the second attempt; it doubles from there. Default 1s.
	MinBackoff time.Duration `yaml:"min_backoff"`
	// MaxBackoff bounds the wait. Default 10m.
	MaxBackoff time.Duration `yaml:"max_backoff"`
	// Schedule lists the waits before the second, third, ... attempt instead;
	// max_attempts is then its length plus one.
	Schedule []time.Duration `yaml:"schedule"`
	// HoldLimit is the longest wait that is spent in memory; an event that must wait
	// longer goes to a topic of the subscription's own meanwhile. 1s to 10m. Default 60s.
	HoldLimit time.Duration `yaml:"hold_limit"`
	// MaxBlock is how long after its first attempt an event is dead-lettered whatever
	// attempts are left. Default 24h, and no less than the waits together.
	MaxBlock time.Duration `yaml:"max_block"`
	// OnBlock says what becomes of the events behind one that waits, where an order
	// is kept: wait (default) or move_on.
	OnBlock OnBlock `yaml:"on_block"`
}

// OnBlock says whether events behind a failing one of their lane wait for it.
type OnBlock uint8

const (
	Wait   OnBlock = iota // the order is kept, however long it takes
	MoveOn                // after the hold limit the others go on without it
)

// MarshalText writes wait or move_on.
func (b OnBlock) MarshalText() ([]byte, error) {
	if b == MoveOn {
		return []byte("move_on"), nil
	}
	return []byte("wait"), nil
}

// UnmarshalText reads wait or move_on.
func (b *OnBlock) UnmarshalText(text []byte) error {
	switch string(text) {
	case "wait":
		*b = Wait
	case "move_on":
		*b = MoveOn
	default:
		return fmt.Errorf("%q is not offered: use wait or move_on", text)
	}
	return nil
}

const (
	defaultHoldLimit = time.Minute
	maxHoldLimit     = 10 * time.Minute
	defaultMaxBlock  = 24 * time.Hour
)

// jitter spreads retries by this share in both directions, so that events
// that failed together do not come back together.
const jitter = 0.2

// WithDefaults returns r with empty settings filled in.
func (r Retry) WithDefaults() Retry {
	if len(r.Schedule) > 0 {
		r.MaxAttempts = len(r.Schedule) + 1
	}
	if r.MaxAttempts == 0 {
		r.MaxAttempts = 10
	}
	if r.MinBackoff == 0 {
		r.MinBackoff = time.Second
	}
	if r.MaxBackoff == 0 {
		r.MaxBackoff = max(10*time.Minute, r.MinBackoff)
	}
	if r.HoldLimit == 0 {
		r.HoldLimit = defaultHoldLimit
	}
	if r.MaxBlock == 0 {
		waits := time.Duration(0)
		for attempt := 1; attempt < r.MaxAttempts; attempt++ {
			waits += r.Delay(attempt, 1)
		}
		r.MaxBlock = max(defaultMaxBlock, 2*waits)
	}
	return r
}

// Validate reports everything wrong with r, each as a *setting.Error.
func (r Retry) Validate() []error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: "retry." + path, Message: fmt.Sprintf(format, args...)})
	}
	if r.MaxAttempts < 0 || r.MaxAttempts > 1000 {
		bad("max_attempts", "%d is out of range: 1 to 1000", r.MaxAttempts)
	}
	if r.MinBackoff < 0 || r.MaxBackoff < 0 {
		bad("min_backoff", "a backoff cannot be negative")
	}
	if r.MaxBackoff > 0 && r.MinBackoff > r.MaxBackoff {
		bad("max_backoff", "%s is below min_backoff %s", r.MaxBackoff, r.MinBackoff)
	}
	if len(r.Schedule) > 0 && r.MaxAttempts != 0 && r.MaxAttempts != len(r.Schedule)+1 {
		bad("max_attempts", "%d contradicts the schedule of %d waits: leave it out", r.MaxAttempts, len(r.Schedule))
	}
	if r.HoldLimit != 0 && (r.HoldLimit < time.Second || r.HoldLimit > maxHoldLimit) {
		bad("hold_limit", "%s is out of range: 1s to %s", r.HoldLimit, maxHoldLimit)
	}
	if r.MaxBlock != 0 && r.MaxBlock < time.Second {
		bad("max_block", "%s is out of range: at least 1s", r.MaxBlock)
	}
	for i, d := range r.Schedule {
		if d < 0 {
			bad(fmt.Sprintf("schedule[%d]", i), "a wait cannot be negative")
		}
	}
	return errs
}

// Exhausted reports whether an event that failed its attempt-th time is out of attempts.
func (r Retry) Exhausted(attempt int) bool { return attempt >= r.MaxAttempts }

// waits is how long the waits after so many more attempts are together, when there
// were some before. An event that failed again in the park has only its first wait
// in its record and the number of its attempts in the commit: a new owner begins
// the waits in between anew from there, or each restart would cost an attempt of a
// schedule of days.
func (r Retry) waits(before, more int) (all time.Duration) {
	for i := 1; i <= more; i++ {
		all += r.Delay(before+i, 0.5)
	}
	return all
}

// Delay is the wait after the attempt-th failure. random is from [0, 1).
func (r Retry) Delay(attempt int, random float64) time.Duration {
	var d time.Duration
	switch {
	case len(r.Schedule) > 0:
		d = r.Schedule[min(attempt, len(r.Schedule))-1]
	default:
		d = r.MinBackoff
		for i := 1; i < attempt && d < r.MaxBackoff; i++ {
			d *= 2
		}
		d = min(d, r.MaxBackoff)
	}
	return d + time.Duration(jitter*(2*random-1)*float64(d))
}
