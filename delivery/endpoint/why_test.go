package endpoint

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/delivery"
)

func TestStateOfAnEndpointIsTheCauseOfLagThatPeopleAreTold(t *testing.T) {
	now := time.Now()
	options := Options{Subscription: "mail", Host: "example.com:443", Concurrency: 8, Rate: 2, Revalidate: time.Hour}
	gone := Outcome{Action: Disable, Class: "gone", Why: "the endpoint answered 410 Gone"}
	for name, c := range map[string]struct {
		asks bool
		do   func(h *Health)
		kind delivery.CauseKind
		says string
	}{
		"nothing wrong": {false, func(*Health) {}, 0, ""},
		"410":           {false, func(h *Health) { h.Done(gone, 1, now, now) }, delivery.CauseEndpointDisabled, "410 Gone. Nothing is sent until somebody enables it (postern webhooks enable mail)"},
		"a person":      {false, func(h *Health) { h.Disable("moving house") }, delivery.CauseEndpointDisabled, "moving house"},
		"429": {false, func(h *Health) {
			h.Done(Outcome{Action: Throttle, Why: "the endpoint answered 429", Pause: time.Minute}, 1, now, now)
		}, delivery.CauseEndpointThrottled, "until " + now.Add(time.Minute).UTC().Format(time.RFC3339)},
		"broken": {false, func(h *Health) {
			for lane := range uint64(20) {
				h.Done(Outcome{Action: Retry, Class: "refused", Why: "nobody is there"}, lane, now, now)
			}
		}, delivery.CauseEndpointOpen, "nobody is there): one event probes it"},
		"rate":                {false, func(h *Health) { h.Admit(now) }, delivery.CauseRateLimited, "2 requests a second"},
		"rate, but also full": {false, func(h *Health) { h.inFlight = 8; h.Admit(now); h.bucket.Take(now) }, 0, ""},
		"not asked yet":       {true, func(*Health) {}, delivery.CauseEndpointOpen, "Nothing is sent before the endpoint's consent"},
		"consent refused":     {true, func(h *Health) { h.Asked(Consent{Why: "no WebHook-Allowed-Origin"}, nil, now) }, delivery.CauseEndpointOpen, "no WebHook-Allowed-Origin. It is asked again at"},
		"consent granted":     {true, func(h *Health) { h.Asked(Consent{Granted: true, At: now}, nil, now) }, 0, ""},
	} {
		h := NewHealth(options, c.asks, now)
		c.do(h)
		if got := causeOf(h.Status(now), options); got.Kind != c.kind || !strings.Contains(got.Summary, c.says) || c.kind != 0 && got.Figures["host"] != "example.com:443" {
			t.Errorf("%s: %+v, want kind %d and %q", name, got, c.kind, c.says)
		}
	}
}
