// Package telemetry sets up OpenTelemetry and slog. It knows nothing of the
// domain: packages measure with the OpenTelemetry API and name their own
// metrics.
//
// Metrics are served for Prometheus; spans and metrics are pushed over OTLP
// where a collector is named. A collector that is down delays nothing: what is
// not taken in time is dropped and told in one line a minute (report.go). The
// logger is log.go's.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
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
	// ServiceName in spans and metrics. Default: OTEL_SERVICE_NAME, then "postern".
	ServiceName string `yaml:"service_name"`
	// Log settings.
	Log Log `yaml:"log"`
	// OTLP export; off without an endpoint. OTEL_EXPORTER_OTLP_ENDPOINT is read too.
	OTLP OTLP `yaml:"otlp"`
	// Prometheus serves /metrics. Default true.
	Prometheus *bool `yaml:"prometheus"`
	// SampleRatio of traces that begin here; a caller's own decision is kept. Default 0.01.
	SampleRatio *float64 `yaml:"sample_ratio"`
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
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if o.Log.Format != "" && o.Log.Format != "text" && o.Log.Format != "json" {
		bad("log.format", "%q is not offered: use text or json", o.Log.Format)
	}
	if r := o.SampleRatio; r != nil && !(*r >= 0 && *r <= 1) { // not a number is out of range too
		bad("sample_ratio", "%g is out of range: 0 to 1", *r)
	}
	if e := o.OTLP.Endpoint; e != "" {
		if _, port, err := net.SplitHostPort(e); err != nil || port == "" || strings.Contains(e, "/") {
			bad("otlp.endpoint", "%q is not host:port: leave the scheme out, and set otlp.insecure for a collector without TLS", e)
		}
	}
	return errors.Join(errs...)
}

// Telemetry is what was set up.
type Telemetry struct {
	Tracer trace.Tracer
	// Root begins traces that Sample has chosen: asking the tracer for each event of a
	// hundred whether it is the one to record cost more than all else did.
	Root     trace.Tracer
	ratio    float64
	Meter    metric.Meter
	registry *prometheus.Registry // nil: not served
	stop     []func(context.Context) error
}

// Start sets the process's propagator and where OpenTelemetry complains to, and
// makes the tracer and the meter. instance may be "".
func Start(ctx context.Context, o Options, service, version, instance string, log *slog.Logger) (*Telemetry, error) {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	reporter := newReporter(log, o.OTLP)
	otel.SetErrorHandler(reporter)
	otel.SetLogger(logr.New(sink{reporter}))
	about, err := o.resource(ctx, service, version, instance)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{}
	if err := t.trace(ctx, o, about); err != nil {
		return nil, err
	}
	if err := t.measure(ctx, o, about); err != nil {
		return nil, errors.Join(err, t.Stop(ctx))
	}
	return t, nil
}

// resource says who measures. What is set here wins over OTEL_SERVICE_NAME and
// OTEL_RESOURCE_ATTRIBUTES, and those over what the program knows of itself.
func (o Options) resource(ctx context.Context, service, version, instance string) (*resource.Resource, error) {
	own := []attribute.KeyValue{attribute.String("service.name", service), attribute.String("service.version", version)}
	if instance != "" {
		own = append(own, attribute.String("service.instance.id", instance))
	}
	var set []attribute.KeyValue
	if o.ServiceName != "" {
		set = append(set, attribute.String("service.name", o.ServiceName))
	}
	environment, err := resource.New(ctx, resource.WithFromEnv())
	if err != nil { // OpenTelemetry's rule: told, and not used
		otel.Handle(fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err))
		environment = resource.Empty()
	}
	about := resource.NewSchemaless(own...)
	for _, more := range []*resource.Resource{environment, resource.NewSchemaless(set...)} {
		if about, err = resource.Merge(about, more); err != nil {
			return nil, fmt.Errorf("say who measures: %w", err)
		}
	}
	return about, nil
}

func (t *Telemetry) trace(ctx context.Context, o Options, about *resource.Resource) error {
	if !o.OTLP.wanted("TRACES") {
		t.Tracer = noop.NewTracerProvider().Tracer(scope)
		t.Root = t.Tracer // nobody takes spans: contexts go on from caller to Kafka, nothing is recorded
		return nil
	}
	ratio := defaultSampleRatio
	if o.SampleRatio != nil {
		ratio = *o.SampleRatio
	}
	var opts []otlptracegrpc.Option
	if o.OTLP.Endpoint != "" {
		opts = append(opts, otlptracegrpc.WithEndpoint(o.OTLP.Endpoint))
	}
	if o.OTLP.Insecure {
		opts = append(opts, otlptracegrpc.WithInsecure())
	}
	if len(o.OTLP.Headers) > 0 {
		opts = append(opts, otlptracegrpc.WithHeaders(o.OTLP.headers()))
	}
	exporter, err := otlptracegrpc.New(ctx, opts...)
	if err != nil {
		return fmt.Errorf("otlp traces: %w", err)
	}
	sender := sdktrace.NewBatchSpanProcessor(exporter)
	tracers := func(s sdktrace.Sampler) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithResource(about), sdktrace.WithSampler(sdktrace.ParentBased(s)), sdktrace.WithSpanProcessor(sender))
	}
	ordinary, chosen := tracers(sdktrace.TraceIDRatioBased(ratio)), tracers(sdktrace.AlwaysSample())
	t.Tracer, t.Root, t.ratio, t.stop = ordinary.Tracer(scope), chosen.Tracer(scope), ratio, append(t.stop, ordinary.Shutdown)
	return nil
}

// Sample decides whether a trace that begins now is recorded, by Root.
func (t *Telemetry) Sample() bool { return t.ratio > 0 && rand.Float64() < t.ratio }

// For is the tracer of work with this parent; nil where a span would not be
// recorded, because its parent is not, or Sample did not choose it.
func (t *Telemetry) For(parent trace.SpanContext) trace.Tracer {
	switch {
	case parent.IsSampled():
		return t.Tracer
	case !parent.IsValid() && t.Sample():
		return t.Root
	}
	return nil
}

func (t *Telemetry) measure(ctx context.Context, o Options, about *resource.Resource) error {
	opts := []sdkmetric.Option{sdkmetric.WithResource(about)}
	if o.Prometheus == nil || *o.Prometheus {
		t.registry = prometheus.NewRegistry()
		t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(t.registry), otelprometheus.WithoutScopeInfo())
		if err != nil {
			return fmt.Errorf("prometheus: %w", err)
		}
		opts = append(opts, sdkmetric.WithReader(exporter))
	}
	if o.OTLP.wanted("METRICS") {
		var push []otlpmetricgrpc.Option
		if o.OTLP.Endpoint != "" {
			push = append(push, otlpmetricgrpc.WithEndpoint(o.OTLP.Endpoint))
		}
		if o.OTLP.Insecure {
			push = append(push, otlpmetricgrpc.WithInsecure())
		}
		if len(o.OTLP.Headers) > 0 {
			push = append(push, otlpmetricgrpc.WithHeaders(o.OTLP.headers()))
		}
		exporter, err := otlpmetricgrpc.New(ctx, push...)
		if err != nil {
			return fmt.Errorf("otlp metrics: %w", err)
		}
		opts = append(opts, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)))
	}
	meters := sdkmetric.NewMeterProvider(opts...)
	t.Meter, t.stop = meters.Meter(scope), append(t.stop, meters.Shutdown)
	return nil
}

// wanted reports whether a signal, TRACES or METRICS, has a collector.
func (o OTLP) wanted(signal string) bool {
	return o.Endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

func (o OTLP) headers() map[string]string {
	plain := map[string]string{}
	for name, value := range o.Headers {
		plain[name] = value.Reveal()
	}
	return plain
}

// Handler serves the metrics for Prometheus.
func (t *Telemetry) Handler() http.Handler {
	if t.registry == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "metrics are not served here: set telemetry.prometheus to true", http.StatusNotFound)
		})
	}
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// stopLimit bounds Stop where the caller does not: spans that a collector has
// not taken by then are not worth a slower exit.
const stopLimit = 5 * time.Second

// Stop sends what is not sent yet, until ctx ends. Spans and metrics go side by
// side, so that a collector that hangs on one does not cost the other its time.
func (t *Telemetry) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	errs := make([]error, len(t.stop))
	var all sync.WaitGroup
	for i, stop := range t.stop {
		all.Go(func() { errs[i] = stop(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}
