package subscribe

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// deliveryOf writes a lease as its message.
func deliveryOf(l *delivery.Lease) *posternv1.Delivery {
	m := &posternv1.Delivery{
		DeliveryId: uint64(l.ID), Event: wire.Event(l.Record), Position: wire.Position(l.Record.Position()),
		Attempt: int32(l.Attempt), LeaseExpires: timestamppb.New(l.Deadline), Appended: wire.Time(l.Record.Timestamp),
	}
	if l.LastFailure != "" {
		m.LastFailure = wire.Status(fault.New(fault.AttemptFailed, "%s", l.LastFailure))
	}
	return m
}

// settlementsOf reads what a client says: first the short acks, then the rest.
func settlementsOf(acks []uint64, settlements []*posternv1.Settlement) []delivery.Settlement {
	all := make([]delivery.Settlement, 0, len(acks)+len(settlements))
	for _, id := range acks {
		all = append(all, delivery.Settlement{ID: delivery.ID(id), Word: delivery.Ack})
	}
	for _, m := range settlements {
		s := delivery.Settlement{ID: delivery.ID(m.GetDeliveryId())}
		switch action := m.GetAction().(type) {
		case *posternv1.Settlement_Nack:
			s.Word, s.Reason = delivery.Nack, action.Nack.GetReason()
			if d := action.Nack.GetDelay(); d != nil {
				s.HasDelay, s.Delay = true, d.AsDuration()
			}
		case *posternv1.Settlement_Reject:
			s.Word, s.Reason = delivery.Reject, action.Reject.GetReason()
			if action.Reject.GetDrop() {
				s.Word = delivery.Drop
			}
		case *posternv1.Settlement_Extend:
			s.Word, s.Lease = delivery.Extend, action.Extend.GetLease().AsDuration()
			if s.Lease == 0 {
				s.Lease = delivery.DefaultLease
			}
		default:
			s.Word = delivery.Ack
		}
		all = append(all, s)
	}
	return all
}

var outcomeOf = map[delivery.Outcome]posternv1.Outcome{
	delivery.Accepted:      posternv1.Outcome_OUTCOME_ACCEPTED,
	delivery.Committed:     posternv1.Outcome_OUTCOME_COMMITTED,
	delivery.LeaseExpired:  posternv1.Outcome_OUTCOME_LEASE_EXPIRED,
	delivery.Stale:         posternv1.Outcome_OUTCOME_STALE,
	delivery.UnknownID:     posternv1.Outcome_OUTCOME_UNKNOWN_ID,
	delivery.WrongInstance: posternv1.Outcome_OUTCOME_WRONG_INSTANCE,
}

// resultOf writes a receipt.
func resultOf(r delivery.Result) *posternv1.SettleResult {
	m := &posternv1.SettleResult{DeliveryId: uint64(r.ID), Outcome: outcomeOf[r.Outcome], LeaseExpires: wire.Time(r.Deadline)}
	if r.Outcome == delivery.WrongInstance {
		m.Owner = r.ID.Instance().String()
	}
	return m
}
