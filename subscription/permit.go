package subscription

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
)

// permit reports what an endpoint declared through the API asks for and may not
// have. Whoever may create a subscription could otherwise let the gateway call
// what only the gateway reaches, or speak for it. What the API's messages have no
// field for (proxy, allow_ports, paths of files) is nobody's to ask for.
func (o Options) permit(s Spec) error {
	var faults setting.Faults
	if s.Webhook != nil {
		o.permitWebhook(s.Webhook, &faults)
	}
	if s.Push != nil && !o.reaches(s.Push.Address) {
		faults.Add("push.address", "this gateway does not allow %s to the API (subscriptions_api.push_addresses)", excerpt(s.Push.Address))
	}
	for _, r := range referencesOf(s.ToProto()) {
		switch {
		case r.GetName() == "":
			faults.Add(r.path, "it names no secret")
		case o.SecretsDir == "":
			faults.Add(r.path, "this gateway provides no secrets: its operator sets subscriptions_api.secrets_dir")
		}
	}
	return faults.Err()
}

func (o Options) permitWebhook(w *webhook.Options, faults *setting.Faults) {
	if w.AllowHTTP && !o.AllowHTTP {
		faults.Add("webhook.allow_http", "this gateway does not allow it to the API (subscriptions_api.allow_http)")
	}
	if w.AllowLoopback && !o.AllowLoopback {
		faults.Add("webhook.allow_loopback", "this gateway does not allow it to the API (subscriptions_api.allow_loopback)")
	}
	for i, c := range w.AllowCIDRs {
		if asked, err := netip.ParsePrefix(c); err == nil && !o.allows(asked) {
			faults.Add(fmt.Sprintf("webhook.allow_cidrs[%d]", i), "this gateway does not allow %s to the API (subscriptions_api.allow_cidrs)", c)
		}
	}
	if w.Asymmetric && !o.AllowGatewayKeys {
		faults.Add("webhook.asymmetric", "this gateway does not allow its keys to the API (subscriptions_api.allow_gateway_keys)")
	}
	if w.Auth == nil || w.Auth.JWT == nil {
		return
	}
	if !o.AllowGatewayKeys {
		faults.Add("webhook.auth.jwt", "this gateway does not allow its keys to the API (subscriptions_api.allow_gateway_keys)")
	}
	if w.Auth.JWT.Subject != "" {
		faults.Add("webhook.auth.jwt.subject", "the token's subject is the subscription: leave it out")
	}
	if !sameOrigin(w.Auth.JWT.Audience, w.URL) {
		faults.Add("webhook.auth.jwt.audience", "a token is only for the endpoint it is sent to: use the scheme and host of webhook.url")
	}
}

// sameOrigin reports whether two URLs have one scheme and one host.
func sameOrigin(a, b string) bool {
	x, err := url.Parse(a)
	y, wrong := url.Parse(b)
	return err == nil && wrong == nil && x.Host != "" && x.Scheme == y.Scheme && strings.EqualFold(x.Host, y.Host) && x.User == nil
}

func (o Options) allows(asked netip.Prefix) bool {
	for _, c := range o.AllowCIDRs {
		if allowed, err := netip.ParsePrefix(c); err == nil && allowed.Bits() <= asked.Bits() && allowed.Contains(asked.Addr()) {
			return true
		}
	}
	return false
}

func (o Options) reaches(address string) bool {
	for _, pattern := range o.PushAddresses {
		if ok, err := path.Match(pattern, address); ok && err == nil {
			return true
		}
	}
	return false
}

// pretended gives s with a secret in each place that names one, for checking the
// rest: what is named is known only where the endpoint runs.
func (s Spec) pretended() Spec {
	filled, err := s.filled(func(name string) (setting.Secret, error) {
		return setting.NewSecret("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), nil
	}, nil)
	if err != nil { // that cannot be, as both never fail
		return s
	}
	return filled
}

// filled gives s with the secrets that references name, and the paths of files;
// without file, TLS is left out.
func (s Spec) filled(secret func(name string) (setting.Secret, error), file func(name string) (string, error)) (Spec, error) {
	var first error
	get := func(name string) setting.Secret {
		v, err := secret(name)
		if err != nil && first == nil {
			first = err
		}
		return v
	}
	all := func(names map[string]string, into map[string]setting.Secret) map[string]setting.Secret {
		for at, name := range names {
			if into == nil {
				into = map[string]setting.Secret{}
			}
			into[at] = get(name)
		}
		return into
	}
	files := func(t *webhook.TLS) *webhook.TLS {
		if t == nil || len(s.References.TLS) == 0 {
			return t
		}
		if file == nil {
			return nil
		}
		with := *t
		for _, f := range tlsFiles {
			name, ok := s.References.TLS[f.name]
			if !ok {
				continue
			}
			path, err := file(name)
			if err != nil && first == nil {
				first = err
			}
			*f.at(&with) = path
		}
		return &with
	}
	r := s.References
	if s.Webhook != nil {
		w := *s.Webhook
		for _, name := range r.Secrets {
			w.Secrets = append(w.Secrets[:len(w.Secrets):len(w.Secrets)], get(name))
		}
		if len(r.Keys) > 0 {
			w.Keys = append([]webhook.Key(nil), w.Keys...)
			for i, name := range r.Keys[:min(len(r.Keys), len(w.Keys))] {
				w.Keys[i].Secret = get(name)
			}
		}
		w.Headers, w.TLS, w.Auth = all(r.Headers, w.Headers), files(w.TLS), filledAuth(w.Auth, r, get)
		s.Webhook = &w
	}
	if s.Push != nil {
		p := *s.Push
		p.Metadata, p.TLS = all(r.Metadata, p.Metadata), files(p.TLS)
		s.Push = &p
	}
	return s, first
}

func filledAuth(a *webhook.Auth, r References, get func(string) setting.Secret) *webhook.Auth {
	if a == nil {
		return nil
	}
	with := *a
	switch {
	case a.Basic != nil:
		if a.Basic.Password.IsZero() && r.Password != "" {
			with.Basic = &webhook.Basic{Username: a.Basic.Username, Password: get(r.Password)}
		}
	case a.OAuth2 != nil:
		if a.OAuth2.ClientSecret.IsZero() && r.ClientSecret != "" {
			o := *a.OAuth2
			o.ClientSecret = get(r.ClientSecret)
			with.OAuth2 = &o
		}
	case a.JWT == nil && a.Bearer.IsZero() && r.Bearer != "":
		with.Bearer = get(r.Bearer)
	}
	return &with
}

// maxSecret bounds a secret's file.
const maxSecret = 64 << 10

// Resolve gives s with its secrets: those the file has, or those that references
// name.
func (o Options) Resolve(s Spec) (Spec, error) {
	if !s.References.any() {
		return s, nil
	}
	if o.SecretsDir == "" {
		return s, fmt.Errorf("the endpoint of %s names secrets, and subscriptions_api.secrets_dir is not set", s.Name)
	}
	// A root, so that neither a name nor a link in the folder leads out of it.
	dir := filepath.Join(o.SecretsDir, s.Name)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return s, fmt.Errorf("read the secrets of subscription %s: %w", s.Name, err)
	}
	defer root.Close() //nolint:errcheck // only read
	look := func(name string) error {
		info, err := root.Stat(name)
		if err == nil && info.Size() > maxSecret {
			err = fmt.Errorf("it is larger than %d bytes", maxSecret)
		}
		if err != nil {
			return fmt.Errorf("read the secret %s of subscription %s: %w", name, s.Name, err)
		}
		return nil
	}
	s, err = s.filled(func(name string) (setting.Secret, error) {
		if err := look(name); err != nil {
			return setting.Secret{}, err
		}
		b, err := root.ReadFile(name)
		if err != nil {
			return setting.Secret{}, fmt.Errorf("read the secret %s of subscription %s: %w", name, s.Name, err)
		}
		return setting.NewSecret(strings.TrimRight(string(b), "\r\n")), nil
	}, func(name string) (string, error) {
		return filepath.Join(dir, name), look(name)
	})
	if err != nil {
		return s, err
	}
	var faults []error
	if s.Webhook != nil {
		faults = s.Webhook.Validate()
	}
	if s.Push != nil {
		faults = append(faults, s.Push.Validate()...)
	}
	if len(faults) > 0 {
		return s, fmt.Errorf("the endpoint of %s: %w", s.Name, faults[0])
	}
	return s, nil
}

func (r References) any() bool {
	return len(r.Secrets)+len(r.Keys)+len(r.Headers)+len(r.TLS)+len(r.Metadata) > 0 || r.Password != "" || r.Bearer != "" || r.ClientSecret != ""
}
