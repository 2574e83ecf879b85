package telemetry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	metrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/postern-dev/postern/internal/setting"
)

// lines collects what is logged, from any goroutine.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

func begin(t *testing.T, o Options) (*Telemetry, *lines) {
	t.Helper()
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
		"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES",
	} {
		if o.OTLP.Endpoint != "" {
			t.Setenv(name, "")
		}
	}
	logged := new(lines)
	telemetry, err := Start(t.Context(), o, "postern", "v1.2.3", "", newLogger(Log{}, logged))
	if err != nil {
		t.Fatal(err)
	}
	return telemetry, logged
}

func scrape(t *testing.T, telemetry *Telemetry) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	telemetry.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return w.Code, w.Body.String()
}

func TestMetricsAreServed(t *testing.T) {
	telemetry, _ := begin(t, Options{})
	counter, err := telemetry.Meter.Int64Counter("postern.published", metric.WithUnit("{event}"))
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 7)
	code, body := scrape(t, telemetry)
	for _, want := range []string{"postern_published_total 7", "go_goroutines", "process_open_fds", `service_version="v1.2.3"`, `service_name="postern"`} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("status %d, no %s in\n%s", code, want, body)
		}
	}
	if strings.Contains(body, "service_instance_id") {
		t.Error("an instance without a name is named")
	}
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPrometheusCanBeSwitchedOff(t *testing.T) {
	off := false
	telemetry, _ := begin(t, Options{Prometheus: &off})
	if code, body := scrape(t, telemetry); code != 404 || !strings.Contains(body, "telemetry.prometheus") {
		t.Errorf("got %d %s", code, body)
	}
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWithoutACollectorACallersTraceStillGoesOn(t *testing.T) {
	telemetry, _ := begin(t, Options{})
	in := propagation.MapCarrier{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b", "baggage": "user=anna"}
	ctx, span := telemetry.Tracer.Start(otel.GetTextMapPropagator().Extract(t.Context(), in), "publish")
	defer span.End()
	out := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, out)
	for name, want := range in {
		if out[name] != want {
			t.Errorf("%s: got %q, want %q", name, out[name], want)
		}
	}
	if span.IsRecording() {
		t.Error("spans are recorded that nobody takes")
	}
}

// collector is an OTLP collector that keeps what it is sent.
type collector struct {
	traces.UnimplementedTraceServiceServer
	mu      sync.Mutex
	spans   []string
	about   map[string]string
	metrics []string
	headers []string
}

type metricsCollector struct {
	metrics.UnimplementedMetricsServiceServer
	*collector
}

func (c *collector) Export(ctx context.Context, r *traces.ExportTraceServiceRequest) (*traces.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	c.headers = append(c.headers, md.Get("api-key")...)
	for _, of := range r.ResourceSpans {
		c.about = attributes(of.Resource.Attributes)
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, s.Name)
			}
		}
	}
	return &traces.ExportTraceServiceResponse{}, nil
}

func (c metricsCollector) Export(_ context.Context, r *metrics.ExportMetricsServiceRequest) (*metrics.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.ResourceMetrics {
		for _, scope := range of.ScopeMetrics {
			for _, m := range scope.Metrics {
				c.metrics = append(c.metrics, m.Name)
			}
		}
	}
	return &metrics.ExportMetricsServiceResponse{}, nil
}

func attributes(kvs []*common.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		m[kv.Key] = kv.Value.GetStringValue()
	}
	return m
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // a server may have closed it
	return l
}

func collect(t *testing.T) (*collector, string) {
	t.Helper()
	l, c, s := listen(t), &collector{}, grpc.NewServer()
	traces.RegisterTraceServiceServer(s, c)
	metrics.RegisterMetricsServiceServer(s, metricsCollector{collector: c})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return c, l.Addr().String()
}

func everything(endpoint string) Options {
	all := 1.0
	return Options{
		SampleRatio: &all,
		OTLP:        OTLP{Endpoint: endpoint, Insecure: true, Headers: map[string]setting.Secret{"api-key": setting.NewSecret("hunter2")}},
	}
}

func TestStopSendsTheLastSpansAndMetrics(t *testing.T) {
	c, endpoint := collect(t)
	o := everything(endpoint)
	o.ServiceName = "orders-gateway"
	telemetry, logged := begin(t, o)
	_, span := telemetry.Tracer.Start(t.Context(), "publish orders")
	span.End()
	counter, err := telemetry.Meter.Int64Counter("postern.published")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Join(c.spans, " ") != "publish orders" || strings.Join(c.metrics, " ") != "postern.published" {
		t.Errorf("the collector has the spans %q and the metrics %q", c.spans, c.metrics)
	}
	if c.about["service.name"] != "orders-gateway" || c.about["service.version"] != "v1.2.3" {
		t.Errorf("from %v", c.about)
	}
	if strings.Join(c.headers, " ") != "hunter2" {
		t.Errorf("with the header %q", c.headers)
	}
	if logged.String() != "" {
		t.Errorf("logged %s", logged)
	}
}

func TestTheEnvironmentNamesTheCollectorAndTheService(t *testing.T) {
	c, endpoint := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"+endpoint)
	t.Setenv("OTEL_SERVICE_NAME", "from-env")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	all := 1.0
	telemetry, _ := begin(t, Options{SampleRatio: &all})
	_, span := telemetry.Tracer.Start(t.Context(), "publish")
	span.End()
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.spans) != 1 || len(c.metrics) != 0 || c.about["service.name"] != "from-env" || c.about["deployment.environment.name"] != "test" {
		t.Errorf("spans %q, metrics %q, from %v", c.spans, c.metrics, c.about)
	}
}

func TestOnlyASampleOfOwnTracesIsTakenAndAllOfACallersSampledOnes(t *testing.T) {
	none := 0.0
	_, endpoint := collect(t)
	o := everything(endpoint)
	o.SampleRatio = &none
	telemetry, _ := begin(t, o)
	_, own := telemetry.Tracer.Start(t.Context(), "own")
	sampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled, Remote: true})
	_, callers := telemetry.Tracer.Start(trace.ContextWithSpanContext(t.Context(), sampled), "caller's")
	if own.SpanContext().IsSampled() || !callers.SpanContext().IsSampled() {
		t.Errorf("own sampled: %v, the caller's: %v", own.SpanContext().IsSampled(), callers.SpanContext().IsSampled())
	}
	own.End()
	callers.End()
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestACollectorThatIsDownDelaysNothing(t *testing.T) {
	refusing := listen(t)
	if err := refusing.Close(); err != nil {
		t.Fatal(err)
	}
	silent := listen(t) // takes connections into its backlog and never says a word
	for name, endpoint := range map[string]string{"refused": refusing.Addr().String(), "silent": silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			telemetry, logged := begin(t, everything(endpoint))
			counter, err := telemetry.Meter.Int64Counter("postern.published")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for range 10_000 { // several times what is queued
				_, span := telemetry.Tracer.Start(t.Context(), "publish")
				counter.Add(t.Context(), 1)
				span.End()
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("10,000 spans took %s", took)
			}
			if code, body := scrape(t, telemetry); code != 200 || !strings.Contains(body, "postern_published_total 10000") {
				t.Errorf("/metrics answers %d", code)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			began = time.Now()
			err = telemetry.Stop(ctx)
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("Stop took %s, it was given 300ms", took)
			}
			if err == nil {
				t.Error("Stop does not tell that spans were lost")
			}
			if n := strings.Count(logged.String(), "\n"); n > 1 {
				t.Errorf("%d lines about it:\n%s", n, logged)
			}
			if strings.Contains(logged.String()+err.Error(), "hunter2") {
				t.Errorf("a header's value is told: %s %v", logged, err)
			}
		})
	}
}

func TestComplaintsAreToldOnceAMinuteAndWithoutSecrets(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20swordfish,x=y")
	logged := new(lines)
	r := newReporter(newLogger(Log{}, logged), OTLP{Headers: map[string]setting.Secret{
		"api-key": setting.NewSecret("hunter2"), "more": setting.NewSecret("hunter2-and-more"), "empty": {},
	}})
	now := time.Unix(1e9, 0)
	r.report(now, "bad header hunter2-and-more, hunter2 or Bearer swordfish or swordfish")
	r.report(now.Add(time.Second), "second")
	r.report(now.Add(59*time.Second), "third")
	r.report(now.Add(61*time.Second), "fourth")
	got := logged.String()
	if strings.Count(got, "\n") != 2 || !strings.Contains(got, "fourth") || !strings.Contains(got, "unsaid=2") {
		t.Errorf("got %s", got)
	}
	for _, secret := range []string{"hunter2", "and-more", "swordfish"} {
		if strings.Contains(got, secret) {
			t.Errorf("%s is told: %s", secret, got)
		}
	}
}

// OpenTelemetry itself prints a header that it cannot read, value and all.
func TestAHeaderInTheEnvironmentThatCannotBeReadIsToldWithoutIt(t *testing.T) {
	_, endpoint := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+endpoint)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "Bearer swordfish")
	telemetry, logged := begin(t, Options{})
	if got := logged.String(); !strings.Contains(got, "parse headers") || strings.Contains(got, "swordfish") {
		t.Errorf("got %q", got)
	}
	if err := telemetry.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	ratio := 2.0
	err := Options{Log: Log{Format: "xml"}, SampleRatio: &ratio, OTLP: OTLP{Endpoint: "http://collector:4317"}}.Validate()
	if err == nil {
		t.Fatal("nothing is wrong")
	}
	for _, path := range []string{"log.format", "sample_ratio", "otlp.endpoint"} {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("no %s in %v", path, err)
		}
	}
	half := 0.5
	if err := (Options{Log: Log{Format: "json", Level: slog.LevelDebug}, SampleRatio: &half, OTLP: OTLP{Endpoint: "collector:4317"}}).Validate(); err != nil {
		t.Error(err)
	}
}
