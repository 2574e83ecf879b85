package endpoint

import (
	"context"
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
	sets     map[string]measured // by class; filled when made, read only after
	name     attribute.KeyValue
}

// measured is a set of attributes as instruments take it: a list that is made once
// is not made again for each call.
type measured struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

// classes that every endpoint counts by; others are counted as "other".
var classes = []string{
	"ok", "status", "throttled", "gone", "redirect", "timeout", "refused", "reset", "dns", "tls", "guard", "auth", "key", "request", "code", "other",
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
	m.sets = map[string]measured{}
	for _, class := range classes {
		set := metric.WithAttributeSet(attribute.NewSet(m.name, attribute.String("class", class)))
		m.sets[class] = measured{[]metric.AddOption{set}, []metric.RecordOption{set}}
	}
	return m
}

func (m *metrics) attempt(o Outcome, events int, took time.Duration) {
	set, ok := m.sets[o.Class]
	if !ok {
		set = m.sets["other"]
	}
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
