package schema

import (
	"strings"
	"testing"
)

const orderProto = `syntax = "proto3";
package shop;
import "buf/validate/validate.proto";
import "google/protobuf/timestamp.proto";
import "person.proto";
message Envelope { message Inner { string a = 1; } int32 n = 1; }
message Order {
  string id = 1 [(buf.validate.field).string.min_len = 3];
  int32 qty = 2 [(buf.validate.field).int32.gt = 0];
  State state = 3;
  google.protobuf.Timestamp placed_at = 4;
  repeated Line lines = 5;
  map<string, int64> stock = 6;
  oneof pay { string card = 7; string iban = 8; }
  Person who = 9;
  bytes raw = 10;
  option (buf.validate.message).cel = {id: "order.card_small", message: "a card pays for at most 10", expression: "!has(this.card) || this.qty <= 10"};
}
message Line { string item = 1; uint32 count = 2 [(buf.validate.field).uint32.lte = 9]; }
enum State { STATE_UNSPECIFIED = 0; NEW = 1; }
`

const personProto = `syntax = "proto3"; package shop; message Person { string name = 1; }`

func orderCodec(t testing.TB) codec {
	return codecOf(t, Protobuf, orderProto, part{"person.proto", personProto})
}

func TestJSONBecomesProtobufAndComesBack(t *testing.T) {
	c := orderCodec(t)
	in := `{"id":"abc","qty":3,"state":"NEW","placedAt":"2026-01-31T10:00:00Z","lines":[{"item":"tea","count":2}],"stock":{"a":"5"},"card":"1","who":{"name":"anna"},"raw":"AAE="}`
	r := &report{}
	payload, index := c.fromJSON([]byte(in), "Order", Plain, r)
	if !r.ok() || len(index) != 1 || index[0] != 1 {
		t.Fatalf("%v %v", index, r.list)
	}
	value := seal(payload, 7, index)
	f, ok := parseFrame(value)
	if !ok || f.id != 7 {
		t.Fatalf("%x", value)
	}
	body, back, ok := f.payload(Protobuf)
	if !ok || len(back) != 1 || back[0] != 1 {
		t.Fatalf("%v", back)
	}
	out, err := c.toJSON(body, back, Plain)
	if err != nil || string(out) != in {
		t.Errorf("%s (%v)", out, err)
	}
	if name := c.recordName("", []int{0, 0}); name != "shop.Envelope.Inner" {
		t.Error(name)
	}
}

func TestEveryViolationOfAProtobufEventIsTold(t *testing.T) {
	c := orderCodec(t)
	for _, one := range []struct{ text, want string }{
		{
			`{"id":7,"qty":3000000000,"state":"LOST","placedAt":"soon","lines":[{"count":-1}],"stock":{"a":"x"},"card":"1","iban":"2","colour":1,"raw":"?"}`,
			"/id protobuf.type\n/qty protobuf.range\n/state protobuf.enum\n/placedAt protobuf.type\n/lines/0/count protobuf.range\n/stock/a protobuf.range\n/iban protobuf.oneof\n/colour protobuf.unknown_field\n/raw protobuf.type",
		},
		{`{"id":"a","qty":0,"lines":[{"count":3},{"count":10}]}`, "/id string.min_len\n/qty int32.gt\n/lines/1/count uint32.lte"},
		{`{"id":"abc","qty":11,"card":"1"}`, " order.card_small"},
		{`[]`, " protobuf.type"},
	} {
		r := &report{}
		c.fromJSON([]byte(one.text), "shop.Order", Plain, r)
		got := strings.Split(rulesOf(r), "\n")
		want := strings.Split(one.want, "\n")
		for _, w := range want {
			if !strings.Contains("\n"+strings.Join(got, "\n")+"\n", "\n"+w+"\n") {
				t.Errorf("%s: no %q in\n%s", one.text, w, strings.Join(got, "\n"))
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: got\n%s", one.text, strings.Join(got, "\n"))
		}
	}
}

func TestBytesOfProtobufAreChecked(t *testing.T) {
	c := orderCodec(t)
	for _, one := range []struct {
		bytes string
		index []int
		want  string
	}{
		{"\x0a\x03abc\x10\x01", []int{1}, ""},
		{"\x0a\x01a\x10\x01", []int{1}, "/id string.min_len"},
		{"\x0a\x09abc", []int{1}, " protobuf.bytes"},
		{"", []int{9}, " protobuf.message"},
	} {
		r := &report{}
		c.check([]byte(one.bytes), one.index, r)
		if got := rulesOf(r); got != one.want {
			t.Errorf("%q: %s, want %s", one.bytes, got, one.want)
		}
	}
}

func TestUnusableProtobufSchemasAreRefused(t *testing.T) {
	for _, text := range []string{
		`syntax = "proto3"; import "/etc/passwd"; message A {}`,
		`syntax = "proto3"; message A { string a = 1 `,
		`syntax = "proto3";`,
		`syntax = "proto3"; import "buf/validate/validate.proto"; message A { string a = 1 [(buf.validate.field).cel = {id: "x", expression: "this +"}]; }`,
	} {
		if _, err := compile(Protobuf, text, nil); err == nil {
			t.Errorf("%s was compiled", text)
		}
	}
}

func TestWireHeaderWithLongIndexes(t *testing.T) {
	for _, index := range [][]int{nil, {0}, {1}, {0, 3}, {5, 4, 3, 2, 1, 100, 1000, 70000, 1, 2, 3, 4}} {
		payload := append(make([]byte, headerRoom), "body"...)
		value := seal(payload, 1<<30, index)
		f, ok := parseFrame(value)
		if !ok || f.id != 1<<30 {
			t.Fatalf("%v: %x", index, value)
		}
		format := Protobuf
		if index == nil {
			format = Avro
		}
		body, back, ok := f.payload(format)
		if !ok || string(body) != "body" || len(back) != len(index) {
			t.Errorf("%v: %q %v", index, body, back)
		}
	}
	for _, bad := range []string{"", "\x00\x00\x00\x00", "\x01\x00\x00\x00\x01", "\x00\xff\x00\x00\x01"} {
		if _, ok := parseFrame([]byte(bad)); ok {
			t.Errorf("%x was taken", bad)
		}
	}
}
