package subscription

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postern-dev/postern/internal/cesql"
)

// sql is an expression of CloudEvents SQL 1.0.
type sql struct{ expression *cesql.Expression }

func newSQL(text string) (matcher, error) {
	expression, faults := cesql.Parse(text)
	if faults != nil {
		lines := make([]string, len(faults))
		for i, f := range faults {
			lines[i] = pointAt(text, f.Line, f.Column, f.Message)
		}
		return never{}, errors.New(strings.Join(lines, "\n"))
	}
	return sql{expression}, nil
}

// match evaluates the expression. An attribute that the event lacks makes it
// not match, as in the other dialects; so does an event that is no CloudEvent.
func (s sql) match(e *view) (bool, error) {
	if !e.attributes.CloudEvent {
		return false, nil
	}
	value, err := s.expression.Evaluate(e)
	if errors.Is(err, cesql.ErrMissingAttribute) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("the SQL filter cannot be evaluated: %w", err)
	}
	if answer, ok := value.Bool(); ok {
		return answer, nil
	}
	if text, ok := value.Text(); ok && (text == "true" || text == "false") { // an attribute: they are all text
		return text == "true", nil
	}
	return false, fmt.Errorf("the SQL filter gave %v, which is neither true nor false", value)
}
