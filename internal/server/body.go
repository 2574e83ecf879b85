package server

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/postern-dev/postern/fault"
)

// bodyTimeout is how long a client may take to send a body. A stream sets limits of its own.
const bodyTimeout = 60 * time.Second

// encodings are the Content-Encodings read, for Accept-Encoding (RFC 9110, section 12.5.3).
const encodings = "gzip, zstd, identity"

// zstdWindow bounds what a zstd frame may ask a decoder to keep (RFC 9659: 8 MiB for HTTP).
const zstdWindow = 8 << 20

// bodies bounds the bytes of all HTTP bodies that are being read or answered,
// as they are after decompression.
type bodies struct {
	limit int64 // 0: none
	used  atomic.Int64
}

func (b *bodies) take(n int) bool {
	if b.used.Add(int64(n)) > b.limit && b.limit > 0 {
		b.used.Add(-int64(n))
		return false
	}
	return true
}

// body is a request's body as every route reads it: without its
// Content-Encoding, in limited time, charged to its caller's limit and, unless it
// is a stream's, to the memory for bodies. A limit that is met is a fault from Read.
type body struct {
	sent    *sentBody // as the client sends it
	decoder io.ReadCloser
	coding  string
	control *http.ResponseController
	ctx     context.Context
	bodies  *bodies
	call    call // zero: the caller has no limits
	patient bool // read no faster than the limit
	stream  bool // sets its own deadlines, and keeps nothing
	begun   bool
	taken   int
	err     error
}

// sentBody keeps why its reading failed: decoders make other errors of it.
type sentBody struct {
	io.ReadCloser
	err error
}

func (s *sentBody) Read(into []byte) (int, error) {
	n, err := s.ReadCloser.Read(into)
	if err != nil {
		s.err = err
	}
	return n, err
}

// openBody prepares r's body. Its Content-Encoding is gone then, and with it the length.
func openBody(w http.ResponseWriter, r *http.Request, all *bodies) (*body, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	coding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding")))
	switch coding {
	case "identity":
		coding = ""
	case "x-gzip":
		coding = "gzip"
	case "", "gzip", "zstd":
	default:
		w.Header().Set("Accept-Encoding", encodings)
		return nil, fault.New(fault.UnsupportedEncoding, "Content-Encoding %q is not read: send gzip, zstd or no encoding", coding)
	}
	b := &body{sent: &sentBody{ReadCloser: r.Body}, coding: coding, control: http.NewResponseController(w), ctx: r.Context(), bodies: all, patient: r.ContentLength < 0}
	b.call, _ = r.Context().Value(callKey{}).(call)
	if coding != "" {
		r.Header.Del("Content-Encoding")
		r.ContentLength = -1
	}
	// Now, not with the first Read: net/http reads the rest of a body that is refused unread.
	_ = b.control.SetReadDeadline(time.Now().Add(bodyTimeout)) // a connection without deadlines is a test's
	r.Body = b
	return b, nil
}

func (b *body) Read(into []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(into)
	if err != nil {
		if b.sent.err != nil && !errors.Is(b.sent.err, io.EOF) {
			err = b.sent.err
		}
		err = b.failure(err)
	}
	switch {
	case b.stream:
	case b.bodies.take(n):
		b.taken += n
	default:
		n, err = 0, fault.New(fault.BufferFull, "the memory for request bodies (publish.body_buffer, %d bytes) is in use: retry after 1s", b.bodies.limit).After(time.Second)
	}
	if b.call.limiter != nil && n > 0 {
		if wait := b.call.limiter.charge(b.call.account, n, time.Now()); wait > 0 && b.patient && err == nil {
			err = sleep(b.ctx, wait)
		}
	}
	if err != nil {
		b.err = err
		if !b.stream && errors.Is(err, io.EOF) { // what is left of the time is not for the work that follows
			_ = b.control.SetReadDeadline(time.Time{})
		}
	}
	return n, err
}

func (b *body) read(into []byte) (int, error) {
	if !b.begun {
		b.begun = true
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	if b.decoder != nil {
		return b.decoder.Read(into)
	}
	return b.sent.Read(into)
}

func (b *body) failure(err error) error {
	var large *http.MaxBytesError
	var wrong *fault.Error
	switch {
	case errors.Is(err, io.EOF), errors.As(err, &wrong), errors.As(err, &large):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.BodyTimeout, "the body had not come within %s: send it faster, or in smaller requests", bodyTimeout)
	case b.coding != "" && b.ctx.Err() == nil:
		return fault.New(fault.InvalidBody, "the body is not %s, as its Content-Encoding says: %w", b.coding, err)
	}
	return err
}

// open reads the beginning of an encoded body.
func (b *body) open() error {
	switch b.coding {
	case "gzip":
		unzip, _ := gzips.Get().(*gzip.Reader)
		var err error
		if unzip == nil {
			unzip, err = gzip.NewReader(b.sent)
		} else {
			err = unzip.Reset(b.sent)
		}
		if err != nil {
			return err
		}
		b.decoder = &pooled{unzip, func() { gzips.Put(unzip) }}
	case "zstd":
		unzip, _ := zstds.Get().(*zstd.Decoder)
		var err error
		if unzip == nil {
			unzip, err = zstd.NewReader(b.sent, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		} else {
			err = unzip.Reset(b.sent)
		}
		if err != nil {
			return err
		}
		b.decoder = &pooled{unzip, func() { zstds.Put(unzip) }}
	}
	return nil
}

func (b *body) Close() error { return b.sent.Close() }

// release gives back what the body holds, when its request is answered.
func (b *body) release() {
	if b == nil {
		return
	}
	b.bodies.used.Add(-int64(b.taken))
	b.taken, b.err = 0, io.ErrClosedPipe
	if b.decoder != nil {
		_ = b.decoder.Close() // gives the decoder back
		b.decoder = nil
	}
}

var gzips, zstds sync.Pool

type pooled struct {
	io.Reader
	put func()
}

func (p *pooled) Close() error { p.put(); return nil }
