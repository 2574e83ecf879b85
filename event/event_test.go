package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRecordAndBackKeepsEveryByte(t *testing.T) {
	for name, r := range map[string]*Record{
		"plain":                      {Value: []byte("v"), Key: []byte{0xff}, Headers: []Header{{"a", []byte{0}}, {"a", nil}, {"", []byte{}}}},
		"tombstone":                  {Key: []byte("k")},
		"empty":                      {Value: []byte{}, Key: []byte{}},
		"CloudEvent":                 {Value: []byte("v"), Headers: []Header{{"content-type", []byte("text/plain")}, {"ce_specversion", []byte("1.0")}, {"ce_id", []byte("1")}, {"ce_source", []byte("/s")}, {"ce_type", []byte("t")}, {"ce_subject", []byte("caf\u00e9")}, {"ce_ext", []byte("")}, {"h", []byte("x")}}},
		"ce_ header twice":           {Value: []byte("v"), Headers: []Header{{"ce_specversion", []byte("1.0")}, {"ce_id", []byte("1")}, {"ce_id", []byte("2")}, {"ce_source", []byte("/s")}, {"ce_type", []byte("t")}}},
		"ce_ value that is no UTF-8": {Headers: []Header{{"ce_specversion", []byte("1.0")}, {"ce_id", []byte{0xff}}, {"ce_source", []byte("/s")}, {"ce_type", []byte("t")}}},
		"half a CloudEvent":          {Headers: []Header{{"ce_specversion", []byte("1.0")}, {"ce_id", []byte("1")}}},
		"version of tomorrow":        {Headers: []Header{{"ce_specversion", []byte("2.0")}, {"ce_id", []byte("1")}, {"ce_source", []byte("/s")}, {"ce_type", []byte("t")}}},
		"content type of nobody":     {Headers: []Header{{"content-type", []byte{0xff}}, {"content-type", []byte("text/plain")}}},
	} {
		t.Run(name, func(t *testing.T) { roundTrip(t, r) })
	}
}

// roundTrip reads r as an event and writes it again: the same bytes, headers in any order.
func roundTrip(t *testing.T, r *Record) {
	t.Helper()
	r.Topic, r.Offset = "t", -1
	e := r.Event()
	got := e.Record("t")
	if !bytes.Equal(got.Key, r.Key) || (got.Key == nil) != (r.Key == nil) || !bytes.Equal(got.Value, r.Value) || (got.Value == nil) != (r.Value == nil) {
		t.Errorf("key %q value %q became %q %q", r.Key, r.Value, got.Key, got.Value)
	}
	count := func(r *Record) map[string]int {
		m := map[string]int{}
		for _, h := range r.Headers {
			m[fmt.Sprintf("%q=%q nil=%v", h.Name, h.Value, h.Value == nil)]++
		}
		return m
	}
	if !reflect.DeepEqual(count(got), count(r)) {
		t.Errorf("headers %v became %v", count(r), count(got))
	}
}

func FuzzRecordAndBack(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), "ce_id", []byte("1"), "ce_time", []byte("2026-01-31T10:00:00Z"), true)
	f.Add([]byte(nil), []byte(nil), "content-type", []byte{0xff}, "ce_data", []byte("x"), false)
	f.Fuzz(func(t *testing.T, key, value []byte, n1 string, v1 []byte, n2 string, v2 []byte, ce bool) {
		r := &Record{Key: key, Value: value, Headers: []Header{{n1, v1}, {n2, v2}}}
		if ce {
			r.Headers = append(r.Headers, Header{"ce_specversion", []byte("1.0")}, Header{"ce_id", []byte("i")}, Header{"ce_source", []byte("s")}, Header{"ce_type", []byte("t")})
		}
		if e := r.Event(); !e.Time.IsZero() {
			t.Skip("a time is written in its canonical form")
		}
		roundTrip(t, r)
	})
}

func TestModeIsToldByTheContentTypeBatchFirst(t *testing.T) {
	for contentType, want := range map[string]Mode{
		"application/cloudevents-batch+json": Batch, "application/cloudevents-batch+json; charset=utf-8": Batch, "application/cloudevents-batch+avro": Unsupported,
		"application/cloudevents+json": Structured, "APPLICATION/CloudEvents+JSON": Structured, "application/cloudevents+avro": Unsupported, "application/cloudevents+protobuf": StructuredProto, "application/cloudevents-batch+protobuf": BatchProto,
		"application/x-ndjson": NDJSON, "application/json": Plain, "": Plain,
	} {
		if got := DetectMode(http.Header{"Content-Type": {contentType}}); got != want {
			t.Errorf("%q: %d, want %d", contentType, got, want)
		}
	}
	if got := DetectMode(http.Header{"Content-Type": {"application/json"}, "Ce-Id": {"1"}}); got != Binary {
		t.Errorf("with ce-id: %d", got)
	}
}

// CloudEvents HTTP binding, section 3.1.3.2.
func TestHeaderValuesArePercentDecodedOnceAfterUnquoting(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "caf%C3%A9": "caf\u00e9", "caf%c3%a9": "caf\u00e9", `"a b"`: "a b", `"a\"b"`: `a"b`, "%2520": "%20", "100 %": "100 %", "%4": "%4", "%GG%41": "%GGA", "Euro%20%E2%82%AC%20%F0%9F%98%80": "Euro \u20ac \U0001F600",
	} {
		got, err := decodeHeaderValue(in)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
		if back, err := decodeHeaderValue(encodeHeaderValue(want)); err != nil || back != want {
			t.Errorf("%q encoded and decoded is %q, %v", want, back, err)
		}
	}
	for _, in := range []string{"%C0%A0", "%FF", "\xff"} {
		if got, err := decodeHeaderValue(in); err == nil {
			t.Errorf("%q is taken as %q", in, got)
		}
	}
}

func TestStructuredJSONKeepsDataAndExtensions(t *testing.T) {
	for name, c := range map[string]struct{ in, data, contentType string }{
		"JSON as it was sent":   {`"data":{"b" : [1, 2.50]}`, `{"b" : [1, 2.50]}`, "application/json"},
		"text":                  {`"datacontenttype":"text/plain","data":"h\u00e9"`, "h\u00e9", "text/plain"},
		"a JSON string":         {`"data":"x"`, `"x"`, "application/json"},
		"base64":                {`"datacontenttype":"image/png","data_base64":"AP8="`, "\x00\xff", "image/png"},
		"null that means null":  {`"data":null`, "null", "application/json"},
		"an attribute of null":  {`"subject":null,"data":1`, "1", "application/json"},
		"booleans and integers": {`"flag":true,"n":-7,"data":1`, "1", "application/json"},
	} {
		e, err := FromStructuredJSON([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t",` + c.in + `}`))
		if err != nil || string(e.Data) != c.data || e.ContentType != c.contentType {
			t.Errorf("%s: %q %q %v", name, e.Data, e.ContentType, err)
			continue
		}
		if err := e.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again, err := FromStructuredJSON(e.AppendStructuredJSON(nil))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Errorf("%s: written and read again %+v, %v, want %+v", name, again, err, e)
		}
	}
	for _, bad := range []string{
		`[]`, `{`, `{"specversion":"1.0"} x`, `{"specversion":"1.0","id":1}`, `{"specversion":"1.0","id":"1","id":"2"}`, `{"specversion":"1.0","ext":1.5}`,
		`{"specversion":"1.0","ext":{}}`, `{"specversion":"1.0","Ext":"x"}`, `{"specversion":"1.0","data_base64":"%"}`, `{"specversion":"1.0","time":"noon"}`,
		`{"specversion":"1.0","ext":2147483648}`, `{"specversion":"0.3"}`, `{"id":"1"}`, "{\"specversion\":\"1.0\",\"id\":\"\xff\"}", `{"specversion":"1.0","subject":""}`,
	} {
		if e, err := FromStructuredJSON([]byte(bad)); err == nil {
			t.Errorf("%s is taken as %+v", bad, e)
		}
	}
}

func FuzzFromStructuredJSON(f *testing.F) {
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","n":7,"data":{"a":1}}`))
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-01-31T10:00:00Z","datacontenttype":"text/xml","data":"<a/>"}`))
	f.Add([]byte(`{"specversion":"1.0","data_base64":"AP8="}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := FromStructuredJSON(body)
		if err != nil || e.Validate() != nil || !e.IsCloudEvent() {
			return
		}
		out := e.AppendStructuredJSON(nil)
		again, err := FromStructuredJSON(out)
		if err != nil || string(again.Data) != string(e.Data) || again.ID != e.ID || !again.Time.Equal(e.Time) {
			t.Fatalf("%s became %+v, %v by way of %s", body, again, err, out)
		}
	})
}

func FuzzFromHTTPBinary(f *testing.F) {
	f.Add("1.0", "1", "/s", "t", "Ce-Subject", "caf%C3%A9", []byte("v"))
	f.Fuzz(func(t *testing.T, version, id, source, kind, name, value string, body []byte) {
		h := http.Header{"Ce-Specversion": {version}, "Ce-Id": {id}, "Ce-Source": {source}, "Ce-Type": {kind}, name: {value}}
		e, err := FromHTTPBinary(h, body)
		if err != nil || e.Validate() != nil || e.ContentType != "" {
			return
		}
		out := http.Header{}
		e.SetHTTPBinary(out)
		for n, values := range out {
			for _, v := range values {
				if strings.ContainsAny(n+v, "\r\n\x00") {
					t.Fatalf("%q: %q", n, v)
				}
			}
		}
		again, err := FromHTTPBinary(out, e.Data)
		if err != nil || again.ID != e.ID || again.Subject != e.Subject || again.Source != e.Source {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func FuzzFromNDJSON(f *testing.F) {
	f.Add([]byte(`{"key":"a","value":{"n":1},"headers":[["h","x"],["h",null],["b",{"base64":"AP8="}]],"partition":1,"timestamp":"2026-01-31T10:00:00Z"}`))
	f.Add([]byte(`{"key_base64":"AP8=","value_base64":"AP8="}`))
	f.Add([]byte(`{"value":null}`))
	f.Add([]byte(`{"value":{},"schema_id":7,"schema_version":2147483648}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := FromNDJSON(line)
		if err != nil || e.Validate() != nil {
			return
		}
		r := e.Record("t")
		out := r.AppendJSON(nil)
		if !json.Valid(out) || bytes.ContainsAny(out, "\r\n") {
			t.Fatalf("%s", out)
		}
		again, err := FromNDJSON(out)
		if err != nil || !bytes.Equal(again.Data, e.Data) && !e.IsCloudEvent() || !bytes.Equal(again.Key, r.Key) && !e.IsCloudEvent() {
			t.Fatalf("%s became %+v, %v by way of %s", line, again, err, out)
		}
	})
}

func FuzzFromBatchJSON(f *testing.F) {
	f.Add([]byte(`[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if items, err := FromBatchJSON(body, 10); err == nil && len(items) > 10 {
			t.Fatal("more than asked for")
		}
	})
}

func BenchmarkFromStructuredJSON(b *testing.B) {
	body := []byte(`{"specversion":"1.0","id":"1","source":"/shop","type":"order.created","time":"2026-01-31T10:00:00Z","datacontenttype":"application/json","data":` + strings.Repeat("[", 1) + `"` + strings.Repeat("x", 800) + `"]}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := FromStructuredJSON(body); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTimestampsAndEmptyExtensionsSurviveTheWayThroughKafka(t *testing.T) {
	e := Event{ID: "1", Source: "/s", Type: "t", Time: time.Date(2026, 1, 31, 10, 0, 0, 120, time.UTC), Extensions: []Attribute{{"a", ""}, {"b", "x"}}, Partition: AnyPartition}
	got := e.Record("t").Event()
	if !got.Time.Equal(e.Time) || !reflect.DeepEqual(got.Extensions, e.Extensions) {
		t.Errorf("%+v", got)
	}
}

// Whatever a record header holds, it comes back from the HTTP header it goes as.
func FuzzHeaderOverHTTPAndBack(f *testing.F) {
	f.Add("a", []byte("1"), false)
	f.Add("evil\r\nname", []byte{0, 0xff}, false)
	f.Add("", []byte{}, true)
	f.Fuzz(func(t *testing.T, name string, value []byte, null bool) {
		if len(name)+len(value) > maxHTTPHeaderBytes {
			t.Skip("too large to go")
		}
		want := Header{Name: name, Value: append([]byte{}, value...)}
		if null {
			want.Value = nil
		}
		h := HTTPHeaders{}
		(&Event{Headers: []Header{want}}).SetHTTPBinary(h)
		var got Event
		if err := got.ApplyHTTPHeaders(h); err != nil {
			t.Fatalf("%v: %v", h, err)
		}
		if len(got.Headers) != 1 || got.Headers[0].Name != want.Name || !bytes.Equal(got.Headers[0].Value, want.Value) || (got.Headers[0].Value == nil) != null {
			t.Errorf("%q went as %v and came back as %q", want, h, got.Headers)
		}
	})
}
