package server

import (
	"net/http"
	"net/http/pprof"
	"sync"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// readiness is whether callers should come here, and why not.
type readiness struct {
	mu  sync.Mutex
	why string
}

// SetReady makes the gateway ready (why empty) or not.
func (s *Server) SetReady(why string) {
	s.ready.mu.Lock()
	s.ready.why = why
	s.ready.mu.Unlock()
	to := healthpb.HealthCheckResponse_SERVING
	if why != "" {
		to = healthpb.HealthCheckResponse_NOT_SERVING
	}
	s.health.SetServingStatus("", to)
}

// adminMux serves operators: liveness, readiness, metrics, profiles.
func (s *Server) adminMux(rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.ready.mu.Lock()
		why := s.ready.why
		s.ready.mu.Unlock()
		if why != "" {
			answer(w, http.StatusServiceUnavailable, "not ready: "+why)
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("/", rest)
	return mux
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n")) // the prober may be gone
}
