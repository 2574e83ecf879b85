package endpoint

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func health(change func(*Options)) *Health {
	o := Options{Subscription: "mail", Concurrency: 64, DisableAfter: 120 * time.Hour, Revalidate: 24 * time.Hour}
	if change != nil {
		change(&o)
	}
	return NewHealth(o, false, epoch)
}

var (
	ok       = Outcome{Action: Ack, Class: "ok"}
	failing  = Outcome{Action: Retry, Class: "status", Why: "500"}
	tooMuch  = Outcome{Action: Throttle, Class: "throttled", Why: "429", Overload: true}
	gone     = Outcome{Action: Disable, Class: "gone", Why: "410"}
	timedOut = Outcome{Action: Retry, Class: "timeout", Why: "timeout", Overload: true}
)

// one makes a request that comes to o at once.
func one(t interface{ Fatalf(string, ...any) }, h *Health, o Outcome, lane uint64, now time.Time) Change {
	if !h.Admit(now) {
		t.Fatalf("at %s a request is not admitted: %+v", now.Sub(epoch), h.Status(now))
	}
	return h.Done(o, lane, now, now)
}

func TestEndpointThatAsksForAPauseGetsAllOfIt(t *testing.T) {
	h := health(nil)
	asked := tooMuch
	asked.Pause = 90 * time.Minute
	c := one(t, h, asked, 1, epoch)
	if c.To != Throttled || !c.Save || c.Notice != NoticeThrottled || c.Pause != 90*time.Minute {
		t.Errorf("%+v", c)
	}
	if h.Free(epoch.Add(90*time.Minute-1)) != 0 {
		t.Error("it is not left alone")
	}
	if next := h.Next(epoch); next != epoch.Add(90*time.Minute) {
		t.Errorf("the next look is at %s", next.Sub(epoch))
	}
	if h.Free(epoch.Add(90*time.Minute)) == 0 || h.Status(epoch.Add(90*time.Minute)).State != Active {
		t.Error("it is left alone for ever")
	}
}

func TestShorterPauseNeverCutsALongerOneShort(t *testing.T) {
	h := health(nil)
	h.Admit(epoch)
	h.Admit(epoch)
	long, short := tooMuch, tooMuch
	long.Pause, short.Pause = time.Hour, time.Second
	h.Done(long, 1, epoch, epoch)
	c := h.Done(short, 2, epoch, epoch.Add(time.Minute))
	if s := h.Status(epoch.Add(time.Minute)); s.Until != epoch.Add(time.Hour) || c.Pause != 59*time.Minute {
		t.Errorf("until %s, the event waits %s", s.Until.Sub(epoch), c.Pause)
	}
}

func TestPausesNobodyMeasuredDoubleUntilItWorksAgain(t *testing.T) {
	h := health(nil)
	now := epoch
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		if c := one(t, h, tooMuch, 1, now); c.Pause != want*time.Second {
			t.Errorf("a pause of %s, want %ds", c.Pause, want)
		}
		now = h.Status(now).Until
	}
	one(t, h, ok, 1, now)
	if c := one(t, h, tooMuch, 1, now); c.Pause != pauseFirst {
		t.Errorf("after a success the pause is %s", c.Pause)
	}
}

func TestGoneEndpointIsDisabledUntilSomebodyEnablesIt(t *testing.T) {
	h := health(nil)
	if c := one(t, h, gone, 1, epoch); c.To != Disabled || c.Notice != NoticeDisabled || !c.Save {
		t.Errorf("%+v", c)
	}
	later := epoch.Add(1000 * time.Hour)
	if h.Free(later) != 0 || !h.Next(later).IsZero() || h.Status(later).Reason != "410" {
		t.Error("it is tried again by itself")
	}
	if c := h.Enable("mended", later); c.To != Active || c.Notice != NoticeEnabled || !c.Save || h.Free(later) == 0 {
		t.Errorf("%+v", c)
	}
}

func TestBrokenEndpointIsProbedByOneAndBeginsGently(t *testing.T) {
	h := health(nil)
	for range 64 { // let it grow
		for h.Admit(epoch) {
		}
		for h.inFlight > 0 {
			h.Done(ok, 1, epoch, epoch)
		}
	}
	if h.Free(epoch) != 64 {
		t.Fatalf("%d are free", h.Free(epoch))
	}
	var opened Change
	now := epoch.Add(10 * time.Minute)
	for i := range uint64(20) {
		if !h.Admit(now) {
			break
		}
		if c := h.Done(timedOut, i, now, now); c.Notice != "" {
			opened = c
		}
	}
	if opened.Notice != NoticeOpened || opened.To != Open || !opened.Save {
		t.Fatalf("%+v", opened)
	}
	if h.Free(now) != 0 {
		t.Error("a broken endpoint is sent more")
	}
	now = h.Next(now)
	if h.Free(now) != 1 {
		t.Errorf("%d probes", h.Free(now))
	}
	h.Admit(now)
	if h.Free(now) != 0 {
		t.Error("two probes at once")
	}
	c := h.Done(ok, 1, now, now)
	if c.To != Active || c.Notice != NoticeRecovered || h.Free(now) != firstLimit {
		t.Errorf("%+v, %d free", c, h.Free(now))
	}
}

func TestProbeThatWasNeverSentDoesNotBlockTheNext(t *testing.T) {
	h := health(nil)
	h.breaker.Trip(epoch, probeFirst)
	h.state = Open
	h.Admit(epoch)
	h.Abandon()
	if h.Free(epoch) != 1 {
		t.Error("nothing may probe any more")
	}
}

func TestEndpointThatFailsForDaysIsWarnedOfAndDisabled(t *testing.T) {
	h := health(nil)
	now, told := epoch, []string{}
	for i := 0; now.Sub(epoch) <= 121*time.Hour; i++ {
		if !h.Admit(now) {
			now = h.Next(now)
			continue
		}
		c := h.Done(failing, uint64(i), now, now)
		switch c.Notice {
		case NoticeFailing:
			told = append(told, now.Sub(epoch).Truncate(time.Hour).String())
		case NoticeDisabled:
			if d := now.Sub(epoch); d < 120*time.Hour || !strings.Contains(c.Detail, "500") {
				t.Errorf("disabled after %s: %s", d, c.Detail)
			}
			if len(told) != 3 || told[0] != "60h0m0s" || told[1] != "84h0m0s" || told[2] != "108h0m0s" {
				t.Errorf("it was warned of at %v", told)
			}
			return
		}
		now = now.Add(20 * time.Minute)
	}
	t.Error("it is never disabled")
}

func TestOneSuccessStartsTheTimeToBeingDisabledAnew(t *testing.T) {
	h := health(nil)
	one(t, h, failing, 1, epoch)
	one(t, h, ok, 1, epoch.Add(119*time.Hour))
	if c := one(t, h, failing, 1, epoch.Add(121*time.Hour)); c.To != Active || h.Status(epoch.Add(121*time.Hour)).FailingSince != epoch.Add(121*time.Hour) {
		t.Errorf("%+v", c)
	}
}

func TestRejectedEventsSayNothingAgainstTheEndpoint(t *testing.T) {
	h := health(nil)
	for i := range uint64(100) {
		one(t, h, Outcome{Action: Reject, Class: "status", Why: "422"}, i, epoch)
	}
	if s := h.Status(epoch); s.State != Active || !s.FailingSince.IsZero() {
		t.Errorf("%+v", s)
	}
}

func TestWhatAnEndpointAllowsAMinuteIsNeverExceeded(t *testing.T) {
	h := NewHealth(Options{Concurrency: 1000, Rate: 100, Revalidate: time.Hour}, true, epoch)
	if h.Free(epoch) != 0 || h.Status(epoch).State != Open {
		t.Fatal("it is sent to without consent")
	}
	if !h.AskNow(epoch) || h.AskNow(epoch) {
		t.Fatal("it is not asked once")
	}
	if c := h.Asked(Consent{Granted: true, PerMinute: 120, At: epoch}, nil, epoch); !c.Save {
		t.Errorf("%+v", c)
	}
	sent, now := 0, epoch
	for now.Before(epoch.Add(10 * time.Minute)) {
		for h.Admit(now) {
			h.Done(ok, 1, now, now)
			sent++
		}
		next := h.Next(now)
		if !next.After(now) {
			t.Fatal("time stands still")
		}
		now = next
		if h.AskNow(now) {
			t.Fatal("asked again too early")
		}
	}
	if sent < 1199 || sent > 1201 {
		t.Errorf("%d requests in ten minutes at 120 a minute", sent)
	}
}

func TestConsentIsAskedForAgainAndMayBeTakenBack(t *testing.T) {
	h := NewHealth(Options{Concurrency: 10, Revalidate: time.Hour}, true, epoch)
	h.AskNow(epoch)
	h.Asked(Consent{Granted: true, At: epoch}, nil, epoch)
	if next := h.Next(epoch); next != epoch.Add(time.Hour) {
		t.Fatalf("asked again at %s", next.Sub(epoch))
	}
	now := epoch.Add(time.Hour)
	if !h.AskNow(now) || h.Free(now) == 0 {
		t.Fatal("it is not asked, or not sent to meanwhile")
	}
	h.Asked(Consent{}, errors.New("timeout"), now)
	if h.Free(now) == 0 {
		t.Error("an endpoint that could not be asked lost its consent at once")
	}
	now = epoch.Add(2 * time.Hour)
	if !h.AskNow(now) {
		t.Fatal("not asked")
	}
	if c := h.Asked(Consent{}, errors.New("timeout"), now); c.Notice != NoticeConsent || h.Free(now) != 0 {
		t.Errorf("an old consent counts for ever: %+v", c)
	}
	now = h.Next(now)
	h.AskNow(now)
	h.Asked(Consent{Granted: true, At: now}, nil, now)
	if h.Free(now) == 0 {
		t.Error("a new consent does not count")
	}
	now = now.Add(time.Hour)
	h.AskNow(now)
	if c := h.Asked(Consent{Why: "no", At: now}, nil, now); c.Notice != NoticeConsent || h.Free(now) != 0 || h.Status(now).Reason != "no" {
		t.Errorf("a consent that was taken back counts: %+v", c)
	}
}

func TestRefusalsAreAskedAgainLaterAndLater(t *testing.T) {
	h := NewHealth(Options{Concurrency: 10, Revalidate: time.Hour}, true, epoch)
	now := epoch
	var waits []time.Duration
	for range 10 {
		if !h.AskNow(now) {
			t.Fatal("not asked")
		}
		h.Asked(Consent{Why: "no", At: now}, nil, now)
		waits = append(waits, h.Next(now).Sub(now))
		now = h.Next(now)
	}
	if waits[0] != askFirst || waits[1] != 2*askFirst || waits[9] != askMost {
		t.Errorf("waits %v", waits)
	}
}

func TestInstancesObeyOneAnother(t *testing.T) {
	a, b := health(nil), health(nil)
	pass := func(from, to *Health, byHand bool, now time.Time) { to.Apply(from.Record(byHand, now), now) }
	asked := tooMuch
	asked.Pause = time.Hour
	one(t, a, asked, 1, epoch)
	pass(a, b, false, epoch)
	if s := b.Status(epoch); s.State != Throttled || s.Until != epoch.Add(time.Hour) {
		t.Errorf("the other instance does not wait: %+v", s)
	}
	now := epoch.Add(2 * time.Hour)
	one(t, a, gone, 1, now)
	pass(a, b, false, now)
	if b.Free(now) != 0 || b.Status(now).State != Disabled {
		t.Error("the other instance sends to an endpoint that is gone")
	}
	pass(health(nil), b, false, now)
	if b.Status(now).State != Disabled {
		t.Error("an instance that had not heard enabled it")
	}
	a.Enable("by hand", now)
	pass(a, b, true, now)
	if b.Free(now) == 0 {
		t.Error("the other instance does not know that it is enabled")
	}
	for i := range uint64(10) {
		one(t, a, failing, i, now)
	}
	pass(a, b, false, now)
	if b.Free(now) != 0 || b.Status(now).State != Open || b.Next(now) != a.Next(now) {
		t.Error("the other instance does not know that it is broken")
	}
	now = a.Next(now)
	one(t, a, ok, 1, now)
	pass(a, b, false, now)
	if b.Free(now) == 0 {
		t.Error("the other instance does not know that it is back")
	}
}

func TestRestartedGatewayRemembersSinceWhenAnEndpointFails(t *testing.T) {
	h := health(nil)
	now := epoch
	for i := range uint64(10) {
		one(t, h, failing, i, now)
	}
	r := h.Record(false, now)
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	fresh := NewHealth(h.options, false, now.Add(time.Minute))
	fresh.Apply(again, now.Add(time.Minute))
	if s := fresh.Status(now.Add(time.Minute)); s.State != Open || s.FailingSince != epoch || s.Reason != "500" {
		t.Errorf("%+v", s)
	}
}

// TestHealthHoldsWhateverHappens draws anything that can happen, in any order.
func TestHealthHoldsWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 100).Draw(t, "concurrency")
		rate := rapid.SampledFrom([]float64{0, 1, 50}).Draw(t, "rate")
		h := NewHealth(Options{Concurrency: most, Rate: rate, DisableAfter: 50 * time.Hour, Revalidate: time.Hour}, rapid.Bool().Draw(t, "asks"), epoch)
		now := epoch
		var begun []time.Time
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "time")))
			case 1, 2:
				free := h.Free(now)
				if got := h.Admit(now); got != (free > 0) {
					t.Fatalf("free is %d and admit says %v", free, got)
				}
				if free > 0 {
					begun = append(begun, now)
				}
			case 3, 4:
				if len(begun) > 0 {
					o := rapid.SampledFrom([]Outcome{ok, ok, failing, tooMuch, timedOut, gone}).Draw(t, "outcome")
					c := h.Done(o, uint64(rapid.IntRange(0, 9).Draw(t, "lane")), begun[0], now)
					begun = begun[1:]
					if c.From != c.To && c.To != Active && !c.Save {
						t.Fatalf("a change that is not saved: %+v", c)
					}
				}
			case 5:
				if h.AskNow(now) {
					if rapid.Bool().Draw(t, "granted") {
						h.Asked(Consent{Granted: true, PerMinute: rapid.SampledFrom([]int{0, 60, 1}).Draw(t, "a minute"), At: now}, nil, now)
					} else {
						h.Asked(Consent{}, errors.New("no"), now)
					}
				}
			case 6:
				h.Apply(Record{
					State: rapid.SampledFrom([]State{Active, Throttled, Open, Disabled}).Draw(t, "state"),
					Until: now.Add(time.Minute), At: now, ByHand: rapid.Bool().Draw(t, "by hand"),
				}, now)
			}
			free, s, next := h.Free(now), h.Status(now), h.Next(now)
			if free < 0 || s.InFlight != len(begun) || s.Limit < 1 || s.Limit > most {
				t.Fatalf("%+v, %d free, %d under way", s, free, len(begun))
			}
			if s.State == Active && free > 0 && s.InFlight+free > s.Limit {
				t.Fatalf("%d are free beside %d of %d", free, s.InFlight, s.Limit)
			}
			if (s.State == Throttled || s.State == Disabled) && free > 0 {
				t.Fatalf("%d are free while %s", free, s.State)
			}
			// Nothing stands still for ever: it is disabled, or something is under way, or time helps.
			if free == 0 && len(begun) == 0 && s.State != Disabled && !h.asking && next.IsZero() {
				t.Fatalf("nothing will ever be sent again: %+v", s)
			}
			if free > math.MaxInt16 {
				t.Fatalf("%d are free", free)
			}
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	b, _ := Record{Subscription: "mail", State: Throttled, Until: epoch, Consent: &Consent{Granted: true}}.Encode()
	f.Add(b)
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			return // a year that JSON cannot write
		}
		if _, err := ParseRecord(again); err != nil && len(again) <= maxRecord {
			t.Errorf("%s is not read again: %v", again, err)
		}
	})
}

func FuzzParseAttempt(f *testing.F) {
	f.Add((&Attempt{WebhookID: "msg_x", At: epoch}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAttempt(b)
		if err != nil || a.At.Year() > 9999 {
			return
		}
		if again, err := ParseAttempt(a.Append(nil)); err == nil && !reflect.DeepEqual(a, again) && len(a.Keys) > 0 {
			t.Errorf("%+v became %+v", a, again)
		}
	})
}

func TestAttemptsAreWrittenAsEncodingJSONWritesThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := func(name string) string { return rapid.OneOf(rapid.Just(""), rapid.String()).Draw(t, name) }
		took := func(name string) float64 {
			if rapid.Bool().Draw(t, name+" of other digits") {
				return rapid.Float64Range(0.001, 1e9).Draw(t, name)
			}
			return milliseconds(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, name)))
		}
		a := Attempt{
			WebhookID: text("id"), Subscription: text("subscription"), Topic: text("topic"), Partition: rapid.Int32().Draw(t, "partition"), Offset: rapid.Int64().Draw(t, "offset"),
			EventID: text("event"), EventSource: text("source"), Number: rapid.IntRange(0, 99).Draw(t, "number"), Replay: rapid.Bool().Draw(t, "replay"),
			BatchID: text("batch"), BatchSize: rapid.IntRange(0, 9).Draw(t, "size"), At: time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "at"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			Action: text("action"), Class: text("class"), Status: rapid.IntRange(0, 599).Draw(t, "status"), Why: text("why"), Host: text("host"),
			Keys: rapid.SliceOf(rapid.String()).Draw(t, "keys"), DNS: took("dns"), Connect: took("connect"), TLS: took("tls"), FirstByte: took("first"), Total: took("total"),
			TraceID: text("trace"), SpanID: text("span"), Instance: text("instance"),
		}
		got := a.Append(nil)
		a.Version = attemptVersion
		want, err := json.Marshal(a)
		if err != nil || string(got) != string(want) {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
	})
}
