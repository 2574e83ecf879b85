package subscription

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// told are the fields that the gateway alone sets. In an update they are passed
// over, so that what was read can be sent back.
var told = []string{"name", "etag", "generation", "create_time", "update_time", "declared_in", "paused", "seek_epoch", "problem", "note"}

// updated gives old with the fields that paths name (none: all) as they are in
// change; one that change lacks gets its default. A part of a filter stands for
// the whole of it: it has one meaning.
func updated(old, change *posternv1.Subscription, paths []string) (*posternv1.Subscription, error) {
	m := proto.CloneOf(old)
	if len(paths) == 0 {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			paths = append(paths, string(fields.Get(i).Name()))
		}
	}
	for _, path := range paths {
		if path == "*" {
			return updated(old, change, nil)
		}
		steps := strings.Split(path, ".")
		if slices.Contains(told, steps[0]) {
			continue
		}
		if steps[0] == "filter" {
			steps = steps[:1]
		}
		if !copyField(m.ProtoReflect(), change.ProtoReflect(), steps) {
			return nil, fault.New(fault.InvalidArgument, "update_mask names %q, which is no field of a subscription", path).Field("update_mask", "%q is no field", path)
		}
	}
	return m, nil
}

// copyField sets the field at steps of to as it is in from; false when there is no such field.
func copyField(to, from protoreflect.Message, steps []string) bool {
	f := to.Descriptor().Fields().ByName(protoreflect.Name(steps[0]))
	if f == nil {
		f = to.Descriptor().Fields().ByJSONName(steps[0])
	}
	if f == nil {
		return false
	}
	if len(steps) == 1 {
		if from.Has(f) {
			to.Set(f, from.Get(f))
		} else {
			to.Clear(f)
		}
		return true
	}
	if f.Kind() != protoreflect.MessageKind || f.IsList() || f.IsMap() {
		return false
	}
	if !from.Has(f) && !to.Has(f) { // both have its default
		return has(f.Message(), steps[1:])
	}
	return copyField(to.Mutable(f).Message(), from.Get(f).Message(), steps[1:])
}

// has reports whether a message has a field at steps.
func has(m protoreflect.MessageDescriptor, steps []string) bool {
	f := m.Fields().ByName(protoreflect.Name(steps[0]))
	switch {
	case f == nil:
		return false
	case len(steps) == 1:
		return true
	}
	return f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() && has(f.Message(), steps[1:])
}
