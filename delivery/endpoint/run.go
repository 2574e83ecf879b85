package endpoint

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/postern-dev/postern/delivery"
)

// disabledRest is how long an endpoint is disabled before its pusher ends: what is
// under way has its outcome by then, and one that is enabled soon goes on at once.
const disabledRest = time.Minute

// ErrDisabled ends a Run.
var ErrDisabled = errors.New("the endpoint is disabled")

// Run pushes what lender lends until ctx ends or lender does, or until the endpoint
// was disabled for a minute: then it is ErrDisabled, and there is nothing to do until
// somebody enables it. Requests under way are finished.
func (p *Pusher) Run(ctx context.Context, lender Lender) (ended error) {
	governing, stop := context.WithCancel(context.WithoutCancel(ctx))
	ctx, leave := context.WithCancelCause(ctx)
	var governors, attempts sync.WaitGroup
	governor := p.newGovernor(governing, &governors, func() { leave(ErrDisabled) })
	p.mu.Lock()
	p.lender, p.window = lender, -1
	p.mu.Unlock()
	if p.env.States != nil {
		defer p.env.States.Watch(p.options.Subscription, p.apply)()
	}
	p.governor.Store(governor)
	governor.Ask()
	governor.Begin()
	defer func() {
		if errors.Is(context.Cause(ctx), ErrDisabled) {
			ended = ErrDisabled
		}
		leave(nil)
		attempts.Wait()
		stop()
		p.governor.Store(nil)
		governor.End()
		governors.Wait()
		p.mu.Lock()
		p.lender = nil
		p.mu.Unlock()
	}()
	if p.options.Batch.MaxEvents > 1 {
		return p.runBatches(ctx, lender, &attempts)
	}
	stopped := make(chan struct{})
	defer close(stopped)
	for {
		leases, _, err := lender.Next(ctx)
		if err != nil {
			return err
		}
		own(leases)
		for i := range leases {
			one := leases[i : i+1 : i+1]
			select {
			case p.idle <- one: // one that has its stack grown already: a tenth of the work
			default:
				attempts.Go(func() { p.work(ctx, one, lender, stopped) })
			}
		}
	}
}

// own copies events out of the fetch that they came in: an endpoint may take long,
// and one event would keep all of it in memory.
func own(leases []delivery.Lease) {
	for i := range leases {
		leases[i].Record = leases[i].Record.Clone()
	}
}

// workerRest is how long a goroutine that has nothing to carry stays for more.
const workerRest = 5 * time.Second

// work carries events until there have been none for a while.
func (p *Pusher) work(ctx context.Context, leases []delivery.Lease, lender Lender, stopped <-chan struct{}) {
	var rest *time.Timer
	room := make([]delivery.Lease, 0, 1)
	for {
		for len(leases) > 0 { // what is settled makes room for the next
			leases = p.carry(ctx, leases, lender, room)
		}
		if rest == nil {
			rest = time.NewTimer(workerRest)
			defer rest.Stop()
		} else {
			rest.Reset(workerRest)
		}
		select {
		case leases = <-p.idle:
		case <-stopped:
			return
		case <-rest.C:
			return
		}
	}
}

// runBatches gathers what is lent into batches.
func (p *Pusher) runBatches(ctx context.Context, lender Lender, attempts *sync.WaitGroup) error {
	lent := make(chan []delivery.Lease)
	ended := make(chan error, 1)
	stopped := make(chan struct{})
	defer close(stopped)
	attempts.Go(func() {
		for {
			leases, _, err := lender.Next(ctx)
			if err != nil {
				ended <- err
				return
			}
			own(leases)
			select {
			case lent <- leases:
			case <-stopped:
				lender.Return(leases)
			}
		}
	})
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(p.flush(ctx, lender, attempts))
		select {
		case leases := <-lent:
			p.mu.Lock()
			p.gather.add(leases, time.Now())
			p.mu.Unlock()
		case <-timer.C:
		case <-p.wakeGatherer:
		case err := <-ended:
			p.mu.Lock()
			rest := p.gather.giveBack()
			p.mu.Unlock()
			lender.Return(rest)
			return err
		}
	}
}

// flush sends the batches that are ready and may be sent, and says when to look
// again. One that is ready while only other requests are in its way waits for
// them; when the endpoint is to be left alone, all go back untried.
func (p *Pusher) flush(ctx context.Context, lender Lender, attempts *sync.WaitGroup) time.Duration {
	for {
		now := time.Now()
		p.mu.Lock()
		switch {
		case len(p.gather.waiting) == 0:
			p.mu.Unlock()
			return time.Hour
		case p.health.Free(now) > 0 && p.gather.ready(now):
			leases := p.gather.take(now)
			p.begin(len(leases), now)
			p.mu.Unlock()
			attempts.Go(func() { p.deliver(ctx, leases, lender, nil) })
		case p.health.Free(now) > 0:
			wait := p.gather.due.Sub(now)
			p.mu.Unlock()
			return max(wait, 0)
		case p.health.Full(now):
			p.adjust(now)
			p.mu.Unlock()
			return time.Hour // a request that ends, or the governor, wakes us
		default:
			rest := p.gather.giveBack()
			p.adjust(now)
			p.mu.Unlock()
			p.decline(rest, lender)
			return time.Hour
		}
	}
}
