package publish

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/postern-dev/postern/fault"
)

// firstBody is the memory a body gets before its bytes are there; it grows as
// they come, so that a Content-Length alone costs nothing.
const firstBody = 8 << 10

// readBody reads a whole body of at most the limit. It comes decompressed, in
// limited time and counted: internal/server does that for every route.
func (p *Publisher) readBody(r *http.Request) ([]byte, error) {
	limit := int64(p.options.MaxBodyBytes)
	if r.ContentLength > limit {
		return nil, bodyTooLarge(limit)
	}
	size := int64(firstBody)
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength+1) // the byte too many finds the end without growing
	}
	body := make([]byte, 0, size)
	for {
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return nil, bodyTooLarge(limit)
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, unreadable(err)
		}
		if len(body) == cap(body) {
			next := int64(cap(body)) * 4
			if r.ContentLength > 0 {
				next = min(next, r.ContentLength+1)
			}
			body = append(make([]byte, 0, max(next, int64(cap(body))+1)), body...)
		}
	}
}

// unreadable says why a body could not be read to its end.
func unreadable(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return known
	}
	return fault.New(fault.InvalidBody, "the body broke off: %w", err)
}

func bodyTooLarge(limit int64) error {
	return fault.New(fault.BodyTooLarge, "the body is larger than %d bytes: split the batch", limit).With("limit", fmt.Sprint(limit))
}
