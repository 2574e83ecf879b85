package publish

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postern-dev/postern/fault"
)

// metrics of publishing, by OpenTelemetry's messaging names where there is one.
type metrics struct {
	failures metric.Int64Counter
	duration metric.Float64Histogram
	repeated metric.Int64Counter
	lost     metric.Int64Counter

	mu     sync.RWMutex
	topics map[string]*series // made once a topic: making a set costs more than counting
}

// series is a topic's attributes, as the calls that take them want them.
type series struct {
	sent   atomic.Int64 // read when it is asked for: a counter of OpenTelemetry's own costs more than the rest of the bookkeeping
	set    metric.MeasurementOption
	add    []metric.AddOption
	record []metric.RecordOption
}

// maxTopics bounds the topics that get their own series; the rest share "other".
const maxTopics = 1000

func newMetrics(meter metric.Meter, window func() (entries, bytes int)) *metrics {
	sent, _ := meter.Int64ObservableCounter("messaging.client.sent.messages", metric.WithDescription("Events stored in Kafka"))
	failures, _ := meter.Int64Counter("postern.publish.failures", metric.WithDescription("Events not stored, or not surely, by reason"))
	duration, _ := meter.Float64Histogram("messaging.client.operation.duration", metric.WithUnit("s"),
		metric.WithDescription("From a publish request to its last answer from Kafka"),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	repeated, _ := meter.Int64Counter("postern.publish.duplicates", metric.WithDescription("Events that were not stored again because their dedupe key was known"))
	lost, _ := meter.Int64Counter("postern.publish.dedupe.forgotten", metric.WithDescription("Dedupe keys forgotten before their time for want of room"))
	entries, _ := meter.Int64ObservableGauge("postern.publish.dedupe.keys", metric.WithDescription("Dedupe keys remembered"))
	size, _ := meter.Int64ObservableGauge("postern.publish.dedupe.size", metric.WithUnit("By"), metric.WithDescription("Memory of the dedupe keys"))
	m := &metrics{failures: failures, duration: duration, repeated: repeated, lost: lost, topics: map[string]*series{}}
	_, _ = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		m.mu.RLock()
		defer m.mu.RUnlock()
		for _, s := range m.topics {
			if n := s.sent.Load(); n > 0 {
				o.ObserveInt64(sent, n, s.set)
			}
		}
		n, bytes := window()
		o.ObserveInt64(entries, int64(n))
		o.ObserveInt64(size, int64(bytes))
		return nil
	}, sent, entries, size)
	return m
}

func (m *metrics) attributes(topic string) *series {
	m.mu.RLock()
	known, ok := m.topics[topic]
	m.mu.RUnlock()
	if ok {
		return known
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.topics) >= maxTopics {
		topic = "other"
	}
	if known, ok := m.topics[topic]; ok { // another was faster, or it is the shared one
		return known
	}
	set := metric.WithAttributeSet(attribute.NewSet(
		attribute.String("messaging.system", "kafka"),
		attribute.String("messaging.operation.name", "publish"),
		attribute.String("messaging.destination.name", topic)))
	known = &series{set: set, add: []metric.AddOption{set}, record: []metric.RecordOption{set}}
	m.topics[topic] = known
	return known
}

// took counts a request, under its first event's topic.
func (m *metrics) took(s *series, d time.Duration) {
	m.duration.Record(context.Background(), d.Seconds(), s.record...)
}

func (m *metrics) failed(topic string, reason fault.Reason) {
	m.failures.Add(context.Background(), 1, m.attributes(topic).set, metric.WithAttributes(attribute.String("reason", string(reason))))
}

func (m *metrics) duplicate(topic string) {
	m.repeated.Add(context.Background(), 1, m.attributes(topic).add...)
}

func (m *metrics) forgotten(n int) { m.lost.Add(context.Background(), int64(n)) }
