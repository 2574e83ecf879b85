package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/postern-dev/postern/delivery"
)

// outcome is what an attempt means: what to say of the lease, and what of the endpoint.
type outcome struct {
	word    delivery.Word
	class   string        // for logs and metrics: ok, status, timeout, refused, dns, tls, guard, reset
	why     string        // for people
	pause   time.Duration // the whole endpoint wants to be left alone this long
	disable bool          // the endpoint is gone for good
}

// maxPause bounds what an endpoint may ask for; up to there it is obeyed in full.
const maxPause = 24 * time.Hour

// defaultPause is taken when an endpoint says "too much" without saying how long.
const defaultPause = 5 * time.Second

// judge reads an answer's status (Standard Webhooks 1.0.0, CloudEvents webhook
// specification 1.0): 2xx is an ack; 410 ends the endpoint; 413, 415 and 422
// reject the event; 429 and 503 throttle the endpoint; redirects are refused;
// all else is tried again.
func judge(status int, retryAfter string, excerpt string, now time.Time) outcome {
	why := fmt.Sprintf("the endpoint answered %d %s", status, http.StatusText(status))
	if excerpt != "" {
		why += ": " + excerpt
	}
	switch {
	case status >= 200 && status < 300:
		return outcome{word: delivery.Ack, class: "ok"}
	case status == http.StatusGone:
		return outcome{word: delivery.Nack, class: "status", why: why, disable: true}
	case status == http.StatusRequestEntityTooLarge, status == http.StatusUnsupportedMediaType, status == http.StatusUnprocessableEntity:
		return outcome{word: delivery.Reject, class: "status", why: why}
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		pause, ok := parseRetryAfter(retryAfter, now)
		if !ok {
			pause = defaultPause
		}
		return outcome{word: delivery.Nack, class: "throttled", why: why, pause: pause}
	case status >= 300 && status < 400:
		return outcome{word: delivery.Nack, class: "redirect", why: why + " (redirects are not followed: configure the final URL)"}
	}
	return outcome{word: delivery.Nack, class: "status", why: why}
}

// parseRetryAfter reads seconds or an HTTP date (RFC 9110, section 10.2.3).
func parseRetryAfter(v string, now time.Time) (time.Duration, bool) {
	if v == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(v, 10, 63); err == nil {
		if n > uint64(maxPause/time.Second) {
			return maxPause, true
		}
		return time.Duration(n) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return min(max(at.Sub(now), 0), maxPause), true
}

// failure reads an attempt that got no answer.
func failure(err error) outcome {
	o := outcome{word: delivery.Nack, class: "reset", why: "the connection broke: " + err.Error()}
	var refused *refusedError
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var operation *net.OpError
	switch {
	case errors.As(err, &refused):
		o.class, o.why = "guard", refused.Error()
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		o.class, o.why = "timeout", "the endpoint did not answer in time"
	case errors.As(err, &dns):
		o.class, o.why = "dns", "the endpoint's name could not be looked up: "+dns.Error()
	case errors.As(err, &certificate), errors.As(err, &record):
		o.class, o.why = "tls", "TLS with the endpoint failed: "+err.Error()
	case errors.As(err, &operation) && operation.Op == "dial":
		o.class, o.why = "refused", "the endpoint could not be reached: "+operation.Error()
	}
	return o
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
