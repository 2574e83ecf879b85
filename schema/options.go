package schema

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// Options of the schema registry: one that speaks Confluent's API (Confluent's
// own, Apicurio's ccompat, Karapace, Redpanda).
type Options struct {
	// URLs of the registry, tried in turn: https://registry-1:8081. Default none: no topic can have a schema rule.
	URLs []string `yaml:"urls"`
	// Context is the registry's context (Confluent) or group (Apicurio) all subjects are in. Default the registry's default.
	Context string `yaml:"context"`
	// Timeout bounds one request to one of the URLs. Default 5s.
	Timeout time.Duration `yaml:"timeout"`
	// LatestTTL is how long the latest version of a subject is taken as known; a newer one is seen after it. Default 30s.
	LatestTTL time.Duration `yaml:"latest_ttl"`
	// Basic authentication.
	Basic *Basic `yaml:"basic"`
	// BearerToken is sent as it is.
	BearerToken setting.Secret `yaml:"bearer_token"`
	// OAuth fetches tokens by client credentials (RFC 6749, section 4.4).
	OAuth *OAuth `yaml:"oauth"`
	// TLS towards the registry.
	TLS *TLS `yaml:"tls"`
	// Headers are sent with each request, such as Target-Sr-Cluster.
	Headers map[string]setting.Secret `yaml:"headers"`
}

// Basic authentication.
type Basic struct {
	Username string         `yaml:"username"`
	Password setting.Secret `yaml:"password"`
}

// OAuth client credentials.
type OAuth struct {
	TokenURL     string         `yaml:"token_url"`
	ClientID     string         `yaml:"client_id"`
	ClientSecret setting.Secret `yaml:"client_secret"`
	Scopes       []string       `yaml:"scopes"`
}

// TLS settings towards the registry.
type TLS = setting.ClientTLS

const (
	defaultTimeout   = 5 * time.Second
	defaultLatestTTL = 30 * time.Second
)

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.LatestTTL == 0 {
		o.LatestTTL = defaultLatestTTL
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	var faults setting.Faults
	for i, u := range o.URLs {
		at := fmt.Sprintf("urls[%d]", i)
		switch parsed, err := url.Parse(u); {
		case err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https":
			faults.Add(at, "this is not an address such as https://registry:8081")
		case parsed.User != nil:
			faults.Add(at, "a user name or password does not belong in the URL: use basic: {username, password}")
		case parsed.RawQuery != "" || parsed.Fragment != "":
			faults.Add(at, "the address ends with its path")
		}
	}
	if strings.ContainsAny(o.Context, "/:") {
		faults.Add("context", "%q is a context's name without : and /", o.Context)
	}
	if o.Timeout < 0 || o.Timeout > time.Minute {
		faults.Add("timeout", "%s is out of range: at most 1m", o.Timeout)
	}
	if o.LatestTTL < 0 {
		faults.Add("latest_ttl", "it cannot be negative")
	}
	ways := 0
	if o.Basic != nil {
		if ways++; o.Basic.Username == "" {
			faults.Add("basic.username", "a user name is needed")
		}
	}
	if !o.BearerToken.IsZero() {
		ways++
	}
	if o.OAuth != nil {
		ways++
		if parsed, err := url.Parse(o.OAuth.TokenURL); err != nil || parsed.Host == "" {
			faults.Add("oauth.token_url", "the address that gives tokens is needed")
		}
		if o.OAuth.ClientID == "" || o.OAuth.ClientSecret.IsZero() {
			faults.Add("oauth.client_id", "client_id and client_secret are needed")
		}
	}
	if ways > 1 {
		faults.Add("basic", "give one of basic, bearer_token and oauth")
	}
	if o.TLS != nil {
		if (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
			faults.Add("tls.cert_file", "cert_file and key_file go together")
		} else if _, err := o.TLS.Config(); err != nil {
			faults.Add("tls", "%v", err)
		}
	}
	for name, value := range o.Headers {
		if name == "" || strings.ContainsAny(name, " :\r\n") || strings.ContainsAny(value.Reveal(), "\r\n\x00") {
			faults.Add("headers", "%q is not a header that can be sent", name)
		}
	}
	return faults.Err()
}
