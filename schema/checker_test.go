package schema

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// shelf is a registry in memory that can be made slow or be taken away.
type shelf struct {
	mu       sync.Mutex
	subjects map[string][]Registered
	ids      map[int]Definition
	down     bool
	slow     time.Duration
	asked    atomic.Int64
}

func newShelf() *shelf { return &shelf{subjects: map[string][]Registered{}, ids: map[int]Definition{}} }

var errDown = fault.New(fault.RegistryUnavailable, "the registry is down")

func (s *shelf) ask() error {
	s.asked.Add(1)
	s.mu.Lock()
	slow, down := s.slow, s.down
	s.mu.Unlock()
	time.Sleep(slow) // in a bubble
	if down {
		return errDown
	}
	return nil
}

func (s *shelf) set(down bool, slow time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down, s.slow = down, slow
}

func (s *shelf) put(subject string, d Definition) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, known := range s.ids {
		if known.Text == d.Text && known.Format == d.Format {
			s.subjects[subject] = append(s.subjects[subject], Registered{subject, len(s.subjects[subject]) + 1, id, d})
			return id
		}
	}
	id := len(s.ids) + 1
	s.ids[id] = d
	s.subjects[subject] = append(s.subjects[subject], Registered{subject, len(s.subjects[subject]) + 1, id, d})
	return id
}

func (s *shelf) ByID(_ context.Context, id int) (Definition, error) {
	if err := s.ask(); err != nil {
		return Definition{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.ids[id]
	if !ok {
		return d, fault.New(fault.UnknownSchema, "no schema %d", id)
	}
	return d, nil
}

func (s *shelf) At(_ context.Context, subject string, n int) (Registered, error) {
	if err := s.ask(); err != nil {
		return Registered{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.subjects[subject]
	if n == Latest {
		n = len(all)
	}
	if n < 1 || n > len(all) {
		return Registered{}, fault.New(fault.UnknownSchema, "no version %d of %s", n, subject)
	}
	return all[n-1], nil
}

func (s *shelf) Find(_ context.Context, subject string, d Definition) (Registered, error) {
	if err := s.ask(); err != nil {
		return Registered{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.subjects[subject] {
		if r.Text == d.Text {
			return r, nil
		}
	}
	return Registered{}, fault.New(fault.UnknownSchema, "not under %s", subject)
}

func (s *shelf) Register(_ context.Context, subject string, d Definition) (int, error) {
	if err := s.ask(); err != nil {
		return 0, err
	}
	return s.put(subject, d), nil
}

func (s *shelf) Versions(_ context.Context, subject string) ([]int, error) {
	if err := s.ask(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []int
	for _, r := range s.subjects[subject] {
		all = append(all, r.Version)
	}
	return all, nil
}

func checkerOf(t testing.TB, s *shelf, rules Rules) *Checker {
	c := NewChecker([]TopicRules{{"orders*", rules}}, NewRegistry(s, 30*time.Second))
	t.Cleanup(c.Close)
	return c
}

const (
	v1 = `{"type":"record","name":"Order","namespace":"shop","fields":[{"name":"id","type":"string"}]}`
	v2 = `{"type":"record","name":"Order","namespace":"shop","fields":[{"name":"id","type":"string"},{"name":"qty","type":"int","default":1}]}`
)

func avroDef(text string) Definition { return Definition{Format: Avro, Text: text} }

func reasonOf(err error) fault.Reason {
	if err == nil {
		return ""
	}
	return fault.Of(err).Reason
}

func TestRulesOfATopic(t *testing.T) {
	s := newShelf()
	id := s.put("orders-value", avroDef(v1))
	s.put("orders-key", avroDef(`"long"`))
	other := s.put("elsewhere", avroDef(`"int"`))
	for name, one := range map[string]struct {
		rules  Rules
		topic  string
		event  event.Event
		reason fault.Reason
		data   string
	}{
		"off passes anything":            {Rules{}, "orders", event.Event{Data: []byte("?")}, "", "?"},
		"another topic passes anything":  {Rules{Value: PartRules{Rule: Encode}}, "others", event.Event{Data: []byte("?")}, "", "?"},
		"validate keeps the bytes":       {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(` {"id":"a"}`)}, "", ` {"id":"a"}`},
		"validate refuses":               {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`{"id":1}`)}, fault.SchemaRefused, ""},
		"encode writes the wire format":  {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{Data: []byte(`{"id":"a"}`)}, "", fmt.Sprintf("\x00\x00\x00\x00%c\x02a", id)},
		"wire format passes":             {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{Data: []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x02a", id))}, "", fmt.Sprintf("\x00\x00\x00\x00%c\x02a", id)},
		"broken wire format does not":    {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{Data: []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x04a", id))}, fault.SchemaRefused, ""},
		"nor that of another subject":    {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{Data: []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x02", other))}, fault.SchemaRefused, ""},
		"nor that of an unknown schema":  {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{Data: []byte("\x00\x00\x00\x01\x00\x02")}, fault.UnknownSchema, ""},
		"a tombstone passes":             {Rules{Value: PartRules{Rule: Encode}}, "orders", event.Event{}, "", ""},
		"no subject":                     {Rules{Value: PartRules{Rule: Encode}}, "orders-x", event.Event{Data: []byte(`{}`)}, fault.UnknownSchema, ""},
		"pinned to a missing version":    {Rules{Value: PartRules{Rule: Encode, Version: Version{Number: 9}}}, "orders", event.Event{Data: []byte(`{}`)}, fault.UnknownSchema, ""},
		"a fixed subject":                {Rules{Value: PartRules{Rule: Validate, Subject: "elsewhere"}}, "orders", event.Event{Data: []byte(`7`)}, "", "7"},
		"a key that is none":             {Rules{Key: PartRules{Rule: Encode}}, "orders", event.Event{Key: []byte("anna"), Data: []byte("?")}, fault.SchemaRefused, ""},
		"a record's subject is needed":   {Rules{Value: PartRules{Rule: Encode, SubjectStrategy: ByRecord}}, "orders", event.Event{Data: []byte(`{}`)}, fault.SchemaRefused, ""},
		"an id that is not the rule's":   {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`7`), SchemaID: int32(other)}, fault.SchemaRefused, ""},
		"dataschema of another subject":  {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`7`), DataSchema: "http://r/subjects/elsewhere/versions/1"}, fault.SchemaRefused, ""},
		"dataschema that says the same":  {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`{"id":"a"}`), DataSchema: "http://r/subjects/orders-value/versions/latest"}, "", `{"id":"a"}`},
		"dataschema that is not ours":    {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`{"id":"a"}`), DataSchema: "https://example.com/order.json"}, "", `{"id":"a"}`},
		"id and version":                 {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`{"id":"a"}`), SchemaID: 1, SchemaVersion: 1}, fault.InvalidArgument, ""},
		"something that is not JSON":     {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte(`id=a`)}, fault.SchemaRefused, ""},
		"an empty payload is not a null": {Rules{Value: PartRules{Rule: Validate}}, "orders", event.Event{Data: []byte{}}, fault.SchemaRefused, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := one.event
			err := checkerOf(t, s, one.rules).Check(t.Context(), one.topic, &e)
			if reasonOf(err) != one.reason {
				t.Fatalf("%v, want %s", err, one.reason)
			}
			if err == nil && string(e.Data) != one.data {
				t.Errorf("the data became %q, want %q", e.Data, one.data)
			}
		})
	}
	e := event.Event{Key: []byte("7"), Data: []byte("?")}
	if err := checkerOf(t, s, Rules{Key: PartRules{Rule: Encode}}).Check(t.Context(), "orders", &e); err != nil || string(e.Key) != "\x00\x00\x00\x00\x02\x0e" {
		t.Errorf("%x %v", e.Key, err)
	}
}

func TestPublisherChoosesTheVersion(t *testing.T) {
	s := newShelf()
	s.put("orders-value", avroDef(v1))
	s.put("orders-value", avroDef(v2))
	s.put("shop.Order", avroDef(v1))
	s.put("orders-shop.Order", avroDef(v2))
	for name, one := range map[string]struct {
		strategy Strategy
		event    event.Event
		id       byte
	}{
		"nothing said":           {"", event.Event{}, 2},
		"by id":                  {"", event.Event{SchemaID: 1}, 1},
		"by version":             {"", event.Event{SchemaVersion: 1}, 1},
		"by dataschema's id":     {"", event.Event{DataSchema: "/schemas/ids/1"}, 1},
		"by dataschema":          {"", event.Event{DataSchema: "http://r/apis/ccompat/v7/subjects/orders-value/versions/1"}, 1},
		"record, by dataschema":  {ByRecord, event.Event{DataSchema: "x/subjects/shop.Order/versions/latest"}, 1},
		"topic and record by id": {ByTopicRecord, event.Event{SchemaID: 2}, 2},
	} {
		e := one.event
		e.Data = []byte(`{"id":"a"}`)
		c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode, Version: Version{Publisher: true}, SubjectStrategy: one.strategy}})
		if err := c.Check(t.Context(), "orders", &e); err != nil || e.Data[4] != one.id {
			t.Errorf("%s: %x %v, want schema %d", name, e.Data, err, one.id)
		}
	}
}

func TestRefusalsAreData(t *testing.T) {
	s := newShelf()
	s.put("orders-value", avroDef(v2))
	e := event.Event{Data: []byte(`{"id":7,"qty":"x"}`)}
	err := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}}).Check(t.Context(), "orders", &e)
	f := fault.Of(err)
	for name, want := range map[string]string{"topic": "orders", "part": "value", "subject": "orders-value", "version": "1", "schema_id": "1", "format": "AVRO"} {
		if f.Metadata[name] != want {
			t.Errorf("%s is %q, want %q", name, f.Metadata[name], want)
		}
	}
	if len(f.Violations) != 2 || f.Violations[1] != (fault.Violation{Field: "/qty", Rule: "avro.type", Expected: "int", Got: `string "x"`, Description: `avro.type: expected int, got string "x"`}) {
		t.Errorf("%+v", f.Violations)
	}
	e.Data = []byte(`{"id":"a","x":[` + strings.Repeat("1,", 100) + `1]` + strings.Repeat(`,"y":1`, 1) + `}`)
	if err := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}}).Check(t.Context(), "orders", &e); reasonOf(err) != fault.SchemaRefused {
		t.Error(err)
	}
}

func TestNewVersionIsSeenWithinTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put("orders-value", avroDef(v1))
		c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}})
		id := func() byte {
			e := event.Event{Data: []byte(`{"id":"a"}`)}
			if err := c.Check(t.Context(), "orders", &e); err != nil {
				t.Fatal(err)
			}
			return e.Data[4]
		}
		id()
		s.put("orders-value", avroDef(v2))
		time.Sleep(29 * time.Second)
		if id() != 1 {
			t.Error("the registry was asked before the TTL was over")
		}
		time.Sleep(2 * time.Second)
		if id() != 2 {
			t.Error("the new version is not seen after the TTL")
		}
		if n := s.asked.Load(); n > 4 {
			t.Errorf("the registry was asked %d times", n)
		}
	})
}

func TestKnownSchemasServeWhileTheRegistryIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put("orders-value", avroDef(v1))
		s.put("orders-new-value", avroDef(v1))
		c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}})
		publish := func(topic string) error {
			e := event.Event{Data: []byte(`{"id":"a"}`)}
			return c.Check(t.Context(), topic, &e)
		}
		if err := publish("orders"); err != nil {
			t.Fatal(err)
		}
		s.set(true, 0)
		for range 60 { // an hour
			time.Sleep(time.Minute)
			if err := publish("orders"); err != nil {
				t.Fatal(err)
			}
		}
		if err := publish("orders-new"); reasonOf(err) != fault.RegistryUnavailable || fault.KindOf(err) != fault.KindUnavailable {
			t.Errorf("%v", err)
		}
		s.set(false, 0)
		time.Sleep(2 * time.Second)
		if err := publish("orders-new"); err != nil {
			t.Errorf("the registry is back: %v", err)
		}
		// One that hangs costs a known schema a moment, not its time.
		s.set(false, time.Hour)
		time.Sleep(time.Minute)
		began := time.Now()
		if err := publish("orders"); err != nil || time.Since(began) > staleWait {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if began = time.Now(); publish("orders") != nil || time.Since(began) > 0 {
			t.Errorf("the next one waited too: %s", time.Since(began))
		}
		bounded, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		e := event.Event{Data: []byte(`{}`)}
		if err := c.Check(bounded, "orders-other", &e); reasonOf(err) != fault.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		time.Sleep(2 * time.Hour)
	})
}

func TestAHundredAskersCauseOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put("orders-value", avroDef(v1))
		s.set(false, time.Second)
		c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				if i == 0 { // the first goes away: the others still get it
					ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
				}
				defer cancel()
				e := event.Event{Data: []byte(`{"id":"a"}`)}
				if err := c.Check(ctx, "orders", &e); err != nil && i > 0 {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := s.asked.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestSchemaIsRegisteredOnlyByExplicitRule(t *testing.T) {
	s := newShelf()
	e := event.Event{Data: []byte(`{"id":"a"}`)}
	c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}})
	if err := c.Check(t.Context(), "orders", &e); reasonOf(err) != fault.UnknownSchema || len(s.ids) != 0 {
		t.Errorf("%v", err)
	}
	c = checkerOf(t, s, Rules{Value: PartRules{Rule: Encode, Register: v1}})
	for range 3 {
		e := event.Event{Data: []byte(`{"id":"a"}`)}
		if err := c.Check(t.Context(), "orders", &e); err != nil || e.Data[4] != 1 {
			t.Errorf("%v", err)
		}
	}
	if len(s.subjects["orders-value"]) != 1 {
		t.Errorf("%v", s.subjects)
	}
}

func TestReferencesAreResolvedAndBounded(t *testing.T) {
	s := newShelf()
	s.put("person", Definition{Format: Avro, Text: `{"type":"record","name":"Person","fields":[{"name":"home","type":"Home"}]}`, References: []Reference{{"Home", "home", 1}}})
	s.put("home", Definition{Format: Avro, Text: `{"type":"record","name":"Home","fields":[{"name":"town","type":"string","default":"?"}]}`})
	s.put("orders-value", Definition{
		Format: Avro, Text: `{"type":"record","name":"Order","fields":[{"name":"who","type":"Person"},{"name":"to","type":"Home"}]}`,
		References: []Reference{{"Person", "person", 1}, {"Home", "home", 1}},
	})
	s.put("orders-loop-value", Definition{Format: Avro, Text: `"int"`, References: []Reference{{"X", "orders-loop-value", 1}}})
	s.put("orders-missing-value", Definition{Format: Avro, Text: `"long"`, References: []Reference{{"X", "nowhere", 1}}})
	c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode}})
	e := event.Event{Data: []byte(`{"to":{},"who":{"home":{"town":"Ulm"}}}`)}
	if err := c.Check(t.Context(), "orders", &e); err != nil || string(e.Data[5:]) != "\x06Ulm\x02?" {
		t.Errorf("%q %v", e.Data, err)
	}
	for topic, want := range map[string]fault.Reason{"orders-loop": "", "orders-missing": fault.UnknownSchema} {
		e := event.Event{Data: []byte(`7`)}
		if err := c.Check(t.Context(), topic, &e); reasonOf(err) != want {
			t.Errorf("%s: %v", topic, err)
		}
	}
}

func TestViewGivesJSONWhateverTheTopicHolds(t *testing.T) {
	s := newShelf()
	old := s.put("orders-value", avroDef(v1))
	s.put("orders-value", avroDef(v2))
	person := s.put("p", Definition{Format: Protobuf, Text: personProto})
	plain := checkerOf(t, s, Rules{})
	latest := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode, ReadAs: "latest"}})
	avroBytes := []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x02a", old))
	header := func(v string) []event.Header { return []event.Header{{Name: "content-type", Value: []byte(v)}} }
	for name, one := range map[string]struct {
		c       *Checker
		value   []byte
		headers []event.Header
		want    string
		media   string
		reason  fault.Reason
	}{
		"Avro":                         {plain, avroBytes, header("application/vnd.confluent.avro"), `{"id":"a"}`, "application/json", ""},
		"the reader's schema":          {latest, avroBytes, nil, `{"id":"a","qty":1}`, "application/json", ""},
		"Protobuf":                     {plain, []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x00\x0a\x01b", person)), nil, `{"name":"b"}`, "application/json", ""},
		"JSON":                         {plain, []byte(`{"x":1}`), header("application/merge-patch+json"), `{"x":1}`, "application/merge-patch+json", ""},
		"JSON that is not called so":   {plain, []byte(`1`), header("text/plain"), `1`, "application/json", ""},
		"text":                         {plain, []byte(`hello`), nil, "", "", fault.Undecodable},
		"an unknown schema":            {plain, []byte("\x00\x00\x00\x01\x00a"), nil, "", "", fault.Undecodable},
		"cut bytes":                    {plain, avroBytes[:6], nil, "", "", fault.Undecodable},
		"cut for the reader":           {latest, avroBytes[:6], nil, "", "", fault.Undecodable},
		"Protobuf for a topic of Avro": {latest, []byte(fmt.Sprintf("\x00\x00\x00\x00%c\x00\x0a\x01b", person)), nil, "", "", fault.Undecodable},
		"bad index":                    {plain, []byte(fmt.Sprintf("\x00\x00\x00\x00%c\xff", person)), nil, "", "", fault.Undecodable},
	} {
		r := &event.Record{Topic: "orders", Value: one.value, Headers: one.headers}
		seen, err := one.c.View(t.Context(), r)
		if reasonOf(err) != one.reason {
			t.Errorf("%s: %v, want %s", name, err, one.reason)
			continue
		}
		if err != nil {
			continue
		}
		media, _ := seen.Header("content-type")
		if string(seen.Value) != one.want || string(media) != one.media {
			t.Errorf("%s: %s as %s", name, seen.Value, media)
		}
	}
	if seen, err := plain.View(t.Context(), &event.Record{Topic: "orders"}); err != nil || seen.Value != nil {
		t.Errorf("a tombstone: %v %v", seen, err)
	}
	s.set(true, 0)
	if _, err := plain.View(t.Context(), &event.Record{Topic: "orders", Value: []byte("\x00\x00\x00\x00\x63x")}); reasonOf(err) != fault.RegistryUnavailable {
		t.Errorf("a registry that is down: %v", err)
	}
}

func TestViewReadsProtobufByTheReadersMessageOfThatName(t *testing.T) {
	s := newShelf()
	old := s.put("orders-value", Definition{Format: Protobuf, Text: `syntax = "proto3"; message A { string x = 1; } message B { string y = 1; }`})
	s.put("orders-value", Definition{Format: Protobuf, Text: `syntax = "proto3"; message B { string y = 1; string z = 2; } message A { string x = 1; }`})
	c := checkerOf(t, s, Rules{Value: PartRules{Rule: Encode, ReadAs: "latest"}})
	for index, want := range map[string]string{"\x00": `{"x":"v"}`, "\x02\x02": `{"y":"v"}`} {
		seen, err := c.View(t.Context(), &event.Record{Topic: "orders", Value: []byte(fmt.Sprintf("\x00\x00\x00\x00%c%s\x0a\x01v", old, index))})
		if err != nil || string(seen.Value) != want {
			t.Errorf("%v %v, want %s", seen, err, want)
		}
	}
}

func TestAskingForWhatDoesNotExistDrivesNothingOut(t *testing.T) {
	var work sync.WaitGroup
	fetched := 0
	c := newCache(t.Context(), &work, 0, 3, func(_ context.Context, k int) (int, error) {
		fetched++
		if k > 2 {
			return 0, fault.New(fault.UnknownSchema, "no %d", k)
		}
		return k, nil
	})
	for k := range 1000 {
		for _, good := range []int{1, 2} {
			if v, err := c.get(t.Context(), good); v != good || err != nil {
				t.Fatal(v, err)
			}
		}
		if _, err := c.get(t.Context(), k+3); !fault.Is(err, fault.UnknownSchema) {
			t.Fatal(err)
		}
	}
	work.Wait()
	if fetched != 1002 || len(c.entries) > 3 {
		t.Errorf("%d fetches, %d entries", fetched, len(c.entries))
	}
}

func TestNothingIsAllocatedForATopicWithoutARule(t *testing.T) {
	c := checkerOf(t, newShelf(), Rules{Value: PartRules{Rule: Encode}})
	e := &event.Event{Data: []byte("x"), Key: []byte("k")}
	for name, checker := range map[string]*Checker{"no rule at all": {}, "a rule for others": c} {
		if err := checker.Check(t.Context(), "plain", e); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			if err := checker.Check(context.Background(), "plain", e); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestRulesAreCheckedWithTheConfiguration(t *testing.T) {
	err := Rules{
		Value: PartRules{Rule: "maybe", SubjectStrategy: "x", JSON: "y", ReadAs: "z", Format: "xml"},
		Key:   PartRules{Rule: Encode, Register: `{"type":"nope"}`, Version: Version{Number: 1}, Subject: "s", SubjectStrategy: ByTopic},
	}.Validate()
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 8 {
		t.Errorf("%v", err)
	}
}
