package prove

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/link"
)

// gatewayFaults are those of the processes.
func (r *run) gatewayFaults() []Fault {
	one := func(random *rand.Rand) *gateway { return r.gateways[random.IntN(len(r.gateways))] }
	return []Fault{
		{Name: "kill -9 of a gateway", Cause: func(ctx context.Context, random *rand.Rand, apart func(int)) error {
			g := one(random)
			if err := g.end(syscall.SIGKILL); err != nil {
				return err
			}
			sleep(ctx, time.Duration(random.Int64N(int64(2*time.Second))))
			return g.start(ctx)
		}},
		{Name: "restart of every gateway in order, one after the other", Cause: func(ctx context.Context, _ *rand.Rand, _ func(int)) error {
			for _, g := range r.gateways {
				if err := g.end(syscall.SIGTERM); err != nil {
					return err
				}
				if err := g.start(ctx); err != nil {
					return err
				}
			}
			return nil
		}},
		{Name: "a gateway is frozen for longer than its session", Cause: func(ctx context.Context, random *rand.Rand, apart func(int)) error {
			g := one(random)
			apart(g.number)
			g.signal(syscall.SIGSTOP)
			sleep(ctx, sessionTimeout+time.Duration(random.Int64N(int64(2*time.Second))))
			g.signal(syscall.SIGCONT)
			return nil
		}},
		{Name: "a gateway is frozen for a moment", Cause: func(ctx context.Context, random *rand.Rand, apart func(int)) error {
			g := one(random)
			apart(g.number)
			g.signal(syscall.SIGSTOP)
			sleep(ctx, time.Duration(random.Int64N(int64(2*time.Second))))
			g.signal(syscall.SIGCONT)
			return nil
		}},
		{Name: "connections to clients are reset in the middle of a frame", Cause: func(_ context.Context, random *rand.Rand, _ func(int)) error {
			for _, l := range one(random).links {
				l.ResetAfter(link.Direction(random.IntN(2)), random.Int64N(2000))
			}
			return nil
		}},
		{Name: "what a gateway answers its clients is held back", Cause: func(ctx context.Context, random *rand.Rand, apart func(int)) error {
			g := one(random)
			for _, l := range g.links {
				l.Cut(link.Back)
			}
			sleep(ctx, time.Second+time.Duration(random.Int64N(int64(4*time.Second))))
			for _, l := range g.links {
				l.Mend()
			}
			return nil
		}},
	}
}

// revive starts g again after a fault that ends it. No other may.
func (r *run) revive(ctx context.Context, g *gateway, f Fault) error {
	if f.Ends {
		return errors.Join(g.end(syscall.SIGKILL), g.start(ctx))
	}
	err, ended := g.ended()
	if !ended {
		return nil
	}
	r.oddly("gateway %d ended by itself (%v) at %q; it said:\n%s", g.number, err, f.Name, g.said)
	return g.start(ctx)
}

// mend starts g if a fault has left it down.
func (g *gateway) mend(ctx context.Context) error {
	g.signal(syscall.SIGCONT)
	g.mu.Lock()
	serving := g.serving
	g.mu.Unlock()
	if serving {
		return nil
	}
	return g.start(ctx)
}
