package endpoint

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type metrics struct {
	attempts metric.Int64Counter
	duration metric.Float64Histogram
	events   metric.Int64Counter
	state    metric.Int64Gauge
	limit    metric.Int64Gauge
	subject  metric.MeasurementOption
	name     attribute.KeyValue

	mu   sync.Mutex                          // of who adds a set
	sets atomic.Pointer[map[string]measured] // by class, of those that were seen; never changed, replaced
}

// measured is a set of attributes as instruments take it: a list that is made once
// is not made again for each call.
type measured struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

// classes that every endpoint counts by; others are counted as "other".
var classes = []string{
	"ok", "status", "throttled", "gone", "redirect", "timeout", "refused", "reset", "dns", "tls", "guard", "auth", "key", "request", "code",
}

func newMetrics(meter metric.Meter, subscription string) *metrics {
	attempts, _ := meter.Int64Counter("postern.webhook.attempts", metric.WithDescription("Requests to push endpoints, by what came of them"))
	events, _ := meter.Int64Counter("postern.webhook.batched_events", metric.WithDescription("Events that went in batches, by what came of their requests"))
	duration, _ := meter.Float64Histogram("postern.webhook.duration", metric.WithUnit("s"), metric.WithDescription("From the request to the end of its answer"),
		metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))
	state, _ := meter.Int64Gauge("postern.webhook.endpoint.state", metric.WithDescription("0 ACTIVE, 1 THROTTLED, 2 OPEN, 3 DISABLED"))
	limit, _ := meter.Int64Gauge("postern.webhook.endpoint.limit", metric.WithDescription("How many requests to the endpoint may be under way"))
	m := &metrics{attempts: attempts, duration: duration, events: events, state: state, limit: limit, name: attribute.String("subscription", subscription)}
	m.subject = metric.WithAttributeSet(attribute.NewSet(m.name))
	m.sets.Store(&map[string]measured{})
	return m
}

// set gives a class's, and makes it when it is the first of its class: a thousand
// endpoints that nothing is sent to have none.
func (m *metrics) set(class string) measured {
	if set, ok := (*m.sets.Load())[class]; ok {
		return set
	}
	if !slices.Contains(classes, class) {
		class = "other"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := *m.sets.Load()
	if set, ok := before[class]; ok {
		return set
	}
	option := metric.WithAttributeSet(attribute.NewSet(m.name, attribute.String("class", class)))
	set := measured{[]metric.AddOption{option}, []metric.RecordOption{option}}
	sets := maps.Clone(before)
	sets[class] = set
	m.sets.Store(&sets)
	return set
}

func (m *metrics) attempt(o Outcome, events int, took time.Duration) {
	set := m.set(o.Class)
	m.attempts.Add(context.Background(), 1, set.add...)
	if events > 1 {
		m.events.Add(context.Background(), int64(events), set.add...)
	}
	m.duration.Record(context.Background(), took.Seconds(), set.record...)
}

var stateNumbers = map[State]int64{Active: 0, Throttled: 1, Open: 2, Disabled: 3}

func (m *metrics) health(s State, limit int) {
	m.state.Record(context.Background(), stateNumbers[s], m.subject)
	m.limit.Record(context.Background(), int64(limit), m.subject)
}
