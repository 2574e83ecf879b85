package endpoint

import (
	"context"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
)

// viewPause is how long an event waits whose schema cannot be had for now.
const viewPause = time.Second

// show gives the leases with their records as the endpoint asks for them. What
// cannot be decoded is rejected: it becomes a dead letter with its own bytes. What
// cannot be decoded for now goes back, and was no attempt.
func (p *Pusher) show(ctx context.Context, leases []delivery.Lease, lender Lender) []delivery.Lease {
	if p.options.View == nil {
		return leases
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.Timeout)
	defer cancel()
	var shown, back []delivery.Lease
	for _, lease := range leases {
		record, err := p.options.View(bounded, lease.Record)
		switch {
		case err == nil:
			lease.Record = record
			shown = append(shown, lease)
			continue
		case fault.Is(err, fault.Undecodable):
			lender.Settle([]delivery.Settlement{{ID: lease.ID, Word: delivery.Reject, Undecodable: true, Reason: err.Error()}}, nil)
		default:
			back = append(back, lease)
		}
		p.log.WarnContext(ctx, "event cannot be shown as the endpoint asks for it", "position", lease.Record.Position().String(), "error", err)
	}
	if len(back) > 0 {
		if len(shown) == 0 {
			wait(ctx, viewPause)
		}
		lender.Return(back)
	}
	return shown
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
