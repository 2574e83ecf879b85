package event

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// FromNDJSON reads one line: a CloudEvent if it has specversion, else a record:
//
//	{"key": "text" | "key_base64": "...", "value": any | "value_base64": "...",
//	 "headers": [["name", "value"], ...], "content_type": "...", "partition": 0, "timestamp": "RFC 3339", "topic": "...",
//	 "schema_id": 7 | "schema_version": 3}
//
// schema_id or schema_version names the schema of the value, as in [Event]; a
// CloudEvent says it with dataschema.
//
// The topic is where the event goes, by default the request's; beside an offset it
// is where a tail found it, and says nothing.
//
// A value that is a string stands for its text; any other JSON value stands
// for its own text and makes the content type application/json. Without a
// value, or with null, the record is a tombstone. The value of a header is a
// string, null, or {"base64": "..."}.
func FromNDJSON(line []byte) (Event, error) {
	if !utf8.Valid(line) {
		return Event{}, malformed("", "the line is not valid UTF-8")
	}
	cloudEvent := false
	if err := members(line, func(name string, _ json.RawMessage) error {
		cloudEvent = cloudEvent || name == "specversion"
		return nil
	}); err != nil {
		return Event{}, err
	}
	if cloudEvent {
		return FromStructuredJSON(line)
	}
	e := Event{Partition: AnyPartition}
	keys, values, tailed := 0, 0, false
	err := members(line, func(name string, raw json.RawMessage) error {
		field := "/" + name
		if isNull(raw) && name != "value" {
			return nil
		}
		switch name {
		case "key":
			keys++
			return setText(field, raw, &e.Key)
		case "key_base64":
			keys++
			return setBase64(field, raw, &e.Key)
		case "value":
			values++
			switch {
			case isNull(raw):
			case raw[0] == '"':
				return setText(field, raw, &e.Data)
			default:
				e.Data = raw
				if e.ContentType == "" {
					e.ContentType = "application/json"
				}
			}
		case "value_base64":
			values++
			return setBase64(field, raw, &e.Data)
		case "content_type":
			text, err := jsonText(raw)
			if err != nil {
				return malformed(field, "%v", err)
			}
			e.ContentType = text
		case "headers":
			return e.setHeaders(field, raw)
		case "partition":
			p, err := strconv.ParseInt(string(raw), 10, 32)
			if err != nil || p < 0 {
				return malformed(field, "%.20s is not a partition's number", raw)
			}
			e.Partition = int32(p)
		case "timestamp":
			text, err := jsonText(raw)
			if err == nil {
				e.Timestamp, err = time.Parse(time.RFC3339Nano, text)
			}
			if err != nil {
				return malformed(field, "not an RFC 3339 time such as \"2026-01-31T10:00:00Z\"")
			}
		case "topic":
			text, err := jsonText(raw)
			if err != nil {
				return malformed(field, "%v", err)
			}
			if e.Topic, err = ParseTopic(text); err != nil {
				return malformed(field, "%v", err)
			}
		case "schema_id":
			return setNumber(field, raw, &e.SchemaID)
		case "schema_version":
			return setNumber(field, raw, &e.SchemaVersion)
		case "offset":
			tailed = true
		default:
			return malformed(field, "unknown member: a record has key, key_base64, value, value_base64, headers, content_type, partition, timestamp, topic, schema_id, schema_version; a CloudEvent has specversion")
		}
		return nil
	})
	switch {
	case err != nil:
		return e, err
	case keys > 1:
		return e, malformed("/key", "key and key_base64 exclude each other")
	case values > 1:
		return e, malformed("/value", "value and value_base64 exclude each other")
	}
	if tailed {
		e.Topic = ""
	}
	return e, nil
}

// setNumber reads the number of a schema or of its version.
func setNumber(field string, raw json.RawMessage, to *int32) error {
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil || n < 1 {
		return malformed(field, "%.20s is not a number from 1 on", raw)
	}
	*to = int32(n)
	return nil
}

func setText(field string, raw json.RawMessage, to *[]byte) error {
	text, err := jsonText(raw)
	if err != nil {
		return malformed(field, "%v", err)
	}
	*to = []byte(text)
	return nil
}

func setBase64(field string, raw json.RawMessage, to *[]byte) error {
	text, err := jsonText(raw)
	if err == nil {
		*to, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil {
		return malformed(field, "not base64 in a JSON string")
	}
	return nil
}

func (e *Event) setHeaders(field string, raw json.RawMessage) error {
	var pairs []json.RawMessage
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return malformed(field, "a list of [name, value] pairs is expected")
	}
	for i, p := range pairs {
		at := field + "/" + strconv.Itoa(i)
		var pair []json.RawMessage
		if err := json.Unmarshal(p, &pair); err != nil || len(pair) != 2 {
			return malformed(at, "a [name, value] pair is expected")
		}
		name, err := jsonText(pair[0])
		if err != nil {
			return malformed(at, "the name must be a string")
		}
		h := Header{Name: name}
		switch {
		case isNull(pair[1]):
		case pair[1][0] == '"':
			if err := setText(at, pair[1], &h.Value); err != nil {
				return err
			}
		default:
			var binary struct {
				Base64 *[]byte `json:"base64"`
			}
			if err := json.Unmarshal(pair[1], &binary); err != nil || binary.Base64 == nil {
				return malformed(at, `the value must be a string, null or {"base64": "..."}`)
			}
			h.Value = *binary.Base64
		}
		e.Headers = append(e.Headers, h)
	}
	return nil
}

// AppendJSON writes a delivered record as one line of JSON for people and
// programs over HTTP: a CloudEvent in its JSON format with Kafka's parts as
// members beside it is not one any more, so the event stands by itself in the
// member "event" of what the caller writes around it.
func (r *Record) AppendJSON(b []byte) []byte {
	e := r.Event()
	if e.IsCloudEvent() {
		return e.AppendStructuredJSON(b)
	}
	b = append(b, '{')
	comma := func(name string) {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), `":`...)
	}
	if r.Key != nil {
		if utf8.Valid(r.Key) {
			comma("key")
			b = appendText(b, r.Key)
		} else {
			comma("key_base64")
			b = appendBase64(b, r.Key)
		}
	}
	switch {
	case r.Value == nil:
		comma("value")
		b = append(b, "null"...)
	case IsJSON(e.ContentType) && validCompactJSON(r.Value) && r.Value[0] != '"' && string(r.Value) != "null" && r.Value[0] > ' ' && r.Value[len(r.Value)-1] > ' ':
		comma("value")
		b = append(b, r.Value...)
	case utf8.Valid(r.Value):
		comma("value")
		b = appendText(b, r.Value)
	default:
		comma("value_base64")
		b = appendBase64(b, r.Value)
	}
	if e.ContentType != "" {
		comma("content_type")
		b = AppendString(b, e.ContentType)
	}
	if len(e.Headers) > 0 {
		comma("headers")
		b = append(b, '[')
		for i, h := range e.Headers {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '[')
			b = AppendString(b, h.Name)
			b = append(b, ',')
			switch {
			case h.Value == nil:
				b = append(b, "null"...)
			case utf8.Valid(h.Value):
				b = appendText(b, h.Value)
			default:
				b = append(appendBase64(append(b, `{"base64":`...), h.Value), '}')
			}
			b = append(b, ']')
		}
		b = append(b, ']')
	}
	return append(b, '}')
}
