// Package subscription owns what a subscription is: its specification with the
// one validator for it (spec.go) and the one converter between the configuration
// file, the protos and what delivery works by (convert.go); its filter (filter.go);
// where it is kept (store.go, state.go) and which of them this gateway serves
// (registry.go); and the service Subscriptions (server.go).
//
// What becomes of a subscription's events is package delivery's.
package subscription

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

// Spec is a subscription as people declare it. Its names are those of the
// proto's Subscription.
type Spec struct {
	// Name: lower-case letters, digits, dots and dashes, 1 to 100 characters.
	Name string `yaml:"name"`
	// Topics to read, by name: these or topics_pattern.
	Topics []string `yaml:"topics"`
	// TopicsPattern is a glob over topic names in place of topics: orders.*
	TopicsPattern string `yaml:"topics_pattern"`
	// Order is key (default), partition or none.
	Order delivery.Order `yaml:"order"`
	// Group is the Kafka consumer group. Default: the name.
	Group string `yaml:"group"`
	// Start is earliest (default), latest, or an RFC 3339 time; applied once, when the subscription is first used.
	Start Start `yaml:"start"`
	// Lease is how long a delivered event may stay unsettled, 1s to 1h. Default 60s.
	Lease time.Duration `yaml:"lease"`
	// Retry says when an event that was not acknowledged is delivered again.
	Retry delivery.Retry `yaml:"retry"`
	// DeadLetter says where events go that were rejected or are out of attempts.
	DeadLetter DeadLetter `yaml:"dead_letter"`
	// Filter says which events are delivered; absent means all.
	Filter *FilterSpec `yaml:"filter"`
	// OnFilterError is dead_letter (default) or skip: what becomes of an event on which the filter fails.
	OnFilterError OnFilterError `yaml:"on_filter_error"`
	// Webhook pushes the events to an HTTP endpoint.
	Webhook *webhook.Options `yaml:"webhook"`
	// Push pushes the events to an application over gRPC.
	Push *push.Options `yaml:"push"`
	// Labels are free words of yours.
	Labels map[string]string `yaml:"labels"`

	// References are the names of the secrets when the API declared it: Webhook and
	// Push then hold none (see Options.Resolve).
	References References `yaml:"-"`

	filter *Filter // compiled, once Compiled was called
}

// DeadLetter of a subscription.
type DeadLetter struct {
	// Topic, created on first need. Default: <subscription>.dead.
	Topic string `yaml:"topic"`
}

// Start is where a subscription begins.
type Start struct{ broker.Start }

// MarshalText writes earliest, latest or the time.
func (s Start) MarshalText() ([]byte, error) {
	switch {
	case !s.Time.IsZero():
		return []byte(s.Time.Format(time.RFC3339Nano)), nil
	case s.Latest:
		return []byte("latest"), nil
	}
	return []byte("earliest"), nil
}

// UnmarshalText reads earliest, latest or a time.
func (s *Start) UnmarshalText(text []byte) error {
	switch string(text) {
	case "", "earliest":
		*s = Start{}
	case "latest":
		*s = Start{broker.Start{Latest: true}}
	default:
		t, err := time.Parse(time.RFC3339Nano, string(text))
		if err != nil {
			return fmt.Errorf("%q is no start: use earliest, latest or a time like 2026-01-31T10:00:00Z", text)
		}
		*s = Start{broker.Start{Time: t}}
	}
	return nil
}

var legalName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?$`)

// Validate reports everything wrong with s, each as a *setting.Error
// whose setting is the path below the subscription.
func (s Spec) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if !legalName.MatchString(s.Name) {
		bad("name", "%q is not a subscription's name: use 1 to 100 lower-case letters, digits, dots and dashes, beginning and ending with a letter or digit", s.Name)
	}
	switch {
	case len(s.Topics) == 0 && s.TopicsPattern == "":
		bad("topics", "no topic is named: give at least one")
	case len(s.Topics) > 0 && s.TopicsPattern != "":
		bad("topics_pattern", "it stands in place of topics: give one of the two")
	case len(s.Topics) > maxTopics:
		bad("topics", "%d topics are too many: at most %d", len(s.Topics), maxTopics)
	case s.TopicsPattern != "":
		if err := validPattern(s.TopicsPattern); err != nil {
			bad("topics_pattern", "%v", err)
		}
	}
	seen := map[string]bool{}
	for i, t := range s.Topics {
		if _, err := event.ParseTopic(t); err != nil {
			bad(fmt.Sprintf("topics[%d]", i), "%v", err)
		}
		if seen[t] {
			bad(fmt.Sprintf("topics[%d]", i), "%s is there twice", t)
		}
		seen[t] = true
		if t == s.deadLetterTopic() {
			bad("dead_letter.topic", "the subscription reads %s itself: its dead letters would come back for ever", t)
		}
	}
	if len(s.Group) > 249 {
		bad("group", "a group name has at most 249 bytes")
	}
	if s.Lease != 0 && (s.Lease < delivery.MinLease || s.Lease > delivery.MaxLease) {
		bad("lease", "%s is out of range: %s to %s", s.Lease, delivery.MinLease, delivery.MaxLease)
	}
	errs = append(errs, s.Retry.Validate()...)
	if s.DeadLetter.Topic != "" {
		if _, err := event.ParseTopic(s.DeadLetter.Topic); err != nil {
			bad("dead_letter.topic", "%v", err)
		}
	}
	if s.Filter != nil {
		if _, err := NewFilter(*s.Filter); err != nil {
			errs = append(errs, setting.Under("filter", err))
		}
	}
	if e := s.OnFilterError; e != "" && e != DeadLetterOnError && e != SkipOnError {
		bad("on_filter_error", "%q is not offered: use dead_letter or skip", e)
	}
	s = s.pretended()
	if s.Webhook != nil {
		errs = append(errs, s.Webhook.Validate()...)
	}
	if s.Push != nil {
		errs = append(errs, s.Push.Validate()...)
		if s.Webhook != nil {
			bad("push", "a subscription pushes to one endpoint: use webhook or push")
		}
	}
	if len(s.Labels) > maxLabels {
		bad("labels", "%d labels are too many: at most %d", len(s.Labels), maxLabels)
	}
	for name, value := range s.Labels {
		if name == "" || len(name) > maxLabel || len(value) > maxLabel || !utf8.ValidString(name) || !utf8.ValidString(value) {
			bad("labels", "%q: a label has a name of 1 to %d bytes of text, and as much value", excerpt(name), maxLabel)
		}
	}
	return errors.Join(errs...)
}

// Limits of a specification.
const (
	maxTopics = 100
	maxLabels = 64
	maxLabel  = 256
)

func excerpt(s string) string { return s[:min(len(s), 40)] }

// validPattern checks a glob over topic names.
func validPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil || len(pattern) > 249 {
		return fmt.Errorf("%q is not a glob over topic names such as orders.*", excerpt(pattern))
	}
	return nil
}

// Compiled gives s ready to be served, with its filter compiled; it is what
// Validate says when that cannot be.
func (s Spec) Compiled() (Spec, error) {
	if err := s.Validate(); err != nil {
		return s, err
	}
	if s.Filter != nil && s.filter == nil {
		f, err := NewFilter(*s.Filter)
		if err != nil {
			return s, setting.Under("filter", err)
		}
		s.filter = f
	}
	return s, nil
}

func (s Spec) deadLetterTopic() string {
	if s.DeadLetter.Topic != "" {
		return s.DeadLetter.Topic
	}
	return s.Name + ".dead"
}

// webhookSchedule is the example of Standard Webhooks 1.0.0: ten attempts over three days.
var webhookSchedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// Queue gives what the delivery package works by, with every default filled in;
// the filter is there once Compiled gave s.
func (s Spec) Queue() delivery.Options {
	if s.Webhook != nil && s.Retry.MaxAttempts == 0 && s.Retry.MinBackoff == 0 && s.Retry.MaxBackoff == 0 && len(s.Retry.Schedule) == 0 {
		s.Retry.Schedule = webhookSchedule
	}
	o := delivery.Options{
		Name: s.Name, Group: s.group(), Topics: s.Topics, TopicsPattern: s.TopicsPattern, Order: s.Order, Start: s.Start.Start,
		Lease: s.Lease, Retry: s.Retry.WithDefaults(), DeadLetterTopic: s.deadLetterTopic(),
	}
	if o.Lease == 0 {
		o.Lease = delivery.DefaultLease
	}
	if s.filter != nil {
		o.Filter = s.filter
	}
	if s.OnFilterError == SkipOnError {
		o.FilterErrors = delivery.FilterSkips
	}
	return o
}

// SameQueue reports whether a and b say the same.
func SameQueue(a, b delivery.Options) bool {
	text := func(f delivery.Filter) string {
		if f == nil {
			return ""
		}
		return f.String()
	}
	same := text(a.Filter) == text(b.Filter)
	a.Filter, b.Filter = nil, nil
	return same && reflect.DeepEqual(a, b)
}

// group is the consumer group of s.
func (s Spec) group() string {
	if s.Group != "" {
		return s.Group
	}
	return s.Name
}
