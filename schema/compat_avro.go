package schema

import (
	"errors"
	"slices"
	"strings"

	"github.com/twmb/avro"
)

// avro compares two Avro schemas. The library, held against Java's, decides; it
// names the first fault only, so what it refuses is gone through for the rest.
func (d *differ) avro(reader, writer *avroCodec) {
	err := avro.CheckCompatibility(writer.schema, reader.schema)
	if err == nil {
		return
	}
	w := avroDiffer{differ: d, seen: map[[2]*avroType]bool{}}
	w.compare(reader.root, writer.root, reader.root.short)
	if len(d.found) > 0 {
		return
	}
	var first *avro.CompatibilityError
	if errors.As(err, &first) {
		d.add(first.Path, "avro", "%s (reader %s, writer %s)", first.Detail, first.ReaderType, first.WriterType)
		return
	}
	d.add("", "avro", "%s", excerptLong(err.Error()))
}

type avroDiffer struct {
	*differ
	seen map[[2]*avroType]bool
}

// promotions are the types a writer's is read as (Avro 1.12, "Schema Resolution").
var promotions = map[avroKind][]avroKind{
	avroInt: {avroLong, avroFloat, avroDouble}, avroLong: {avroFloat, avroDouble}, avroFloat: {avroDouble},
	avroString: {avroBytes}, avroBytes: {avroString},
}

func (d *avroDiffer) compare(r, w *avroType, path string) {
	if d.seen[[2]*avroType{r, w}] {
		return
	}
	d.seen[[2]*avroType{r, w}] = true
	switch {
	case w.kind == avroUnion:
		for _, b := range w.branches {
			d.compare(r, b, path)
		}
	case r.kind == avroUnion:
		d.intoUnion(r, w, path)
	case r.kind != w.kind:
		if !slices.Contains(promotions[w.kind], r.kind) {
			d.add(path, "avro.type", "%s cannot be read as %s", w, r)
		}
	case r.short != "" && !namesMatch(r, w):
		d.add(path, "avro.name", "%s is another type than %s", w.name, r.name)
	case r.kind == avroRecord:
		d.records(r, w, path)
	case r.kind == avroEnum:
		for _, s := range w.symbols {
			if _, known := r.byName[s]; !known && !r.hasOther {
				d.add(path, "avro.enum", "the symbol %s is not among the reader's, which has no default", s)
			}
		}
	case r.kind == avroArray || r.kind == avroMap:
		d.compare(r.of, w.of, path+"[]")
	case r.kind == avroFixed && r.size != w.size:
		d.add(path, "avro.size", "fixed %s has %d bytes there and %d here", r.name, w.size, r.size)
	case r.logical == logicalDecimal && w.logical == logicalDecimal && (r.precision != w.precision || r.scale != w.scale):
		d.add(path, "avro.decimal", "a decimal (%d, %d) cannot be read as (%d, %d)", w.precision, w.scale, r.precision, r.scale)
	}
}

// intoUnion looks for the branch that reads w.
func (d *avroDiffer) intoUnion(r, w *avroType, path string) {
	for _, b := range r.branches {
		if b.kind == w.kind && (b.short == "" || namesMatch(b, w)) {
			d.compare(b, w, path)
			return
		}
	}
	for _, b := range r.branches {
		if slices.Contains(promotions[w.kind], b.kind) {
			return
		}
	}
	d.add(path, "avro.union", "%s is of no branch of the reader's: %s", w, r)
}

func (d *avroDiffer) records(r, w *avroType, path string) {
	for i := range r.fields {
		f := &r.fields[i]
		at, known := w.byName[f.name]
		for _, alias := range f.aliases {
			if !known {
				at, known = w.byName[alias]
			}
		}
		switch {
		case known:
			d.compare(f.of, w.fields[at].of, path+"."+f.name)
		case f.required:
			d.add(path+"."+f.name, "avro.required", "the field has no default and the writer has none of that name")
		}
	}
}

func namesMatch(r, w *avroType) bool {
	return r.short == w.short || slices.ContainsFunc(r.aliases, func(a string) bool {
		return a == w.name || !strings.Contains(a, ".") && a == w.short
	})
}
