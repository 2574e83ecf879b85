package cesql

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// function is one that the language has built in (section 3.5).
type function struct {
	parameters []kind
	rest       bool // any number more of the last parameter, or none of it
	run        func([]Value) (Value, error)
}

var functions = map[string][]function{
	"INT":    {{parameters: []kind{kindAny}, run: func(a []Value) (Value, error) { return a[0].cast(kindInteger) }}},
	"BOOL":   {{parameters: []kind{kindAny}, run: func(a []Value) (Value, error) { return a[0].cast(kindBoolean) }}},
	"STRING": {{parameters: []kind{kindAny}, run: func(a []Value) (Value, error) { return a[0].cast(kindText) }}},
	"IS_INT": {{parameters: []kind{kindAny}, run: func(a []Value) (Value, error) {
		_, err := a[0].cast(kindInteger)
		return truth(err == nil), nil
	}}},
	"IS_BOOL": {{parameters: []kind{kindAny}, run: func(a []Value) (Value, error) {
		_, err := a[0].cast(kindBoolean)
		return truth(err == nil), nil
	}}},
	"ABS":    {{parameters: []kind{kindInteger}, run: absolute}},
	"LENGTH": {{parameters: []kind{kindText}, run: func(a []Value) (Value, error) { return number(int32(utf8.RuneCountInString(a[0].text))), nil }}},
	"CONCAT": {{parameters: []kind{kindText}, rest: true, run: func(a []Value) (Value, error) { return text(join(a, "")), nil }}},
	"CONCAT_WS": {{parameters: []kind{kindText, kindText}, rest: true, run: func(a []Value) (Value, error) {
		return text(join(a[1:], a[0].text)), nil
	}}},
	"LOWER": {{parameters: []kind{kindText}, run: func(a []Value) (Value, error) { return text(strings.ToLower(a[0].text)), nil }}},
	"UPPER": {{parameters: []kind{kindText}, run: func(a []Value) (Value, error) { return text(strings.ToUpper(a[0].text)), nil }}},
	"TRIM":  {{parameters: []kind{kindText}, run: func(a []Value) (Value, error) { return text(strings.TrimSpace(a[0].text)), nil }}},
	"LEFT":  {{parameters: []kind{kindText, kindInteger}, run: leftOf}},
	"RIGHT": {{parameters: []kind{kindText, kindInteger}, run: rightOf}},
	"SUBSTRING": {
		{parameters: []kind{kindText, kindInteger}, run: substring},
		{parameters: []kind{kindText, kindInteger, kindInteger}, run: substring},
	},
}

// resolve finds the function of the name, in capitals, that takes so many arguments.
func resolve(name string, arguments int) (function, bool) {
	for _, f := range functions[name] {
		if arguments == len(f.parameters) || f.rest && arguments >= len(f.parameters)-1 {
			return f, true
		}
	}
	return function{}, false
}

func invoke(f function, arguments []node) node {
	return func(a Attributes) (Value, error) {
		values := make([]Value, len(arguments))
		for i, argument := range arguments {
			var err error
			if values[i], err = argument.as(f.parameters[min(i, len(f.parameters)-1)], a); err != nil {
				return Value{}, err
			}
		}
		return f.run(values)
	}
}

func absolute(a []Value) (Value, error) {
	switch n := a[0].n; {
	case n == math.MinInt32:
		return Value{}, fmt.Errorf("ABS of %d is no integer of 32 bits", n)
	case n < 0:
		return number(-n), nil
	}
	return a[0], nil
}

func join(values []Value, between string) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.text
	}
	return strings.Join(texts, between)
}

func leftOf(a []Value) (Value, error) {
	characters, n := []rune(a[0].text), int(a[1].n)
	if n < 0 {
		return Value{}, fmt.Errorf("LEFT of %d characters", n)
	}
	return text(string(characters[:min(n, len(characters))])), nil
}

func rightOf(a []Value) (Value, error) {
	characters, n := []rune(a[0].text), int(a[1].n)
	if n < 0 {
		return Value{}, fmt.Errorf("RIGHT of %d characters", n)
	}
	return text(string(characters[len(characters)-min(n, len(characters)):])), nil
}

// substring takes the place of the first character, from 1, or back from the end
// if negative, and perhaps how many.
func substring(a []Value) (Value, error) {
	characters, from := []rune(a[0].text), int(a[1].n)
	switch {
	case from == 0:
		return text(""), nil
	case from < -len(characters) || from > len(characters):
		return Value{}, fmt.Errorf("SUBSTRING from %d of %d characters", from, len(characters))
	case from < 0:
		characters = characters[len(characters)+from:]
	default:
		characters = characters[from-1:]
	}
	if len(a) == 3 {
		n := int(a[2].n)
		if n < 0 {
			return Value{}, fmt.Errorf("SUBSTRING of %d characters", n)
		}
		characters = characters[:min(n, len(characters))]
	}
	return text(string(characters)), nil
}
