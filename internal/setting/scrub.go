package setting

import (
	"bytes"
	"slices"
	"strings"
)

// Scrubber takes secrets out of text that somebody else wrote: who was sent a
// secret may say it back, in an error or for debugging, and what is said back is
// logged. It finds a secret as it was sent; an encoded one it does not.
type Scrubber struct{ replace *strings.Replacer }

// minScrubbed is the length below which a value is left: a text without every
// "1" is of no use to anyone, and such a value is no secret.
const minScrubbed = 6

// NewScrubber makes one for these texts. Without any that are long enough, it is nil.
func NewScrubber(secrets ...string) *Scrubber {
	secrets = slices.DeleteFunc(slices.Clone(secrets), func(s string) bool { return len(s) < minScrubbed })
	if len(secrets) == 0 {
		return nil
	}
	// The first that fits is replaced: one that another begins with comes later.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(secrets))
	for _, s := range secrets {
		pairs = append(pairs, s, hidden)
	}
	return &Scrubber{strings.NewReplacer(pairs...)}
}

// Text gives text without the secrets, and without those of now, which change.
func (s *Scrubber) Text(text []byte, now ...string) []byte {
	if len(text) == 0 {
		return text
	}
	for _, secret := range now {
		if len(secret) >= minScrubbed {
			text = bytes.ReplaceAll(text, []byte(secret), []byte(hidden))
		}
	}
	if s == nil {
		return text
	}
	return []byte(s.replace.Replace(string(text)))
}
