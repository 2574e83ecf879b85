package subscription

import (
	"errors"
	"fmt"
	"strings"

	"github.com/antlr/antlr4/runtime/Go/antlr"
	cesql "github.com/cloudevents/sdk-go/sql/v2"
	cesqlerrors "github.com/cloudevents/sdk-go/sql/v2/errors"
	"github.com/cloudevents/sdk-go/sql/v2/gen"
	"github.com/cloudevents/sdk-go/sql/v2/parser"
	"github.com/cloudevents/sdk-go/sql/v2/runtime"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
)

// sql is an expression of CloudEvents SQL 1.0, by the CloudEvents SDK. There are
// no loops in it, so that its cost is bounded by its length times its event's.
type sql struct{ expression cesql.Expression }

func newSQL(text string) (m matcher, err error) {
	// The SDK's parser has panicked on wrong expressions, and they come from outside.
	defer func() {
		if r := recover(); r != nil {
			m, err = never{}, errors.New("it cannot be read as CloudEvents SQL")
		}
	}()
	if err := checkSQL(text); err != nil {
		return never{}, err
	}
	expression, err := parser.Parse(text)
	if err != nil {
		return never{}, fmt.Errorf("it is no CloudEvents SQL: %w", err)
	}
	return sql{expression}, nil
}

// checkSQL parses text for its faults alone. The SDK's parser tells no places,
// passes over characters that are no tokens (and prints them to standard error),
// and meets a function that does not exist only when an event comes.
func checkSQL(text string) error {
	c := &sqlChecker{text: text}
	lexer := gen.NewCESQLParserLexer(parser.NewCaseChangingStream(antlr.NewInputStream(text), true))
	lexer.RemoveErrorListeners()
	lexer.AddErrorListener(c)
	p := gen.NewCESQLParserParser(antlr.NewCommonTokenStream(lexer, antlr.TokenDefaultChannel))
	p.RemoveErrorListeners()
	p.AddErrorListener(c)
	tree := p.Cesql()
	if c.faults == nil {
		antlr.ParseTreeWalkerDefault.Walk(c, tree)
	}
	if c.faults != nil {
		return errors.New(strings.Join(c.faults, "\n"))
	}
	return nil
}

// sqlChecker gathers the faults of an expression.
type sqlChecker struct {
	antlr.DefaultErrorListener
	antlr.BaseParseTreeListener
	text   string
	faults []string
}

func (c *sqlChecker) SyntaxError(_ antlr.Recognizer, _ any, line, column int, message string, _ antlr.RecognitionException) {
	c.faults = append(c.faults, pointAt(c.text, line, column, message))
}

func (c *sqlChecker) EnterEveryRule(rule antlr.ParserRuleContext) {
	call, ok := rule.(*gen.FunctionInvocationExpressionContext)
	if !ok {
		return
	}
	name, arguments := call.FunctionIdentifier().GetText(), 0
	if list, ok := call.FunctionParameterList().(*gen.FunctionParameterListContext); ok {
		arguments = len(list.AllExpression())
	}
	if runtime.ResolveFunction(strings.ToUpper(name), arguments) == nil {
		c.faults = append(c.faults, pointAt(c.text, call.GetStart().GetLine(), call.GetStart().GetColumn(),
			fmt.Sprintf("there is no function %s of %d arguments", name, arguments)))
	}
}

// match evaluates the expression. An attribute that the event lacks makes it
// not match, as in the other dialects; so does an event that is no CloudEvent.
func (s sql) match(e *view) (ok bool, err error) {
	if !e.attributes.CloudEvent {
		return false, nil
	}
	defer func() {
		if r := recover(); r != nil {
			ok, err = false, fmt.Errorf("the SQL filter broke on this event: %v", r)
		}
	}()
	value, err := s.expression.Evaluate(sdkEvent(e))
	if cesqlerrors.IsMissingAttributeError(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	switch v := value.(type) {
	case bool:
		return v, nil
	case string:
		if v == "true" || v == "false" {
			return v == "true", nil
		}
	}
	return false, fmt.Errorf("the SQL filter gave %v, which is neither true nor false", value)
}

// sdkEvent writes an event's attributes as the SDK has them.
func sdkEvent(e *view) cloudevents.Event {
	c := &cloudevents.EventContextV1{}
	from := e.record.Event()
	c.ID, c.Type = from.ID, from.Type
	if u := types.ParseURIRef(from.Source); u != nil {
		c.Source = *u
	}
	if from.Subject != "" {
		c.Subject = &from.Subject
	}
	if !from.Time.IsZero() {
		c.Time = &types.Timestamp{Time: from.Time}
	}
	if from.ContentType != "" {
		c.DataContentType = &from.ContentType
	}
	if u := types.ParseURI(from.DataSchema); u != nil && from.DataSchema != "" {
		c.DataSchema = u
	}
	if len(from.Extensions) > 0 {
		c.Extensions = make(map[string]any, len(from.Extensions))
		for _, x := range from.Extensions {
			c.Extensions[x.Name] = x.Value
		}
	}
	return cloudevents.Event{Context: c}
}
