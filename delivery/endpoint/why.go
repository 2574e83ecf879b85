package endpoint

import (
	"fmt"
	"strconv"
	"time"

	"github.com/postern-dev/postern/delivery"
)

// Why says what the endpoint holds its subscription up by; a zero Kind: by nothing.
func (p *Pusher) Why() delivery.Cause { return causeOf(p.Status(), p.options) }

// causeOf names what an endpoint's state holds up. How many requests may be under
// way is not named here: the queue sees that in the window.
func causeOf(s Status, o Options) delivery.Cause {
	say := func(kind delivery.CauseKind, format string, args ...any) delivery.Cause {
		c := delivery.Cause{
			Kind: kind, Summary: fmt.Sprintf(format, args...), Since: s.FailingSince,
			Figures: map[string]string{"endpoint": string(s.State), "host": o.Host, "requests_under_way": strconv.Itoa(s.InFlight)},
		}
		if !s.Until.IsZero() {
			c.Figures["until"] = s.Until.UTC().Format(time.RFC3339)
		}
		return c
	}
	switch s.State {
	case Disabled:
		c := WhyDisabled(o.Subscription, s.Reason)
		return say(c.Kind, "%s", c.Summary)
	case Throttled:
		return say(delivery.CauseEndpointThrottled, "The endpoint asked to be left alone until %s: %s.", s.Until.UTC().Format(time.RFC3339), s.Reason)
	case Open:
		if s.Unconsented {
			return say(delivery.CauseEndpointOpen, "Nothing is sent before the endpoint's consent: %s. It is asked again at %s.", s.Reason, s.Until.UTC().Format(time.RFC3339))
		}
		return say(delivery.CauseEndpointOpen, "Most requests to the endpoint fail (%s): one event probes it, the next at %s. If it is well, say so (postern webhooks enable %s).",
			s.Reason, s.Until.UTC().Format(time.RFC3339), o.Subscription)
	case Active:
	}
	if s.Starved {
		c := say(delivery.CauseRateLimited, "The endpoint may be sent %g requests a second, by its own word or by requests_per_second, and is.", s.Rate)
		c.Figures["requests_per_second"] = strconv.FormatFloat(s.Rate, 'g', -1, 64)
		return c
	}
	return delivery.Cause{}
}

// WhyDisabled is the cause that a disabled endpoint is, whether it runs here or not.
func WhyDisabled(subscription, reason string) delivery.Cause {
	return delivery.Cause{
		Kind:    delivery.CauseEndpointDisabled,
		Summary: fmt.Sprintf("The endpoint is disabled: %s. Nothing is sent until somebody enables it (postern webhooks enable %s).", reason, subscription),
	}
}
