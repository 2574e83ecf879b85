// Command sink is a webhook receiver for load tests: it counts what arrives,
// what arrives twice, and how long it took from publishing ({"sent": MILLISECONDS}).
//
//	POST /          a webhook          GET /count   what came
//	POST /expect    one more is due    POST /reset  begin anew
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"
)

type sink struct {
	mu        sync.Mutex
	expected  int
	seen      map[string]bool
	repeated  int
	latencies []int64
}

// most bounds what a run may hold.
const most = 5_000_000

func (s *sink) webhook(w http.ResponseWriter, r *http.Request) {
	var body struct{ Sent int64 }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id := r.Header.Get("Webhook-Id")
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.seen) >= most:
		http.Error(w, "the sink is full", http.StatusServiceUnavailable)
	case s.seen[id]:
		s.repeated++
	default:
		s.seen[id] = true
		s.latencies = append(s.latencies, time.Now().UnixMilli()-body.Sent)
	}
}

func (s *sink) count(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sorted := slices.Clone(s.latencies)
	slices.Sort(sorted)
	at := func(q float64) int64 {
		if len(sorted) == 0 {
			return -1
		}
		return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the asker may be gone
		"expected": s.expected, "received": len(s.seen), "repeated": s.repeated, "p50_ms": at(0.5), "p99_ms": at(0.99),
	})
}

func (s *sink) reset(http.ResponseWriter, *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected, s.repeated, s.seen, s.latencies = 0, 0, map[string]bool{}, nil
}

func (s *sink) expect(http.ResponseWriter, *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected++
}

func main() {
	address := flag.String("listen", "127.0.0.1:7690", "address to listen on")
	flag.Parse()
	s := &sink{seen: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", s.webhook)
	mux.HandleFunc("GET /count", s.count)
	mux.HandleFunc("POST /expect", s.expect)
	mux.HandleFunc("POST /reset", s.reset)
	server := &http.Server{Addr: *address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, func() { _ = server.Close() }) // ends ListenAndServe
	fmt.Printf(`listening on http://%s; a configuration that pushes to it:

subscriptions:
  - name: loadtest-webhook
    topics: [loadtest-webhook]
    webhook: {url: "http://%s/", allow_http: true, allow_loopback: true}
`, *address, *address)
	if err := server.ListenAndServe(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, "sink:", err)
		os.Exit(1)
	}
}
