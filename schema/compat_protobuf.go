package schema

import (
	"google.golang.org/protobuf/reflect/protoreflect"
)

// protobuf compares two files by what their wire format allows
// (https://protobuf.dev/programming-guides/proto3/#updating), message by message.
func (d *differ) protobuf(reader, writer *protoCodec) {
	if reader.file.Package() != writer.file.Package() {
		d.add("", "protobuf.package", "the package is %s there and %s here", writer.file.Package(), reader.file.Package())
	}
	here := map[string]protoreflect.MessageDescriptor{}
	for _, m := range allMessages(reader.file.Messages(), nil) {
		here[relativeName(m)] = m
	}
	for _, w := range allMessages(writer.file.Messages(), nil) {
		if r := here[relativeName(w)]; r != nil {
			d.messages(r, w)
		} else {
			d.add(relativeName(w), "protobuf.message", "the message is not there any more")
		}
	}
}

// relativeName is a message's name within its package.
func relativeName(m protoreflect.Descriptor) string {
	if parent, ok := m.Parent().(protoreflect.MessageDescriptor); ok {
		return relativeName(parent) + "." + string(m.Name())
	}
	return string(m.Name())
}

func (d *differ) messages(r, w protoreflect.MessageDescriptor) {
	for i := range w.Fields().Len() {
		wf := w.Fields().Get(i)
		if rf := r.Fields().ByNumber(wf.Number()); rf != nil {
			d.fields(rf, wf, relativeName(r)+"."+string(rf.Name()))
		}
	}
	for i := range r.Fields().Len() {
		rf := r.Fields().Get(i)
		if rf.Cardinality() != protoreflect.Required {
			continue
		}
		if wf := w.Fields().ByNumber(rf.Number()); wf == nil || wf.Cardinality() != protoreflect.Required {
			d.add(relativeName(r)+"."+string(rf.Name()), "protobuf.required", "the field is required here and need not be there")
		}
	}
	for i := range r.Oneofs().Len() {
		d.oneof(r.Oneofs().Get(i), w)
	}
}

// oneof looks for fields that could stand together in the writer's and cannot in the reader's.
func (d *differ) oneof(o protoreflect.OneofDescriptor, w protoreflect.MessageDescriptor) {
	if o.IsSynthetic() {
		return
	}
	var free []protoreflect.FieldDescriptor
	groups := map[protoreflect.Name]bool{}
	for i := range o.Fields().Len() {
		wf := w.Fields().ByNumber(o.Fields().Get(i).Number())
		if wf == nil {
			continue
		}
		if of := wf.ContainingOneof(); of != nil && !of.IsSynthetic() {
			groups[of.Name()] = true
			continue
		}
		free = append(free, wf)
	}
	if len(free)+len(groups) > 1 {
		d.add(relativeName(o.Parent())+"."+string(o.Name()), "protobuf.oneof", "fields that can stand together there exclude one another here")
	}
}

// wireGroups are kinds that read one another's bytes.
var wireGroups = map[protoreflect.Kind]int{
	protoreflect.Int32Kind: 1, protoreflect.Uint32Kind: 1, protoreflect.Int64Kind: 1, protoreflect.Uint64Kind: 1, protoreflect.BoolKind: 1, protoreflect.EnumKind: 1,
	protoreflect.Sint32Kind: 2, protoreflect.Sint64Kind: 2, protoreflect.StringKind: 3, protoreflect.BytesKind: 3,
	protoreflect.Fixed32Kind: 4, protoreflect.Sfixed32Kind: 4, protoreflect.Fixed64Kind: 5, protoreflect.Sfixed64Kind: 5,
	protoreflect.FloatKind: 6, protoreflect.DoubleKind: 7, protoreflect.MessageKind: 8, protoreflect.GroupKind: 9,
}

func (d *differ) fields(r, w protoreflect.FieldDescriptor, path string) {
	if r.IsMap() != w.IsMap() {
		d.add(path, "protobuf.type", "a map is read as none, or the other way round")
		return
	}
	if r.IsMap() {
		d.fields(r.MapKey(), w.MapKey(), path+"[key]")
		d.fields(r.MapValue(), w.MapValue(), path+"[]")
		return
	}
	switch {
	case wireGroups[r.Kind()] != wireGroups[w.Kind()]:
		d.add(path, "protobuf.type", "field %d is %s there and %s here", w.Number(), fieldType(w), fieldType(r))
	case r.Message() != nil && r.Message().FullName() != w.Message().FullName() && relativeName(r.Message()) != relativeName(w.Message()):
		d.add(path, "protobuf.type", "field %d is %s there and %s here", w.Number(), fieldType(w), fieldType(r))
	case r.IsList() != w.IsList() && r.Message() == nil && r.Kind() != protoreflect.StringKind && r.Kind() != protoreflect.BytesKind:
		d.add(path, "protobuf.label", "field %d is repeated on one side only", w.Number())
	}
}
