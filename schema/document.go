package schema

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// kind is what a JSON value is.
type kind uint8

const (
	jsonNull kind = iota
	jsonFalse
	jsonTrue
	jsonNumber
	jsonString
	jsonArray
	jsonObject
)

var kindNames = [...]string{"null", "boolean", "boolean", "number", "string", "array", "object"}

func (k kind) String() string { return kindNames[k] }

// maxDepth bounds how deep a payload may nest, in JSON and in what is read
// from Avro or Protobuf: every walk over it recurses. JSON parsers differ; 128
// is above what any of them refuses by default and below any stack's limit.
const maxDepth = 128

// node is one JSON value of a document. An object's children are its members,
// each a name (a jsonString) followed by its value.
type node struct {
	kind       kind
	escaped    bool  // a string with backslashes
	start, end int32 // its text; a string's without the quotes
	next       int32 // the node after this one and its children
	count      int32 // items, or members
}

// document is a JSON text as a flat list of nodes: one allocation that is used
// again, where a tree of maps would be one for each value. The codecs walk it
// in the order their schema wants, which is not that of the text.
type document struct {
	text  []byte
	nodes []node
	path  []segment // of the walk, for pointers in violations
}

// segment is one step of a JSON pointer: a member's name, or an index.
type segment struct {
	name  string
	index int
}

// maxKept bounds the memory a document keeps for the next one.
const maxKept = 64 << 10

// reset forgets the text and keeps some memory.
func (d *document) reset() {
	d.text = nil
	if cap(d.nodes) > maxKept {
		d.nodes = nil
	}
	d.nodes, d.path = d.nodes[:0], d.path[:0]
}

// syntaxError says where a text stops being JSON.
type syntaxError struct {
	offset int
	rule   string
	what   string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("%s at byte %d", e.what, e.offset) }

// parse reads text, which must be one JSON value and nothing else. Names that
// come twice in an object are refused (RFC 8259, section 4, leaves open which
// one counts, so readers would differ), and so is what no JSON text can hold:
// bytes that are not UTF-8, and halves of surrogate pairs.
func (d *document) parse(text []byte) error {
	d.text, d.nodes, d.path = text, d.nodes[:0], d.path[:0]
	if !utf8.Valid(text) {
		return &syntaxError{0, "json.utf8", "the text is not UTF-8"}
	}
	at, err := d.value(d.space(0), 0)
	if err != nil {
		return err
	}
	if at = d.space(at); at != len(text) {
		return &syntaxError{at, "json.syntax", "something follows the value"}
	}
	return nil
}

func (d *document) space(at int) int {
	for at < len(d.text) {
		switch d.text[at] {
		case ' ', '\t', '\n', '\r':
			at++
		default:
			return at
		}
	}
	return at
}

func (d *document) fail(at int, format string, args ...any) (int, error) {
	return at, &syntaxError{at, "json.syntax", fmt.Sprintf(format, args...)}
}

func (d *document) value(at, depth int) (int, error) {
	if at >= len(d.text) {
		return d.fail(at, "the text ends where a value should be")
	}
	switch c := d.text[at]; c {
	case '{':
		return d.object(at, depth+1)
	case '[':
		return d.array(at, depth+1)
	case '"':
		return d.str(at)
	case 'n':
		return d.word(at, "null", jsonNull)
	case 't':
		return d.word(at, "true", jsonTrue)
	case 'f':
		return d.word(at, "false", jsonFalse)
	default:
		if c == '-' || c >= '0' && c <= '9' {
			return d.number(at)
		}
		return d.fail(at, "%q begins no value", c)
	}
}

func (d *document) add(k kind, start, end int) {
	d.nodes = append(d.nodes, node{kind: k, start: int32(start), end: int32(end), next: int32(len(d.nodes) + 1)})
}

func (d *document) word(at int, word string, k kind) (int, error) {
	end := at + len(word)
	if end > len(d.text) || string(d.text[at:end]) != word {
		return d.fail(at, "no value is spelled so")
	}
	d.add(k, at, end)
	return end, nil
}

func (d *document) number(at int) (int, error) {
	start := at
	if d.text[at] == '-' {
		at++
	}
	digits := func() int {
		from := at
		for at < len(d.text) && d.text[at] >= '0' && d.text[at] <= '9' {
			at++
		}
		return at - from
	}
	first := at
	if n := digits(); n == 0 || n > 1 && d.text[first] == '0' {
		return d.fail(start, "this is not a number")
	}
	if at < len(d.text) && d.text[at] == '.' {
		at++
		if digits() == 0 {
			return d.fail(start, "this is not a number")
		}
	}
	if at < len(d.text) && (d.text[at] == 'e' || d.text[at] == 'E') {
		at++
		if at < len(d.text) && (d.text[at] == '+' || d.text[at] == '-') {
			at++
		}
		if digits() == 0 {
			return d.fail(start, "this is not a number")
		}
	}
	d.add(jsonNumber, start, at)
	return at, nil
}

func (d *document) str(at int) (int, error) {
	start := at + 1
	escaped := false
	for at = start; at < len(d.text); at++ {
		switch c := d.text[at]; {
		case c == '"':
			d.add(jsonString, start, at)
			d.nodes[len(d.nodes)-1].escaped = escaped
			return at + 1, nil
		case c == '\\':
			escaped = true
			n, err := d.escape(at)
			if err != nil {
				return at, err
			}
			at += n - 1
		case c < ' ':
			return d.fail(at, "a control character must be escaped")
		}
	}
	return d.fail(start-1, "the string does not end")
}

// escape gives the length of the escape sequence at at.
func (d *document) escape(at int) (int, error) {
	if at+1 >= len(d.text) {
		_, err := d.fail(at, "the string does not end")
		return 0, err
	}
	switch d.text[at+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	case 'u':
		r, ok := hex4(d.text, at)
		if !ok {
			_, err := d.fail(at, "\\u needs four hexadecimal digits")
			return 0, err
		}
		if !utf16.IsSurrogate(r) {
			return 6, nil
		}
		if low, ok := hex4(d.text, at+6); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
			return 12, nil
		}
		return 0, &syntaxError{at, "json.utf8", "half of a surrogate pair is no character"}
	}
	_, err := d.fail(at, "no escape is spelled so")
	return 0, err
}

func hex4(text []byte, at int) (rune, bool) {
	if at+6 > len(text) || text[at] != '\\' || text[at+1] != 'u' {
		return 0, false
	}
	r := rune(0)
	for _, c := range text[at+2 : at+6] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

func (d *document) tooDeep(at int) (int, error) {
	return at, &syntaxError{at, "json.depth", fmt.Sprintf("values nest deeper than %d", maxDepth)}
}

func (d *document) array(at, depth int) (int, error) {
	if depth > maxDepth {
		return d.tooDeep(at)
	}
	self := len(d.nodes)
	d.add(jsonArray, at, at)
	at = d.space(at + 1)
	for first := true; ; first = false {
		if at < len(d.text) && d.text[at] == ']' && first {
			break
		}
		var err error
		if at, err = d.value(at, depth); err != nil {
			return at, err
		}
		d.nodes[self].count++
		at = d.space(at)
		if at < len(d.text) && d.text[at] == ']' {
			break
		}
		if at >= len(d.text) || d.text[at] != ',' {
			return d.fail(at, "a comma or ] should be here")
		}
		at = d.space(at + 1)
	}
	return d.close(self, at+1), nil
}

func (d *document) close(self, end int) int {
	d.nodes[self].end, d.nodes[self].next = int32(end), int32(len(d.nodes))
	return end
}

func (d *document) object(at, depth int) (int, error) {
	if depth > maxDepth {
		return d.tooDeep(at)
	}
	self := len(d.nodes)
	start := at
	d.add(jsonObject, at, at)
	at = d.space(at + 1)
	for first := true; ; first = false {
		if at < len(d.text) && d.text[at] == '}' && first {
			break
		}
		if at >= len(d.text) || d.text[at] != '"' {
			return d.fail(at, "a member's name should be here")
		}
		var err error
		if at, err = d.str(at); err != nil {
			return at, err
		}
		if at = d.space(at); at >= len(d.text) || d.text[at] != ':' {
			return d.fail(at, "a colon should be here")
		}
		if at, err = d.value(d.space(at+1), depth); err != nil {
			return at, err
		}
		d.nodes[self].count++
		at = d.space(at)
		if at < len(d.text) && d.text[at] == '}' {
			break
		}
		if at >= len(d.text) || d.text[at] != ',' {
			return d.fail(at, "a comma or } should be here")
		}
		at = d.space(at + 1)
	}
	at = d.close(self, at+1)
	if name, twice := d.twice(self); twice {
		return at, &syntaxError{start, "json.duplicate", fmt.Sprintf("the member %q is there twice", excerpt(name))}
	}
	return at, nil
}

// fewMembers is up to where comparing all pairs is cheaper than a map.
const fewMembers = 24

// twice finds a member's name that an object has twice.
func (d *document) twice(object int) (string, bool) {
	o := &d.nodes[object]
	if o.count < 2 {
		return "", false
	}
	if o.count > fewMembers {
		seen := make(map[string]struct{}, o.count)
		for name := object + 1; name < int(o.next); name = int(d.nodes[name+1].next) {
			text := d.string(name)
			if _, ok := seen[text]; ok {
				return text, true
			}
			seen[text] = struct{}{}
		}
		return "", false
	}
	for name := object + 1; name < int(o.next); name = int(d.nodes[name+1].next) {
		for other := int(d.nodes[name+1].next); other < int(o.next); other = int(d.nodes[other+1].next) {
			if d.same(name, other) {
				return d.string(name), true
			}
		}
	}
	return "", false
}

func (d *document) same(a, b int) bool {
	if d.nodes[a].escaped || d.nodes[b].escaped {
		return d.string(a) == d.string(b)
	}
	return bytes.Equal(d.raw(a), d.raw(b))
}

// raw is a node's text; a string's as it is spelled, without quotes.
func (d *document) raw(n int) []byte { return d.text[d.nodes[n].start:d.nodes[n].end] }

// whole is a node's text with its quotes.
func (d *document) whole(n int) []byte {
	if d.nodes[n].kind == jsonString {
		return d.text[d.nodes[n].start-1 : d.nodes[n].end+1]
	}
	return d.raw(n)
}

// is reports whether the string n reads text.
func (d *document) is(n int, text string) bool {
	if d.nodes[n].escaped {
		return d.string(n) == text
	}
	return string(d.raw(n)) == text
}

// string is the string n, unescaped.
func (d *document) string(n int) string {
	if !d.nodes[n].escaped {
		return string(d.raw(n))
	}
	return string(d.appendString(nil, n))
}

// appendString appends the string n, unescaped.
func (d *document) appendString(b []byte, n int) []byte {
	raw := d.raw(n)
	if !d.nodes[n].escaped {
		return append(b, raw...)
	}
	for len(raw) > 0 {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(b, raw...)
		}
		b = append(b, raw[:i]...)
		raw = raw[i:]
		switch c := raw[1]; c {
		case 'u': // checked when it was parsed
			r, _ := hex4(raw, 0)
			n := 6
			if utf16.IsSurrogate(r) {
				low, _ := hex4(raw, 6)
				r, n = utf16.DecodeRune(r, low), 12
			}
			b = utf8.AppendRune(b, r)
			raw = raw[n:]
			continue
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		default:
			b = append(b, c)
		}
		raw = raw[2:]
	}
	return b
}

func (d *document) push(name string)    { d.path = append(d.path, segment{name: name, index: -1}) }
func (d *document) pushIndex(index int) { d.path = append(d.path, segment{index: index}) }
func (d *document) pop()                { d.path = d.path[:len(d.path)-1] }

// pointer is where the walk stands (RFC 6901).
func (d *document) pointer() string {
	var b []byte
	for _, s := range d.path {
		b = append(b, '/')
		if s.index >= 0 {
			b = strconv.AppendInt(b, int64(s.index), 10)
			continue
		}
		b = appendPointer(b, s.name)
	}
	return string(b)
}

func appendPointer(b []byte, name string) []byte {
	for i := range len(name) {
		switch name[i] {
		case '~':
			b = append(b, '~', '0')
		case '/':
			b = append(b, '~', '1')
		default:
			b = append(b, name[i])
		}
	}
	return b
}

// got describes the value n for people, in a few words.
func (d *document) got(n int) string {
	k := d.nodes[n].kind
	switch k {
	case jsonArray:
		return fmt.Sprintf("an array of %d", d.nodes[n].count)
	case jsonObject:
		return fmt.Sprintf("an object of %d members", d.nodes[n].count)
	case jsonNull:
		return "null"
	}
	return k.String() + " " + excerpt(string(d.whole(n)))
}

// excerpt shortens text for a message.
func excerpt(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return text[:cutAt(text, most)] + "..."
}

// cutAt gives where text can be cut at or before at without breaking a character.
func cutAt(text string, at int) int {
	for at > 0 && !utf8.RuneStart(text[at]) {
		at--
	}
	return at
}

// appendJSONString writes text, which is UTF-8, as a JSON string.
func appendJSONString(b []byte, text []byte) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i, c := range text {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, text[from:]...)
	return append(b, '"')
}
