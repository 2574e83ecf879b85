package schema

import (
	"errors"
	"fmt"

	"github.com/postern-dev/postern/fault"
)

// maxViolations bounds what is told of one event; how many more there are is counted.
const maxViolations = 32

// report gathers what is wrong with one payload.
type report struct {
	list []fault.Violation
	more int
}

// add notes a violation of rule at pointer.
func (r *report) add(pointer, rule, expected, got string) {
	if len(r.list) >= maxViolations {
		r.more++
		return
	}
	r.list = append(r.list, fault.Violation{
		Field: pointer, Rule: rule, Expected: excerptLong(expected), Got: excerptLong(got),
		Description: fmt.Sprintf("%s: expected %s, got %s", rule, excerptLong(expected), excerptLong(got)),
	})
}

func (r *report) ok() bool { return len(r.list) == 0 }

// excerptLong shortens what a schema or an event says: both are of any length.
func excerptLong(text string) string {
	const most = 512
	if len(text) > most {
		return text[:cutAt(text, most)] + "..."
	}
	return text
}

// syntax notes that a text is not JSON.
func (r *report) syntax(err error) {
	var e *syntaxError
	if !errors.As(err, &e) {
		r.add("", "json.syntax", "JSON", err.Error())
		return
	}
	r.add("", e.rule, "JSON", e.Error())
}
