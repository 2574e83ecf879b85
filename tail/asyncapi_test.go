package tail

import (
	"encoding/json"
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
