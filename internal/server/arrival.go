package server

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"
)

// arriving is the context of a gRPC call whose one request message is still to
// come. It ends with DeadlineExceeded when the message takes longer than a body
// may: grpc-go has no limit of its own, and a client that drips one would hold its
// call, and what came of the message, for ever.
type arriving struct {
	context.Context
	late  atomic.Bool
	timer *time.Timer
}

type arrivingKey struct{}

// expect begins the time of a call's message; the interceptors end it.
func expect(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if from, ok := peer.FromContext(ctx); ok && from.Addr.Network() == "bufconn" {
		return ctx, nil // its body came by HTTP, which has limits
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &arriving{Context: ctx}
	a.timer = time.AfterFunc(bodyTimeout, func() {
		a.late.Store(true)
		cancel()
	})
	return a, nil
}

func (a *arriving) Err() error {
	if a.late.Load() {
		return context.DeadlineExceeded
	}
	return a.Context.Err()
}

func (a *arriving) Value(key any) any {
	if key == (arrivingKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// arrived ends the wait for a call's message.
func arrived(ctx context.Context) {
	if a, ok := ctx.Value(arrivingKey{}).(*arriving); ok {
		a.timer.Stop()
	}
}
