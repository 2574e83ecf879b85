package subscribe

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// glass shows a record by its value: x cannot be read, h hangs, anything else is itself.
type glass struct{}

func (glass) View(ctx context.Context, r *event.Record) (*event.Record, error) {
	switch string(r.Value) {
	case "x":
		return nil, fault.New(fault.Undecodable, "undecodable: x")
	case "h":
		<-ctx.Done()
		return nil, fault.Of(ctx.Err())
	case "?":
		return nil, errors.New("something else")
	}
	return &event.Record{Value: []byte("seen " + string(r.Value))}, nil
}

// till keeps what is settled and given back.
type till struct {
	settled []delivery.Settlement
	back    []delivery.Lease
}

func (t *till) Settle(s []delivery.Settlement) ([]delivery.Result, delivery.Ticket) {
	t.settled = append(t.settled, s...)
	return nil, delivery.Ticket{}
}
func (t *till) Return(l []delivery.Lease) { t.back = append(t.back, l...) }

func TestOneEventThatCannotBeShownHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var leases []delivery.Lease
		for i, v := range []string{"a", "x", "h", "b", "?", "h"} {
			leases = append(leases, delivery.Lease{ID: delivery.ID(i), Record: &event.Record{Value: []byte(v)}})
		}
		kept := &till{}
		began := time.Now()
		seen, later := view(t.Context(), glass{}, leases, kept, kept)
		if len(seen) != 2 || string(seen[0].Record.Value) != "seen a" || seen[1].ID != 3 || !later {
			t.Errorf("%v %v", seen, later)
		}
		if len(kept.settled) != 1 || kept.settled[0].ID != 1 || !kept.settled[0].Undecodable || kept.settled[0].Word != delivery.Reject || kept.settled[0].Reason == "" {
			t.Errorf("%+v", kept.settled)
		}
		if len(kept.back) != 3 || time.Since(began) > viewPause {
			t.Errorf("%d went back after %s", len(kept.back), time.Since(began))
		}
		if string(leases[0].Record.Value) != "a" {
			t.Error("the lease's own record was changed")
		}
	})
}
