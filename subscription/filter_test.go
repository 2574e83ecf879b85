package subscription

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// order is an event with everything a filter may look at.
func order() *event.Record {
	r := (&event.Event{
		ID: "1", Source: "/shop", Type: "order.created", Subject: "anna", Time: time.Date(2026, 1, 31, 10, 0, 0, 0, time.UTC), ContentType: "application/json",
		Extensions: []event.Attribute{{Name: "region", Value: "eu"}}, Key: []byte("k1"), Partition: 3,
		Headers: []event.Header{{Name: "x-try", Value: []byte("1")}, {Name: "x-try", Value: []byte("2")}},
		Data:    []byte(` {"total": 120.5, "items": [{"name":"tea","n":2},{"name":"cup","n":1}], "paid": true, "note": null, "who": {"name": "An\u006ea", "age": 30}} `),
	}).Record("orders")
	r.Offset, r.Timestamp = 42, time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	return r
}

func plain() *event.Record {
	return &event.Record{Topic: "orders", Value: []byte("hello"), Headers: []event.Header{{Name: "x", Value: []byte{0xff}}}}
}

func TestFilterSaysMatchNoMatchOrWhyNot(t *testing.T) {
	attributes := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	cel := func(s string) FilterSpec { return FilterSpec{CEL: s} }
	sql := func(s string) FilterSpec { return FilterSpec{SQL: s} }
	broken := cel(`data.nowhere == 1`)
	for _, c := range []struct {
		filter FilterSpec
		record *event.Record
		want   bool
		err    string
	}{
		{cel(`event.type == "order.created"`), order(), true, ""},
		{cel(`event.type == "order.created" && data.total > 100`), order(), true, ""},
		{cel(`data.total == 120.5 && data.paid && data.note == null && data.who.name == "Anna" && data.who.age == 30`), order(), true, ""},
		{cel(`data.items.exists(i, i.name == "cup" && i.n == 1) && data.items[0].n == 2 && size(data.items) == 2`), order(), true, ""},
		{cel(`size(data) == 5 && "paid" in data && !("x" in data) && data == data && data.who == {"name": "Anna", "age": 30.0}`), order(), true, ""},
		{cel(`has(data.who.name) && !has(data.who.size) && data.?who.?size.orValue(1) == 1`), order(), true, ""},
		{cel(`data.all(k, k != "missing")`), order(), true, ""},
		{cel(`has(event.subject) && event.subject.startsWith("an") && !has(event.dataschema) && event.dataschema == ""`), order(), true, ""},
		{cel(`event.time > timestamp("2026-01-01T00:00:00Z") && event.time.getFullYear() == 2026`), order(), true, ""},
		{cel(`event.region == "eu" && event.id == "1" && event.source == "/shop" && event.specversion == "1.0" && event.datacontenttype == "application/json"`), order(), true, ""},
		{cel(`headers["x-try"] == "2" && !("ce_id" in headers) && !("content-type" in headers)`), order(), true, ""},
		{cel(`string(key) == "k1" && key == b"k1" && topic == "orders" && partition == 3 && offset == 42 && appended > event.time && size(raw) > 10`), order(), true, ""},
		{cel(`event.type == "other"`), order(), false, ""},
		{cel(`event.type == "" && event.time == timestamp(0) && headers["x"] == "\ufffd" && string(raw) == "hello" && size(key) == 0`), plain(), true, ""},
		{cel(`data.nowhere == 1`), order(), false, "no such key: nowhere"},
		{cel(`data.total == 1`), plain(), false, "the data is no JSON"},
		{cel(`data.total == 1`), &event.Record{}, false, "no data"},
		{cel(`event.type == "" || data.total == 1`), plain(), true, ""}, // what is not needed is not read
		{cel(`headers["nope"] == "1"`), order(), false, "no such key"},
		{cel(`data.total`), order(), false, "neither true nor false"},
		{cel(`data.items.map(a, data.items.map(b, a.name + b.name)).size() == 2`), order(), true, ""},

		{FilterSpec{Exact: attributes("type", "order.created", "region", "eu")}, order(), true, ""},
		{FilterSpec{Exact: attributes("type", "order.created", "region", "us")}, order(), false, ""},
		{FilterSpec{Exact: attributes("specversion", "1.0")}, order(), true, ""},
		{FilterSpec{Exact: attributes("specversion", "1.0")}, plain(), false, ""},
		{FilterSpec{Exact: attributes("nothere", "1")}, order(), false, ""},
		{FilterSpec{Prefix: attributes("type", "order.")}, order(), true, ""},
		{FilterSpec{Prefix: attributes("type", "order.created.and.more")}, order(), false, ""},
		{FilterSpec{Suffix: attributes("type", ".created")}, order(), true, ""},
		{FilterSpec{Suffix: attributes("type", "x.order.created")}, order(), false, ""},
		{FilterSpec{Not: &FilterSpec{Exact: attributes("type", "order.created")}}, order(), false, ""},
		{FilterSpec{Not: &FilterSpec{Exact: attributes("type", "x")}}, plain(), true, ""},
		{FilterSpec{All: []FilterSpec{{Exact: attributes("id", "1")}, sql(`type LIKE 'order.%'`)}}, order(), true, ""},
		{FilterSpec{Any: []FilterSpec{{Exact: attributes("id", "2")}, sql(`type LIKE '%deleted'`)}}, order(), false, ""},
		{FilterSpec{Any: []FilterSpec{broken, {Exact: attributes("id", "1")}}}, order(), true, ""},
		{FilterSpec{Any: []FilterSpec{broken, {Exact: attributes("id", "2")}}}, order(), false, "no such key"},
		{FilterSpec{All: []FilterSpec{broken, {Exact: attributes("id", "2")}}}, order(), false, ""},
		{FilterSpec{All: []FilterSpec{broken, {Exact: attributes("id", "1")}}}, order(), false, "no such key"},
		{FilterSpec{Not: &broken}, order(), false, "no such key"},

		{sql(`type = 'order.created' AND EXISTS subject AND LENGTH(subject) = 4 AND region IN ('eu', 'us')`), order(), true, ""},
		{sql(`specversion = '1.0' AND id = 1 AND source = '/shop' AND type = 'order.created' AND subject = 'anna'`), order(), true, ""},
		{sql(`time = '2026-01-31T10:00:00Z' AND datacontenttype LIKE '%/json' AND NOT EXISTS dataschema AND NOT EXISTS partitionkey`), order(), true, ""},
		{sql(`nothere = 'x'`), order(), false, ""},
		{sql(`NOT (EXISTS nothere)`), order(), true, ""},
		{sql(`NOT (EXISTS nothere)`), plain(), false, ""},
		{sql(`ABS(id) = 1`), order(), true, ""},
		{sql(`ABS(subject) = 1`), order(), false, "cast"},
		{sql(`id`), order(), false, "neither true nor false"},
	} {
		f, err := NewFilter(c.filter)
		if err != nil {
			t.Errorf("%+v: %v", c.filter, err)
			continue
		}
		for range 2 { // what one evaluation leaves must not show in the next
			ok, err := f.Match(c.record, nil)
			if ok != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v %v, want %v %q", f, ok, err, c.want, c.err)
			}
		}
	}
}

func TestDataInTheWireFormatIsAskedForOnlyWhenTheAnswerDependsOnIt(t *testing.T) {
	r := &event.Record{Topic: "t", Key: []byte("k"), Value: []byte("\x00\x00\x00\x00\x07payload")}
	const yes, no, ask = "yes", "no", "ask"
	for _, c := range []struct {
		filter      FilterSpec
		first, then string
	}{
		{FilterSpec{CEL: `data.amount > 10`}, ask, yes},
		{FilterSpec{CEL: `data.amount > 20`}, ask, no},
		{FilterSpec{CEL: `topic == "t"`}, yes, yes},
		{FilterSpec{CEL: `size(raw) == 12`}, yes, yes}, // raw stays what Kafka has
		{FilterSpec{CEL: `topic == "u" && data.amount > 10`}, no, no},
		{FilterSpec{CEL: `data.amount > 10 && topic == "u"`}, no, no},
		{FilterSpec{CEL: `data.amount > 10 || topic == "t"`}, yes, yes},
		{FilterSpec{CEL: `topic == "t" && data.amount > 10`}, ask, yes},
		{FilterSpec{CEL: `has(data.colour)`}, ask, no},
		{FilterSpec{Any: []FilterSpec{{CEL: `topic == "t"`}, {CEL: `data.amount > 20`}}}, yes, yes},
		{FilterSpec{All: []FilterSpec{{CEL: `data.amount > 10`}, {Exact: map[string]string{"type": "x"}}}}, no, no},
		{FilterSpec{Not: &FilterSpec{CEL: `data.amount > 20`}}, ask, yes},
		{FilterSpec{SQL: `EXISTS type`}, no, no}, // CESQL knows attributes only
	} {
		f, err := NewFilter(c.filter)
		if err != nil {
			t.Fatal(err)
		}
		for i, decoded := range [][]byte{nil, []byte(`{"amount":15}`)} {
			match, err := f.Match(r, decoded)
			got := map[bool]string{true: yes, false: no}[match]
			if errors.Is(err, delivery.ErrEncoded) {
				got, err = ask, nil
			}
			if want := []string{c.first, c.then}[i]; got != want || err != nil {
				t.Errorf("%s, decoded %s: %s, %v; want %s", f, decoded, got, err, want)
			}
		}
	}
}

func TestWrongFilterIsRefusedWithThePlaceInIt(t *testing.T) {
	deep := FilterSpec{Exact: map[string]string{"id": "1"}}
	for range 10 {
		deep = FilterSpec{Not: &FilterSpec{CEL: deep.CEL, Exact: deep.Exact, Not: deep.Not}}
	}
	many := FilterSpec{All: make([]FilterSpec, 200)}
	for i := range many.All {
		many.All[i] = FilterSpec{Exact: map[string]string{"id": "1"}}
	}
	for _, c := range []struct {
		filter FilterSpec
		want   []string
	}{
		{FilterSpec{CEL: "event.type == 5"}, []string{"cel: 1:12: found no matching overload", "\n    event.type == 5\n               ^"}},
		{FilterSpec{CEL: "true &&\nevnt.type == 'x'"}, []string{"cel: 2:1: undeclared reference to 'evnt'", "\n    evnt.type == 'x'\n    ^"}},
		{FilterSpec{CEL: "event.Type == 'x'"}, []string{"undefined field 'Type'"}},
		{FilterSpec{CEL: "event.type =="}, []string{"Syntax error"}},
		{FilterSpec{CEL: "event.type"}, []string{"gives a string", "true or false"}},
		{FilterSpec{CEL: "event.type.matches('(')"}, []string{"invalid matches argument"}},
		{FilterSpec{CEL: "data.a.all(x, data.b.all(y, data.c.all(z, x == z)))"}, []string{"comprehension exceeds nesting limit"}},
		{FilterSpec{CEL: strings.Repeat("true && ", 2000) + "true"}, []string{"at most 8192 bytes"}},
		{FilterSpec{SQL: "type LIKE"}, []string{"sql: 1:10: missing", "\n    type LIKE\n             ^"}},
		{FilterSpec{SQL: "type = 'x' AND [true]"}, []string{"sql: 1:16: token recognition error at: '['"}},
		{FilterSpec{SQL: "NOSUCH(type)"}, []string{"sql: 1:1: there is no function NOSUCH of 1 arguments"}},
		{FilterSpec{}, []string{"filter: it says nothing"}},
		{FilterSpec{CEL: "true", SQL: "true"}, []string{"it sets [cel sql]"}},
		{FilterSpec{All: []FilterSpec{{CEL: "true"}, {Not: &FilterSpec{}}}}, []string{"all[1].not: it says nothing"}},
		{FilterSpec{Exact: map[string]string{"Type": "x", "id": ""}}, []string{`exact: "Type" is not an attribute's name`, "the value for id is empty"}},
		{deep, []string{"8 deep"}},
		{many, []string{"at most 100 parts"}},
	} {
		_, err := NewFilter(c.filter)
		if err == nil {
			t.Errorf("%+v is accepted", c.filter)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("want %q in:\n%v", want, err)
			}
		}
	}
}

func TestAnExpressionThatIsTooMuchWorkIsAnErrorSoon(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	list := "[" + strings.Repeat(`"abcdefgh",`, 5000) + `"z"]`
	var keys, members strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&keys, `"key%d",`, i)
		fmt.Fprintf(&members, `"key%d":%d,`, i, i)
	}
	for _, c := range []struct{ expression, data string }{
		{`data.a.all(x, data.a.all(y, x == y || x != y))`, `{"a":` + list + `}`},
		{`data.keys.all(k, k == 0 || data.of[k] >= 0 && data.of[k] < 100000) && data.keys.all(k, k != 1)`, `{"keys":[` + keys.String() + `0],"of":{` + members.String() + `"n":0}}`},
		{`data.a.all(x, size(data.a) > 0) && data.a.all(x, data.a[0] == "abcdefgh") && data.a.all(x, data.a.exists(y, x == y))`, `{"a":` + list + `}`},
		{`string(raw).matches("(a|b|c|d|e|f|g|h)*z")`, `{"a":` + list + `}`},
	} {
		f, err := NewFilter(FilterSpec{CEL: c.expression})
		if err != nil {
			t.Fatal(err)
		}
		began := worked(t)
		ok, err := f.Match(&event.Record{Value: []byte(c.data)}, nil)
		took := worked(t) - began
		t.Log(took.Round(time.Millisecond), ok, err)
		if err != nil && !strings.Contains(err.Error(), "cost limit") {
			t.Errorf("%s: got %v", c.expression, err)
		}
		if took > 2*time.Second {
			t.Errorf("%s took %s", c.expression, took)
		}
	}
	f, err := NewFilter(FilterSpec{CEL: `data.a.all(x, data.a.all(y, x == y || x != y))`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Match(&event.Record{Value: []byte(`{"a":` + list + `}`)}, nil); err == nil || !strings.Contains(err.Error(), "cost limit") {
		t.Errorf("25 million steps: got %v", err)
	}
}

func TestAFieldFoundByScanningIsTheOneThatTheDecoderGives(t *testing.T) {
	for _, text := range []string{
		`{"a":1,"a":2}`, `{ "b" : [ {"a":"}"} , "]" ] , "a" : { "c" : "\"{" } }`, `{"\u0061":"x","z":-1.5e3}`, `{}`, `{"a":"é\ud800"}`, "{\"a\":\"\xff\"}", `{"a":1e999}`,
	} {
		compareWithDecoder(t, []byte(text))
	}
}

func FuzzLazyJSON(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,2,{"c":"d"}]},"e":"\n"}`))
	f.Add([]byte(`{"a":1,"a":[}`))
	f.Fuzz(compareWithDecoder)
}

func compareWithDecoder(t *testing.T, text []byte) {
	v := jsonValue(text)
	if !json.Valid(text) {
		if !types.IsError(v) {
			t.Errorf("%q is read as %v", text, v)
		}
		return
	}
	object, ok := v.(*jsonObject)
	if !ok {
		return
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	for name, raw := range members {
		got, found := object.Find(types.String(name))
		if !found {
			t.Errorf("%q: %q is not found", text, name)
			continue
		}
		want := wholly(raw)
		if types.IsError(want) && types.IsError(got) {
			continue
		}
		if want.Equal(got) != types.True && !bytes.Contains(raw, []byte("1e")) {
			t.Errorf("%q: %q is %v, want %v", text, name, got, want)
		}
		object.Iterator()
		object.Size()
	}
	if _, found := object.Find(types.String("\x00 not there")); found && members["\x00 not there"] == nil {
		t.Errorf("%q has what it has not", text)
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{`event.type == "x"`, `data.a.b[0] > 1`, `type LIKE 'a%'`, `NOT EXISTS x`, `ABS(`, `has(data.x)`, `headers["a"].matches("b+")`} {
		f.Add(s, []byte(`{"a":{"b":[1]}}`))
	}
	f.Fuzz(func(t *testing.T, expression string, data []byte) {
		for _, spec := range []FilterSpec{{CEL: expression}, {SQL: expression}} {
			filter, err := NewFilter(spec)
			if err != nil {
				continue
			}
			r := order()
			r.Value = data
			_, _ = filter.Match(r, nil) // it must not panic
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	r := order()
	r.Value = fmt.Appendf(nil, `{"pad":%q,"total":120.5,"who":{"name":"anna"}}`, strings.Repeat("x", 1000))
	for name, spec := range map[string]FilterSpec{
		"exact":         {Exact: map[string]string{"type": "order.created"}},
		"cel/attribute": {CEL: `event.type == "order.created" && event.region != "us"`},
		"cel/data":      {CEL: `data.total > 100 && data.who.name == "anna"`},
		"sql":           {SQL: `type LIKE 'order.%'`},
	} {
		f, err := NewFilter(spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := f.Match(r, nil); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
