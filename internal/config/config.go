// Package config owns the way from a file, the environment and flags to one
// Config made of the packages' own Options: flag over environment over file
// over default. A setting has one name: kafka.brokers in the file,
// POSTERN_KAFKA_BROKERS in the environment, --kafka-brokers as a flag.
//
// What a setting means, and its limits, is with the package that reads it.
package config

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/server"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/internal/telemetry"
	"github.com/postern-dev/postern/publish"
	"github.com/postern-dev/postern/schema"
	"github.com/postern-dev/postern/subscription"
)

// Config is everything people can set.
type Config struct {
	// Kafka says how to reach the cluster.
	Kafka broker.Options `yaml:"kafka"`
	// Listen says where callers come in.
	Listen server.Options `yaml:"listen"`
	// Limits bound what callers may use.
	Limits server.Limits `yaml:"limits"`
	// Authz says who may come in.
	Authz Authz `yaml:"authz"`
	// Publish bounds publishing.
	Publish publish.Options `yaml:"publish"`
	// SchemaRegistry is where the topics' schemas are.
	SchemaRegistry schema.Options `yaml:"schema_registry"`
	// Topics are rules for topics; the first that matches wins.
	Topics []TopicRule `yaml:"topics"`
	// Subscriptions are declared here; webhooks among them run as long as the gateway does.
	Subscriptions []subscription.Spec `yaml:"subscriptions"`
	// Webhooks are settings that all push endpoints share.
	Webhooks webhook.Settings `yaml:"webhooks"`
	// SubscriptionsAPI bounds what is declared through the API.
	SubscriptionsAPI subscription.Options `yaml:"subscriptions_api"`
	// Telemetry says where logs, metrics and traces go.
	Telemetry telemetry.Options `yaml:"telemetry"`
	// TopicsPrefix begins the names of the topics that the gateway keeps for itself,
	// for Kafka's access rules. Default "_postern.".
	TopicsPrefix string `yaml:"topics_prefix"`
	// DrainTimeout bounds an orderly stop. Default 25s.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// Authz settings.
type Authz struct {
	// Mode is "loopback" (default: only this machine) or "open" (everyone who can reach the address).
	Mode string `yaml:"mode"`
}

// TopicRule is a rule for the topics that match.
type TopicRule struct {
	// Match is a glob over topic names: orders.*
	Match string `yaml:"match"`
	// Publish says what publishing demands and does.
	Publish publish.Rules `yaml:"publish"`
	// Schema says what is done with payloads.
	Schema schema.Rules `yaml:"schema"`
}

const (
	defaultDrain        = 25 * time.Second
	defaultTopicsPrefix = "_postern."
)

// WithDefaults returns c with empty settings filled in.
func (c Config) WithDefaults() Config {
	c.Kafka, c.Listen, c.Publish = c.Kafka.WithDefaults(), c.Listen.WithDefaults(), c.Publish.WithDefaults()
	c.SchemaRegistry = c.SchemaRegistry.WithDefaults()
	c.Webhooks = c.Webhooks.WithDefaults()
	c.Listen.Open = c.Authz.Mode == "open"
	c.Kafka.MaxEventBytes = c.Publish.MaxEventBytes
	for _, t := range c.Topics {
		c.Kafka.MaxEventBytes = max(c.Kafka.MaxEventBytes, t.Publish.MaxEventBytes)
	}
	c.SubscriptionsAPI = c.SubscriptionsAPI.WithDefaults()
	if c.TopicsPrefix == "" {
		c.TopicsPrefix = defaultTopicsPrefix
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = defaultDrain
	}
	return c
}

// Validate reports everything wrong with c, each as a *setting.Error with its whole path.
func (c Config) Validate() error {
	c.Listen.Open = c.Authz.Mode == "open"
	errs := []error{
		setting.Under("kafka", c.Kafka.Validate()),
		setting.Under("listen", c.Listen.Validate()),
		setting.Under("limits", c.Limits.Validate()),
		setting.Under("publish", c.Publish.Validate()),
		setting.Under("subscriptions_api", c.SubscriptionsAPI.Validate()),
		setting.Under("schema_registry", c.SchemaRegistry.Validate()),
		setting.Under("telemetry", c.Telemetry.Validate()),
		setting.Under("webhooks", c.Webhooks.Validate()),
	}
	bad := func(at, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: at, Message: fmt.Sprintf(format, args...)})
	}
	if m := c.Authz.Mode; m != "" && m != "loopback" && m != "open" {
		bad("authz.mode", "%q is not offered: use loopback or open", m)
	}
	if c.TopicsPrefix != "" && !legalPrefix.MatchString(c.TopicsPrefix) {
		bad("topics_prefix", "%q cannot begin a topic's name: use at most 40 letters, digits, dots, dashes and underscores", c.TopicsPrefix)
	}
	if c.DrainTimeout < 0 {
		bad("drain_timeout", "it cannot be negative")
	}
	for i, t := range c.Topics {
		at := fmt.Sprintf("topics[%d]", i)
		if _, err := path.Match(t.Match, ""); err != nil || t.Match == "" {
			bad(at+".match", "%q is not a glob over topic names such as orders.*", t.Match)
		}
		errs = append(errs, setting.Under(at+".publish", t.Publish.Validate()))
		errs = append(errs, setting.Under(at+".schema", t.Schema.Validate()))
		if t.Schema.On() && len(c.SchemaRegistry.URLs) == 0 {
			bad(at+".schema", "a schema rule needs a registry: set schema_registry.urls")
		}
	}
	seen, groups := map[string]int{}, map[string]int{}
	for i, s := range c.Subscriptions {
		at := fmt.Sprintf("subscriptions[%d]", i)
		errs = append(errs, setting.Under(at, s.Validate()))
		if s.Webhook != nil {
			errs = append(errs, setting.Under(at, c.Webhooks.ValidateFor(*s.Webhook)))
		}
		if first, twice := seen[s.Name]; twice && s.Name != "" {
			bad(at+".name", "%q is declared before as subscriptions[%d]", s.Name, first)
		}
		seen[s.Name] = i
		group := s.Queue().Group
		if first, twice := groups[group]; twice && group != "" && c.Subscriptions[first].Name != s.Name {
			bad(at+".group", "%q is the group of subscriptions[%d] too: they would take each other's partitions", group, first)
		}
		groups[group] = i
	}
	return errors.Join(errs...)
}

var legalPrefix = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,40}$`)

// PublishRules are the topic rules as publishing reads them.
func (c Config) PublishRules() []publish.TopicRules {
	rules := make([]publish.TopicRules, len(c.Topics))
	for i, t := range c.Topics {
		rules[i] = publish.TopicRules{Match: t.Match, Rules: t.Publish}
	}
	return rules
}

// SchemaRules are the topic rules as package schema reads them.
func (c Config) SchemaRules() []schema.TopicRules {
	rules := make([]schema.TopicRules, len(c.Topics))
	for i, t := range c.Topics {
		rules[i] = schema.TopicRules{Match: t.Match, Rules: t.Schema}
	}
	return rules
}
