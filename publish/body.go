package publish

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/postern-dev/postern/fault"
)

// bodyTimeout is how long a client may take to send its body.
const bodyTimeout = 60 * time.Second

// encodings are the Content-Encodings read, for Accept-Encoding (RFC 9110, section 12.5.3).
const encodings = "gzip, zstd, identity"

// decoded gives the request's body as it was before its Content-Encoding. Close
// the result; it does not close the request's body.
func decoded(w http.ResponseWriter, r *http.Request, body io.Reader) (io.ReadCloser, error) {
	switch coding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); coding {
	case "", "identity":
		return io.NopCloser(body), nil
	case "gzip", "x-gzip":
		unzip, _ := gzips.Get().(*gzip.Reader)
		var err error
		if unzip == nil {
			unzip, err = gzip.NewReader(body)
		} else {
			err = unzip.Reset(body)
		}
		if err != nil {
			return nil, fault.New(fault.InvalidBody, "the body is not gzip, as its Content-Encoding says: %w", err)
		}
		return &pooled{unzip, func() { gzips.Put(unzip) }}, nil
	case "zstd":
		unzip, _ := zstds.Get().(*zstd.Decoder)
		var err error
		if unzip == nil {
			unzip, err = zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
		} else {
			err = unzip.Reset(body)
		}
		if err != nil {
			return nil, fault.New(fault.InvalidBody, "the body is not zstd, as its Content-Encoding says: %w", err)
		}
		return &pooled{unzip, func() { zstds.Put(unzip) }}, nil
	default:
		w.Header().Set("Accept-Encoding", encodings)
		return nil, fault.New(fault.UnsupportedEncoding, "Content-Encoding %q is not read: send gzip, zstd or no encoding", coding)
	}
}

// zstdWindow bounds what a zstd frame may ask a decoder to keep (RFC 9659: 8 MiB for HTTP).
const zstdWindow = 8 << 20

var gzips, zstds sync.Pool

type pooled struct {
	io.Reader
	put func()
}

func (p *pooled) Close() error { p.put(); return nil }

// readBody reads a whole body of at most the limit, decompressed.
func (p *Publisher) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := int64(p.options.MaxBodyBytes)
	if r.ContentLength > limit {
		return nil, bodyTooLarge(limit)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // HTTP/2 has its own ways
	if r.ContentLength > 0 && r.Header["Content-Encoding"] == nil {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, fault.New(fault.InvalidBody, "the body ended before its Content-Length: %w", err)
		}
		return body, nil
	}
	source, err := decoded(w, r, http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, err
	}
	defer source.Close() //nolint:errcheck // gives the decoder back
	body, err := io.ReadAll(io.LimitReader(source, limit+1))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large) || int64(len(body)) > limit:
		return nil, bodyTooLarge(limit)
	case err != nil:
		return nil, fault.New(fault.InvalidBody, "the body could not be read: %w", err)
	}
	return body, nil
}

func bodyTooLarge(limit int64) error {
	return fault.New(fault.BodyTooLarge, "the body is larger than %d bytes: split the batch", limit).With("limit", fmt.Sprint(limit))
}
