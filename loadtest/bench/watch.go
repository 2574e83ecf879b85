package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// spans takes the gateway's spans, so that their cost is part of every cell.
type spans struct {
	collector.UnimplementedTraceServiceServer
	address string
	server  *grpc.Server
}

func receiveSpans() (*spans, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &spans{address: l.Addr().String(), server: grpc.NewServer()}
	collector.RegisterTraceServiceServer(s.server, s)
	go func() { _ = s.server.Serve(l) }() // ends with stop
	return s, nil
}

func (*spans) Export(context.Context, *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *spans) stop() { s.server.Stop() }

// profile begins a CPU profile of the gateway when one is wanted; the function given waits for its end.
func (b *bench) profile(ctx context.Context, sc scenario, contender string) (func() error, error) {
	if b.s.profiles == "" || contender != "gateway" {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(b.s.profiles, 0o755); err != nil {
		return nil, err
	}
	seconds := max(1, int(b.s.cell/time.Second))
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", b.contenders["gateway"].admin, seconds)
	done := make(chan error, 1)
	go func() {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			done <- err
			return
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			done <- err
			return
		}
		defer answer.Body.Close() //nolint:errcheck // it is read to its end
		f, err := os.Create(filepath.Join(b.s.profiles, strings.ReplaceAll(sc.name, "/", "-")+".pprof"))
		if err == nil {
			if _, err = io.Copy(f, answer.Body); err == nil {
				err = f.Close()
			}
		}
		done <- err
	}()
	return func() error { return <-done }, nil
}
