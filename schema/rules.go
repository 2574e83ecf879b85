package schema

import (
	"fmt"
	"strconv"

	"github.com/postern-dev/postern/internal/setting"
)

// Rule says what is done with a key or value.
type Rule string

// The rules.
const (
	// Off lets everything pass and looks at nothing.
	Off Rule = "off"
	// Validate checks JSON, or bytes in the wire format, against the schema and stores them as they came.
	Validate Rule = "validate"
	// Encode checks likewise, and stores JSON in the schema's own bytes in the wire format.
	Encode Rule = "encode"
)

// Strategy says which subject of the registry a topic's schema is under.
type Strategy string

// The strategies, as Kafka's serializers have them.
const (
	// ByTopic is <topic>-value, or <topic>-key.
	ByTopic Strategy = "topic"
	// ByRecord is the full name of the record, Protobuf message, or JSON Schema's title.
	ByRecord Strategy = "record"
	// ByTopicRecord is <topic>-<record>.
	ByTopicRecord Strategy = "topic_record"
)

// Version of a subject: the latest (the zero Version), a number, or the publisher's choice.
type Version struct {
	Number    int // 0: none
	Publisher bool
}

// MarshalText writes latest, publisher or the number.
func (v Version) MarshalText() ([]byte, error) {
	switch {
	case v.Publisher:
		return []byte("publisher"), nil
	case v.Number > 0:
		return strconv.AppendInt(nil, int64(v.Number), 10), nil
	}
	return []byte("latest"), nil
}

// UnmarshalText reads latest, publisher or a number.
func (v *Version) UnmarshalText(b []byte) error {
	switch text := string(b); text {
	case "", "latest":
		*v = Version{}
	case "publisher":
		*v = Version{Publisher: true}
	default:
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no version: use latest, publisher, or a number from 1", text)
		}
		*v = Version{Number: n}
	}
	return nil
}

// Rules of one topic.
type Rules struct {
	// Value is the rule for payloads.
	Value PartRules `yaml:"value"`
	// Key is the rule for keys; events without a key pass.
	Key PartRules `yaml:"key"`
}

// PartRules are the rules for keys or values.
type PartRules struct {
	// Rule is "off" (default), "validate" or "encode".
	Rule Rule `yaml:"rule"`
	// SubjectStrategy is "topic" (default), "record" or "topic_record".
	SubjectStrategy Strategy `yaml:"subject_strategy"`
	// Subject is used instead of the strategy's.
	Subject string `yaml:"subject"`
	// Version is "latest" (default), a number, or "publisher": the event names it, by
	// Postern-Schema-Id, Postern-Schema-Version or dataschema; without, the latest.
	Version Version `yaml:"version"`
	// Record is the full name of the record, for the strategies that go by it, and of
	// the message in a Protobuf schema. Default the schema's first.
	Record string `yaml:"record"`
	// JSON is how JSON spells what Avro has and JSON has not: "plain" (default) or "avro".
	JSON Spelling `yaml:"json"`
	// ReadAs is the version whose schema readers of a JSON view get, whatever version
	// wrote the event: "latest" or a number. Default the writer's own.
	ReadAs string `yaml:"read_as"`
	// Register is a schema's text ({file: PATH}) that is registered under the subject when the
	// topic is first published to, and used. Default none: nothing is ever registered.
	Register string `yaml:"register"`
	// Format of Register: "avro" (default), "json" or "protobuf".
	Format string `yaml:"format"`
}

// On reports whether r says anything but off.
func (r Rules) On() bool { return r.Value.on() || r.Key.on() }

func (p PartRules) on() bool { return p.Rule != "" && p.Rule != Off }

// Validate reports everything wrong with r, each as a *setting.Error.
func (r Rules) Validate() error {
	var faults setting.Faults
	r.Value.validate(&faults, "value.")
	r.Key.validate(&faults, "key.")
	return faults.Err()
}

func (p PartRules) validate(faults *setting.Faults, at string) {
	switch p.Rule {
	case "", Off, Validate, Encode:
	default:
		faults.Add(at+"rule", "%q is not offered: use off, validate or encode", p.Rule)
	}
	switch p.SubjectStrategy {
	case "", ByTopic, ByRecord, ByTopicRecord:
	default:
		faults.Add(at+"subject_strategy", "%q is not offered: use topic, record or topic_record", p.SubjectStrategy)
	}
	switch p.JSON {
	case "", Plain, AvroJSON:
	default:
		faults.Add(at+"json", "%q is not offered: use plain or avro", p.JSON)
	}
	if p.Subject != "" && p.SubjectStrategy != "" {
		faults.Add(at+"subject", "give the subject or a strategy, not both")
	}
	if p.ReadAs != "" && p.ReadAs != "latest" {
		if n, err := strconv.Atoi(p.ReadAs); err != nil || n < 1 {
			faults.Add(at+"read_as", "%q is no version: use latest or a number from 1", p.ReadAs)
		}
	}
	format, err := ParseFormat(p.Format)
	if err != nil {
		faults.Add(at+"format", "%v", err)
	}
	if p.Register == "" {
		return
	}
	if p.Version != (Version{}) {
		faults.Add(at+"version", "the registered schema is used: leave the version out")
	}
	if err == nil {
		if _, err := compile(format, p.Register, nil); err != nil {
			faults.Add(at+"register", "the schema cannot be used: %v", excerptLong(err.Error()))
		}
	}
}

// TopicRules are the Rules of the topics that Match, a glob.
type TopicRules struct {
	Match string
	Rules Rules
}
