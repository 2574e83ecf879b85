package webhook

import (
	"context"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
)

// View is how an endpoint is shown events.
type View string

// The views.
const (
	ViewRaw  View = "raw"  // the bytes that are in Kafka
	ViewJSON View = "json" // JSON, whatever the topic holds
)

// viewPause is how long an event waits whose schema cannot be had for now.
const viewPause = time.Second

// show gives the lease's record as the endpoint asks for it, and reports whether
// there is something to post. What cannot be decoded is rejected: it becomes a dead
// letter with its own bytes. What cannot be decoded for now goes back, and was no attempt.
func (p *Pusher) show(ctx context.Context, lease *delivery.Lease, lender Lender, settler Settler) bool {
	if p.options.View != ViewJSON {
		return true
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.options.Timeout)
	defer cancel()
	record, err := p.view(bounded, lease.Record)
	switch {
	case err == nil:
		lease.Record = record
		return true
	case fault.Is(err, fault.Undecodable):
		settler.Settle([]delivery.Settlement{{ID: lease.ID, Word: delivery.Reject, Undecodable: true, Reason: err.Error()}})
	default:
		t := time.NewTimer(viewPause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		lender.Return([]delivery.Lease{*lease})
	}
	p.log.WarnContext(ctx, "event cannot be shown as JSON", "position", lease.Record.Position().String(), "error", err)
	return false
}
