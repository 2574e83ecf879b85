package publish

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Limits of answers that nobody reads.
const (
	// unreadLimit is how long one answer of a stream, of lines or of gRPC, may wait for
	// its reader. Longer lets more streams that nobody reads hold their window;
	// shorter cuts clients that pause.
	unreadLimit = time.Minute
	// unreadEvery is how often a gRPC stream is looked at: it may wait that much longer.
	unreadEvery = 5 * time.Second
)

func unread(waited time.Duration) error {
	return fault.New(fault.SlowConsumer, "the answers were not read for %v: read them while you send", waited.Round(time.Second))
}

// answers is a stream's way out. A write blocks as soon as gRPC's window and its
// 64 KiB of queue are full, and no context or deadline of ours ends it.
type answers struct {
	grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse]
	since atomic.Int64 // Unix nanoseconds at which the write under way began; 0: none is
}

func (a *answers) Send(m *posternv1.PublishStreamResponse) error {
	a.since.Store(time.Now().UnixNano())
	err := a.BidiStreamingServer.Send(m)
	a.since.Store(0)
	return err
}

// stuckFor is how long the write under way has taken.
func (a *answers) stuckFor() time.Duration {
	since := a.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// whileRead serves the stream until its client stops reading. The reason stands
// behind the answers in gRPC's queue: the client finds it when it reads on.
func (a *answers) whileRead(serve func() error) error {
	done := make(chan error, 1)
	go func() { done <- serve() }() // a write that is stuck ends with the stream, that is when the handler has returned
	ticker := time.NewTicker(unreadEvery)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			if stuck := a.stuckFor(); stuck >= unreadLimit {
				return unread(stuck)
			}
		}
	}
}
