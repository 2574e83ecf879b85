// Package subscription owns what a subscription is: its specification, the one
// validator for it, and the one converter between the configuration file, the
// protos and what the delivery package works by.
package subscription

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Spec is a subscription as people declare it. Its names are those of the
// proto's Subscription.
type Spec struct {
	// Name: lower-case letters, digits, dots and dashes, 1 to 100 characters.
	Name string `yaml:"name"`
	// Topics to read, by name.
	Topics []string `yaml:"topics"`
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
	// Webhook pushes the events to an HTTP endpoint.
	Webhook *webhook.Options `yaml:"webhook"`
	// Labels are free words of yours.
	Labels map[string]string `yaml:"labels"`
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
	if len(s.Topics) == 0 {
		bad("topics", "no topic is named: give at least one")
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
	if s.Webhook != nil {
		errs = append(errs, s.Webhook.Validate()...)
	}
	return errors.Join(errs...)
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

// Queue gives what the delivery package works by, with every default filled in.
func (s Spec) Queue() delivery.Options {
	if s.Webhook != nil && s.Retry.MaxAttempts == 0 && s.Retry.MinBackoff == 0 && s.Retry.MaxBackoff == 0 && len(s.Retry.Schedule) == 0 {
		s.Retry.Schedule = webhookSchedule
	}
	o := delivery.Options{
		Name: s.Name, Group: s.Group, Topics: s.Topics, Order: s.Order, Start: s.Start.Start,
		Lease: s.Lease, Retry: s.Retry.WithDefaults(), DeadLetterTopic: s.deadLetterTopic(),
	}
	if o.Group == "" {
		o.Group = s.Name
	}
	if o.Lease == 0 {
		o.Lease = delivery.DefaultLease
	}
	return o
}

// FromProto reads the specification a client gave inline.
func FromProto(m *posternv1.Subscription) Spec {
	s := Spec{
		Name: m.GetName(), Topics: m.GetTopics(), Group: m.GetGroup(), Lease: m.GetLease().AsDuration(),
		DeadLetter: DeadLetter{Topic: m.GetDeadLetter().GetTopic()}, Labels: m.GetLabels(),
		Retry: delivery.Retry{
			MaxAttempts: int(m.GetRetry().GetMaxAttempts()),
			MinBackoff:  m.GetRetry().GetMinBackoff().AsDuration(),
			MaxBackoff:  m.GetRetry().GetMaxBackoff().AsDuration(),
		},
	}
	for _, d := range m.GetRetry().GetSchedule() {
		s.Retry.Schedule = append(s.Retry.Schedule, d.AsDuration())
	}
	switch m.GetOrder() {
	case posternv1.Order_ORDER_PARTITION:
		s.Order = delivery.OrderPartition
	case posternv1.Order_ORDER_NONE:
		s.Order = delivery.OrderNone
	default:
		s.Order = delivery.OrderKey
	}
	switch at := m.GetStart().GetAt().(type) {
	case *posternv1.Start_Edge:
		s.Start.Latest = at.Edge == posternv1.Edge_EDGE_LATEST
	case *posternv1.Start_Time:
		s.Start.Time = at.Time.AsTime()
	}
	return s
}

// OrderToProto writes an order.
func OrderToProto(o delivery.Order) posternv1.Order {
	switch o {
	case delivery.OrderPartition:
		return posternv1.Order_ORDER_PARTITION
	case delivery.OrderNone:
		return posternv1.Order_ORDER_NONE
	}
	return posternv1.Order_ORDER_KEY
}
