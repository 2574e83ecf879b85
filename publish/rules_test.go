package publish

import (
	"strings"
	"testing"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestTheFirstRuleThatMatchesATopicIsItsRule(t *testing.T) {
	book := newRuleBook([]TopicRules{
		{"orders.eu.*", Rules{MaxEventBytes: 10}},
		{"orders.*", Rules{Durability: "all_replicas", Compression: "zstd"}},
	}, 1000)
	for topic, want := range map[string]string{"orders.eu.x": "orders.eu.*", "orders.x": "orders.*", "else": ""} {
		for range 2 { // found, then remembered
			if got := book.of(topic).match; got != want {
				t.Errorf("%s has the rule %q, want %q", topic, got, want)
			}
		}
	}
	if how := book.of("orders.x").how(broker.Leader); how != (broker.How{Durability: broker.AllReplicas, Compression: "zstd"}) {
		t.Errorf("below the floor: %v", how)
	}
	if how := book.of("else").how(broker.Leader); how.Durability != broker.Leader {
		t.Errorf("without a floor: %v", how)
	}
	if book.of("else").limit != 1000 || book.of("orders.eu.x").limit != 10 {
		t.Error("limits")
	}
}

func TestAnEventOutsideItsTopicsRuleIsRefusedWithAReasonOfItsOwn(t *testing.T) {
	cloudEvent := event.Event{ID: "1", Source: "/s", Type: "t", ContentType: "application/json; charset=utf-8", Data: []byte("{}"), Partition: -1}
	plain := event.Event{ContentType: "text/plain", Data: []byte("x"), Partition: -1}
	for _, c := range []struct {
		name  string
		rules Rules
		event event.Event
		want  fault.Reason
	}{
		{"a content type it allows", Rules{ContentTypes: []string{"application/json"}}, cloudEvent, ""},
		{"a content type it does not", Rules{ContentTypes: []string{"application/json"}}, plain, fault.ContentTypeRefused},
		{"no content type", Rules{ContentTypes: []string{"application/json"}}, event.Event{Partition: -1}, fault.ContentTypeRefused},
		{"an attribute it demands", Rules{RequiredAttributes: []string{"subject"}}, cloudEvent, fault.AttributeRequired},
		{"an attribute that is there", Rules{RequiredAttributes: []string{"id", "datacontenttype"}}, cloudEvent, ""},
		{"attributes of a plain payload", Rules{RequiredAttributes: []string{"id"}}, plain, fault.AttributeRequired},
		{"a key it demands", Rules{RequireKey: true}, plain, fault.KeyRequired},
		{"the key by the partitionkey extension", Rules{RequireKey: true}, event.Event{ID: "1", Source: "/s", Type: "t", Extensions: []event.Attribute{{Name: "partitionkey", Value: "k"}}, Partition: -1}, ""},
		{"too large", Rules{MaxEventBytes: 5}, plain, fault.EventTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRuleBook([]TopicRules{{"*", c.rules}}, 1<<20).of("orders")
			err := r.admit("orders", &c.event)
			if err == nil {
				err = r.record(&event.Record{}, "orders", &c.event)
			}
			if got := fault.Of(err); c.want == "" && err != nil || c.want != "" && (err == nil || got.Reason != c.want || got.Metadata["topic"] != "orders") {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestACloudEventIsWrittenStructuredWhereTheRuleSaysSo(t *testing.T) {
	r := newRuleBook([]TopicRules{{"*", Rules{CloudEvents: "structured"}}}, 1<<20).of("orders")
	e := event.Event{
		ID: "1", Source: "/s", Type: "t", ContentType: "application/json", Data: []byte(`{"a":1}`), Partition: -1,
		Extensions: []event.Attribute{{Name: "partitionkey", Value: "k"}}, Headers: []event.Header{{Name: "shop", Value: []byte("berlin")}},
	}
	record, plain := new(event.Record), new(event.Record)
	if err := r.record(record, "orders", &e); err != nil {
		t.Fatal(err)
	}
	if content, _ := record.Header("content-type"); !strings.HasPrefix(string(content), "application/cloudevents+json") {
		t.Errorf("content-type %q", content)
	}
	if shop, _ := record.Header("shop"); string(shop) != "berlin" || string(record.Key) != "k" {
		t.Errorf("key %q headers %v", record.Key, record.Headers)
	}
	back, err := event.FromStructuredJSON(record.Value)
	if err != nil || back.ID != "1" || string(back.Data) != `{"a":1}` || back.Extension("partitionkey") != "k" {
		t.Errorf("%s: %v %v", record.Value, back, err)
	}
	if err := r.record(plain, "orders", &event.Event{Data: []byte("x"), Partition: -1}); err != nil || string(plain.Value) != "x" {
		t.Errorf("a plain payload is written as %q %v", plain.Value, err)
	}
}

func TestEveryWrongRuleIsNamed(t *testing.T) {
	err := Rules{Durability: "none", Compression: "rar", MaxEventBytes: -1, ContentTypes: []string{"json"}, RequiredAttributes: []string{"Sub-ject"}, CloudEvents: "xml"}.Validate()
	for _, want := range []string{"durability", "compression", "max_event_bytes", "content_types[0]", "required_attributes[0]", "cloudevents"} {
		if err == nil || !strings.Contains(err.Error(), want+": ") {
			t.Errorf("%s is not named in: %v", want, err)
		}
	}
	if err := (Rules{Durability: "leader", Compression: "lz4", ContentTypes: []string{"application/json"}, RequiredAttributes: []string{"subject"}, CloudEvents: "binary"}).Validate(); err != nil {
		t.Error(err)
	}
}
