package cesql

import (
	"fmt"
	"strconv"
	"strings"
)

type kind uint8

const (
	kindText kind = iota
	kindInteger
	kindBoolean
	kindAny // of a function's parameter: taken as it is
)

// Value is a String, an Integer of 32 bits, or a Boolean (section 3.1).
type Value struct {
	kind kind
	text string
	n    int32 // a Boolean's: 0 or 1
}

func text(s string) Value  { return Value{text: s} }
func number(n int32) Value { return Value{kind: kindInteger, n: n} }

func truth(b bool) Value {
	if b {
		return Value{kind: kindBoolean, n: 1}
	}
	return Value{kind: kindBoolean}
}

// Bool is the value of a Boolean; ok is false for the others.
func (v Value) Bool() (b, ok bool) { return v.n == 1, v.kind == kindBoolean }

// Text is the value of a String; ok is false for the others.
func (v Value) Text() (s string, ok bool) { return v.text, v.kind == kindText }

// String is how the language casts the value to a String.
func (v Value) String() string {
	switch v.kind {
	case kindInteger:
		return strconv.Itoa(int(v.n))
	case kindBoolean:
		return strconv.FormatBool(v.n == 1)
	}
	return v.text
}

// cast gives v as a value of the kind (section 3.7: casts are made where they
// are needed, without being asked for).
func (v Value) cast(to kind) (Value, error) {
	if v.kind == to || to == kindAny {
		return v, nil
	}
	switch to {
	case kindInteger:
		if v.kind == kindBoolean {
			return number(v.n), nil
		}
		n, err := strconv.ParseInt(v.text, 10, 32)
		if err != nil {
			return Value{}, fmt.Errorf("%q cannot be cast to an Integer", v.text)
		}
		return number(int32(n)), nil
	case kindBoolean:
		switch {
		case v.kind == kindInteger:
			return truth(v.n != 0), nil
		case strings.EqualFold(v.text, "true"):
			return truth(true), nil
		case strings.EqualFold(v.text, "false"):
			return truth(false), nil
		}
		return Value{}, fmt.Errorf("%q cannot be cast to a Boolean", v.text)
	}
	return text(v.String()), nil
}

// as evaluates n and casts its value.
func (n node) as(to kind, a Attributes) (Value, error) {
	v, err := n(a)
	if err != nil {
		return Value{}, err
	}
	return v.cast(to)
}
