package wire

import (
	"fmt"
	"sync"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Validator checks requests by the rules in the protos. Publish requests, whose
// check by reflection cost a tenth of a publish, are looked at by hand first:
// what plainly breaks no rule passes, everything else gets protovalidate's
// verdict and words. A test holds the two against each other.
type Validator struct{ protovalidate.Validator }

// Validate reports which rules m breaks.
func (v Validator) Validate(m proto.Message, options ...protovalidate.ValidationOption) error {
	switch m := m.(type) {
	case *posternv1.PublishRequest:
		if plain(m) {
			return nil
		}
	case *posternv1.PublishStreamRequest:
		if m.Request != nil && plain(m.Request) {
			return nil
		}
	}
	return v.Validator.Validate(m, options...)
}

// Rules is a protovalidate.Validator that is compiled when it is first needed: a gateway that sees plain publish requests only never
// loads the compiler's pages, some megabytes, nor waits for it when it starts.
type Rules struct {
	Compile func() (protovalidate.Validator, error)

	once     sync.Once
	compiled protovalidate.Validator
	err      error
}

// Validate reports which rules m breaks.
func (r *Rules) Validate(m proto.Message, options ...protovalidate.ValidationOption) error {
	r.once.Do(func() { r.compiled, r.err = r.Compile() })
	if r.err != nil {
		return fmt.Errorf("compile the requests' rules: %w", r.err)
	}
	return r.compiled.Validate(m, options...)
}

// noTime is the second that begins the year 1; its first moment stands for no time here.
const noTime = -62135596800

// plain reports whether m surely breaks none of the protos' rules.
func plain(m *posternv1.PublishRequest) bool {
	if _, err := event.ParseTopic(m.Topic); err != nil || len(m.Events) == 0 || len(m.Events) > 10_000 || m.Durability < 0 || m.Durability > posternv1.Durability_DURABILITY_LEADER {
		return false
	}
	for _, e := range m.Events {
		switch {
		case len(e.Extensions) > 128, len(e.Headers) > 1024, len(e.DedupeKey) > 512, e.Partition != nil && *e.Partition < 0, e.SchemaId < 0, e.SchemaVersion < 0,
			e.Time != nil && e.Time.Seconds <= noTime, e.Timestamp != nil && e.Timestamp.Seconds <= noTime:
			return false
		}
		if e.Topic != "" {
			if _, err := event.ParseTopic(e.Topic); err != nil {
				return false
			}
		}
		for _, x := range e.Extensions {
			if !event.ValidAttribute(x.GetName()) {
				return false
			}
		}
	}
	return true
}
