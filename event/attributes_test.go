package event

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestAttributesReadInPlaceAreThoseOfTheEvent compares Attributes with Event on
// records of every kind, wrong ones included.
func TestAttributesReadInPlaceAreThoseOfTheEvent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &Record{}
		names := rapid.SliceOfN(rapid.SampledFrom([]string{"ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "ce_region", "ce_", "ce_Bad", "content-type", "x"}), 0, 9).Draw(t, "names")
		if rapid.Bool().Draw(t, "begins as a CloudEvent") {
			names = append([]string{"ce_specversion", "ce_id", "ce_source", "ce_type"}, names...)
		}
		for _, name := range names {
			value := map[string]string{"ce_specversion": "1.0", "ce_time": "2026-01-31T10:00:00Z"}[name]
			if value == "" || rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				value = rapid.SampledFrom([]string{"a", "b", "", "\xff"}).Draw(t, "value")
			}
			r.Headers = append(r.Headers, Header{name, []byte(value)})
		}
		e, a := r.Event(), r.Attributes()
		if a.CloudEvent != e.IsCloudEvent() {
			t.Fatalf("%v: CloudEvent is %v", r.Headers, a.CloudEvent)
		}
		when := ""
		if !e.Time.IsZero() {
			when = e.Time.Format(time.RFC3339Nano)
		}
		for name, want := range map[string]string{
			"id": e.ID, "source": e.Source, "type": e.Type, "subject": e.Subject, "time": when, "datacontenttype": e.ContentType, "region": e.Extension("region"), "nothere": "",
		} {
			if got, ok := a.Get(name); string(got) != want || ok && want == "" && name != "region" {
				t.Fatalf("%v: %s is %q %v, want %q", r.Headers, name, got, ok, want)
			}
		}
		for _, h := range e.Headers {
			if a.CloudEvent && a.IsAttribute(h.Name) && h.Name != HeaderContentType {
				t.Fatalf("%v: %s is taken for an attribute", r.Headers, h.Name)
			}
		}
	})
}
