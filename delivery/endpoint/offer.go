package endpoint

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"time"
)

// Offer is a callback at which an endpoint, or a person, may consent later
// (CloudEvents webhook specification 1.0.2, section 4.1.3). Whoever has its key
// may use it once, at any instance: what is kept is only the key's hash.
type Offer struct {
	Hash   string    `json:"hash"`
	At     time.Time `json:"at"`
	Target string    `json:"target"` // what it is a consent for
}

const (
	// offerLife is how long a callback may be used: a person may find it in a log on Monday.
	offerLife = 7 * 24 * time.Hour
	// maxOffers bounds those of one endpoint: each instance that asks has one, and a
	// new one when the half of its life is over.
	maxOffers = 32
)

// newOfferKey makes a key of 256 random bits.
func newOfferKey() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func hashOf(key string) string {
	sum := sha256.Sum256([]byte("postern consent\x00" + key))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Offered notes that a callback of this hash is offered.
func (h *Health) Offered(hash string, now time.Time) Change {
	h.tick(now)
	h.takeOffers([]Offer{{Hash: hash, At: now, Target: h.options.Target}}, now)
	return Change{From: h.state, To: h.state, Save: true}
}

// takeOffers adds offers that may still be used, and forgets those that may not.
func (h *Health) takeOffers(more []Offer, now time.Time) {
	for _, o := range more {
		if !slices.ContainsFunc(h.offers, func(have Offer) bool { return have.Hash == o.Hash }) {
			h.offers = append(h.offers, o)
		}
	}
	h.offers = slices.DeleteFunc(h.offers, func(o Offer) bool {
		return o.Target != h.options.Target || now.Sub(o.At) >= offerLife || !o.At.After(h.grantedAt)
	})
	slices.SortFunc(h.offers, func(a, b Offer) int { return a.At.Compare(b.At) })
	if over := len(h.offers) - maxOffers; over > 0 {
		h.offers = slices.Delete(h.offers, 0, over)
	}
}

// holds reports whether the offer of this hash may still be used.
func (h *Health) holds(hash string, now time.Time) bool {
	h.takeOffers(nil, now)
	found := 0
	for _, o := range h.offers {
		found |= subtle.ConstantTimeCompare([]byte(o.Hash), []byte(hash))
	}
	return found == 1
}

// CalledBack notes that an offer's key was used; false when there is no such
// offer, or no more. It is a consent like any other, and ends all offers before it.
func (h *Health) CalledBack(hash string, perMinute int, now time.Time) (Change, bool) {
	h.tick(now)
	if !h.asks || !h.holds(hash, now) {
		return Change{From: h.state, To: h.state}, false
	}
	h.refusals = 0
	h.grant(Consent{Granted: true, PerMinute: perMinute, At: now, Target: h.options.Target}, now)
	return Change{From: h.state, To: h.state, Save: true}, true
}
