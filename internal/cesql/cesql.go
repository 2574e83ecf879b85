// Package cesql evaluates CloudEvents SQL 1.0. The grammar is the CloudEvents
// SDK's; the evaluator is our own, because the SDK's has every event made anew
// in its own form and brings libraries that grow the program by a quarter. The
// tests hold it against the SDK's, and against the language's conformance kit.
package cesql

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/antlr/antlr4/runtime/Go/antlr"
	"github.com/cloudevents/sdk-go/sql/v2/gen"
)

// ErrMissingAttribute says that an expression asked for an attribute which the
// event lacks (section 3.2).
var ErrMissingAttribute = errors.New("the event lacks an attribute that the expression asks for")

// Attributes are those of one event: the bytes of the one called name, in UTF-8,
// and whether the event has it.
type Attributes interface {
	Get(name string) ([]byte, bool)
}

// Expression is compiled and may be evaluated by many at once. There are no loops
// in the language, so that its cost is bounded by its length times the event's.
type Expression struct{ root node }

// Fault is what is wrong in an expression's text, and where: lines count from 1,
// columns from 0.
type Fault struct {
	Line, Column int
	Message      string
}

// Parse compiles text, or tells all that is wrong with it.
func Parse(text string) (e *Expression, faults []Fault) {
	// The parser has panicked on wrong expressions, and they come from outside.
	defer func() {
		if r := recover(); r != nil {
			e, faults = nil, []Fault{{Line: 1, Message: "it cannot be read as CloudEvents SQL"}}
		}
	}()
	c := &compiler{}
	lexer := gen.NewCESQLParserLexer(keywords{antlr.NewInputStream(text)})
	lexer.RemoveErrorListeners()
	lexer.AddErrorListener(c)
	parser := gen.NewCESQLParserParser(antlr.NewCommonTokenStream(lexer, antlr.TokenDefaultChannel))
	parser.RemoveErrorListeners()
	parser.AddErrorListener(c)
	tree := parser.Cesql()
	if c.faults != nil {
		return nil, c.faults
	}
	root := c.compile(tree)
	if c.faults != nil {
		return nil, c.faults
	}
	return &Expression{root}, nil
}

// Evaluate gives the expression's value for an event. An error is
// ErrMissingAttribute, or says which cast, division or call could not be made.
func (e *Expression) Evaluate(a Attributes) (Value, error) { return e.root(a) }

// keywords are read whatever their case: the lexer is shown capitals, the texts
// of its tokens stay as they are.
type keywords struct{ *antlr.InputStream }

func (k keywords) LA(offset int) int {
	c := k.InputStream.LA(offset)
	if c >= 'a' && c <= 'z' {
		c += 'A' - 'a'
	}
	return c
}

// node gives one part's value for an event.
type node func(Attributes) (Value, error)

// compiler turns the parser's tree into nodes and gathers faults.
type compiler struct {
	antlr.DefaultErrorListener
	faults []Fault
}

// SyntaxError is called by the lexer and the parser.
func (c *compiler) SyntaxError(_ antlr.Recognizer, _ any, line, column int, message string, _ antlr.RecognitionException) {
	c.faults = append(c.faults, Fault{line, column, message})
}

func (c *compiler) fault(at antlr.ParserRuleContext, format string, args ...any) node {
	c.faults = append(c.faults, Fault{at.GetStart().GetLine(), at.GetStart().GetColumn(), fmt.Sprintf(format, args...)})
	return nil
}

func (c *compiler) compile(tree antlr.Tree) node {
	switch t := tree.(type) {
	case *gen.CesqlContext, *gen.AtomExpressionContext, *gen.BooleanAtomContext, *gen.IntegerAtomContext, *gen.StringAtomContext, *gen.IdentifierAtomContext:
		return c.compile(t.GetChild(0))
	case *gen.SubExpressionContext:
		return c.compile(t.Expression())
	case *gen.BooleanLiteralContext:
		return literal(truth(t.TRUE() != nil))
	case *gen.IntegerLiteralContext:
		n, err := strconv.ParseInt(t.GetText(), 10, 32)
		if err != nil {
			return c.fault(t, "%s is no integer of 32 bits", t.GetText())
		}
		return literal(number(int32(n)))
	case *gen.StringLiteralContext:
		return literal(text(unquote(t)))
	case *gen.IdentifierContext:
		return attribute(strings.ToLower(t.GetText()))
	case *gen.ExistsExpressionContext:
		return exists(strings.ToLower(t.Identifier().GetText()))
	case *gen.UnaryLogicExpressionContext:
		return not(c.compile(t.Expression()))
	case *gen.UnaryNumericExpressionContext:
		return negative(c.compile(t.Expression()))
	case *gen.BinaryMultiplicativeExpressionContext:
		operator := product
		switch {
		case t.DIVIDE() != nil:
			operator = quotient
		case t.MODULE() != nil:
			operator = remainder
		}
		return arithmetic(c.compile(t.Expression(0)), c.compile(t.Expression(1)), operator)
	case *gen.BinaryAdditiveExpressionContext:
		operator := sum
		if t.MINUS() != nil {
			operator = difference
		}
		return arithmetic(c.compile(t.Expression(0)), c.compile(t.Expression(1)), operator)
	case *gen.BinaryComparisonExpressionContext:
		return c.comparison(t)
	case *gen.BinaryLogicExpressionContext:
		left, right := c.compile(t.Expression(0)), c.compile(t.Expression(1))
		switch {
		case t.AND() != nil:
			return both(left, right)
		case t.OR() != nil:
			return either(left, right)
		}
		return differ(left, right)
	case *gen.LikeExpressionContext:
		return notIf(t.NOT() != nil, like(c.compile(t.Expression()), unquote(t.StringLiteral())))
	case *gen.InExpressionContext:
		var set []node
		for _, member := range t.SetExpression().(*gen.SetExpressionContext).AllExpression() {
			set = append(set, c.compile(member))
		}
		return notIf(t.NOT() != nil, in(c.compile(t.Expression()), set))
	case *gen.FunctionInvocationExpressionContext:
		return c.call(t)
	}
	panic(fmt.Sprintf("the grammar has no %T", tree))
}

func (c *compiler) comparison(t *gen.BinaryComparisonExpressionContext) node {
	left, right := c.compile(t.Expression(0)), c.compile(t.Expression(1))
	switch {
	case t.EQUAL() != nil:
		return equal(left, right)
	case t.LESS() != nil:
		return compare(left, right, func(l, r int32) bool { return l < r })
	case t.LESS_OR_EQUAL() != nil:
		return compare(left, right, func(l, r int32) bool { return l <= r })
	case t.GREATER() != nil:
		return compare(left, right, func(l, r int32) bool { return l > r })
	case t.GREATER_OR_EQUAL() != nil:
		return compare(left, right, func(l, r int32) bool { return l >= r })
	}
	return not(equal(left, right)) // != and <>
}

func (c *compiler) call(t *gen.FunctionInvocationExpressionContext) node {
	var arguments []node
	for _, argument := range t.FunctionParameterList().(*gen.FunctionParameterListContext).AllExpression() {
		arguments = append(arguments, c.compile(argument))
	}
	name := t.FunctionIdentifier().GetText()
	f, ok := resolve(strings.ToUpper(name), len(arguments))
	if !ok {
		return c.fault(t, "there is no function %s of %d arguments", name, len(arguments))
	}
	return invoke(f, arguments)
}

func unquote(literal antlr.ParseTree) string {
	quoted := literal.GetText()
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\`+quoted[:1], quoted[:1])
}

func notIf(negated bool, n node) node {
	if negated {
		return not(n)
	}
	return n
}
