package schema

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/postern-dev/postern/event"
)

const benchSchema = `{"type":"record","name":"Order","namespace":"shop","fields":[
 {"name":"id","type":"string"},{"name":"customer","type":"string"},{"name":"placed","type":{"type":"long","logicalType":"timestamp-millis"}},
 {"name":"total","type":"double"},{"name":"paid","type":"boolean"},{"name":"note","type":["null","string"],"default":null},
 {"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[{"name":"item","type":"string"},{"name":"count","type":"int"},{"name":"price","type":"double"}]}}},
 {"name":"labels","type":{"type":"map","values":"string"}}]}`

// benchEvent is an order of about 1 KiB of JSON.
func benchEvent() (text []byte, native map[string]any) {
	var lines []any
	var parts []string
	for i := range 12 {
		lines = append(lines, map[string]any{"item": fmt.Sprintf("tea number %d", i), "count": int32(i), "price": float64(i) + 0.5})
		parts = append(parts, fmt.Sprintf(`{"item":"tea number %d","count":%d,"price":%d.5}`, i, i, i))
	}
	text = fmt.Appendf(nil, `{"id":"6ba7b810-9dad-11d1","customer":"Anna Bertram","placed":1769853600000,"total":123.45,"paid":true,"note":"ring twice","lines":[%s],"labels":{"region":"eu","tier":"gold"}}`,
		strings.Join(parts, ","))
	native = map[string]any{
		"id": "6ba7b810-9dad-11d1", "customer": "Anna Bertram", "placed": int64(1769853600000), "total": 123.45, "paid": true, "note": "ring twice",
		"lines": lines, "labels": map[string]any{"region": "eu", "tier": "gold"},
	}
	return text, native
}

func BenchmarkAvroFromJSON(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, _ := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		r := report{}
		if c.fromJSON(text, "", Plain, &r); !r.ok() {
			b.Fatal(r.list)
		}
	}
}

// BenchmarkAvroLibraryFromMap is the yardstick: the codec library encoding a Go map of the same event.
func BenchmarkAvroLibraryFromMap(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, native := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.schema.Encode(native); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAvroLibraryFromJSON is what we would pay without a walk of our own.
func BenchmarkAvroLibraryFromJSON(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, _ := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var v any
		if err := c.schema.DecodeJSON(text, &v); err != nil {
			b.Fatal(err)
		}
		if _, err := c.schema.Encode(v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAvroToJSON(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, _ := benchEvent()
	data, _ := write(c, Plain, string(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.toJSON(data, nil, Plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAvroCheck(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, _ := benchEvent()
	data, _ := write(c, Plain, string(text))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		r := report{}
		if c.check(data, nil, &r); !r.ok() {
			b.Fatal(r.list)
		}
	}
}

const benchJSONSchema = `{"type":"object","required":["id","lines"],"additionalProperties":false,"properties":{
 "id":{"type":"string","minLength":3},"customer":{"type":"string"},"placed":{"type":"integer"},"total":{"type":"number","minimum":0},"paid":{"type":"boolean"},
 "note":{"type":["null","string"]},"labels":{"type":"object","additionalProperties":{"type":"string"}},
 "lines":{"type":"array","items":{"type":"object","required":["item"],"properties":{"item":{"type":"string"},"count":{"type":"integer"},"price":{"type":"number"}}}}}}`

func BenchmarkJSONSchemaPerKiB(b *testing.B) {
	c := codecOf(b, JSON, benchJSONSchema)
	text, _ := benchEvent()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		r := report{}
		if c.check(text, nil, &r); !r.ok() {
			b.Fatal(r.list)
		}
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n)*1024/float64(len(text)), "ns/KiB")
}

const benchProto = `syntax = "proto3"; package shop; message Order { string id=1; string customer=2; int64 placed=3; double total=4; bool paid=5; string note=6; repeated Line lines=7; map<string,string> labels=8; }
 message Line { string item=1; int32 count=2; double price=3; }`

func BenchmarkProtobufFromJSON(b *testing.B) {
	c := codecOf(b, Protobuf, benchProto)
	text, _ := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		r := report{}
		if c.fromJSON(text, "", Plain, &r); !r.ok() {
			b.Fatal(r.list)
		}
	}
}

// BenchmarkProtobufLibraryFromJSON is protojson alone, into a message of the same kind.
func BenchmarkProtobufLibraryFromJSON(b *testing.B) {
	c := codecOf(b, Protobuf, benchProto).(*protoCodec)
	text, _ := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if err := protojson.Unmarshal(text, dynamicpb.NewMessage(c.message("", nil))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProtobufToJSON(b *testing.B) {
	c := codecOf(b, Protobuf, benchProto)
	text, _ := benchEvent()
	data, _ := c.fromJSON(text, "", Plain, &report{})
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.toJSON(data[headerRoom:], []int{0}, Plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckOfATopicWithoutARule(b *testing.B) {
	c := checkerOf(b, newShelf(), Rules{Value: PartRules{Rule: Encode}})
	e := &event.Event{Data: []byte("x")}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Check(context.Background(), "plain", e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckAndEncode(b *testing.B) {
	s := newShelf()
	s.put("orders-value", avroDef(benchSchema))
	c := checkerOf(b, s, Rules{Value: PartRules{Rule: Encode}})
	text, _ := benchEvent()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		e := event.Event{Data: text}
		if err := c.Check(context.Background(), "orders", &e); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTheBenchmarksEventIsOneOfItsSchemas(t *testing.T) {
	text, native := benchEvent()
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil || len(v) != len(native) {
		t.Fatal(err)
	}
	c := avroOf(t, benchSchema)
	ours, wrong := write(c, Plain, string(text))
	theirs, err := c.schema.Encode(native)
	if err != nil || !wrong.ok() || len(ours) != len(theirs) {
		t.Errorf("%d and %d bytes, %v %v", len(ours), len(theirs), wrong.list, err)
	}
}

// BenchmarkAvroAgainstLibrary reports the time of encoding JSON as a multiple of
// the library's for a Go map of the same event, measured in turns. At most 2 is promised.
func BenchmarkAvroAgainstLibrary(b *testing.B) {
	c := avroOf(b, benchSchema)
	text, native := benchEvent()
	var ours, theirs time.Duration
	for b.Loop() {
		began := time.Now()
		for range 100 {
			c.fromJSON(text, "", Plain, &report{}) // that it fits is tried above
		}
		middle := time.Now()
		for range 100 {
			if _, err := c.schema.Encode(native); err != nil {
				b.Fatal(err)
			}
		}
		ours, theirs = ours+middle.Sub(began), theirs+time.Since(middle)
	}
	b.ReportMetric(float64(ours)/float64(theirs), "x-library")
}

func TestEncodingJSONAllocatesNoMoreThanTheLibraryDoesForAMap(t *testing.T) {
	c := avroOf(t, benchSchema)
	text, native := benchEvent()
	r := &report{}
	ours := testing.AllocsPerRun(200, func() { c.fromJSON(text, "", Plain, r) })
	theirs := testing.AllocsPerRun(200, func() { _, _ = c.schema.Encode(native) }) // it was tried above
	if !r.ok() || ours > theirs+1 {                                                // a collection in between empties the pool of writers
		t.Errorf("%v allocations, the library takes %v; %v", ours, theirs, r.list)
	}
}
