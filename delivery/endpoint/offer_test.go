package endpoint

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

func asking(target string) *Health {
	return NewHealth(Options{Concurrency: 4, Revalidate: time.Hour, Callback: true, Target: target}, true, epoch)
}

func TestCallbackConsentsOnceAndOnlyForWhatItWasOffered(t *testing.T) {
	now := epoch
	h := asking("a")
	if !h.Offered("x", now).Save {
		t.Error("an offer is not saved: another instance would not know it")
	}
	if c := h.Asked(Consent{Pending: true, Why: "it waits"}, nil, now); c.Notice != "" || h.Free(now) != 0 || h.Status(now).Reason != "it waits" {
		t.Errorf("%+v %+v", c, h.Status(now))
	}
	now = now.Add(5 * 24 * time.Hour)
	if _, ok := h.CalledBack("y", 60, now); ok || h.Free(now) != 0 {
		t.Fatal("a key that nobody offered consents")
	}
	if c, ok := h.CalledBack("x", 60, now); !ok || !c.Save || h.Free(now) == 0 || h.Status(now).Consent.PerMinute != 60 {
		t.Fatalf("%+v %+v", c, h.Status(now))
	}
	if _, ok := h.CalledBack("x", 0, now.Add(time.Second)); ok {
		t.Error("it consents twice")
	}
	// Not asked about again before its time, nor for another URL, nor after a week.
	if h.AskNow(now.Add(59*time.Minute)) || !h.AskNow(now.Add(time.Hour)) {
		t.Error("it is asked at another time than an hour later")
	}
	other := asking("b")
	other.Apply(h.Record(false, now), now)
	if other.Free(now) != 0 {
		t.Error("a consent for one URL is taken for another")
	}
	old := asking("a")
	old.Offered("x", epoch)
	if _, ok := old.CalledBack("x", 0, epoch.Add(offerLife)); ok {
		t.Error("an offer never ends")
	}
	if _, ok := NewHealth(Options{}, false, epoch).CalledBack("", 0, epoch); ok {
		t.Error("one that does not ask is called back")
	}
}

func TestCallbackMayComeToAnotherInstanceAndIsUsedUpOnAll(t *testing.T) {
	a, b, c := asking("a"), asking("a"), asking("a")
	a.Offered("from-a", epoch)
	b.Offered("from-b", epoch)
	tell := func(from *Health, to ...*Health) {
		text, err := from.Record(false, epoch).Encode()
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRecord(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range to {
			h.Apply(r, epoch)
		}
	}
	tell(a, b, c)
	tell(b, a, c)
	now := epoch.Add(time.Minute)
	if _, ok := c.CalledBack("from-a", 0, now); !ok {
		t.Fatal("the third does not know the first one's offer")
	}
	tell(c, a, b)
	for name, h := range map[string]*Health{"a": a, "b": b, "c": c} {
		if h.Free(now) == 0 {
			t.Errorf("%s has not heard of the consent", name)
		}
		for _, used := range []string{"from-a", "from-b"} {
			if _, ok := h.CalledBack(used, 0, now); ok {
				t.Errorf("%s takes %s after the consent", name, used)
			}
		}
	}
}

func TestCallbackThatIsNotConfirmedIsWorthAsLongAgain(t *testing.T) {
	h := asking("a")
	h.Offered("x", epoch)
	h.CalledBack("x", 0, epoch.Add(time.Second))
	for _, later := range []time.Duration{time.Hour, 119 * time.Minute} {
		if h.Asked(Consent{Pending: true, Why: "it waits"}, nil, epoch.Add(later)); h.Free(epoch.Add(later)) == 0 {
			t.Errorf("it is stopped %s later", later)
		}
	}
	end := epoch.Add(2*time.Hour + time.Second)
	if c := h.Asked(Consent{Pending: true, Why: "it waits"}, nil, end); c.Notice != NoticeConsent || h.Free(end) != 0 {
		t.Errorf("%+v", c)
	}
	h.Asked(Consent{}, errors.New("away"), end)
}

func TestOffersAreBoundedAndKeptAsHashes(t *testing.T) {
	h := asking("a")
	key := newOfferKey()
	for i := range 3 * maxOffers {
		h.Offered(hashOf(strconv.Itoa(i)), epoch.Add(time.Duration(i)*time.Second))
	}
	h.Offered(hashOf(key), epoch.Add(time.Hour))
	r := h.Record(false, epoch)
	text, err := r.Encode()
	if err != nil || len(r.Offers) != maxOffers || len(text) > maxRecord/2 || strings.Contains(string(text), key) || len(key) > 64 {
		t.Errorf("%d offers, %d bytes, %v", len(r.Offers), len(text), err)
	}
	if _, err := ParseRecord(text); err != nil || !json.Valid(text) {
		t.Error(err)
	}
	if newOfferKey() == key {
		t.Error("keys repeat")
	}
}
