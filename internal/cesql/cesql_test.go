package cesql

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	sdkerrors "github.com/cloudevents/sdk-go/sql/v2/errors"
	sdk "github.com/cloudevents/sdk-go/sql/v2/parser"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/goccy/go-yaml"
)

// attributes of an event, all text as Kafka has them.
type attributes map[string]string

func (a attributes) Get(name string) ([]byte, bool) {
	value, ok := a[name]
	return []byte(value), ok
}

func fullEvent() attributes {
	return attributes{
		"specversion": "1.0", "id": "full-event", "source": "/source/uri", "type": "com.example.FullEvent", "subject": "topic",
		"dataschema": "http://example.com/schema", "datacontenttype": "text/json", "time": "2020-03-21T12:34:56.78Z",
		"exbool": "true", "exint": "42", "exstring": "exstring",
	}
}

// tckCase is a case of the language's conformance kit (TCK), as its README lays it down.
type tckCase struct {
	Name           string         `yaml:"name"`
	Expression     string         `yaml:"expression"`
	Result         any            `yaml:"result"`
	Error          string         `yaml:"error"`
	Event          map[string]any `yaml:"event"`
	EventOverrides map[string]any `yaml:"eventOverrides"`
}

func (c tckCase) attributes() attributes {
	a := fullEvent()
	if c.Event != nil {
		a = attributes{"specversion": "1.0"}
	}
	for _, given := range []map[string]any{c.Event, c.EventOverrides} {
		for name, value := range given {
			a[name] = fmt.Sprint(value)
		}
	}
	return a
}

func (c tckCase) wrong() string {
	e, faults := Parse(c.Expression)
	switch c.Error {
	case "parse", "missingFunction": // both are told before an event comes
		if faults == nil {
			return "it is accepted"
		}
		return ""
	}
	if faults != nil {
		return fmt.Sprint(faults)
	}
	v, err := e.Evaluate(c.attributes())
	if missing := c.Error == "missingAttribute"; errors.Is(err, ErrMissingAttribute) != missing || (err != nil) != (c.Error != "") {
		return fmt.Sprintf("got %v %v, want the error %q", v, err, c.Error)
	}
	ofKind := v.kind == kindOf(c.Result) || c.EventOverrides != nil && v.kind == kindText // ours come from Kafka, as text
	if c.Error == "" && (v.String() != fmt.Sprint(c.Result) || !ofKind) {
		return fmt.Sprintf("got %v, want %v", v, c.Result)
	}
	return ""
}

func kindOf(v any) kind {
	switch v.(type) {
	case bool:
		return kindBoolean
	case string:
		return kindText
	}
	return kindInteger
}

func TestConformanceKitOfTheLanguage(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudevents/sdk-go/sql/v2").Output()
	if err != nil {
		t.Fatalf("find the SDK's module: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "test", "tck", "*.yaml"))
	if err != nil || len(files) < 15 {
		t.Fatalf("found %d files of cases: %v", len(files), err)
	}
	cases := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var kit struct {
			Tests []tckCase `yaml:"tests"`
		}
		if err := yaml.Unmarshal(content, &kit); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, c := range kit.Tests {
			cases++
			if wrong := c.wrong(); wrong != "" {
				t.Errorf("%s: %s: %s: %s", filepath.Base(file), c.Name, c.Expression, wrong)
			}
		}
	}
	t.Logf("%d cases of %d files", cases, len(files))
}

// TestValuesAreThoseOfTheSDK makes expressions at random and holds the evaluator
// against the CloudEvents SDK's.
func TestValuesAreThoseOfTheSDK(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	a, outcomes := fullEvent(), map[string]int{}
	delete(a, "exstring")
	a["exnumber"], a["exword"] = "-7", "False"
	for range 20_000 {
		expression := grow(random, 1+random.IntN(4))
		ours, theirs := outcome(expression, a), sdkOutcome(expression, a)
		if ours != theirs {
			t.Fatalf("%s\ngives %s, the SDK has %s", expression, ours, theirs)
		}
		outcomes[strings.Fields(ours)[0]]++
	}
	for _, wanted := range []string{"Boolean", "Integer", "String", "missing", "error"} {
		if outcomes[wanted] < 100 {
			t.Errorf("too few of the expressions gave a value of %s: %v", wanted, outcomes)
		}
	}
}

func outcome(expression string, a attributes) string {
	e, faults := Parse(expression)
	if faults != nil {
		return fmt.Sprint("faults ", faults)
	}
	v, err := e.Evaluate(a)
	switch {
	case errors.Is(err, ErrMissingAttribute):
		return "missing"
	case err != nil:
		return "error"
	}
	return fmt.Sprintf("%s %q", [...]string{"String", "Integer", "Boolean"}[v.kind], v)
}

func sdkOutcome(expression string, a attributes) (found string) {
	defer func() {
		if recover() != nil { // a SUBSTRING of a negative length
			found = "error"
		}
	}()
	e, err := sdk.Parse(expression)
	if err != nil {
		return "faults " + err.Error()
	}
	v, err := e.Evaluate(sdkEvent(a))
	switch {
	case sdkerrors.IsMissingAttributeError(err):
		return "missing"
	case err != nil:
		return "error"
	}
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("String %q", v)
	case bool:
		return fmt.Sprintf("Boolean %q", fmt.Sprint(v))
	}
	return fmt.Sprintf("Integer %q", fmt.Sprint(v))
}

func sdkEvent(a attributes) cloudevents.Event {
	e := cloudevents.New()
	for name, value := range a {
		switch name {
		case "specversion", "time":
		case "id":
			e.SetID(value)
		case "source":
			e.SetSource(value)
		case "type":
			e.SetType(value)
		case "subject":
			e.SetSubject(value)
		case "dataschema":
			e.SetDataSchema(value)
		case "datacontenttype":
			e.SetDataContentType(value)
		default:
			e.SetExtension(name, value)
		}
	}
	return e
}

// grow makes an expression of so many levels. Its texts are of ASCII and, but for
// patterns, without LIKE's signs: there the SDK counts bytes and takes a % of the
// text for the pattern's, where the specification says characters and any text.
func grow(random *rand.Rand, levels int) string {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	if levels == 0 {
		return pick("1", "0", "-3", "42", "2147483647", "-2147483648", "true", "FALSE", "'true'", "''", "'42'", "\"a\\\"b\"", "'x y'", "'abcabc'",
			"id", "source", "type", "Subject", "specversion", "dataschema", "datacontenttype", "exbool", "exint", "exnumber", "exword", "exstring", "nothere")
	}
	sub := func() string { return grow(random, levels-1) }
	switch random.IntN(12) {
	case 0:
		return pick("NOT ", "- ", "not ") + sub()
	case 1:
		return sub() + pick(" + ", " - ", " * ", " / ", " % ") + sub()
	case 2:
		return sub() + pick(" = ", " != ", " <> ", " < ", " <= ", " > ", " >= ") + sub()
	case 3:
		return sub() + pick(" AND ", " or ", " XOR ") + sub()
	case 4:
		return "(" + sub() + ")"
	case 5:
		return sub() + pick("", " NOT") + " LIKE " + pick("'%'", "''", "'a%'", "'%c'", "'%ab%c'", "'_%'", "'4_'", "'____'", "'%.%.%'", `'com.example.\_%'`, "'/%/_ri'")
	case 6:
		return "EXISTS " + pick("id", "source", "time2", "exint", "exstring", "subject", "dataschema", "nothere", "SUBJECT")
	case 7:
		return sub() + pick("", " NOT") + " IN (" + sub() + pick("", ", 'topic', 42", ", true") + ")"
	case 8:
		return pick("INT", "bool", "STRING", "IS_INT", "is_bool", "ABS", "LENGTH", "LOWER", "UPPER", "TRIM") + "(" + sub() + ")"
	case 9:
		return pick("LEFT", "right", "SUBSTRING") + "(" + sub() + ", " + pick("0", "1", "3", "-1", "100", "exnumber", sub()) + ")"
	case 10:
		return "SUBSTRING(" + sub() + ", " + pick("1", "2", "-2", "0", sub()) + ", " + pick("0", "1", "5", "-1", "2000000000", sub()) + ")"
	default:
		return pick("CONCAT(", "CONCAT_WS('-', ") + sub() + pick("", ", 'z'", ", 1, "+sub()) + ")"
	}
}

// TestCharactersAreCountedNotBytes: a String is a sequence of Unicode characters (section 3.1).
func TestCharactersAreCountedNotBytes(t *testing.T) {
	a := attributes{"subject": "Zürich", "id": "100%", "type": `a\_c`}
	for expression, want := range map[string]string{
		"LENGTH(subject)":            "6",
		"LEFT(subject, 2)":           "Zü",
		"RIGHT(subject, 5)":          "ürich",
		"SUBSTRING(subject, 2, 1)":   "ü",
		"SUBSTRING(subject, -5)":     "ürich",
		"subject LIKE 'Z_rich'":      "true",
		"subject LIKE '%rich'":       "true",
		"subject LIKE 'Z__rich'":     "false",
		"id LIKE '%'":                "true",
		`id LIKE '100\%'`:            "true",
		`id LIKE '10\%'`:             "false",
		"CONCAT('%', id) LIKE '%0%'": "true",
		`type LIKE 'a\_c'`:           "false",
		`type LIKE 'a_\_c'`:          "true",
	} {
		e, faults := Parse(expression)
		if faults != nil {
			t.Errorf("%s: %v", expression, faults)
			continue
		}
		if v, err := e.Evaluate(a); err != nil || v.String() != want {
			t.Errorf("%s gives %v %v, want %s", expression, v, err, want)
		}
	}
}

func TestFaultsSayWhere(t *testing.T) {
	for expression, want := range map[string]Fault{
		"type = 'x' AND [true]":        {1, 15, "token recognition error at: '['"},
		"id = 'x' AND\n  NOSUCH(type)": {2, 2, "there is no function NOSUCH of 1 arguments"},
		"LEFT(id)":                     {1, 0, "there is no function LEFT of 1 arguments"},
		"1 < 2147483648":               {1, 4, "2147483648 is no integer of 32 bits"},
	} {
		e, faults := Parse(expression)
		if e != nil || len(faults) == 0 || faults[0] != want {
			t.Errorf("%q: %v, want %v", expression, faults, want)
		}
	}
}

// FuzzExpression: whatever the text, it is told what is wrong with it, or it has a
// value or an error, and the SDK's parser takes it too.
func FuzzExpression(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		f.Add(grow(random, 3))
	}
	f.Add("NOT (a IN ('x', \"y\\\"\")")
	f.Add("LENGTH('\xff') = 1 AND x LIKE '\\%\xf0'")
	f.Fuzz(func(t *testing.T, expression string) {
		if len(expression) > 1000 {
			return
		}
		e, faults := Parse(expression)
		if faults != nil {
			return
		}
		if v, err := e.Evaluate(fullEvent()); err == nil && v.kind == kindAny {
			t.Errorf("%q has a value of no kind", expression)
		}
		if found := sdkOutcome(expression, fullEvent()); strings.HasPrefix(found, "faults") {
			t.Errorf("%q is taken, and the SDK finds %s", expression, found)
		}
	})
}

func BenchmarkEvaluate(b *testing.B) {
	const expression = `type LIKE 'com.%' AND EXISTS subject AND exint > 40`
	a := fullEvent()
	e, faults := Parse(expression)
	if faults != nil {
		b.Fatal(faults)
	}
	theirs, err := sdk.Parse(expression)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if v, err := e.Evaluate(a); err != nil || v.n != 1 {
				b.Fatal(v, err)
			}
		}
	})
	b.Run("sdk", func(b *testing.B) {
		b.ReportAllocs()
		made := sdkEvent(a)
		for b.Loop() {
			if v, err := theirs.Evaluate(made); err != nil || v != true {
				b.Fatal(v, err)
			}
		}
	})
}
