package schema

import (
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/avro"
)

const orderSchema = `{"type":"record","name":"Order","namespace":"shop","fields":[
 {"name":"id","type":"string"},
 {"name":"qty","type":"int"},
 {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
 {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
 {"name":"day","type":["null",{"type":"int","logicalType":"date"}],"default":null},
 {"name":"state","type":{"type":"enum","name":"State","symbols":["NEW","PAID"]},"default":"NEW"},
 {"name":"tags","type":{"type":"array","items":"string"},"default":[]},
 {"name":"who","type":["null","string",{"type":"record","name":"Person","fields":[{"name":"name","type":"string"}]}],"default":null},
 {"name":"extra","type":{"type":"map","values":"double"},"default":{"x":1.5}}
]}`

func avroOf(t testing.TB, text string) *avroCodec {
	t.Helper()
	c, err := newAvro(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(c *avroCodec, spelling Spelling, text string) ([]byte, *report) {
	w := avroWriter{spelling: spelling, report: &report{}}
	w.write(c.root, []byte(text))
	return w.out, w.report
}

func readBack(c *avroCodec, spelling Spelling, data []byte) (string, error) {
	r := avroReader{data: data, spelling: spelling}
	err := r.read(c.root)
	return string(r.out), err
}

func TestPlainJSONBecomesAvroAndComesBack(t *testing.T) {
	c := avroOf(t, orderSchema)
	in := `{"qty":3,"id":"a\u0041\n","price":"12.5","at":"2026-01-31T10:00:00.250Z","day":"2026-01-31","who":{"name":"anna"},"tags":["x","y"]}`
	data, wrong := write(c, Plain, in)
	if !wrong.ok() {
		t.Fatal(wrong.list)
	}
	got, err := readBack(c, Plain, data)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"aA\n","qty":3,"price":"12.50","at":"2026-01-31T10:00:00.25Z","day":"2026-01-31","state":"NEW","tags":["x","y"],"who":{"name":"anna"},"extra":{"x":1.5}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	tagged, err := readBack(c, AvroJSON, data)
	if err != nil {
		t.Fatal(err)
	}
	again, wrong := write(c, AvroJSON, tagged)
	if !wrong.ok() || string(again) != string(data) {
		t.Errorf("Avro's own spelling %s does not lead back: %v", tagged, wrong.list)
	}
	// The library, tested against Java, agrees on every byte.
	var v any
	if err := c.schema.DecodeJSON([]byte(tagged), &v, avro.TaggedUnions()); err != nil {
		t.Fatal(err)
	}
	if theirs, err := c.schema.Encode(v); err != nil || string(theirs) != string(data) {
		t.Errorf("the library writes %x (%v), we write %x", theirs, err, data)
	}
}

func TestEveryViolationOfAnAvroEventIsTold(t *testing.T) {
	c := avroOf(t, orderSchema)
	_, wrong := write(c, Plain, `{"id":7,"qty":3000000000,"price":"12.345","at":"yesterday","state":"LOST","tags":["x",1],"who":{"name":true},"extra":{"a/b":"no"},"colour":"red"}`)
	var got []string
	for _, v := range wrong.list {
		got = append(got, v.Field+" "+v.Rule)
	}
	want := []string{
		"/id avro.type", "/qty avro.range", "/price avro.decimal", "/at avro.timestamp-millis", "/state avro.enum", "/tags/1 avro.type",
		"/who/name avro.type", "/extra/a~1b avro.type", "/colour avro.unknown_field",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if wrong.list[0].Expected != "string" || wrong.list[0].Got != "number 7" {
		t.Errorf("expected and got: %+v", wrong.list[0])
	}
	_, wrong = write(c, Plain, `{"qty":1}`)
	if len(wrong.list) != 3 || wrong.list[0].Rule != "avro.required" || wrong.list[0].Field != "/id" {
		t.Errorf("missing fields: %+v", wrong.list)
	}
}

func TestAmbiguousUnionsAreRefusedUntilNamed(t *testing.T) {
	for _, c := range []struct {
		schema, value, rule, named string
	}{
		{`["int","long"]`, `7`, "avro.union_ambiguous", `{"long":7}`},
		{`["int","long"]`, `3000000000`, "", ""},
		{`["string","bytes"]`, `"x"`, "avro.union_ambiguous", `{"bytes":"x"}`},
		{`["null","string",{"type":"map","values":"string"}]`, `{"string":"x"}`, "avro.union_ambiguous", `{"map":{"string":"x"}}`},
		{`["null","string",{"type":"map","values":"string"}]`, `{"colour":"x"}`, "", ""},
		{`[{"type":"record","name":"A","fields":[{"name":"n","type":"int"}]},{"type":"record","name":"B","fields":[{"name":"n","type":"long"}]}]`, `{"n":1}`, "avro.union_ambiguous", `{"B":{"n":1}}`},
		{`[{"type":"record","name":"A","fields":[{"name":"n","type":"int"}]},{"type":"record","name":"B","fields":[{"name":"m","type":"long"}]}]`, `{"m":1}`, "", ""},
		{`["null","int"]`, `"x"`, "avro.union", ""},
	} {
		codec := avroOf(t, c.schema)
		_, wrong := write(codec, Plain, c.value)
		rule := ""
		if !wrong.ok() {
			rule = wrong.list[0].Rule
		}
		if rule != c.rule {
			t.Errorf("%s for %s: %v, want %s", c.value, c.schema, wrong.list, c.rule)
		}
		if c.named == "" {
			continue
		}
		if _, wrong := write(codec, Plain, c.named); !wrong.ok() {
			t.Errorf("%s for %s: %v", c.named, c.schema, wrong.list)
		}
	}
}

func TestLogicalTypesInBothSpellings(t *testing.T) {
	for _, c := range []struct{ schema, plain, avro, refused string }{
		{`{"type":"int","logicalType":"date"}`, `"1969-12-31"`, `-1`, `"31.1.2026"`},
		{`{"type":"int","logicalType":"time-millis"}`, `"10:15:00.5"`, `36900500`, `"10:15:00.0005"`},
		{`{"type":"long","logicalType":"time-micros"}`, `"10:15:00.000001"`, `36900000001`, `"25:00:00"`},
		{`{"type":"long","logicalType":"timestamp-micros"}`, `"2026-01-31T10:00:00.000001Z"`, `1769853600000001`, `"2026-01-31T10:00:00.0000001Z"`},
		{`{"type":"long","logicalType":"timestamp-nanos"}`, `"1970-01-01T00:00:00.000000007Z"`, `7`, `"2400-01-01T00:00:00Z"`},
		{`{"type":"long","logicalType":"local-timestamp-millis"}`, `"1970-01-01T00:00:00.007"`, `7`, `"1970-01-01T00:00:00.007Z"`},
		{`{"type":"string","logicalType":"uuid"}`, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, `"six"`},
		{`{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}`, `"6162636a-6162-636a-6162-636a6162636a"`, `"abcjabcjabcjabcj"`, `"abcjabcjabcjabcj"`},
		{`{"type":"bytes","logicalType":"decimal","precision":6,"scale":2}`, `"-1.28"`, `"\u0080"`, `1234567.25`},
		{`{"type":"fixed","name":"D","size":2,"logicalType":"decimal","precision":4,"scale":1}`, `"0.1"`, `"\u0000\u0001"`, `"0.12"`},
		{`{"type":"fixed","name":"P","size":12,"logicalType":"duration"}`, `{"months":1,"days":2,"milliseconds":3}`, `"\u0001\u0000\u0000\u0000\u0002\u0000\u0000\u0000\u0003\u0000\u0000\u0000"`, `"P1M"`},
	} {
		codec := avroOf(t, c.schema)
		data, wrong := write(codec, Plain, c.plain)
		if !wrong.ok() {
			t.Errorf("%s: %v", c.plain, wrong.list)
			continue
		}
		if same, wrong := write(codec, AvroJSON, c.avro); !wrong.ok() || string(same) != string(data) {
			t.Errorf("%s and %s differ: %x %x %v", c.plain, c.avro, data, same, wrong.list)
		}
		if plain, err := readBack(codec, Plain, data); err != nil || plain != c.plain {
			t.Errorf("plain: %s (%v), want %s", plain, err, c.plain)
		}
		if own, err := readBack(codec, AvroJSON, data); err != nil || own != c.avro {
			t.Errorf("Avro's: %s (%v), want %s", own, err, c.avro)
		}
		if _, wrong := write(codec, Plain, c.refused); wrong.ok() {
			t.Errorf("%s was taken for %s", c.refused, c.schema)
		}
		var v any
		if rest, err := codec.schema.Decode(data, &v); err != nil || len(rest) > 0 {
			t.Errorf("the library cannot read %x as %s: %v", data, c.schema, err)
		}
	}
}

func TestNestedUnionsCannotCostForEver(t *testing.T) {
	// Each level is of A or B, and both read alike: without a bound 2^depth ways are tried.
	c := avroOf(t, `[{"type":"record","name":"A","fields":[{"name":"n","type":["null","A",{"type":"record","name":"B","fields":[{"name":"n","type":["null","A","B"]}]}]}]},"null"]`)
	text := strings.Repeat(`{"n":`, 60) + "null" + strings.Repeat("}", 60)
	_, wrong := write(c, Plain, text)
	if wrong.ok() {
		t.Error("an ambiguous tree was taken")
	}
}

func TestRecursionAndBombsAreBounded(t *testing.T) {
	list := avroOf(t, `{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}`)
	if _, wrong := write(list, Plain, strings.Repeat(`{"next":`, 5000)+"null"+strings.Repeat("}", 5000)); wrong.ok() || wrong.list[0].Rule != "json.depth" {
		t.Errorf("%+v", wrong.list)
	}
	if _, err := readBack(list, Plain, []byte(strings.Repeat("\x02", 1<<20))); err == nil || !strings.Contains(err.Error(), "avro.depth") {
		t.Errorf("%v", err)
	}
	nulls := avroOf(t, `{"type":"array","items":"null"}`)
	if _, err := readBack(nulls, Plain, []byte("\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\x00")); err == nil || !strings.Contains(err.Error(), "avro.items") {
		t.Errorf("%v", err)
	}
	if _, err := newAvro(`{"type":"record","name":"R","fields":[`+strings.Repeat(`{"name":"a","type":{"type":"array","items":`, 3)+`]}`, nil); err == nil {
		t.Error("a broken schema was compiled")
	}
}

func TestLargeEventsAreNoBombs(t *testing.T) {
	flags := avroOf(t, `{"type":"array","items":{"type":"record","name":"F","fields":[{"name":"on","type":"boolean"}]}}`)
	text := "[" + strings.Repeat(`{"on":true},`, 200_000) + `{"on":false}]`
	data, wrong := write(flags, Plain, text)
	if !wrong.ok() {
		t.Fatal(wrong.list)
	}
	if back, err := readBack(flags, Plain, data); err != nil || back != text {
		t.Errorf("%v", err)
	}
	// A wide record whose members come in the other order.
	var fields, members []string
	for i := range 1000 {
		fields = append(fields, `{"name":"f`+strconv.Itoa(i)+`","type":"int"}`)
		members = append(members, `"f`+strconv.Itoa(999-i)+`":`+strconv.Itoa(i))
	}
	wide := avroOf(t, `{"type":"record","name":"W","fields":[`+strings.Join(fields, ",")+`]}`)
	if _, wrong := write(wide, Plain, "{"+strings.Join(members, ",")+"}"); !wrong.ok() {
		t.Error(wrong.list[0])
	}
}

// TestEveryValueTheLibraryWritesIsReadAlike holds both walks against the library on random values.
func TestEveryValueTheLibraryWritesIsReadAlike(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	c := avroOf(t, `{"type":"record","name":"R","fields":[
	 {"name":"b","type":"boolean"},{"name":"i","type":"int"},{"name":"l","type":"long"},{"name":"f","type":"float"},{"name":"d","type":"double"},
	 {"name":"y","type":"bytes"},{"name":"s","type":"string"},{"name":"x","type":{"type":"fixed","name":"X","size":3}},
	 {"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},{"name":"a","type":{"type":"array","items":["null","string","int"]}},
	 {"name":"m","type":{"type":"map","values":"long"}},{"name":"u","type":["null","R"]}]}`)
	var value func(depth int) map[string]any
	value = func(depth int) map[string]any {
		text := []string{"", "a", "ü\"\\\n\x01", strings.Repeat("x", 100)}[random.IntN(4)]
		v := map[string]any{
			"b": random.IntN(2) == 0, "i": int32(random.Uint32()), "l": int64(random.Uint64()), "f": random.Float32(), "d": random.NormFloat64() * 1e30,
			"y": []byte(text), "s": text, "x": []byte{0, 0xff, '"'}, "e": "B", "a": []any{nil, text, int32(5)}, "m": map[string]any{text: int64(1)}, "u": nil,
		}
		if depth < 4 {
			v["u"] = value(depth + 1)
		}
		return v
	}
	for range 300 {
		data, err := c.schema.Encode(value(0))
		if err != nil {
			t.Fatal(err)
		}
		for _, spelling := range []Spelling{Plain, AvroJSON} {
			text, err := readBack(c, spelling, data)
			if err != nil {
				t.Fatal(err)
			}
			if !json.Valid([]byte(text)) {
				t.Fatalf("not JSON: %s", text)
			}
			again, wrong := write(c, spelling, text)
			if !wrong.ok() || string(again) != string(data) {
				t.Fatalf("%s: %s\nbecame %x\nwas    %x\n%v", spelling, text, again, data, wrong.list)
			}
		}
	}
}
