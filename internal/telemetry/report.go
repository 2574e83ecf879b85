package telemetry

import (
	"cmp"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// reportEvery bounds the lines about a collector that cannot be reached.
const reportEvery = time.Minute

// reporter takes what OpenTelemetry complains of, which by itself it prints to
// stderr as it is, headers that it cannot read included.
type reporter struct {
	log     *slog.Logger
	secrets *strings.Replacer

	mu     sync.Mutex
	last   time.Time
	unsaid int // complaints since last that were not logged
}

func newReporter(log *slog.Logger, o OTLP) *reporter {
	var secrets []string
	hide := func(text string) {
		if words := strings.Fields(text); len(words) > 0 {
			secrets = append(secrets, strings.TrimSpace(text), words[len(words)-1]) // "Bearer TOKEN", and TOKEN
		}
	}
	for _, value := range o.Headers {
		hide(value.Reveal())
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"} {
		for pair := range strings.SplitSeq(os.Getenv(name), ",") {
			_, value, _ := strings.Cut(pair, "=")
			hide(value)
			if plain, err := url.PathUnescape(value); err == nil {
				hide(plain)
			}
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) }) // one may begin another
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, "***")
	}
	return &reporter{log: log, secrets: strings.NewReplacer(pairs...)}
}

// Handle is otel.ErrorHandler's.
func (r *reporter) Handle(err error) { r.report(time.Now(), err.Error()) }

func (r *reporter) report(now time.Time, text string) {
	r.mu.Lock()
	if !r.last.IsZero() && now.Sub(r.last) < reportEvery {
		r.unsaid++
		r.mu.Unlock()
		return
	}
	unsaid := r.unsaid
	r.last, r.unsaid = now, 0
	r.mu.Unlock()
	r.log.Warn("telemetry is not being exported", "error", r.secrets.Replace(text), "unsaid", unsaid)
}

// sink is where OpenTelemetry's own log goes. Of an error only what was being
// done is kept: it is told together with the text that could not be read.
type sink struct{ *reporter }

func (sink) Init(logr.RuntimeInfo)            {}
func (sink) Enabled(int) bool                 { return false } // only errors
func (sink) Info(int, string, ...any)         {}
func (s sink) WithValues(...any) logr.LogSink { return s }
func (s sink) WithName(string) logr.LogSink   { return s }
func (s sink) Error(_ error, doing string, _ ...any) {
	s.report(time.Now(), "OpenTelemetry could not "+doing+": correct the OTEL_ variable that gives it")
}
