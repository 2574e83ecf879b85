package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Record is an endpoint's state as the topic of states keeps it (JSON, keyed by
// subscription). Every instance reads all of them and obeys: they are written
// only when a state changes, so that an instance that missed nothing has nothing
// to read.
type Record struct {
	Version      int       `json:"version"` // recordVersion
	Subscription string    `json:"subscription"`
	State        State     `json:"state"`
	Reason       string    `json:"reason,omitempty"`
	Until        time.Time `json:"until,omitzero"`
	FailingSince time.Time `json:"failing_since,omitzero"`
	Consent      *Consent  `json:"consent,omitempty"`
	Offers       []Offer   `json:"offers,omitempty"`
	// ByHand says that a person wrote it: an endpoint that is enabled begins anew.
	ByHand   bool      `json:"by_hand,omitempty"`
	Instance string    `json:"instance"`
	At       time.Time `json:"at"`
}

const (
	recordVersion = 1
	// maxRecord bounds a state's record, written or read.
	maxRecord = 16 << 10
)

// Encode writes r.
func (r Record) Encode() ([]byte, error) {
	r.Version = recordVersion
	if len(r.Reason) > 4<<10 {
		r.Reason = r.Reason[:4<<10]
	}
	return json.Marshal(r)
}

// ParseRecord reads a state's record. One of a newer version is an error: what
// it says must not be guessed.
func ParseRecord(b []byte) (Record, error) {
	var r Record
	if len(b) > maxRecord {
		return r, errors.New("the endpoint's state is too long")
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("the endpoint's state cannot be read: %w", err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("the endpoint's state has version %d, this gateway reads %d", r.Version, recordVersion)
	}
	switch r.State {
	case Active, Throttled, Open, Disabled:
		return r, nil
	}
	return r, fmt.Errorf("the endpoint's state %q is not known", r.State)
}

// Record is h as it is saved.
func (h *Health) Record(byHand bool, now time.Time) Record {
	s := h.Status(now)
	r := Record{
		Subscription: h.options.Subscription, State: h.state, Reason: h.reason, Until: s.Until,
		FailingSince: h.failingSince, ByHand: byHand, At: now, Offers: slices.Clone(h.offers),
	}
	if h.asks && !h.consent.At.IsZero() {
		c := h.consent
		r.Consent = &c
	}
	return r
}

// Apply takes over what another instance, or a person, saved.
func (h *Health) Apply(r Record, now time.Time) {
	h.tick(now)
	if h.asks && r.Consent != nil && r.Consent.At.After(h.consent.At) && r.Consent.Target == h.options.Target {
		if r.Consent.Granted {
			h.grant(*r.Consent, now)
		} else {
			h.consent = *r.Consent
		}
	}
	if h.asks {
		h.takeOffers(r.Offers, now)
	}
	switch r.State {
	case Disabled:
		h.disable(h.state, r.Reason)
	case Active:
		if h.state == Disabled && !r.ByHand {
			return // written before the other instance heard of it
		}
		if r.ByHand {
			h.reset()
			h.askAgainAt, h.refusals = now, 0
		} else if h.state == Open && !h.breaker.probing {
			h.reset()
		}
	case Throttled:
		if h.state == Active && r.Until.After(now) || h.state == Throttled && r.Until.After(h.until) {
			h.state, h.reason, h.until = Throttled, r.Reason, r.Until
		}
	case Open:
		if h.state == Disabled || h.state == Open || now.Sub(r.At) > breakerWindow+probeMost {
			break // broken so long ago that a try is due anyway
		}
		h.state, h.reason = Open, r.Reason
		h.breaker.Trip(r.Until, probeFirst)
	}
	if !r.FailingSince.IsZero() && h.lastSuccess.Before(r.FailingSince) && (h.failingSince.IsZero() || r.FailingSince.Before(h.failingSince)) && h.state != Active {
		h.failingSince, h.savedFailing = r.FailingSince, true
	}
}
