package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/internal/setting"
)

// Environment is what a webhook works with that nobody configures for it alone.
type Environment struct {
	Log    *slog.Logger
	Tracer trace.Tracer
	// TracerFor is endpoint.Environment's.
	TracerFor func(parent trace.SpanContext) trace.Tracer
	Meter     metric.Meter
	// Dial opens connections; nil is net.Dialer. Either is behind the guard. Tests pass a virtual network.
	Dial Dial
	// View shows a record as JSON, for endpoints with view: json.
	View endpoint.View
	// Retry is the subscription's policy: no pause is shorter than what it says.
	Retry delivery.Retry
	// Identity signs for endpoints that ask for the gateway's own keys; nil has none.
	Identity *Identity
	// Callback is the URL of the endpoint's callback without its key; "" offers none.
	Callback string
	// Deny are ranges that no endpoint may be in, whatever it allows itself.
	Deny []netip.Prefix
	// The rest is endpoint.Environment's.
	Hosts    *endpoint.Hosts
	Attempts endpoint.AttemptLog
	States   endpoint.StateLog
	Notices  endpoint.NoticeLog
	Instance string
}

// carrier makes the HTTP requests of one endpoint.
type carrier struct {
	options   Options
	url       *url.URL
	keys      []signingKey
	verdicts  *verdicts
	static    map[string][]string // configured headers, and nobody writes to them
	name      []string            // the subscription, as a header's value
	auth      *authorizer
	files     *Certificates
	dial      Dial
	transport atomic.Pointer[http.Transport] // replaced when the files change
	template  *http.Request                  // of each request, but for its headers and its body
	exchanges exchanges
	callback  string
	scrub     *setting.Scrubber // of what the endpoint says back
}

// New makes the pusher of a webhook of valid options.
func New(subscription string, o Options, env Environment) (*endpoint.Pusher, error) {
	o = o.WithDefaults()
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, err
	}
	c, err := newCarrier(subscription, o, env)
	if err != nil {
		return nil, err
	}
	settings := endpoint.Options{
		Subscription: subscription, Host: HostOf(c.url), Timeout: o.Timeout, Concurrency: o.Concurrency, Rate: o.RequestsPerSecond,
		DisableAfter: o.DisableAfter, Retry: env.Retry,
	}
	if o.Mode == Batch {
		settings.Batch = *o.Batch
	}
	if o.View == ViewJSON {
		settings.View = env.View
	}
	var carries endpoint.Carrier = c
	if o.Handshake != nil {
		carries, settings.Revalidate, settings.Target = consenting{c}, o.Handshake.Revalidate, o.target()
		settings.Callback, settings.AskedRate = o.Handshake.Callback, o.Handshake.RequestRate
		if settings.Callback && env.Callback == "" {
			return nil, errors.New("handshake.callback: the gateway does not say where it is reached: set webhooks.callback_url")
		}
	}
	return endpoint.New(settings, carries, endpoint.Environment{
		Log: env.Log, Tracer: env.Tracer, TracerFor: env.TracerFor, Meter: env.Meter, Hosts: env.Hosts, Attempts: env.Attempts, States: env.States, Notices: env.Notices, Instance: env.Instance,
	}), nil
}

func newCarrier(subscription string, o Options, env Environment) (*carrier, error) {
	g, err := newGuard(o, env.Deny)
	if err != nil {
		return nil, err
	}
	c := &carrier{options: o, static: map[string][]string{}, name: []string{subscription}, callback: env.Callback}
	if c.url, err = url.Parse(o.URL); err != nil {
		return nil, fmt.Errorf("webhook.url: %w", err)
	}
	c.template = &http.Request{Method: http.MethodPost, URL: c.url, Host: c.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
	if c.verdicts, err = o.Outcomes.compile(); err != nil {
		return nil, err
	}
	for name, value := range o.Headers {
		c.static[http.CanonicalHeaderKey(name)] = []string{value.Reveal()}
	}
	if err := c.takeKeys(subscription, env.Identity); err != nil {
		return nil, err
	}
	if c.files, err = o.TLS.Open(); err != nil {
		return nil, err
	}
	now := time.Now()
	c.dial = g.dialer(o.ConnectTimeout, env.Dial)
	c.transport.Store(newTransport(o, c.dial, c.files.Config(now)))
	if o.Auth != nil && o.Auth.JWT != nil {
		if _, err := env.Identity.mint("", "", minTokenLife, now); err != nil {
			return nil, fmt.Errorf("auth.jwt: %w", err)
		}
	}
	c.scrub = o.scrubber()
	c.auth = newAuthorizer(subscription, o.Auth, env.Identity, roundTripper(c.roundTrip))
	return c, nil
}

// takeKeys gathers the keys that sign for the endpoint.
func (c *carrier) takeKeys(subscription string, identity *Identity) error {
	for _, k := range c.options.allKeys() {
		key, err := parseKey(k)
		if err != nil {
			return err
		}
		c.keys = append(c.keys, key)
	}
	identity.publish(subscription, c.keys)
	if c.options.Asymmetric {
		if identity == nil || len(identity.keys) == 0 {
			return errors.New("asymmetric: the gateway has no keys: set webhooks.signing_keys")
		}
		c.keys = append(c.keys, identity.keys...)
	}
	return nil
}

func newTransport(o Options, dial Dial, config *tls.Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	t := &http.Transport{
		Proxy:       nil, // a proxy from the environment would decide where requests go
		DialContext: dial, TLSHandshakeTimeout: o.TLSTimeout, TLSClientConfig: config,
		MaxIdleConnsPerHost: o.Concurrency, MaxConnsPerHost: o.Concurrency, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: maxAnswer, DisableCompression: true, // a compressed answer is not unpacked: it could be a bomb
		Protocols: protocols,
	}
	if !o.Proxy.IsZero() {
		if u, err := url.Parse(o.Proxy.Reveal()); err == nil { // Validate has parsed it
			t.Proxy = http.ProxyURL(u)
		}
	}
	return t
}

// idleTimeout is how long a connection is kept that nothing is sent on.
const idleTimeout = 90 * time.Second

// HostOf is the URL's host and port: the one all endpoints there share.
func HostOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Close lets go of connections and of what fetches tokens.
func (c *carrier) Close() {
	c.auth.close()
	c.transport.Load().CloseIdleConnections()
}

// roundTrip makes a request, of the endpoint's or of its token endpoint's.
// Certificates that have changed are used from the next handshake on, and the
// connections made with the old ones for nothing new.
func (c *carrier) roundTrip(r *http.Request) (*http.Response, error) {
	if now := time.Now(); c.files.changed(now) {
		c.transport.Swap(newTransport(c.options, c.dial, c.files.Config(now))).CloseIdleConnections()
	}
	return c.transport.Load().RoundTrip(r)
}

// roundTripper is a function that is an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip makes a request.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Carry makes one request. Options.Timeout bounds all of it; of ctx it takes the
// span alone.
func (c *carrier) Carry(ctx context.Context, p *endpoint.Parcel) (answer endpoint.Answer) {
	x := c.exchanges.take(c.options.Timeout)
	defer func() {
		answer.Timings = x.times()
		c.exchanges.giveBack(x)
	}()
	body, keys, err := c.write(p, x.header, x.began)
	answer.Keys = keys
	if err != nil {
		answer.Outcome = endpoint.Outcome{Action: endpoint.Retry, Class: "key", Why: err.Error()}
		return answer
	}
	if err := c.auth.authorize(x, x.header, x.began); err != nil {
		answer.Outcome = c.verdicts.failure(err)
		return answer
	}
	if trace.SpanContextFromContext(ctx).IsValid() {
		otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(x.header))
	}
	response, err := c.roundTrip(c.request(x, body, x.header))
	if err != nil {
		answer.Outcome = c.verdicts.failure(err)
		return answer
	}
	return c.read(response, &answer, x.cancel, len(p.Records), x.header)
}

// successPatience bounds the reading of a success's body: the status has said
// everything, and the rest is read only so that the connection can be used again.
const successPatience = time.Second

// read reads an answer and what it means. Endpoints that say back what they were
// sent are common: none of it that is secret is kept.
func (c *carrier) read(response *http.Response, answer *endpoint.Answer, cancel func(), events int, sent http.Header) endpoint.Answer {
	success := response.StatusCode >= 200 && response.StatusCode < 300
	var text []byte
	if response.ContentLength != 0 {
		if success && response.StatusCode != http.StatusMultiStatus {
			impatient := time.AfterFunc(successPatience, cancel)
			_, _ = io.CopyN(io.Discard, response.Body, maxAnswer) // an answer that breaks off is an answer
			impatient.Stop()
		} else {
			text, _ = io.ReadAll(io.LimitReader(response.Body, maxAnswer)) // what came before an error is what there is
		}
	}
	_ = response.Body.Close() // nothing more is read of it
	now := time.Now()
	answer.Status = response.StatusCode
	if !success {
		answer.Excerpt = endpoint.Excerpt(c.scrub.Text(text, tokenOf(sent)))
	}
	answer.Outcome = c.verdicts.judge(response.StatusCode, response.Header.Get("Retry-After"), answer.Excerpt, now)
	answer.Each = c.resultsOf(response.StatusCode, text, events, now)
	if events > 1 && answer.Action == endpoint.Reject {
		// Refused as a whole: which of them is to blame, the answer does not say.
		answer.Action = endpoint.Split
	}
	c.auth.refused(response.StatusCode, now)
	return *answer
}
