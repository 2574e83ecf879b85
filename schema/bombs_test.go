package schema

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// soon is what each of these may take; unbounded they take minutes, or all memory.
const soon = 5 * time.Second

// within fails when work takes long.
func within(t *testing.T, name string, work func()) {
	t.Helper()
	began := time.Now()
	work()
	if took := time.Since(began); took > soon {
		t.Errorf("%s took %v", name, took)
	}
}

// doubling is a schema of depth records, each with two fields of the next.
func doubling(depth int, withDefaults bool) string {
	inner := `"null"`
	d := ""
	if withDefaults {
		inner, d = `"string"`, `,"default":"laugh"`
	}
	var text string
	for i := depth; i > 0; i-- {
		first := fmt.Sprintf(`{"name":"a","type":%s%s}`, inner, d)
		second := fmt.Sprintf(`{"name":"b","type":"R%d"%s}`, i+1, d)
		if i == depth {
			second = fmt.Sprintf(`{"name":"b","type":%s%s}`, inner, d)
		}
		text = fmt.Sprintf(`{"type":"record","name":"R%d","fields":[%s,%s]}`, i, first, second)
		if inner = text; withDefaults {
			d = `,"default":{}`
		}
	}
	return text
}

func TestEventsThatUnfoldToMoreThanMemoryAreRefusedSoon(t *testing.T) {
	nulls := avroOf(t, doubling(30, false)) // no byte at all stands for a billion nulls
	within(t, "showing", func() {
		if _, err := readBack(nulls, Plain, nil); err == nil {
			t.Error("a billion nulls were shown")
		}
	})
	within(t, "checking", func() {
		r := &report{}
		if nulls.check(nil, nil, r); r.ok() {
			t.Error("a billion nulls were taken")
		}
	})
	within(t, "defaults", func() {
		if _, err := newAvro(doubling(30, true), nil); err == nil || !strings.Contains(err.Error(), "defaults are larger") {
			t.Errorf("a billion defaults: %v", err)
		}
		if _, err := newAvro(`{"type":"record","name":"S","fields":[{"name":"s","type":"S","default":{}}]}`, nil); err == nil {
			t.Error("a default that holds itself was taken")
		}
		few, err := newAvro(doubling(5, true), nil)
		if err != nil {
			t.Fatal(err)
		}
		if out, wrong := write(few, Plain, "{}"); !wrong.ok() || strings.Count(string(out), "laugh") != 32 {
			t.Errorf("%q %v", out, wrong.list)
		}
	})
}

func TestDeepEventsAreRefusedInEveryFormat(t *testing.T) {
	const deep = 5000
	nested := strings.Repeat(`{"next":`, deep) + "null" + strings.Repeat("}", deep)
	proto := codecOf(t, Protobuf, `syntax = "proto3"; package p; message L { L next = 1; }`)
	for name, c := range map[string]codec{
		"Avro":        avroOf(t, `{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}`),
		"Protobuf":    proto,
		"JSON Schema": codecOf(t, JSON, `{"type":"object","properties":{"next":{"$ref":"#"}}}`),
	} {
		r := &report{}
		if c.fromJSON([]byte(nested), "", Plain, r); r.ok() || r.list[0].Rule != "json.depth" {
			t.Errorf("%s: %+v", name, r.list)
		}
	}
	// The same in Protobuf's bytes: each message holds the next.
	bytes := []byte{}
	for range 20_000 {
		bytes = append(appendVarint([]byte{0x0a}, len(bytes)), bytes...)
	}
	r := &report{}
	if proto.check(bytes, []int{0}, r); r.ok() {
		t.Error("a message 20,000 deep was taken")
	}
	if _, err := proto.toJSON(bytes, []int{0}, Plain); err == nil {
		t.Error("a message 20,000 deep was shown")
	}
}

func appendVarint(b []byte, n int) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func TestSchemasThatAreBombsAreRefusedOrHarmless(t *testing.T) {
	arrays := func(n int) string {
		return strings.Repeat(`{"type":"array","items":`, n) + `"int"` + strings.Repeat("}", n)
	}
	messages := func(n int) string {
		var b strings.Builder
		b.WriteString(`syntax = "proto3"; `)
		for i := range n {
			fmt.Fprintf(&b, "message M%d { ", i)
		}
		return b.String() + strings.Repeat("} ", n)
	}
	wide := make([]string, 10_000)
	for i := range wide {
		wide[i] = fmt.Sprintf(`{"name":"f%d","type":"int"}`, i)
	}
	for _, c := range []struct {
		name    string
		format  Format
		text    string
		refused bool
	}{
		{"Avro arrays in arrays", Avro, arrays(30_000), true},
		{"an Avro record of itself", Avro, `{"type":"record","name":"R","fields":[{"name":"r","type":"R"}]}`, false},
		{"a fixed of 2 GiB", Avro, `{"type":"fixed","name":"F","size":2147483647}`, false},
		{"10,000 fields", Avro, `{"type":"record","name":"W","fields":[` + strings.Join(wide, ",") + `]}`, false},
		{"JSON Schemas in one another", JSON, strings.Repeat(`{"items":`, 30_000) + "{}" + strings.Repeat("}", 30_000), true},
		{"a JSON Schema that is itself", JSON, `{"$ref":"#"}`, false},
		{"references in a circle", JSON, `{"$ref":"#/definitions/a","definitions":{"a":{"$ref":"#/definitions/b"},"b":{"$ref":"#/definitions/a"}}}`, false},
		{"a pattern of a billion states", JSON, `{"pattern":"((a{1000}){1000}){1000}"}`, true},
		{"Protobuf messages in one another", Protobuf, messages(10_000), true},
		{"more text than allowed", JSON, `{"title":"` + strings.Repeat("x", 2<<20) + `"}`, true},
	} {
		within(t, c.name, func() {
			one, err := compile(c.format, c.text, nil)
			if c.refused != (err != nil) {
				t.Errorf("%s: %.200v", c.name, err)
			}
			if err != nil {
				return
			}
			r := &report{}
			one.fromJSON([]byte(`{"a":[1]}`), "", Plain, r)
			one.check([]byte("\x02a\x04"), []int{0}, r)
			_, _ = one.toJSON([]byte("\x02a\x04"), []int{0}, Plain) // an error is as good as a text
		})
	}
}

func TestAReadersLargeDefaultIsNotGivenToCountlessSmallRecords(t *testing.T) {
	field := `{"name":"x","type":"int"}`
	of := func(fields string) string {
		return `{"type":"array","items":{"type":"record","name":"R","fields":[` + fields + `]}}`
	}
	s := newShelf()
	id := s.put("orders-value", avroDef(of(field)))
	s.put("orders-value", avroDef(of(field+`,{"name":"y","type":"string","default":"`+strings.Repeat("y", 100_000)+`"}`)))
	c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode, ReadAs: "latest"}})
	list := func(n int) []byte {
		b := binary.AppendVarint([]byte{0, 0, 0, 0, byte(id)}, int64(n))
		return append(append(b, make([]byte, n)...), 0)
	}
	if seen, err := c.View(t.Context(), &event.Record{Topic: "orders", Value: list(10)}); err != nil || len(seen.Value) < 1_000_000 {
		t.Errorf("ten records: %v", err)
	}
	within(t, "a hundred thousand records", func() {
		if _, err := c.View(t.Context(), &event.Record{Topic: "orders", Value: list(100_000)}); reasonOf(err) != fault.Undecodable || !strings.Contains(err.Error(), "too large") {
			t.Errorf("a hundred thousand records of 100 KB: %v", err)
		}
	})
}
