package endpoints

import (
	"fmt"
	"net/http"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/fault"
)

// Waits of a callback for what another instance offered a moment ago: an
// endpoint may call back before it has answered.
const (
	callbackPatience = 2 * time.Second
	callbackAgain    = 100 * time.Millisecond
	maxCallbackKey   = 64
)

// Consent serves the callbacks of the abuse-protection handshake (CloudEvents
// webhook specification 1.0.2, section 4.1.3). The key is all that is asked for:
// who calls is not known to the gateway. The name in the path says nothing alone:
// a wrong one and a wrong key are the same answer.
func (s *Server) Consent(w http.ResponseWriter, r *http.Request) error {
	key, name := r.URL.Query().Get("key"), r.PathValue("name")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	rate, given := 0, r.Header.Values("Webhook-Allowed-Rate")
	if len(given) > 0 {
		var ok bool
		if rate, ok = webhook.ParseRate(given); !ok {
			return fault.New(fault.InvalidArgument, "WebHook-Allowed-Rate is a positive number of requests a minute, or *").Field("WebHook-Allowed-Rate", "it cannot be read")
		}
	}
	if len(key) == 0 || len(key) > maxCallbackKey || !s.calledBack(r, name, key, rate, len(given) > 0) {
		return fault.New(fault.UnknownConsent, "no consent waits for this key: it was used, is over, or was never offered")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintf(w, "Thank you: events of the subscription %s are sent now.\n", name) // the caller may be gone
	return nil
}

func (s *Server) calledBack(r *http.Request, name, key string, rate int, given bool) bool {
	limit := time.NewTimer(callbackPatience)
	defer limit.Stop()
	again := time.NewTicker(callbackAgain)
	defer again.Stop()
	for {
		if p := s.endpoints.pusher(name); p != nil && consented(p, key, rate, given) {
			return true
		}
		select {
		case <-again.C:
		case <-limit.C:
			return false
		case <-r.Context().Done():
			return false
		}
	}
}

// consented hands a callback to the endpoint's pusher. One that names no rate
// grants the one that was asked for.
func consented(p *endpoint.Pusher, key string, rate int, given bool) bool {
	if !given {
		rate = p.AskedRate()
	}
	return p.CalledBack(key, rate)
}
