package subscription

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// An event's data as CEL sees it. Most expressions look at one or two fields of an
// object, so an object is kept as its text, checked once as a whole, and a field is
// found by scanning. Everything else that can be done with an object, and every
// list, is read as a whole by encoding/json when it is asked for.

// jsonValue reads data; text that is no JSON is an error for the expression.
func jsonValue(data []byte) ref.Val {
	if data == nil {
		return types.NewErr("the event has no data (a tombstone)")
	}
	if !json.Valid(data) {
		return types.NewErr("the data is no JSON")
	}
	return lazily(bytes.TrimSpace(data))
}

// lazily gives the value of valid JSON text without space around it.
func lazily(text []byte) ref.Val {
	switch text[0] {
	case '{':
		return &jsonObject{text: text}
	case '"':
		if s, ok := plainText(text); ok {
			return types.String(s)
		}
	case 't':
		return types.True
	case 'f':
		return types.False
	case 'n':
		return types.NullValue
	case '[':
	default:
		if f, err := strconv.ParseFloat(string(text), 64); err == nil {
			return types.Double(f)
		}
	}
	return wholly(text)
}

// plainText gives the text of a JSON string without escapes, which most are.
func plainText(text []byte) (string, bool) {
	inner := text[1 : len(text)-1]
	if bytes.IndexByte(inner, '\\') >= 0 || !utf8.Valid(inner) {
		return "", false
	}
	return string(inner), true
}

// wholly reads text by encoding/json.
func wholly(text []byte) ref.Val {
	var v any
	if err := json.Unmarshal(text, &v); err != nil { // a number beyond float64
		return types.NewErr("the data cannot be read: %v", err)
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}

// jsonObject is an object as its text.
type jsonObject struct {
	text  []byte
	found []field // by scanning
	whole traits.Mapper
	err   ref.Val
}

// field is a member that was asked for; its value is nil where there is none.
type field struct {
	name  string
	value ref.Val
}

// maxScans is after how many different fields an object is read as a whole: loops
// that ask for one after the other must not scan for each.
const maxScans = 8

// read gives the object as a map of CEL's own; its second value is the error when it cannot be.
func (o *jsonObject) read() (traits.Mapper, ref.Val) {
	if o.whole == nil && o.err == nil {
		v := wholly(o.text)
		if m, ok := v.(traits.Mapper); ok {
			o.whole = m
		} else {
			o.err = v
		}
	}
	return o.whole, o.err
}

// Find scans for a field; of a name that is there twice the last counts, as in encoding/json.
func (o *jsonObject) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	for i := range o.found {
		if o.found[i].name == string(name) {
			return o.found[i].value, o.found[i].value != nil
		}
	}
	if o.whole != nil || len(o.found) >= maxScans {
		m, err := o.read()
		if err != nil {
			return err, false
		}
		return m.Find(key)
	}
	f := field{name: string(name)}
	if text := member(o.text, f.name); text != nil {
		f.value = lazily(text)
	}
	o.found = append(o.found, f)
	return f.value, f.value != nil
}

// member gives the value of the last member called name of valid object text; nil without one.
func member(text []byte, name string) []byte {
	var found []byte
	i := skipSpace(text, 1)
	for text[i] != '}' {
		start := i
		i = skipString(text, i)
		same := sameText(text[start:i], name)
		i = skipSpace(text, i)
		i = skipSpace(text, i+1) // the colon
		start = i
		i = skipValue(text, i)
		if same {
			found = text[start:i]
		}
		if i = skipSpace(text, i); text[i] == ',' {
			i = skipSpace(text, i+1)
		}
	}
	return found
}

func sameText(quoted []byte, name string) bool {
	if inner := quoted[1 : len(quoted)-1]; bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return string(inner) == name
	}
	var s string
	return json.Unmarshal(quoted, &s) == nil && s == name
}

func skipSpace(text []byte, i int) int {
	for text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r' {
		i++
	}
	return i
}

// skipString gives the index after the string that begins at i.
func skipString(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue gives the index after the value that begins at i. The value is
// followed by something, because it is inside an object.
func skipValue(text []byte, i int) int {
	switch text[i] {
	case '"':
		return skipString(text, i)
	case '{', '[':
		depth := 0
		for {
			switch text[i] {
			case '"':
				i = skipString(text, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for text[i] != ',' && text[i] != '}' && text[i] != ']' && text[i] > ' ' {
		i++
	}
	return i
}

func (o *jsonObject) Get(key ref.Val) ref.Val {
	v, ok := o.Find(key)
	if !ok {
		if v != nil {
			return v
		}
		return types.NewErr("no such key: %v", key)
	}
	return v
}

func (o *jsonObject) Contains(key ref.Val) ref.Val {
	v, ok := o.Find(key)
	if !ok && v != nil {
		return v
	}
	return types.Bool(ok)
}

func (o *jsonObject) Size() ref.Val {
	m, err := o.read()
	if err != nil {
		return err
	}
	return m.Size()
}

func (o *jsonObject) Iterator() traits.Iterator {
	m, err := o.read()
	if err != nil {
		m = types.NewDynamicMap(types.DefaultTypeAdapter, map[string]any{})
	}
	return m.Iterator()
}

func (o *jsonObject) Equal(other ref.Val) ref.Val {
	m, err := o.read()
	if err != nil {
		return err
	}
	if p, ok := other.(*jsonObject); ok {
		om, err := p.read()
		if err != nil {
			return err
		}
		other = om
	}
	return m.Equal(other)
}

func (o *jsonObject) ConvertToNative(to reflect.Type) (any, error) {
	m, err := o.read()
	if err != nil {
		return nil, err.(*types.Err)
	}
	return m.ConvertToNative(to)
}

func (o *jsonObject) ConvertToType(to ref.Type) ref.Val {
	m, err := o.read()
	if err != nil {
		return err
	}
	return m.ConvertToType(to)
}

func (o *jsonObject) Type() ref.Type { return types.MapType }

func (o *jsonObject) Value() any {
	m, err := o.read()
	if err != nil {
		return err
	}
	return m.Value()
}
