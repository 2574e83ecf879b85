package event

import (
	"encoding/binary"
	"unicode/utf8"
)

// AppendString writes s as a JSON string, byte for byte as encoding/json does, which
// allocates for each. What is not UTF-8 becomes U+FFFD.
func AppendString(b []byte, s string) []byte { return appendText(b, []byte(s)) }

// appendText is AppendString of bytes.
func appendText(b, s []byte) []byte {
	b = append(b, '"')
	written := 0
	for i := 0; i < len(s); {
		if len(s)-i >= 8 && plain(binary.LittleEndian.Uint64(s[i:])) {
			i += 8
			continue
		}
		escape, size := escapeOf(s[i:])
		if escape != "" {
			b = append(append(b, s[written:i]...), escape...)
			written = i + size
		}
		i += size
	}
	return append(append(b, s[written:]...), '"')
}

// plain reports whether none of eight bytes needs escaping or is part of a longer rune.
func plain(x uint64) bool {
	const ones = 0x0101010101010101
	// A byte that is none of what is looked for stays below 0x80 when that is taken from
	// it. A borrow from the byte below wants one there that was found.
	controls := x - ones*0x20
	quoteOrAmpersand := ((x | ones*0x04) ^ ones*'&') - ones
	lessOrGreater := ((x | ones*0x02) ^ ones*'>') - ones
	backslash := (x ^ ones*'\\') - ones
	return (x|controls|quoteOrAmpersand|lessOrGreater|backslash)&(ones*0x80) == 0
}

// escapeOf gives what stands for the first rune of s where it may not stand for itself,
// and its size. <, > and & may not, as HTML; U+2028 and U+2029 end lines in JavaScript.
func escapeOf(s []byte) (escape string, size int) {
	if c := s[0]; c < utf8.RuneSelf {
		return escapes[c], 1
	}
	switch r, size := utf8.DecodeRune(s); {
	case r == utf8.RuneError && size == 1:
		return `\ufffd`, size
	case r == '\u2028':
		return `\u2028`, size
	case r == '\u2029':
		return `\u2029`, size
	default:
		return "", size
	}
}

// escapes are those of ASCII; "" stands for itself.
var escapes = func() (all [utf8.RuneSelf]string) {
	const digits = "0123456789abcdef"
	for c := range byte(' ') {
		all[c] = `\u00` + string(digits[c>>4]) + string(digits[c&0xf])
	}
	for _, c := range []byte("<>&") {
		all[c] = `\u00` + string(digits[c>>4]) + string(digits[c&0xf])
	}
	all['\b'], all['\f'], all['\n'], all['\r'], all['\t'] = `\b`, `\f`, `\n`, `\r`, `\t`
	all['"'], all['\\'] = `\"`, `\\`
	return all
}()
