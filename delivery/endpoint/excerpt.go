package endpoint

import (
	"bytes"
	"strings"
)

// MaxExcerpt bounds what is kept of what an endpoint said, in bytes.
const MaxExcerpt = 4 << 10

// Excerpt makes text for people of the beginning of what an endpoint said: readable
// in a log or a header, so without control characters, in valid UTF-8.
func Excerpt(said []byte) string {
	text := string(bytes.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r <= 0x9f:
			return -1
		}
		return r
	}, bytes.ToValidUTF8(said[:min(len(said), MaxExcerpt)], []byte("\uFFFD"))))
	if len(text) > MaxExcerpt { // what stands for a wrong byte has three
		text = strings.ToValidUTF8(text[:MaxExcerpt], "")
	}
	return strings.TrimSpace(text)
}
