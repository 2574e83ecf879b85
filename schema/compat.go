package schema

import (
	"context"
	"fmt"
	"slices"

	"github.com/postern-dev/postern/fault"
)

// Parsed is a schema that can be compared with others.
type Parsed struct {
	Definition
	codec codec
}

// Parse compiles d; fetch gives what it refers to.
func Parse(ctx context.Context, d Definition, fetch func(context.Context, Reference) (Definition, error)) (*Parsed, error) {
	parts, err := gather(ctx, d, fetch)
	if err != nil {
		return nil, err
	}
	c, err := compile(d.Format, d.Text, parts)
	if err != nil {
		return nil, fault.New(fault.SchemaUnusable, "the schema cannot be used: %s", excerptLong(err.Error()))
	}
	return &Parsed{d, c}, nil
}

// Incompatibility is one place where a schema cannot follow another.
type Incompatibility struct {
	Version int    // of the earlier schema
	Reader  string // who could not read: "new" the old events (backward), "old" the new ones (forward)
	Path    string // JSON pointer, or dotted names for Avro and Protobuf
	Rule    string
	Message string
}

func (i Incompatibility) String() string {
	side := "readers of the new schema could not read events of version %d"
	if i.Reader == "old" {
		side = "readers of version %d could not read new events"
	}
	at := i.Path
	if at == "" {
		at = "the whole"
	}
	return fmt.Sprintf("%s: %s (%s; %s)", at, i.Message, i.Rule, fmt.Sprintf(side, i.Version))
}

// Earlier is a version that is there already.
type Earlier struct {
	Version int
	*Parsed
}

// Compatible tells all that keeps next from following the earlier versions,
// oldest first, by level. Backward: readers of next read what is there. Forward:
// readers of what is there read next's. Without transitive only the last version counts.
//
// For Avro the resolution rules of its specification decide, for Protobuf those of its wire
// format; for JSON Schema every value that the writer's schema allows must be
// shown to be one the reader's allows: where that cannot be shown, it is said so
// (rule "undecided") and counts as incompatible.
func Compatible(level Level, next *Parsed, earlier []Earlier) []Incompatibility {
	if level == LevelNone || len(earlier) == 0 {
		return nil
	}
	transitive := level == LevelBackwardTransitive || level == LevelForwardTransitive || level == LevelFullTransitive
	if !transitive {
		earlier = earlier[len(earlier)-1:]
	}
	var all []Incompatibility
	for _, e := range slices.Backward(earlier) {
		if level != LevelForward && level != LevelForwardTransitive {
			all = append(all, unreadable(next, e.Parsed, "new", e.Version)...)
		}
		if level != LevelBackward && level != LevelBackwardTransitive {
			all = append(all, unreadable(e.Parsed, next, "old", e.Version)...)
		}
	}
	return all
}

// unreadable tells why reader cannot read all that writer wrote.
func unreadable(reader, writer *Parsed, side string, version int) []Incompatibility {
	d := &differ{side: side, version: version}
	if reader.Format != writer.Format {
		d.add("", "format", "the schema is %s, the other %s", reader.Format, writer.Format)
		return d.found
	}
	switch r := reader.codec.(type) {
	case *avroCodec:
		d.avro(r, writer.codec.(*avroCodec))
	case *jsonCodec:
		d.json(r, writer.codec.(*jsonCodec))
	case *protoCodec:
		d.protobuf(r, writer.codec.(*protoCodec))
	}
	return d.found
}

// differ gathers incompatibilities of one pair.
type differ struct {
	side    string
	version int
	found   []Incompatibility
}

// maxIncompatibilities bounds what is told of one pair.
const maxIncompatibilities = 200

func (d *differ) add(path, rule, format string, args ...any) {
	if len(d.found) < maxIncompatibilities {
		d.found = append(d.found, Incompatibility{d.version, d.side, path, rule, fmt.Sprintf(format, args...)})
	}
}
