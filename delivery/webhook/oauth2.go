package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// OAuth2 is the client credentials grant (RFC 6749, section 4.4).
type OAuth2 struct {
	// TokenURL is the authorization server's token endpoint. It is reached through the same guard as the endpoint.
	TokenURL     string         `yaml:"token_url"`
	ClientID     string         `yaml:"client_id"`
	ClientSecret setting.Secret `yaml:"client_secret"`
	Scopes       []string       `yaml:"scopes"`
	// Audience is sent as the parameter audience, which some servers ask for.
	Audience string `yaml:"audience"`
	// AuthStyle says where the client's secret goes: header (default, as RFC 6749 prefers) or body.
	AuthStyle string `yaml:"auth_style"`
}

func (o *OAuth2) validate(allowHTTP bool, bad func(path, format string, args ...any)) {
	if wrong := checkURL(o.TokenURL, allowHTTP); wrong != "" {
		bad("auth.oauth2.token_url", "%s", wrong)
	}
	if o.ClientID == "" {
		bad("auth.oauth2.client_id", "a client id is needed")
	}
	if o.ClientSecret.IsZero() {
		bad("auth.oauth2.client_secret", "a client secret is needed")
	}
	if s := o.AuthStyle; s != "" && s != "header" && s != "body" {
		bad("auth.oauth2.auth_style", "%q is not offered: use header or body", s)
	}
}

const (
	maxTokenAnswer = 64 << 10
	maxToken       = 16 << 10 // longer does not fit into servers' header limits
	fetchTimeout   = 15 * time.Second
	// unknownLife is what a token is worth whose server does not say.
	unknownLife = 5 * time.Minute
	// fetchPause is the shortest wait after a fetch that failed: events that wait
	// for a token fail by that one meanwhile.
	fetchPause = time.Second
)

// fetcher asks the token endpoint. What it answers to a refusal is not quoted,
// but for the error code, which has no room for a secret: servers have been seen
// to send back what they were sent.
func (o *OAuth2) fetcher(client http.RoundTripper) func(context.Context) (string, time.Duration, error) {
	return func(ctx context.Context) (string, time.Duration, error) {
		form := url.Values{"grant_type": {"client_credentials"}}
		if len(o.Scopes) > 0 {
			form.Set("scope", strings.Join(o.Scopes, " "))
		}
		if o.Audience != "" {
			form.Set("audience", o.Audience)
		}
		if o.AuthStyle == "body" {
			form.Set("client_id", o.ClientID)
			form.Set("client_secret", o.ClientSecret.Reveal())
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.TokenURL, strings.NewReader(form.Encode()))
		if err != nil {
			return "", 0, errors.New("the token URL cannot be used")
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Accept", "application/json")
		if o.AuthStyle != "body" {
			r.SetBasicAuth(url.QueryEscape(o.ClientID), url.QueryEscape(o.ClientSecret.Reveal()))
		}
		answer, err := client.RoundTrip(r)
		if err != nil {
			return "", 0, fmt.Errorf("the token endpoint: %w", err)
		}
		defer answer.Body.Close() //nolint:errcheck // only read
		b, err := io.ReadAll(io.LimitReader(answer.Body, maxTokenAnswer))
		if err != nil {
			return "", 0, fmt.Errorf("the token endpoint's answer broke off: %w", err)
		}
		return readToken(answer.StatusCode, b)
	}
}

// readToken reads a token endpoint's answer (RFC 6749, sections 5.1 and 5.2).
func readToken(status int, body []byte) (string, time.Duration, error) {
	var m struct {
		AccessToken string  `json:"access_token"`
		TokenType   string  `json:"token_type"`
		ExpiresIn   float64 `json:"expires_in"`
		Error       string  `json:"error"`
	}
	err := json.Unmarshal(body, &m)
	switch {
	case status != http.StatusOK && knownTokenErrors[m.Error]:
		return "", 0, fmt.Errorf("the token endpoint answered %d: %s", status, m.Error)
	case status != http.StatusOK:
		return "", 0, fmt.Errorf("the token endpoint answered %d", status)
	case err != nil:
		return "", 0, errors.New("the token endpoint's answer is not JSON")
	case m.AccessToken == "" || len(m.AccessToken) > maxToken || strings.ContainsFunc(m.AccessToken, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", 0, errors.New("the token endpoint gave no token that can be sent")
	case m.TokenType != "" && !strings.EqualFold(m.TokenType, "bearer"):
		return "", 0, errors.New("the token endpoint gave a token that is not a bearer's")
	}
	life := unknownLife
	if m.ExpiresIn > 0 {
		life = time.Duration(min(m.ExpiresIn, maxTokenLife.Seconds()) * float64(time.Second))
	}
	return m.AccessToken, life, nil
}

var knownTokenErrors = map[string]bool{
	"invalid_request": true, "invalid_client": true, "invalid_grant": true, "unauthorized_client": true,
	"unsupported_grant_type": true, "invalid_scope": true, "temporarily_unavailable": true, "server_error": true,
}

// tokens keeps a token and fetches the next one early: when four fifths of its
// life are over, while the old one still serves. However many wait, one fetch is
// under way.
type tokens struct {
	fetch func(context.Context) (string, time.Duration, error)
	done  sync.WaitGroup
	ctx   context.Context
	stop  context.CancelFunc

	mu       sync.Mutex
	text     string
	refresh  time.Time
	expires  time.Time
	err      error
	failed   time.Time     // when a fetch failed last
	fetching chan struct{} // closed when the fetch under way ends; nil: none
}

func newTokens(fetch func(context.Context) (string, time.Duration, error)) *tokens {
	t := &tokens{fetch: fetch}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

func (t *tokens) close() {
	t.stop()
	t.done.Wait()
}

// get gives a token that is valid now.
func (t *tokens) get(ctx context.Context, now time.Time) (string, error) {
	t.mu.Lock()
	if t.text != "" && now.Before(t.expires) {
		text := t.text
		if !now.Before(t.refresh) {
			t.begin(now)
		}
		t.mu.Unlock()
		return text, nil
	}
	fetching := t.begin(now)
	if fetching == nil {
		err := t.err
		t.mu.Unlock()
		return "", err
	}
	t.mu.Unlock()
	select {
	case <-fetching:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text == "" {
		return "", t.err
	}
	return t.text, nil
}

// begin starts a fetch unless one is under way, or one failed just now (nil). t.mu is held.
func (t *tokens) begin(now time.Time) chan struct{} {
	if t.fetching != nil {
		return t.fetching
	}
	if t.err != nil && now.Sub(t.failed) < fetchPause {
		return nil
	}
	fetching := make(chan struct{})
	t.fetching = fetching
	t.done.Go(func() {
		ctx, cancel := context.WithTimeout(t.ctx, fetchTimeout)
		defer cancel()
		text, life, err := t.fetch(ctx)
		now := time.Now()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err = err
		if err == nil {
			t.text, t.refresh, t.expires = text, now.Add(life*4/5), now.Add(life)
		} else {
			t.failed = now
			if !now.Before(t.expires) {
				t.text = ""
			}
		}
		t.fetching = nil
		close(fetching)
	})
	return fetching
}

// drop forgets a token that was not taken; not more often than fetchPause, so
// that an endpoint that refuses every token does not flood its server.
func (t *tokens) drop(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fetching == nil && now.Sub(t.failed) >= fetchPause {
		t.text, t.expires, t.failed = "", time.Time{}, now
	}
}
