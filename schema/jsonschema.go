package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	violated "github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// jsonCodec is a compiled JSON Schema, draft 4 to 2020-12; without $schema it
// is draft 7, as the registry takes it. Formats are asserted where the draft
// asserts them: up to draft 7.
//
// Each check works through a number of subschemas that grows with the power of
// the depth for a hostile schema, so checks are counted, and the count belongs
// to a compiled copy: copies are kept and used again, one for each check that
// runs at once.
type jsonCodec struct {
	text  string
	parts []part
	title string
	free  chan *countedSchema
}

type countedSchema struct {
	schema *jsonschema.Schema
	left   int
}

// maxCopies bounds the copies kept.
const maxCopies = 16

// jsonBase is where a schema without an $id of its own is said to be.
const jsonBase = "registry:///"

func newJSONSchema(text string, parts []part) (*jsonCodec, error) {
	c := &jsonCodec{text: text, parts: parts, free: make(chan *countedSchema, maxCopies)}
	one, err := c.compile()
	if err != nil {
		return nil, err
	}
	c.title = one.schema.Title
	c.free <- one
	return c, nil
}

// partLoader gives what the schema refers to in the registry, and nothing else.
// A $ref is resolved against the schema's $id before it comes here, so a
// reference is found by the end of the address too.
type partLoader []part

func (l partLoader) Load(at string) (any, error) {
	for _, p := range l {
		if name, _, _ := strings.Cut(p.name, "#"); name == at || strings.HasSuffix(at, "/"+strings.TrimPrefix(name, "./")) {
			return parseAny([]byte(p.text))
		}
	}
	return nil, fmt.Errorf("%s is not among the schema's references: nothing is fetched", at)
}

func (c *jsonCodec) compile() (*countedSchema, error) {
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(partLoader(c.parts))
	compiler.DefaultDraft(jsonschema.Draft7)
	doc, err := parseAny([]byte(c.text))
	if err != nil {
		return nil, err
	}
	if err := compiler.AddResource(jsonBase+"schema.json", doc); err != nil {
		return nil, err
	}
	schema, err := compiler.Compile(jsonBase + "schema.json")
	if err != nil {
		return nil, err
	}
	one := &countedSchema{schema: schema}
	one.count(schema, map[*jsonschema.Schema]bool{})
	return one, nil
}

var errCost = errors.New("the check costs too much")

// count puts the counter into s and all below. A format is looked at before
// everything that recurses, so an exhausted counter ends the check there.
func (one *countedSchema) count(s *jsonschema.Schema, seen map[*jsonschema.Schema]bool) {
	if s == nil || seen[s] {
		return
	}
	seen[s] = true
	asserted := s.Format
	f := &jsonschema.Format{Validate: func(v any) error {
		if one.left--; one.left < 0 {
			return errCost
		}
		if asserted != nil {
			return asserted.Validate(v)
		}
		return nil
	}}
	if asserted != nil {
		f.Name = asserted.Name
	}
	s.Format = f
	below := []*jsonschema.Schema{s.Ref, s.RecursiveRef, s.Not, s.If, s.Then, s.Else, s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems, s.ContentSchema}
	below = append(append(append(append(below, s.AllOf...), s.AnyOf...), s.OneOf...), s.PrefixItems...)
	if s.DynamicRef != nil {
		below = append(below, s.DynamicRef.Ref)
	}
	for _, p := range s.Properties {
		below = append(below, p)
	}
	for _, p := range s.PatternProperties {
		below = append(below, p)
	}
	for _, p := range s.DependentSchemas {
		below = append(below, p)
	}
	for _, p := range s.Dependencies {
		below = append(below, schemasOf(p)...)
	}
	below = append(append(append(below, schemasOf(s.Items)...), schemasOf(s.AdditionalItems)...), schemasOf(s.AdditionalProperties)...)
	for _, b := range below {
		one.count(b, seen)
	}
}

func schemasOf(v any) []*jsonschema.Schema {
	switch v := v.(type) {
	case *jsonschema.Schema:
		return []*jsonschema.Schema{v}
	case []*jsonschema.Schema:
		return v
	}
	return nil
}

func (c *jsonCodec) format() Format { return JSON }

func (c *jsonCodec) recordName(string, []int) string { return c.title }

func (c *jsonCodec) fromJSON(text []byte, _ string, _ Spelling, r *report) ([]byte, []int) {
	c.check(text, nil, r)
	if !r.ok() {
		return nil, nil
	}
	return append(make([]byte, headerRoom, headerRoom+len(text)), text...), nil
}

func (c *jsonCodec) check(payload []byte, _ []int, r *report) {
	var doc document
	if err := doc.parse(payload); err != nil {
		r.syntax(err)
		return
	}
	var one *countedSchema
	select {
	case one = <-c.free:
	default:
		var err error
		if one, err = c.compile(); err != nil { // it compiled before
			r.add("", "json.schema", "a schema that compiles", err.Error())
			return
		}
	}
	one.left = 50_000 + 100*len(doc.nodes)
	err := one.schema.Validate(doc.any(0))
	if one.left < 0 {
		r.add("", "json.cost", "a payload that the schema checks in a bounded number of steps", "more steps than are taken")
	} else if err != nil {
		jsonViolations(err, &doc, r)
	}
	select {
	case c.free <- one:
	default:
	}
}

func (c *jsonCodec) toJSON(payload []byte, _ []int, _ Spelling) ([]byte, error) {
	var doc document
	if err := doc.parse(payload); err != nil {
		return nil, &violationError{"", "json.syntax", "JSON", err.Error()}
	}
	return payload, nil
}

// any gives the node n as the checker wants it: numbers keep their digits.
func (d *document) any(n int) any {
	node := d.nodes[n]
	switch node.kind {
	case jsonNull:
		return nil
	case jsonFalse:
		return false
	case jsonTrue:
		return true
	case jsonNumber:
		return json.Number(d.raw(n))
	case jsonString:
		return d.string(n)
	case jsonArray:
		items := make([]any, 0, node.count)
		for item := n + 1; item < int(node.next); item = int(d.nodes[item].next) {
			items = append(items, d.any(item))
		}
		return items
	}
	members := make(map[string]any, node.count)
	for name := n + 1; name < int(node.next); name = int(d.nodes[name+1].next) {
		members[d.string(name)] = d.any(name + 1)
	}
	return members
}

func parseAny(text []byte) (any, error) {
	var doc document
	if err := doc.parse(text); err != nil {
		return nil, err
	}
	return doc.any(0), nil
}

// jsonViolations flattens what the checker found: of keywords that only
// gather (allOf, $ref) what is below; of anyOf and oneOf themselves and the
// branch with the least wrong, which most likely was meant.
func jsonViolations(err error, doc *document, r *report) {
	var wrong *jsonschema.ValidationError
	if !errors.As(err, &wrong) {
		r.add("", "json.schema", "a value of the schema", err.Error())
		return
	}
	words := message.NewPrinter(language.English)
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		at := pointerOf(e.InstanceLocation)
		rule := "schema"
		if path := e.ErrorKind.KeywordPath(); len(path) > 0 {
			rule = path[0]
		}
		got := func() string { return doc.gotAt(e.InstanceLocation) }
		switch k := e.ErrorKind.(type) {
		case *violated.Schema, *violated.Group, *violated.AllOf, *violated.Reference:
			for _, cause := range sorted(e.Causes) {
				walk(cause)
			}
			return
		case *violated.AnyOf, *violated.OneOf:
			expected := fmt.Sprintf("one of %d schemas", len(e.Causes))
			if one, ok := k.(*violated.OneOf); ok && len(one.Subschemas) > 1 {
				r.add(at, rule, "exactly one of the schemas", fmt.Sprintf("a value that fits number %d and number %d", one.Subschemas[0], one.Subschemas[1]))
				return
			}
			r.add(at, rule, expected, got())
			if best := fewest(e.Causes); best != nil {
				walk(best)
			}
			return
		case *violated.Required:
			for _, name := range k.Missing {
				r.add(at+string(appendPointer([]byte{'/'}, name)), rule, "the member "+name, "nothing: it is missing")
			}
		case *violated.DependentRequired:
			for _, name := range k.Missing {
				r.add(at+string(appendPointer([]byte{'/'}, name)), rule, "the member "+name+", since "+k.Prop+" is there", "nothing: it is missing")
			}
		case *violated.AdditionalProperties:
			for _, name := range slices.Sorted(slices.Values(k.Properties)) {
				r.add(at+string(appendPointer([]byte{'/'}, name)), rule, "only members the schema names", "one it does not name")
			}
		case *violated.FalseSchema:
			r.add(at, "false", "nothing here", got())
		case *violated.Type:
			r.add(at, rule, strings.Join(k.Want, " or "), got())
		case *violated.Enum:
			r.add(at, rule, "one of "+jsonText(k.Want), got())
		case *violated.Const:
			r.add(at, rule, jsonText(k.Want), got())
		case *violated.Format:
			r.add(at, rule, k.Want, got())
		case *violated.Pattern:
			r.add(at, rule, "text that matches "+k.Want, got())
		case *violated.Minimum:
			r.add(at, rule, "at least "+k.Want.RatString(), got())
		case *violated.Maximum:
			r.add(at, rule, "at most "+k.Want.RatString(), got())
		case *violated.ExclusiveMinimum:
			r.add(at, rule, "more than "+k.Want.RatString(), got())
		case *violated.ExclusiveMaximum:
			r.add(at, rule, "less than "+k.Want.RatString(), got())
		case *violated.MultipleOf:
			r.add(at, rule, "a multiple of "+k.Want.RatString(), got())
		case *violated.MinLength:
			r.add(at, rule, fmt.Sprintf("at least %d characters", k.Want), fmt.Sprintf("%d", k.Got))
		case *violated.MaxLength:
			r.add(at, rule, fmt.Sprintf("at most %d characters", k.Want), fmt.Sprintf("%d", k.Got))
		case *violated.MinItems:
			r.add(at, rule, fmt.Sprintf("at least %d items", k.Want), fmt.Sprintf("%d", k.Got))
		case *violated.MaxItems:
			r.add(at, rule, fmt.Sprintf("at most %d items", k.Want), fmt.Sprintf("%d", k.Got))
		default:
			r.add(at, rule, excerptLong(k.LocalizedString(words)), got())
		}
	}
	walk(wrong)
}

// sorted puts violations in the order of their places: the checker walks maps.
func sorted(causes []*jsonschema.ValidationError) []*jsonschema.ValidationError {
	return slices.SortedStableFunc(slices.Values(causes), func(a, b *jsonschema.ValidationError) int {
		return slices.Compare(a.InstanceLocation, b.InstanceLocation)
	})
}

func fewest(causes []*jsonschema.ValidationError) *jsonschema.ValidationError {
	var best *jsonschema.ValidationError
	least := 0
	for _, c := range causes {
		if n := leaves(c); best == nil || n < least {
			best, least = c, n
		}
	}
	return best
}

func leaves(e *jsonschema.ValidationError) int {
	if len(e.Causes) == 0 {
		// A value of another type altogether is further off than one with a wrong member.
		if _, ok := e.ErrorKind.(*violated.Type); ok && len(e.InstanceLocation) == 0 {
			return 100
		}
		return 1
	}
	n := 0
	for _, c := range e.Causes {
		n += leaves(c)
	}
	return n
}

func pointerOf(tokens []string) string {
	var b []byte
	for _, t := range tokens {
		b = appendPointer(append(b, '/'), t)
	}
	return string(b)
}

// gotAt describes the value at a location.
func (d *document) gotAt(tokens []string) string {
	n := 0
	for _, token := range tokens {
		node := d.nodes[n]
		found := -1
		switch node.kind {
		case jsonObject:
			for name := n + 1; name < int(node.next); name = int(d.nodes[name+1].next) {
				if d.is(name, token) {
					found = name + 1
				}
			}
		case jsonArray:
			i := 0
			for item := n + 1; item < int(node.next); item = int(d.nodes[item].next) {
				if fmt.Sprint(i) == token {
					found = item
				}
				i++
			}
		}
		if found < 0 {
			return "something else"
		}
		n = found
	}
	return d.got(n)
}

func jsonText(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(v) != nil {
		return "a value"
	}
	return strings.TrimSpace(b.String())
}
