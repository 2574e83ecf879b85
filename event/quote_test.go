package event

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
)

func wantQuoted(t *testing.T, s string) {
	t.Helper()
	want, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if got := AppendString([]byte("before "), s); string(got) != "before "+string(want) {
		t.Errorf("%q is written %s, by encoding/json %s", s, got[len("before "):], want)
	}
}

func TestTextIsWrittenAsEncodingJSONDoes(t *testing.T) {
	for c := range 256 { // each byte at each place of eight, and alone
		one := string([]byte{byte(c)})
		wantQuoted(t, one)
		for at := range 17 {
			wantQuoted(t, strings.Repeat("a", at)+one+strings.Repeat("~", 17-at))
			wantQuoted(t, strings.Repeat("\x7f", at)+one+one+strings.Repeat("!", 17-at))
		}
	}
	for _, r := range "é\u2027\u2028\u2029\u202a世\U0001f6eb\ufffd\uffff" {
		for at := range 9 {
			wantQuoted(t, strings.Repeat("x", at)+string(r)+strings.Repeat("y", 9))
			wantQuoted(t, strings.Repeat("x", at)+string(r)[:1])
		}
	}
	letters := []byte("ab<>&\"\\\n\x00\x80\xe2\x80\xa8~ ")
	for range 20_000 {
		s := make([]byte, rand.IntN(40))
		for i := range s {
			s[i] = letters[rand.IntN(len(letters))]
		}
		wantQuoted(t, string(s))
	}
}

func TestTextIsWrittenWithoutAllocating(t *testing.T) {
	b := make([]byte, 0, 4096)
	s := strings.Repeat("plain text of an event, ", 40)
	if n := testing.AllocsPerRun(100, func() { b = AppendString(b[:0], s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkText(b *testing.B) {
	s := []byte(strings.Repeat("x", 1024))
	out := make([]byte, 0, 2048)
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		out = appendText(out[:0], s)
	}
}
