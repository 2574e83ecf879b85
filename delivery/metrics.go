package delivery

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are one subscription's counters.
type metrics struct {
	lentTotal, settledTotal, deadLetters, deadLetterFailures, commitFailures, repeats, ignored, aside, moveFailures, filteredTotal, cancels, missedTotal metric.Int64Counter
	subscription                                                                                                                                         attribute.KeyValue
	attributes                                                                                                                                           metric.MeasurementOption
	untoldLent, untoldAcks                                                                                                                               int64 // guarded by the queue's lock
	bySettlement                                                                                                                                         map[string][]metric.AddOption
}

// newMetrics never fails: an instrument that cannot be made counts nothing.
func newMetrics(meter metric.Meter, subscription string) *metrics {
	counter := func(name, description string) metric.Int64Counter {
		c, _ := meter.Int64Counter(name, metric.WithDescription(description))
		return c
	}
	m := &metrics{
		lentTotal:          counter("postern.delivery.lent", "Events lent to a consumer, every attempt counted"),
		settledTotal:       counter("postern.delivery.settled", "What became of leases"),
		deadLetters:        counter("postern.delivery.dead_letters", "Dead letters in Kafka"),
		deadLetterFailures: counter("postern.delivery.dead_letter_failures", "Failed writes of dead letters; their keys are stopped meanwhile"),
		commitFailures:     counter("postern.delivery.commit_failures", "Commits of a partition that failed and are tried again"),
		repeats:            counter("postern.delivery.repeated_offsets", "Records dropped because their offset was read before"),
		ignored:            counter("postern.delivery.metadata_ignored", "Commits whose metadata was not ours or did not fit the offset"),
		aside:              counter("postern.delivery.put_aside", "Events, or keys with all their events, moved out of the way to wait"),
		moveFailures:       counter("postern.delivery.put_aside_failures", "Failed writes of events that must wait; they hold their partition up meanwhile"),
		filteredTotal:      counter("postern.delivery.filtered", "Events that the filter did not pass"),
		cancels:            counter("postern.delivery.cancelled", "Leases revoked because their event held a full partition up"),
		missedTotal:        counter("postern.delivery.missed", "Offsets that retention removed before they were read"),
		subscription:       attribute.String("subscription", subscription),
		bySettlement:       map[string][]metric.AddOption{},
	}
	m.attributes = metric.WithAttributeSet(attribute.NewSet(m.subscription))
	return m
}

// settlement is the attribute of what became of leases, made when the first of its
// kind is told: an idle subscription has none. The queue's lock is held.
func (m *metrics) settlement(how string) []metric.AddOption {
	option, ok := m.bySettlement[how]
	if !ok {
		option = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(m.subscription, attribute.String("settlement", how)))}
		m.bySettlement[how] = option
	}
	return option
}

// lent and settled are called for each event, with the queue's lock held. What is
// ordinary is added up until tell: telling an instrument costs as much as the
// tracker does.
func (m *metrics) lent(n int64) { m.untoldLent += n }

func (m *metrics) settled(how string, n int64) {
	if how == Ack.String() {
		m.untoldAcks += n
		return
	}
	m.settledTotal.Add(context.Background(), n, m.settlement(how)...)
}

// tell gives the instruments what was added up. The queue's lock is held.
func (m *metrics) tell() {
	if m.untoldLent > 0 {
		m.lentTotal.Add(context.Background(), m.untoldLent, m.attributes)
	}
	if m.untoldAcks > 0 {
		m.settledTotal.Add(context.Background(), m.untoldAcks, m.settlement(Ack.String())...)
	}
	m.untoldLent, m.untoldAcks = 0, 0
}

func (m *metrics) deadLettered(reason string, n int64) {
	m.deadLetters.Add(context.Background(), n, m.attributes, metric.WithAttributes(attribute.String("reason", reason)))
}

func (m *metrics) deadLetterFailed(n int64) {
	m.deadLetterFailures.Add(context.Background(), n, m.attributes)
}

func (m *metrics) putAside(to side, n int64) {
	m.aside.Add(context.Background(), n, m.attributes, metric.WithAttributes(attribute.String("to", to.String())))
}

func (m *metrics) moveFailed(n int64) { m.moveFailures.Add(context.Background(), n, m.attributes) }

func (m *metrics) filtered(n int64) { m.filteredTotal.Add(context.Background(), n, m.attributes) }

func (m *metrics) missed(n int64)          { m.missedTotal.Add(context.Background(), n, m.attributes) }
func (m *metrics) cancelled(n int64)       { m.cancels.Add(context.Background(), n, m.attributes) }
func (m *metrics) commitFailed(n int64)    { m.commitFailures.Add(context.Background(), n, m.attributes) }
func (m *metrics) repeated(n int64)        { m.repeats.Add(context.Background(), n, m.attributes) }
func (m *metrics) metadataIgnored(n int64) { m.ignored.Add(context.Background(), n, m.attributes) }
