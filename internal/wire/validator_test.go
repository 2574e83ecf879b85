package wire

import (
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func TestTheHandsCheckPassesNothingThatTheProtosRulesRefuse(t *testing.T) {
	rules, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	topics := rapid.SampledFrom([]string{"orders", "orders", "stock", "a", "a.b", "x_y", "T-9", "a.b_c-D9", "", "..", "a b", "caf\u00e9", strings.Repeat("x", 249), strings.Repeat("x", 250)})
	refused, passed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		m := &posternv1.PublishRequest{Topic: topics.Draw(t, "topic"), Durability: posternv1.Durability(rapid.SampledFrom([]int{-1, 0, 0, 1, 1, 2, 2, 3}).Draw(t, "durability"))}
		for range rapid.SampledFrom([]int{0, 1, 1, 2, 3}).Draw(t, "events") {
			m.Events = append(m.Events, nil)
		}
		var shared *posternv1.Event
		for i := range m.Events {
			if i > 2 { // of the many only their number counts
				m.Events[i] = shared
				continue
			}
			e := &posternv1.Event{DedupeKey: strings.Repeat("k", rapid.SampledFrom([]int{0, 0, 7, 512, 513}).Draw(t, "key"))}
			if rapid.Bool().Draw(t, "has topic") {
				e.Topic = topics.Draw(t, "event topic")
			}
			if rapid.Bool().Draw(t, "has partition") {
				e.Partition = proto.Int32(rapid.SampledFrom([]int32{-1, 0, 1, 2, 3}).Draw(t, "partition"))
			}
			seconds := rapid.SampledFrom([]int64{noTime - 1, noTime, noTime, noTime + 1, 0, 0, 0, 1 << 40})
			if rapid.Bool().Draw(t, "has time") {
				e.Time = &timestamppb.Timestamp{Seconds: seconds.Draw(t, "time"), Nanos: rapid.SampledFrom([]int32{0, 1}).Draw(t, "nanos")}
			}
			if rapid.Bool().Draw(t, "has timestamp") {
				e.Timestamp = &timestamppb.Timestamp{Seconds: seconds.Draw(t, "timestamp")}
			}
			name := rapid.SampledFrom([]string{"a", "a", "b7", "b7", "ext1", "", "A", "a-b", "data"}).Draw(t, "name")
			for range rapid.SampledFrom([]int{0, 0, 0, 1, 128, 129}).Draw(t, "extensions") {
				e.Extensions = append(e.Extensions, &posternv1.Attribute{Name: name})
			}
			for range rapid.SampledFrom([]int{0, 0, 0, 1024, 1025}).Draw(t, "headers") {
				e.Headers = append(e.Headers, &posternv1.Header{})
			}
			m.Events[i], shared = e, e
		}
		err := rules.Validate(m)
		if plain(m) {
			passed++
			if err != nil {
				t.Fatalf("passed by hand, and: %v", err)
			}
		}
		if err != nil {
			refused++
		}
	})
	if passed == 0 || refused == 0 {
		t.Errorf("%d passed by hand, %d were refused: the test shows nothing", passed, refused)
	}
}

func TestWhatTheHandsDoNotPassGetsProtovalidatesWords(t *testing.T) {
	rules, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	v := Validator{rules}
	if err := v.Validate(&posternv1.PublishRequest{Topic: "orders", Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil {
		t.Error(err)
	}
	many := &posternv1.PublishRequest{Topic: "orders"}
	for range 10_001 {
		many.Events = append(many.Events, &posternv1.Event{})
	}
	if err := v.Validate(many); err == nil || plain(many) {
		t.Error("10,001 events pass")
	}
	many.Events = many.Events[1:]
	if err := v.Validate(many); err != nil || !plain(many) {
		t.Errorf("10,000 events: %v", err)
	}
	if err := v.Validate(&posternv1.PublishStreamRequest{Sequence: 1}); err == nil || !strings.Contains(err.Error(), "request") {
		t.Errorf("a stream's message without a request: %v", err)
	}
	if err := v.Validate(&posternv1.PublishRequest{Topic: "a b"}); err == nil || !strings.Contains(err.Error(), "topic") || !strings.Contains(err.Error(), "events") {
		t.Errorf("both faults are not named: %v", err)
	}
}

func TestTheRulesAreCompiledWhenTheyAreNeeded(t *testing.T) {
	rules := &Rules{Compile: func() (protovalidate.Validator, error) {
		return protovalidate.New(protovalidate.WithMessages(&posternv1.PublishRequest{}))
	}}
	v := Validator{rules}
	if err := v.Validate(&posternv1.PublishRequest{Topic: "t", Events: []*posternv1.Event{{}}}); err != nil || rules.compiled != nil {
		t.Errorf("a plain request: %v, compiled %v", err, rules.compiled != nil)
	}
	if err := v.Validate(&posternv1.PublishRequest{Topic: "no topic", Events: []*posternv1.Event{{}}}); err == nil || rules.compiled == nil {
		t.Errorf("one that breaks a rule: %v", err)
	}
}

// The first moment of the year 1 was taken for no time: the event was stored without.
func TestTheFirstMomentOfTheYear1IsNotTakenForNone(t *testing.T) {
	rules, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	first := timestamppb.New(time.Time{})
	v := Validator{Validator: rules}
	for name, e := range map[string]*posternv1.Event{"time": {Time: first}, "timestamp": {Timestamp: first}} {
		err := v.Validate(&posternv1.PublishRequest{Topic: "orders", Events: []*posternv1.Event{e}})
		if err == nil || !strings.Contains(err.Error(), "events[0]."+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	later := timestamppb.New(time.Time{}.Add(1))
	if err := v.Validate(&posternv1.PublishRequest{Topic: "orders", Events: []*posternv1.Event{{Time: later, Timestamp: later}}}); err != nil {
		t.Error(err)
	}
	if e := FromEvent(&posternv1.Event{Time: later}); e.Time.IsZero() {
		t.Error("a nanosecond later is taken for none")
	}
}
