package subscription

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
)

// Options bound what is declared through the API.
type Options struct {
	// Disabled serves the configuration's subscriptions only, keeps nothing in Kafka,
	// and offers neither creating nor pausing nor seeking.
	Disabled bool `yaml:"disabled"`
	// MaxSubscriptions is how many may be kept. Default 10000.
	MaxSubscriptions int `yaml:"max_subscriptions"`
	// SecretsDir is the folder of the secrets that webhooks declared through the API
	// may name: SECRETS_DIR/<subscription>/<name>, a file each, at every gateway.
	// Without it they may name none.
	SecretsDir string `yaml:"secrets_dir"`
	// AllowHTTP lets webhooks declared through the API ask for plain http: URLs.
	AllowHTTP bool `yaml:"allow_http"`
	// AllowLoopback lets them ask for addresses of this machine.
	AllowLoopback bool `yaml:"allow_loopback"`
	// AllowCIDRs are the address ranges they may ask for beside public ones.
	AllowCIDRs []string `yaml:"allow_cidrs"`
}

const defaultMaxSubscriptions = 10_000

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.MaxSubscriptions == 0 {
		o.MaxSubscriptions = defaultMaxSubscriptions
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	var faults setting.Faults
	if o.MaxSubscriptions < 0 || o.MaxSubscriptions > maxKept {
		faults.Add("max_subscriptions", "%d is out of range: 1 to %d", o.MaxSubscriptions, maxKept)
	}
	if o.SecretsDir != "" {
		if info, err := os.Stat(o.SecretsDir); err != nil || !info.IsDir() {
			faults.Add("secrets_dir", "%s is not a folder that can be read", o.SecretsDir)
		}
	}
	for i, c := range o.AllowCIDRs {
		if _, err := netip.ParsePrefix(c); err != nil {
			faults.Add(fmt.Sprintf("allow_cidrs[%d]", i), "%q is not an address range such as 10.0.0.0/8", c)
		}
	}
	return faults.Err()
}

// permit reports what a webhook declared through the API asks for and may not
// have. Whoever may create a subscription could otherwise let the gateway call
// what only the gateway reaches.
func (o Options) permit(s Spec) error {
	if s.Webhook == nil {
		return nil
	}
	var faults setting.Faults
	if s.Webhook.AllowHTTP && !o.AllowHTTP {
		faults.Add("webhook.allow_http", "this gateway does not allow it to the API (subscriptions_api.allow_http)")
	}
	if s.Webhook.AllowLoopback && !o.AllowLoopback {
		faults.Add("webhook.allow_loopback", "this gateway does not allow it to the API (subscriptions_api.allow_loopback)")
	}
	for i, c := range s.Webhook.AllowCIDRs {
		if asked, err := netip.ParsePrefix(c); err == nil && !o.allows(asked) {
			faults.Add(fmt.Sprintf("webhook.allow_cidrs[%d]", i), "this gateway does not allow %s to the API (subscriptions_api.allow_cidrs)", c)
		}
	}
	if len(s.References.Secrets)+len(s.References.Headers) > 0 && o.SecretsDir == "" {
		faults.Add("webhook.secrets", "this gateway provides no secrets: its operator sets subscriptions_api.secrets_dir")
	}
	for i, name := range s.References.Secrets {
		if name == "" {
			faults.Add(fmt.Sprintf("webhook.secrets[%d]", i), "it names no secret")
		}
	}
	for header, name := range s.References.Headers {
		if name == "" {
			faults.Add("webhook.headers", "%s names no secret", header)
		}
	}
	return faults.Err()
}

func (o Options) allows(asked netip.Prefix) bool {
	for _, c := range o.AllowCIDRs {
		if allowed, err := netip.ParsePrefix(c); err == nil && allowed.Bits() <= asked.Bits() && allowed.Contains(asked.Addr()) {
			return true
		}
	}
	return false
}

// maxSecret bounds a secret's file.
const maxSecret = 64 << 10

// Resolve gives the endpoint of s with its secrets: those the file has, or those
// that references name.
func (o Options) Resolve(s Spec) (webhook.Options, error) {
	w := *s.Webhook
	if len(s.References.Secrets)+len(s.References.Headers) == 0 {
		return w, nil
	}
	if o.SecretsDir == "" {
		return w, fmt.Errorf("the webhook of %s names secrets, and subscriptions_api.secrets_dir is not set", s.Name)
	}
	// A root, so that neither a name nor a link in the folder leads out of it.
	root, err := os.OpenRoot(o.SecretsDir)
	if err != nil {
		return w, fmt.Errorf("open subscriptions_api.secrets_dir: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	read := func(name string) (setting.Secret, error) {
		path := s.Name + "/" + name
		info, err := root.Stat(path)
		if err == nil && info.Size() > maxSecret {
			err = fmt.Errorf("it is larger than %d bytes", maxSecret)
		}
		if err != nil {
			return setting.Secret{}, fmt.Errorf("read the secret %s of subscription %s: %w", name, s.Name, err)
		}
		b, err := root.ReadFile(path)
		if err != nil {
			return setting.Secret{}, fmt.Errorf("read the secret %s of subscription %s: %w", name, s.Name, err)
		}
		return setting.NewSecret(strings.TrimRight(string(b), "\r\n")), nil
	}
	for _, name := range s.References.Secrets {
		secret, err := read(name)
		if err != nil {
			return w, err
		}
		w.Secrets = append(w.Secrets, secret)
	}
	for header, name := range s.References.Headers {
		secret, err := read(name)
		if err != nil {
			return w, err
		}
		if w.Headers == nil {
			w.Headers = map[string]setting.Secret{}
		}
		w.Headers[header] = secret
	}
	if faults := w.Validate(); len(faults) > 0 {
		return w, fmt.Errorf("the webhook of %s: %w", s.Name, faults[0])
	}
	return w, nil
}
