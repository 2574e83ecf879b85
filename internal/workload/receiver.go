package workload

import (
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/history"
)

// Receiver is a webhook endpoint with manners.
type Receiver struct {
	Subscription string
	Recorder     *history.Recorder
	Random       *Random
	// Bad is the chance that a request is not answered by 2xx.
	Bad func() float64
	// Lease is how long the gateway waits for an answer, and settles it.
	Lease time.Duration
	// Exclusive: an event under way is not pushed by another gateway, as one is
	// whose partition moved there.
	Exclusive bool
	Odd       func(format string, args ...any)
	// Settled, if not nil, is told of each 2xx.
	Settled func()
}

// ServeHTTP takes an event, and acks it or does something else.
func (rc *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the gateway went away in the middle: nothing was received
	}
	e, ok := rc.entry(r, body)
	if !ok {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	rc.Recorder.Record(e)
	if rc.Random.Chance(rc.Bad()) {
		rc.misbehave(w, r, e)
		return
	}
	if rc.Random.Chance(rc.Bad()) { // slow, but in time
		timer := time.NewTimer(rc.Random.Between(0, rc.Lease/4))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	e.Kind = history.Acked
	rc.Recorder.Record(e)
	w.WriteHeader(http.StatusNoContent)
	if http.NewResponseController(w).Flush() == nil && r.Context().Err() == nil {
		e.Kind = history.Accepted
		rc.Recorder.Record(e)
	}
	if rc.Settled != nil {
		rc.Settled()
	}
}

// entry reads where an event came from.
func (rc *Receiver) entry(r *http.Request, body []byte) (history.Entry, bool) {
	number := func(name string) int64 {
		n, err := strconv.ParseInt(r.Header.Get(name), 10, 64)
		if err != nil {
			rc.Odd("the header %s: %v", name, err)
		}
		return n
	}
	if r.Header.Get("Webhook-Id") == "" || r.Header.Get("Webhook-Signature") == "" {
		rc.Odd("a webhook without an id or a signature: %v", r.Header)
	}
	e := history.Entry{
		Kind: history.Delivered, Value: string(body), Key: r.Header.Get("Postern-Key"), Topic: r.Header.Get("Postern-Topic"), Partition: int32(number("Postern-Partition")),
		Offset: number("Postern-Offset"), Attempt: int32(number("Postern-Attempt")), Subscription: r.Header.Get("Postern-Subscription"),
		Trace: traceOf(r.Header.Get("Traceparent")),
	}
	if rc.Exclusive {
		e.Until = rc.Recorder.Since(time.Now().Add(rc.Lease))
	}
	return e, e.Topic != ""
}

// misbehave is the zoo: nothing of it is an ack, but a 2xx that comes too late or is cut.
func (rc *Receiver) misbehave(w http.ResponseWriter, r *http.Request, e history.Entry) {
	back := func() { // it may come again from now on
		e.Kind = history.Returned
		rc.Recorder.Record(e)
	}
	switch rc.Random.N(14) {
	case 0:
		back()
		w.WriteHeader(http.StatusInternalServerError)
	case 1:
		back()
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write(make([]byte, 100<<10)) // more than the gateway reads; it may break off
	case 2: // too much: how long is said in every form, and in none
		back()
		forms := []string{"1", "0", "", "nonsense", "-1", time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat), time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}
		if after := forms[rc.Random.N(len(forms))]; after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}[rc.Random.N(2)])
	case 3: // nothing at all: the gateway's timeout ends it
		<-r.Context().Done()
		back()
	case 4: // half an answer, and the connection is gone
		back()
		rc.hijack(w, "HTTP/1.1 200 OK\r\nContent-Len")
	case 5: // gone without a word
		back()
		rc.hijack(w, "")
	case 6: // nonsense
		back()
		rc.hijack(w, "SSH-2.0-zoo\r\n\r\n")
	case 7: // a redirect, which is not followed
		back()
		w.Header().Set("Location", "http://169.254.169.254/latest/meta-data/")
		w.WriteHeader(http.StatusFound)
	case 8: // an endless body behind a failure
		back()
		w.WriteHeader(http.StatusConflict)
		rc.endless(w, r)
	case 9: // a bomb behind a failure
		back()
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusTeapot)
		bomb := gzip.NewWriter(w)
		_, _ = bomb.Write(make([]byte, 1<<20)) // the gateway may break off
		_ = bomb.Close()
	case 10: // not this event, ever
		e.Kind = history.Rejected
		rc.Recorder.Record(e)
		w.WriteHeader([]int{http.StatusUnprocessableEntity, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge}[rc.Random.N(3)])
	case 11: // early hints and then a failure
		back()
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNotFound)
	case 12: // headers that never end
		rc.hijackSlowly(w)
		back()
	default: // more headers than the gateway reads
		back()
		w.Header().Set("X-Large", strings.Repeat("x", 100<<10))
		w.WriteHeader(http.StatusForbidden)
	}
}

func (rc *Receiver) hijack(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, text) // the gateway may be gone
	_ = conn.Close()
}

// endless writes until the gateway has enough.
func (rc *Receiver) endless(w http.ResponseWriter, r *http.Request) {
	block := make([]byte, 8<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// hijackSlowly sends one byte of a header at a time until the gateway gives up.
func (rc *Receiver) hijackSlowly(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // it is broken by then
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Slow: "); err != nil {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for range 120 {
		<-ticker.C
		if _, err := io.WriteString(conn, "x"); err != nil {
			return
		}
	}
}
