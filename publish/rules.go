package publish

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
)

// Rules are what publishing to a topic demands and does.
type Rules struct {
	// Durability is the least that is done: "leader" (what the request asks for is
	// enough) or "all_replicas" (a request for less gets this). Default leader.
	Durability string `yaml:"durability"`
	// Compression of what Kafka stores: none, gzip, snappy, lz4 or zstd. Default none.
	Compression broker.Compression `yaml:"compression"`
	// MaxEventBytes bounds an event's key, value and headers. Default publish.max_event_bytes.
	MaxEventBytes setting.Bytes `yaml:"max_event_bytes"`
	// ContentTypes are the media types allowed, without parameters: application/json. Default any.
	ContentTypes []string `yaml:"content_types"`
	// RequiredAttributes are CloudEvents attributes an event must have. Naming one means
	// that only CloudEvents are taken. Default none.
	RequiredAttributes []string `yaml:"required_attributes"`
	// RequireKey refuses events without a key. Default false.
	RequireKey bool `yaml:"require_key"`
	// CloudEvents is how CloudEvents are written to Kafka: "binary" (attributes as
	// headers, data untouched) or "structured" (one JSON document as the value). Default binary.
	CloudEvents string `yaml:"cloudevents"`
	// DedupeByID gives CloudEvents without a dedupe key one made of source and id. Default false.
	DedupeByID bool `yaml:"dedupe_by_id"`
}

// Validate reports everything wrong with r, each as a *setting.Error.
func (r Rules) Validate() error {
	var faults setting.Faults
	if r.Durability != "" && r.Durability != broker.Leader.String() && r.Durability != broker.AllReplicas.String() {
		faults.Add("durability", "%q is not offered: use leader or all_replicas", r.Durability)
	}
	if r.Compression != "" && !slices.Contains(broker.Compressions, r.Compression) {
		faults.Add("compression", "%q is not offered: use none, gzip, snappy, lz4 or zstd", r.Compression)
	}
	if r.MaxEventBytes < 0 || r.MaxEventBytes > maxEventLimit {
		faults.Add("max_event_bytes", "%s is out of range: at most %s", r.MaxEventBytes, setting.Bytes(maxEventLimit))
	}
	for i, c := range r.ContentTypes {
		if kind, sub, ok := strings.Cut(c, "/"); !ok || kind == "" || sub == "" || strings.ContainsAny(c, "; ") || c != strings.ToLower(c) {
			faults.Add(fmt.Sprintf("content_types[%d]", i), "%q is not a media type in lower case without parameters, such as application/json", c)
		}
	}
	for i, a := range r.RequiredAttributes {
		if !event.ValidAttribute(a) {
			faults.Add(fmt.Sprintf("required_attributes[%d]", i), "%q is not a CloudEvents attribute: use lower-case letters and digits", a)
		}
	}
	if r.CloudEvents != "" && r.CloudEvents != "binary" && r.CloudEvents != "structured" {
		faults.Add("cloudevents", "%q is not offered: use binary or structured", r.CloudEvents)
	}
	return faults.Err()
}

// TopicRules are the Rules of the topics that Match, a glob.
type TopicRules struct {
	Match string
	Rules Rules
}

// rule is Rules made ready for one topic.
type rule struct {
	Rules
	match string // "" when no rule matched
	limit int
	floor broker.Durability
	met   atomic.Pointer[series] // of the topic, once it was asked for
}

// series is the topic's, which has this rule.
func (r *rule) series(m *metrics, topic string) *series {
	s := r.met.Load()
	if s == nil {
		s = m.attributes(topic)
		r.met.Store(s)
	}
	return s
}

// ruleBook finds a topic's rule. The first that matches wins.
type ruleBook struct {
	rules []TopicRules
	limit setting.Bytes

	mu    sync.RWMutex
	known map[string]*rule // found before: matching globs costs more than all else a small event does
}

// maxKnown bounds the topics remembered; beyond it the rules are matched each time.
const maxKnown = 10_000

func newRuleBook(rules []TopicRules, limit setting.Bytes) *ruleBook {
	return &ruleBook{rules: rules, limit: limit, known: map[string]*rule{}}
}

// EventLimit tells the largest event that rules admit to a topic.
func EventLimit(o Options, rules []TopicRules) func(topic string) int {
	book := newRuleBook(rules, o.WithDefaults().MaxEventBytes)
	return func(topic string) int { return book.of(topic).limit }
}

func (b *ruleBook) of(topic string) *rule {
	b.mu.RLock()
	r := b.known[topic]
	b.mu.RUnlock()
	if r != nil {
		return r
	}
	r = &rule{limit: int(b.limit), floor: broker.Leader}
	for _, t := range b.rules {
		if ok, _ := path.Match(t.Match, topic); ok { // a bad glob was refused with the configuration
			r.Rules, r.match = t.Rules, t.Match
			break
		}
	}
	if r.MaxEventBytes > 0 {
		r.limit = int(r.MaxEventBytes)
	}
	if r.Durability == broker.AllReplicas.String() {
		r.floor = broker.AllReplicas
	}
	b.mu.Lock()
	if len(b.known) < maxKnown {
		b.known[topic] = r
	}
	b.mu.Unlock()
	return r
}

// how says how an event of the topic is written when the request asks for d.
func (r *rule) how(d broker.Durability) broker.How {
	if r.floor == broker.AllReplicas {
		d = broker.AllReplicas
	}
	return broker.How{Durability: d, Compression: r.Compression}
}

// admit checks e against the rule.
func (r *rule) admit(topic string, e *event.Event) error {
	if len(r.ContentTypes) > 0 {
		media, _, _ := strings.Cut(strings.ToLower(e.ContentType), ";")
		if !slices.Contains(r.ContentTypes, strings.TrimSpace(media)) {
			return fault.New(fault.ContentTypeRefused, "topic %s does not take the content type %q: send %s", topic, e.ContentType, strings.Join(r.ContentTypes, " or ")).
				Field("content_type", "not allowed here").With("topic", topic)
		}
	}
	for _, name := range r.RequiredAttributes {
		if !e.HasAttribute(name) {
			return fault.New(fault.AttributeRequired, "topic %s takes only CloudEvents with the attribute %s: send it", topic, name).
				Field(name, "required here").With("topic", topic)
		}
	}
	return nil
}

// record writes e as the topic's record, within the rule.
func (r *rule) record(record *event.Record, topic string, e *event.Event) error {
	if r.CloudEvents == "structured" && e.IsCloudEvent() {
		*record = *e.StructuredRecord(topic)
	} else {
		e.FillRecord(record, topic)
	}
	if r.RequireKey && record.Key == nil {
		return fault.New(fault.KeyRequired, "topic %s takes only events with a key: send one", topic).Field("key", "required here").With("topic", topic)
	}
	if size := record.Size(); size > r.limit {
		return fault.New(fault.EventTooLarge, "the event has %d bytes with key and headers, at most %d are allowed: send less, or a reference to the data",
			size, r.limit).With("limit", fmt.Sprint(r.limit)).With("topic", topic)
	}
	return nil
}
