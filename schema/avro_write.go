package schema

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Spelling is how JSON spells what Avro has and JSON has not.
//
// Plain is JSON as people write it. A union's value stands alone or under its
// branch's name, {"string": "x"}; when it fits more than one branch alone it is
// refused, and the name must be said. Times are RFC 3339 text (or the number
// Avro stores), dates 2026-01-31, times of day 10:15:00, decimals numbers or
// their text, UUIDs their text, durations {"months", "days", "milliseconds"}.
//
// AvroJSON is Avro's own JSON encoding (Avro 1.12, "JSON Encoding"): a union's
// value is always under its branch's name, unless it is null, and a logical type is
// what it is stored as.
//
// In both, bytes and fixed are text whose characters 0 to 255 are the bytes,
// and NaN, Infinity and -Infinity are text.
type Spelling string

// The spellings.
const (
	Plain    Spelling = "plain"
	AvroJSON Spelling = "avro"

	// spellingDefault is that of a default in a schema: as AvroJSON, with the
	// first branch that fits for a union.
	spellingDefault Spelling = "default"
)

// maxEncoded bounds what one payload may become: a record of many defaults
// grows from two characters.
const maxEncoded = 64 << 20

// avroWriter writes a JSON document as Avro's binary encoding.
type avroWriter struct {
	doc      document
	out      []byte
	scratch  []byte
	spelling Spelling
	report   *report
	budget   int // of steps; trying the branches of unions in unions costs more than the text's length
}

// budgetOf is enough for every document but one made to cost.
func budgetOf(d *document) int { return 10_000 + 50*len(d.nodes) }

// write encodes text by root, and reports what does not fit.
func (w *avroWriter) write(root *avroType, text []byte) {
	if err := w.doc.parse(text); err != nil {
		w.report.syntax(err)
		return
	}
	w.budget = budgetOf(&w.doc)
	w.value(root, 0)
	if w.budget < 0 && w.report.ok() {
		w.report.add("", "avro.union", "unions whose branches are named", "more ways to read the value than are tried")
	}
}

func (w *avroWriter) fail(rule, expected string, n int) bool {
	w.report.add(w.doc.pointer(), rule, expected, w.doc.got(n))
	return false
}

// value writes the node n as a t. It reports false, with a violation, when n is
// not one, after looking for what else is wrong below n.
func (w *avroWriter) value(t *avroType, n int) bool {
	if w.budget--; w.budget < 0 {
		return false
	}
	if len(w.out) > maxEncoded {
		return w.fail("avro.size", fmt.Sprintf("at most %d bytes when encoded", maxEncoded), n)
	}
	node := &w.doc.nodes[n]
	if t.logical != noLogical && w.spelling == Plain {
		return w.plainLogical(t, n)
	}
	switch t.kind {
	case avroNull:
		if node.kind != jsonNull {
			return w.fail("avro.type", t.String(), n)
		}
	case avroBoolean:
		if node.kind != jsonTrue && node.kind != jsonFalse {
			return w.fail("avro.type", t.String(), n)
		}
		w.out = append(w.out, byte(node.kind-jsonFalse))
	case avroInt, avroLong:
		return w.integer(t, n)
	case avroFloat, avroDouble:
		return w.float(t, n)
	case avroString:
		if node.kind != jsonString {
			return w.fail("avro.type", t.String(), n)
		}
		w.text(n)
	case avroBytes, avroFixed:
		b, ok := w.codePoints(n)
		if !ok {
			return w.fail("avro.type", t.String()+", as text of the characters 0 to 255", n)
		}
		if t.kind == avroFixed && len(b) != t.size {
			return w.fail("avro.size", t.String(), n)
		}
		w.bytes(t, b)
	case avroEnum:
		if node.kind != jsonString {
			return w.fail("avro.type", t.String(), n)
		}
		symbol, ok := t.byName[w.doc.string(n)]
		if !ok {
			return w.fail("avro.enum", t.String(), n)
		}
		w.long(int64(symbol))
	case avroArray:
		return w.array(t, n)
	case avroMap:
		return w.mapping(t, n)
	case avroRecord:
		return w.record(t, n)
	case avroUnion:
		return w.union(t, n)
	}
	return true
}

func (w *avroWriter) long(v int64) { w.out = binary.AppendVarint(w.out, v) }

func (w *avroWriter) text(n int) {
	if !w.doc.nodes[n].escaped {
		raw := w.doc.raw(n)
		w.long(int64(len(raw)))
		w.out = append(w.out, raw...)
		return
	}
	w.scratch = w.doc.appendString(w.scratch[:0], n)
	w.long(int64(len(w.scratch)))
	w.out = append(w.out, w.scratch...)
}

func (w *avroWriter) bytes(t *avroType, b []byte) {
	if t.kind == avroBytes {
		w.long(int64(len(b)))
	}
	w.out = append(w.out, b...)
}

// codePoints reads the string n as the bytes its characters stand for. They
// are good until the next string is read.
func (w *avroWriter) codePoints(n int) ([]byte, bool) {
	if w.doc.nodes[n].kind != jsonString {
		return nil, false
	}
	w.scratch = w.doc.appendString(w.scratch[:0], n)
	b := w.scratch[:0] // a character takes no fewer bytes than the one it stands for
	for i := 0; i < len(w.scratch); {
		r, size := utf8.DecodeRune(w.scratch[i:])
		if r > 0xff {
			return nil, false
		}
		i += size
		b = append(b, byte(r))
	}
	return b, true
}

// whole reads the number n as a whole one; 1.0 and 1e3 are whole.
func (w *avroWriter) whole(n int) (int64, bool) {
	text := string(w.doc.raw(n))
	v, err := strconv.ParseInt(text, 10, 64)
	if err == nil {
		return v, true
	}
	big, ok := parseDecimal(text, 0)
	if !ok || !big.IsInt64() {
		return 0, false
	}
	return big.Int64(), true
}

func (w *avroWriter) integer(t *avroType, n int) bool {
	if w.doc.nodes[n].kind != jsonNumber {
		return w.fail("avro.type", t.String(), n)
	}
	v, ok := w.whole(n)
	if !ok || t.kind == avroInt && !fitsInt(v) {
		return w.fail("avro.range", "a whole number within "+t.name, n)
	}
	w.long(v)
	return true
}

func (w *avroWriter) float(t *avroType, n int) bool {
	bits := 64
	if t.kind == avroFloat {
		bits = 32
	}
	var v float64
	switch w.doc.nodes[n].kind {
	case jsonNumber:
		var err error
		if v, err = strconv.ParseFloat(string(w.doc.raw(n)), bits); err != nil {
			return w.fail("avro.range", "a number within "+t.name, n)
		}
	case jsonString:
		switch w.doc.string(n) {
		case "NaN":
			v = math.NaN()
		case "Infinity":
			v = math.Inf(1)
		case "-Infinity":
			v = math.Inf(-1)
		default:
			return w.fail("avro.type", t.String(), n)
		}
	default:
		return w.fail("avro.type", t.String(), n)
	}
	if bits == 32 {
		w.out = binary.LittleEndian.AppendUint32(w.out, math.Float32bits(float32(v)))
	} else {
		w.out = binary.LittleEndian.AppendUint64(w.out, math.Float64bits(v))
	}
	return true
}

func (w *avroWriter) array(t *avroType, n int) bool {
	node := w.doc.nodes[n]
	if node.kind != jsonArray {
		return w.fail("avro.type", t.String(), n)
	}
	ok := true
	if node.count > 0 {
		w.long(int64(node.count))
		for i, item := 0, n+1; item < int(node.next); i, item = i+1, int(w.doc.nodes[item].next) {
			w.doc.pushIndex(i)
			ok = w.value(t.of, item) && ok
			w.doc.pop()
		}
	}
	w.out = append(w.out, 0)
	return ok
}

func (w *avroWriter) mapping(t *avroType, n int) bool {
	node := w.doc.nodes[n]
	if node.kind != jsonObject {
		return w.fail("avro.type", t.String(), n)
	}
	ok := true
	if node.count > 0 {
		w.long(int64(node.count))
		for name := n + 1; name < int(node.next); name = int(w.doc.nodes[name+1].next) {
			w.text(name)
			w.doc.push(w.doc.string(name))
			ok = w.value(t.of, name+1) && ok
			w.doc.pop()
		}
	}
	w.out = append(w.out, 0)
	return ok
}

// record writes the fields in the schema's order. Events mostly have them in
// that order too, so each is looked for where the last one ended.
func (w *avroWriter) record(t *avroType, n int) bool {
	node := w.doc.nodes[n]
	if node.kind != jsonObject {
		return w.fail("avro.type", t.String(), n)
	}
	ok, found, next := true, int32(0), n+1
	var index map[string]int
	for i := range t.fields {
		f := &t.fields[i]
		at := w.member(n, next, f.name, &index)
		if at == 0 {
			if !f.required && f.fallback != nil {
				w.out = append(w.out, f.fallback...)
				continue
			}
			w.doc.push(f.name)
			w.report.add(w.doc.pointer(), "avro.required", f.of.String(), "nothing: the field is missing and has no default")
			w.doc.pop()
			ok = false
			continue
		}
		found++
		next = int(w.doc.nodes[at].next)
		w.doc.push(f.name)
		ok = w.value(f.of, at) && ok
		w.doc.pop()
	}
	if found == node.count {
		return ok
	}
	for name := n + 1; name < int(node.next); name = int(w.doc.nodes[name+1].next) {
		if _, known := t.byName[w.doc.string(name)]; !known {
			w.doc.push(w.doc.string(name))
			w.fail("avro.unknown_field", "a field of "+t.String(), name+1)
			w.doc.pop()
			ok = false
		}
	}
	return ok
}

// member finds the value of the member called name, first at hint; 0 without
// one. For an object of many members in another order index is made once.
func (w *avroWriter) member(object, hint int, name string, index *map[string]int) int {
	end := int(w.doc.nodes[object].next)
	if hint < end && w.doc.is(hint, name) {
		return hint + 1
	}
	if w.doc.nodes[object].count <= fewMembers {
		for at := object + 1; at < end; at = int(w.doc.nodes[at+1].next) {
			if w.doc.is(at, name) {
				return at + 1
			}
		}
		return 0
	}
	if *index == nil {
		*index = make(map[string]int, w.doc.nodes[object].count)
		for at := object + 1; at < end; at = int(w.doc.nodes[at+1].next) {
			(*index)[w.doc.string(at)] = at + 1
		}
	}
	return (*index)[name]
}

// union chooses the one branch the value is of.
func (w *avroWriter) union(t *avroType, n int) bool {
	if w.spelling == spellingDefault {
		return w.firstBranch(t, n)
	}
	tagged, inner := w.tagged(t, n)
	if w.spelling == AvroJSON {
		switch {
		case w.doc.nodes[n].kind == jsonNull:
			for i, b := range t.branches {
				if b.kind == avroNull {
					w.long(int64(i))
					return true
				}
			}
		case tagged >= 0:
			return w.branch(t, tagged, inner, true)
		}
		return w.fail("avro.union", t.String()+`, under its name: {"name": value}`, n)
	}
	only, candidates := -1, 0
	if tagged >= 0 {
		only, candidates = tagged, 1
	}
	for i, b := range t.branches {
		if w.couldBe(b, n) {
			candidates++
			if only < 0 {
				only = i
			}
		}
	}
	switch {
	case candidates == 0:
		return w.fail("avro.union", t.String(), n)
	case candidates == 1 && tagged >= 0:
		return w.branch(t, tagged, inner, true)
	case candidates == 1:
		return w.branch(t, only, n, false)
	}
	return w.choose(t, n, tagged, inner)
}

// choose tries each branch the value could be of: exactly one must take it.
func (w *avroWriter) choose(t *avroType, n, tagged, inner int) bool {
	kept, start := w.report, len(w.out)
	var fits []string
	var winner []byte
	best, bestName := (*report)(nil), ""
	try := func(i, at int, name bool) {
		w.report = &report{}
		w.out = w.out[:start]
		if w.branch(t, i, at, name) {
			spelled := t.branches[i].name
			if name {
				spelled = fmt.Sprintf(`{%q: ...}`, spelled)
			}
			if fits = append(fits, spelled); winner == nil {
				winner = append([]byte{}, w.out[start:]...)
			}
		} else if best == nil || len(w.report.list)+w.report.more < len(best.list)+best.more {
			best, bestName = w.report, t.branches[i].name
		}
	}
	if tagged >= 0 {
		try(tagged, inner, true)
	}
	for i, b := range t.branches {
		if w.couldBe(b, n) {
			try(i, n, false)
		}
	}
	w.report, w.out = kept, w.out[:start]
	switch len(fits) {
	case 1:
		w.out = append(w.out, winner...)
		return true
	case 0:
		if w.budget < 0 {
			return false
		}
		// The branch with the least wrong is most likely the one that was meant.
		w.report.add(w.doc.pointer(), "avro.union", t.String(), fmt.Sprintf("%s, which fits none; what follows is wrong for %s", w.doc.got(n), bestName))
		w.report.list = append(w.report.list, best.list[:min(len(best.list), maxViolations-len(w.report.list))]...)
		w.report.more += best.more
		return false
	}
	w.report.add(w.doc.pointer(), "avro.union_ambiguous", `a value under its branch's name, {"`+t.branches[0].name+`": ...}`,
		fmt.Sprintf("%s, which fits %s", w.doc.got(n), strings.Join(fits, " and ")))
	return false
}

// firstBranch takes the first branch that fits, as a schema's default does.
func (w *avroWriter) firstBranch(t *avroType, n int) bool {
	kept, start := w.report, len(w.out)
	defer func() { w.report = kept }()
	for i := range t.branches {
		w.report = &report{}
		if w.out = w.out[:start]; w.branch(t, i, n, false) {
			return true
		}
	}
	w.report = kept
	return w.fail("avro.union", t.String(), n)
}

func (w *avroWriter) branch(t *avroType, i, n int, named bool) bool {
	w.long(int64(i))
	if named {
		w.doc.push(w.doc.string(n - 1))
		defer w.doc.pop()
	}
	return w.value(t.branches[i], n)
}

// tagged reads {"branch": value}: which branch, and where the value is; -1 when
// n is not spelled so. The short name of a named type does when no other has it.
func (w *avroWriter) tagged(t *avroType, n int) (branch, inner int) {
	node := &w.doc.nodes[n]
	if node.kind != jsonObject || node.count != 1 {
		return -1, 0
	}
	name := w.doc.string(n + 1)
	short := -1
	for i, b := range t.branches {
		if b.kind == avroNull {
			continue
		}
		if b.name == name {
			return i, n + 2
		}
		if b.short == name {
			if short >= 0 {
				return -1, 0
			}
			short = i
		}
	}
	return short, n + 2
}

// couldBe reports whether a value of n's kind may be a t, without looking into it.
func (w *avroWriter) couldBe(t *avroType, n int) bool {
	k := w.doc.nodes[n].kind
	switch t.kind {
	case avroNull:
		return k == jsonNull
	case avroBoolean:
		return k == jsonTrue || k == jsonFalse
	case avroInt, avroLong:
		return k == jsonNumber || k == jsonString && t.logical != noLogical
	case avroFloat, avroDouble:
		return k == jsonNumber || k == jsonString && (w.doc.is(n, "NaN") || w.doc.is(n, "Infinity") || w.doc.is(n, "-Infinity"))
	case avroString:
		return k == jsonString
	case avroBytes, avroFixed:
		return k == jsonString || k == jsonNumber && t.logical == logicalDecimal || k == jsonObject && t.logical == logicalDuration
	case avroEnum:
		if k != jsonString {
			return false
		}
		_, ok := t.byName[w.doc.string(n)]
		return ok || len(t.symbols) == 0
	case avroArray:
		return k == jsonArray
	}
	return k == jsonObject // map, record; a union holds no union
}

// plainLogical writes a logical type's value in the spelling Plain.
func (w *avroWriter) plainLogical(t *avroType, n int) bool {
	k := w.doc.nodes[n].kind
	switch t.logical {
	case logicalDecimal:
		if k != jsonNumber && k != jsonString {
			return w.fail("avro.type", t.logical.spelled(), n)
		}
		return w.decimal(t, n)
	case logicalUUID:
		if k == jsonString {
			if id, ok := parseUUID(w.doc.string(n)); ok {
				if t.kind == avroFixed {
					w.out = append(w.out, id[:]...)
				} else {
					w.text(n)
				}
				return true
			}
		}
		return w.fail("avro.uuid", t.logical.spelled(), n)
	case logicalDuration:
		return w.duration(t, n)
	}
	if k == jsonString {
		v, ok := t.logical.parseTime(w.doc.string(n))
		if !ok {
			expected := t.logical.spelled()
			if t.logical != logicalDate {
				expected += ", no finer than " + t.logical.unit().String()
			}
			return w.fail("avro."+t.logical.String(), expected, n)
		}
		w.long(v)
		return true
	}
	if k == jsonNumber {
		return w.integer(t, n)
	}
	return w.fail("avro.type", t.logical.spelled()+" or its number", n)
}

func (w *avroWriter) decimal(t *avroType, n int) bool {
	text := string(w.doc.raw(n))
	if w.doc.nodes[n].kind == jsonString {
		text = w.doc.string(n)
	}
	v, ok := parseDecimal(text, t.scale)
	if !ok {
		return w.fail("avro.decimal", fmt.Sprintf("a decimal number of at most %d digits after the point", t.scale), n)
	}
	if t.precision > 0 && digitsOf(v) > t.precision {
		return w.fail("avro.decimal", fmt.Sprintf("at most %d digits, %d of them after the point", t.precision, t.scale), n)
	}
	b, ok := twosComplement(v, t.size)
	if !ok {
		return w.fail("avro.decimal", fmt.Sprintf("a number that fits %d bytes", t.size), n)
	}
	w.bytes(t, b)
	return true
}

func (w *avroWriter) duration(t *avroType, n int) bool {
	node := w.doc.nodes[n]
	if node.kind != jsonObject {
		return w.fail("avro.type", t.logical.spelled(), n)
	}
	var parts [3]uint32
	for name := n + 1; name < int(node.next); name = int(w.doc.nodes[name+1].next) {
		part := map[string]int{"months": 0, "days": 1, "milliseconds": 2}
		i, known := part[w.doc.string(name)]
		v, ok := int64(0), false
		if w.doc.nodes[name+1].kind == jsonNumber {
			v, ok = w.whole(name + 1)
		}
		if !known || !ok || v < 0 || v > math.MaxUint32 {
			return w.fail("avro.duration", t.logical.spelled()+" of whole numbers from 0 to 4294967295", n)
		}
		parts[i] = uint32(v)
	}
	for _, p := range parts {
		w.out = binary.LittleEndian.AppendUint32(w.out, p)
	}
	return true
}
