package gateway

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// spans is a collector that keeps what it gets.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*tracev1.Span
}

func (s *spans) Export(_ context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range request.ResourceSpans {
		for _, scope := range r.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestOneTraceLeadsFromThePublisherThroughKafkaToTheReceiver(t *testing.T) {
	received := &spans{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, received)
	go func() { _ = server.Serve(l) }() // ends with Stop
	defer server.Stop()

	cluster := brokertest.New(t)
	topic := cluster.Topic("traced", 1)
	hooked := make(chan string, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hooked <- r.Header.Get("Traceparent") }))
	defer receiver.Close()
	g := start(t, cluster, func(c *config.Config) {
		c.Telemetry.OTLP.Endpoint, c.Telemetry.OTLP.Insecure = l.Addr().String(), true
		c.Subscriptions = []subscription.Spec{hook(cluster.Name("traced-sub"), topic, receiver.URL, delivery.Retry{})}
	})
	const trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "traceparent", "00-"+trace+"-"+caller+"-01"); a.Status != 200 {
		t.Fatal(a.Body)
	}
	var arrived string
	select {
	case arrived = <-hooked:
	case <-time.After(patience):
		t.Fatal("no webhook came")
	}
	stored := header(cluster.Read(topic)[0], "traceparent")
	g.stop() // sends the spans

	received.mu.Lock()
	defer received.mu.Unlock()
	byName := map[string]*tracev1.Span{}
	for _, s := range received.all {
		byName[strings.Fields(s.Name)[0]] = s
	}
	publish, attempt := byName["publish"], byName["webhook"]
	if publish == nil || attempt == nil {
		t.Fatalf("the spans are %v", byName)
	}
	if hex.EncodeToString(publish.TraceId) != trace || hex.EncodeToString(publish.ParentSpanId) != caller || publish.Kind != tracev1.Span_SPAN_KIND_PRODUCER {
		t.Errorf("the publishing span is %v", publish)
	}
	if !strings.Contains(stored, trace+"-"+hex.EncodeToString(publish.SpanId)) {
		t.Errorf("the record carries %s, the publishing span is %x", stored, publish.SpanId)
	}
	if len(attempt.Links) != 1 || string(attempt.Links[0].SpanId) != string(publish.SpanId) || attempt.Kind != tracev1.Span_SPAN_KIND_CLIENT {
		t.Errorf("the attempt's span is %v", attempt)
	}
	if !strings.Contains(arrived, hex.EncodeToString(attempt.SpanId)) {
		t.Errorf("the receiver got %s, the attempt's span is %x", arrived, attempt.SpanId)
	}
}

func TestEachEventOfARequestCarriesTheCallersTraceUnlessItHasItsOwn(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("carried", 1)
	g := start(t, cluster, nil)
	const parent, state, own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "vendor=7", "00-11111111111111111111111111111111-2222222222222222-01"
	for _, atomic := range []bool{false, true} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", parent, "tracestate", state)
		before := len(cluster.Read(topic))
		answer, err := g.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Atomic: atomic, Events: []*posternv1.Event{
			{Data: []byte("0")},
			{Data: []byte("1")}, // these share it
			{Data: []byte("2"), Headers: []*posternv1.Header{{Name: "shop", Value: []byte("berlin")}}},
			{Data: []byte("3"), Headers: []*posternv1.Header{{Name: "traceparent", Value: []byte(own)}}},
			{Data: []byte("4"), ContentType: "text/plain"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range answer.GetResults() {
			if r.GetError() != nil {
				t.Fatalf("event %d: %v", i, r.GetError())
			}
		}
		for i, r := range cluster.Read(topic)[before:] {
			wantParent, wantState, wantHeaders := parent, state, 2
			switch i {
			case 2, 4:
				wantHeaders = 3
			case 3:
				wantParent, wantState, wantHeaders = own, "", 1
			}
			if got := header(r, "traceparent"); got != wantParent || header(r, "tracestate") != wantState || len(r.Headers) != wantHeaders {
				t.Errorf("atomic %v, event %d has %s, %q and %d headers", atomic, i, got, header(r, "tracestate"), len(r.Headers))
			}
		}
	}
}
