package subscription

import (
	"fmt"
	"net/netip"
	"os"
	"path"

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
	// AllowGatewayKeys lets them have requests signed, and tokens minted, with the
	// gateway's own keys (webhooks.signing_keys). Who trusts those keys trusts everyone
	// then who may create a subscription.
	AllowGatewayKeys bool `yaml:"allow_gateway_keys"`
	// PushAddresses are globs over the addresses that a push declared through the API
	// may call: app.orders.svc:9000, *.svc:9000. Default: none. What a name leads to is
	// not guarded.
	PushAddresses []string `yaml:"push_addresses"`
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
	for i, p := range o.PushAddresses {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			faults.Add(fmt.Sprintf("push_addresses[%d]", i), "%q is not a glob over addresses such as *.svc:9000", p)
		}
	}
	return faults.Err()
}
