package gateway

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestALineThatMayNotGoWhereItAsksIsNoReasonToRefuseThoseBesideIt(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("neighbours", 1)
	g := start(t, cluster, nil)
	own := cluster.Name("_own." + subscriptionsTopic)
	path := "/v1/topics/" + topic + "/events"
	body := `{"value":"a"}` + "\n" + `{"value":"b","topic":"` + own + `"}` + "\n" + `{"value":"c"}` + "\n"
	for _, accept := range []string{event.MediaNDJSON, "application/json"} {
		a := g.do("POST", path, body, "Content-Type", event.MediaNDJSON, "Accept", accept)
		if strings.Count(a.Body, `"position"`) != 2 || strings.Count(a.Body, string(fault.NotAuthorized)) == 0 || strings.Count(a.Body, `"status":403`) == 0 {
			t.Errorf("%s: %d %s", accept, a.Status, a.Body)
		}
	}
	if a := g.do("POST", path, body, "Content-Type", event.MediaNDJSON, "Postern-Atomic", "true"); a.Status != 403 {
		t.Errorf("all or nothing: %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", "/v1/topics/"+own+"/events", `{"value":"a"}`, "Content-Type", event.MediaNDJSON); a.Status != 403 {
		t.Errorf("the request's own topic: %d %s", a.Status, a.Body)
	}
	if n := len(cluster.Read(topic)); n != 4 {
		t.Errorf("%d events are stored, want 4", n)
	}
}

func TestCompressedLinesAreAnsweredWhileTheyCome(t *testing.T) {
	type compressor interface {
		io.WriteCloser
		Flush() error
	}
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	for coding, open := range map[string]func(io.Writer) compressor{
		"gzip": func(w io.Writer) compressor { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) compressor {
			c, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
	} {
		topic := cluster.Topic("compressed-"+coding, 1)
		l := g.talk(topic, &http.Client{}, "Content-Encoding", coding)
		c := open(l.in)
		for i := range int64(3) { // each is answered before the next is sent
			if _, err := fmt.Fprintf(c, "{\"key\":\"k\",\"value\":%d}\n", i); err != nil {
				t.Fatal(err)
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			if r := l.next(); r.Status != 200 || r.Position.Offset != i {
				t.Fatalf("%s, line %d: %+v", coding, i, r)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		_ = l.in.Close() // the end of the body
		if rest, err := io.ReadAll(l.out); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q %v", coding, rest, err)
		}
		if n := len(cluster.Read(topic)); n != 3 {
			t.Errorf("%s: %d events are stored", coding, n)
		}
	}
}
