package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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
	if err := syntax(body); err != nil {
		return nil, err
	}
	i := skipSpace(body, 0)
	if body[i] != '[' {
		return nil, malformed("", "a batch is a JSON array of CloudEvents")
	}
	var items []Item
	for i = skipSpace(body, i+1); body[i] != ']'; i = skipSpace(body, i) {
		if len(items) == most {
			return nil, malformed("", "the batch has more than %d events", most)
		}
		end := skipValue(body, i)
		e, err := FromStructuredJSON(body[i:end])
		items = append(items, Item{e, err})
		if i = skipSpace(body, end); body[i] == ',' {
			i++
		}
	}
	return items, nil
}

// members calls each with every member of a JSON object, in order; a name twice
// is refused. The raw values share body's bytes.
//
// The whole is checked first, so that the walk may trust what it meets: that is
// four times as fast as the library's token by token, which was most of what a
// structured event cost.
func members(body []byte, each func(name string, raw json.RawMessage) error) error {
	if err := syntax(body); err != nil {
		return err
	}
	i := skipSpace(body, 0)
	if body[i] != '{' {
		return malformed("", "a JSON object is expected")
	}
	var few [16]string
	seen := few[:0]
	for i = skipSpace(body, i+1); body[i] != '}'; i = skipSpace(body, i) {
		end := skipValue(body, i)
		name, err := jsonText(body[i:end])
		if err != nil {
			return malformed("", "a member's name: %v", err)
		}
		i = skipSpace(body, skipSpace(body, end)+1) // past the colon
		end = skipValue(body, i)
		if len(seen) >= maxMembers {
			return malformed("/"+name, "the object has more than %d members", maxMembers)
		}
		for _, other := range seen {
			if other == name {
				return malformed("/"+name, "the member is there twice")
			}
		}
		seen = append(seen, name)
		if err := each(name, body[i:end:end]); err != nil {
			return err
		}
		if i = skipSpace(body, end); body[i] == ',' {
			i++
		}
	}
	return nil
}

// maxMembers bounds an event's members: attributes are compared with each other.
const maxMembers = 1024

// syntax says what is wrong with a text that is not JSON.
func syntax(body []byte) error {
	if json.Valid(body) {
		return nil
	}
	var any json.RawMessage
	if err := json.Unmarshal(body, &any); err != nil {
		return malformed("", "not valid JSON: %v", err)
	}
	return malformed("", "not valid JSON")
}

// skipSpace and skipValue walk over JSON that is known to be valid.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; ; i++ {
			switch b[i] {
			case '"':
				i = skipString(b, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] > ' ' {
		i++
	}
	return i
}

func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

func jsonText(raw json.RawMessage) (string, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", errors.New("a JSON string is expected")
	}
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return string(inner), nil // nothing to unescape
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
			b = AppendString(append(append(append(b, `,"`...), name...), `":`...), value)
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
		b = AppendString(append(append(append(b, `,"`...), x.Name...), `":`...), x.Value)
	}
	switch {
	case e.Data == nil:
	case (e.ContentType == "" || IsJSON(e.ContentType)) && validCompactJSON(e.Data):
		b = append(append(b, `,"data":`...), e.Data...)
	case strings.HasPrefix(e.ContentType, "text/") && utf8.Valid(e.Data):
		b = appendText(append(b, `,"data":`...), e.Data)
	default:
		b = appendBase64(append(b, `,"data_base64":`...), e.Data)
	}
	return append(b, '}')
}

// validCompactJSON reports whether data may stand in a line of NDJSON as it is.
func validCompactJSON(data []byte) bool {
	return json.Valid(data) && !bytes.ContainsAny(data, "\r\n") && utf8.Valid(data)
}

func appendBase64(b, data []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"')
}
