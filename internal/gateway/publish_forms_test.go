package gateway

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/publish"
)

// No header may pose as an attribute that the topic's rule or a reader relies on.
func TestAHeaderCannotPoseAsAnAttribute(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("posing", 1)
	path := "/v1/topics/" + topic + "/events"
	ce := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t"}
	for name, a := range map[string]answer{
		"HTTP attribute":    g.do("POST", path, "x", append(ce, "Postern-Header-Ce_type", "other")...),
		"HTTP content type": g.do("POST", path, "x", append(ce, "Postern-Header-Content-Type", "other/type")...),
		"HTTP in base64":    g.do("POST", path, "x", append(ce, "Postern-Headers-Base64", base64.StdEncoding.EncodeToString([]byte("ce_id"))+":eA==")...),
		"plain":             g.do("POST", path, "x", "Content-Type", "text/plain", "Postern-Header-Content-Type", "other/type"),
	} {
		if a.Status != 400 || a.Reason != fault.InvalidCloudEvent {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
	}
	a := g.do("POST", path, `{"value":"x","content_type":"text/plain","headers":[["content-type","a/b"]]}`, "Content-Type", "application/x-ndjson")
	if r := a.results(t); r[0].Status != 400 {
		t.Errorf("NDJSON: %s", a.Body)
	}
	r, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{
		{Id: "1", Source: "/s", Type: "t", Headers: []*posternv1.Header{{Name: "ce_subject", Value: []byte("x")}}},
	}})
	if err != nil || reasonIn(r.Results[0]) != fault.InvalidCloudEvent {
		t.Errorf("gRPC: %v %v", r, err)
	}
	if n := len(cluster.Read(topic)); n != 0 {
		t.Errorf("%d are stored", n)
	}
}

// Records as Kafka has them: binary keys, repeated, binary and null headers, null values, a partition of one's own.
func TestEveryRecordOfKafkaCanBeWrittenOverHTTP(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("records", 3)
	path := "/v1/topics/" + topic + "/events"
	line := `{"key_base64":"/wA=","value":null,"partition":2,"headers":[["a","1"],["a","2"],["bin",{"base64":"AP8="}],["none",null],["empty",""]]}`
	if a := g.do("POST", path, line, "Content-Type", "application/x-ndjson"); a.results(t)[0].Status != 200 {
		t.Fatalf("%s", a.Body)
	}
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	if a := g.do("POST", path, "v", "Postern-Key-Base64", "/wA=", "Postern-Partition", "2", "Postern-Header-A", "1", "Postern-Header-A", "2",
		"Postern-Headers-Base64", b64("bin")+":"+b64("\x00\xff")+", "+b64("none"), "Postern-Headers-Base64", b64("empty")+":"); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	want := []event.Header{{Name: "a", Value: []byte("1")}, {Name: "a", Value: []byte("2")}, {Name: "bin", Value: []byte{0, 0xff}}, {Name: "none"}, {Name: "empty", Value: []byte{}}}
	records := cluster.Read(topic)
	if len(records) != 2 || records[0].Value != nil || string(records[1].Value) != "v" {
		t.Fatalf("stored: %v", records)
	}
	for i, r := range records {
		if r.Partition != 2 || !bytes.Equal(r.Key, []byte{0xff, 0}) {
			t.Errorf("record %d: partition %d, key %x", i, r.Partition, r.Key)
		}
		for j, h := range want {
			if j >= len(r.Headers) || r.Headers[j].Name != h.Name || !bytes.Equal(r.Headers[j].Value, h.Value) || (r.Headers[j].Value == nil) != (h.Value == nil) {
				t.Errorf("record %d: headers %v, want %v", i, r.Headers, want)
				break
			}
		}
	}
	if a := g.do("POST", path, "v", "Postern-Headers-Base64", "no base64"); a.Status != 400 || a.Reason != fault.InvalidHeader && a.Reason != fault.InvalidCloudEvent {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

func TestALineSaysWhereItsEventGoes(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	a, b := cluster.Topic("line-a", 1), cluster.Topic("line-b", 1)
	body := `{"value":"1","topic":"` + b + "\"}\n{\"value\":\"2\"}\n{\"value\":\"3\",\"topic\":\"" + b + "\",\"offset\":17}\n"
	for _, headers := range [][]string{{"Postern-Atomic", "true"}, nil} {
		if r := g.do("POST", "/v1/topics/"+a+"/events", body, append(headers, "Content-Type", "application/x-ndjson")...); r.Status != 200 {
			t.Fatalf("%v: %d %s", headers, r.Status, r.Body)
		}
	}
	eventually(t, "all are seen", func() bool { return len(cluster.Read(b)) == 2 && len(cluster.Read(a)) == 4 })
	r := g.do("POST", "/v1/topics/"+a+"/events", `{"value":"1","topic":"no topic"}`+"\n{\"value\":\"2\"}\n", "Content-Type", "application/x-ndjson").results(t)
	if r[0].Status != 400 || r[1].Status != 200 {
		t.Errorf("a line with a bad topic: %+v", r)
	}
}

// A header that speaks of one event is refused where it would be ignored.
func TestHeadersOfOneEventAreRefusedOnRequestsOfSeveral(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("several", 1)
	for _, kind := range []string{event.MediaNDJSON, event.MediaBatch} {
		for _, name := range []string{"Postern-Key", "Postern-Key-Base64", "Postern-Partition", "Postern-Timestamp", "Postern-Header-X", "Postern-Headers-Base64"} {
			if a := g.do("POST", "/v1/topics/"+topic+"/events", "[]", "Content-Type", kind, name, "0"); a.Status != 400 || a.Reason != fault.InvalidHeader {
				t.Errorf("%s with %s: %d %s", name, kind, a.Status, a.Body)
			}
		}
	}
}

// validate_only refuses what publishing would refuse.
func TestValidateOnlyRefusesWhatPublishingRefuses(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, rules(publish.Rules{CloudEvents: "structured"}))
	topic := cluster.Topic("preview", 2)
	path := "/v1/topics/" + topic + "/events"
	if a := g.do("POST", path, "x", "Idempotency-Key", "k"); a.Status != 200 {
		t.Fatal(a.Body)
	}
	for name, c := range map[string]struct {
		headers []string
		status  int
		reason  fault.Reason
	}{
		"atomic with a key": {[]string{"Idempotency-Key", "a", "Postern-Atomic", "true"}, 400, fault.InvalidArgument},
		"a key of another":  {[]string{"Idempotency-Key", "k"}, 422, fault.DedupeKeyReused},
		"no such partition": {[]string{"Postern-Partition", "2"}, 400, fault.UnknownPartition},
		"a key of its own":  {[]string{"Idempotency-Key", "new"}, 200, ""},
	} {
		for _, only := range []string{"true", "false"} {
			if only == "false" && c.status == 200 {
				continue
			}
			a := g.do("POST", path, "y", append(c.headers, "Postern-Validate-Only", only)...)
			if a.Status != c.status || a.Reason != c.reason {
				t.Errorf("%s, validate only %s: %d %s, want %d %s", name, only, a.Status, a.Body, c.status, c.reason)
			}
		}
	}
	a := g.do("POST", path, "data", "Postern-Validate-Only", "true", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t", "Content-Type", "text/plain")
	var answer struct {
		Preview struct {
			Value []byte `json:"value_base64"`
			Rule  string
		}
	}
	decode(t, a.Body, &answer)
	if !strings.Contains(string(answer.Preview.Value), `"specversion":"1.0"`) || answer.Preview.Rule != "*" {
		t.Errorf("the preview shows %q by rule %q", answer.Preview.Value, answer.Preview.Rule)
	}
	if n := len(cluster.Read(topic)); n != 1 {
		t.Errorf("%d are stored, want 1", n)
	}
}

// Rule, key and partition are told on every surface, and are those of the publish that follows.
func TestValidateOnlyTellsRuleKeyAndPartitionOnEverySurface(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, rules(publish.Rules{RequireKey: true}))
	topic := cluster.Topic("preview-surfaces", 16)
	path := "/v1/topics/" + topic
	real := g.do("POST", path+"/events", "x", "Postern-Key", "customer-7").position(t)
	told := map[string]map[string]any{}
	one := func(a answer) map[string]any {
		if a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		var m map[string]any
		decode(t, a.Body, &m)
		if all, ok := m["results"].([]any); ok {
			m = all[0].(map[string]any)
		}
		return m["preview"].(map[string]any)
	}
	line := `{"key":"customer-7","value":"x"}`
	told["an event"] = one(g.do("POST", path+"/events", "x", "Postern-Key", "customer-7", "Postern-Validate-Only", "true"))
	told["lines"] = one(g.do("POST", path+"/events", line, "Content-Type", event.MediaNDJSON, "Postern-Validate-Only", "true"))
	told["a CloudEvents batch"] = one(g.do("POST", path+"/events", `[{"specversion":"1.0","id":"1","source":"/s","type":"t","partitionkey":"customer-7"}]`,
		"Content-Type", event.MediaBatch, "Postern-Validate-Only", "true"))
	told["all or nothing"] = one(g.do("POST", path+"/events", line, "Content-Type", event.MediaNDJSON, "Postern-Validate-Only", "true", "Postern-Atomic", "true"))
	told["the proto in JSON"] = one(g.do("POST", path+":publish", `{"validate_only":true,"events":[{"key":"Y3VzdG9tZXItNw==","data":"eA=="}]}`))
	l := g.talk(topic, &http.Client{}, "Postern-Validate-Only", "true")
	l.send(line + "\n")
	told["a stream of lines"] = l.next().Preview
	_ = l.in.Close() // the end of the body
	for surface, p := range told {
		key := p["key"]
		if surface == "the proto in JSON" {
			key = "customer-7"
			if p["key"] != "Y3VzdG9tZXItNw==" {
				t.Errorf("%s: key %v", surface, p["key"])
			}
		}
		if p["rule"] != "*" || key != "customer-7" || p["partition"] != float64(real.Partition) || p["topic"] != topic {
			t.Errorf("%s: %v, want rule *, the key, and partition %d", surface, p, real.Partition)
		}
	}
	s, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request := &posternv1.PublishRequest{Topic: topic, ValidateOnly: true, Events: []*posternv1.Event{{Key: []byte("customer-7")}, {}}}
	if err := s.Send(&posternv1.PublishStreamRequest{Sequence: 1, Request: request}); err != nil {
		t.Fatal(err)
	}
	_ = s.CloseSend() // its error is Recv's
	var done []*posternv1.PublishDone
	for {
		m, err := s.Recv()
		if err != nil {
			break
		}
		done = append(done, m.Done...)
	}
	if len(done) != 1 || done[0].Results[0].Preview.GetRule() != "*" || done[0].Results[0].Preview.GetPartition() != real.Partition || reasonIn(done[0].Results[1]) != fault.KeyRequired {
		t.Errorf("PublishStream: %v", done)
	}
	if n := len(cluster.Read(topic)); n != 1 {
		t.Errorf("%d are stored, want 1", n)
	}
}

// The structured rule end to end: one JSON document in Kafka, whatever the event came as.
func TestATopicsRuleStoresCloudEventsStructured(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, rules(publish.Rules{CloudEvents: "structured"}))
	topic := cluster.Topic("structured", 1)
	if a := g.do("POST", "/v1/topics/"+topic+"/events", `{"a":1}`, "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t",
		"ce-partitionkey", "p", "Content-Type", "application/json"); a.Status != 200 {
		t.Fatal(a.Body)
	}
	r := cluster.Read(topic)[0]
	var document map[string]any
	decode(t, string(r.Value), &document)
	if document["id"] != "1" || document["partitionkey"] != "p" || document["data"].(map[string]any)["a"] != 1.0 || string(r.Key) != "p" ||
		!strings.HasPrefix(header(r, "content-type"), event.MediaStructured) || header(r, "ce_id") != "" {
		t.Errorf("%s %v", r.Value, r.Headers)
	}
}

// Distributed tracing extension: the attributes are the event's own trace; the hop's is the header beside them.
func TestTheTracingExtensionIsLeftAsItIs(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("traced", 1)
	const own, hop = "00-11111111111111111111111111111111-2222222222222222-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t",
		"ce-traceparent", own, "ce-tracestate", "a=b", "Traceparent", hop); a.Status != 200 {
		t.Fatal(a.Body)
	}
	r := cluster.Read(topic)[0]
	if header(r, "ce_traceparent") != own || header(r, "ce_tracestate") != "a=b" || !strings.HasPrefix(header(r, "traceparent"), hop[:36]) {
		t.Errorf("%v", r.Headers)
	}
}
