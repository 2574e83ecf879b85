package schema

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoExplainer walks a JSON text that protojson refused, to tell all that is
// wrong with it and where. It decides nothing: what it does not see wrong is
// told in protojson's words.
type protoExplainer struct {
	doc    *document
	report *report
	codec  *protoCodec
}

func (e *protoExplainer) fail(rule, expected string, n int) {
	e.report.add(e.doc.pointer(), rule, expected, e.doc.got(n))
}

// message looks for what is wrong with the node n as a d.
func (e *protoExplainer) message(d protoreflect.MessageDescriptor, n int) {
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") && d.ParentFile() != e.codec.file {
		e.wellKnown(d, n)
		return
	}
	node := e.doc.nodes[n]
	if node.kind != jsonObject {
		e.fail("protobuf.type", "an object for "+string(d.FullName()), n)
		return
	}
	chosen := map[protoreflect.Name]string{}
	for name := n + 1; name < int(node.next); name = int(e.doc.nodes[name+1].next) {
		text := e.doc.string(name)
		if strings.HasPrefix(text, "[") { // an extension: protojson's to judge
			continue
		}
		e.doc.push(text)
		f := d.Fields().ByJSONName(text)
		if f == nil {
			f = d.Fields().ByTextName(text)
		}
		switch {
		case f == nil:
			e.fail("protobuf.unknown_field", "a field of "+string(d.FullName()), name+1)
		case e.doc.nodes[name+1].kind == jsonNull && !acceptsNull(f):
		default:
			if o := f.ContainingOneof(); o != nil {
				if other, twice := chosen[o.Name()]; twice {
					e.fail("protobuf.oneof", fmt.Sprintf("one field of %s; %s is there too", o.Name(), other), name+1)
				}
				chosen[o.Name()] = text
			}
			e.field(f, name+1)
		}
		e.doc.pop()
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Cardinality() == protoreflect.Required && e.doc.find(n, f.JSONName(), f.TextName()) < 0 {
			e.doc.push(f.JSONName())
			e.report.add(e.doc.pointer(), "protobuf.required", fieldType(f), "nothing: the field is missing")
			e.doc.pop()
		}
	}
}

// find gives the value of the first member that has one of the names, or -1.
func (d *document) find(object int, names ...string) int {
	node := d.nodes[object]
	for name := object + 1; name < int(node.next); name = int(d.nodes[name+1].next) {
		if slices.ContainsFunc(names, func(s string) bool { return d.is(name, s) }) {
			return name + 1
		}
	}
	return -1
}

func acceptsNull(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() == "google.protobuf.Value" && f.Cardinality() != protoreflect.Repeated ||
		f.Enum() != nil && f.Enum().FullName() == "google.protobuf.NullValue"
}

// wellKnown has protojson judge a value of google.protobuf's own types.
func (e *protoExplainer) wellKnown(d protoreflect.MessageDescriptor, n int) {
	m := dynamicpb.NewMessage(d)
	if err := (protojson.UnmarshalOptions{Resolver: e.codec.types, RecursionLimit: maxDepth}).Unmarshal(e.doc.whole(n), m); err != nil {
		e.fail("protobuf.type", "the JSON of "+string(d.FullName()), n)
	}
}

func (e *protoExplainer) field(f protoreflect.FieldDescriptor, n int) {
	node := e.doc.nodes[n]
	switch {
	case f.IsMap():
		if node.kind != jsonObject {
			e.fail("protobuf.type", "an object for a map", n)
			return
		}
		for name := n + 1; name < int(node.next); name = int(e.doc.nodes[name+1].next) {
			e.doc.push(e.doc.string(name))
			if !mapKeyFits(f.MapKey(), e.doc.string(name)) {
				e.report.add(e.doc.pointer(), "protobuf.key", "a name that is a "+f.MapKey().Kind().String(), excerpt(e.doc.string(name)))
			}
			e.single(f.MapValue(), name+1)
			e.doc.pop()
		}
	case f.IsList():
		if node.kind != jsonArray {
			e.fail("protobuf.type", "an array of "+fieldType(f), n)
			return
		}
		for i, item := 0, n+1; item < int(node.next); i, item = i+1, int(e.doc.nodes[item].next) {
			e.doc.pushIndex(i)
			e.single(f, item)
			e.doc.pop()
		}
	default:
		e.single(f, n)
	}
}

func mapKeyFits(f protoreflect.FieldDescriptor, text string) bool {
	switch f.Kind() {
	case protoreflect.StringKind:
		return true
	case protoreflect.BoolKind:
		return text == "true" || text == "false"
	}
	return wholeFits(f.Kind(), text)
}

func fieldType(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Message() != nil:
		return string(f.Message().FullName())
	case f.Enum() != nil:
		return string(f.Enum().FullName())
	}
	return f.Kind().String()
}

// single looks at one value: not a list, not a map.
func (e *protoExplainer) single(f protoreflect.FieldDescriptor, n int) {
	k := e.doc.nodes[n].kind
	text := ""
	switch k {
	case jsonString:
		text = e.doc.string(n)
	case jsonNumber:
		text = string(e.doc.raw(n))
	}
	switch kind := f.Kind(); kind {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		e.message(f.Message(), n)
	case protoreflect.BoolKind:
		if k != jsonTrue && k != jsonFalse {
			e.fail("protobuf.type", "bool", n)
		}
	case protoreflect.StringKind:
		if k != jsonString {
			e.fail("protobuf.type", "string", n)
		}
	case protoreflect.BytesKind:
		if k != jsonString || !isBase64(text) {
			e.fail("protobuf.type", "bytes, in base64", n)
		}
	case protoreflect.EnumKind:
		known := k == jsonNumber && wholeFits(protoreflect.Int32Kind, text) || k == jsonString && f.Enum().Values().ByName(protoreflect.Name(text)) != nil ||
			k == jsonNull && acceptsNull(f)
		if !known {
			names := make([]string, f.Enum().Values().Len())
			for i := range names {
				names[i] = string(f.Enum().Values().Get(i).Name())
			}
			e.fail("protobuf.enum", "one of "+strings.Join(names, ", "), n)
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		bits := 64
		if kind == protoreflect.FloatKind {
			bits = 32
		}
		_, err := strconv.ParseFloat(text, bits)
		if special := text == "NaN" || text == "Infinity" || text == "-Infinity"; k != jsonNumber && k != jsonString || err != nil && !special {
			e.fail("protobuf.type", kind.String(), n)
		}
	default:
		switch {
		case k != jsonNumber && k != jsonString:
			e.fail("protobuf.type", kind.String(), n)
		case !wholeFits(kind, text):
			e.fail("protobuf.range", "a whole number within "+kind.String(), n)
		}
	}
}

func isBase64(text string) bool {
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	_, err := base64.RawStdEncoding.DecodeString(text)
	return err == nil
}

// wholeFits reports whether text is a whole number within kind.
func wholeFits(kind protoreflect.Kind, text string) bool {
	v, ok := parseDecimal(text, 0)
	if !ok {
		return false
	}
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return v.IsInt64() && fitsInt(v.Int64())
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return v.IsUint64() && v.Uint64() <= math.MaxUint32
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return v.IsUint64()
	}
	return v.IsInt64()
}
