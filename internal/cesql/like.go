package cesql

import "unicode/utf8"

// pattern is that of LIKE (section 3.4.3), read once: each part is a character, or
// one of the two below.
type pattern []rune

const (
	anyOne  rune = -1 - iota // _
	anyMany                  // %
)

func newPattern(s string) pattern {
	var p pattern
	escaped := false
	for i, r := range s {
		next, _ := utf8.DecodeRuneInString(s[i+utf8.RuneLen(r):])
		switch {
		case escaped:
			escaped = false
		case r == '\\' && (next == '_' || next == '%'):
			escaped = true
			continue
		case r == '_':
			r = anyOne
		case r == '%':
			r = anyMany
		}
		p = append(p, r)
	}
	return p
}

// match goes back to the last % alone when it meets what does not fit: all that
// an earlier one could take, the last one can.
func (p pattern) match(s string) bool {
	at, many, taken := 0, -1, 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case at < len(p) && p[at] == anyMany:
			many, taken = at, i
			at++
		case at < len(p) && (p[at] == anyOne || p[at] == r):
			at++
			i += size
		case many >= 0:
			_, size = utf8.DecodeRuneInString(s[taken:])
			taken += size
			at, i = many+1, taken
		default:
			return false
		}
	}
	for at < len(p) && p[at] == anyMany {
		at++
	}
	return at == len(p)
}
