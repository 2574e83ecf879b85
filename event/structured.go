package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// FromStructuredJSON reads one CloudEvent in the JSON format (CloudEvents JSON
// event format 1.0). Data that is a JSON value keeps its exact text.
func FromStructuredJSON(body []byte) (Event, error) {
	e := Event{Partition: AnyPartition}
	if !utf8.Valid(body) {
		return e, malformed("", "the body is not valid UTF-8")
	}
	version, hasData, hasBase64 := "", false, false
	var data json.RawMessage
	err := members(body, func(name string, raw json.RawMessage) error {
		field := "/" + name
		switch name {
		case "data":
			hasData, data = true, raw
			return nil
		case "data_base64":
			if isNull(raw) {
				return nil
			}
			hasBase64 = true
			text, err := jsonText(raw)
			if err == nil {
				e.Data, err = base64.StdEncoding.DecodeString(text)
			}
			if err != nil {
				return invalid(field, "not base64 in a JSON string")
			}
			return nil
		}
		if isNull(raw) {
			return nil // an attribute that is null is absent (section 2.2)
		}
		if reservedAttribute(name) {
			text, err := jsonText(raw)
			if err != nil {
				return invalid(field, "the attribute must be a JSON string")
			}
			if name == "specversion" {
				version = text
				return nil
			}
			return e.setAttribute(field, name, text)
		}
		text, err := extensionText(raw)
		if err != nil {
			return invalid(field, "%v", err)
		}
		return e.setAttribute(field, name, text)
	})
	if err != nil {
		return e, err
	}
	if version != SpecVersion {
		return e, invalid("/specversion", "%q is not a version we read: send %q", version, SpecVersion)
	}
	if err := e.RequireCloudEvent(); err != nil {
		return e, err
	}
	if hasData && hasBase64 {
		return e, invalid("/data_base64", "data and data_base64 exclude each other")
	}
	if hasData {
		if e.ContentType == "" {
			e.ContentType = "application/json" // section 3.1: what an absent one means
		}
		dataIsString := len(data) > 0 && data[0] == '"'
		switch {
		case dataIsString && !IsJSON(e.ContentType):
			text, err := jsonText(data)
			if err != nil {
				return e, invalid("/data", "%v", err)
			}
			e.Data = []byte(text)
		case isNull(data) && !IsJSON(e.ContentType):
		default:
			e.Data = data
		}
	}
	return e, nil
}

// Item is one element of a batch: an event, or why it is none.
type Item struct {
	Event Event
	Err   error
}

// FromBatchJSON reads the JSON batch format. One bad event does not fail the
// others; a body that is no JSON array does.
func FromBatchJSON(body []byte, most int) ([]Item, error) {
	if !utf8.Valid(body) {
		return nil, malformed("", "the body is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, malformed("", "a batch is a JSON array of CloudEvents")
	}
	var items []Item
	for d.More() {
		if len(items) == most {
			return nil, malformed("", "the batch has more than %d events", most)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, malformed("", "the batch is not valid JSON: %v", err)
		}
		e, err := FromStructuredJSON(raw)
		items = append(items, Item{e, err})
	}
	if _, err := d.Token(); err != nil {
		return nil, malformed("", "the batch is not valid JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("", "something follows the batch")
	}
	return items, nil
}

// members calls each with every member of a JSON object; a name twice is refused.
func members(body []byte, each func(name string, raw json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return malformed("", "a JSON object is expected")
	}
	seen := make(map[string]bool, 12)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return malformed("", "not valid JSON: %v", err)
		}
		name, ok := t.(string)
		if !ok {
			return malformed("", "not valid JSON")
		}
		if seen[name] {
			return malformed("/"+name, "the member is there twice")
		}
		seen[name] = true
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return malformed("/"+name, "not valid JSON: %v", err)
		}
		if err := each(name, raw); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return malformed("", "not valid JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return malformed("", "something follows the JSON object")
	}
	return nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

func jsonText(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", errors.New("a JSON string is expected")
	}
	var s string
	err := json.Unmarshal(raw, &s)
	if err == nil && strings.ContainsRune(s, utf8.RuneError) && (bytes.Contains(raw, []byte(`\ud`)) || bytes.Contains(raw, []byte(`\uD`))) {
		return s, errors.New("it holds half of a surrogate pair") // which the decoder replaced
	}
	return s, err
}

// extensionText gives an extension's canonical string (CloudEvents 1.0, section
// 3.1.1): a string, a boolean, or a 32-bit integer.
func extensionText(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '"':
		return jsonText(raw)
	case 't', 'f':
		return string(raw), nil
	}
	if n, err := strconv.ParseInt(string(raw), 10, 32); err == nil {
		return strconv.FormatInt(n, 10), nil
	}
	return "", fmt.Errorf("an extension is a string, a boolean or a 32-bit integer, not %.20s", raw)
}

// AppendStructuredJSON writes a CloudEvent in the JSON format. JSON data
// stands as it is, text as a string, anything else as data_base64.
func (e *Event) AppendStructuredJSON(b []byte) []byte {
	b = append(b, `{"specversion":"`+SpecVersion+`"`...)
	put := func(name, value string) {
		if value != "" {
			b = appendString(append(append(append(b, `,"`...), name...), `":`...), value)
		}
	}
	put("id", e.ID)
	put("source", e.Source)
	put("type", e.Type)
	put("subject", e.Subject)
	put("datacontenttype", e.ContentType)
	put("dataschema", e.DataSchema)
	if !e.Time.IsZero() {
		put("time", e.Time.Format(time.RFC3339Nano))
	}
	for _, x := range e.Extensions {
		b = appendString(append(append(append(b, `,"`...), x.Name...), `":`...), x.Value)
	}
	switch {
	case e.Data == nil:
	case (e.ContentType == "" || IsJSON(e.ContentType)) && validCompactJSON(e.Data):
		b = append(append(b, `,"data":`...), e.Data...)
	case strings.HasPrefix(e.ContentType, "text/") && utf8.Valid(e.Data):
		b = appendString(append(b, `,"data":`...), string(e.Data))
	default:
		b = appendBase64(append(b, `,"data_base64":`...), e.Data)
	}
	return append(b, '}')
}

// validCompactJSON reports whether data may stand in a line of NDJSON as it is.
func validCompactJSON(data []byte) bool {
	return json.Valid(data) && !bytes.ContainsAny(data, "\r\n") && utf8.Valid(data)
}

func appendString(b []byte, s string) []byte {
	q, err := json.Marshal(s) // a string always marshals
	if err != nil {
		return append(b, `""`...)
	}
	return append(b, q...)
}

func appendBase64(b, data []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"')
}
