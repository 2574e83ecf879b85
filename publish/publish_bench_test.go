package publish

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/schema"
)

// instant is a producer that answers at once: what is left is our own cost.
type instant struct{}

func (instant) ProduceAll(records []*event.Record, _ broker.How, done func(int, event.Position, error)) {
	for i, r := range records {
		if r != nil {
			done(i, event.Position{Topic: r.Topic, Offset: 7}, nil)
		}
	}
}

func (p instant) ProduceAtomic(_ context.Context, records []*event.Record, _ broker.Compression, done func(int, event.Position, error)) {
	p.ProduceAll(records, broker.How{}, done)
}

func testPublisher() *Publisher {
	return New(Options{}, Parts{
		Policy: authz.Open(), Schemas: &schema.Checker{}, Producer: instant{}, Tracer: tracenoop.NewTracerProvider().Tracer(""), Root: tracenoop.NewTracerProvider().Tracer(""),
		Meter: metricnoop.NewMeterProvider().Meter(""), Log: slog.New(slog.DiscardHandler),
	})
}

// discard is an answer nobody reads.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

func caller() context.Context {
	return authz.NewContext(context.Background(), authz.Anonymous("loopback"))
}

func benchmarkHTTP(b *testing.B, body []byte, headers http.Header) {
	p := testPublisher()
	ctx := caller()
	reader := bytes.NewReader(body)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		reader.Reset(body)
		r := &http.Request{Method: "POST", Header: headers, Body: io.NopCloser(reader), ContentLength: int64(len(body))}
		r = r.WithContext(ctx)
		r.SetPathValue("topic", "orders")
		if err := p.Events(&discard{http.Header{}}, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEventsPlain(b *testing.B) {
	benchmarkHTTP(b, bytes.Repeat([]byte("x"), 1024), http.Header{"Content-Type": {"application/octet-stream"}, "Postern-Key": {"42"}})
}

func BenchmarkEventsBinary(b *testing.B) {
	benchmarkHTTP(b, bytes.Repeat([]byte("x"), 1024), http.Header{
		"Content-Type": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/shop"}, "Ce-Type": {"order.created"}, "Ce-Time": {"2026-01-31T10:00:00Z"}, "Ce-Subject": {"o-1"},
	})
}

func BenchmarkEventsStructured(b *testing.B) {
	body := `{"specversion":"1.0","id":"1","source":"/shop","type":"order.created","time":"2026-01-31T10:00:00Z","subject":"o-1","data":{"text":"` + strings.Repeat("x", 860) + `"}}`
	benchmarkHTTP(b, []byte(body), http.Header{"Content-Type": {"application/cloudevents+json"}})
}

func BenchmarkEventsDeduplicated(b *testing.B) {
	benchmarkHTTP(b, bytes.Repeat([]byte("x"), 1024), http.Header{"Content-Type": {"text/plain"}, "Idempotency-Key": {"order-1"}})
}

func benchmarkGRPC(b *testing.B, n int) {
	s := NewServer(testPublisher(), nil)
	ctx := caller()
	m := &posternv1.PublishRequest{Topic: "orders"}
	for range n {
		m.Events = append(m.Events, &posternv1.Event{Key: []byte("42"), Data: bytes.Repeat([]byte("x"), 1024)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Publish(ctx, m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublish1(b *testing.B)   { benchmarkGRPC(b, 1) }
func BenchmarkPublish100(b *testing.B) { benchmarkGRPC(b, 100) }
