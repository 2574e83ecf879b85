package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
)

// maxPause bounds what an endpoint may ask for; up to there it is obeyed in full.
const maxPause = 24 * time.Hour

// Outcomes say what an answer means where the endpoint's are not the usual ones:
// a status (409), a range (500-502), a class (4xx), or a failure without an
// answer (timeout, dns, tls, refused, reset), and what is done: ack, retry,
// throttle, reject, drop or disable.
//
// The usual ones (Standard Webhooks 1.0.0, CloudEvents webhook specification 1.0):
//
//	2xx                      ack
//	410                      disable: retry, and leave the endpoint alone until somebody enables it
//	413, 415, 422            reject to the dead letters
//	429, 503                 throttle: retry, and leave the whole endpoint alone as long as Retry-After says
//	everything else          retry; redirects are never followed, whatever is said here
type Outcomes map[string]string

// failures are what may be said of an attempt without an answer.
var failures = []string{"timeout", "dns", "tls", "refused", "reset"}

var actions = map[string]endpoint.Action{
	"ack": endpoint.Ack, "retry": endpoint.Retry, "throttle": endpoint.Throttle,
	"reject": endpoint.Reject, "drop": endpoint.Drop, "disable": endpoint.Disable,
}

// verdicts is Outcomes ready for use.
type verdicts struct {
	statuses [600]endpoint.Action
	failures map[string]endpoint.Action
}

// compile reads the table. More exact keys win over wider ones.
func (o Outcomes) compile() (*verdicts, error) {
	v := &verdicts{failures: map[string]endpoint.Action{}}
	for s := range v.statuses {
		v.statuses[s] = usual(s)
	}
	var width [600]int // of the key that decided a status
	var errs []error
	for key, word := range o {
		action, ok := actions[word]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %q is not offered: use ack, retry, throttle, reject, drop or disable", key, word))
			continue
		}
		from, to, err := statuses(key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if from == 0 {
			v.failures[key] = action
			continue
		}
		if action == endpoint.Ack && from < 400 && to >= 300 {
			errs = append(errs, fmt.Errorf("%s: a redirect is no receipt, and is not followed: configure the final URL", key))
			continue
		}
		for s := from; s <= to; s++ {
			if w := to - from + 1; width[s] == 0 || w < width[s] {
				width[s], v.statuses[s] = w, action
			}
		}
	}
	return v, errors.Join(errs...)
}

// statuses reads 409, 500-502 or 4xx; 0 for a failure.
func statuses(key string) (from, to int, err error) {
	for _, f := range failures {
		if key == f {
			return 0, 0, nil
		}
	}
	if len(key) == 3 && strings.HasSuffix(key, "xx") && key[0] >= '2' && key[0] <= '5' {
		from = int(key[0]-'0') * 100
		return from, from + 99, nil
	}
	first, last, ranged := strings.Cut(key, "-")
	from, err = strconv.Atoi(first)
	to = from
	if ranged && err == nil {
		to, err = strconv.Atoi(last)
	}
	if err != nil || from < 200 || to > 599 || from > to {
		return 0, 0, fmt.Errorf("%q is no answer: write a status (409), a range (500-502), a class (4xx), or one of %s", key, strings.Join(failures, ", "))
	}
	return from, to, nil
}

// usual is what a status means unless somebody said otherwise.
func usual(status int) endpoint.Action {
	switch {
	case status >= 200 && status < 300:
		return endpoint.Ack
	case status == http.StatusGone:
		return endpoint.Disable
	case status == http.StatusRequestEntityTooLarge, status == http.StatusUnsupportedMediaType, status == http.StatusUnprocessableEntity:
		return endpoint.Reject
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return endpoint.Throttle
	}
	return endpoint.Retry
}

// judge reads an answer.
func (v *verdicts) judge(status int, retryAfter string, excerpt string, now time.Time) endpoint.Outcome {
	o := endpoint.Outcome{Action: endpoint.Retry, Class: "status"}
	if status >= 0 && status < len(v.statuses) {
		o.Action = v.statuses[status]
	}
	if o.Action == endpoint.Ack {
		o.Class = "ok"
		return o
	}
	o.Why = fmt.Sprintf("the endpoint answered %d %s", status, http.StatusText(status))
	if excerpt != "" {
		o.Why += ": " + excerpt
	}
	switch {
	case status >= 300 && status < 400:
		o.Class = "redirect"
		o.Why += " (redirects are not followed: configure the final URL)"
	case o.Action == endpoint.Throttle:
		o.Class = "throttled"
	case o.Action == endpoint.Disable:
		o.Class = "gone"
	}
	o.Overload = o.Action == endpoint.Throttle || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
	if o.Action == endpoint.Retry || o.Action == endpoint.Throttle {
		o.Pause = parseRetryAfter(retryAfter, now)
	}
	return o
}

// parseRetryAfter reads seconds or an HTTP date in any of its three forms (RFC
// 9110, sections 10.2.3 and 5.6.7). 0 when there is nothing to read, or nothing
// to wait for. Seconds with a fraction, which some servers send, are rounded up.
func parseRetryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0
	}
	if v[0] >= '0' && v[0] <= '9' && !strings.ContainsAny(v, "eExXpP_") {
		if n, err := strconv.ParseFloat(v, 64); err == nil {
			if n > maxPause.Seconds() {
				return maxPause
			}
			return time.Duration(math.Ceil(n)) * time.Second
		}
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxPause)
}

// failure reads an attempt that got no answer.
func (v *verdicts) failure(err error) endpoint.Outcome {
	o := endpoint.Outcome{Action: endpoint.Retry, Class: "reset", Why: "the connection broke: " + err.Error(), Overload: true}
	var refused *refusedError
	var denied *authError
	var dns *net.DNSError
	var operation *net.OpError
	switch {
	case errors.As(err, &refused):
		o.Class, o.Why, o.Overload = "guard", refused.Error(), false
	case errors.As(err, &denied):
		o.Class, o.Why, o.Overload = "auth", denied.Error(), false
	case errors.As(err, &dns): // before timeouts: looking up takes time too, and the cure is another
		o.Class, o.Why, o.Overload = "dns", "the endpoint's name could not be looked up: "+dns.Error(), false
	case isTLS(err):
		o.Class, o.Why, o.Overload = "tls", "TLS with the endpoint failed: "+err.Error(), false
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		o.Class, o.Why = "timeout", "the endpoint did not answer in time"
		if errors.As(err, &operation) && operation.Op == "dial" {
			o.Why = "the endpoint could not be connected to in time"
		} else if strings.Contains(err.Error(), "TLS handshake timeout") { // net/http's, which has no type
			o.Why = "the endpoint did not end its TLS handshake in time"
		}
	case errors.As(err, &operation) && operation.Op == "dial":
		o.Class, o.Why = "refused", "the endpoint could not be reached: "+operation.Error()
	}
	if action, ok := v.failures[o.Class]; ok {
		o.Action = action
	}
	return o
}

func isTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &alert) ||
		strings.Contains(err.Error(), "tls: ") // handshake failures have no type of their own
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
