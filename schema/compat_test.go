package schema

import (
	"strings"
	"testing"

	"github.com/twmb/avro"
)

func parsedOf(t testing.TB, f Format, text string) *Parsed {
	t.Helper()
	p, err := Parse(t.Context(), Definition{Format: f, Text: text}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pathsOf(found []Incompatibility) string {
	var all []string
	for _, i := range found {
		all = append(all, i.Path+" "+i.Rule)
	}
	return strings.Join(all, "\n")
}

func TestEveryIncompatibilityIsNamedWithItsPath(t *testing.T) {
	for _, c := range []struct {
		name     string
		format   Format
		old, new string
		backward string
		forward  string
	}{
		{"a field with a default is added", Avro, v1, v2, "", ""},
		{"a field without one", Avro, v1, strings.Replace(v2, `,"default":1`, "", 1), "Order.qty avro.required", ""},
		{
			"several at once", Avro,
			`{"type":"record","name":"Order","fields":[{"name":"id","type":"string"},{"name":"n","type":"long"},{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},{"name":"u","type":["null","string"]}]}`,
			`{"type":"record","name":"Order","fields":[{"name":"id","type":"boolean"},{"name":"n","type":"int"},{"name":"e","type":{"type":"enum","name":"E","symbols":["A"]}},{"name":"u","type":"string"},{"name":"x","type":"int"}]}`,
			"Order.id avro.type\nOrder.n avro.type\nOrder.e avro.enum\nOrder.u avro.type\nOrder.x avro.required",
			"Order.id avro.type",
		},
		{
			"Protobuf types and oneofs", Protobuf,
			`syntax="proto3"; package p; message A { string id=1; int32 n=2; string x=3; string y=4; repeated int32 l=5; map<string,string> m=6; } message B {}`,
			`syntax="proto3"; package p; message A { int64 id=1; int64 n=2; oneof o { string x=3; string y=4; } int32 l=5; map<string,int32> m=6; }`,
			"A.id protobuf.type\nA.l protobuf.label\nA.m[] protobuf.type\nA.o protobuf.oneof\nB protobuf.message",
			"A.id protobuf.type\nA.l protobuf.label\nA.m[] protobuf.type",
		},
		{"Protobuf grows", Protobuf, `syntax="proto3"; message A { string id=1; }`, `syntax="proto3"; message A { bytes id=1; string more=2; } message C {}`, "", "C protobuf.message"},
		{
			"JSON members", JSON,
			`{"type":"object","properties":{"id":{"type":"string"},"n":{"type":"integer","minimum":1},"s":{"enum":["a","b"]}},"required":["id"],"additionalProperties":false}`,
			`{"type":"object","properties":{"id":{"type":"string","maxLength":9},"n":{"type":"number","minimum":0},"s":{"enum":["a"]},"new":{"type":"string"}},"required":["id","n"],"additionalProperties":false}`,
			"/properties/id/maxLength json.maxLength\n/properties/s/enum json.enum\n/properties/n json.required",
			"/properties/n/minimum json.minimum\n/properties/n/type json.type\n/properties/new json.additionalProperties",
		},
		{"an open JSON schema", JSON, `{"type":"object"}`, `{"type":"object","properties":{"n":{"type":"string"}}}`, "/properties/n json.open", ""},
		{
			"JSON unions and references", JSON,
			`{"$ref":"#/definitions/n","definitions":{"n":{"type":"object","properties":{"next":{"$ref":"#/definitions/n"}}}}}`,
			`{"$ref":"#/definitions/n","definitions":{"n":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/definitions/n"},{"type":"null"}]}}}}}`,
			"", "/properties/next/type json.type",
		},
		{"what cannot be shown", JSON, `{"type":"object"}`, `{"type":"object","not":{"required":["x"]}}`, "/not undecided", ""},
		{"the same", JSON, `{"not":{"type":"string"}}`, `{"title":"x","not":{"type":"string"}}`, "", ""},
	} {
		earlier := []Earlier{{1, parsedOf(t, c.format, c.old)}}
		next := parsedOf(t, c.format, c.new)
		if got := pathsOf(Compatible(LevelBackward, next, earlier)); !sameLines(got, c.backward) {
			t.Errorf("%s, backward:\n%s\nwant\n%s", c.name, got, c.backward)
		}
		if got := pathsOf(Compatible(LevelForward, next, earlier)); !strings.Contains(got, strings.Split(c.forward, "\n")[0]) || (got == "") != (c.forward == "") {
			t.Errorf("%s, forward:\n%s\nwant\n%s", c.name, got, c.forward)
		}
		if got := Compatible(LevelNone, next, earlier); len(got) > 0 {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func sameLines(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(x) != len(y) {
		return false
	}
	for _, l := range x {
		if !strings.Contains("\n"+b+"\n", "\n"+l+"\n") {
			return false
		}
	}
	return true
}

func TestTransitiveLevelsLookAtEveryVersion(t *testing.T) {
	a := parsedOf(t, Avro, `{"type":"record","name":"R","fields":[]}`)
	b := parsedOf(t, Avro, `{"type":"record","name":"R","fields":[{"name":"x","type":"int","default":1}]}`)
	c := parsedOf(t, Avro, `{"type":"record","name":"R","fields":[{"name":"x","type":"int"}]}`)
	earlier := []Earlier{{1, a}, {2, b}}
	if found := Compatible(LevelBackward, c, earlier); len(found) != 0 {
		t.Errorf("%v", found)
	}
	if found := Compatible(LevelBackwardTransitive, c, earlier); len(found) != 1 || found[0].Version != 1 {
		t.Errorf("%v", found)
	}
	if found := Compatible(LevelFullTransitive, c, earlier); len(found) != 1 || !strings.Contains(found[0].String(), "R.x") {
		t.Errorf("%v", found)
	}
}

// TestOurListAgreesWithTheLibrary: where the library finds a fault we name one, on pairs of small schemas.
func TestOurListAgreesWithTheLibrary(t *testing.T) {
	types := []string{
		`"null"`, `"int"`, `"long"`, `"double"`, `"string"`, `"bytes"`, `["null","int"]`, `["int","string"]`, `["string","null","long"]`,
		`{"type":"array","items":"int"}`, `{"type":"map","values":"long"}`, `{"type":"fixed","name":"F","size":2}`, `{"type":"fixed","name":"F","size":3}`,
		`{"type":"enum","name":"E","symbols":["A"]}`, `{"type":"enum","name":"E","symbols":["A","B"]}`, `{"type":"enum","name":"E","symbols":["A"],"default":"A"}`,
		`{"type":"record","name":"R","fields":[]}`, v1, v2, `{"type":"record","name":"Other","aliases":["shop.Order"],"fields":[{"name":"key","aliases":["id"],"type":"string"}]}`,
		`{"type":"record","name":"N","fields":[{"name":"n","type":["null","N"]}]}`, `{"type":"record","name":"N","fields":[{"name":"n","type":["N","null","int"]}]}`,
		`{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}`, `{"type":"bytes","logicalType":"decimal","precision":4,"scale":1}`,
	}
	for _, old := range types {
		for _, next := range types {
			r, w := parsedOf(t, Avro, next), parsedOf(t, Avro, old)
			theirs := avro.CheckCompatibility(w.codec.(*avroCodec).schema, r.codec.(*avroCodec).schema)
			d := avroDiffer{differ: &differ{}, seen: map[[2]*avroType]bool{}}
			d.compare(r.codec.(*avroCodec).root, w.codec.(*avroCodec).root, "")
			if (theirs == nil) != (len(d.found) == 0) {
				t.Errorf("%s read as %s: the library says %v, we %v", old, next, theirs, d.found)
			}
		}
	}
}
