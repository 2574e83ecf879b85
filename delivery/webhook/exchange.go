package webhook

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
)

// exchange is what one request needs beside its own bytes: its times, taken by
// the transport's hooks, its headers, and the context that ends it. Making it takes
// a tenth of a request's work, so that it is used again, but only when it did not
// end early and nothing of the transport can still hold it: the request was written,
// and went over a connection that was idle before. Otherwise the transport may go
// on dialling for it, or writing it, when the answer is there.
type exchange struct {
	limit
	header http.Header

	mu                   sync.Mutex
	began                time.Time
	timings              endpoint.Timings
	dns, dial, handshake time.Time
	kept, written        bool // over an idle connection; whole
}

// exchanges are those that may be used again.
type exchanges struct{ pool sync.Pool }

// take begins an exchange, which ends by itself after timeout.
func (e *exchanges) take(timeout time.Duration) *exchange {
	x, ok := e.pool.Get().(*exchange)
	if !ok {
		x = &exchange{header: make(http.Header, 24)}
		x.limit.Context = httptrace.WithClientTrace(context.Background(), x.trace())
	}
	x.began = time.Now()
	x.limit.begin(x.began, timeout)
	return x
}

func (e *exchanges) giveBack(x *exchange) {
	rested := x.limit.rest()
	x.mu.Lock()
	again := rested && x.kept && x.written
	x.timings, x.kept, x.written = endpoint.Timings{}, false, false
	x.mu.Unlock()
	if !again {
		x.limit.cancel()
		return
	}
	clear(x.header)
	e.pool.Put(x)
}

// times gives what was noted.
func (x *exchange) times() endpoint.Timings {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.timings.Total = time.Since(x.began)
	return x.timings
}

// set notes now, or how long it is since a time that was noted.
func (x *exchange) set(at *time.Time, took *time.Duration, since *time.Time) {
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if at != nil {
		*at = now
	}
	if took != nil {
		*took = now.Sub(*since)
	}
}

func (x *exchange) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:          func(httptrace.DNSStartInfo) { x.set(&x.dns, nil, nil) },
		DNSDone:           func(httptrace.DNSDoneInfo) { x.set(nil, &x.timings.DNS, &x.dns) },
		ConnectStart:      func(string, string) { x.set(&x.dial, nil, nil) },
		ConnectDone:       func(string, string, error) { x.set(nil, &x.timings.Connect, &x.dial) },
		TLSHandshakeStart: func() { x.set(&x.handshake, nil, nil) },
		TLSHandshakeDone:  func(tls.ConnectionState, error) { x.set(nil, &x.timings.TLS, &x.handshake) },
		GotConn: func(i httptrace.GotConnInfo) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.kept = i.WasIdle
		},
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.written = i.Err == nil
		},
		GotFirstResponseByte: func() { x.set(nil, &x.timings.FirstByte, &x.began) },
	}
}
