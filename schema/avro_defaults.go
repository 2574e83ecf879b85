package schema

import (
	"encoding/json"
	"fmt"
	"strings"
)

// avroUnfolding foresees how large a schema's defaults become when they are
// encoded, before the library encodes them: a record whose default leaves out
// fields takes theirs, and thirty records of two such fields each stand for a
// billion values. What it foresees is an upper bound: a type is found by its name
// without its namespace, and the dearest of a union's branches counts.
type avroUnfolding struct {
	records map[string][]*unfoldingRecord
	steps   int
}

type unfoldingRecord struct{ fields []*unfoldingField }

type unfoldingField struct {
	name       string
	of         any
	hasDefault bool
	fallback   any
	size       int // of the default; 0: not known yet
	under      bool
}

// maxUnfoldingSteps bounds the looking itself.
const maxUnfoldingSteps = 1_000_000

// check reports a schema whose defaults become too large. One that is no JSON is
// left to the library.
func (u *avroUnfolding) check(text string) error {
	var root any
	if json.Unmarshal([]byte(text), &root) != nil {
		return nil
	}
	if u.records == nil {
		u.records = map[string][]*unfoldingRecord{}
	}
	var added []*unfoldingField
	u.collect(root, &added)
	total := 0
	for _, f := range added {
		if total += u.fieldSize(f); total > maxDefaults || u.steps > maxUnfoldingSteps {
			return fmt.Errorf("the defaults are larger than %d bytes", maxDefaults)
		}
	}
	return nil
}

// collect finds the records that are defined below node.
func (u *avroUnfolding) collect(node any, added *[]*unfoldingField) {
	switch n := node.(type) {
	case []any:
		for _, branch := range n {
			u.collect(branch, added)
		}
	case map[string]any:
		switch kind := n["type"].(type) {
		case string:
			if kind != "record" && kind != "error" {
				break
			}
			r := &unfoldingRecord{}
			name, _ := n["name"].(string)
			u.records[shortName(name)] = append(u.records[shortName(name)], r)
			fields, _ := n["fields"].([]any)
			for _, one := range fields {
				field, ok := one.(map[string]any)
				if !ok {
					continue // the library says what is wrong with it
				}
				f := &unfoldingField{of: field["type"]}
				f.name, _ = field["name"].(string)
				if f.fallback, f.hasDefault = field["default"]; f.hasDefault {
					*added = append(*added, f)
				}
				r.fields = append(r.fields, f)
				u.collect(field["type"], added)
			}
			return
		default:
			u.collect(kind, added)
		}
		u.collect(n["items"], added)
		u.collect(n["values"], added)
	}
}

func shortName(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// fieldSize is what a field's default becomes. One that holds itself has no end.
func (u *avroUnfolding) fieldSize(f *unfoldingField) int {
	switch {
	case f.under:
		return maxDefaults + 1
	case f.size == 0:
		f.under = true
		f.size = 1 + u.size(f.of, f.fallback)
		f.under = false
	}
	return f.size
}

// size is what value becomes when it is encoded as of; at most little more than maxDefaults.
func (u *avroUnfolding) size(of, value any) int {
	if u.steps++; u.steps > maxUnfoldingSteps {
		return maxDefaults + 1
	}
	most := 1
	if text, ok := value.(string); ok {
		most += len(text)
	}
	switch t := of.(type) {
	case string:
		for _, r := range u.records[shortName(t)] {
			most = max(most, u.recordSize(r, value))
		}
	case []any:
		for _, branch := range t {
			most = max(most, u.size(branch, value))
		}
	case map[string]any:
		switch kind := t["type"].(type) {
		case string:
			switch kind {
			case "record", "error":
				name, _ := t["name"].(string)
				return max(most, u.size(name, value))
			case "array":
				values, _ := value.([]any)
				for _, v := range values {
					if most += u.size(t["items"], v); most > maxDefaults {
						break
					}
				}
			case "map":
				values, _ := value.(map[string]any)
				for k, v := range values {
					if most += len(k) + 1 + u.size(t["values"], v); most > maxDefaults {
						break
					}
				}
			default:
				most = max(most, u.size(kind, value))
			}
		default:
			most = max(most, u.size(kind, value))
		}
	}
	return min(most, maxDefaults+1)
}

func (u *avroUnfolding) recordSize(r *unfoldingRecord, value any) int {
	members, ok := value.(map[string]any)
	if !ok {
		return 1
	}
	total := 1
	for _, f := range r.fields {
		if v, there := members[f.name]; there {
			total += u.size(f.of, v)
		} else if f.hasDefault {
			total += u.fieldSize(f)
		}
		if total > maxDefaults {
			break
		}
	}
	return total
}
