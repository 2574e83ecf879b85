package endpoint

import "time"

func (h *Health) waitsForConsent() bool { return h.asks && !h.consent.Granted }

// AskNow reports whether the endpoint is to be asked for its consent now, and
// notes that it is being asked.
func (h *Health) AskNow(now time.Time) bool {
	h.tick(now)
	if !h.asks || h.asking || h.state == Disabled || now.Before(h.askAgainAt) {
		return false
	}
	h.asking = true
	return true
}

// Asked notes what came of asking: an answer, or err when there was none.
//
// A consent is asked for again every Options.Revalidate. One that is taken back
// stops the endpoint at once. One that cannot be confirmed, because the endpoint
// does not answer, or lets its callback wait, is worth as long again and no longer.
func (h *Health) Asked(c Consent, err error, now time.Time) Change {
	h.tick(now)
	h.asking = false
	change := Change{From: h.state, To: h.state}
	wait := func() {
		h.askAgainAt = now.Add(min(askFirst<<min(h.refusals, 10), askMost))
		h.refusals++
	}
	switch {
	case err != nil || c.Pending:
		wait()
		why := c.Why
		if err != nil {
			why = "it could not be asked for its consent: " + err.Error()
		}
		if h.consent.Granted && now.Sub(h.consent.At) >= 2*h.options.Revalidate {
			h.consent = Consent{At: h.consent.At, Why: "its consent could not be confirmed: " + why, Target: h.options.Target}
			change.Save, change.Notice, change.Detail = true, NoticeConsent, h.consent.Why
		} else if !h.consent.Granted {
			h.consent.Why = why
		}
	case !c.Granted:
		wait()
		told := h.consent.Granted || h.consent.Why != c.Why
		h.consent, h.consent.Target = c, h.options.Target
		if told {
			change.Save, change.Notice, change.Detail = true, NoticeConsent, c.Why
		}
	default:
		h.refusals = 0
		change.Save = !h.consent.Granted || h.consent.PerMinute != c.PerMinute || now.Sub(h.consent.At) >= h.options.Revalidate/2
		h.grant(c, now)
	}
	return change
}

func (h *Health) grant(c Consent, now time.Time) {
	h.consent, h.consent.Target = c, h.options.Target
	h.grantedAt = c.At
	h.takeOffers(nil, now)
	h.askAgainAt = c.At.Add(h.options.Revalidate)
	h.bucket.SetRate(allowed(h.options.Rate, c.PerMinute), now)
}

// allowed is the lower of what is configured, a second, and what the endpoint
// allows, a minute; 0 is no limit.
func allowed(perSecond float64, perMinute int) float64 {
	granted := float64(perMinute) / 60
	if perSecond <= 0 || granted > 0 && granted < perSecond {
		return granted
	}
	return perSecond
}
