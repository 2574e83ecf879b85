package schema

import (
	"fmt"
	"strings"
)

// Format is a schema language.
type Format string

// The formats, by the registry's names.
const (
	Avro     Format = "AVRO"
	JSON     Format = "JSON"
	Protobuf Format = "PROTOBUF"
)

// ParseFormat reads a format's name; "" is Avro, as in the registry's API.
func ParseFormat(text string) (Format, error) {
	switch f := Format(strings.ToUpper(text)); f {
	case "":
		return Avro, nil
	case Avro, JSON, Protobuf:
		return f, nil
	}
	return "", fmt.Errorf("%q is no schema format: use avro, json or protobuf", text)
}

// codec is one compiled schema, of any format. Its methods may run at once.
type codec interface {
	format() Format
	// recordName is what the subject strategies record and topic_record go by.
	// message or index choose among those of a Protobuf schema; the first without.
	recordName(message string, index []int) string
	// fromJSON checks text and gives the payload it becomes, after headerRoom bytes
	// for the wire header, and the Protobuf message's index. What is wrong goes to r.
	fromJSON(text []byte, message string, spelling Spelling, r *report) (payload []byte, index []int)
	// check checks a payload as it stands after the wire header.
	check(payload []byte, index []int, r *report)
	// toJSON writes such a payload as JSON; it fails with a *violationError.
	toJSON(payload []byte, index []int, spelling Spelling) ([]byte, error)
}

// Limits of schemas: what a registry holds is others' writing.
const (
	maxSchemaBytes = 1 << 20 // one schema's text
	maxClosure     = 4 << 20 // with all it refers to
	maxReferences  = 200     // schemas it refers to, all together
)

// part is a schema that another one refers to.
type part struct {
	name string // as the other calls it: an Avro type, an import path, a $ref
	text string
}

// compile makes the codec of a schema. parts come in the order of dependency.
func compile(format Format, text string, parts []part) (codec, error) {
	size := len(text)
	for _, p := range parts {
		size += len(p.text)
	}
	switch {
	case len(text) > maxSchemaBytes:
		return nil, fmt.Errorf("the schema has %d bytes, at most %d are used", len(text), maxSchemaBytes)
	case size > maxClosure || len(parts) > maxReferences:
		return nil, fmt.Errorf("the schema refers to %d others, %d bytes together: at most %d and %d bytes are used", len(parts), size, maxReferences, maxClosure)
	}
	switch format {
	case Avro:
		texts := make([]string, len(parts))
		for i, p := range parts {
			texts[i] = p.text
		}
		return asCodec(newAvro(text, texts))
	case JSON:
		return asCodec(newJSONSchema(text, parts))
	case Protobuf:
		return asCodec(newProtobuf(text, parts))
	}
	return nil, fmt.Errorf("%q is no schema format", format)
}

// asCodec keeps a nil pointer from becoming a codec that is not nil.
func asCodec[C codec](c C, err error) (codec, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}
