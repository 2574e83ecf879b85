package subscription

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// everything is a message with every field that a caller may set.
func everything() *posternv1.Subscription {
	return &posternv1.Subscription{
		Name: "mail", Topics: []string{"orders", "returns"}, Order: posternv1.Order_ORDER_PARTITION, Group: "g",
		Start: &posternv1.Start{At: &posternv1.Start_Time{Time: timestamppb.New(time.Unix(1e9, 5))}}, Lease: durationpb.New(5 * time.Second),
		Retry: &posternv1.RetryPolicy{
			MinBackoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(time.Minute), MaxAttempts: 3,
			Schedule: []*durationpb.Duration{durationpb.New(1), durationpb.New(2)}, HoldLimit: durationpb.New(2 * time.Second), MaxBlock: durationpb.New(time.Hour),
			OnBlock: posternv1.OnBlock_ON_BLOCK_MOVE_ON,
		},
		DeadLetter: &posternv1.DeadLetter{Topic: "dead"}, Labels: map[string]string{"team": "a"},
		Filter: &posternv1.Filter{All: []*posternv1.Filter{
			{Cel: "true"},
			{Exact: map[string]string{"type": "a"}},
			{Any: []*posternv1.Filter{{Prefix: map[string]string{"id": "b"}}, {Suffix: map[string]string{"id": "c"}}}},
			{Not: &posternv1.Filter{Sql: "id = 'x'"}},
		}},
		OnFilterError: posternv1.OnFilterError_ON_FILTER_ERROR_SKIP,
		Webhook: &posternv1.Webhook{
			Url: "http://example.com/", Mode: posternv1.WebhookMode_WEBHOOK_MODE_STRUCTURED, Timeout: durationpb.New(time.Second), Concurrency: 3,
			Secrets: []*posternv1.SecretReference{{Name: "one"}, {Name: "two"}}, Headers: map[string]*posternv1.SecretReference{"Authorization": {Name: "token"}},
			AllowHttp: true, AllowLoopback: true, AllowCidrs: []string{"10.0.0.0/8"},
			View: posternv1.View_VIEW_JSON,
		},
	}
}

func TestWhatACallerDeclaresIsWhatIsShown(t *testing.T) {
	for _, m := range []*posternv1.Subscription{
		everything(),
		{Name: "a", Topics: []string{"t"}, Order: posternv1.Order_ORDER_KEY},
		{Name: "a", TopicsPattern: "t.*", Order: posternv1.Order_ORDER_NONE, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}},
	} {
		s, err := FromProto(m)
		if err != nil {
			t.Fatal(err)
		}
		if back := s.ToProto(); !proto.Equal(back, m) {
			t.Errorf("declared %s\nshown    %s", protojson.Format(m), protojson.Format(back))
		}
	}
	s, err := FromProto(everything())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	// A field that is new in the proto and forgotten here is found so.
	fields := (&posternv1.Subscription{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		switch name := string(fields.Get(i).Name()); name {
		case "topics_pattern", "etag", "generation", "create_time", "update_time", "declared_in", "paused", "seek_epoch", "problem", "note":
		default:
			if !everything().ProtoReflect().Has(fields.Get(i)) {
				t.Errorf("the test declares no %s", name)
			}
		}
	}
}

func TestSecretsOfTheFileAreNeverShown(t *testing.T) {
	s := Spec{Name: "a", Topics: []string{"t"}, Webhook: &webhook.Options{
		URL: "https://example.com/", Secrets: []setting.Secret{setting.NewSecret("canary")}, Headers: map[string]setting.Secret{"Authorization": setting.NewSecret("canary")},
	}}
	m := s.ToProto()
	if text := protojson.Format(m); strings.Contains(text, "canary") || len(m.Webhook.Secrets) != 1 || m.Webhook.Headers["Authorization"] == nil {
		t.Error(text)
	}
}

func TestWhatThisBuildDoesNotOfferIsSaid(t *testing.T) {
	for want, m := range map[string]*posternv1.Subscription{
		"order: this build does not offer QUEUE":    {Name: "a", Topics: []string{"t"}, Order: posternv1.Order_ORDER_QUEUE},
		"start: a cursor is for tails":              {Name: "a", Topics: []string{"t"}, Start: &posternv1.Start{At: &posternv1.Start_Cursor{Cursor: "x"}}},
		"topics: no topic is named":                 {Name: "a"},
		"topics_pattern: it stands in place of":     {Name: "a", Topics: []string{"t"}, TopicsPattern: "t.*"},
		"topics_pattern: \"[\" is not a glob":       {Name: "a", TopicsPattern: "["},
		"filter.cel: 1:1: undeclared reference":     {Name: "a", Topics: []string{"t"}, Filter: &posternv1.Filter{Cel: "x"}},
		"webhook.url: plain http":                   {Name: "a", Topics: []string{"t"}, Webhook: &posternv1.Webhook{Url: "http://x/"}},
		"retry.hold_limit: 1ns is out of range":     {Name: "a", Topics: []string{"t"}, Retry: &posternv1.RetryPolicy{HoldLimit: durationpb.New(1)}},
		"labels: 65 labels are too many":            {Name: "a", Topics: []string{"t"}, Labels: manyLabels(65)},
		"dead_letter.topic: the subscription reads": {Name: "a", Topics: []string{"a.dead"}},
	} {
		s, err := FromProto(m)
		if err == nil {
			err = s.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func manyLabels(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[strings.Repeat("x", i+1)] = ""
	}
	return m
}

func TestAFilterIsPartOfWhatAQueueIs(t *testing.T) {
	compiled := func(cel string) Spec {
		s, err := Spec{Name: "a", Topics: []string{"t"}, Filter: &FilterSpec{CEL: cel}}.Compiled()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, c := compiled("true"), compiled("true"), compiled("false")
	if !SameQueue(a.Queue(), b.Queue()) || SameQueue(a.Queue(), c.Queue()) {
		t.Error("queues are the same, or not, against their filters")
	}
	if reflect.ValueOf(a.Queue().Filter).IsNil() {
		t.Error("the filter is not there")
	}
}
