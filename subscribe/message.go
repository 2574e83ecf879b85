package subscribe

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// letter is the memory of one delivery's message: a batch is one allocation,
// where message by message it would be five for each event.
type letter struct {
	delivery                     posternv1.Delivery
	event                        posternv1.Event
	position                     posternv1.Position
	expires, appended, timestamp timestamppb.Timestamp
}

// deliveriesOf writes leases as their messages.
func deliveriesOf(leases []delivery.Lease) []*posternv1.Delivery {
	letters := make([]letter, len(leases))
	all := make([]*posternv1.Delivery, len(leases))
	for i := range leases {
		all[i] = letters[i].fill(&leases[i])
	}
	return all
}

func (m *letter) fill(l *delivery.Lease) *posternv1.Delivery {
	wire.FillEvent(&m.event, &m.timestamp, l.Record)
	wire.FillTime(&m.expires, l.Deadline)
	m.position.Topic, m.position.Partition, m.position.Offset = l.Record.Topic, l.Record.Partition, l.Record.Offset
	d := &m.delivery
	d.DeliveryId, d.Attempt = uint64(l.ID), int32(l.Attempt)
	d.Event, d.Position, d.LeaseExpires = &m.event, &m.position, &m.expires
	if !l.Record.Timestamp.IsZero() {
		wire.FillTime(&m.appended, l.Record.Timestamp)
		d.Appended = &m.appended
	}
	if l.LastFailure != "" {
		d.LastFailure = wire.Status(fault.New(fault.AttemptFailed, "%s", l.LastFailure))
	}
	return d
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
