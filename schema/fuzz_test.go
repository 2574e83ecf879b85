package schema

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/twmb/avro"
)

// FuzzDocument: what we parse, encoding/json parses too, to the same value.
func FuzzDocument(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00\n",null,true,false,{}]}`, `{"a":1,"a":2}`, `"\ud800"`, `[[[[`, `01`, `{"\u0061":1,"a":2}`, "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var d document
		if d.parse(text) != nil {
			return
		}
		var theirs any
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&theirs); err != nil {
			t.Fatalf("we take what encoding/json refuses: %q: %v", text, err)
		}
		ours, err := json.Marshal(d.any(0))
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(theirs)
		if err != nil || !bytes.Equal(ours, want) {
			t.Fatalf("%q: %s, encoding/json has %s", text, ours, want)
		}
	})
}

const fuzzAvro = `{"type":"record","name":"R","fields":[{"name":"b","type":"boolean"},{"name":"i","type":"int"},{"name":"d","type":"double"},{"name":"f","type":"float"},
 {"name":"y","type":"bytes"},{"name":"s","type":"string"},{"name":"x","type":{"type":"fixed","name":"X","size":2}},{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
 {"name":"a","type":{"type":"array","items":["null","string","int"]}},{"name":"m","type":{"type":"map","values":"long"}},{"name":"n","type":{"type":"array","items":"null"}},
 {"name":"t","type":["null",{"type":"long","logicalType":"timestamp-micros"}]},{"name":"p","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
 {"name":"day","type":{"type":"int","logicalType":"date"}},{"name":"u","type":["null","R"]}]}`

// FuzzAvroFromJSON: what is taken is what the library reads, and comes back as the same bytes.
func FuzzAvroFromJSON(f *testing.F) {
	c := avroOf(f, fuzzAvro)
	f.Add([]byte(`{"b":true,"i":1,"d":1.5,"f":"NaN","y":"\u00ff","s":"x","x":"ab","e":"A","a":[null,{"string":"x"},7],"m":{"k":1},"n":[null],"t":"2026-01-31T10:00:00.000001Z","p":"-1.25","day":"2026-01-31","u":null}`), true)
	f.Add([]byte(`{"b":true,"i":1,"d":1.5,"f":0,"y":"","s":"","x":"ab","e":"B","a":[],"m":{},"n":[],"t":{"long":5},"p":"\u0001","day":1,"u":null}`), false)
	f.Fuzz(func(t *testing.T, text []byte, plain bool) {
		spelling := AvroJSON
		if plain {
			spelling = Plain
		}
		r := &report{}
		payload, _ := c.fromJSON(text, "", spelling, r)
		if !r.ok() {
			for _, v := range r.list {
				if v.Rule == "" || v.Expected == "" || v.Got == "" {
					t.Fatalf("a violation that says nothing: %+v", v)
				}
			}
			return
		}
		data := payload[headerRoom:]
		var v any
		if rest, err := c.schema.Decode(data, &v); err != nil || len(rest) > 0 {
			t.Fatalf("the library cannot read %x, made of %q: %v", data, text, err)
		}
		back, err := c.toJSON(data, nil, AvroJSON)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		again := &report{}
		if same, _ := c.fromJSON(back, "", AvroJSON, again); !again.ok() || !bytes.Equal(same[headerRoom:], data) {
			t.Fatalf("%q came back as %s: %v", text, back, again.list)
		}
	})
}

// FuzzAvroToJSON: any bytes give JSON or an error, in bounded memory; what we take the library takes too.
func FuzzAvroToJSON(f *testing.F) {
	c := avroOf(f, fuzzAvro)
	good := &report{}
	seed, _ := c.fromJSON([]byte(`{"b":true,"i":1,"d":1.5,"f":0,"y":"a","s":"s","x":"ab","e":"B","a":[null],"m":{"k":1},"n":[null],"t":5,"p":1,"day":1,"u":null}`), "", Plain, good)
	if !good.ok() {
		f.Fatal(good.list)
	}
	f.Add(seed[headerRoom:])
	f.Add([]byte("\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := c.toJSON(data, nil, Plain)
		r := &report{}
		if c.check(data, nil, r); r.ok() != (err == nil) {
			t.Fatalf("%x: checked %v, shown %v", data, r.list, err)
		}
		if err != nil {
			return
		}
		if !json.Valid(text) {
			t.Fatalf("%x became %s", data, text)
		}
		var v any
		if rest, err := c.schema.Decode(data, &v, avro.TaggedUnions()); err != nil || len(rest) > 0 {
			t.Fatalf("we read %x, the library does not: %v", data, err)
		}
	})
}

// FuzzProtobuf: any bytes under any index are read or refused, and what is shown can be taken back.
func FuzzProtobuf(f *testing.F) {
	c := orderCodec(f)
	f.Add([]byte("\x00\x00\x00\x00\x07\x00\x0a\x03abc\x10\x01"))
	f.Add([]byte("\x00\x00\x00\x00\x07\x02\x02\x0a\x03abc\x10\x01\x22\x02\x08\x05"))
	f.Fuzz(func(t *testing.T, value []byte) {
		fr, ok := parseFrame(value)
		if !ok {
			return
		}
		payload, index, ok := fr.payload(Protobuf)
		if !ok {
			return
		}
		text, err := c.toJSON(payload, index, Plain)
		if err != nil {
			return
		}
		r := &report{}
		name := c.recordName("", index)
		again, at := c.fromJSON(text, name, Plain, r)
		if !r.ok() {
			return // the rules of protovalidate, which showing does not ask
		}
		if shown, err := c.toJSON(again[headerRoom:], at, Plain); err != nil || !bytes.Equal(shown, text) {
			t.Fatalf("%s came back as %s (%v)", text, shown, err)
		}
	})
}

// FuzzJSONSchema: the checker's verdict is told in full for whatever is JSON.
func FuzzJSONSchema(f *testing.F) {
	c := codecOf(f, JSON, benchJSONSchema)
	f.Add([]byte(`{"id":"abc","lines":[{"item":"x"}]}`))
	f.Add([]byte(`{"id":1,"x":2,"lines":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &report{}
		c.check(text, nil, r)
		for _, v := range r.list {
			if v.Rule == "" || v.Expected == "" || v.Got == "" {
				t.Fatalf("a violation that says nothing: %+v", v)
			}
		}
	})
}

// FuzzWireHeader: a header that is read is written the same.
func FuzzWireHeader(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x07\x00x"))
	f.Add([]byte("\x00\x00\x00\x00\x07\x04\x02\x04x"))
	f.Fuzz(func(t *testing.T, value []byte) {
		fr, ok := parseFrame(value)
		if !ok {
			return
		}
		payload, index, ok := fr.payload(Protobuf)
		if !ok {
			return
		}
		again := seal(append(make([]byte, headerRoom), payload...), fr.id, index)
		back, ok := parseFrame(again)
		if !ok || back.id != fr.id {
			t.Fatalf("%x became %x", value, again)
		}
		body, at, ok := back.payload(Protobuf)
		if !ok || !bytes.Equal(body, payload) || len(index) != len(at) {
			t.Fatalf("%x became %x", value, again)
		}
	})
}

// FuzzSchemas: whatever a registry holds is compiled or refused, without harm.
func FuzzSchemas(f *testing.F) {
	for _, s := range []string{fuzzAvro, `"int"`, `{"type":"array","items":"R"}`} {
		f.Add(0, s)
	}
	f.Add(1, benchJSONSchema)
	f.Add(2, orderProto)
	f.Fuzz(func(_ *testing.T, kind int, text string) {
		format := []Format{Avro, JSON, Protobuf}[uint(kind)%3]
		c, err := compile(format, text, nil)
		if err != nil {
			return
		}
		c.fromJSON([]byte(`{"a":[1,"x",null]}`), "", Plain, &report{})
		c.check([]byte("\x02a\x04"), []int{0}, &report{})
		_, _ = c.toJSON([]byte("\x02a\x04"), []int{0}, Plain) // an error is as good as a text
	})
}
