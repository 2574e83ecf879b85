package tail

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/postern-dev/postern/schema"
)

func TestAsyncAPIHoldsEveryTopicWithItsSchema(t *testing.T) {
	b, err := json.Marshal(asyncAPI("gw:7600", false, []describedTopic{
		{name: "plain", partitions: 3},
		{name: "avro", value: &schema.Description{Rule: schema.Encode, Subject: "avro-value", Version: "latest", Format: schema.Avro, Text: `{"type":"record","name":"R","fields":[]}`}},
		{name: "proto.v1", value: &schema.Description{Rule: schema.Validate, Subject: "p", Version: "2", Format: schema.Protobuf, Text: `syntax = "proto3";`}, key: &schema.Description{Format: schema.Avro, Text: `"long"`}},
		{name: "many", value: &schema.Description{Rule: schema.Encode, Strategy: schema.ByRecord, Version: "publisher"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		AsyncAPI string
		Channels map[string]struct {
			Address  string
			Messages map[string]struct {
				Ref string `json:"$ref"`
			}
		}
		Operations map[string]struct{ Action string }
		Components struct {
			Messages map[string]struct {
				Summary string
				Payload struct {
					SchemaFormat string
					Schema       json.RawMessage
				}
			}
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.AsyncAPI != "3.0.0" || len(doc.Channels) != 4 || len(doc.Operations) != 8 || doc.Channels["plain"].Address != "/v1/topics/plain/events" {
		t.Errorf("%s", b)
	}
	if doc.Channels["proto.v1"].Messages["event"].Ref != "#/components/messages/proto.v1" || doc.Operations["publish.avro"].Action != "receive" {
		t.Errorf("%s", b)
	}
	avro := doc.Components.Messages["avro"]
	if !strings.HasPrefix(avro.Payload.SchemaFormat, "application/vnd.apache.avro") || string(avro.Payload.Schema) != `{"type":"record","name":"R","fields":[]}` {
		t.Errorf("%+v", avro)
	}
	if got := doc.Components.Messages["proto.v1"].Payload; got.SchemaFormat != "application/vnd.google.protobuf;version=3" || string(got.Schema) != `"syntax = \"proto3\";"` {
		t.Errorf("%+v", got)
	}
}

func TestAsyncAPIHoldsTheDeploymentsSubscriptionsAndEndpoints(t *testing.T) {
	topics := []describedTopic{{name: "orders"}, {name: "subscription"}, {name: "users"}}
	for i := range maxReferred + 5 {
		topics = append(topics, describedTopic{name: fmt.Sprintf("many.%d", i)})
	}
	doc := asyncAPI("gw:7600", true, topics)
	only := func(names ...string) func(string) bool {
		return func(topic string) bool { return slices.Contains(names, topic) }
	}
	addSubscriptions(doc, topics, []Declared{
		{Name: "mail", Reads: only("orders", "users")},
		{Name: "hook", Reads: only("orders"), Summary: "As JSON.", Endpoint: &Endpoint{"example.com:8443", "https"}},
		{Name: "app", Reads: only("orders"), Endpoint: &Endpoint{"127.0.0.1:50051", "grpc"}},
		{Name: "all", Reads: func(string) bool { return true }},
	})
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	type ref struct {
		Ref string `json:"$ref"`
	}
	var got struct {
		Servers  map[string]struct{ Host, Protocol string }
		Channels map[string]struct {
			Address  *string
			Servers  []ref
			Messages map[string]ref
		}
		Operations map[string]struct {
			Action, Summary string
			Channel         ref
			Messages        []ref
			Bindings        map[string]struct{ Method string }
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Channels) != len(topics)+4 || len(got.Operations) != 2*len(topics)+4 || len(got.Servers) != 3 {
		t.Errorf("%d channels, %d operations, %d servers", len(got.Channels), len(got.Operations), len(got.Servers))
	}
	mail := got.Operations["subscribe.mail"]
	if mail.Action != "send" || mail.Channel.Ref != "#/channels/subscription:mail" || fmt.Sprint(mail.Messages) != "[{#/channels/subscription:mail/messages/orders} {#/channels/subscription:mail/messages/users}]" || mail.Bindings["http"].Method != "GET" {
		t.Errorf("%+v", mail)
	}
	if c := got.Channels["subscription:mail"]; *c.Address != "/v1/subscriptions/mail/events" || c.Servers[0].Ref != "#/servers/http" || c.Messages["users"].Ref != "#/components/messages/users" {
		t.Errorf("%+v", c)
	}
	hook := got.Operations["push.hook"]
	if s := got.Servers["push.hook"]; s.Host != "example.com:8443" || s.Protocol != "https" || hook.Bindings["http"].Method != "POST" || !strings.Contains(hook.Summary, "As JSON.") {
		t.Errorf("%+v %+v", s, hook)
	}
	if c := got.Channels["subscription:hook"]; c.Address != nil || c.Servers[0].Ref != "#/servers/push.hook" {
		t.Errorf("%+v", c)
	}
	if got.Servers["push.app"].Protocol != "grpc" || len(got.Operations["push.app"].Bindings) != 0 {
		t.Errorf("%+v", got.Servers["push.app"])
	}
	if n := len(got.Operations["subscribe.all"].Messages); n != maxReferred {
		t.Errorf("%d topics are listed for one subscription", n)
	}
}
