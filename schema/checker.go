// Package schema owns whether an event fits its topic's schema, and what its
// bytes are by it: on the way in, JSON is checked, and written as Avro or
// Protobuf where the topic's rule says so (Checker); on the way out, whatever a
// topic holds is read as JSON for who asks for it (Checker.View).
//
// Schemas come from a registry that speaks Confluent's API (client.go), are
// compiled once and kept (registry.go, cache.go); bytes are in its wire format
// (wire.go). A payload is never published unchecked: when its schema is not
// known here and the registry does not answer, the publish fails and says so.
//
// JSON in and out is walked by one bounded parser (document.go). What does not
// fit is told in full, with a JSON pointer and the name of each rule (report.go).
package schema

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Media types of payloads in the wire format, which are no plain Avro, Protobuf or JSON.
var mediaOf = map[Format]string{
	Avro: "application/vnd.confluent.avro", Protobuf: "application/vnd.confluent.protobuf", JSON: "application/vnd.confluent.json",
}

const mediaJSON = "application/json"

// Checker checks events against their topics' rules. The zero Checker has the
// rule off for every topic, and no registry.
type Checker struct {
	registry *Registry
	rules    []TopicRules

	mu    sync.RWMutex
	known map[string]*topicRule // found before; nil: off
}

// maxKnown bounds the topics remembered; beyond it the rules are matched each time.
const maxKnown = 10_000

// NewChecker makes a Checker. registry may be nil when no rule needs one.
func NewChecker(rules []TopicRules, registry *Registry) *Checker {
	c := &Checker{registry: registry, known: map[string]*topicRule{}}
	for _, r := range rules {
		if r.Rules.On() {
			c.rules = rules
		}
	}
	return c
}

// Close ends what is being fetched.
func (c *Checker) Close() {
	if c.registry != nil {
		c.registry.Close()
	}
}

// topicRule is the rule for one topic; a nil part is off.
type topicRule struct{ value, key *partRule }

// partRule is the rule for the keys or values of one topic.
type partRule struct {
	PartRules
	part     string // value or key
	topic    string
	spelling Spelling
	registry *Registry
}

// of finds a topic's rule; nil is off.
func (c *Checker) of(topic string) *topicRule {
	if c.rules == nil {
		return nil
	}
	c.mu.RLock()
	t, known := c.known[topic]
	c.mu.RUnlock()
	if known {
		return t
	}
	for _, r := range c.rules {
		if ok, _ := path.Match(r.Match, topic); ok { // a bad glob was refused with the configuration
			if r.Rules.On() {
				t = &topicRule{c.partRule(r.Rules.Value, "value", topic), c.partRule(r.Rules.Key, "key", topic)}
			}
			break
		}
	}
	c.mu.Lock()
	if len(c.known) < maxKnown {
		c.known[topic] = t
	}
	c.mu.Unlock()
	return t
}

func (c *Checker) partRule(p PartRules, name, topic string) *partRule {
	if !p.on() {
		return nil
	}
	r := &partRule{PartRules: p, part: name, topic: topic, spelling: p.JSON, registry: c.registry}
	if r.spelling == "" {
		r.spelling = Plain
	}
	return r
}

// Check returns nil when e may be published to topic, else why not:
// SCHEMA_REFUSED with all that is wrong, or why that could not be told. When the
// topic's rule encodes, it replaces e's data, and the content type with it.
func (c *Checker) Check(ctx context.Context, topic string, e *event.Event) error {
	t := c.of(topic)
	if t == nil {
		return nil
	}
	if t.key != nil && e.Key != nil {
		key, _, err := t.key.admit(ctx, e.Key, choice{})
		if err != nil {
			return err
		}
		e.Key = key
	}
	if t.value == nil || e.Data == nil { // a tombstone has nothing to check
		return nil
	}
	chosen, err := choiceOf(e)
	if err != nil {
		return err
	}
	data, format, err := t.value.admit(ctx, e.Data, chosen)
	if err != nil {
		return err
	}
	if format != "" {
		e.Sent, e.Data, e.ContentType = e.Data, data, mediaOf[format]
	}
	return nil
}

// choice is the schema that an event names.
type choice struct {
	id      int
	subject string
	version int
}

// choiceOf reads which schema e names: by id or version, or by a dataschema that
// ends like the registry's own addresses, /schemas/ids/7 or /subjects/S/versions/3.
// Any other dataschema is the publisher's own and says nothing here.
func choiceOf(e *event.Event) (choice, error) {
	c := choice{id: int(e.SchemaID), version: int(e.SchemaVersion)}
	if c.id != 0 && c.version != 0 {
		return c, fault.New(fault.InvalidArgument, "the event names a schema by id and by version: send one").Field("schema_id", "not with schema_version")
	}
	if c != (choice{}) || e.DataSchema == "" {
		return c, nil
	}
	at := e.DataSchema
	if i := strings.LastIndex(at, "/schemas/ids/"); i >= 0 {
		if n, err := strconv.Atoi(at[i+len("/schemas/ids/"):]); err == nil && n > 0 {
			c.id = n
		}
		return c, nil
	}
	i := strings.LastIndex(at, "/subjects/")
	if i < 0 {
		return c, nil
	}
	subject, v, ok := strings.Cut(at[i+len("/subjects/"):], "/versions/")
	n, err := strconv.Atoi(v)
	if v == "latest" {
		n, err = Latest, nil
	}
	if !ok || err != nil || strings.Contains(subject, "/") {
		return c, nil
	}
	if c.subject, err = unescape(subject); err != nil {
		return c, nil
	}
	c.version = n
	return c, nil
}

// admit checks one key or value. The format is that of the bytes it gives
// instead, "" when it gives what it got.
func (p *partRule) admit(ctx context.Context, data []byte, chosen choice) ([]byte, Format, error) {
	if p.registry == nil {
		return nil, "", fault.New(fault.RegistryUnavailable, "topic %s has a schema rule and the gateway has no schema registry: set schema_registry.urls", p.topic)
	}
	if f, framed := parseFrame(data); framed {
		return data, "", p.admitFrame(ctx, f, chosen)
	}
	s, err := p.schema(ctx, chosen)
	if err != nil {
		return nil, "", err
	}
	r := &report{}
	payload, index := s.fromJSON(data, p.Record, p.spelling, r)
	if !r.ok() {
		return nil, "", p.refused(s, r)
	}
	if p.Rule == Validate {
		return data, "", nil
	}
	return seal(payload, s.id, index), s.format(), nil
}

// admitFrame checks bytes that come in the wire format: their schema must be one
// that the rule allows, and they must be of it.
func (p *partRule) admitFrame(ctx context.Context, f frame, chosen choice) error {
	if chosen.id != 0 && chosen.id != f.id {
		return p.mismatch("the event names schema %d and its bytes %d", chosen.id, f.id)
	}
	one, err := p.registry.byID(ctx, f.id)
	if err != nil {
		return p.where(err)
	}
	payload, index, ok := f.payload(one.format())
	if !ok {
		return p.refused(version{compiled: one}, bytesReport("protobuf.index", "the index of a message", "bytes that are none"))
	}
	subject, err := p.subject(one, index)
	if err != nil {
		return err
	}
	n, err := p.registry.versionOf(ctx, subject, f.id)
	if fault.Is(err, fault.UnknownSchema) {
		return p.mismatch("schema %d is not under the subject %s", f.id, subject)
	}
	if err != nil {
		return p.where(err)
	}
	if want := p.Version.Number; want != 0 && n != want || chosen.version > 0 && n != chosen.version {
		return p.mismatch("schema %d is version %d of the subject %s, not the one asked for", f.id, n, subject)
	}
	r := &report{}
	if one.check(payload, index, r); !r.ok() {
		return p.refused(version{subject, n, one}, r)
	}
	return nil
}

func bytesReport(rule, expected, got string) *report {
	r := &report{}
	r.add("", rule, expected, got)
	return r
}

// subject is where the rule has a schema.
func (p *partRule) subject(one codec, index []int) (string, error) {
	if p.Subject != "" {
		return p.Subject, nil
	}
	record := p.Record
	switch p.SubjectStrategy {
	case ByRecord, ByTopicRecord:
		if one != nil {
			record = one.recordName("", index)
		}
		if record == "" {
			return "", fault.New(fault.SchemaRefused, "topic %s has a subject for each record: name the schema with Postern-Schema-Id or dataschema, or set record in the topic's rule", p.topic).
				Field("schema_id", "needed here").With("topic", p.topic)
		}
		if p.SubjectStrategy == ByRecord {
			return record, nil
		}
		return p.topic + "-" + record, nil
	}
	return p.topic + "-" + p.part, nil
}

// schema finds the schema for a JSON payload.
func (p *partRule) schema(ctx context.Context, chosen choice) (version, error) {
	switch {
	case p.Register != "":
		subject, err := p.subject(nil, nil)
		if err != nil {
			return version{}, err
		}
		format, _ := ParseFormat(p.Format) // checked with the configuration
		v, err := p.registry.register(ctx, subject, format, p.Register)
		return v, p.where(err)
	case chosen == choice{}:
		subject, err := p.subject(nil, nil)
		if err != nil {
			return version{}, err
		}
		n := p.Version.Number
		if n == 0 {
			n = Latest
		}
		v, err := p.registry.at(ctx, subject, n)
		return v, p.where(err)
	}
	v, err := p.chosen(ctx, chosen)
	if err != nil {
		return version{}, err
	}
	if p.Version.Publisher {
		return v, nil
	}
	// Naming what would be taken anyway is no choice.
	n := p.Version.Number
	if n == 0 {
		n = Latest
	}
	ruled, err := p.registry.at(ctx, v.subject, n)
	if err != nil {
		return version{}, p.where(err)
	}
	if ruled.id != v.id {
		return version{}, p.mismatch("the event names schema %d; the topic's rule takes version %d of %s, schema %d, unless it says version: publisher", v.id, ruled.number, ruled.subject, ruled.id)
	}
	return v, nil
}

// chosen finds the schema that an event names, under the subject the rule has it.
func (p *partRule) chosen(ctx context.Context, chosen choice) (version, error) {
	if chosen.id != 0 {
		one, err := p.registry.byID(ctx, chosen.id)
		if err != nil {
			return version{}, p.where(err)
		}
		subject, err := p.subject(one, nil)
		if err != nil {
			return version{}, err
		}
		n, err := p.registry.versionOf(ctx, subject, chosen.id)
		if fault.Is(err, fault.UnknownSchema) {
			return version{}, p.mismatch("schema %d is not under the subject %s", chosen.id, subject)
		}
		return version{subject, n, one}, p.where(err)
	}
	subject := chosen.subject
	if subject == "" {
		var err error
		if subject, err = p.subject(nil, nil); err != nil {
			return version{}, err
		}
	}
	v, err := p.registry.at(ctx, subject, chosen.version)
	if err != nil {
		return version{}, p.where(err)
	}
	want, err := p.subject(v.compiled, nil)
	if err != nil {
		return version{}, err
	}
	if want != subject {
		return version{}, p.mismatch("the event names the subject %s; the topic's rule has its schema under %s", subject, want)
	}
	return v, nil
}

func (p *partRule) mismatch(format string, args ...any) error {
	f := fault.New(fault.SchemaRefused, "topic %s, %s: %s", p.topic, p.part, fmt.Sprintf(format, args...)).With("topic", p.topic).With("part", p.part)
	f.Violations = []fault.Violation{{Field: "schema", Description: fmt.Sprintf(format, args...), Rule: "schema.choice"}}
	return f
}

// where adds the topic to what the registry said.
func (p *partRule) where(err error) error {
	if err == nil {
		return nil
	}
	f := *fault.Of(err) // the registry's is shared by all who asked
	f.Message = "topic " + p.topic + ", " + p.part + ": " + f.Message
	f.Metadata = map[string]string{"topic": p.topic, "part": p.part}
	return &f
}

// refused says what is wrong with a payload.
func (p *partRule) refused(s version, r *report) error {
	name := s.subject
	if name == "" {
		name = fmt.Sprintf("schema %d", s.id)
	} else {
		name = fmt.Sprintf("version %d of %s", s.number, s.subject)
	}
	first := r.list[0]
	at := first.Field
	if at == "" {
		at = "the whole of it"
	}
	message := fmt.Sprintf("the %s does not fit %s: at %s, %s", p.part, name, at, first.Description)
	if n := len(r.list) + r.more - 1; n > 0 {
		message += fmt.Sprintf(" (and %d more)", n)
	}
	f := fault.New(fault.SchemaRefused, "%s", message).With("topic", p.topic).With("part", p.part).With("format", string(s.format())).
		With("schema_id", strconv.Itoa(s.id))
	if s.subject != "" {
		f = f.With("subject", s.subject).With("version", strconv.Itoa(s.number))
	}
	if r.more > 0 {
		f = f.With("violations_left_out", strconv.Itoa(r.more))
	}
	f.Violations = r.list
	return f
}
