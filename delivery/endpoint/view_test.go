package endpoint

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

func TestEventsThatCannotBeShownAreRejectedOrWaitAndTheirBatchGoesOn(t *testing.T) {
	for name, batch := range map[string]Batch{"one by one": {}, "in batches": {MaxEvents: 4, MaxBytes: 1 << 20, MaxWait: time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop(records(20, 20))
				unavailable := 3
				view := func(_ context.Context, r *event.Record) (*event.Record, error) {
					switch {
					case r.Offset == 7:
						return nil, fault.New(fault.Undecodable, "no such schema")
					case r.Offset == 9 && unavailable > 0:
						unavailable--
						return nil, errors.New("the registry is away")
					}
					shown := *r
					shown.Value = []byte("shown")
					return &shown, nil
				}
				w := &wire{carry: func(_ context.Context, p *Parcel) Answer {
					for _, r := range p.Records {
						if string(r.Value) != "shown" || r.Offset == 7 {
							t.Errorf("%s was sent as %q", r.Position(), r.Value)
						}
					}
					return answer(ok)
				}}
				p := push(t, s, Options{Batch: batch, View: view}, w, quiet(), time.Hour)
				undecodable := 0
				for _, settlement := range s.settled {
					if settlement.Word == delivery.Reject && settlement.Undecodable {
						undecodable++
					}
				}
				if !s.finished() || undecodable != 1 || len(s.settled) != 20 || unavailable != 0 {
					t.Errorf("%d settled, %d undecodable", len(s.settled), undecodable)
				}
				if st := p.Status(); st.InFlight != 0 || p.messages != 0 {
					t.Errorf("%+v, %d events are thought to be under way", st, p.messages)
				}
			})
		})
	}
}
