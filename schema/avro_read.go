package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/twmb/avro"
)

// maxDecoded bounds the JSON that one value may become.
const maxDecoded = 64 << 20

// zeroWidth is how many items without bytes (nulls, empty records) a value may
// have: their count is all there is of them, so it says nothing about memory.
const zeroWidth = 64 << 10

// avroReader writes Avro's binary encoding as JSON.
type avroReader struct {
	data     []byte
	at       int
	out      []byte
	quiet    bool // only check, write nothing
	spelling Spelling
	path     document // its pointer only
	budget   int      // of values; a schema can have thousands without a byte
	empty    int      // items that had no bytes
	records  int      // that were read
	wrong    *violationError
}

// violationError is the one place where bytes stop being a value.
type violationError struct{ pointer, rule, expected, got string }

func (e *violationError) Error() string {
	return fmt.Sprintf("at %q: %s: expected %s, got %s", e.pointer, e.rule, e.expected, e.got)
}

func (e *violationError) report(r *report) { r.add(e.pointer, e.rule, e.expected, e.got) }

// read reads the whole of data as a root.
func (r *avroReader) read(root *avroType) error {
	r.budget = 1<<20 + 64*len(r.data)
	if !r.value(root, 0) {
		return r.wrong
	}
	if r.at != len(r.data) {
		r.fail("avro.trailing", "nothing after the value", fmt.Sprintf("%d more bytes", len(r.data)-r.at))
		return r.wrong
	}
	return nil
}

func (r *avroReader) fail(rule, expected, got string) bool {
	if r.wrong == nil {
		r.wrong = &violationError{r.path.pointer(), rule, expected, got}
	}
	return false
}

func (r *avroReader) short(t *avroType) bool {
	return r.fail("avro.bytes", t.String(), fmt.Sprintf("%d bytes left at byte %d", len(r.data)-r.at, r.at))
}

func (r *avroReader) put(b ...byte) {
	if !r.quiet {
		r.out = append(r.out, b...)
	}
}

func (r *avroReader) puts(s string) {
	if !r.quiet {
		r.out = append(r.out, s...)
	}
}

func (r *avroReader) long(t *avroType) (int64, bool) {
	v, n := binary.Varint(r.data[r.at:])
	if n <= 0 {
		return 0, r.short(t)
	}
	r.at += n
	return v, true
}

// take gives the next n bytes.
func (r *avroReader) take(t *avroType, n int64) ([]byte, bool) {
	if n < 0 || n > int64(len(r.data)-r.at) {
		return nil, r.short(t)
	}
	b := r.data[r.at : r.at+int(n)]
	r.at += int(n)
	return b, true
}

func (r *avroReader) counted(t *avroType) ([]byte, bool) {
	n, ok := r.long(t)
	if !ok {
		return nil, false
	}
	return r.take(t, n)
}

func (r *avroReader) value(t *avroType, depth int) bool {
	if r.budget--; r.budget < 0 {
		return r.fail("avro.items", "values that have bytes", "more without than are read")
	}
	if depth > maxDepth {
		return r.fail("avro.depth", fmt.Sprintf("values that nest at most %d deep", maxDepth), "deeper ones")
	}
	if len(r.out) > maxDecoded {
		return r.fail("avro.size", fmt.Sprintf("at most %d bytes of JSON", maxDecoded), "more")
	}
	switch t.kind {
	case avroNull:
		r.puts("null")
	case avroBoolean:
		b, ok := r.take(t, 1)
		if !ok {
			return false
		}
		switch b[0] {
		case 0:
			r.puts("false")
		case 1:
			r.puts("true")
		default:
			return r.fail("avro.bytes", "0 or 1 for a boolean", strconv.Itoa(int(b[0])))
		}
	case avroInt, avroLong:
		return r.integer(t)
	case avroFloat, avroDouble:
		return r.float(t)
	case avroBytes, avroString:
		b, ok := r.counted(t)
		return ok && r.text(t, b)
	case avroFixed:
		b, ok := r.take(t, int64(t.size))
		return ok && r.text(t, b)
	case avroEnum:
		i, ok := r.long(t)
		if !ok {
			return false
		}
		if i < 0 || i >= int64(len(t.symbols)) {
			return r.fail("avro.enum", t.String(), fmt.Sprintf("symbol number %d", i))
		}
		r.put('"') // a symbol needs no escaping
		r.puts(t.symbols[i])
		r.put('"')
	case avroRecord:
		r.records++
		r.put('{')
		for i := range t.fields {
			f := &t.fields[i]
			if i > 0 {
				r.put(',')
			}
			r.put('"')
			r.puts(f.name)
			r.puts(`":`)
			r.path.push(f.name)
			if !r.value(f.of, depth+1) {
				return false
			}
			r.path.pop()
		}
		r.put('}')
	case avroArray:
		return r.blocks(t, '[', ']', func(i int) bool {
			r.path.pushIndex(i)
			ok := r.value(t.of, depth+1)
			r.path.pop()
			return ok
		})
	case avroMap:
		return r.blocks(t, '{', '}', func(int) bool {
			name, ok := r.counted(t)
			if !ok {
				return false
			}
			if !utf8.Valid(name) {
				return r.fail("avro.utf8", "a name in UTF-8", fmt.Sprintf("bytes %x", name[:min(len(name), 16)]))
			}
			if !r.quiet {
				r.out = append(appendJSONString(r.out, name), ':')
			}
			r.path.push(string(name))
			ok = r.value(t.of, depth+1)
			r.path.pop()
			return ok
		})
	case avroUnion:
		return r.union(t, depth)
	}
	return true
}

// blocks reads the blocks of an array or a map.
func (r *avroReader) blocks(t *avroType, opening, closing byte, item func(i int) bool) bool {
	r.put(opening)
	for i := 0; ; {
		n, ok := r.long(t)
		if !ok {
			return false
		}
		if n == 0 {
			break
		}
		if n < 0 { // a count below zero is followed by the block's size
			if n == math.MinInt64 {
				return r.fail("avro.bytes", "a count of items", strconv.FormatInt(n, 10))
			}
			n = -n
			if _, ok := r.long(t); !ok {
				return false
			}
		}
		for ; n > 0; n-- {
			if i > 0 {
				r.put(',')
			}
			before := r.at
			if !item(i) {
				return false
			}
			if r.at == before {
				if r.empty++; r.empty > zeroWidth {
					return r.fail("avro.items", "items that have bytes", fmt.Sprintf("more than %d without", zeroWidth))
				}
			}
			i++
		}
	}
	r.put(closing)
	return true
}

func (r *avroReader) union(t *avroType, depth int) bool {
	i, ok := r.long(t)
	if !ok {
		return false
	}
	if i < 0 || i >= int64(len(t.branches)) {
		return r.fail("avro.union", t.String(), fmt.Sprintf("branch number %d", i))
	}
	b := t.branches[i]
	if r.spelling != AvroJSON || b.kind == avroNull {
		return r.value(b, depth+1)
	}
	r.puts(`{"`)
	r.puts(b.name)
	r.puts(`":`)
	ok = r.value(b, depth+1)
	r.put('}')
	return ok
}

func (r *avroReader) integer(t *avroType) bool {
	v, ok := r.long(t)
	if !ok {
		return false
	}
	if t.kind == avroInt && !fitsInt(v) {
		return r.fail("avro.range", "a whole number within int", strconv.FormatInt(v, 10))
	}
	if r.quiet {
		return true
	}
	if t.logical != noLogical && r.spelling == Plain {
		var written bool
		if r.out, written = t.logical.appendTime(r.out, v); written {
			return true
		}
	}
	r.out = strconv.AppendInt(r.out, v, 10)
	return true
}

func (r *avroReader) float(t *avroType) bool {
	bits := 64
	if t.kind == avroFloat {
		bits = 32
	}
	b, ok := r.take(t, int64(bits/8))
	if !ok {
		return false
	}
	var v float64
	if bits == 32 {
		v = float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	} else {
		v = math.Float64frombits(binary.LittleEndian.Uint64(b))
	}
	switch {
	case r.quiet:
	case math.IsNaN(v):
		r.puts(`"NaN"`)
	case math.IsInf(v, 1):
		r.puts(`"Infinity"`)
	case math.IsInf(v, -1):
		r.puts(`"-Infinity"`)
	default:
		form := byte('f') // as ECMAScript writes numbers, which is how JSON's readers know them
		if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
			form = 'e'
		}
		r.out = strconv.AppendFloat(r.out, v, form, -1, bits)
	}
	return true
}

// text writes a string, or bytes in their spelling.
func (r *avroReader) text(t *avroType, b []byte) bool {
	if t.kind == avroString {
		if !utf8.Valid(b) {
			return r.fail("avro.utf8", "text in UTF-8", fmt.Sprintf("bytes %x", b[:min(len(b), 16)]))
		}
		if !r.quiet {
			r.out = appendJSONString(r.out, b)
		}
		return true
	}
	if r.quiet {
		return true
	}
	if r.spelling == Plain {
		switch t.logical {
		case logicalDecimal:
			if len(b) > maxDecimalDigits/2 {
				return r.fail("avro.decimal", fmt.Sprintf("at most %d bytes", maxDecimalDigits/2), fmt.Sprintf("%d bytes", len(b)))
			}
			r.out = append(appendDecimal(append(r.out, '"'), b, t.scale), '"')
			return true
		case logicalUUID:
			r.out = append(appendUUID(append(r.out, '"'), b), '"')
			return true
		case logicalDuration:
			r.out = fmt.Appendf(r.out, `{"months":%d,"days":%d,"milliseconds":%d}`,
				binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]))
			return true
		}
	}
	r.out = append(r.out, '"')
	for _, c := range b {
		switch {
		case c == '"' || c == '\\':
			r.out = append(r.out, '\\', c)
		case c < ' ' || c >= 0x7f:
			r.out = fmt.Appendf(r.out, `\u%04x`, c)
		default:
			r.out = append(r.out, c)
		}
	}
	r.out = append(r.out, '"')
	return true
}

// resolution reads a writer's values as a reader's schema has them.
type resolution struct{ resolved, reader *avro.Schema }

func newResolution(writer, reader *avroCodec) (*resolution, error) {
	resolved, err := avro.Resolve(writer.schema, reader.schema)
	if err != nil {
		return nil, err
	}
	return &resolution{resolved, reader.schema}, nil
}

// apply rewrites a writer's bytes, which were checked before, as the reader's.
func (s *resolution) apply(data []byte) ([]byte, error) {
	var v any
	rest, err := s.resolved.Decode(data, &v, avro.TaggedUnions())
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, errors.New("bytes after the value")
	}
	return s.reader.Encode(v)
}
