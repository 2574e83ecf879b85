package subscription

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// celCostLimit bounds the work of one expression on one event, in CEL's units:
// a step is about one, reading a text a tenth of its length. A loop over a list of
// a thousand takes some 5,000; a whole event of 1 MiB read as text 105,000. At
// worst, objects in loops, it is a quarter of a second.
const celCostLimit = 120_000

// celNesting bounds loops within loops, whose cost would be a power of the data's size.
const celNesting = 2

// celRegex bounds the instructions of a regular expression; a plain one has a few dozen.
const celRegex = 5000

// eventType is the type of the variable event: a struct whose fields are the
// attributes. An attribute that is not there reads as empty text (time: 1970),
// as a field of the proto's Event does; has(event.subject) tells the difference.
const eventType = "postern.Event"

// celEnvironment is what expressions are checked against. It is made once: making
// it costs as much as a hundred compilations.
var celEnvironment = sync.OnceValues(func() (*cel.Env, error) {
	base, err := cel.NewEnv(cel.OptionalTypes())
	if err != nil {
		return nil, err
	}
	return base.Extend(
		cel.CustomTypeProvider(celTypes{base.CELTypeProvider()}),
		cel.Variable("event", cel.ObjectType(eventType)),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("key", cel.BytesType),
		cel.Variable("data", cel.DynType),
		cel.Variable("raw", cel.BytesType),
		cel.Variable("topic", cel.StringType),
		cel.Variable("partition", cel.IntType),
		cel.Variable("offset", cel.IntType),
		cel.Variable("appended", cel.TimestampType),
		cel.ParserExpressionSizeLimit(maxFilterText),
		cel.ParserRecursionLimit(100),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(), cel.ValidateRegexProgramSizeLimit(celRegex),
			cel.ValidateComprehensionNestingLimit(celNesting),
		),
	)
})

// celExpression is a compiled expression.
type celExpression struct{ program cel.Program }

func newCEL(text string) (matcher, error) {
	env, err := celEnvironment()
	if err != nil {
		return never{}, fmt.Errorf("the CEL environment cannot be made: %w", err)
	}
	checked, issues := env.Compile(text)
	if issues.Err() != nil {
		return never{}, pointed(text, issues)
	}
	if kind := checked.OutputType(); !kind.IsExactType(cel.BoolType) && !kind.IsExactType(cel.DynType) {
		return never{}, fmt.Errorf("the expression gives a %s, and a filter gives true or false: compare it with something", kind)
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if !linear(checked) {
		options = append(options, cel.CostLimit(celCostLimit))
	}
	program, err := env.Program(checked, options...)
	if err != nil {
		return never{}, fmt.Errorf("the expression cannot be prepared: %w", err)
	}
	return celExpression{program}, nil
}

// linearOperators read their operands once and make nothing of their size.
var linearOperators = []string{
	operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
	operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional, operators.Index, operators.In,
	overloads.StartsWith, overloads.EndsWith, overloads.Contains, overloads.Size,
}

// linear reports whether an expression takes work proportional to its length
// times its event's, whatever the event. Counting its cost as it runs would take
// two thirds more time and three times the allocations.
func linear(checked *cel.Ast) bool {
	yes := true
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.CallKind:
			yes = yes && slices.Contains(linearOperators, e.AsCall().FunctionName())
		case ast.ComprehensionKind:
			yes = false
		}
	}))
	return yes
}

// pointed tells what is wrong with an expression, each fault with its line,
// column and a caret.
func pointed(text string, issues *cel.Issues) error {
	var all []string
	for _, e := range issues.Errors() {
		all = append(all, pointAt(text, e.Location.Line(), e.Location.Column(), e.Message))
	}
	return errors.New(strings.Join(all, "\n"))
}

// pointAt puts line and column (from 1 and 0 on), the line and a caret to a fault of text.
func pointAt(text string, line, column int, message string) string {
	message = fmt.Sprintf("%d:%d: %s", line, column+1, message)
	lines := strings.Split(text, "\n")
	if line < 1 || line > len(lines) || utf8.RuneCountInString(lines[line-1]) > 200 {
		return message
	}
	at := strings.ReplaceAll(lines[line-1], "\t", " ")
	return message + "\n    " + at + "\n    " + strings.Repeat(" ", min(max(0, column), utf8.RuneCountInString(at))) + "^"
}

func (c celExpression) match(e *view) (bool, error) {
	v := celVariables.Get().(*variables)
	v.view = e
	defer func() {
		*v = variables{}
		celVariables.Put(v)
	}()
	out, _, err := c.program.Eval(v)
	if err != nil && v.encoded { // an expression that is true or false all the same has no error
		return false, delivery.ErrEncoded
	}
	if err != nil {
		return false, errors.New(err.Error()) // the text only: v goes back to the pool
	}
	answer, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the filter gave a %s, which is neither true nor false", out.Type().TypeName())
	}
	return bool(answer), nil
}

// variables are an event's, made when an expression asks for them.
type variables struct {
	view    *view
	data    ref.Val
	encoded bool // data was asked for, and is in the wire format
	headers map[string]string
}

// encodedData stands for data that has to be decoded first.
var encodedData = types.NewErr("the data is in the schema registry's wire format")

var celVariables = sync.Pool{New: func() any { return new(variables) }}

func (v *variables) Parent() cel.Activation { return nil }

// ResolveName gives a variable. An error as the value ends the evaluation.
func (v *variables) ResolveName(name string) (any, bool) {
	r := v.view.record
	switch name {
	case "event":
		return v.view, true
	case "data":
		if v.data != nil {
			return v.data, true
		}
		switch {
		case v.view.decoded != nil:
			v.data = jsonValue(v.view.decoded)
		case event.IsEncoded(r.Value):
			v.encoded, v.data = true, encodedData
		default:
			v.data = jsonValue(r.Value)
		}
		return v.data, true
	case "key":
		return types.Bytes(r.Key), true
	case "raw":
		return types.Bytes(r.Value), true
	case "headers":
		if v.headers == nil {
			v.headers = headersOf(v.view)
		}
		return v.headers, true
	case "topic":
		return types.String(r.Topic), true
	case "partition":
		return types.Int(r.Partition), true
	case "offset":
		return types.Int(r.Offset), true
	case "appended":
		return types.Timestamp{Time: r.Timestamp}, true
	}
	return nil, false
}

// headersOf gives the headers that are no attributes, the last of each name, as text.
func headersOf(e *view) map[string]string {
	headers := make(map[string]string, len(e.record.Headers))
	for i := range e.record.Headers {
		h := &e.record.Headers[i]
		if !e.attributes.IsAttribute(h.Name) {
			headers[h.Name] = strings.ToValidUTF8(string(h.Value), "\uFFFD")
		}
	}
	return headers
}

// celTypes knows the event's type beside CEL's own.
type celTypes struct{ types.Provider }

func (p celTypes) FindStructType(name string) (*types.Type, bool) {
	if name == eventType {
		return types.NewTypeTypeWithParam(types.NewObjectType(eventType)), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldType: every legal name is an attribute, because an extension may
// have any; all are texts but time.
func (p celTypes) FindStructFieldType(structType, name string) (*types.FieldType, bool) {
	if structType != eventType {
		return p.Provider.FindStructFieldType(structType, name)
	}
	if !event.ValidAttribute(name) {
		return nil, false
	}
	field := &types.FieldType{Type: types.StringType, IsSet: func(target any) bool {
		_, ok := attributeOf(target, name)
		return ok
	}, GetFrom: func(target any) (any, error) {
		value, _ := attributeOf(target, name)
		return types.String(value), nil
	}}
	if name == "time" {
		field.Type = types.TimestampType
		field.GetFrom = func(target any) (any, error) {
			value, ok := attributeOf(target, name)
			if !ok {
				return types.Timestamp{Time: time.Unix(0, 0).UTC()}, nil
			}
			t, err := time.Parse(time.RFC3339Nano, string(value))
			return types.Timestamp{Time: t}, err
		}
	}
	return field, true
}

func attributeOf(target any, name string) ([]byte, bool) {
	e, ok := target.(*view)
	if !ok {
		return nil, false
	}
	return e.Get(name)
}

var (
	_ cel.Activation = (*variables)(nil)
	_ traits.Mapper  = (*jsonObject)(nil)
)
