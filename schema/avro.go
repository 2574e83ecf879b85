package schema

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/twmb/avro"
)

// avroKind is what an Avro type is.
type avroKind uint8

const (
	avroNull avroKind = iota
	avroBoolean
	avroInt
	avroLong
	avroFloat
	avroDouble
	avroBytes
	avroString
	avroRecord
	avroEnum
	avroArray
	avroMap
	avroFixed
	avroUnion
)

var avroKinds = map[string]avroKind{
	"null": avroNull, "boolean": avroBoolean, "int": avroInt, "long": avroLong, "float": avroFloat, "double": avroDouble,
	"bytes": avroBytes, "string": avroString, "record": avroRecord, "error": avroRecord, "enum": avroEnum, "array": avroArray,
	"map": avroMap, "fixed": avroFixed, "union": avroUnion,
}

// avroType is a type of a schema, made ready to be walked along a value.
type avroType struct {
	kind      avroKind
	name      string // of the type: long, or a named type's full name
	short     string // a named type's name without its namespace
	logical   logical
	precision int
	scale     int
	size      int // fixed

	fields   []avroField
	byName   map[string]int // record: place in fields; enum: place in symbols
	symbols  []string
	hasOther bool      // enum: readers take unknown symbols as its default
	aliases  []string  // full names
	of       *avroType // array, map
	branches []*avroType
}

type avroField struct {
	name     string
	aliases  []string
	of       *avroType
	fallback []byte // the default, encoded
	required bool
}

// String names t for people.
func (t *avroType) String() string {
	switch t.kind {
	case avroArray:
		return "array of " + t.of.name
	case avroMap:
		return "map of " + t.of.name
	case avroUnion:
		names := make([]string, len(t.branches))
		for i, b := range t.branches {
			names[i] = b.String()
		}
		return "one of " + strings.Join(names, ", ")
	case avroRecord:
		return "record " + t.name
	case avroEnum:
		return "enum " + t.name + " (" + strings.Join(t.symbols, ", ") + ")"
	case avroFixed:
		if t.logical == noLogical {
			return fmt.Sprintf("fixed %s (%d bytes)", t.name, t.size)
		}
	}
	if t.logical != noLogical {
		return t.name + " (" + t.logical.String() + ")"
	}
	return t.name
}

// avroCodec is a compiled Avro schema. The library parses and checks the
// schema; the walk between JSON and binary is ours, because the library's stops
// at the first violation and takes the first branch of a union that fits.
type avroCodec struct {
	schema   *avro.Schema
	root     *avroType
	defaults int // bytes of all fields' defaults
}

// maxTypes bounds the types of one schema.
const maxTypes = 20_000

// newAvro compiles a schema and those it refers to, in the order of dependency.
func newAvro(text string, references []string) (*avroCodec, error) {
	var cache avro.SchemaCache
	var unfolding avroUnfolding
	for _, r := range references {
		if err := unfolding.check(r); err != nil {
			return nil, fmt.Errorf("a schema it refers to: %w", err)
		}
		if _, err := cache.Parse(r); err != nil {
			return nil, fmt.Errorf("a schema it refers to: %w", err)
		}
	}
	if err := unfolding.check(text); err != nil {
		return nil, err
	}
	parsed, err := cache.Parse(text)
	if err != nil {
		return nil, err
	}
	c := &avroCodec{schema: parsed}
	p := avroPlanner{named: map[string]*avroType{}}
	// The root as written may name types that other schemas define; converting it
	// once writes them out.
	whole, err := parsed.Root().Schema()
	if err != nil {
		return nil, err
	}
	if c.root, err = p.plan(whole.Root(), 0); err != nil {
		return nil, err
	}
	c.defaults, err = p.fallbacks()
	return c, err
}

// avroPlanner makes avroTypes of a schema's nodes.
type avroPlanner struct {
	named map[string]*avroType
	count int
	later []pendingDefault // a default may be of a type that is not planned to its end yet
}

type pendingDefault struct {
	record *avroType
	field  int
	value  any
}

func (p *avroPlanner) plan(n *avro.SchemaNode, depth int) (*avroType, error) {
	if p.count++; p.count > maxTypes || depth > maxDepth {
		return nil, fmt.Errorf("the schema has more than %d types, or nests deeper than %d", maxTypes, maxDepth)
	}
	kind, known := avroKinds[n.Type]
	if !known {
		t := p.named[n.Type]
		if t == nil {
			return nil, fmt.Errorf("the type %s is not defined", excerpt(n.Type))
		}
		return t, nil
	}
	t := &avroType{kind: kind, name: n.Type, size: n.Size, precision: n.Precision, scale: n.Scale}
	switch kind {
	case avroRecord, avroEnum, avroFixed:
		t.name, t.short = n.Name, n.Name
		if i := strings.LastIndexByte(n.Name, '.'); i >= 0 {
			t.short = n.Name[i+1:]
		} else if n.Namespace != "" {
			t.name = n.Namespace + "." + n.Name
		}
		p.named[t.name] = t
		t.aliases = n.Aliases
	}
	t.logical = logicalOf(n.LogicalType, t)
	var err error
	switch kind {
	case avroRecord:
		t.byName = make(map[string]int, len(n.Fields))
		t.fields = make([]avroField, len(n.Fields))
		for i := range n.Fields {
			f := &n.Fields[i]
			t.byName[f.Name] = i
			t.fields[i] = avroField{name: f.Name, aliases: f.Aliases, required: !f.HasDefault}
			if t.fields[i].of, err = p.plan(&f.Type, depth+1); err != nil {
				return nil, err
			}
			if f.HasDefault {
				p.later = append(p.later, pendingDefault{t, i, f.Default})
			}
		}
	case avroEnum:
		t.symbols, t.hasOther = n.Symbols, n.HasEnumDefault
		t.byName = make(map[string]int, len(n.Symbols))
		for i, s := range n.Symbols {
			t.byName[s] = i
		}
	case avroArray:
		t.of, err = p.plan(n.Items, depth+1)
	case avroMap:
		t.of, err = p.plan(n.Values, depth+1)
	case avroUnion:
		for i := range n.Branches {
			b, err := p.plan(&n.Branches[i], depth+1)
			if err != nil {
				return nil, err
			}
			t.branches = append(t.branches, b)
		}
	}
	return t, err
}

// maxDefaults bounds the memory of a schema's encoded defaults.
const maxDefaults = 1 << 20

// fallbacks encodes the fields' defaults. One whose record holds other defaults
// needs those first, so they are tried until none is left or none moves on.
func (p *avroPlanner) fallbacks() (total int, err error) {
	for len(p.later) > 0 {
		var stuck []pendingDefault
		var last error
		for _, d := range p.later {
			f := &d.record.fields[d.field]
			text, err := json.Marshal(d.value)
			if err != nil {
				return 0, fmt.Errorf("the default of %s.%s: %w", d.record.name, f.name, err)
			}
			w := avroWriter{spelling: spellingDefault, report: &report{}}
			if err := w.doc.parse(text); err != nil {
				return 0, fmt.Errorf("the default of %s.%s: %w", d.record.name, f.name, err)
			}
			w.budget = budgetOf(&w.doc)
			w.value(f.of, 0)
			if !w.report.ok() {
				stuck = append(stuck, d)
				last = fmt.Errorf("the default of %s.%s: %s", d.record.name, f.name, w.report.list[0].Description)
				continue
			}
			if total += len(w.out); total > maxDefaults {
				return 0, fmt.Errorf("the defaults are larger than %d bytes", maxDefaults)
			}
			f.fallback = w.out
			if f.fallback == nil {
				f.fallback = []byte{}
			}
		}
		if len(stuck) == len(p.later) {
			return 0, last
		}
		p.later = stuck
	}
	return total, nil
}

func (c *avroCodec) format() Format { return Avro }

func (c *avroCodec) recordName(string, []int) string { return c.root.name }

func (c *avroCodec) fromJSON(text []byte, _ string, spelling Spelling, r *report) ([]byte, []int) {
	w := avroWriters.Get().(*avroWriter)
	w.spelling, w.report = spelling, r
	w.write(c.root, text)
	out := append(make([]byte, headerRoom, headerRoom+len(w.out)), w.out...)
	w.doc.reset()
	if w.report = nil; cap(w.out) > maxKept {
		w.out = nil
	}
	w.out = w.out[:0]
	avroWriters.Put(w)
	return out, nil
}

// avroWriters keeps the memory of writers between events.
var avroWriters = sync.Pool{New: func() any { return &avroWriter{} }}

func (c *avroCodec) check(payload []byte, _ []int, r *report) {
	reader := avroReader{data: payload, quiet: true}
	if reader.read(c.root) != nil {
		reader.wrong.report(r)
	}
}

// unfolds reports whether payload, which c checked, becomes too large when a
// reader's schema gives each of its records all its defaults.
func (c *avroCodec) unfolds(payload []byte, reader *avroCodec) bool {
	r := avroReader{data: payload, quiet: true}
	return r.read(c.root) == nil && r.records*reader.defaults > max(maxUnfolded, 16*len(payload))
}

// maxUnfolded is how many bytes the defaults of a reader's schema may always add to
// one value.
const maxUnfolded = 4 << 20

func (c *avroCodec) toJSON(payload []byte, _ []int, spelling Spelling) ([]byte, error) {
	reader := avroReader{data: payload, spelling: spelling, out: make([]byte, 0, 2*len(payload)+64)}
	err := reader.read(c.root)
	return reader.out, err
}

// fits reports whether v is a whole number within Avro's int.
func fitsInt(v int64) bool { return v >= math.MinInt32 && v <= math.MaxInt32 }
