package webhook

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// Auth is how the gateway proves itself to an endpoint, in the Authorization
// header: one of these. (A certificate is tls; other headers are headers.)
type Auth struct {
	// Basic sends a user name and a password.
	Basic *Basic `yaml:"basic"`
	// Bearer sends a token as it is.
	Bearer setting.Secret `yaml:"bearer"`
	// OAuth2 fetches tokens with the client credentials grant.
	OAuth2 *OAuth2 `yaml:"oauth2"`
	// JWT sends a token that the gateway mints and signs; its keys are at /.well-known/jwks.json.
	JWT *JWT `yaml:"jwt"`
}

// Basic is HTTP's basic authentication (RFC 7617).
type Basic struct {
	Username string         `yaml:"username"`
	Password setting.Secret `yaml:"password"`
}

// JWT says what a minted token says.
type JWT struct {
	// Audience the token is for.
	Audience string `yaml:"audience"`
	// Subject of the token. Default: the subscription.
	Subject string `yaml:"subject"`
	// Lifetime of a token, 1m to 24h. Default 5m. A new one is minted when four fifths are over.
	Lifetime time.Duration `yaml:"lifetime"`
}

const (
	defaultTokenLife = 5 * time.Minute
	minTokenLife     = time.Minute
	maxTokenLife     = 24 * time.Hour
)

func (a *Auth) validate(allowHTTP bool, bad func(path, format string, args ...any)) {
	ways := 0
	if a.Basic != nil {
		ways++
		if a.Basic.Username == "" || strings.ContainsAny(a.Basic.Username, ":\r\n\x00") {
			bad("auth.basic.username", "a user name is needed, and has no colon or line break in it")
		}
	}
	if !a.Bearer.IsZero() {
		ways++
		if strings.ContainsAny(a.Bearer.Reveal(), " \r\n\x00") {
			bad("auth.bearer", "the token has a space or line break in it")
		}
	}
	if a.OAuth2 != nil {
		ways++
		a.OAuth2.validate(allowHTTP, bad)
	}
	if a.JWT != nil {
		ways++
		if a.JWT.Audience == "" {
			bad("auth.jwt.audience", "a token is for somebody: name the audience the endpoint expects")
		}
		if l := a.JWT.Lifetime; l != 0 && (l < minTokenLife || l > maxTokenLife) {
			bad("auth.jwt.lifetime", "%s is out of range: %s to %s", l, minTokenLife, maxTokenLife)
		}
	}
	if ways != 1 {
		bad("auth", "use one of basic, bearer, oauth2 and jwt, not %d", ways)
	}
}

// authError is credentials that could not be had. It never quotes them.
type authError struct{ why string }

func (e *authError) Error() string { return e.why }

// authorizer puts the Authorization header into requests.
type authorizer struct {
	fixed  []string // basic, bearer
	tokens *tokens  // oauth2, jwt
}

// newAuthorizer makes it of valid options; nil without any.
func newAuthorizer(subscription string, a *Auth, identity *Identity, client http.RoundTripper) *authorizer {
	switch {
	case a == nil:
		return nil
	case a.Basic != nil:
		pair := a.Basic.Username + ":" + a.Basic.Password.Reveal()
		return &authorizer{fixed: []string{"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}
	case !a.Bearer.IsZero():
		return &authorizer{fixed: []string{"Bearer " + a.Bearer.Reveal()}}
	case a.JWT != nil:
		life, subject := a.JWT.Lifetime, a.JWT.Subject
		if life == 0 {
			life = defaultTokenLife
		}
		if subject == "" {
			subject = subscription
		}
		return &authorizer{tokens: newTokens(func(context.Context) (string, time.Duration, error) {
			text, err := identity.mint(subject, a.JWT.Audience, life, time.Now())
			return text, life, err
		})}
	}
	return &authorizer{tokens: newTokens(a.OAuth2.fetcher(client))}
}

func (a *authorizer) authorize(ctx context.Context, header http.Header, now time.Time) error {
	if a == nil {
		return nil
	}
	if a.fixed != nil {
		header["Authorization"] = a.fixed
		return nil
	}
	text, err := a.tokens.get(ctx, now)
	if err != nil {
		return &authError{"the endpoint's credentials could not be had: " + err.Error()}
	}
	header["Authorization"] = []string{"Bearer " + text}
	return nil
}

// refused notes that the endpoint did not take the credentials: a token that was
// revoked is fetched anew for the next attempt.
func (a *authorizer) refused(status int, now time.Time) {
	if a != nil && a.tokens != nil && status == http.StatusUnauthorized {
		a.tokens.drop(now)
	}
}

func (a *authorizer) close() {
	if a != nil && a.tokens != nil {
		a.tokens.close()
	}
}

// tokenOf gives what follows the scheme in an Authorization header.
func tokenOf(header http.Header) string {
	_, token, _ := strings.Cut(header.Get("Authorization"), " ")
	return token
}

// scrubber hides o's secrets in what the endpoint answers.
func (o Options) scrubber() *setting.Scrubber {
	var all []string
	for _, k := range o.allKeys() {
		all = append(all, k.Secret.Reveal())
		if _, key, ok := strings.Cut(k.Secret.Reveal(), "_"); ok {
			all = append(all, key)
		}
	}
	for _, value := range o.Headers {
		all = append(all, value.Reveal())
	}
	if a := o.Auth; a != nil {
		all = append(all, a.Bearer.Reveal())
		if a.Basic != nil {
			all = append(all, a.Basic.Password.Reveal())
		}
		if a.OAuth2 != nil {
			all = append(all, a.OAuth2.ClientSecret.Reveal())
		}
	}
	if u, err := url.Parse(o.Proxy.Reveal()); err == nil && u.User != nil {
		password, _ := u.User.Password()
		all = append(all, password, base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	return setting.NewScrubber(all...)
}

// checkURL says what is wrong with a URL the gateway is to call; "" is nothing.
func checkURL(text string, allowHTTP bool) string {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return "a URL is needed"
	case err != nil || u.Hostname() == "":
		return "the URL cannot be read: write https://host/path"
	case u.Scheme != "https" && u.Scheme != "http":
		return "the URL's scheme is not offered: use https"
	case u.Scheme == "http" && !allowHTTP:
		return "plain http sends everything readable by everyone on the way: use https, or say allow_http: true"
	case u.User != nil:
		return "a user name or password does not belong in the URL: use auth"
	case strings.Contains(u.Hostname(), "%"):
		return "an address with a zone is not allowed"
	case u.Fragment != "":
		return "a fragment (#...) is never sent: remove it"
	}
	return ""
}
