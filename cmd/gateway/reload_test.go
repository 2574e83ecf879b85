package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/config"
)

// lines is a log that tests read while it is written.
type lines struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wrote chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestWrongConfigurationIsToldAndTheLastGoodOneStands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	put := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("kafka: {brokers: ['a:1']}\n")
	used := make(chan config.Config, 10)
	log := &lines{wrote: make(chan struct{}, 1)}
	r := reloading{path, config.ContentOf(path), func() (config.Config, error) { return config.Load(path, nil, nil) }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx, slog.New(slog.NewTextHandler(log, nil)), func(c config.Config) error { used <- c; return nil })
	}()
	// A signal that comes before anybody listens would end the test: hold it, as run does.
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	hangUp := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	protect(t)
	for read := false; !read; {
		hangUp()
		select {
		case <-used:
			read = true
		case <-ticker.C:
		}
	}
	put("kafka: {brokers: ['a']}\n")
	for !strings.Contains(log.String(), "the last good one stands") {
		select {
		case <-log.wrote:
		case <-time.After(30 * time.Second):
			t.Fatalf("the fault is not told: %s", log)
		}
	}
	if !strings.Contains(log.String(), "is not host:port") {
		t.Error(log)
	}
	put("kafka: {brokers: ['a:1']}\nsubscriptions: [{name: mail, topics: [t]}]\n")
	for {
		select {
		case c := <-used:
			if len(c.Subscriptions) != 1 {
				continue // of the signals before
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the file that is right again is not read")
		}
		break
	}
	cancel()
	<-done
}

// protect keeps a hang-up from ending the test's own process.
func protect(t *testing.T) {
	c := make(chan os.Signal, 10)
	signal.Notify(c, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(c) })
}
