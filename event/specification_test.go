package event

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The MUSTs of CloudEvents 1.0.2 that concern an intermediary between HTTP and
// Kafka, each as a test named for its document and section. What concerns
// requests and answers is in internal/gateway (the batch, the handshake, the
// protobuf format).

// binaryMode reads a request in binary mode: the required attributes and more, as name, value pairs.
func binaryMode(t *testing.T, more ...string) (Event, error) {
	t.Helper()
	h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}, "Content-Type": {"text/plain"}}
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == "-" {
			h.Del(more[i])
			continue
		}
		h.Set(more[i], more[i+1])
	}
	e, err := FromHTTPBinary(h, []byte("body"))
	if err == nil {
		err = e.Validate()
	}
	return e, err
}

// structured reads a JSON event: the required attributes and more members.
func structured(t *testing.T, more string) (Event, error) {
	t.Helper()
	e, err := FromStructuredJSON([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t"` + more + `}`))
	if err == nil {
		err = e.Validate()
	}
	return e, err
}

func refused(t *testing.T, err error, field string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), field) {
		t.Errorf("got %v, want a refusal that names %s", err, field)
	}
}

func recordHeaders(e Event) map[string]string {
	all := map[string]string{}
	for _, h := range e.Record("t").Headers {
		all[h.Name] = string(h.Value)
	}
	return all
}

func TestSpecification(t *testing.T) {
	type must struct {
		name string
		test func(t *testing.T)
	}
	for _, m := range []must{
		// spec.md
		{"spec, naming conventions: names are lower-case letters and digits", func(t *testing.T) {
			for _, bad := range []string{"ce-up_per", "ce-h-yphen"} {
				if _, err := binaryMode(t, bad, "x"); err == nil {
					t.Errorf("%s is taken", bad)
				}
			}
			_, err := structured(t, `,"Upper":"x"`)
			refused(t, err, "Upper")
			if e, err := binaryMode(t, "ce-ext1", "x"); err != nil || e.Extension("ext1") != "x" {
				t.Errorf("%v %v", e.Extensions, err)
			}
		}},
		{"spec, naming conventions: no attribute is called data", func(t *testing.T) {
			_, err := binaryMode(t, "ce-data", "x")
			refused(t, err, "ce-data")
		}},
		{"spec, source and dataschema: a URI-reference and a URI", func(t *testing.T) {
			for _, bad := range []string{"a b", "<s>", "/%zz", "a\\b", "{s}", "/%4"} {
				_, err := structured(t, `,"dataschema":"https://example.com/s"`)
				if err != nil {
					t.Fatal(err)
				}
				e := Event{ID: "1", Source: bad, Type: "t"}
				refused(t, e.Validate(), "source")
				e = Event{ID: "1", Source: "/s", Type: "t", DataSchema: "https://example.com/" + bad}
				refused(t, e.Validate(), "dataschema")
			}
			for _, good := range []string{"/s", "https://example.com/a?b=c#d", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "mailto:a@b.example", "//h/p", "a%20b", "1-555-123-4567"} {
				if err := (&Event{ID: "1", Source: good, Type: "t"}).Validate(); err != nil {
					t.Errorf("%s: %v", good, err)
				}
			}
		}},
		{"spec, time: the first moment of year 1 is not taken for none", func(t *testing.T) {
			_, err := binaryMode(t, "ce-time", "0001-01-01T00:00:00Z")
			refused(t, err, "ce-time")
			_, err = structured(t, `,"time":"0001-01-01T00:00:00Z"`)
			refused(t, err, "time")
			r := Record{Headers: []Header{{"ce_specversion", []byte("1.0")}, {"ce_id", []byte("1")}, {"ce_source", []byte("/s")}, {"ce_type", []byte("t")}, {"ce_time", []byte("0001-01-01T00:00:00Z")}}}
			if e := r.Event(); len(e.Headers) != 5 {
				t.Errorf("a record that has it loses it: %v", e)
			}
		}},
		{"kafka binding, section 3.2: attributes are written once, from attributes", func(t *testing.T) {
			for _, name := range []string{"ce_type", "ce_", "content-type"} {
				e := Event{ID: "1", Source: "/s", Type: "t", Headers: []Header{{name, []byte("x")}}}
				refused(t, e.Validate(), "headers")
			}
			e := Event{ContentType: "text/plain", Headers: []Header{{"content-type", []byte("x")}}}
			refused(t, e.Validate(), "headers")
			e = Event{Headers: []Header{{"content-type", []byte("x")}, {"ce_part", []byte("y")}}} // a record as Kafka has it
			if err := e.Validate(); err != nil {
				t.Error(err)
			}
		}},
		{"spec, type system: every type goes to and from its canonical string", func(t *testing.T) {
			e, err := structured(t, `,"b":true,"i":-2147483648,"s":"\u00e9","bin":"AP8=","uri":"https://example.com/a","ref":"../a","at":"2026-01-31T10:00:00Z"`)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"ce_b": "true", "ce_i": "-2147483648", "ce_s": "\u00e9", "ce_bin": "AP8=", "ce_uri": "https://example.com/a", "ce_ref": "../a", "ce_at": "2026-01-31T10:00:00Z"}
			got := recordHeaders(e)
			for name, value := range want {
				if got[name] != value {
					t.Errorf("%s is %q, want %q", name, got[name], value)
				}
			}
		}},
		{"spec, type system: integers are of 32 bits and whole", func(t *testing.T) {
			for _, bad := range []string{"2147483648", "-2147483649", "1.5", "1e3", "1.0"} {
				_, err := structured(t, `,"n":`+bad)
				refused(t, err, "/n")
			}
		}},
		{"spec, type system: strings have no control characters", func(t *testing.T) {
			for _, bad := range []string{"a\x01", "a\n", "a\x7f", "a\u0085"} {
				_, err := structured(t, `,"subject":`+fmt.Sprintf("%q", bad))
				refused(t, err, "")
			}
		}},
		{"spec, type system: strings have no noncharacters", func(t *testing.T) {
			for _, bad := range []rune{0xfdd0, 0xfffe, 0xffff, 0x1fffe, 0x10ffff} {
				_, err := structured(t, `,"subject":"a`+string(bad)+`"`)
				refused(t, err, "subject")
			}
		}},
		{"spec, type system: strings have no half surrogate pairs", func(t *testing.T) {
			_, err := structured(t, `,"subject":"\uDEAD"`)
			refused(t, err, "subject")
			if e, err := structured(t, `,"subject":"\uD83D\uDE00"`); err != nil || e.Subject != "\U0001F600" {
				t.Errorf("a whole pair: %q %v", e.Subject, err)
			}
		}},
		{"spec, REQUIRED attributes: id, source, type and specversion are there", func(t *testing.T) {
			for _, name := range []string{"id", "source", "type", "specversion"} {
				_, err := binaryMode(t, "Ce-"+name, "-")
				refused(t, err, name)
				_, err = FromStructuredJSON([]byte(strings.Replace(`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, `"`+name+`"`, `"other"`, 1)))
				refused(t, err, name)
			}
			_, err := FromStructuredJSON([]byte(`{"specversion":"1.0"}`))
			refused(t, err, "id")
		}},
		{"spec, REQUIRED attributes: none is empty", func(t *testing.T) {
			for _, name := range []string{"id", "source", "type"} {
				_, err := binaryMode(t, "Ce-"+name, "")
				refused(t, err, name)
			}
		}},
		{"spec, source: it is a URI reference", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Source", "http://[")
			refused(t, err, "source")
			for _, good := range []string{"https://github.com/cloudevents", "mailto:a@example.com", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "/sensors/tn-1", "1-555-123-4567"} {
				if _, err := binaryMode(t, "Ce-Source", good); err != nil {
					t.Errorf("%s: %v", good, err)
				}
			}
		}},
		{"spec, specversion: only 1.0 is read as 1.0", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Specversion", "0.3")
			refused(t, err, "specversion")
		}},
		{"spec, datacontenttype: it is a media type", func(t *testing.T) {
			for _, bad := range []string{"json", "application/", "a b/c", "application/json; charset"} {
				_, err := binaryMode(t, "Content-Type", bad)
				refused(t, err, "datacontenttype")
			}
			for _, good := range []string{"application/json", "application/vnd.x+json; charset=utf-8", `multipart/form-data; boundary="a b"`} {
				if _, err := binaryMode(t, "Content-Type", good); err != nil {
					t.Errorf("%s: %v", good, err)
				}
			}
		}},
		{"spec, dataschema: it is an absolute URI", func(t *testing.T) {
			for _, bad := range []string{"/relative", ""} {
				_, err := binaryMode(t, "Ce-Dataschema", bad)
				refused(t, err, "dataschema")
			}
		}},
		{"spec, subject: it is not empty", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Subject", "")
			refused(t, err, "subject")
		}},
		{"spec, time: it is of RFC 3339, and stays the same instant", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Time", "31 January 2026")
			refused(t, err, "time")
			for _, good := range []string{"2026-01-31T10:00:00Z", "2026-01-31T10:00:00.123456789+05:30", "2026-01-31t10:00:00z"} {
				e, err := binaryMode(t, "Ce-Time", good)
				want, _ := time.Parse(time.RFC3339Nano, strings.ToUpper(good))
				back := e.Record("t").Event()
				if err != nil || !e.Time.Equal(want) || !back.Time.Equal(want) {
					t.Errorf("%s is %s, then %s (%v)", good, e.Time, back.Time, err)
				}
			}
		}},
		{"spec, extensions: they have distinct names", func(t *testing.T) {
			e := Event{ID: "1", Source: "/s", Type: "t", Partition: AnyPartition, Extensions: []Attribute{{"a", "1"}, {"a", "2"}}}
			refused(t, e.Validate(), "extensions")
		}},

		// bindings/http-protocol-binding.md
		{"HTTP 1.4: the JSON format is read", func(t *testing.T) {
			if e, err := structured(t, `,"data":{"a":1}`); err != nil || string(e.Data) != `{"a":1}` {
				t.Errorf("%s %v", e.Data, err)
			}
		}},
		{"HTTP 3.1.1: Content-Type is datacontenttype, both ways", func(t *testing.T) {
			e, err := binaryMode(t, "Content-Type", "image/png")
			if err != nil || e.ContentType != "image/png" {
				t.Errorf("%q %v", e.ContentType, err)
			}
			out := http.Header{}
			e.SetHTTPBinary(out)
			if out.Get("Content-Type") != "image/png" {
				t.Errorf("out: %v", out)
			}
		}},
		{"HTTP 3.1.1: ce-datacontenttype is in no message", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Datacontenttype", "text/plain")
			refused(t, err, "ce-datacontenttype")
			e, _ := binaryMode(t)
			out := http.Header{}
			e.SetHTTPBinary(out)
			if _, there := out["Ce-Datacontenttype"]; there {
				t.Error("it is written")
			}
		}},
		{"HTTP 3.1.2: the body is the data, byte for byte", func(t *testing.T) {
			body := []byte{0, 0xff, '\r', '\n'}
			e, err := FromHTTPBinary(http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}}, body)
			if err != nil || !bytes.Equal(e.Data, body) || !bytes.Equal(e.Record("t").Value, body) {
				t.Errorf("%q %v", e.Data, err)
			}
		}},
		{"HTTP 3.1.3: every attribute has a header of its own, both ways", func(t *testing.T) {
			in := []string{"Ce-Subject", "s", "Ce-Time", "2026-01-31T10:00:00Z", "Ce-Dataschema", "https://example.com/s", "Ce-Ext1", "x", "Ce-Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
			e, err := binaryMode(t, in...)
			if err != nil {
				t.Fatal(err)
			}
			out := http.Header{}
			e.SetHTTPBinary(out)
			for i := 0; i < len(in); i += 2 {
				if got := out[in[i]]; len(got) != 1 || got[0] != in[i+1] {
					t.Errorf("%s is %q, want %q", in[i], got, in[i+1])
				}
			}
			h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1", "2"}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}}
			_, err = FromHTTPBinary(h, nil)
			refused(t, err, "ce-id")
		}},
		{"HTTP 3.1.3.2: what is written is percent-encoded, in upper case", func(t *testing.T) {
			for in, want := range map[string]string{"Euro \u20ac \U0001F600": "Euro%20%E2%82%AC%20%F0%9F%98%80", `"`: "%22", "%": "%25", "~!": "~!"} {
				e := Event{ID: "1", Source: "/s", Type: "t", Subject: in}
				out := http.Header{}
				e.SetHTTPBinary(out)
				if got := out.Get("Ce-Subject"); got != want {
					t.Errorf("%q is written %q, want %q", in, got, want)
				}
			}
		}},
		{"HTTP 3.1.3.2: what is read is unquoted, then percent-decoded once", func(t *testing.T) {
			for in, want := range map[string]string{`"a \"b\" \\"`: `a "b" \`, "%2525": "%25", "%41%62": "Ab", "%e2%82%ac": "\u20ac"} {
				if e, err := binaryMode(t, "Ce-Subject", in); err != nil || e.Subject != want {
					t.Errorf("%q is read %q, want %q (%v)", in, e.Subject, want, err)
				}
			}
		}},
		{"HTTP 3.1.3.2: what decodes to no UTF-8 is refused", func(t *testing.T) {
			for _, bad := range []string{"%C0%A0", "%ED%A0%80", "%FF"} {
				_, err := binaryMode(t, "Ce-Subject", bad)
				refused(t, err, "ce-subject")
			}
		}},
		{"HTTP 3.2.3: in structured mode the attributes of the payload count", func(t *testing.T) {
			e, err := structured(t, "")
			if err == nil {
				err = e.ApplyHTTPHeaders(http.Header{"Ce-Id": {"other"}})
			}
			if err != nil || e.ID != "1" {
				t.Errorf("%q %v", e.ID, err)
			}
		}},

		// bindings/kafka-protocol-binding.md
		{"Kafka 1.3, 3.2.2: data is the value as it is, and no data is no value", func(t *testing.T) {
			e, err := binaryMode(t)
			if err != nil || string(e.Record("t").Value) != "body" {
				t.Errorf("%v", err)
			}
			none, err := structured(t, "")
			if err != nil || none.Record("t").Value != nil {
				t.Errorf("%v", err)
			}
			empty, err := structured(t, `,"datacontenttype":"text/plain","data":""`)
			if v := empty.Record("t").Value; err != nil || v == nil || len(v) != 0 {
				t.Errorf("empty data is %v (%v)", v, err)
			}
		}},
		{"Kafka 3.1: the key given is the record's key", func(t *testing.T) {
			e, _ := binaryMode(t, "Ce-Partitionkey", "attribute")
			e.Key = []byte("given")
			if got := string(e.Record("t").Key); got != "given" {
				t.Errorf("%q", got)
			}
		}},
		{"Kafka 3.1: mapping a key changes nothing of the event", func(t *testing.T) {
			e, _ := binaryMode(t, "Ce-Partitionkey", "pk")
			r := e.Record("t")
			if string(r.Key) != "pk" || recordHeaders(e)["ce_partitionkey"] != "pk" {
				t.Errorf("%q %v", r.Key, r.Headers)
			}
			plain, _ := binaryMode(t)
			plain.Key = []byte("k")
			if _, there := recordHeaders(plain)["ce_partitionkey"]; there {
				t.Error("a key became an attribute")
			}
		}},
		{"Kafka 3.2.1: content-type is datacontenttype, both ways", func(t *testing.T) {
			e, _ := binaryMode(t, "Content-Type", "image/png")
			r := e.Record("t")
			if recordHeaders(e)["content-type"] != "image/png" || r.Event().ContentType != "image/png" {
				t.Errorf("%v", r.Headers)
			}
		}},
		{"Kafka 3.2.3: attributes are ce_ headers in UTF-8 without percent-encoding, both ways", func(t *testing.T) {
			e, err := binaryMode(t, "Ce-Subject", "caf%C3%A9%20%22x%22", "Ce-Ext1", "%E2%82%AC")
			if err != nil {
				t.Fatal(err)
			}
			got := recordHeaders(e)
			if got["ce_subject"] != `café "x"` || got["ce_ext1"] != "\u20ac" || got["ce_specversion"] != "1.0" {
				t.Errorf("%v", got)
			}
			back := e.Record("t").Event()
			if back.Subject != e.Subject || back.Extension("ext1") != "\u20ac" || back.ID != "1" {
				t.Errorf("%+v", back)
			}
		}},
		{"Kafka 3.3.1, 3.3.2: structured mode has its media type and the whole event in the value", func(t *testing.T) {
			e, _ := binaryMode(t, "Ce-Subject", "s", "Ce-Ext1", "x")
			r := e.StructuredRecord("t")
			content, _ := r.Header("content-type")
			back, err := FromStructuredJSON(r.Value)
			if !strings.HasPrefix(string(content), "application/cloudevents+json") || err != nil || back.Subject != "s" || back.Extension("ext1") != "x" || string(back.Data) != "body" || back.ContentType != "text/plain" {
				t.Errorf("%s %s: %+v %v", content, r.Value, back, err)
			}
			none, _ := structured(t, "")
			if none.StructuredRecord("t").Value == nil {
				t.Error("an event without data is a tombstone")
			}
		}},

		// formats/json-format.md
		{"JSON 2: extensions are top-level members", func(t *testing.T) {
			e, err := structured(t, `,"ext1":"x"`)
			if out := string(e.AppendStructuredJSON(nil)); err != nil || e.Extension("ext1") != "x" || !strings.Contains(out, `,"ext1":"x"`) {
				t.Errorf("%s %v", out, err)
			}
		}},
		{"JSON 2.2: null is absent", func(t *testing.T) {
			if e, err := structured(t, `,"subject":null,"time":null,"ext1":null`); err != nil || e.Subject != "" || !e.Time.IsZero() || len(e.Extensions) != 0 {
				t.Errorf("%+v %v", e, err)
			}
		}},
		{"JSON 2.2: an attribute has the JSON type of its own", func(t *testing.T) {
			for _, bad := range []string{`,"subject":1`, `,"time":5`, `,"ext1":[]`, `,"ext1":{}`} {
				_, err := structured(t, bad)
				refused(t, err, "/")
			}
		}},
		{"JSON 3.1.1: JSON data is written as a JSON value, text as a string, the rest as data_base64", func(t *testing.T) {
			for _, c := range []struct{ contentType, data, want string }{
				{"application/json", `{"a":1}`, `"data":{"a":1}`},
				{"application/vnd.x+json", `"text"`, `"data":"text"`},
				{"", "null", `"data":null`},
				{"text/xml", "<a/>", `"data":"\u003ca/\u003e"`},
				{"image/png", "\x00\xff", `"data_base64":"AP8="`},
				{"application/json", "{not json", `"data_base64":"e25vdCBqc29u"`},
			} {
				e := Event{ID: "1", Source: "/s", Type: "t", ContentType: c.contentType, Data: []byte(c.data)}
				if out := string(e.AppendStructuredJSON(nil)); !strings.Contains(out, c.want) {
					t.Errorf("%s %q is written %s, want %s", c.contentType, c.data, out, c.want)
				}
			}
		}},
		{"JSON 3.1.1: data and data_base64 exclude each other", func(t *testing.T) {
			_, err := structured(t, `,"data":1,"data_base64":"AP8="`)
			refused(t, err, "data_base64")
		}},
		{"JSON 3.1.2: data_base64 is decoded", func(t *testing.T) {
			if e, err := structured(t, `,"datacontenttype":"application/json","data_base64":"eyJhIjoxfQ=="`); err != nil || string(e.Data) != `{"a":1}` {
				t.Errorf("%q %v", e.Data, err)
			}
			_, err := structured(t, `,"data_base64":"%%%"`)
			refused(t, err, "data_base64")
		}},
		{"JSON 3.1.2: a JSON string is JSON, and not read again", func(t *testing.T) {
			if e, err := structured(t, `,"datacontenttype":"application/json","data":"{\"a\":1}"`); err != nil || string(e.Data) != `"{\"a\":1}"` {
				t.Errorf("%q %v", e.Data, err)
			}
		}},
		{"JSON 3.1.2: without datacontenttype data is JSON, and said so on the way out", func(t *testing.T) {
			e, err := structured(t, `,"data":"I'm just a string"`)
			if err != nil || string(e.Data) != `"I'm just a string"` || recordHeaders(e)["content-type"] != "application/json" {
				t.Errorf("%q %v %v", e.Data, recordHeaders(e), err)
			}
		}},

		// extensions/partitioning.md
		{"partitioning: partitionkey is not empty", func(t *testing.T) {
			_, err := binaryMode(t, "Ce-Partitionkey", "")
			refused(t, err, "partitionkey")
			_, err = structured(t, `,"partitionkey":""`)
			refused(t, err, "partitionkey")
		}},

		// extensions/distributed-tracing.md
		{"distributed tracing: a hop's own headers do not become the extension", func(t *testing.T) {
			e, err := binaryMode(t, "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Tracestate", "a=b")
			if got := recordHeaders(e); err != nil || got["ce_traceparent"] != "" || got["ce_tracestate"] != "" {
				t.Errorf("%v %v", got, err)
			}
		}},
		{"distributed tracing: the extension keeps the origin's trace", func(t *testing.T) {
			origin := "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"
			e, err := binaryMode(t, "Ce-Traceparent", origin, "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			if got := recordHeaders(e); err != nil || got["ce_traceparent"] != origin {
				t.Errorf("%v %v", got, err)
			}
		}},
	} {
		t.Run(m.name, m.test)
	}
}
