// Package webhook owns carrying a lease to an HTTP endpoint: the signed
// request, the guard on where it may go, what an answer means, and how one
// endpoint that fails or asks for a pause is kept from hurting others.
//
// A Pusher is one endpoint attached to its subscription's queue: it borrows up
// to Concurrency events, posts each, and settles it by the answer. When an
// event is tried again, in which order and when it is a dead letter is package
// delivery's, and the same as for every other consumer.
package webhook

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// Options is an endpoint as people declare it.
type Options struct {
	// URL to post to. HTTPS, unless allow_http.
	URL string `yaml:"url"`
	// Secrets sign each request (Standard Webhooks v1, whsec_...). Several sign side by side, for rotation.
	Secrets []setting.Secret `yaml:"secrets"`
	// Mode is binary (default) or structured: how CloudEvents are written.
	Mode Mode `yaml:"mode"`
	// View is raw (default) or json: events are shown as JSON, whatever the topic holds.
	View View `yaml:"view"`
	// Timeout bounds one attempt. Default 30s.
	Timeout time.Duration `yaml:"timeout"`
	// Concurrency is how many requests may be under way. Default 64.
	Concurrency int `yaml:"concurrency"`
	// Headers are sent with each request, for example Authorization.
	Headers map[string]setting.Secret `yaml:"headers"`
	// AllowHTTP permits a plain http: URL.
	AllowHTTP bool `yaml:"allow_http"`
	// AllowLoopback permits addresses of this machine.
	AllowLoopback bool `yaml:"allow_loopback"`
	// AllowCIDRs permits further address ranges that are refused by default, such as 10.0.0.0/8.
	AllowCIDRs []string `yaml:"allow_cidrs"`
}

// Mode is how a CloudEvent is written into a request.
type Mode string

// The modes of the CloudEvents HTTP binding that need no consent.
const (
	Binary     Mode = "binary"
	Structured Mode = "structured"
)

const (
	defaultTimeout     = 30 * time.Second
	maxTimeout         = 10 * time.Minute
	defaultConcurrency = 64
	maxConcurrency     = 10_000
)

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.Mode == "" {
		o.Mode = Binary
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() []error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: "webhook." + path, Message: fmt.Sprintf(format, args...)})
	}
	u, err := url.Parse(o.URL)
	switch {
	case o.URL == "":
		bad("url", "an endpoint needs a URL")
	case err != nil || u.Hostname() == "":
		bad("url", "the URL cannot be read: write https://host/path")
	case u.Scheme != "https" && u.Scheme != "http":
		bad("url", "the scheme %q is not offered: use https", u.Scheme)
	case u.Scheme == "http" && !o.AllowHTTP:
		bad("url", "plain http sends events readable by everyone on the way: use https, or say allow_http: true")
	case u.User != nil:
		bad("url", "a user name or password does not belong in the URL: send it with headers: {Authorization: {file: ...}}")
	case strings.Contains(u.Hostname(), "%"):
		bad("url", "an address with a zone is not allowed")
	case u.Fragment != "":
		bad("url", "a fragment (#...) is never sent: remove it")
	}
	for i, s := range o.Secrets {
		if _, err := secretKey(s); err != nil {
			bad(fmt.Sprintf("secrets[%d]", i), "%v", err)
		}
	}
	if o.Mode != "" && o.Mode != Binary && o.Mode != Structured {
		bad("mode", "%q is not offered: use binary or structured", o.Mode)
	}
	if o.View != "" && o.View != ViewRaw && o.View != ViewJSON {
		bad("view", "%q is not offered: use raw or json", o.View)
	}
	if o.Timeout < 0 || o.Timeout > maxTimeout {
		bad("timeout", "%s is out of range: at most %s", o.Timeout, maxTimeout)
	}
	if o.Concurrency < 0 || o.Concurrency > maxConcurrency {
		bad("concurrency", "%d is out of range: 1 to %d", o.Concurrency, maxConcurrency)
	}
	for name, value := range o.Headers {
		if !legalHeader(name) {
			bad("headers", "%q may not be set: it is the gateway's own or not a header's name", name)
		}
		if strings.ContainsAny(value.Reveal(), "\r\n\x00") {
			bad("headers", "the value of %s has a line break in it", name)
		}
	}
	for i, c := range o.AllowCIDRs {
		if _, err := netip.ParsePrefix(c); err != nil {
			bad(fmt.Sprintf("allow_cidrs[%d]", i), "%q is not an address range such as 10.0.0.0/8", c)
		}
	}
	return errs
}

// legalHeader reports whether a configured header may be sent: what frames the
// message, and what we say ourselves, is not anyone's to set.
func legalHeader(name string) bool {
	canonical := http.CanonicalHeaderKey(name)
	switch canonical {
	case "", "Host", "Connection", "Content-Length", "Content-Type", "Transfer-Encoding", "Upgrade", "Trailer", "Te", "Keep-Alive", "Proxy-Connection", "Traceparent", "Tracestate":
		return false
	}
	if strings.HasPrefix(canonical, "Webhook-") || strings.HasPrefix(canonical, "Ce-") || strings.HasPrefix(canonical, "Postern-") {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c > '~' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return true
}
