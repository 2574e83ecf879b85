package embedded

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func startRegistry(t *testing.T, dir string) *Registry {
	t.Helper()
	r, err := StartRegistry(RegistryOptions{Dir: dir, Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func call(t *testing.T, r *Registry, method, path, body string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, r.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status[:3] + " " + string(b)
}

const (
	one      = `{"schema":"{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"int\"}]}"}`
	oneAgain = `{"schema":"{\"type\": \"record\", \"name\": \"R\",\"fields\":[{\"name\":\"a\",\"type\":\"int\"}]}"}`
	two      = `{"schema":"{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"int\"},{\"name\":\"b\",\"type\":\"string\",\"default\":\"\"}]}"}`
	bad      = `{"schema":"{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"string\"}]}"}`
)

// The story of a registry, in Confluent's words; run again after a restart where it says so.
func TestRegistrySpeaksConfluentsAPIAndKeepsItsData(t *testing.T) {
	dir := t.TempDir()
	r := startRegistry(t, dir)
	for _, step := range []struct{ method, path, body, want string }{
		{"GET", "/subjects", "", `200 []`},
		{"GET", "/config", "", `200 {"compatibilityLevel":"BACKWARD"}`},
		{"POST", "/subjects/s/versions", one, `200 {"id":1}`},
		{"POST", "/subjects/s/versions", oneAgain, `200 {"id":1}`},
		{"POST", "/subjects/other/versions", one, `200 {"id":1}`},
		{"POST", "/subjects/s/versions", bad, `409 {"error_code":409,"message":"Schema being registered is incompatible with an earlier schema for subject \"s\", level BACKWARD: R.a: int cannot be read as string (avro.type; readers of the new schema could not read events of version 1)"}`},
		{"POST", "/subjects/s/versions", `{"schema":"{"}`, `422 {"error_code":42201`},
		{"POST", "/subjects/s/versions", `?`, `422 {"error_code":42201`},
		{"POST", "/subjects/s/versions", `{"schema":"x","schemaType":"XML"}`, `422 {"error_code":42201`},
		{"POST", "/compatibility/subjects/s/versions/latest?verbose=true", bad, `200 {"is_compatible":false,"messages":["R.a: int cannot be read as string`},
		{"POST", "/compatibility/subjects/s/versions/latest", two, `200 {"is_compatible":true}`},
		{"POST", "/compatibility/subjects/new/versions", two, `200 {"is_compatible":true}`},
		{"POST", "/compatibility/subjects/new/versions/latest", two, `404 {"error_code":40401`},
		{"POST", "/subjects/s/versions", two, `200 {"id":2}`},
		{"GET", "/subjects/s/versions", "", `200 [1,2]`},
		{"GET", "/subjects/s/versions/9", "", `404 {"error_code":40402`},
		{"GET", "/subjects/s/versions/x", "", `422 {"error_code":42202`},
		{"GET", "/subjects/none/versions/1", "", `404 {"error_code":40401`},
		{"GET", "/schemas/ids/9", "", `404 {"error_code":40403`},
		{"POST", "/subjects/s", oneAgain, `200 {"subject":"s","version":1,"id":1,"schema":`},
		{"POST", "/subjects/s", bad, `404 {"error_code":40403`},
		{"GET", "/schemas/ids/1/versions", "", `200 [{"subject":"other","version":1},{"subject":"s","version":1}]`},
		{"PUT", "/config/s", `{"compatibility":"NONE"}`, `200 {"compatibility":"NONE"}`},
		{"PUT", "/config/s", `{"compatibility":"MAYBE"}`, `422 {"error_code":42203`},
		{"GET", "/config/other", "", `404 {"error_code":40408`},
		{"GET", "/config/other?defaultToGlobal=true", "", `200 {"compatibilityLevel":"BACKWARD"}`},
		{"POST", "/subjects/s/versions", bad, `200 {"id":3}`},
		{"POST", "/subjects/user/versions", `{"schema":"{\"type\":\"array\",\"items\":\"R\"}","references":[{"name":"R","subject":"other","version":1}]}`, `200 {"id":4}`},
		{"POST", "/subjects/user2/versions", `{"schema":"{\"type\":\"array\",\"items\":\"R\"}","references":[{"name":"R","subject":"other","version":7}]}`, `422 {"error_code":42201`},
		{"GET", "/subjects/other/versions/1/referencedby", "", `200 [4]`},
		{"DELETE", "/subjects/other/versions/1", "", `422 {"error_code":42206`},
		{"DELETE", "/subjects/s/versions/3?permanent=true", "", `404 {"error_code":40407`},
		{"DELETE", "/subjects/s/versions/3", "", `200 3`},
		{"DELETE", "/subjects/s/versions/3?permanent=true", "", `200 3`},
		{"POST", "/contexts/.left/subjects/s/versions", two, `200 {"id":2}`},
		{"GET", "/contexts/.left/subjects", "", `200 [":.left:s"]`},
		{"GET", "/contexts", "", `200 [".",".left"]`},
		{"POST", "/subjects/p/versions", `{"schemaType":"PROTOBUF","schema":"syntax=\"proto3\"; message A {}"}`, `200 {"id":5}`},
		{"POST", "/subjects/j/versions", `{"schemaType":"JSON","schema":"{\"type\":\"object\"}"}`, `200 {"id":6}`},
		{"GET", "/schemas/ids/6", "", `200 {"schema":"{\"type\":\"object\"}","schemaType":"JSON"}`},
		{"GET", "/nowhere", "", `404 {"error_code":404`},
		{"POST", "/subjects/big/versions", `{"schema":"` + strings.Repeat("x", maxRegistryBody) + `"}`, `413 {"error_code":413`},
	} {
		if got := call(t, r, step.method, step.path, step.body); !strings.HasPrefix(got, step.want) {
			t.Errorf("%s %s: %s\nwant %s", step.method, step.path, got, step.want)
		}
	}
	before := call(t, r, "GET", "/subjects?deleted=true", "") + call(t, r, "GET", "/subjects/s/versions/latest", "") + call(t, r, "GET", "/config/s", "")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	// A crash in the middle of a write: the line was not answered and is dropped.
	file, err := os.OpenFile(filepath.Join(dir, "schemas.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"register":{"subject":"s","ver`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	r = startRegistry(t, dir)
	after := call(t, r, "GET", "/subjects?deleted=true", "") + call(t, r, "GET", "/subjects/s/versions/latest", "") + call(t, r, "GET", "/config/s", "")
	if before != after {
		t.Errorf("after a restart\n%s\nbefore\n%s", after, before)
	}
	if got := call(t, r, "POST", "/subjects/later/versions", `{"schema":"\"int\""}`); got != `200 {"id":7}` {
		t.Errorf("an id was given again: %s", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRegistryListensOnThisMachineOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "nowhere:1", "10.0.0.1:7603"} {
		if r, err := StartRegistry(RegistryOptions{Address: address}); err == nil {
			_ = r.Close()
			t.Errorf("%s was taken", address)
		}
	}
}
