package subscription

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery/push"
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
			Secrets: []*posternv1.SecretReference{{Name: "one"}, {Name: "two"}}, Headers: map[string]*posternv1.SecretReference{"X-Api-Key": {Name: "token"}},
			AllowHttp: true, AllowLoopback: true, AllowCidrs: []string{"10.0.0.0/8"},
			View:       posternv1.View_VIEW_JSON,
			Keys:       []*posternv1.SigningKey{{Secret: &posternv1.SecretReference{Name: "old"}, NotAfter: timestamppb.New(time.Unix(2e9, 0))}, {Secret: &posternv1.SecretReference{Name: "new"}, NotBefore: timestamppb.New(time.Unix(1e9, 0))}},
			Asymmetric: true, Handshake: &posternv1.Handshake{Origin: "events.example.com", RequestRate: 60, Revalidate: durationpb.New(time.Hour), Callback: true},
			Outcomes: map[string]string{"409": "ack"}, ConnectTimeout: durationpb.New(time.Second), TlsTimeout: durationpb.New(2 * time.Second),
			RequestsPerSecond: 1.5, DisableAfter: durationpb.New(-1), Auth: basic("someone", "password"), Tls: certificates("hook"),
		},
	}
}

func basic(user, password string) *posternv1.WebhookAuth {
	return &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Basic{Basic: &posternv1.BasicAuth{Username: user, Password: &posternv1.SecretReference{Name: password}}}}
}

func certificates(name string) *posternv1.PushTLS {
	reference := func(kind string) *posternv1.SecretReference {
		return &posternv1.SecretReference{Name: name + "-" + kind}
	}
	return &posternv1.PushTLS{Ca: reference("ca"), Certificate: reference("cert"), Key: reference("key"), ServerName: "inside.example.com"}
}

// pushed is a message with every field of a push.
func pushed() *posternv1.Subscription {
	return &posternv1.Subscription{Name: "app", Topics: []string{"t"}, Order: posternv1.Order_ORDER_KEY, Push: &posternv1.Push{
		Address: "app.svc:9000", Tls: certificates("app"), Timeout: durationpb.New(time.Second), Concurrency: 3, RequestsPerSecond: 9, DisableAfter: durationpb.New(time.Hour),
		Batch:    &posternv1.PushBatch{MaxEvents: 5, MaxBytes: 1000, MaxWait: durationpb.New(time.Second)},
		Metadata: map[string]*posternv1.SecretReference{"token": {Name: "token"}},
		View:     posternv1.View_VIEW_JSON,
	}}
}

// hooked is a webhook with a way to prove the gateway.
func hooked(auth *posternv1.WebhookAuth) *posternv1.Subscription {
	return &posternv1.Subscription{Name: "a", Topics: []string{"t"}, Order: posternv1.Order_ORDER_KEY, Webhook: &posternv1.Webhook{
		Url: "https://shop.example.com/", Mode: posternv1.WebhookMode_WEBHOOK_MODE_BATCH, Batch: &posternv1.PushBatch{MaxEvents: 5}, Auth: auth,
	}}
}

// unset names the fields of m that are not set.
func unset(m proto.Message, but ...string) (names []string) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if name := string(fields.Get(i).Name()); !slices.Contains(but, name) && !m.ProtoReflect().Has(fields.Get(i)) {
			names = append(names, name)
		}
	}
	return names
}

func TestWhatACallerDeclaresIsWhatIsShown(t *testing.T) {
	for _, m := range []*posternv1.Subscription{
		everything(), pushed(),
		hooked(&posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Bearer{Bearer: &posternv1.SecretReference{Name: "token"}}}),
		hooked(&posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Oauth2{Oauth2: &posternv1.OAuth2{
			TokenUrl: "https://id.example.com/", ClientId: "c", ClientSecret: &posternv1.SecretReference{Name: "s"}, Scopes: []string{"a"}, Audience: "b", AuthStyle: "body",
		}}}),
		hooked(&posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Jwt{Jwt: &posternv1.MintedToken{Audience: "https://shop.example.com", Subject: "s", Lifetime: durationpb.New(time.Minute)}}}),
		{Name: "a", Topics: []string{"t"}, Order: posternv1.Order_ORDER_KEY},
		{Name: "a", Topics: []string{"t"}, Order: posternv1.Order_ORDER_QUEUE},
		{Name: "a", TopicsPattern: "t.*", Order: posternv1.Order_ORDER_NONE, Start: &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}},
	} {
		s, err := FromProto(m)
		if err != nil {
			t.Fatal(err)
		}
		if back := s.ToProto(); !proto.Equal(back, m) {
			t.Errorf("declared %s\nshown    %s", protojson.Format(m), protojson.Format(back))
		}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		if a, b := comparison(s), comparison(declarable(s)); !proto.Equal(a, b) {
			t.Errorf("what is kept for others %s\ndiffers from %s", protojson.Format(b), protojson.Format(a))
		}
	}
	// A field that is new in the proto and forgotten here is found so.
	forgotten := unset(everything(), "topics_pattern", "push", "etag", "generation", "create_time", "update_time", "declared_in", "paused", "seek_epoch", "problem", "note")
	forgotten = append(forgotten, unset(everything().GetWebhook(), "batch")...)
	if forgotten = append(forgotten, unset(pushed().GetPush())...); len(forgotten) > 0 {
		t.Errorf("the test declares no %v", forgotten)
	}
}

func TestSecretsOfTheFileAreNeverShown(t *testing.T) {
	canary := setting.NewSecret("canary")
	files := &webhook.TLS{CAFile: "/canary/ca", CertFile: "/canary/cert", KeyFile: "/canary/key"}
	secret := map[string]setting.Secret{"X-Api-Key": canary}
	for _, auth := range []*webhook.Auth{
		nil,
		{Bearer: canary},
		{Basic: &webhook.Basic{Username: "u", Password: canary}},
		{OAuth2: &webhook.OAuth2{TokenURL: "https://id.example.com/canary", ClientID: "c", ClientSecret: canary}},
	} {
		s := Spec{Name: "a", Topics: []string{"t"}, Webhook: &webhook.Options{
			URL: "https://example.com/canary", Secrets: []setting.Secret{canary}, Headers: secret, Keys: []webhook.Key{{Secret: canary}}, Auth: auth, TLS: files, Proxy: canary,
		}}
		e := &Entry{Spec: s, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE}
		m := e.toProto()
		kept, err := (&State{Spec: declarable(s)}).encode()
		if text := protojson.Format(m) + string(kept); err != nil || strings.Contains(text, "canary") {
			t.Error(text, err)
		}
		if len(m.Webhook.Secrets) != 1 || m.Webhook.Headers["X-Api-Key"] == nil || len(m.Webhook.Keys) != 1 || m.Webhook.Tls.Key == nil || (m.Webhook.Auth != nil) != (auth != nil) {
			t.Error(protojson.Format(m))
		}
	}
	s := Spec{Name: "a", Topics: []string{"t"}, Push: &push.Options{Address: "app:1", Metadata: secret, TLS: files}}
	kept, err := (&State{Spec: declarable(s)}).encode()
	if text := protojson.Format(s.ToProto()) + string(kept); err != nil || strings.Contains(text, "canary") || !strings.Contains(text, "X-Api-Key") {
		t.Error(text, err)
	}
}

func TestWhatThisBuildDoesNotOfferIsSaid(t *testing.T) {
	for want, m := range map[string]*posternv1.Subscription{
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
