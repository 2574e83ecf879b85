package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	// Schemas import buf/validate/validate.proto; this links its descriptor in.
	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoCodec is a compiled .proto file with what it imports. JSON is
// protojson's; what protojson refuses is gone through again for all that is
// wrong (protobuf_explain.go). The rules of protovalidate in the schema are
// enforced on what it takes.
type protoCodec struct {
	file  protoreflect.FileDescriptor
	types *dynamicpb.Types
	rules protovalidate.Validator
}

// maxMessages bounds the messages of one file: the rules of each are compiled.
const maxMessages = 2_000

// maxProtobuf bounds what is parsed: two bytes can become a message of some
// hundred in memory.
const maxProtobuf = 8 << 20

// protoName is what the schema's own file is called while it is compiled.
const protoName = "schema.proto"

func newProtobuf(text string, parts []part) (*protoCodec, error) {
	sources := map[string]string{protoName: text}
	for _, p := range parts {
		sources[p.name] = p.text
	}
	compiler := protocompile.Compiler{
		MaxParallelism: 1,
		Resolver: protocompile.WithStandardImports(protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
			if source, ok := sources[path]; ok {
				return protocompile.SearchResult{Source: strings.NewReader(source)}, nil
			}
			if strings.HasPrefix(path, "buf/validate/") {
				if file, err := protoregistry.GlobalFiles.FindFileByPath(path); err == nil {
					return protocompile.SearchResult{Desc: file}, nil
				}
			}
			return protocompile.SearchResult{}, fmt.Errorf("%s is not among the schema's references", path)
		})),
	}
	linked, err := compiler.Compile(context.Background(), protoName)
	if err != nil {
		return nil, err
	}
	// The linker's descriptors keep the whole source; plain ones do not, and know
	// their options as the rules' own generated types.
	files := &protoregistry.Files{}
	file, err := plain(files, linked[0])
	if err != nil {
		return nil, err
	}
	c := &protoCodec{file: file, types: dynamicpb.NewTypes(files)}
	messages := allMessages(file.Messages(), nil)
	if len(messages) == 0 {
		return nil, errors.New("the schema has no message")
	}
	if len(messages) > maxMessages {
		return nil, fmt.Errorf("the schema has %d messages, at most %d are used", len(messages), maxMessages)
	}
	if c.rules, err = protovalidate.New(protovalidate.WithExtensionTypeResolver(c.types)); err != nil {
		return nil, err
	}
	for _, m := range messages {
		var broken *protovalidate.CompilationError
		if err := c.rules.Validate(dynamicpb.NewMessage(m)); errors.As(err, &broken) {
			return nil, fmt.Errorf("the rules of %s: %w", m.FullName(), err)
		}
	}
	return c, nil
}

// plain makes ordinary descriptors of file and what it imports.
func plain(files *protoregistry.Files, file protoreflect.FileDescriptor) (protoreflect.FileDescriptor, error) {
	if known, err := files.FindFileByPath(file.Path()); err == nil {
		return known, nil
	}
	if global, err := protoregistry.GlobalFiles.FindFileByPath(file.Path()); err == nil && isShared(file.Path()) {
		return global, files.RegisterFile(global)
	}
	imports := file.Imports()
	for i := range imports.Len() {
		if _, err := plain(files, imports.Get(i).FileDescriptor); err != nil {
			return nil, err
		}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(protodesc.ToFileDescriptorProto(file))
	if err != nil {
		return nil, err
	}
	described := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(raw, described); err != nil {
		return nil, err
	}
	made, err := protodesc.NewFile(described, files)
	if err != nil {
		return nil, err
	}
	return made, files.RegisterFile(made)
}

// isShared reports whether a file is one that this program has itself: messages
// of well-known types must be those that protojson knows.
func isShared(path string) bool {
	return strings.HasPrefix(path, "google/protobuf/") || strings.HasPrefix(path, "buf/validate/")
}

func allMessages(in protoreflect.MessageDescriptors, all []protoreflect.MessageDescriptor) []protoreflect.MessageDescriptor {
	for i := range in.Len() {
		if m := in.Get(i); !m.IsMapEntry() {
			all = allMessages(m.Messages(), append(all, m))
		}
	}
	return all
}

func (c *protoCodec) format() Format { return Protobuf }

// message finds a message by its full or short name, or by its index; the first without either.
func (c *protoCodec) message(name string, index []int) protoreflect.MessageDescriptor {
	if name != "" {
		for _, m := range allMessages(c.file.Messages(), nil) {
			if string(m.FullName()) == name || string(m.Name()) == name {
				return m
			}
		}
		return nil
	}
	if len(index) == 0 {
		index = []int{0}
	}
	in := c.file.Messages()
	var found protoreflect.MessageDescriptor
	for _, i := range index {
		if i < 0 || i >= in.Len() {
			return nil
		}
		found = in.Get(i)
		in = found.Messages()
	}
	return found
}

func indexOf(m protoreflect.MessageDescriptor) []int {
	if parent, ok := m.Parent().(protoreflect.MessageDescriptor); ok {
		return append(indexOf(parent), m.Index())
	}
	return []int{m.Index()}
}

func (c *protoCodec) recordName(message string, index []int) string {
	if m := c.message(message, index); m != nil {
		return string(m.FullName())
	}
	return ""
}

func (c *protoCodec) fromJSON(text []byte, name string, _ Spelling, r *report) ([]byte, []int) {
	d := c.message(name, nil)
	if d == nil {
		r.add("", "protobuf.message", "a message of the schema", excerpt(name))
		return nil, nil
	}
	var doc document
	if err := doc.parse(text); err != nil {
		r.syntax(err)
		return nil, nil
	}
	m := dynamicpb.NewMessage(d)
	if err := (protojson.UnmarshalOptions{Resolver: c.types, RecursionLimit: maxDepth}).Unmarshal(text, m); err != nil {
		e := protoExplainer{doc: &doc, report: r, codec: c}
		if e.message(d, 0); r.ok() {
			r.add("", "protobuf.json", "the JSON of "+string(d.FullName()), protoText(err))
		}
		return nil, nil
	}
	if c.validate(m, r); !r.ok() {
		return nil, nil
	}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(make([]byte, headerRoom, headerRoom+len(text)), m)
	if err != nil {
		r.add("", "protobuf.required", "every required field", protoText(err))
	}
	return out, indexOf(d)
}

// protoText is an error of the Protobuf library in stable words: it varies a
// space so that nobody builds on it.
func protoText(err error) string {
	return strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
}

// validate checks m's own rules.
func (c *protoCodec) validate(m *dynamicpb.Message, r *report) {
	err := c.rules.Validate(m)
	if err == nil {
		return
	}
	var wrong *protovalidate.ValidationError
	if !errors.As(err, &wrong) {
		r.add("", "protovalidate", "rules that can be checked", err.Error())
		return
	}
	for _, v := range wrong.Violations {
		expected := v.Proto.GetMessage()
		if expected == "" {
			expected = "the rule " + v.Proto.GetRuleId()
		}
		got := "another value"
		if v.FieldValue.IsValid() {
			got = protoGot(v.FieldDescriptor, v.FieldValue)
		} else if v.FieldDescriptor != nil {
			got = "nothing"
		}
		r.add(protoPointer(v), v.Proto.GetRuleId(), expected, got)
	}
}

// protoPointer is a violation's path as a JSON pointer.
func protoPointer(v *protovalidate.Violation) string {
	var b []byte
	for _, e := range v.Proto.GetField().GetElements() {
		b = appendPointer(append(b, '/'), jsonName(e.GetFieldName()))
		switch {
		case e.GetSubscript() == nil:
		case e.HasIndex():
			b = fmt.Appendf(b, "/%d", e.GetIndex())
		case e.HasBoolKey():
			b = fmt.Appendf(b, "/%t", e.GetBoolKey())
		case e.HasIntKey():
			b = fmt.Appendf(b, "/%d", e.GetIntKey())
		case e.HasUintKey():
			b = fmt.Appendf(b, "/%d", e.GetUintKey())
		case e.HasStringKey():
			b = appendPointer(append(b, '/'), e.GetStringKey())
		}
	}
	return string(b)
}

// jsonName is the default JSON name of a field: lowerCamelCase.
func jsonName(field string) string {
	var b []byte
	up := false
	for i := range len(field) {
		switch c := field[i]; {
		case c == '_':
			up = true
		case up && c >= 'a' && c <= 'z':
			b, up = append(b, c-'a'+'A'), false
		default:
			b, up = append(b, c), false
		}
	}
	return string(b)
}

func protoGot(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch x := v.Interface().(type) {
	case protoreflect.Message:
		return "a message " + string(x.Descriptor().FullName())
	case protoreflect.List:
		return fmt.Sprintf("%d items", x.Len())
	case protoreflect.Map:
		return fmt.Sprintf("%d entries", x.Len())
	case string:
		return fmt.Sprintf("%q", excerpt(x))
	case []byte:
		return fmt.Sprintf("%d bytes", len(x))
	case protoreflect.EnumNumber:
		if f != nil && f.Enum() != nil {
			if name := f.Enum().Values().ByNumber(x); name != nil {
				return string(name.Name())
			}
		}
		return fmt.Sprint(x)
	default:
		return fmt.Sprint(x)
	}
}

// parse reads a payload as the message at index.
func (c *protoCodec) parse(payload []byte, index []int) (*dynamicpb.Message, *violationError) {
	d := c.message("", index)
	if d == nil {
		return nil, &violationError{"", "protobuf.message", "the index of a message of the schema", fmt.Sprint(index)}
	}
	if len(payload) > maxProtobuf {
		return nil, &violationError{"", "protobuf.size", fmt.Sprintf("at most %d bytes", maxProtobuf), fmt.Sprintf("%d bytes", len(payload))}
	}
	m := dynamicpb.NewMessage(d)
	if err := (proto.UnmarshalOptions{Resolver: c.types, RecursionLimit: maxDepth}).Unmarshal(payload, m); err != nil {
		return nil, &violationError{"", "protobuf.bytes", "the bytes of " + string(d.FullName()), protoText(err)}
	}
	return m, nil
}

func (c *protoCodec) check(payload []byte, index []int, r *report) {
	m, wrong := c.parse(payload, index)
	if wrong != nil {
		wrong.report(r)
		return
	}
	c.validate(m, r)
}

func (c *protoCodec) toJSON(payload []byte, index []int, _ Spelling) ([]byte, error) {
	m, wrong := c.parse(payload, index)
	if wrong != nil {
		return nil, wrong
	}
	text, err := protojson.MarshalOptions{Resolver: c.types}.Marshal(m)
	if err != nil {
		return nil, &violationError{"", "protobuf.json", "a message that JSON can hold", protoText(err)}
	}
	var b bytes.Buffer // protojson varies its spaces
	if err := json.Compact(&b, text); err != nil {
		return nil, &violationError{"", "protobuf.json", "JSON", err.Error()}
	}
	return b.Bytes(), nil
}
