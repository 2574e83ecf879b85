package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
)

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// metrics is what operators scrape.
func (r *running) metrics() string {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), "GET", "http://"+r.gateway.Addrs().Admin+"/metrics", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}
