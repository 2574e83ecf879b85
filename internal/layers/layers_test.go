// Package layers holds the house's import table as a test: what each package
// may import, and why not the rest.
package layers

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/postern-dev/postern/"

// table says what of ours each package may import. Arrows point down only.
var table = map[string][]string{
	"event":                {},
	"fault":                {},
	"history":              {},
	"internal/cesql":       {},
	"internal/chore":       {},
	"internal/setting":     {},
	"authz":                {"event", "fault"},
	"schema":               {"event", "fault", "internal/setting"},
	"proto/postern/v1":     {},
	"internal/wire":        {"event", "fault", "proto/postern/v1"},
	"internal/eventstream": {"event", "fault"},
	"internal/telemetry":   {"internal/setting"},
	"internal/embedded":    {"fault", "schema"},
	"broker":               {"event", "fault", "internal/setting"},
	"broker/brokertest":    {"broker", "event"},
	"delivery":             {"broker", "event", "fault", "internal/chore", "internal/setting"},
	"delivery/endpoint":    {"delivery", "event", "fault", "internal/chore", "internal/setting"},
	"delivery/endpoints":   {"authz", "broker", "delivery/endpoint", "delivery/webhook", "event", "fault", "internal/wire", "proto/postern/v1"},
	"delivery/push":        {"delivery", "delivery/endpoint", "delivery/webhook", "event", "internal/setting", "internal/wire", "proto/postern/v1"},
	"delivery/webhook":     {"delivery", "delivery/endpoint", "event", "internal/setting"},
	"publish":              {"authz", "broker", "event", "fault", "internal/setting", "internal/wire", "proto/postern/v1", "schema"},
	"subscription":         {"authz", "broker", "delivery", "delivery/endpoint", "delivery/push", "delivery/webhook", "event", "fault", "internal/cesql", "internal/setting", "internal/wire", "proto/postern/v1"},
	"subscribe":            {"authz", "delivery", "event", "fault", "internal/chore", "internal/eventstream", "internal/wire", "proto/postern/v1", "subscription"},
	"tail":                 {"authz", "broker", "event", "fault", "internal/eventstream", "internal/wire", "proto/postern/v1", "schema"},
	"internal/server":      {"authz", "fault", "internal/setting", "internal/wire"},
	"internal/config":      {"broker", "delivery/webhook", "internal/server", "internal/setting", "internal/telemetry", "publish", "schema", "subscription"},
	"internal/gateway":     {"*"},
	"cmd/gateway":          {"delivery/endpoint", "delivery/webhook", "event", "fault", "internal/config", "internal/embedded", "internal/gateway", "internal/prove", "internal/setting", "internal/telemetry", "internal/wire", "proto/postern/v1", "schema"},
	"internal/layers":      {},
	"internal/prove":       {"broker", "event", "fault", "history", "internal/embedded", "internal/link", "internal/wire", "internal/workload", "proto/postern/v1", "schema"},
	"internal/link":        {}, // it knows no protocol
	"internal/workload":    {"fault", "history", "internal/wire", "proto/postern/v1"},
	"internal/errorsdoc":   {"broker", "fault", "internal/wire"},
}

var kafkas = []string{"broker", "broker/brokertest", "internal/embedded"}

const behindBroker = "all of Kafka is behind package broker: its client can be changed in one place"

// outside says which of others' packages stay in which of ours, and why.
var outside = []struct {
	path    string
	allowed []string
	why     string
}{
	{"github.com/twmb/franz-go/pkg/kgo", kafkas, behindBroker},
	{"github.com/twmb/franz-go/pkg/kadm", kafkas, behindBroker},
	{"github.com/twmb/franz-go/pkg/kmsg", kafkas, behindBroker},
	{"github.com/twmb/franz-go/pkg/kerr", kafkas, behindBroker},
	{"github.com/twmb/franz-go/pkg/kfake", kafkas, behindBroker},
	{"github.com/twmb/franz-go/pkg/sr", []string{"schema"}, "the registry's API is behind schema.Client"},
	{"github.com/twmb/avro", []string{"schema"}, "schemas are compiled in one place"},
	{"github.com/santhosh-tekuri/jsonschema", []string{"schema"}, "schemas are compiled in one place"},
	{"github.com/bufbuild/protocompile", []string{"schema"}, "schemas are compiled in one place"},
	{"google.golang.org/grpc", []string{"proto/postern/v1", "publish", "subscribe", "tail", "internal/server", "internal/gateway", "internal/wire", "internal/workload", "internal/prove", "cmd/gateway", "internal/errorsdoc", "delivery/endpoints", "delivery/push"}, "what is decided about events does not depend on how they are carried"},
	{"github.com/cloudevents/sdk-go", []string{"internal/wire", "internal/cesql"}, "CloudEvents' protobuf message and its SQL are each one of many ways in; the rest is event's own"},
	{"github.com/spf13/cobra", []string{"cmd/gateway"}, "only the command line knows flags"},
	{"github.com/goccy/go-yaml", []string{"internal/config"}, "options are plain structs; one package reads files"},
	{"go.opentelemetry.io/otel/sdk", []string{"internal/telemetry"}, "packages measure with the API; one sets the SDK up"},
}

// outsidePrograms are programs beside the gateway: they may use anything but internal packages of the gateway's own wiring.
var outsidePrograms = []string{"loadtest", "examples", "interop"}

func violations(imports map[string][]string) []string {
	var found []string
	for pkg, paths := range imports {
		if slices.ContainsFunc(outsidePrograms, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") }) {
			continue
		}
		allowed, known := table[pkg]
		if !known {
			found = append(found, pkg+" has no row in the table: say what it owns and what it may import")
			continue
		}
		for _, path := range paths {
			if ours, ok := strings.CutPrefix(path, module); ok {
				if !slices.Contains(allowed, ours) && !slices.Contains(allowed, "*") {
					found = append(found, pkg+" imports "+ours+", which stands beside or above it")
				}
				continue
			}
			for _, o := range outside {
				if (path == o.path || strings.HasPrefix(path, o.path+"/")) && !slices.Contains(o.allowed, pkg) {
					found = append(found, pkg+" imports "+path+": "+o.why)
				}
			}
		}
	}
	slices.Sort(found)
	return found
}

func TestImportsFollowTheTable(t *testing.T) {
	imports := read(t, "../..")
	for _, v := range violations(imports) {
		t.Error(v)
	}
	for pkg := range table {
		if imports[pkg] == nil && pkg != "internal/layers" {
			t.Errorf("the table has a row for %s, which is not there", pkg)
		}
	}
}

func TestAPlantedViolationIsFound(t *testing.T) {
	for _, planted := range []map[string][]string{
		{"event": {module + "broker"}},
		{"delivery": {"google.golang.org/grpc"}},
		{"publish": {"github.com/twmb/franz-go/pkg/kgo"}},
		{"brandnew": {"fmt"}},
	} {
		if len(violations(planted)) != 1 {
			t.Errorf("%v: %v", planted, violations(planted))
		}
	}
}

// read gives the imports of each package's files that are not tests.
func read(t *testing.T, root string) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "third_party" || d.Name() == "tools" || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg = filepath.ToSlash(pkg)
		if imports[pkg] == nil {
			imports[pkg] = []string{}
		}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			imports[pkg] = append(imports[pkg], p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}
