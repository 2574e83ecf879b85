package config

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/postern-dev/postern/internal/setting"
)

// maxFile bounds a configuration file.
const maxFile = 4 << 20

// Load reads the file at path ("" reads none), then the environment, then
// flags given as "kafka.brokers" -> "a:9092,b:9092". It reports every fault it
// finds, each with its place.
func Load(path string, environ []string, flags map[string]string) (Config, error) {
	var c Config
	var source *file
	if path != "" {
		var err error
		if source, err = readFile(path); err != nil {
			return c, err
		}
		if err := source.decode(&c); err != nil {
			return c, err
		}
	}
	var errs []error
	settings := leaves(reflect.ValueOf(&c).Elem(), "")
	set := func(name, from, text string) {
		leaf, ok := settings[name]
		if !ok {
			return
		}
		if err := assign(leaf, text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", from, err))
		}
	}
	for _, name := range slices.Sorted(keysOf(settings)) {
		variable := Variable(name)
		for _, pair := range environ {
			if text, ok := strings.CutPrefix(pair, variable+"="); ok {
				set(name, variable, text)
			}
		}
		if text, ok := flags[name]; ok {
			set(name, "--"+Flag(name), text)
		}
	}
	if err := c.Validate(); err != nil {
		errs = append(errs, source.locate(err))
	}
	return c.WithDefaults(), errors.Join(errs...)
}

// Variable is the environment's name of a setting.
func Variable(name string) string {
	return "POSTERN_" + strings.ToUpper(strings.ReplaceAll(name, ".", "_"))
}

// Flag is the command line's name of a setting, without the dashes.
func Flag(name string) string { return strings.NewReplacer(".", "-", "_", "-").Replace(name) }

// Settings lists the names that the environment and flags may set.
func Settings() []string {
	var c Config
	return slices.Sorted(keysOf(leaves(reflect.ValueOf(&c).Elem(), "")))
}

func keysOf(m map[string]leaf) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// leaf reaches one scalar or list of scalars below the Config, making the structs on its way.
type leaf func() reflect.Value

// leaves finds them by their yaml names. Lists of structs (topics,
// subscriptions) and maps are the file's only.
func leaves(v reflect.Value, prefix string) map[string]leaf {
	found := map[string]leaf{}
	walk(v.Type(), prefix, func() reflect.Value { return v }, found)
	return found
}

func walk(t reflect.Type, prefix string, reach leaf, found map[string]leaf) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("yaml")
		if name == "" || name == "-" {
			continue
		}
		name = prefix + name
		field := func() reflect.Value { return reach().Field(i) }
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			inner := field
			field = func() reflect.Value {
				p := inner()
				if p.IsNil() {
					p.Set(reflect.New(p.Type().Elem()))
				}
				return p.Elem()
			}
			kind = kind.Elem()
		}
		_, text := reflect.New(kind).Interface().(encoding.TextUnmarshaler)
		switch {
		case kind.Kind() == reflect.Struct && !text:
			walk(kind, name+".", field, found)
		case text, kind.Kind() == reflect.String, kind.Kind() == reflect.Bool, kind.Kind() == reflect.Int, kind.Kind() == reflect.Int64,
			kind.Kind() == reflect.Float64, kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.String:
			found[name] = field
		}
	}
}

func assign(reach leaf, text string) error {
	v := reach()
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 30s or 5m", text)
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case v.Kind() == reflect.Int, v.Kind() == reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(n)
	case v.Kind() == reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", text)
		}
		v.SetFloat(n)
	case v.Kind() == reflect.Slice:
		list := reflect.MakeSlice(v.Type(), 0, 4)
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = reflect.Append(list, reflect.ValueOf(part))
			}
		}
		v.Set(list)
	}
	return nil
}

// file is a configuration file, kept so that faults found later can say where they stand.
type file struct {
	path  string
	text  []byte
	lines []string // of text
	tree  *ast.File
}

func readFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("the configuration %s is larger than %d bytes", path, maxFile)
	}
	return parse(path, text)
}

func parse(path string, text []byte) (*file, error) {
	f := &file{path: path, text: text, lines: strings.Split(string(text), "\n")}
	var err error
	if f.tree, err = parser.ParseBytes(text, 0); err != nil {
		return nil, f.syntax(err)
	}
	return f, nil
}

// decode reads the file strictly: an unknown name is a fault. References are
// resolved in each value, after parsing, so that what they hold is never read
// as YAML.
func (f *file) decode(c *Config) error {
	var errs []error
	for _, doc := range f.tree.Docs {
		if doc.Body != nil {
			doc.Body = resolve(doc.Body, func(at ast.Node, err error) { errs = append(errs, f.at(at, err.Error())) })
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if len(f.tree.Docs) == 0 || f.tree.Docs[0].Body == nil {
		return nil
	}
	return f.into(c)
}

// into decodes the first document, which is there. Tags are refused: nothing here
// needs them, and with one the decoder takes a value for what it is not. What it
// panics at is a fault of the file like any other: a gateway that runs reads its
// file again.
func (f *file) into(target any) (err error) {
	body := f.tree.Docs[0].Body
	tags := ast.Filter(ast.TagType, body)
	if len(tags) > 0 {
		return f.at(tags[0], "tags like !name or !!str have no meaning here: leave it out, and quote what is to be text")
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s cannot be read: the YAML decoder failed (%v)", f.path, p)
		}
	}()
	if err := yaml.NewDecoder(bytes.NewReader(f.text), yaml.Strict()).DecodeFromNode(body, target); err != nil {
		return cmp.Or(f.misread(reflect.TypeOf(target).Elem(), body), f.syntax(err))
	}
	return nil
}

// misread finds the values that do not read themselves from their text: the decoder
// does not say where they stand. nil: there are none.
func (f *file) misread(t reflect.Type, n ast.Node) error {
	if n == nil {
		return nil
	}
	value := reflect.New(t)
	if _, ok := value.Interface().(encoding.TextUnmarshaler); ok || t == reflect.TypeFor[time.Duration]() {
		if _, scalar := n.(ast.ScalarNode); scalar {
			if err := assign(value.Elem, n.GetToken().Value); err != nil {
				return f.at(n, err.Error())
			}
		}
		return nil
	}
	var errs []error
	switch t.Kind() { //nolint:exhaustive // others hold no other values
	case reflect.Pointer:
		return f.misread(t.Elem(), n)
	case reflect.Struct:
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			errs = append(errs, f.misread(t.Field(i).Type, child(n, name)))
		}
	case reflect.Slice:
		if list, ok := n.(*ast.SequenceNode); ok {
			for _, v := range list.Values {
				errs = append(errs, f.misread(t.Elem(), v))
			}
		}
	case reflect.Map:
		for _, v := range values(n) {
			errs = append(errs, f.misread(t.Elem(), v.Value))
		}
	}
	return errors.Join(errs...)
}

// syntax says where the decoder's complaint stands. Its own excerpt would show
// the lines around, and what secrets are in them.
func (f *file) syntax(err error) error {
	var wrong yaml.Error
	if errors.As(err, &wrong) && wrong.GetToken() != nil {
		return f.place(wrong.GetToken(), wrong.GetMessage())
	}
	return fmt.Errorf("%s: %w", f.path, err)
}

var environment = regexp.MustCompile(`\$\{env:([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}`)

// resolve replaces ${env:NAME} (or ${env:NAME:-default}) in scalars and the
// mapping {file: PATH} by the file's content without its last line break. The other
// values stand alone then.
func resolve(n ast.Node, fail func(ast.Node, error)) ast.Node {
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) == 1 && n.Values[0].Key.String() == "file" {
			if s, ok := n.Values[0].Value.(*ast.StringNode); ok {
				return fileValue(n, s, fail)
			}
		}
		for _, v := range n.Values {
			v.Value = resolve(v.Value, fail)
		}
	case *ast.MappingValueNode:
		if n.Key.String() == "file" {
			if s, ok := n.Value.(*ast.StringNode); ok {
				return fileValue(n, s, fail)
			}
		}
		n.Value = resolve(n.Value, fail)
	case *ast.SequenceNode:
		for i := range n.Values {
			n.Values[i] = resolve(n.Values[i], fail)
		}
	case *ast.IntegerNode:
		n.Token = alone(n.Token)
	case *ast.FloatNode:
		n.Token = alone(n.Token)
	case *ast.StringNode:
		if !environment.MatchString(n.Value) {
			n.Token = alone(n.Token)
			return n
		}
		return quoted(n, environment.ReplaceAllStringFunc(n.Value, func(reference string) string {
			m := environment.FindStringSubmatch(reference)
			if text, ok := os.LookupEnv(m[1]); ok {
				return text
			}
			if m[2] == "" {
				fail(n, fmt.Errorf("the environment has no %s: set it, or give a default with ${env:%s:-default}", m[1], m[1]))
			}
			return m[3]
		}))
	}
	return n
}

// alone is a token without its neighbours. Of a value that reads itself from text the
// decoder writes that text anew, and for it walks through all tokens that hang together:
// 10,000 secrets took eight minutes.
func alone(t *token.Token) *token.Token {
	c := *t
	c.Prev, c.Next = nil, nil
	return &c
}

func fileValue(at ast.Node, path *ast.StringNode, fail func(ast.Node, error)) ast.Node {
	b, err := os.ReadFile(path.Value)
	if err != nil {
		fail(path, fmt.Errorf("read the value: %w", err))
		return at
	}
	return quoted(path, strings.TrimRight(string(b), "\r\n"))
}

// at says where a fault stands.
func (f *file) at(n ast.Node, message string) error {
	if f == nil || n == nil || n.GetToken() == nil {
		return errors.New(message)
	}
	return f.place(n.GetToken(), message)
}

// confidential finds lines that may hold a secret, misspelt names included.
var confidential = regexp.MustCompile(`(?i)pass|secret|token|key|auth|header|credential|prox`)

// quoted is a node of its own for a value that was resolved: the decoder reads
// some values from a node's tokens, and those of the reference are not the value's.
func quoted(at ast.Node, value string) ast.Node {
	return ast.String(token.DoubleQuote(value, strconv.Quote(value), at.GetToken().Position))
}

// place gives file:line:column, the message, the line and a caret. Of a line
// that may hold a secret only the beginning is shown.
func (f *file) place(t *token.Token, message string) error {
	p := t.Position
	if p.Line < 1 || p.Line > len(f.lines) {
		return fmt.Errorf("%s: %s", f.path, message)
	}
	line := strings.TrimRight(f.lines[p.Line-1], "\r")
	if confidential.MatchString(line) {
		name, _, _ := strings.Cut(line, ":")
		return fmt.Errorf("%s:%d:%d: %s\n    %s: ***", f.path, p.Line, p.Column, message, name)
	}
	return fmt.Errorf("%s:%d:%d: %s\n    %s\n    %s^", f.path, p.Line, p.Column, message, line, strings.Repeat(" ", max(0, p.Column-1)))
}

// locate puts the places of the file to the faults of Validate.
func (f *file) locate(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, f.locate(e))
		}
		return errors.Join(all...)
	}
	var wrong *setting.Error
	if !errors.As(err, &wrong) || f == nil || len(f.tree.Docs) == 0 {
		return err
	}
	return f.at(find(f.tree.Docs[0].Body, wrong.Path), wrong.Error())
}

// find gives the node at path, or the nearest one above it that is there.
func find(n ast.Node, path string) ast.Node {
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next := child(n, step)
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func child(n ast.Node, step string) ast.Node {
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if v.Key.String() == step {
				return v.Value
			}
		}
	case *ast.MappingValueNode:
		if n.Key.String() == step {
			return n.Value
		}
	case *ast.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i < len(n.Values) {
			return n.Values[i]
		}
	}
	return nil
}
