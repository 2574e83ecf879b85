package schema

import (
	"encoding/json"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// json compares two JSON Schemas: each value that the writer's allows must be
// shown to be one that the reader's allows. Keywords are compared one by one;
// what that cannot show is "undecided". It errs on the safe side only.
func (d *differ) json(reader, writer *jsonCodec) {
	r, errR := parseAny([]byte(reader.text))
	w, errW := parseAny([]byte(writer.text))
	if errR != nil || errW != nil {
		d.add("", "undecided", "a schema cannot be read")
		return
	}
	j := jsonDiffer{differ: d, reader: r, writer: w, seen: map[[2]uintptr]bool{}}
	j.within(w, r, "", 0)
}

type jsonDiffer struct {
	*differ
	reader, writer any // the whole schemas, for their $refs
	seen           map[[2]uintptr]bool
	alive          []map[string]any // those seen: an address must not come back as another's
}

// annotations say nothing about which values are allowed.
var annotations = []string{
	"$schema", "$id", "id", "$comment", "title", "description", "default", "examples", "definitions", "$defs", "readOnly", "writeOnly",
	"deprecated", "$anchor", "contentEncoding", "contentMediaType", "contentSchema", "$vocabulary",
}

// constraints drops what constrains nothing.
func constraints(s map[string]any) map[string]any {
	c := map[string]any{}
	for k, v := range s {
		if !slices.Contains(annotations, k) && !strings.HasPrefix(k, "connect.") && !strings.HasPrefix(k, "x-") {
			c[k] = v
		}
	}
	return c
}

// trial runs f and tells what it found, without keeping it.
func (d *jsonDiffer) trial(f func()) []Incompatibility {
	kept, seen := d.found, d.seen
	d.found, d.seen = nil, map[[2]uintptr]bool{}
	for k := range seen {
		d.seen[k] = true
	}
	f()
	found := d.found
	d.found, d.seen = kept, seen
	return found
}

// maxCompare bounds how deep schemas are compared: unions are tried each with each.
const maxCompare = 24

// within looks for values of w that r does not allow.
func (d *jsonDiffer) within(w, r any, path string, depth int) {
	if depth > maxCompare {
		d.add(path, "undecided", "the schemas nest too deep to be compared")
		return
	}
	if r == true || w == false {
		return
	}
	if r == false {
		d.add(path, "json.false", "nothing is allowed here any more")
		return
	}
	if w == true {
		w = map[string]any{}
	}
	ws, okW := w.(map[string]any)
	rs, okR := r.(map[string]any)
	if !okW || !okR {
		d.add(path, "undecided", "a schema is neither an object nor a boolean")
		return
	}
	// A pair that is being compared is taken as good below itself: what is wrong
	// with it is told where it is compared.
	pair := [2]uintptr{reflect.ValueOf(ws).Pointer(), reflect.ValueOf(rs).Pointer()}
	if d.seen[pair] {
		return
	}
	d.seen[pair] = true
	d.alive = append(d.alive, ws, rs)
	if wRef, rRef := text(ws["$ref"]), text(rs["$ref"]); wRef != "" || rRef != "" {
		if ws, okW = deref(d.writer, ws); okW {
			rs, okR = deref(d.reader, rs)
		}
		if !okW || !okR {
			if wRef != rRef {
				d.add(path, "undecided", "a $ref leads out of the schema: %s, %s", wRef, rRef)
			}
			return
		}
		d.within(ws, rs, path, depth+1)
		return
	}
	cw, cr := constraints(ws), constraints(rs)
	if len(cr) == 0 || reflect.DeepEqual(cw, cr) && !hasRef(cw) {
		return
	}
	if d.unions(cw, cr, path, depth) {
		return
	}
	for _, keyword := range sortedKeys(cr) {
		d.keyword(keyword, cw, cr, path, depth)
	}
}

func text(v any) string { s, _ := v.(string); return s }

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func hasRef(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v["$ref"]; ok {
			return true
		}
		for _, x := range v {
			if hasRef(x) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, hasRef)
	}
	return false
}

// deref follows a $ref within its own schema. What stands beside it counts from
// 2019-09 on only, so a schema with both is not decided.
func deref(root any, s map[string]any) (map[string]any, bool) {
	ref, ok := s["$ref"].(string)
	if !ok {
		return s, true
	}
	if len(constraints(s)) > 1 || !strings.HasPrefix(ref, "#") {
		return nil, false
	}
	at := root
	for _, token := range strings.Split(strings.TrimPrefix(ref[1:], "/"), "/") {
		if token == "" {
			continue
		}
		m, ok := at.(map[string]any)
		if !ok {
			return nil, false
		}
		at = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(token)]
	}
	found, ok := at.(map[string]any)
	return found, ok
}

// unions compares where the writer's or the reader's is one of several; true when that was all.
func (d *jsonDiffer) unions(w, r map[string]any, path string, depth int) bool {
	for _, name := range []string{"anyOf", "oneOf"} {
		if branches, ok := w[name].([]any); ok && len(w) == 1 {
			for _, b := range branches {
				d.within(b, r, path, depth+1)
			}
			return true
		}
	}
	for _, name := range []string{"anyOf", "oneOf"} {
		branches, ok := r[name].([]any)
		if !ok || len(r) != 1 {
			continue
		}
		// A value of one branch of oneOf might be of another too and then be refused;
		// like the registries, we take a oneOf's branches as excluding one another.
		best := []Incompatibility(nil)
		for i, b := range branches {
			found := d.trial(func() { d.within(w, b, path, depth+1) })
			if len(found) == 0 {
				return true
			}
			if i == 0 || len(found) < len(best) {
				best = found
			}
		}
		d.add(path, "json."+name, "what was allowed is of none of the schemas; of the nearest:")
		d.found = append(d.found, best...)
		return true
	}
	return false
}

// keyword looks whether the reader's keyword is kept by all that the writer's schema allows.
func (d *jsonDiffer) keyword(name string, w, r map[string]any, path string, depth int) {
	at, rule := path+"/"+name, "json."+name
	if v, ok := w[name]; ok && reflect.DeepEqual(v, r[name]) && !hasRef(v) && name != "additionalProperties" && name != "properties" {
		return
	}
	switch name {
	case "type":
		for _, t := range typesOf(w) {
			if !slices.Contains(typesOf(r), t) && (t != "integer" || !slices.Contains(typesOf(r), "number")) {
				d.add(at, rule, "%s was allowed, now only %s", t, strings.Join(typesOf(r), ", "))
			}
		}
	case "enum", "const":
		allowed := valuesOf(r)
		values := valuesOf(w)
		if values == nil {
			d.add(at, rule, "any value was allowed, now only some")
			return
		}
		for _, v := range values {
			if !slices.ContainsFunc(allowed, func(a any) bool { return reflect.DeepEqual(a, v) }) {
				d.add(at, rule, "%s was allowed and is not any more", excerpt(jsonText(v)))
			}
		}
	case "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains":
		d.bound(name, w, r, at, rule, 1)
	case "maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains":
		d.bound(name, w, r, at, rule, -1)
	case "multipleOf":
		a, b := number(w[name]), number(r[name])
		if a == nil || b == nil || b.Sign() == 0 || !new(big.Rat).Quo(a, b).IsInt() {
			d.add(at, rule, "not every value that was allowed is a multiple of %s", excerpt(jsonText(r[name])))
		}
	case "required":
		required, _ := r[name].([]any)
		had, _ := w[name].([]any)
		for _, v := range required {
			if !slices.Contains(had, v) && onlyIf(w, "object") {
				d.add(path+"/properties/"+text(v), rule, "the member is required here and was not there")
			}
		}
	case "properties":
		d.properties(w, r, path, depth)
	case "additionalProperties":
		if _, ok := r["properties"]; !ok {
			d.properties(w, r, path, depth)
		}
	case "items":
		d.items(w, r, path, depth)
	case "allOf":
		branches, _ := r[name].([]any)
		for i, b := range branches {
			d.within(w, b, at+"/"+strconv.Itoa(i), depth+1)
		}
	case "anyOf", "oneOf":
		if found := d.trial(func() { d.unions(w, map[string]any{name: r[name]}, path, depth) }); len(found) > 0 {
			d.found = append(d.found, found...)
		}
	case "format", "pattern", "uniqueItems":
		if r[name] != false && (name != "pattern" && name != "format" || onlyIf(w, "string")) && (name != "uniqueItems" || onlyIf(w, "array")) {
			d.add(at, rule, "it is demanded here and was not there, or not the same")
		}
	default:
		d.add(at, "undecided", "whether %s still takes all that was allowed cannot be shown", name)
	}
}

// onlyIf reports whether w's values may be of the type that a keyword speaks of.
func onlyIf(w map[string]any, kind string) bool { return slices.Contains(typesOf(w), kind) }

var allTypes = []string{"null", "boolean", "number", "string", "array", "object"}

// typesOf are the types a schema allows.
func typesOf(s map[string]any) []string {
	switch t := s["type"].(type) {
	case string:
		return []string{t}
	case []any:
		var all []string
		for _, v := range t {
			all = append(all, text(v))
		}
		return all
	}
	if values := valuesOf(s); values != nil {
		var all []string
		for _, v := range values {
			all = append(all, typeOfValue(v))
		}
		return all
	}
	return allTypes
}

func typeOfValue(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case json.Number:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	}
	return "object"
}

// valuesOf are the values of enum or const; nil without either.
func valuesOf(s map[string]any) []any {
	if v, ok := s["const"]; ok {
		return []any{v}
	}
	v, _ := s["enum"].([]any)
	return v
}

func number(v any) *big.Rat {
	n, ok := v.(json.Number)
	if !ok || len(n) > maxDecimalDigits {
		return nil
	}
	i, okay := parseDecimal(string(n), 100)
	if !okay {
		return nil
	}
	return new(big.Rat).SetFrac(i, new(big.Int).Exp(big.NewInt(10), big.NewInt(100), nil))
}

// boundTypes are the types that a bound speaks of.
var boundTypes = map[string][]string{
	"minimum": {"number", "integer"}, "exclusiveMinimum": {"number", "integer"}, "maximum": {"number", "integer"}, "exclusiveMaximum": {"number", "integer"},
	"minLength": {"string"}, "maxLength": {"string"}, "minItems": {"array"}, "maxItems": {"array"}, "minContains": {"array"}, "maxContains": {"array"},
	"minProperties": {"object"}, "maxProperties": {"object"},
}

// bound compares a limit: the writer's must be at least as strict. sign is 1 for lower limits.
func (d *jsonDiffer) bound(name string, w, r map[string]any, at, rule string, sign int) {
	if !slices.ContainsFunc(boundTypes[name], func(t string) bool { return onlyIf(w, t) }) {
		return
	}
	a, b := number(w[name]), number(r[name])
	if b == nil {
		d.add(at, "undecided", "the limit is no number")
		return
	}
	if a == nil {
		// Of the two kinds of limit one may stand for the other.
		other := map[string]string{"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}[name]
		if a = number(w[other]); a == nil {
			if sign > 0 && b.Sign() <= 0 && name != "minimum" && name != "exclusiveMinimum" {
				return // nothing has fewer than none
			}
			d.add(at, rule, "it is limited here and was not there")
			return
		}
	}
	if a.Cmp(b)*sign < 0 {
		d.add(at, rule, "%s was allowed, here it is %s", a.RatString(), b.RatString())
	}
}

// properties compares members by name, and what is allowed beside them.
func (d *jsonDiffer) properties(w, r map[string]any, path string, depth int) {
	if !onlyIf(w, "object") {
		return
	}
	wp, _ := w["properties"].(map[string]any)
	rp, _ := r["properties"].(map[string]any)
	_, wPattern := w["patternProperties"]
	rest, limited := w["additionalProperties"]
	if !limited {
		rest = true
	}
	for _, name := range sortedKeys(rp) {
		at := path + "/properties/" + name
		switch before, known := wp[name]; {
		case known:
			d.within(before, rp[name], at, depth+1)
		case wPattern:
			d.add(at, "undecided", "patternProperties may have allowed it")
		case rest == false: // nobody has written one
		default:
			if found := d.trial(func() { d.within(rest, rp[name], at, depth+1) }); len(found) > 0 {
				d.add(at, "json.open", "the member may have been there with any content: its schema says additionalProperties otherwise")
			}
		}
	}
	allowed, limited := r["additionalProperties"]
	if !limited || allowed == true {
		return
	}
	if _, ok := r["patternProperties"]; ok {
		return // it is compared as a keyword of its own
	}
	for _, name := range sortedKeys(wp) {
		if _, known := rp[name]; !known {
			if found := d.trial(func() { d.within(wp[name], allowed, path+"/properties/"+name, depth+1) }); len(found) > 0 {
				d.add(path+"/properties/"+name, "json.additionalProperties", "the member was allowed and is not any more")
			}
		}
	}
	if found := d.trial(func() { d.within(rest, allowed, path+"/additionalProperties", depth+1) }); len(found) > 0 {
		d.add(path+"/additionalProperties", "json.additionalProperties", "members without a name in the schema were allowed and are not any more")
	}
}

// items compares arrays whose items are all of one schema; others are undecided.
func (d *jsonDiffer) items(w, r map[string]any, path string, depth int) {
	if !onlyIf(w, "array") {
		return
	}
	_, listR := r["items"].([]any)
	_, listW := w["items"].([]any)
	_, prefix := w["prefixItems"]
	if listR || listW || prefix {
		d.add(path+"/items", "undecided", "items of different schemas are not compared")
		return
	}
	before, ok := w["items"]
	if !ok {
		before = true
	}
	d.within(before, r["items"], path+"/items", depth+1)
}
