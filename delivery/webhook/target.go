// Package webhook owns carrying events to an HTTP endpoint: the signed request,
// the guard on where it may go, how the gateway proves itself there, the
// endpoint's consent, and what an answer means.
//
// How many requests may be under way, and when none, is package endpoint's;
// when an event is tried again, in which order and when it is a dead letter is
// package delivery's, and the same as for every other consumer.
package webhook

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/internal/setting"
)

// Options is an endpoint as people declare it.
type Options struct {
	// URL to post to. HTTPS, unless allow_http.
	URL string `yaml:"url"`
	// Secrets sign each request (Standard Webhooks: whsec_... for v1, whsk_... for v1a). Several sign side by side, for rotation.
	Secrets []setting.Secret `yaml:"secrets"`
	// Keys are secrets with the times between which they sign.
	Keys []Key `yaml:"keys"`
	// Asymmetric signs v1a with the gateway's own keys too (webhooks.signing_keys), which /.well-known/jwks.json publishes.
	Asymmetric bool `yaml:"asymmetric"`
	// Mode is binary (default), structured or batch: how CloudEvents are written. Batch is for endpoints that ask for it.
	Mode Mode `yaml:"mode"`
	// View is raw (default) or json: events are shown as JSON, whatever the topic holds.
	View View `yaml:"view"`
	// Batch bounds the batches of mode batch.
	Batch *endpoint.Batch `yaml:"batch"`
	// Handshake asks the endpoint for its consent before anything is sent.
	Handshake *Handshake `yaml:"handshake"`
	// Outcomes say what answers mean where that is not the usual.
	Outcomes Outcomes `yaml:"outcomes"`
	// Timeout bounds one attempt. Default 30s.
	Timeout time.Duration `yaml:"timeout"`
	// ConnectTimeout bounds connecting. Default 5s.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// TLSTimeout bounds the TLS handshake. Default 5s.
	TLSTimeout time.Duration `yaml:"tls_timeout"`
	// Concurrency is how many requests may be under way at most; how many are is
	// found out: it begins at 4, grows while answers come in time, and halves when they do not. Default 64.
	Concurrency int `yaml:"concurrency"`
	// RequestsPerSecond is a limit. Default: none.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	// DisableAfter is how long no request may succeed before the endpoint is disabled. Default 120h; negative: never.
	DisableAfter time.Duration `yaml:"disable_after"`
	// Headers are sent with each request.
	Headers map[string]setting.Secret `yaml:"headers"`
	// Auth is how the gateway proves itself in the Authorization header.
	Auth *Auth `yaml:"auth"`
	// TLS settings: certificates to trust, and the gateway's own.
	TLS *TLS `yaml:"tls"`
	// Proxy is an HTTP proxy's URL, which may hold a user name and a password. What
	// the proxy reaches is then the proxy's to guard; the way to it is guarded here.
	Proxy setting.Secret `yaml:"proxy"`
	// AllowHTTP permits a plain http: URL.
	AllowHTTP bool `yaml:"allow_http"`
	// AllowLoopback permits addresses of this machine.
	AllowLoopback bool `yaml:"allow_loopback"`
	// AllowCIDRs permits further address ranges that are refused by default, such as 10.0.0.0/8, with all their ports.
	AllowCIDRs []string `yaml:"allow_cidrs"`
	// AllowPorts permits ports below 1024 of public addresses beside 443 (and 80 with allow_http).
	AllowPorts []int `yaml:"allow_ports"`
}

// Mode is how a CloudEvent is written into a request.
type Mode string

// The modes of the CloudEvents HTTP binding.
const (
	Binary     Mode = "binary"
	Structured Mode = "structured"
	Batch      Mode = "batch"
)

const (
	defaultTimeout     = 30 * time.Second
	maxTimeout         = 10 * time.Minute
	defaultConnect     = 5 * time.Second
	defaultConcurrency = 64
	maxConcurrency     = 10_000
	defaultDisable     = 120 * time.Hour
)

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.Mode == "" {
		o.Mode = Binary
	}
	if o.Mode == Batch {
		var b endpoint.Batch
		if o.Batch != nil {
			b = *o.Batch
		}
		b = b.WithDefaults()
		o.Batch = &b
	}
	if o.Handshake != nil && o.Handshake.Revalidate == 0 {
		h := *o.Handshake
		h.Revalidate = defaultRevalidate
		o.Handshake = &h
	}
	for _, d := range []struct {
		at      *time.Duration
		instead time.Duration
	}{{&o.Timeout, defaultTimeout}, {&o.ConnectTimeout, defaultConnect}, {&o.TLSTimeout, defaultConnect}, {&o.DisableAfter, defaultDisable}} {
		if *d.at == 0 {
			*d.at = d.instead
		}
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	return o
}

// allKeys are secrets and keys as one list.
func (o Options) allKeys() []Key {
	keys := make([]Key, 0, len(o.Secrets)+len(o.Keys))
	for _, s := range o.Secrets {
		keys = append(keys, Key{Secret: s})
	}
	return append(keys, o.Keys...)
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() []error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: "webhook." + path, Message: fmt.Sprintf(format, args...)})
	}
	if wrong := checkURL(o.URL, o.AllowHTTP); wrong != "" {
		bad("url", "%s", wrong)
	}
	for i, s := range o.Secrets {
		if _, err := parseKey(Key{Secret: s}); err != nil {
			bad(fmt.Sprintf("secrets[%d]", i), "%v", err)
		}
	}
	for i, k := range o.Keys {
		if _, err := parseKey(k); err != nil {
			bad(fmt.Sprintf("keys[%d]", i), "%v", err)
		}
	}
	if n := len(o.Secrets) + len(o.Keys); n > maxKeys {
		bad("keys", "%d keys are too many: at most %d sign one request", n, maxKeys)
	}
	switch o.Mode {
	case "", Binary, Structured:
		if o.Batch != nil {
			bad("batch", "batches are sent only with mode: batch")
		}
	case Batch:
		if o.Batch != nil {
			o.Batch.Validate(func(path, format string, args ...any) { bad("batch."+path, format, args...) })
		}
	default:
		bad("mode", "%q is not offered: use binary, structured or batch", o.Mode)
	}
	if o.View != "" && o.View != ViewRaw && o.View != ViewJSON {
		bad("view", "%q is not offered: use raw or json", o.View)
	}
	if o.Handshake != nil {
		o.Handshake.validate(bad)
	}
	if _, err := o.Outcomes.compile(); err != nil {
		bad("outcomes", "%v", err)
	}
	for _, d := range []struct {
		name string
		is   time.Duration
	}{{"timeout", o.Timeout}, {"connect_timeout", o.ConnectTimeout}, {"tls_timeout", o.TLSTimeout}} {
		if d.is < 0 || d.is > maxTimeout {
			bad(d.name, "%s is out of range: at most %s", d.is, maxTimeout)
		}
	}
	if o.Concurrency < 0 || o.Concurrency > maxConcurrency {
		bad("concurrency", "%d is out of range: 1 to %d", o.Concurrency, maxConcurrency)
	}
	if o.RequestsPerSecond < 0 || o.RequestsPerSecond > 1e6 {
		bad("requests_per_second", "%g is out of range: at most 1000000", o.RequestsPerSecond)
	}
	o.validateAccess(bad)
	return errs
}

// validateAccess checks what says where requests go and with which credentials.
func (o Options) validateAccess(bad func(path, format string, args ...any)) {
	for name, value := range o.Headers {
		if !legalHeader(name) {
			bad("headers", "%q may not be set: it is the gateway's own or not a header's name", name)
		}
		if strings.ContainsAny(value.Reveal(), "\r\n\x00") {
			bad("headers", "the value of %s has a line break in it", name)
		}
		if o.Auth != nil && strings.EqualFold(name, "Authorization") {
			bad("headers", "Authorization is there twice: auth sets it too")
		}
	}
	if o.Auth != nil {
		o.Auth.validate(o.AllowHTTP, bad)
	}
	if o.TLS != nil {
		if _, err := o.TLS.Open(); err != nil {
			bad("tls", "%v", err)
		}
	}
	if !o.Proxy.IsZero() {
		if u, err := url.Parse(o.Proxy.Reveal()); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			bad("proxy", "it is no URL of an HTTP proxy such as http://proxy.example.com:3128")
		}
	}
	for i, c := range o.AllowCIDRs {
		if _, err := netip.ParsePrefix(c); err != nil {
			bad(fmt.Sprintf("allow_cidrs[%d]", i), "%q is not an address range such as 10.0.0.0/8", c)
		}
	}
	for i, p := range o.AllowPorts {
		if p < 1 || p > 65535 {
			bad(fmt.Sprintf("allow_ports[%d]", i), "%d is no port", p)
		}
	}
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
