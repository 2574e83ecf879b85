package webhook

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// endless is a body that counts what is read of it and never ends.
type endless struct {
	text   string
	read   int
	closed bool
}

func (e *endless) Read(b []byte) (int, error) {
	if e.closed {
		return 0, errors.New("read after the close")
	}
	for i := range b {
		b[i] = e.text[(e.read+i)%len(e.text)]
	}
	e.read += len(b)
	return len(b), nil
}

func (e *endless) Close() error { e.closed = true; return nil }

func TestAnAnswersBodyIsReadTo64KiBAndKeptTo4KiB(t *testing.T) {
	c := carrierTo(t, "http://127.0.0.1:1/", nil)
	for _, status := range []int{http.StatusOK, http.StatusMultiStatus, http.StatusInternalServerError, http.StatusBadRequest, http.StatusFound} {
		for _, text := range []string{"x", "\u20ac", "a\x00", "a\xff"} { // of one byte, of three that a cut parts, with what is not kept, and with what grows
			body := &endless{text: text}
			p := parcel()
			p.Records = []*event.Record{record("k", "1"), record("k", "2")}
			var a endpoint.Answer
			a = c.read(&http.Response{StatusCode: status, Header: http.Header{}, ContentLength: -1, Body: body}, &a, func() {}, len(p.Records), nil)
			if body.read != 64<<10 || !body.closed {
				t.Errorf("%d %q: %d bytes were read, closed %t", status, text, body.read, body.closed)
			}
			kept := map[string]int{"x": 4 << 10, "\u20ac": 4<<10 - 1, "a\x00": 2 << 10, "a\xff": 4 << 10}[text]
			if status < 300 {
				kept = 0 // a success says nothing to look at later
			}
			if len(a.Excerpt) != kept || !utf8.ValidString(a.Excerpt) {
				t.Errorf("%d %q: %d bytes are kept, want %d", status, text, len(a.Excerpt), kept)
			}
			if kept > 0 && (!strings.Contains(a.Why, a.Excerpt) || len(a.Why) > 4<<10+256) {
				t.Errorf("%d: the reason has %d bytes", status, len(a.Why))
			}
		}
	}
}

func TestABodyWithoutEndCostsOneAttemptAndNoTime(t *testing.T) {
	for name, head := range map[string]string{
		"of no length":      "HTTP/1.1 500 x\r\n\r\n",
		"of a great length": "HTTP/1.1 500 x\r\nContent-Length: 1000000000000\r\n\r\n",
	} {
		url, connections := serveAnimal(t, func(_ *testing.T, c net.Conn, _ <-chan struct{}) {
			read(c)
			_, _ = io.WriteString(c, head)
			for {
				if _, err := c.Write(make([]byte, 4<<10)); err != nil {
					return // cut off
				}
			}
		})
		l := newLender(t, record("k", "v"))
		began := time.Now()
		run(t, pusherTo(t, url, func(o *Options) { o.Timeout = time.Minute }), l)
		s := l.only()
		if s.Word != delivery.Nack || !strings.Contains(s.Reason, "answered 500") || connections.Load() != 1 || len(l.settled) != 0 {
			t.Errorf("%s: %+v over %d connections", name, s, connections.Load())
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: it took %s: the end of the body was waited for", name, took)
		}
	}
}

// TestEachTimeoutEndsWhatItIsOf holds one stage up at a time; the other stages' limits are far away.
func TestEachTimeoutEndsWhatItIsOf(t *testing.T) {
	const limit, far = 300 * time.Millisecond, time.Minute
	silent := func(_ *testing.T, _ net.Conn, until <-chan struct{}) { <-until }
	for name, c := range map[string]struct {
		url    func(t *testing.T) string
		change func(*Options)
		says   string
	}{
		"connecting": {deaf, func(o *Options) { o.ConnectTimeout = limit }, "could not be connected to in time"},
		"TLS": {func(t *testing.T) string {
			url, _ := serveAnimal(t, silent)
			return strings.Replace(url, "http:", "https:", 1)
		}, func(o *Options) { o.TLSTimeout = limit }, "TLS handshake"},
		"all of it, before an answer": {func(t *testing.T) string {
			url, _ := serveAnimal(t, silent)
			return url
		}, func(o *Options) { o.Timeout = limit }, "did not answer in time"},
		"all of it, within the head": {func(t *testing.T) string {
			url, _ := serveAnimal(t, drips("HTTP/1.1 500 x\r\nX: ", "x"))
			return url
		}, func(o *Options) { o.Timeout = limit }, "did not answer in time"},
		"all of it, connecting": {deaf, func(o *Options) { o.Timeout = limit }, "in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := func(o *Options) {
				o.Timeout, o.ConnectTimeout, o.TLSTimeout = far, far, far
				c.change(o)
			}
			a := carrierTo(t, c.url(t), o).Carry(t.Context(), parcel())
			if a.Class != "timeout" || a.Action != endpoint.Retry || !a.Overload || !strings.Contains(a.Why, c.says) {
				t.Errorf("%+v", a.Outcome)
			}
			if a.Timings.Total < limit || a.Timings.Total > limit+20*time.Second {
				t.Errorf("it took %s, the limit is %s", a.Timings.Total, limit)
			}
		})
	}
}
