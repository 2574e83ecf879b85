package webhook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
)

// Handshake asks the endpoint for its consent before anything is sent to it
// (CloudEvents webhook specification 1.0, section 4: abuse protection).
type Handshake struct {
	// Origin is the DNS name the gateway is known by, such as events.example.com.
	Origin string `yaml:"origin"`
	// RequestRate is how many requests a minute are asked for. Default: none is named,
	// and the endpoint need not name one. What it allows is never exceeded.
	RequestRate int `yaml:"request_rate"`
	// Revalidate is how often consent is asked for again, 1m to 30 days. Default 24h.
	Revalidate time.Duration `yaml:"revalidate"`
	// Callback offers the endpoint a URL at which it, or a person who finds it in a log,
	// may consent later (webhooks.callback_url says where that is).
	Callback bool `yaml:"callback"`
}

const (
	defaultRevalidate = 24 * time.Hour
	minRevalidate     = time.Minute
	maxRevalidate     = 30 * 24 * time.Hour
)

func (h *Handshake) validate(bad func(path, format string, args ...any)) {
	if h.Origin == "" || len(h.Origin) > 253 || strings.Trim(strings.ToLower(h.Origin), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		bad("handshake.origin", "%q is no DNS name such as events.example.com", h.Origin)
	}
	if h.RequestRate < 0 || h.RequestRate > 1_000_000_000 {
		bad("handshake.request_rate", "%d is out of range", h.RequestRate)
	}
	if h.Revalidate != 0 && (h.Revalidate < minRevalidate || h.Revalidate > maxRevalidate) {
		bad("handshake.revalidate", "%s is out of range: %s to %s", h.Revalidate, minRevalidate, maxRevalidate)
	}
}

// consenting is a carrier whose endpoint must consent.
type consenting struct{ *carrier }

// Consent asks. The status of the answer says nothing: what counts is what the
// endpoint allows.
func (c consenting) Consent(ctx context.Context, key string) (endpoint.Consent, error) {
	header := http.Header{"User-Agent": userAgent, "Webhook-Request-Origin": {c.options.Handshake.Origin}}
	if n := c.options.Handshake.RequestRate; n > 0 {
		header["Webhook-Request-Rate"] = []string{strconv.Itoa(n)}
	}
	if key != "" {
		header["Webhook-Request-Callback"] = []string{c.callback + "?key=" + key}
	}
	for name, value := range c.static {
		header[name] = value
	}
	if err := c.auth.authorize(ctx, header, time.Now()); err != nil {
		return endpoint.Consent{}, err
	}
	r := c.request(ctx, nil, header)
	r.Method = http.MethodOptions
	answer, err := c.roundTrip(r)
	if err != nil {
		return endpoint.Consent{}, fmt.Errorf("%s", c.verdicts.failure(err).Why)
	}
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer) // so that the connection can be used again
	_ = answer.Body.Close()
	return readConsent(answer.Header, c.options.Handshake, key != ""), nil
}

// readConsent reads what an endpoint allows. Origins are compared whole:
// receivers and senders that compared beginnings have let strangers in. One that
// chooses the callback withholds the headers.
func readConsent(h http.Header, asked *Handshake, callback bool) endpoint.Consent {
	origin, rate := h.Values("Webhook-Allowed-Origin"), h.Values("Webhook-Allowed-Rate")
	if callback && len(origin)+len(rate) == 0 {
		return endpoint.Consent{Pending: true, Why: "the endpoint's answer to OPTIONS does not say yes, and nobody has called the callback that it names yet"}
	}
	if len(origin) != 1 || origin[0] != "*" && !strings.EqualFold(origin[0], asked.Origin) {
		return endpoint.Consent{Why: "the endpoint does not consent: its answer to OPTIONS has no WebHook-Allowed-Origin of " + asked.Origin}
	}
	if len(rate) == 0 && asked.RequestRate == 0 {
		return endpoint.Consent{Granted: true}
	}
	if n, ok := ParseRate(rate); ok {
		return endpoint.Consent{Granted: true, PerMinute: n}
	}
	return endpoint.Consent{Why: "the endpoint does not consent: its answer to OPTIONS has no WebHook-Allowed-Rate of a whole number or *"}
}

// ParseRate reads WebHook-Allowed-Rate: a positive number of requests a minute, or
// an asterisk for any number, which is 0.
func ParseRate(values []string) (perMinute int, ok bool) {
	if len(values) != 1 {
		return 0, false
	}
	if values[0] == "*" {
		return 0, true
	}
	n, err := strconv.Atoi(values[0])
	return n, err == nil && n > 0
}

// target names what a consent is for: this origin may send to this URL.
func (o Options) target() string {
	sum := sha256.Sum256([]byte(o.URL + "\x00" + strings.ToLower(o.Handshake.Origin)))
	return hex.EncodeToString(sum[:8])
}
