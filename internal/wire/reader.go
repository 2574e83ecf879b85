package wire

import (
	"sync/atomic"
	"time"
)

const (
	// UnreadLimit is how long one message of a stream may wait for its reader before
	// the stream is cut: longer than a pause for garbage or a moved machine. Longer
	// lets more streams that nobody reads hold what they hold.
	UnreadLimit = time.Minute
	// unreadEvery is how often a gRPC stream is looked at: it may wait that much longer.
	unreadEvery = 5 * time.Second
)

// Reading watches whether the client of a gRPC stream reads. A write blocks as soon
// as gRPC's window and its 64 KiB of queue are full, and no context or deadline of
// ours ends it.
type Reading struct {
	since atomic.Int64 // Unix nanoseconds at which the write under way began; 0: none is
}

// Write runs write, one at a time.
func (r *Reading) Write(write func() error) error {
	r.since.Store(time.Now().UnixNano())
	defer r.since.Store(0)
	return write()
}

// stuck is how long the write under way has taken.
func (r *Reading) stuck() time.Duration {
	if since := r.since.Load(); since != 0 {
		return time.Since(time.Unix(0, since))
	}
	return 0
}

// While runs serve until its client stops reading: then it ends with what unread
// makes of the time waited. The reason stands behind the messages in gRPC's queue:
// the client finds it when it reads on. serve ends with the stream, that is when the
// caller has returned.
func (r *Reading) While(serve func() error, unread func(waited time.Duration) error) error {
	done := make(chan error, 1)
	go func() { done <- serve() }()
	ticker := time.NewTicker(unreadEvery)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if waited := r.stuck(); waited >= UnreadLimit {
				return unread(waited)
			}
		}
	}
}
