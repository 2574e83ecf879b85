package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/internal/setting"
)

var (
	traceID = trace.TraceID{0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36}
	spanID  = trace.SpanID{0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7}
)

func within() context.Context {
	return trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID}))
}

func TestALineWithinATraceCarriesItsIds(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log := newLogger(Log{Format: format}, &out)
		log.InfoContext(within(), "inside")
		if got := out.String(); !strings.Contains(got, traceID.String()) || !strings.Contains(got, spanID.String()) {
			t.Errorf("%s: no ids in %s", format, got)
		}
		out.Reset()
		log.Info("outside")
		if strings.Contains(out.String(), "trace_id") {
			t.Errorf("%s: ids of no trace in %s", format, out.String())
		}
	}
}

func TestTheIdsStandBesideAGroupNotInIt(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(Log{Format: "json"}, &out).With("a", 1).WithGroup("kafka").With("b", 2).WithGroup("").WithGroup("topic")
	first := log.With("c", 3)
	log.With("d", 4).InfoContext(within(), "other") // must not reach into first's line
	out.Reset()
	first.InfoContext(within(), "x", "e", 5)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", out.String(), err)
	}
	delete(line, "time")
	got, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"a":1,"kafka":{"b":2,"topic":{"c":3,"e":5}},"level":"INFO","msg":"x","span_id":"00f067aa0ba902b7","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTheLevelChangesWhileRunning(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(Log{Level: slog.LevelWarn}, &out)
	derived := log.With("part", "x").WithGroup("g")
	derived.Info("before")
	if !SetLevel(log, slog.LevelInfo) {
		t.Fatal("our own logger is not known")
	}
	derived.Info("after")
	if got := out.String(); strings.Contains(got, "before") || !strings.Contains(got, "after") {
		t.Errorf("got %s", got)
	}
	if SetLevel(slog.New(slog.DiscardHandler), slog.LevelInfo) {
		t.Error("a foreign logger's level is said to be set")
	}
}

func TestASecretIsNotLogged(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		newLogger(Log{Format: format}, &out).Info("x", "secret", setting.NewSecret("hunter2"), "otlp", OTLP{Headers: map[string]setting.Secret{"a": setting.NewSecret("hunter2")}})
		if strings.Contains(out.String(), "hunter2") {
			t.Errorf("%s: %s", format, out.String())
		}
	}
}
