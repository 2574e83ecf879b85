package webhook

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type metrics struct {
	attempts     metric.Int64Counter
	duration     metric.Float64Histogram
	subscription attribute.KeyValue
}

func newMetrics(meter metric.Meter, subscription string) *metrics {
	attempts, _ := meter.Int64Counter("postern.webhook.attempts", metric.WithDescription("Requests to webhook endpoints, by what came of them"))
	duration, _ := meter.Float64Histogram("postern.webhook.duration", metric.WithUnit("s"), metric.WithDescription("From the request to the end of its answer"),
		metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))
	return &metrics{attempts, duration, attribute.String("subscription", subscription)}
}

func (m *metrics) attempt(o outcome, took time.Duration) {
	set := metric.WithAttributeSet(attribute.NewSet(m.subscription, attribute.String("class", o.class)))
	m.attempts.Add(context.Background(), 1, set)
	m.duration.Record(context.Background(), took.Seconds(), set)
}
