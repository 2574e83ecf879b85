// Package setting owns the kinds of value people write into a configuration
// that Go's own types do not cover: secrets, which never print, and sizes in
// bytes with a unit. Reading files, environment and flags is package config's.
package setting

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Secret is a text that must not appear in any output. Every way of printing,
// logging or encoding it gives "***"; only Reveal gives the text.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text. Call it where it is used, never where it is stored.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == "" }

func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return hidden
}

// hidden stands where a secret would.
const hidden = "***"

// GoString keeps %#v from printing the text.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText keeps every encoder from printing the text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes the text as it is.
func (s *Secret) UnmarshalText(b []byte) error { s.text = string(b); return nil }

// Bytes is a size in bytes, written as 1048576, 1MiB, 64KiB or 10MB.
type Bytes int64

var units = []struct {
	name string
	size float64
}{
	// Longer names first: "B" ends all of them.
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// ParseBytes reads a size.
func ParseBytes(text string) (Bytes, error) {
	number, size := strings.TrimSpace(text), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || v < 0 || math.IsNaN(v) || v*size > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is not a size: write a number of bytes, or one with KiB, MiB, GiB, kB, MB, GB", text)
	}
	return Bytes(v * size), nil
}

func (b Bytes) String() string {
	for _, u := range []struct {
		name string
		size Bytes
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if b >= u.size && b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.name)
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText writes the size as people do.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err == nil {
		*b = v
	}
	return err
}

// Error is one wrong setting.
type Error struct {
	Path    string // below the Options that were validated: sasl.username, brokers[1]
	Message string // what is wrong and what would be right
}

func (e *Error) Error() string { return e.Path + ": " + e.Message }

// Faults gathers what is wrong with settings.
type Faults struct{ errs []error }

// Add notes that the setting at path is wrong.
func (f *Faults) Add(path, format string, args ...any) {
	f.errs = append(f.errs, &Error{path, fmt.Sprintf(format, args...)})
}

// Err joins them; nil without any.
func (f *Faults) Err() error { return errors.Join(f.errs...) }

// Under returns errs with path put before each one's own.
func Under(path string, err error) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, Under(path, e))
		}
		return errors.Join(all...)
	}
	var one *Error
	if errors.As(err, &one) {
		return &Error{path + "." + one.Path, one.Message}
	}
	return &Error{path, err.Error()}
}
