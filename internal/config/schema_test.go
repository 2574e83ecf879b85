package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-dev/postern/schema"
)

func loadText(t *testing.T, text string) (Config, error) {
	t.Helper()
	return Load(write(t, text), nil, map[string]string{"kafka.brokers": "127.0.0.1:9092"})
}

func TestSchemaRulesAreReadAsPeopleWriteThem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "order.avsc")
	if err := os.WriteFile(file, []byte(`{"type":"record","name":"R","fields":[]}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadText(t, `
schema_registry: {urls: ["https://a:8081", "http://b:8081"], basic: {username: u, password: secret}, latest_ttl: 5s}
topics:
  - match: "orders.*"
    schema: {value: {rule: encode, version: 2, read_as: latest}, key: {rule: validate, version: publisher, subject_strategy: topic_record}}
  - match: "made"
    schema: {value: {rule: encode, register: {file: `+file+`}, json: avro}}
`)
	if err != nil {
		t.Fatal(err)
	}
	rules := c.SchemaRules()
	if v := rules[0].Rules.Value; v.Rule != schema.Encode || v.Version.Number != 2 || v.ReadAs != "latest" {
		t.Errorf("%+v", v)
	}
	if k := rules[0].Rules.Key; !k.Version.Publisher || k.SubjectStrategy != schema.ByTopicRecord {
		t.Errorf("%+v", k)
	}
	if v := rules[1].Rules.Value; v.Register != `{"type":"record","name":"R","fields":[]}` || v.JSON != schema.AvroJSON {
		t.Errorf("%+v", v)
	}
	if c.SchemaRegistry.Timeout == 0 || c.SchemaRegistry.LatestTTL.Seconds() != 5 {
		t.Errorf("%+v", c.SchemaRegistry)
	}
}

func TestWrongSchemaRulesAreToldWithTheirPlaces(t *testing.T) {
	_, err := loadText(t, `
topics:
  - match: "orders.*"
    schema: {value: {rule: maybe}}
  - match: "x"
    schema: {value: {rule: encode}}
`)
	for _, want := range []string{":4:", "use off, validate or encode", "set schema_registry.urls", ":6:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if _, err := loadText(t, "topics: [{match: x, schema: {value: {rule: encode, version: 0}}}]\nschema_registry: {urls: [\"http://a\"]}\n"); err == nil || !strings.Contains(err.Error(), "no version") {
		t.Errorf("%v", err)
	}
}
