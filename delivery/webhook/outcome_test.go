package webhook

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
)

func TestAnswersMeanWhatTheSpecificationsSay(t *testing.T) {
	now := time.Date(2026, 1, 31, 10, 0, 0, 0, time.UTC)
	v, err := Outcomes(nil).compile()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status     int
		retryAfter string
		action     endpoint.Action
		pause      time.Duration
	}{
		{200, "", endpoint.Ack, 0},
		{202, "60", endpoint.Ack, 0},
		{204, "", endpoint.Ack, 0},
		{299, "", endpoint.Ack, 0},
		{301, "", endpoint.Retry, 0},
		{304, "", endpoint.Retry, 0},
		{307, "", endpoint.Retry, 0},
		{400, "", endpoint.Retry, 0},
		{401, "", endpoint.Retry, 0},
		{404, "", endpoint.Retry, 0},
		{410, "", endpoint.Disable, 0},
		{413, "", endpoint.Reject, 0},
		{415, "", endpoint.Reject, 0},
		{422, "60", endpoint.Reject, 0},
		{429, "120", endpoint.Throttle, 2 * time.Minute},
		{429, " 120 ", endpoint.Throttle, 2 * time.Minute},
		{429, "1.5", endpoint.Throttle, 2 * time.Second},
		{429, "", endpoint.Throttle, 0},
		{429, "soon", endpoint.Throttle, 0},
		{429, "1e9", endpoint.Throttle, 0},
		{429, "0x10", endpoint.Throttle, 0},
		{429, "Inf", endpoint.Throttle, 0},
		{429, "NaN", endpoint.Throttle, 0},
		{503, now.Add(time.Hour).Format(http.TimeFormat), endpoint.Throttle, time.Hour},
		{503, now.Add(time.Hour).Format(time.RFC850), endpoint.Throttle, time.Hour},
		{503, now.Add(time.Hour).Format(time.ANSIC), endpoint.Throttle, time.Hour},
		{503, now.Add(-time.Hour).Format(http.TimeFormat), endpoint.Throttle, 0},
		{503, now.Add(1000 * time.Hour).Format(http.TimeFormat), endpoint.Throttle, maxPause},
		{429, "99999999999999999", endpoint.Throttle, maxPause},
		{429, "-5", endpoint.Throttle, 0},
		{500, "10", endpoint.Retry, 10 * time.Second}, // for the event alone
		{502, "", endpoint.Retry, 0},
		{999, "", endpoint.Retry, 0},
		{0, "", endpoint.Retry, 0},
	} {
		if o := v.judge(c.status, c.retryAfter, "", now); o.Action != c.action || o.Pause != c.pause {
			t.Errorf("%d Retry-After %q: got %+v", c.status, c.retryAfter, o)
		}
	}
}

func TestOutcomesAreTheEndpointsWhereItSaysSoAndTheMoreExactWordWins(t *testing.T) {
	v, err := Outcomes{"409": "ack", "5xx": "throttle", "500-501": "reject", "500": "drop", "404": "disable", "timeout": "throttle"}.compile()
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[int]endpoint.Action{
		200: endpoint.Ack, 409: endpoint.Ack, 500: endpoint.Drop, 501: endpoint.Reject, 502: endpoint.Throttle, 599: endpoint.Throttle,
		404: endpoint.Disable, 400: endpoint.Retry, 410: endpoint.Disable,
	} {
		if o := v.judge(status, "", "", time.Now()); o.Action != want {
			t.Errorf("%d is %s, want %s", status, o.Action, want)
		}
	}
	if o := v.failure(http.ErrHandlerTimeout); o.Action != endpoint.Retry {
		t.Errorf("a broken connection is %s", o.Action)
	}
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	p := pusherTo(t, server.URL, func(o *Options) { o.Timeout, o.Outcomes = 50*time.Millisecond, Outcomes{"timeout": "throttle"} })
	l := newLender(t, record("k", "v"))
	run(t, p, l)
	if s := l.only(); s.Word != delivery.Nack || s.Delay < 4*time.Second {
		t.Errorf("settled as %+v", s)
	}
	if st := p.Status(); st.State != endpoint.Throttled {
		t.Errorf("%+v", st)
	}
}

func TestThrottledEndpointIsLeftAloneAndItsOtherEventsGoBackUntried(t *testing.T) {
	requests := make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests <- struct{}{}
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	p := pusherTo(t, server.URL, nil)
	l := newLender(t, record("a", "1"))
	run(t, p, l)
	s := l.only()
	if s.Word != delivery.Nack || !s.HasDelay || s.Delay != time.Hour {
		t.Errorf("settled as %+v", s)
	}
	if st := p.Status(); st.State != endpoint.Throttled || time.Until(st.Until) < 59*time.Minute {
		t.Errorf("status %+v", st)
	}
	l.leases <- []delivery.Lease{{ID: 9, Record: record("b", "2"), Attempt: 1}}
	for returned := false; !returned; {
		l.mu.Lock()
		returned = len(l.given) == 1 && l.given[0].ID == 9 && len(l.windows) > 0 && l.windows[len(l.windows)-1].Messages == 0
		l.mu.Unlock()
	}
	if len(requests) != 1 {
		t.Errorf("%d requests were made", len(requests))
	}
}

func TestGoneEndpointIsDisabled(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }))
	defer server.Close()
	p := pusherTo(t, server.URL, nil)
	l := newLender(t, record("a", "1"))
	run(t, p, l)
	l.only()
	if st := p.Status(); st.State != endpoint.Disabled || st.Reason == "" {
		t.Errorf("status %+v", st)
	}
}
