package webhook

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

// Settings are what all webhooks of a gateway share.
type Settings struct {
	// Issuer names the gateway in the tokens it mints: the https URL under which
	// receivers find /.well-known/jwks.json and /.well-known/openid-configuration.
	Issuer string `yaml:"issuer"`
	// SigningKeys (whsk_...) sign v1a for endpoints that ask for it with asymmetric,
	// and tokens; several are valid side by side during a rotation.
	SigningKeys []Key `yaml:"signing_keys"`
	// RequestsPerHost bounds the requests under way to one host over all endpoints. Default 256.
	RequestsPerHost int `yaml:"requests_per_host"`
	// DenyCIDRs are address ranges that no webhook may reach, whatever it allows itself: your own public ones, a NAT64 prefix.
	DenyCIDRs []string `yaml:"deny_cidrs"`
	// CallbackURL is the URL under which endpoints reach this gateway's HTTP listener, or
	// one of its fleet, for callbacks (handshake.callback): https://events.example.com.
	CallbackURL string `yaml:"callback_url"`
	// LogAttempts says which attempts the topic <topics_prefix>attempts keeps: all (default), failures or none.
	LogAttempts string `yaml:"log_attempts"`
	// EventsTopic takes operational events as CloudEvents, for any subscription to read. Default "postern.events".
	EventsTopic string `yaml:"events_topic"`
}

// WithDefaults returns s with empty settings filled in.
func (s Settings) WithDefaults() Settings {
	if s.RequestsPerHost == 0 {
		s.RequestsPerHost = 256
	}
	if s.LogAttempts == "" {
		s.LogAttempts = "all"
	}
	if s.EventsTopic == "" {
		s.EventsTopic = "postern.events"
	}
	return s
}

// Callback is the URL of a subscription's callback without its key; "" where the
// gateway does not say where it is reached.
func (s Settings) Callback(subscription string) string {
	if s.CallbackURL == "" {
		return ""
	}
	return strings.TrimSuffix(s.CallbackURL, "/") + "/v1/endpoints/" + url.PathEscape(subscription) + "/consent"
}

// Deny is DenyCIDRs of valid settings, parsed.
func (s Settings) Deny() []netip.Prefix {
	var denied []netip.Prefix
	for _, c := range s.DenyCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			denied = append(denied, p.Masked())
		}
	}
	return denied
}

// Validate reports everything wrong with s, each as a *setting.Error.
func (s Settings) Validate() error {
	var f setting.Faults
	if s.Issuer != "" {
		if u, err := url.Parse(s.Issuer); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			f.Add("issuer", "it is the URL under which receivers reach this gateway, such as https://events.example.com")
		}
	}
	if s.CallbackURL != "" {
		if u, err := url.Parse(s.CallbackURL); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			f.Add("callback_url", "it is the URL under which endpoints reach this gateway, such as https://events.example.com")
		}
	}
	if len(s.SigningKeys) > maxKeys {
		f.Add("signing_keys", "at most %d keys", maxKeys)
	}
	for i, k := range s.SigningKeys {
		if _, err := privateKey(k.Secret); err != nil {
			f.Add(fmt.Sprintf("signing_keys[%d].secret", i), "%v", err)
		} else if _, err := parseKey(k); err != nil {
			f.Add(fmt.Sprintf("signing_keys[%d].not_after", i), "%v", err)
		}
	}
	if s.RequestsPerHost < 0 || s.RequestsPerHost > 100_000 {
		f.Add("requests_per_host", "%d is out of range: 1 to 100000", s.RequestsPerHost)
	}
	for i, c := range s.DenyCIDRs {
		if _, err := netip.ParsePrefix(c); err != nil {
			f.Add(fmt.Sprintf("deny_cidrs[%d]", i), "%q is not an address range such as 203.0.113.0/24", c)
		}
	}
	if s.EventsTopic != "" {
		if _, err := event.ParseTopic(s.EventsTopic); err != nil {
			f.Add("events_topic", "%v", err)
		}
	}
	if l := s.LogAttempts; l != "" && l != "all" && l != "failures" && l != "none" {
		f.Add("log_attempts", "%q is not offered: use all, failures or none", l)
	}
	return f.Err()
}

// ValidateFor reports what an endpoint asks for that the gateway's settings lack.
func (s Settings) ValidateFor(o Options) error {
	var f setting.Faults
	if o.Asymmetric && len(s.SigningKeys) == 0 {
		f.Add("webhook.asymmetric", "the gateway has no keys to sign with: set webhooks.signing_keys")
	}
	if o.Handshake != nil && o.Handshake.Callback && s.CallbackURL == "" {
		f.Add("webhook.handshake.callback", "the gateway does not say where it is reached: set webhooks.callback_url")
	}
	if o.Auth != nil && o.Auth.JWT != nil && (len(s.SigningKeys) == 0 || s.Issuer == "") {
		f.Add("webhook.auth.jwt", "the gateway cannot mint tokens: set webhooks.issuer and webhooks.signing_keys")
	}
	return f.Err()
}

// Identity is who the gateway is towards receivers: its name and its keys. It
// also knows the public keys of endpoints that have a whsk_ key of their own, so
// that one JWKS lists all.
type Identity struct {
	issuer string
	keys   []signingKey

	mu     sync.Mutex
	others map[string][]signingKey // by subscription
}

// NewIdentity makes it of valid settings.
func NewIdentity(s Settings) (*Identity, error) {
	id := &Identity{issuer: strings.TrimSuffix(s.Issuer, "/"), others: map[string][]signingKey{}}
	for _, k := range s.SigningKeys {
		key, err := parseKey(k)
		if err != nil {
			return nil, err
		}
		id.keys = append(id.keys, key)
	}
	return id, nil
}

// publish has the public halves of an endpoint's own keys listed.
func (id *Identity) publish(subscription string, keys []signingKey) {
	if id == nil {
		return
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.others[subscription] = keys
}

// JWKS is the document for /.well-known/jwks.json.
func (id *Identity) JWKS(now time.Time) []byte {
	id.mu.Lock()
	defer id.mu.Unlock()
	keys := append([]signingKey(nil), id.keys...)
	for _, more := range id.others {
		keys = append(keys, more...)
	}
	return jwks(keys, now)
}

// Discovery is the document for /.well-known/openid-configuration: where the
// keys of the issuer are. nil without an issuer.
func (id *Identity) Discovery() []byte {
	if id.issuer == "" {
		return nil
	}
	b, _ := json.Marshal(map[string]any{ // strings only
		"issuer": id.issuer, "jwks_uri": id.issuer + "/.well-known/jwks.json",
		"id_token_signing_alg_values_supported": []string{"EdDSA"}, "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
	})
	return b
}

// mint signs a token (RFC 7519) with the newest key that is valid.
func (id *Identity) mint(subject, audience string, life time.Duration, now time.Time) (string, error) {
	if id == nil || id.issuer == "" {
		return "", errors.New("the gateway has no name to put into tokens: set webhooks.issuer")
	}
	var key *signingKey
	for i := range id.keys {
		if k := &id.keys[i]; k.live(now) && (key == nil || k.from.After(key.from)) {
			key = k
		}
	}
	if key == nil {
		return "", errors.New("the gateway has no key that is valid now: see webhooks.signing_keys")
	}
	header, _ := json.Marshal(map[string]string{"alg": "EdDSA", "typ": "JWT", "kid": key.name})
	claims, _ := json.Marshal(map[string]any{ // strings and numbers only
		"iss": id.issuer, "sub": subject, "aud": audience, "iat": now.Unix(), "exp": now.Add(life).Unix(), "jti": rand.Text(),
	})
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key.private, []byte(text))), nil
}

// GenerateSecret makes a whsec_ secret of 32 random bytes.
func GenerateSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return secretPrefix + base64.StdEncoding.EncodeToString(b)
}

// GenerateKeyPair makes an ed25519 key and its public half, whsk_ and whpk_.
func GenerateKeyPair() (private, public string) {
	b := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	k := ed25519.NewKeyFromSeed(b)
	return privatePrefix + base64.StdEncoding.EncodeToString(k), publicPrefix + base64.StdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
}
