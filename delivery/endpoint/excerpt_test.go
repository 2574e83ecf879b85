package endpoint

import (
	"testing"
	"unicode/utf8"
)

func FuzzExcerptIsReadable(f *testing.F) {
	f.Add([]byte("\x1b[31m\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text := Excerpt(b)
		if len(text) > MaxExcerpt || !utf8.ValidString(text) {
			t.Errorf("%q gives %q", b, text)
		}
		for _, r := range text {
			if r < ' ' || r >= 0x7f && r <= 0x9f {
				t.Errorf("%q has %q in it", b, r)
			}
		}
	})
}
