// Package telemetry sets up OpenTelemetry and slog. It knows nothing of the
// domain: packages measure with the OpenTelemetry API and name their own
// metrics.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/postern-dev/postern/internal/setting"
)

// Options of telemetry.
type Options struct {
	// Log settings.
	Log Log `yaml:"log"`
	// OTLP export; off without an endpoint. OTEL_EXPORTER_OTLP_ENDPOINT is read too.
	OTLP OTLP `yaml:"otlp"`
	// SampleRatio of traces that begin here; a caller's own decision is kept. Default 0.01.
	SampleRatio *float64 `yaml:"sample_ratio"`
}

// Log settings.
type Log struct {
	// Level is debug, info (default), warn or error.
	Level slog.Level `yaml:"level"`
	// Format is text (default) or json.
	Format string `yaml:"format"`
}

// OTLP settings.
type OTLP struct {
	// Endpoint, host:port, of a collector that speaks OTLP over gRPC.
	Endpoint string `yaml:"endpoint"`
	// Insecure speaks without TLS.
	Insecure bool `yaml:"insecure"`
	// Headers are sent with each export.
	Headers map[string]setting.Secret `yaml:"headers"`
}

const (
	defaultSampleRatio = 0.01
	scope              = "github.com/postern-dev/postern"
)

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	var errs []error
	if o.Log.Format != "" && o.Log.Format != "text" && o.Log.Format != "json" {
		errs = append(errs, &setting.Error{Path: "log.format", Message: fmt.Sprintf("%q is not offered: use text or json", o.Log.Format)})
	}
	if r := o.SampleRatio; r != nil && (*r < 0 || *r > 1) {
		errs = append(errs, &setting.Error{Path: "sample_ratio", Message: fmt.Sprintf("%g is out of range: 0 to 1", *r)})
	}
	return errors.Join(errs...)
}

// Telemetry is what was set up.
type Telemetry struct {
	Tracer   trace.Tracer
	Meter    metric.Meter
	registry *prometheus.Registry
	stop     []func(context.Context) error
}

// NewLogger makes the program's logger. Lines within a trace carry its ids.
func NewLogger(l Log) *slog.Logger {
	var h slog.Handler = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l.Level})
	if l.Format == "json" {
		h = slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l.Level})
	}
	return slog.New(traced{h})
}

// traced adds the ids of the context's span.
type traced struct{ slog.Handler }

func (t traced) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String()))
	}
	return t.Handler.Handle(ctx, r)
}

func (t traced) WithAttrs(a []slog.Attr) slog.Handler { return traced{t.Handler.WithAttrs(a)} }
func (t traced) WithGroup(name string) slog.Handler   { return traced{t.Handler.WithGroup(name)} }

// exportErrorEvery bounds the lines about a collector that cannot be reached.
const exportErrorEvery = time.Minute

// Start sets the global propagator, and makes the tracer and the meter. A
// collector that is down delays nothing.
func Start(ctx context.Context, o Options, service, version, instance string, log *slog.Logger) (*Telemetry, error) {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	var last atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		now := time.Now().Unix()
		if before := last.Load(); now-before >= int64(exportErrorEvery/time.Second) && last.CompareAndSwap(before, now) {
			log.Warn("telemetry is not being exported", "error", err)
		}
	}))
	about := resource.NewSchemaless(
		attribute.String("service.name", service),
		attribute.String("service.version", version),
		attribute.String("service.instance.id", instance))
	t := &Telemetry{registry: prometheus.NewRegistry()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(t.registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	metrics := []sdkmetric.Option{sdkmetric.WithResource(about), sdkmetric.WithReader(exporter)}
	ratio := defaultSampleRatio
	if o.SampleRatio != nil {
		ratio = *o.SampleRatio
	}
	t.Tracer = noop.NewTracerProvider().Tracer(scope) // nobody takes spans: contexts go on from caller to Kafka, nothing is recorded
	if o.OTLP.Endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		spans, measures, err := o.OTLP.exporters(ctx)
		if err != nil {
			return nil, err
		}
		tracers := sdktrace.NewTracerProvider(sdktrace.WithResource(about),
			sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))), sdktrace.WithBatcher(spans))
		t.Tracer, t.stop = tracers.Tracer(scope), append(t.stop, tracers.Shutdown)
		metrics = append(metrics, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(measures)))
	}
	meters := sdkmetric.NewMeterProvider(metrics...)
	t.Meter, t.stop = meters.Meter(scope), append(t.stop, meters.Shutdown)
	return t, nil
}

func (o OTLP) exporters(ctx context.Context) (sdktrace.SpanExporter, sdkmetric.Exporter, error) {
	var spanOptions []otlptracegrpc.Option
	var metricOptions []otlpmetricgrpc.Option
	if o.Endpoint != "" {
		spanOptions = append(spanOptions, otlptracegrpc.WithEndpoint(o.Endpoint))
		metricOptions = append(metricOptions, otlpmetricgrpc.WithEndpoint(o.Endpoint))
	}
	if o.Insecure {
		spanOptions = append(spanOptions, otlptracegrpc.WithInsecure())
		metricOptions = append(metricOptions, otlpmetricgrpc.WithInsecure())
	}
	if len(o.Headers) > 0 {
		headers := map[string]string{}
		for name, value := range o.Headers {
			headers[name] = value.Reveal()
		}
		spanOptions = append(spanOptions, otlptracegrpc.WithHeaders(headers))
		metricOptions = append(metricOptions, otlpmetricgrpc.WithHeaders(headers))
	}
	spans, err := otlptracegrpc.New(ctx, spanOptions...)
	if err != nil {
		return nil, nil, fmt.Errorf("otlp traces: %w", err)
	}
	measures, err := otlpmetricgrpc.New(ctx, metricOptions...)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("otlp metrics: %w", err), spans.Shutdown(ctx))
	}
	return spans, measures, nil
}

// Handler serves the metrics for Prometheus.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Stop sends what is not sent yet, until ctx ends.
func (t *Telemetry) Stop(ctx context.Context) error {
	var errs []error
	for _, stop := range t.stop {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}
