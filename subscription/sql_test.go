package subscription

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/postern-dev/postern/event"
)

// tckCase is a case of the conformance kit (TCK) of CloudEvents SQL, as its
// README lays it down.
type tckCase struct {
	Name           string         `yaml:"name"`
	Expression     string         `yaml:"expression"`
	Result         any            `yaml:"result"`
	Error          string         `yaml:"error"`
	Event          map[string]any `yaml:"event"`
	EventOverrides map[string]any `yaml:"eventOverrides"`
}

// record is the case's event as Kafka has it: every attribute is text.
func (c tckCase) record() *event.Record {
	e := event.Event{
		ID: "full-event", Source: "/source/uri", Type: "com.example.FullEvent", Subject: "topic", DataSchema: "http://example.com/schema",
		Time: time.Date(2020, 3, 21, 12, 34, 56, 780000000, time.UTC), ContentType: "text/json",
		Extensions: []event.Attribute{{Name: "exbool", Value: "true"}, {Name: "exint", Value: "42"}, {Name: "exstring", Value: "exstring"}},
	}
	if c.Event != nil {
		e = event.Event{}
	}
	for _, attributes := range []map[string]any{c.Event, c.EventOverrides} {
		for name, value := range attributes {
			text := fmt.Sprint(value)
			switch name {
			case "specversion":
			case "id":
				e.ID = text
			case "source":
				e.Source = text
			case "type":
				e.Type = text
			case "subject":
				e.Subject = text
			case "dataschema":
				e.DataSchema = text
			case "datacontenttype":
				e.ContentType = text
			case "time":
				if t, ok := value.(time.Time); ok {
					e.Time = t
				} else {
					e.Time, _ = time.Parse(time.RFC3339Nano, text)
				}
			default:
				e.SetExtension(name, text)
			}
		}
	}
	return e.Record("tck")
}

// TestCloudEventsSQLConformance runs the TCK that comes with the SDK's module
// through filters. A filter gives no value but yes, no or why not, so that a
// case with another value is one that says so.
func TestCloudEventsSQLConformance(t *testing.T) {
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
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var kit struct {
			Tests []tckCase `yaml:"tests"`
		}
		if err := yaml.Unmarshal(text, &kit); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, c := range kit.Tests {
			cases++
			if wrong := conforms(c); wrong != "" {
				t.Errorf("%s: %s: %s: %s", filepath.Base(file), c.Name, c.Expression, wrong)
			}
		}
	}
	t.Logf("%d cases of %d files", cases, len(files))
}

func conforms(c tckCase) string {
	f, err := NewFilter(FilterSpec{SQL: c.Expression})
	switch c.Error {
	case "parse", "missingFunction":
		if err == nil {
			return "it is accepted"
		}
		return ""
	}
	if err != nil {
		return err.Error()
	}
	ok, err := f.Match(c.record(), nil)
	switch {
	case c.Error == "missingAttribute":
		if ok || err != nil {
			return fmt.Sprintf("got %v %v, want no match", ok, err)
		}
	case c.Error != "":
		if err == nil {
			return fmt.Sprintf("got %v, want an error (%s)", ok, c.Error)
		}
	default:
		want, isBool := c.Result.(bool)
		if s, isText := c.Result.(string); isText && (s == "true" || s == "false") {
			want, isBool = s == "true", true
		}
		if isBool && (err != nil || ok != want) {
			return fmt.Sprintf("got %v %v, want %v", ok, err, want)
		}
		if !isBool && (err == nil || !strings.Contains(err.Error(), fmt.Sprintf("gave %v,", c.Result))) {
			return fmt.Sprintf("got %v %v, want it to say that the value is %v", ok, err, c.Result)
		}
	}
	return ""
}
