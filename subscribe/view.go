package subscribe

import (
	"context"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Viewer shows records as JSON; schema.Checker is one.
type Viewer interface {
	View(ctx context.Context, r *event.Record) (*event.Record, error)
}

// Settling and giving back what cannot be shown; delivery.Queue and delivery.Attachment do.
type settler interface {
	Settle([]delivery.Settlement) ([]delivery.Result, delivery.Ticket)
}

type returner interface{ Return([]delivery.Lease) }

// viewPause is how long a reader waits when an event's schema cannot be had for
// now: its lease goes back, counts as no attempt, and is lent again after that.
const viewPause = time.Second

// view shows leases as JSON. An event that cannot be decoded is rejected, so
// that it becomes a dead letter with its own bytes and frees its key; one
// whose schema cannot be had for now goes back, and later is true.
func view(ctx context.Context, v Viewer, leases []delivery.Lease, queue settler, lender returner) (seen []delivery.Lease, later bool) {
	// A registry that hangs must not hold up the events whose schemas are known: its answer is
	// still taken when it comes, and the event is shown the next time.
	ctx, cancel := context.WithTimeout(ctx, viewPause)
	defer cancel()
	seen = make([]delivery.Lease, 0, len(leases))
	var rejected []delivery.Settlement
	var back []delivery.Lease
	for _, l := range leases {
		record, err := v.View(ctx, l.Record)
		switch {
		case err == nil:
			l.Record = record
			seen = append(seen, l)
		case fault.Is(err, fault.Undecodable):
			rejected = append(rejected, delivery.Settlement{ID: l.ID, Word: delivery.Reject, Undecodable: true, Reason: err.Error()})
		default:
			back = append(back, l)
		}
	}
	if len(rejected) > 0 {
		queue.Settle(rejected)
	}
	if len(back) > 0 {
		lender.Return(back)
	}
	return seen, len(back) > 0
}

// asJSON reports whether v asks for JSON.
func asJSON(v posternv1.View) bool { return v == posternv1.View_VIEW_JSON }

// parseView reads ?view=.
func parseView(text string) (posternv1.View, error) {
	switch text {
	case "", "raw":
		return posternv1.View_VIEW_RAW, nil
	case "json":
		return posternv1.View_VIEW_JSON, nil
	}
	return 0, fault.New(fault.InvalidArgument, "view=%s is not offered: use raw or json", text).Field("view", "not offered")
}
