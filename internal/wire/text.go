package wire

import "strings"

// ValidUTF8 replaces what is not UTF-8: a proto3 string cannot carry it, and
// one such header name must not make its event undeliverable.
func ValidUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
