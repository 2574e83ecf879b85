package embedded

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/schema"
)

// aRegistry is the one that SCHEMA_REGISTRY_URL names, else ours.
func aRegistry(t *testing.T) string {
	t.Helper()
	if url := os.Getenv("SCHEMA_REGISTRY_URL"); url != "" {
		return url
	}
	r := startRegistry(t, "")
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r.URL()
}

// TestClientOnARegistry is what the gateway relies on, of the embedded registry and of real ones alike.
func TestClientOnARegistry(t *testing.T) {
	url := aRegistry(t)
	client, err := schema.NewClient(schema.Options{URLs: []string{url}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	name := fmt.Sprintf("client-%d", time.Now().UnixNano())
	for _, f := range []struct {
		format             schema.Format
		first, second, bad string
	}{
		{
			schema.Avro, `{"type":"record","name":"R","fields":[{"name":"a","type":"int"}]}`,
			`{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"b","type":"int","default":1}]}`, `{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}`,
		},
		{
			schema.JSON, `{"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":false}`,
			`{"type":"object","properties":{"a":{"type":"number"}},"additionalProperties":false}`, `{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":false}`,
		},
		{schema.Protobuf, `syntax = "proto3"; message R { int32 a = 1; }`, `syntax = "proto3"; message R { int32 a = 1; string b = 2; }`, `syntax = "proto3"; message R { string a = 1; }`},
	} {
		subject := name + "-" + strings.ToLower(string(f.format))
		put := func(text string) (int, error) {
			return client.Register(ctx, subject, schema.Definition{Format: f.format, Text: text})
		}
		one, err := put(f.first)
		if err != nil {
			t.Fatalf("%s: %v", f.format, err)
		}
		if again, err := put(f.first); err != nil || again != one {
			t.Errorf("%s: the same schema got %d, then %d (%v)", f.format, one, again, err)
		}
		two, err := put(f.second)
		if err != nil || two == one {
			t.Fatalf("%s: %d %v", f.format, two, err)
		}
		if _, err := put(f.bad); !fault.Is(err, fault.SchemaUnusable) {
			t.Errorf("%s: an incompatible schema: %v", f.format, err)
		}
		if good, _, err := client.Compatible(ctx, subject, schema.Definition{Format: f.format, Text: f.bad}); err != nil || good {
			t.Errorf("%s: called compatible, %v", f.format, err)
		}
		if versions, err := client.Versions(ctx, subject); err != nil || fmt.Sprint(versions) != "[1 2]" {
			t.Errorf("%s: %v %v", f.format, versions, err)
		}
		latest, err := client.At(ctx, subject, schema.Latest)
		if err != nil || latest.ID != two || latest.Version != 2 || latest.Format != f.format {
			t.Errorf("%s: %+v %v", f.format, latest, err)
		}
		d, err := client.ByID(ctx, one)
		if err != nil || d.Format != f.format {
			t.Errorf("%s: %+v %v", f.format, d, err)
		}
		if found, err := client.Find(ctx, subject, d); err != nil || found.Version != 1 || found.ID != one {
			t.Errorf("%s: %+v %v", f.format, found, err)
		}
		if _, err := client.Find(ctx, name+"-nobody", d); !fault.Is(err, fault.UnknownSchema) {
			t.Errorf("%s: %v", f.format, err)
		}
		if _, err := client.At(ctx, subject, 9); !fault.Is(err, fault.UnknownSchema) {
			t.Errorf("%s: %v", f.format, err)
		}
		if _, err := put("{"); !fault.Is(err, fault.SchemaUnusable) {
			t.Errorf("%s: a broken schema: %v", f.format, err)
		}
	}
	if _, err := client.ByID(ctx, 1<<30); !fault.Is(err, fault.UnknownSchema) {
		t.Errorf("%v", err)
	}
	if level, err := client.Level(ctx, name+"-nobody"); err != nil || level != schema.LevelBackward {
		t.Errorf("%v %v", level, err)
	}
	if subjects, err := client.Subjects(ctx); err != nil || !strings.Contains(fmt.Sprint(subjects), name+"-avro") {
		t.Errorf("%v %v", subjects, err)
	}
}

// TestReferencesThroughARegistry has a schema of each format that refers to another.
func TestReferencesThroughARegistry(t *testing.T) {
	url := aRegistry(t)
	client, err := schema.NewClient(schema.Options{URLs: []string{url}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("refs-%d", time.Now().UnixNano())
	put := func(subject string, d schema.Definition) int {
		t.Helper()
		id, err := client.Register(t.Context(), subject, d)
		if err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		return id
	}
	for format, texts := range map[schema.Format][3]string{
		schema.Avro:     {"shop.Home", `{"type":"record","name":"Home","namespace":"shop","fields":[{"name":"town","type":"string"}]}`, `{"type":"record","name":"Person","namespace":"shop","fields":[{"name":"home","type":"shop.Home"}]}`},
		schema.JSON:     {"home.json", `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"town":{"type":"string"}},"required":["town"]}`, `{"type":"object","properties":{"home":{"$ref":"home.json"}}}`},
		schema.Protobuf: {"home.proto", `syntax = "proto3"; package shop; message Home { string town = 1; }`, `syntax = "proto3"; package shop; import "home.proto"; message Person { Home home = 1; }`},
	} {
		base := name + "-" + strings.ToLower(string(format))
		put(base+"-home", schema.Definition{Format: format, Text: texts[1]})
		put(base+"-value", schema.Definition{Format: format, Text: texts[2], References: []schema.Reference{{Name: texts[0], Subject: base + "-home", Version: 1}}})
		checker := schema.NewChecker([]schema.TopicRules{{Match: "*", Rules: schema.Rules{Value: schema.PartRules{Rule: schema.Encode}}}}, schema.NewRegistry(client, time.Minute))
		e := &event.Event{Data: []byte(`{"home":{"town":"Ulm"}}`)}
		if err := checker.Check(t.Context(), base, e); err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		seen, err := checker.View(t.Context(), &event.Record{Topic: base, Value: e.Data})
		if err != nil || string(seen.Value) != `{"home":{"town":"Ulm"}}` {
			t.Errorf("%s: %v %v", format, seen, err)
		}
		if err := checker.Check(t.Context(), base, &event.Event{Data: []byte(`{"home":{"town":1}}`)}); format != schema.JSON && !fault.Is(err, fault.SchemaRefused) {
			t.Errorf("%s: %v", format, err)
		}
	}
	client.Close()
}

// TestContextsAndGroupsKeepSubjectsApart: Confluent's contexts on ours, Apicurio's groups, which a header names, on Apicurio.
func TestContextsAndGroupsKeepSubjectsApart(t *testing.T) {
	url := aRegistry(t)
	other := schema.Options{URLs: []string{url}, Context: "left"}
	if os.Getenv("SCHEMA_REGISTRY_URL") != "" {
		other = schema.Options{URLs: []string{url}, Headers: map[string]setting.Secret{"X-Registry-GroupId": setting.NewSecret("left")}}
	}
	clients := make([]*schema.Client, 2)
	for i, o := range []schema.Options{{URLs: []string{url}}, other} {
		var err error
		if clients[i], err = schema.NewClient(o, nil); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close()
	}
	subject := fmt.Sprintf("context-%d-value", time.Now().UnixNano())
	id, err := clients[1].Register(t.Context(), subject, schema.Definition{Format: schema.Avro, Text: `"string"`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clients[0].At(t.Context(), subject, schema.Latest); !fault.Is(err, fault.UnknownSchema) {
		t.Errorf("it is outside its context too: %v", err)
	}
	if found, err := clients[1].At(t.Context(), subject, schema.Latest); err != nil || found.ID != id {
		t.Errorf("%+v %v", found, err)
	}
	checker := schema.NewChecker([]schema.TopicRules{{Match: "*", Rules: schema.Rules{Value: schema.PartRules{Rule: schema.Encode}}}}, schema.NewRegistry(clients[1], time.Minute))
	e := &event.Event{Data: []byte(`"x"`)}
	if err := checker.Check(t.Context(), strings.TrimSuffix(subject, "-value"), e); err != nil {
		t.Error(err)
	}
	if err := checker.Check(t.Context(), strings.TrimSuffix(subject, "-value"), e); err != nil { // in the wire format now
		t.Error(err)
	}
}
