package webhook

import (
	"context"
	"slices"
	"sync"
	"time"
)

// limit is a context with a deadline that can be used again, as long as it did not
// end: a new one for each request, with its timer, its channel and its list of
// children, costs a twentieth of the request.
type limit struct {
	context.Context // whose values it has; it never ends

	mu       sync.Mutex
	timer    *time.Timer
	deadline time.Time
	done     chan struct{} // closed when err is there
	err      error
	after    []*func() // what context.AfterFunc, and contexts derived from it, have run at the end
}

// begin starts the time. l is new, or rests.
func (l *limit) begin(now time.Time, timeout time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = now.Add(timeout)
	if l.timer != nil {
		l.timer.Reset(timeout)
		return
	}
	l.done = make(chan struct{})
	l.timer = time.AfterFunc(timeout, func() { l.end(context.DeadlineExceeded) })
}

// rest stops the time, and reports whether l may begin again. What is derived from
// it may still be let go of afterwards, but must have been done with.
func (l *limit) rest() bool { return l.timer.Stop() && l.Err() == nil }

// cancel ends it now.
func (l *limit) cancel() {
	l.timer.Stop()
	l.end(context.Canceled)
}

func (l *limit) end(why error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = why
	close(l.done)
	after := l.after
	l.after = nil
	l.mu.Unlock()
	for _, f := range after {
		go (*f)()
	}
}

// Deadline is when it ends.
func (l *limit) Deadline() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline, true
}

// Done is closed at the end.
func (l *limit) Done() <-chan struct{} { return l.done }

// Err is why it ended; nil: it did not.
func (l *limit) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// AfterFunc has f run at the end, unless stop is called before (see
// context.AfterFunc, which calls it, as does context.WithCancel).
func (l *limit) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		go f()
		return func() bool { return false }
	}
	l.after = append(l.after, &f)
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		at := slices.Index(l.after, &f)
		if at < 0 {
			return false
		}
		l.after = slices.Delete(l.after, at, at+1)
		return true
	}
}
