package event

import (
	"encoding/base64"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Mode is how an HTTP body carries events.
type Mode uint8

const (
	Plain           Mode = iota // the body is one event's data
	Binary                      // CloudEvents binary mode: attributes in ce- headers
	Structured                  // one CloudEvent in the JSON format
	Batch                       // several, in the JSON batch format
	StructuredProto             // one CloudEvent in the protobuf format
	BatchProto                  // several, in the protobuf batch format
	NDJSON                      // one event a line
	Unsupported                 // a CloudEvents format we do not read
)

// Media types of the modes.
const (
	MediaStructured      = "application/cloudevents+json"
	MediaBatch           = "application/cloudevents-batch+json"
	MediaStructuredProto = "application/cloudevents+protobuf"
	MediaBatchProto      = "application/cloudevents-batch+protobuf"
	MediaNDJSON          = "application/x-ndjson"
)

// httpAttributePrefix begins the headers of CloudEvents binary mode.
const httpAttributePrefix = "Ce-"

// Headers is HTTP headers by their canonical names; http.Header is one.
type HTTPHeaders = map[string][]string

// DetectMode tells a body's mode (CloudEvents HTTP binding, section 3): batch
// is tested first, because its media type begins like the structured one.
func DetectMode(h HTTPHeaders) Mode {
	contentType := strings.ToLower(first(h, "Content-Type"))
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.TrimSpace(media)
	switch {
	case strings.HasPrefix(media, "application/cloudevents-batch"):
		switch media {
		case MediaBatch:
			return Batch
		case MediaBatchProto:
			return BatchProto
		}
		return Unsupported
	case strings.HasPrefix(media, "application/cloudevents"):
		switch media {
		case MediaStructured, "application/cloudevents":
			return Structured
		case MediaStructuredProto:
			return StructuredProto
		}
		return Unsupported
	case first(h, "Ce-Specversion") != "" || first(h, "Ce-Id") != "" || first(h, "Ce-Type") != "" || first(h, "Ce-Source") != "":
		return Binary
	case media == MediaNDJSON:
		return NDJSON
	}
	return Plain
}

func first(h HTTPHeaders, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// FromPlain makes an event of a body that is just data.
func FromPlain(h HTTPHeaders, body []byte) (Event, error) {
	e := Event{Data: body, Partition: AnyPartition, ContentType: first(h, "Content-Type")}
	return e, e.ApplyHTTPHeaders(h)
}

// FromHTTPBinary makes an event of CloudEvents binary mode (HTTP binding, section 3.1).
func FromHTTPBinary(h HTTPHeaders, body []byte) (Event, error) {
	e := Event{Data: body, Partition: AnyPartition, ContentType: first(h, "Content-Type")}
	version := ""
	names := make([]string, 0, 8)
	for name := range h {
		if strings.HasPrefix(name, httpAttributePrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names) // so that extensions, and the first complaint, do not depend on chance
	for _, name := range names {
		values := h[name]
		attribute := strings.ToLower(name[len(httpAttributePrefix):])
		field := "ce-" + attribute
		if len(values) != 1 {
			return e, invalid(field, "the header is there %d times: send it once", len(values))
		}
		value, err := decodeHeaderValue(values[0])
		if err != nil {
			return e, invalid(field, "%v", err)
		}
		switch attribute {
		case "specversion":
			version = value
		case "datacontenttype":
			return e, invalid(field, "the content type of binary mode is the Content-Type header")
		default:
			if err := e.setAttribute(field, attribute, value); err != nil {
				return e, err
			}
		}
	}
	if version != SpecVersion {
		return e, invalid("ce-specversion", "%q is not a version we read: send %s", version, SpecVersion)
	}
	if err := e.RequireCloudEvent(); err != nil {
		return e, err
	}
	if len(body) == 0 && e.ContentType == "" {
		e.Data = nil // an event without data
	}
	return e, e.ApplyHTTPHeaders(h)
}

// SetAttribute sets a context attribute, or the content type, from its canonical
// string form; field names it in a complaint.
func (e *Event) SetAttribute(field, name, value string) error {
	return e.setAttribute(field, name, value)
}

// setAttribute sets a context attribute from its canonical string form.
func (e *Event) setAttribute(field, name, value string) error {
	switch name {
	case "id":
		e.ID = value
	case "source":
		e.Source = value
	case "type":
		e.Type = value
	case "subject":
		e.Subject = value
	case "dataschema":
		e.DataSchema = value
	case "datacontenttype":
		e.ContentType = value
	case "time":
		t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(value)) // RFC 3339 allows t and z
		if err != nil {
			return invalid(field, "%q is not an RFC 3339 time such as 2026-01-31T10:00:00Z", value)
		}
		if t.IsZero() {
			return invalid(field, "the first moment of the year 1 stands for no time here: leave it out, or send another")
		}
		e.Time = t
		return nil
	default:
		if !validAttributeName(name) {
			return invalid(field, "an attribute's name is made of lower-case letters and digits")
		}
		e.Extensions = append(e.Extensions, Attribute{name, value})
		return nil
	}
	if value == "" {
		return invalid(field, "the attribute may be absent but not empty")
	}
	return nil
}

// decodeHeaderValue reads an attribute's value (HTTP binding, section 3.1.3.2):
// a double-quoted form is unquoted first, then exactly one round of
// percent-decoding. A % that begins no encoded byte stands for itself: the
// official SDK of Python sends values as they are.
func decodeHeaderValue(v string) (string, error) {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		var b strings.Builder
		inner := v[1 : len(v)-1]
		for i := 0; i < len(inner); i++ {
			if inner[i] == '\\' && i+1 < len(inner) {
				i++
			}
			b.WriteByte(inner[i])
		}
		v = b.String()
	}
	if !strings.Contains(v, "%") {
		if !utf8.ValidString(v) {
			return "", errNotUTF8
		}
		return v, nil
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '%' && i+2 < len(v) {
			if n, err := strconv.ParseUint(v[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(v[i])
	}
	if !utf8.ValidString(b.String()) {
		return "", errNotUTF8
	}
	return b.String(), nil
}

type textError string

func (e textError) Error() string { return string(e) }

const errNotUTF8 = textError("the value is not valid UTF-8")

// encodeHeaderValue is the inverse: space, double quote, percent and everything
// outside U+0021 to U+007E is percent-encoded.
func encodeHeaderValue(v string) string {
	clean := true
	for i := 0; i < len(v); i++ {
		if c := v[i]; c <= ' ' || c > '~' || c == '"' || c == '%' {
			clean = false
			break
		}
	}
	if clean {
		return v
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if c := v[i]; c <= ' ' || c > '~' || c == '"' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// ApplyHTTPHeaders takes the Postern- headers, which say what CloudEvents has no word for.
func (e *Event) ApplyHTTPHeaders(h HTTPHeaders) error {
	key, hasKey := h[HTTPKey]
	key64, hasKey64 := h[HTTPKeyBase64]
	switch {
	case len(key)+len(key64) > 1:
		return invalid(HTTPKey, "the key is given %d times: send one of %s and %s, once", len(key)+len(key64), HTTPKey, HTTPKeyBase64)
	case hasKey:
		if !utf8.ValidString(key[0]) {
			return invalid(HTTPKey, "the key is not UTF-8: send it as %s", HTTPKeyBase64)
		}
		e.Key = []byte(key[0])
	case hasKey64:
		b, err := base64.StdEncoding.DecodeString(key64[0])
		if err != nil {
			return invalid(HTTPKeyBase64, "not base64: %v", err)
		}
		e.Key = b
	}
	if v := first(h, HTTPPartition); v != "" {
		p, err := strconv.ParseInt(v, 10, 32)
		if err != nil || p < 0 {
			return invalid(HTTPPartition, "%q is not a partition's number", v)
		}
		e.Partition = int32(p)
	}
	if v := first(h, HTTPTimestamp); v != "" {
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return invalid(HTTPTimestamp, "%q is not an RFC 3339 time such as 2026-01-31T10:00:00Z", v)
		}
		e.Timestamp = t
	}
	var err error
	if e.SchemaID, err = numberFrom(h, HTTPSchemaID); err != nil {
		return err
	}
	if e.SchemaVersion, err = numberFrom(h, HTTPSchemaVersion); err != nil {
		return err
	}
	dedupe, err := DedupeKeyOf(h)
	if err != nil {
		return err
	}
	e.DedupeKey = dedupe
	var names []string
	for name := range h {
		if len(name) > len(HTTPHeaderPrefix) && strings.HasPrefix(name, HTTPHeaderPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range h[name] {
			e.Headers = append(e.Headers, Header{strings.ToLower(name[len(HTTPHeaderPrefix):]), []byte(v)})
		}
	}
	for _, v := range h[httpHeaderBase64] {
		for one := range strings.SplitSeq(v, ",") {
			header, err := decodeHeaderPair(strings.TrimSpace(one))
			if err != nil {
				return err
			}
			e.Headers = append(e.Headers, header)
		}
	}
	return nil
}

// decodeHeaderPair reads a record header as SetHTTPBinary writes those that HTTP
// cannot carry: name and value in base64 with a colon between; without the colon
// the value is null.
func decodeHeaderPair(pair string) (Header, error) {
	name, value, has := strings.Cut(pair, ":")
	n, err := base64.StdEncoding.DecodeString(name)
	if err != nil {
		return Header{}, invalid(httpHeaderBase64, "%q is not base64 of a name", name)
	}
	h := Header{Name: string(n)}
	if has {
		if h.Value, err = base64.StdEncoding.DecodeString(value); err != nil {
			return Header{}, invalid(httpHeaderBase64, "the value of %q is not base64", n)
		}
	}
	return h, nil
}

// RefuseHTTPHeaders refuses the headers that speak of one event, on a request
// of several: each of those says it for itself.
func RefuseHTTPHeaders(h HTTPHeaders) error {
	for name := range h {
		switch name {
		case HTTPKey, HTTPKeyBase64, HTTPPartition, HTTPTimestamp, httpHeaderBase64:
		default:
			if len(name) <= len(HTTPHeaderPrefix) || !strings.HasPrefix(name, HTTPHeaderPrefix) {
				continue
			}
		}
		return invalid(name, "the header speaks of one event, and this request carries several: say it in each of them")
	}
	return nil
}

// numberFrom reads a header that is a number from 1; 0 without it.
func numberFrom(h HTTPHeaders, name string) (int32, error) {
	v := first(h, name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 1 {
		return 0, invalid(name, "%q is not a number from 1", v)
	}
	return int32(n), nil
}

// maxDedupeKey bounds a dedupe key's bytes, as the API's own rule does.
const maxDedupeKey = 512

// DedupeKeyOf reads Idempotency-Key: a structured string ("...", RFC 9651), as
// the draft has it, or the bare text that most clients send.
func DedupeKeyOf(h HTTPHeaders) (string, error) {
	values := h[HTTPIdempotencyKey]
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	if len(values) > 1 {
		return "", invalid(HTTPIdempotencyKey, "the header is there %d times: send it once", len(values))
	}
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' {
		key = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(key[1 : len(key)-1])
	}
	if key == "" || len(key) > maxDedupeKey {
		return "", invalid(HTTPIdempotencyKey, "the key has %d bytes: send 1 to %d", len(key), maxDedupeKey)
	}
	return key, nil
}

// SetHTTPBinary writes the event's parts but its data as headers of a request
// that carries the data as its body: CloudEvents binary mode for a CloudEvent,
// and Postern- headers for what CloudEvents has no word for. Whatever bytes a
// record has, the request stays well-formed: a key that is not plain text goes
// as base64, a record header whose name or value HTTP cannot carry goes as
// Postern-Headers-Base64: <base64 of the name>:<base64 of the value>, the name
// alone for a null value; ApplyHTTPHeaders reads it back.
func (e *Event) SetHTTPBinary(h HTTPHeaders) {
	if e.ContentType != "" && headerSafe(e.ContentType) {
		h["Content-Type"] = []string{e.ContentType}
	}
	if e.IsCloudEvent() {
		set := func(name, value string) {
			if value != "" {
				h[httpAttributePrefix+strings.ToUpper(name[:1])+name[1:]] = []string{encodeHeaderValue(value)}
			}
		}
		set("specversion", SpecVersion)
		set("id", e.ID)
		set("source", e.Source)
		set("type", e.Type)
		set("subject", e.Subject)
		set("dataschema", e.DataSchema)
		if !e.Time.IsZero() {
			set("time", e.Time.Format(time.RFC3339Nano))
		}
		for _, x := range e.Extensions {
			set(x.Name, x.Value)
		}
	}
	if e.Key != nil {
		if s := string(e.Key); utf8.ValidString(s) && headerSafe(s) {
			h[HTTPKey] = []string{s}
		} else {
			h[HTTPKeyBase64] = []string{base64.StdEncoding.EncodeToString(e.Key)}
		}
	}
	size := 0
	for _, x := range e.Headers {
		size += len(x.Name) + len(x.Value)
		if size > maxHTTPHeaderBytes {
			break // receivers refuse larger header blocks; the record keeps what is left out
		}
		if x.Value != nil && plainToken(x.Name) && headerSafe(string(x.Value)) {
			name := HTTPHeaderPrefix + strings.ToUpper(x.Name[:1]) + x.Name[1:]
			h[name] = append(h[name], string(x.Value))
			continue
		}
		pair := base64.StdEncoding.EncodeToString([]byte(x.Name))
		if x.Value != nil {
			pair += ":" + base64.StdEncoding.EncodeToString(x.Value)
		}
		h[httpHeaderBase64] = append(h[httpHeaderBase64], pair)
	}
}

const (
	httpHeaderBase64 = "Postern-Headers-Base64"
	// maxHTTPHeaderBytes of record headers go with a request; many servers stop reading at 8 to 16 KiB.
	maxHTTPHeaderBytes = 8 << 10
)

// headerSafe reports whether v may stand in a header as it is, and arrive so:
// printable ASCII, and no space at its ends.
func headerSafe(v string) bool {
	for i := 0; i < len(v); i++ {
		if v[i] < ' ' || v[i] > '~' {
			return false
		}
	}
	return v != "" && v[0] != ' ' && v[len(v)-1] != ' '
}

// plainToken reports whether name, in lower case, may be part of a header's name and come back the same.
func plainToken(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return name != ""
}

// IsJSON reports whether a content type is JSON (RFC 6839's +json included); CloudEvents calls an absent one JSON.
func IsJSON(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		media, _, _ = strings.Cut(strings.ToLower(contentType), ";")
		media = strings.TrimSpace(media)
	}
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}
