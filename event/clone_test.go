package event

import (
	"reflect"
	"runtime"
	"testing"
	"weak"
)

func TestACloneKeepsNothingOfItsFetchNotEvenWhatIsEmpty(t *testing.T) {
	for name, of := range map[string]func(memory []byte) *Record{
		"bytes": func(m []byte) *Record {
			return &Record{Key: m[:3:3], Value: m[3:9:9], Headers: []Header{{"h", m[9:12:12]}}}
		},
		"an empty value":      func(m []byte) *Record { return &Record{Value: m[5:5:5]} },
		"an empty key":        func(m []byte) *Record { return &Record{Key: m[5:5:5], Value: m[:3:3]} },
		"headers alone":       func(m []byte) *Record { return &Record{Headers: []Header{{"h", m[9:12:12]}, {"null", nil}}} },
		"headers all empty":   func(m []byte) *Record { return &Record{Headers: []Header{{"", m[5:5:5]}}} },
		"nothing but a place": func([]byte) *Record { return &Record{Topic: "t", Partition: 1, Offset: 2} },
	} {
		memory := make([]byte, 1<<16)
		at := weak.Make(&memory[0])
		r := of(memory)
		c := r.Clone()
		if !reflect.DeepEqual(c, r) { // nil and empty are told apart
			t.Errorf("%s: %+v became %+v", name, r, c)
		}
		runtime.KeepAlive(memory)
		runtime.GC()
		runtime.GC()
		if at.Value() != nil {
			t.Errorf("%s: the clone keeps the memory it was cloned from", name)
		}
		runtime.KeepAlive(c)
	}
}
