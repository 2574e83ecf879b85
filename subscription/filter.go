package subscription

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
)

// FilterSpec is a filter as people declare it: exactly one field is set. Its
// names are those of the proto's Filter, and those but cel are the dialects of the
// CloudEvents Subscriptions API (version 1.0, section 3.2.4) with its JSON.
type FilterSpec struct {
	// CEL is an expression that gives a bool: event.type == "order.created" && data.total > 100
	CEL string `yaml:"cel" json:"cel,omitempty"`
	// Exact: each of these attributes has exactly this value.
	Exact map[string]string `yaml:"exact" json:"exact,omitempty"`
	// Prefix: each of these attributes begins with this value.
	Prefix map[string]string `yaml:"prefix" json:"prefix,omitempty"`
	// Suffix: each of these attributes ends with this value.
	Suffix map[string]string `yaml:"suffix" json:"suffix,omitempty"`
	// All of these match.
	All []FilterSpec `yaml:"all" json:"all,omitempty"`
	// Any: at least one of these matches.
	Any []FilterSpec `yaml:"any" json:"any,omitempty"`
	// Not: it does not match.
	Not *FilterSpec `yaml:"not" json:"not,omitempty"`
	// SQL is an expression of CloudEvents SQL 1.0 over the attributes: type LIKE 'order.%'
	SQL string `yaml:"sql" json:"sql,omitempty"`
}

// Limits of a filter. They bound what declaring one costs; what matching costs
// is bounded by celCostLimit.
const (
	maxFilterText  = 8 << 10
	maxFilterParts = 100
	maxFilterDepth = 8
)

// OnFilterError says what becomes of an event on which the filter fails.
type OnFilterError string

// What may become of it; "" is DeadLetterOnError.
const (
	DeadLetterOnError OnFilterError = "dead_letter"
	SkipOnError       OnFilterError = "skip"
)

// Filter is a FilterSpec ready to be matched. It is safe for concurrent use.
type Filter struct {
	root matcher
	text string
}

// matcher is one part of a filter.
type matcher interface {
	match(e *view) (bool, error)
}

// view is an event while it is being matched.
type view struct {
	record     *event.Record
	decoded    []byte // its data, where Kafka has it in the wire format and it has been decoded
	attributes event.Attributes
}

// Get gives the bytes of the attribute called name, and whether the event has it.
func (e *view) Get(name string) ([]byte, bool) {
	if name == "specversion" { // where there is an event, it is known without a look at it
		return []byte(event.SpecVersion), e.attributes.CloudEvent
	}
	return e.attributes.Get(name)
}

// NewFilter compiles s. What is wrong is told all at once, each as a
// *setting.Error whose setting is the path below the filter.
func NewFilter(s FilterSpec) (*Filter, error) {
	c := &compiler{}
	root := c.compile("", &s, 1)
	if err := c.faults.Err(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil { // strings, lists and maps of strings always can
		return nil, err
	}
	return &Filter{root, string(text)}, nil
}

// Match reports whether the filter lets r through. An error says why that cannot
// be told: data that is no JSON, a field that is not there, too much work.
// delivery.ErrEncoded: the answer depends on data that is in the schema registry's
// wire format; ask again with that data decoded.
func (f *Filter) Match(r *event.Record, decoded []byte) (bool, error) {
	return f.root.match(&view{r, decoded, r.Attributes()})
}

// String is the filter's declaration in one canonical form: filters that are the
// same have the same text.
func (f *Filter) String() string { return f.text }

// compiler turns a declaration into matchers.
type compiler struct {
	faults setting.Faults
	parts  int
}

func (c *compiler) compile(at string, s *FilterSpec, depth int) matcher {
	c.parts++
	if c.parts > maxFilterParts || depth > maxFilterDepth {
		if c.parts == maxFilterParts+1 || depth == maxFilterDepth+1 {
			c.faults.Add(orFilter(at), "a filter has at most %d parts, %d deep", maxFilterParts, maxFilterDepth)
		}
		return never{}
	}
	under := func(name string) string {
		if at == "" {
			return name
		}
		return at + "." + name
	}
	var set []string
	var m matcher = never{}
	text := func(name, expression string, compile func(string) (matcher, error)) {
		if expression == "" {
			return
		}
		set = append(set, name)
		if len(expression) > maxFilterText {
			c.faults.Add(under(name), "an expression has at most %d bytes", maxFilterText)
			return
		}
		var err error
		if m, err = compile(expression); err != nil {
			c.faults.Add(under(name), "%v", err)
		}
	}
	text("cel", s.CEL, newCEL)
	text("sql", s.SQL, newSQL)
	for _, dialect := range []struct {
		name  string
		pairs map[string]string
		test  func(value []byte, want string) bool
	}{
		{"exact", s.Exact, func(value []byte, want string) bool { return string(value) == want }},
		{"prefix", s.Prefix, func(value []byte, want string) bool {
			return len(value) >= len(want) && string(value[:len(want)]) == want
		}},
		{"suffix", s.Suffix, func(value []byte, want string) bool {
			return len(value) >= len(want) && string(value[len(value)-len(want):]) == want
		}},
	} {
		if len(dialect.pairs) == 0 {
			continue
		}
		set = append(set, dialect.name)
		for _, name := range slices.Sorted(maps.Keys(dialect.pairs)) {
			if !event.ValidAttribute(name) {
				c.faults.Add(under(dialect.name), "%q is not an attribute's name: use lower-case letters and digits", name)
			}
			if dialect.pairs[name] == "" {
				c.faults.Add(under(dialect.name), "the value for %s is empty: an attribute never is", name)
			}
		}
		m = newAttributes(dialect.pairs, dialect.test)
	}
	list := func(name string, parts []FilterSpec) []matcher {
		if len(parts) == 0 {
			return nil
		}
		set = append(set, name)
		all := make([]matcher, 0, min(len(parts), maxFilterParts))
		for i := range parts {
			if c.parts > maxFilterParts {
				break
			}
			all = append(all, c.compile(fmt.Sprintf("%s[%d]", under(name), i), &parts[i], depth+1))
		}
		return all
	}
	if parts := list("all", s.All); parts != nil {
		m = all(parts)
	}
	if parts := list("any", s.Any); parts != nil {
		m = anyOf(parts)
	}
	if s.Not != nil {
		set = append(set, "not")
		m = not{c.compile(under("not"), s.Not, depth+1)}
	}
	switch len(set) {
	case 1:
	case 0:
		c.faults.Add(orFilter(at), "it says nothing: set one of cel, exact, prefix, suffix, all, any, not and sql")
	default:
		c.faults.Add(orFilter(at), "it sets %v: only one of them, or several below all", set)
	}
	return m
}

// orFilter is at, or a name for the whole.
func orFilter(at string) string {
	if at == "" {
		return "filter"
	}
	return at
}

// never matches nothing; it stands for what could not be compiled.
type never struct{}

func (never) match(*view) (bool, error) { return false, nil }

// attributes compares attributes with texts; one that is not there does not match.
type attributes struct {
	names, values []string
	test          func(value []byte, want string) bool
}

func newAttributes(pairs map[string]string, test func([]byte, string) bool) attributes {
	a := attributes{test: test}
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		a.names, a.values = append(a.names, name), append(a.values, pairs[name])
	}
	return a
}

func (a attributes) match(e *view) (bool, error) {
	for i, name := range a.names {
		value, ok := e.Get(name)
		if !ok || !a.test(value, a.values[i]) {
			return false, nil
		}
	}
	return true, nil
}

// all matches when every part does. As in CEL, a part that is false decides,
// whatever fails beside it: the order of the parts does not matter.
type all []matcher

func (parts all) match(e *view) (bool, error) {
	var errs []error
	for _, p := range parts {
		ok, err := p.match(e)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !ok:
			return false, nil
		}
	}
	return errs == nil, errors.Join(errs...)
}

// anyOf matches when one part does, whatever fails beside it.
type anyOf []matcher

func (parts anyOf) match(e *view) (bool, error) {
	var errs []error
	for _, p := range parts {
		ok, err := p.match(e)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ok:
			return true, nil
		}
	}
	return false, errors.Join(errs...)
}

type not struct{ part matcher }

func (n not) match(e *view) (bool, error) {
	ok, err := n.part.match(e)
	return !ok && err == nil, err
}
