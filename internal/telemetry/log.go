package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel/trace"
)

// Log settings.
type Log struct {
	// Level is debug, info (default), warn or error.
	Level slog.Level `yaml:"level"`
	// Format is text (default) or json.
	Format string `yaml:"format"`
}

// NewLogger makes the program's logger, on stderr. Lines within a trace carry
// its ids. It does not become slog's default: who logs is given a logger.
func NewLogger(l Log) *slog.Logger { return newLogger(l, os.Stderr) }

func newLogger(l Log, w io.Writer) *slog.Logger {
	level := new(slog.LevelVar)
	level.Set(l.Level)
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if l.Format == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	return slog.New(&traced{Handler: h, root: h, level: level})
}

// SetLevel changes, from now on, the level of a logger that NewLogger made and
// of all that were derived from it. It reports whether log is one of those.
func SetLevel(log *slog.Logger, level slog.Level) bool {
	t, ours := log.Handler().(*traced)
	if ours {
		t.level.Set(level)
	}
	return ours
}

// traced adds the ids of the context's span to each line.
type traced struct {
	slog.Handler
	level *slog.LevelVar
	// Ids belong to the line, not into a group that its logger has open; a handler
	// cannot leave a group, so within one the line is built again from root.
	root  slog.Handler
	since []func(slog.Handler) slog.Handler // what was derived from root, nil until a group
	group bool
}

func (t *traced) Handle(ctx context.Context, r slog.Record) error {
	s := trace.SpanContextFromContext(ctx)
	if !s.IsValid() {
		return t.Handler.Handle(ctx, r)
	}
	ids := []slog.Attr{slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String())}
	if !t.group {
		r = r.Clone() // others may hold it
		r.AddAttrs(ids...)
		return t.Handler.Handle(ctx, r)
	}
	h := t.root.WithAttrs(ids)
	for _, derive := range t.since {
		h = derive(h)
	}
	return h.Handle(ctx, r)
}

func (t *traced) WithAttrs(attrs []slog.Attr) slog.Handler {
	return t.derive(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) }, false)
}

func (t *traced) WithGroup(name string) slog.Handler {
	if name == "" {
		return t
	}
	return t.derive(func(h slog.Handler) slog.Handler { return h.WithGroup(name) }, true)
}

func (t *traced) derive(by func(slog.Handler) slog.Handler, group bool) slog.Handler {
	d := &traced{Handler: by(t.Handler), level: t.level, root: t.root, since: t.since, group: t.group || group}
	if d.group {
		d.since = append(d.since[:len(d.since):len(d.since)], by)
	} else {
		d.root = d.Handler
	}
	return d
}
