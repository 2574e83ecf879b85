// Package workload is services' side of a gateway under test: publishers,
// subscribers and webhook receivers that behave as well or as badly as they
// are told, and record in a history what they saw. The simulation, the faults
// with real processes and `postern prove` all put this load on the gateway, so
// that package history judges all three by the same entries.
//
// Files: publisher.go the ways to publish, subscriber.go streams and pulls,
// receiver.go webhooks. How gateways are started and broken is not here.
package workload

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/wire"
)

// Target is one gateway as its clients reach it.
type Target struct {
	GRPC grpc.ClientConnInterface
	Web  *http.Client
	Base string // of HTTP routes: http://host:port
}

// Random is a source of numbers that goroutines may share.
type Random struct {
	mu sync.Mutex
	r  *rand.Rand
}

// NewRandom gives the numbers of a seed; stream tells users of one seed apart.
func NewRandom(seed, stream uint64) *Random {
	return &Random{r: rand.New(rand.NewPCG(seed, stream))}
}

// N is a number below n.
func (r *Random) N(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.IntN(n)
}

// Chance is true once in a while: p is from 0 to 1.
func (r *Random) Chance(p float64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Float64() < p
}

// Between is a duration from a up to b.
func (r *Random) Between(a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return a + time.Duration(r.r.Int64N(int64(b-a)))
}

// hex makes n hexadecimal digits.
func (r *Random) hex(n int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, n)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range b {
		b[i] = digits[1+r.r.IntN(15)] // never all zero, which is no trace
	}
	return string(b)
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// meaning says what an error of a call tells about the event: surely not
// stored, or unknown. A broken connection tells nothing.
func meaning(err error) history.Kind {
	s, ok := status.FromError(err)
	if !ok || s == nil {
		return history.Unknown
	}
	for _, d := range s.Details() {
		if info, ok := d.(interface{ GetDomain() string }); ok && info.GetDomain() == fault.Domain {
			return kindMeaning(wire.FromStatus(s.Proto()).Kind())
		}
	}
	return history.Unknown
}

func kindMeaning(k fault.Kind) history.Kind {
	switch k {
	case fault.KindUnknown, fault.KindInternal, fault.KindCancelled:
		return history.Unknown
	}
	return history.Failed
}

// traceOf takes the trace id out of a traceparent.
func traceOf(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) != 4 {
		return ""
	}
	return parts[1]
}
