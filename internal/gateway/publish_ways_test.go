package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/publish"
)

// rules makes a configuration with publishing rules for all topics.
func rules(r publish.Rules) func(*config.Config) {
	return func(c *config.Config) { c.Topics = []config.TopicRule{{Match: "*", Publish: r}} }
}

// stored is an answer to one event.
type stored struct {
	Topic     string
	Partition int32
	Offset    int64
	Duplicate bool
}

func (a answer) position(t *testing.T) stored {
	t.Helper()
	var s stored
	if a.Status != http.StatusOK {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if err := json.Unmarshal([]byte(a.Body), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// results is the answer to several events.
func (a answer) results(t *testing.T) []lineResult {
	t.Helper()
	var all struct{ Results []lineResult }
	if err := json.Unmarshal([]byte(a.Body), &all); err != nil {
		t.Fatalf("%s: %v", a.Body, err)
	}
	return all.Results
}

type lineResult struct {
	Status    int
	Position  *stored
	Duplicate bool
	Problem   *wire.Problem
	Preview   map[string]any
	Drain     map[string]any
}

func TestARetryWithItsIdempotencyKeyIsStoredOnce(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("once", 3)
	path := "/v1/topics/" + topic + "/events"
	first := g.do("POST", path, "x", "Idempotency-Key", `"order-1"`, "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	again := g.do("POST", path, "x", "Idempotency-Key", "order-1")
	if a, b := first.position(t), again.position(t); a.Duplicate || !b.Duplicate || a.Partition != b.Partition || a.Offset != b.Offset {
		t.Errorf("first %v, again %v", a, b)
	}
	if first.Header.Get("Idempotent-Replayed") != "" || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("the Idempotent-Replayed headers are wrong")
	}
	if other := g.do("POST", path, "another body", "Idempotency-Key", "order-1"); other.Status != http.StatusUnprocessableEntity || other.Reason != fault.DedupeKeyReused {
		t.Errorf("another body under the key: %d %s", other.Status, other.Body)
	}
	if a := g.do("POST", path, "x", "Idempotency-Key", ""); a.Status != http.StatusBadRequest || a.Reason != fault.InvalidHeader {
		t.Errorf("an empty key: %d %s", a.Status, a.Body)
	}
	if n := len(cluster.Read(topic)); n != 1 {
		t.Errorf("%d are stored, want 1", n)
	}

	// The same event by gRPC: the key names the same event for the same caller and topic.
	event := &posternv1.Event{Data: []byte("x"), DedupeKey: "order-1"}
	results, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{event, event}})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results.Results {
		if !r.Duplicate || r.Position.GetOffset() != first.position(t).Offset {
			t.Errorf("event %d by gRPC: %v", i, r)
		}
	}
	// A batch under one key: each event by its place.
	lines := "{\"value\":\"a\"}\n{\"value\":\"b\"}\n"
	for round, want := range []bool{false, true} {
		a := g.do("POST", path, lines, "Content-Type", "application/x-ndjson", "Idempotency-Key", "batch")
		for i, r := range a.results(t) {
			if r.Status != 200 || r.Duplicate != want {
				t.Errorf("round %d, line %d: %+v", round, i, r)
			}
		}
	}
	if n := len(cluster.Read(topic)); n != 3 {
		t.Errorf("%d are stored, want 3", n)
	}
}

func TestHundredRetriesAtOnceAreStoredOnce(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("at-once", 3)
	var all sync.WaitGroup
	var mu sync.Mutex
	firsts := 0
	for range 100 {
		all.Go(func() {
			s := g.do("POST", "/v1/topics/"+topic+"/events", "x", "Idempotency-Key", "k").position(t)
			mu.Lock()
			defer mu.Unlock()
			if !s.Duplicate {
				firsts++
			}
		})
	}
	all.Wait()
	if n := len(cluster.Read(topic)); n != 1 || firsts != 1 {
		t.Errorf("%d are stored, %d were told they are the first", n, firsts)
	}
}

func TestCloudEventsAreDeduplicatedBySourceAndIDWhereTheRuleSaysSo(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, rules(publish.Rules{DedupeByID: true}))
	topic := cluster.Topic("by-id", 1)
	send := func(source, id, body string) answer {
		return g.do("POST", "/v1/topics/"+topic+"/events", body, "Ce-Specversion", "1.0", "Ce-Id", id, "Ce-Source", source, "Ce-Type", "t", "Content-Type", "text/plain")
	}
	if send("/a", "1", "x").position(t).Duplicate || !send("/a", "1", "x").position(t).Duplicate || send("/b", "1", "x").position(t).Duplicate {
		t.Error("source and id do not make the key")
	}
	if a := send("/a", "1", "y"); a.Reason != fault.DedupeKeyReused {
		t.Errorf("another event with the id: %d %s", a.Status, a.Body)
	}
	for range 2 {
		if g.do("POST", "/v1/topics/"+topic+"/events", "x").position(t).Duplicate {
			t.Error("a plain payload has no id, and is called a duplicate")
		}
	}
}

func TestAnAtomicRequestIsAllOrNothingOnEverySurface(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	orders, stock := cluster.Topic("atomic-orders", 3), cluster.Topic("atomic-stock", 1)

	results, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: orders, Atomic: true, Events: []*posternv1.Event{
		{Data: []byte("o1"), Key: []byte("k")}, {Data: []byte("s1"), Topic: stock},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{orders, stock} {
		if r := results.Results[i]; r.Error != nil || r.Position.GetTopic() != want {
			t.Errorf("event %d: %v", i, r)
		}
	}
	body := fmt.Sprintf(`{"atomic":true,"events":[{"data":"bzI="},{"data":"czI=","topic":%q}]}`, stock)
	if a := g.do("POST", "/v1/topics/"+orders+":publish", body); a.Status != 200 || !strings.Contains(a.Body, stock) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	good := "{\"value\":\"o3\"}\n{\"value\":\"o4\"}\n"
	if a := g.do("POST", "/v1/topics/"+orders+"/events", good, "Content-Type", "application/x-ndjson", "Postern-Atomic", "true"); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	// A line that is no event, an event that is too large, a topic that is not there: each takes the others with it.
	for name, bad := range map[string]string{
		"no event":      `{"kye":"a"}`,
		"too large":     `{"value":"` + strings.Repeat("x", 2<<20) + `"}`,
		"no partition":  `{"value":"x","partition":99}`,
		"no attributes": `{"specversion":"1.0"}`,
	} {
		a := g.do("POST", "/v1/topics/"+orders+"/events", good+bad+"\n", "Content-Type", "application/x-ndjson", "Postern-Atomic", "true")
		r := a.results(t)
		if a.Status != http.StatusMultiStatus || len(r) != 3 || r[0].Problem == nil || r[0].Problem.Reason != fault.AtomicAborted || r[2].Problem == nil || r[2].Problem.Reason == fault.AtomicAborted {
			t.Errorf("%s: %d %.600s", name, a.Status, a.Body)
		}
	}
	for end := time.Now().Add(20 * time.Second); (len(cluster.Read(orders)) < 4 || len(cluster.Read(stock)) < 2) && time.Now().Before(end); {
		continue // Kafka answers a commit before its markers are in every partition
	}
	if o, s := len(cluster.Read(orders)), len(cluster.Read(stock)); o != 4 || s != 2 {
		t.Errorf("%d orders and %d of stock are stored, want 4 and 2", o, s)
	}
	keyed, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: orders, Atomic: true, Events: []*posternv1.Event{{Data: []byte("x"), DedupeKey: "k"}}})
	if err != nil || wire.FromStatus(keyed.Results[0].Error).Reason != fault.InvalidArgument {
		t.Errorf("atomic with a dedupe key: %v %v", keyed, err)
	}
}

func TestEventsOfOneRequestMayGoToSeveralTopicsEachByItsRule(t *testing.T) {
	cluster := brokertest.New(t)
	zipped, plain := cluster.Topic("several-zipped", 1), cluster.Topic("several-plain", 1)
	g := start(t, cluster, func(c *config.Config) {
		c.Topics = []config.TopicRule{{Match: zipped, Publish: publish.Rules{Compression: "zstd", RequireKey: true}}}
	})
	request := &posternv1.PublishRequest{Topic: plain}
	for i := range 30 {
		e := &posternv1.Event{Data: fmt.Append(nil, i)}
		if i%3 == 0 {
			e.Topic = zipped
			e.Key = []byte("k")
		}
		if i == 3 {
			e.Key = nil
		}
		request.Events = append(request.Events, e)
	}
	results, err := g.publisher().Publish(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]string{}
	for _, r := range append(cluster.Read(zipped), cluster.Read(plain)...) {
		stored[r.Position().String()] = string(r.Value)
	}
	for i, r := range results.Results {
		if i == 3 {
			if wire.FromStatus(r.Error).Reason != fault.KeyRequired {
				t.Errorf("event 3: %v", r)
			}
			continue
		}
		at := wire.ToPosition(r.Position).String()
		if stored[at] != fmt.Sprint(i) {
			t.Errorf("event %d is said to be at %s, where %q is", i, at, stored[at])
		}
	}
}

func TestValidateOnlyTellsWhatWouldHappenAndStoresNothing(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("dry", 8)
	g := start(t, cluster, func(c *config.Config) {
		c.Topics = []config.TopicRule{{Match: topic[:len(topic)-1] + "*", Publish: publish.Rules{Durability: "all_replicas", ContentTypes: []string{"text/plain"}}}}
	})
	three := int32(3)
	request := &posternv1.PublishRequest{Topic: topic, ValidateOnly: true, Durability: posternv1.Durability_DURABILITY_LEADER, Events: []*posternv1.Event{
		{Data: []byte("x"), Key: []byte("customer-1"), ContentType: "text/plain"},
		{Data: []byte("x"), ContentType: "text/plain"},
		{Data: []byte("x"), ContentType: "text/plain", Partition: &three},
		{Data: []byte("x")},
		{Data: []byte("x"), ContentType: "text/plain", Topic: cluster.Name("nowhere")},
	}}
	answer, err := g.publisher().Publish(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	r := answer.Results
	if p := r[0].Preview; p == nil || p.Partition == nil || string(p.Key) != "customer-1" || p.Rule == "" || p.Durability != posternv1.Durability_DURABILITY_ALL_REPLICAS || p.Bytes == 0 || p.Value != nil {
		t.Errorf("a keyed event: %v", r[0])
	}
	if p := r[1].Preview; p == nil || p.Partition != nil || p.Key != nil {
		t.Errorf("an event without a key: %v", r[1])
	}
	if p := r[2].Preview; p == nil || p.GetPartition() != 3 {
		t.Errorf("a chosen partition: %v", r[2])
	}
	if wire.FromStatus(r[3].Error).Reason != fault.ContentTypeRefused || wire.FromStatus(r[4].Error).Reason != fault.UnknownTopic {
		t.Errorf("bad ones: %v %v", r[3], r[4])
	}
	would := r[0].Preview.GetPartition()
	request.ValidateOnly = false
	if answer, err = g.publisher().Publish(t.Context(), request); err != nil || answer.Results[0].Position.GetPartition() != would {
		t.Errorf("it went to %v (%v), the preview said partition %d", answer.GetResults()[0], err, would)
	}
	before := len(cluster.Read(topic))

	path := "/v1/topics/" + topic + "/events"
	a := g.do("POST", path, "x", "Postern-Validate-Only", "true", "Postern-Key", "customer-1", "Content-Type", "text/plain")
	if a.Status != 200 || !strings.Contains(a.Body, fmt.Sprintf(`"partition":%d`, would)) || !strings.Contains(a.Body, `"key":"customer-1"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path, "x", "Postern-Validate-Only", "true"); a.Status != 400 || a.Reason != fault.ContentTypeRefused {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	a = g.do("POST", path, "{\"value\":\"x\",\"content_type\":\"text/plain\"}\n{\"value\":\"x\"}\n", "Postern-Validate-Only", "true", "Content-Type", "application/x-ndjson")
	if l := a.results(t); a.Status != 207 || l[0].Preview["topic"] != topic || l[1].Problem.Reason != fault.ContentTypeRefused {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if after := len(cluster.Read(topic)); after != before {
		t.Errorf("%d events were stored by checking", after-before)
	}
}

func TestCompressedBodiesAreReadAndBombsAreNot(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("zipped", 1)
	zip := map[string]func(string) string{
		"gzip": func(s string) string {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write([]byte(s))
			_ = w.Close()
			return b.String()
		},
		"zstd": func(s string) string {
			w, _ := zstd.NewWriter(nil)
			return string(w.EncodeAll([]byte(s), nil))
		},
	}
	path := "/v1/topics/" + topic + "/events"
	for round := range 3 { // decoders are used again
		for coding, encode := range zip {
			body := fmt.Sprintf("%s %d %s", coding, round, strings.Repeat("z", 5000))
			if a := g.do("POST", path, encode(body), "Content-Encoding", coding); a.Status != 200 {
				t.Fatalf("%s: %d %s", coding, a.Status, a.Body)
			}
			records := cluster.Read(topic)
			if last := records[len(records)-1]; string(last.Value) != body || header(last, "content-encoding") != "" {
				t.Errorf("%s: stored %.40q %v", coding, last.Value, last.Headers)
			}
			bomb := encode(strings.Repeat("\x00", 64<<20))
			if a := g.do("POST", path, bomb, "Content-Encoding", coding); a.Status != http.StatusRequestEntityTooLarge || a.Reason != fault.BodyTooLarge {
				t.Errorf("a bomb of %d bytes in %s: %d %s", len(bomb), coding, a.Status, a.Body)
			}
			if a := g.do("POST", path, "not compressed", "Content-Encoding", coding); a.Status != 400 || a.Reason != fault.InvalidBody {
				t.Errorf("a lie about %s: %d %s", coding, a.Status, a.Body)
			}
			if a := g.do("POST", path, encode(body)[:len(encode(body))/2], "Content-Encoding", coding); a.Status != 400 || a.Reason != fault.InvalidBody {
				t.Errorf("half a body in %s: %d %s", coding, a.Status, a.Body)
			}
		}
	}
	if a := g.do("POST", path, "x", "Content-Encoding", "br"); a.Status != 415 || a.Reason != fault.UnsupportedEncoding || a.Header.Get("Accept-Encoding") == "" {
		t.Errorf("brotli: %d %v %s", a.Status, a.Header, a.Body)
	}
}

func TestCloudEventsInTheProtobufFormatAreStoredLikeAllOthers(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("proto", 1)
	at := time.Date(2026, 1, 31, 10, 0, 0, 5e6, time.UTC)
	m := &pb.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t", Attributes: map[string]*pb.CloudEventAttributeValue{
		"time":            {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}},
		"subject":         {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "café"}},
		"datacontenttype": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "text/plain"}},
		"dataschema":      {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://example.com/s"}},
		"count":           {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}},
		"flag":            {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
		"bin":             {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 0xff}}},
		"partitionkey":    {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "pk"}},
	}, Data: &pb.CloudEvent_TextData{TextData: "hello"}}
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/topics/" + topic + "/events"
	if a := g.do("POST", path, string(body), "Content-Type", "application/cloudevents+protobuf"); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	r := cluster.Read(topic)[0]
	for name, want := range map[string]string{
		"ce_id": "1", "ce_time": "2026-01-31T10:00:00.005Z", "ce_subject": "café", "content-type": "text/plain", "ce_dataschema": "https://example.com/s",
		"ce_count": "-7", "ce_flag": "true", "ce_bin": "AP8=", "ce_partitionkey": "pk", "ce_specversion": "1.0",
	} {
		if got := header(r, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if string(r.Value) != "hello" || string(r.Key) != "pk" {
		t.Errorf("value %q key %q", r.Value, r.Key)
	}
	// Section 3 (data): bytes, text, or a message, which is stored as its own bytes.
	inner, err := proto.Marshal(timestamppb.New(at))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		data        *pb.CloudEvent
		value, kind string
	}{
		{&pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.Timestamp", Value: inner}}}, string(inner), "application/protobuf"},
		{&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte{0, 0xff}}}, "\x00\xff", ""},
		{&pb.CloudEvent{Data: &pb.CloudEvent_TextData{}}, "", ""},
	} {
		c.data.Id, c.data.Source, c.data.Type, c.data.SpecVersion = fmt.Sprint("data-", i), "/s", "t", "1.0"
		one, err := proto.Marshal(c.data)
		if err != nil {
			t.Fatal(err)
		}
		if a := g.do("POST", path, string(one), "Content-Type", "application/cloudevents+protobuf"); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		records := cluster.Read(topic)
		if r := records[len(records)-1]; string(r.Value) != c.value || r.Value == nil || header(r, "content-type") != c.kind {
			t.Errorf("data %d: value %x, content type %q", i, r.Value, header(r, "content-type"))
		}
	}
	// Section 2.3: an attribute has one value, and the required ones are fields.
	for name, m := range map[string]*pb.CloudEvent{
		"an attribute without a value": {Id: "1", Source: "/s", Type: "t", SpecVersion: "1.0", Attributes: map[string]*pb.CloudEventAttributeValue{"a": {}}},
		"no version":                   {Id: "1", Source: "/s", Type: "t"},
		"a name in capitals": {
			Id: "1", Source: "/s", Type: "t", SpecVersion: "1.0",
			Attributes: map[string]*pb.CloudEventAttributeValue{"Upper": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "x"}}},
		},
	} {
		one, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if a := g.do("POST", path, string(one), "Content-Type", "application/cloudevents+protobuf"); a.Status != 400 || a.Reason != fault.InvalidCloudEvent {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
	}
	bad, err := proto.Marshal(&pb.CloudEvent{Id: "2", SpecVersion: "1.0", Type: "t"})
	if err != nil {
		t.Fatal(err)
	}
	var batch []byte
	for _, one := range [][]byte{body, bad, body} {
		batch = protowire.AppendBytes(protowire.AppendTag(batch, 1, protowire.BytesType), one)
	}
	a := g.do("POST", path, string(batch), "Content-Type", "application/cloudevents-batch+protobuf")
	if l := a.results(t); a.Status != 207 || len(l) != 3 || l[0].Position == nil || l[1].Problem == nil || l[2].Position == nil {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path, "\xff\xff", "Content-Type", "application/cloudevents+protobuf"); a.Status != 400 || a.Reason != fault.InvalidBody && a.Reason != fault.InvalidCloudEvent {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// lines is an NDJSON stream in both directions.
type lines struct {
	t      *testing.T
	in     *io.PipeWriter
	out    *bufio.Reader
	answer *http.Response
}

func (r *running) talk(topic string, client *http.Client, headers ...string) *lines {
	r.t.Helper()
	out, in := io.Pipe()
	request, err := http.NewRequestWithContext(r.t.Context(), "POST", r.url("/v1/topics/"+topic+"/events"), out)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-ndjson")
	request.Header.Set("Accept", "application/x-ndjson")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := client.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = answer.Body.Close() }) // the test is over
	return &lines{r.t, in, bufio.NewReader(answer.Body), answer}
}

func (l *lines) send(text string) {
	l.t.Helper()
	if _, err := io.WriteString(l.in, text); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lines) next() lineResult {
	l.t.Helper()
	text, err := l.out.ReadBytes('\n')
	if err != nil {
		l.t.Fatalf("no further line: %v %q", err, text)
	}
	var r lineResult
	if err := json.Unmarshal(text, &r); err != nil {
		l.t.Fatalf("%s: %v", text, err)
	}
	return r
}

func TestLinesAreAnsweredInLinesWhileTheyCome(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	h2 := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}}
	h2.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	for name, client := range map[string]*http.Client{"HTTP/1.1": {}, "HTTP/2": h2} {
		t.Run(name, func(t *testing.T) {
			topic := cluster.Topic("lines-"+strings.ReplaceAll(name, "/", "-"), 1)
			l := g.talk(topic, client)
			if l.answer.Proto != name && l.answer.Proto != name+".0" || l.answer.Header.Get("Content-Type") != "application/x-ndjson" {
				t.Errorf("%s %v", l.answer.Proto, l.answer.Header)
			}
			for i := range int64(3) { // each is answered before the next is sent
				l.send(fmt.Sprintf("{\"key\":\"k\",\"value\":%d}\n\n", i))
				if r := l.next(); r.Status != 200 || r.Position.Offset != i {
					t.Fatalf("line %d: %+v", i, r)
				}
			}
			l.send("{\"value\":\"ok\"}\nno json\n{\"value\":\"ok too\"}\n")
			if a, b, c := l.next(), l.next(), l.next(); a.Status != 200 || b.Problem == nil || b.Problem.Reason != fault.InvalidBody || c.Status != 200 {
				t.Errorf("a bad line between good ones: %+v %+v %+v", a, b, c)
			}
			// A thousand at once, the last without a line break.
			var many strings.Builder
			for i := range 1000 {
				fmt.Fprintf(&many, "{\"value\":%d}\n", i)
			}
			go func() {
				_, _ = io.WriteString(l.in, strings.TrimRight(many.String(), "\n")) // the answers tell
				_ = l.in.Close()
			}()
			for i := range int64(1000) {
				if r := l.next(); r.Status != 200 || r.Position.Offset != 5+i {
					t.Fatalf("line %d: %+v", i, r)
				}
			}
			if _, err := l.out.ReadByte(); err != io.EOF {
				t.Errorf("after the last line: %v", err)
			}
			if n := len(cluster.Read(topic)); n != 1005 {
				t.Errorf("%d are stored", n)
			}
		})
	}
}

func TestALineThatIsTooLongEndsItsStreamWithItsReason(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.Publish.MaxBodyBytes = 1000 })
	topic := cluster.Topic("long-line", 1)
	l := g.talk(topic, http.DefaultClient)
	go func() {
		_, _ = io.WriteString(l.in, "{\"value\":1}\n{\"value\":\""+strings.Repeat("x", 200_000)) // the gateway stops reading it
		_ = l.in.Close()
	}()
	if r := l.next(); r.Status != 200 {
		t.Errorf("%+v", r)
	}
	if r := l.next(); r.Problem == nil || r.Problem.Reason != fault.InvalidBody {
		t.Errorf("%+v", r)
	}
	if _, err := l.out.ReadByte(); err == nil {
		t.Error("the stream goes on")
	}
}

func TestAStreamOfLinesIsToldOfTheDrain(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.DrainTimeout = 20 * time.Second })
	topic := cluster.Topic("drained-lines", 1)
	l := g.talk(topic, http.DefaultClient)
	l.send("{\"value\":1}\n")
	if r := l.next(); r.Status != 200 {
		t.Fatalf("%+v", r)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); g.stop() }()
	if r := l.next(); r.Drain == nil || r.Drain["deadline"] == "" {
		t.Errorf("%+v", r)
	}
	l.send("{\"value\":2}\n") // still taken
	if r := l.next(); r.Status != 200 {
		t.Errorf("%+v", r)
	}
	if err := l.in.Close(); err != nil {
		t.Fatal(err)
	}
	<-stopped
	if n := len(cluster.Read(topic)); n != 2 {
		t.Errorf("%d are stored", n)
	}
}

// The CloudEvents documents' MUSTs that concern requests and answers; the others
// are in event/specification_test.go.
func TestSpecificationOfRequestsAndAnswers(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("specification", 1)
	g := start(t, cluster, nil)
	path := "/v1/topics/" + topic + "/events"
	t.Run("HTTP 3.3.2: a batch may be empty", func(t *testing.T) {
		for _, kind := range []string{"json", "protobuf"} {
			body := map[string]string{"json": "[]", "protobuf": ""}[kind]
			if a := g.do("POST", path, body, "Content-Type", "application/cloudevents-batch+"+kind); a.Status != 200 || len(a.results(t)) != 0 {
				t.Errorf("%s: %d %s", kind, a.Status, a.Body)
			}
		}
	})
	t.Run("HTTP 3.3.2: all events of a batch have the same specversion", func(t *testing.T) {
		a := g.do("POST", path, `[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"0.3","id":"2","source":"/s","type":"t"}]`, "Content-Type", "application/cloudevents-batch+json")
		if r := a.results(t); len(r) != 2 || r[0].Status != 200 || r[1].Problem == nil {
			t.Errorf("%s", a.Body)
		}
	})
	t.Run("JSON 4.2, protobuf 4 and 5.2: the media types name the formats", func(t *testing.T) {
		for contentType, want := range map[string]int{
			"application/cloudevents-batch+json; charset=utf-8": 200, "application/cloudevents+json": 400, "application/cloudevents-batch+avro": 415, "application/cloudevents+avro": 415,
		} {
			if a := g.do("POST", path, `[{"specversion":"1.0","id":"1","source":"/s","type":"t"}]`, "Content-Type", contentType); a.Status != want {
				t.Errorf("%s: %d %s", contentType, a.Status, a.Body)
			}
		}
	})
	t.Run("webhook 2.2: a format that is not understood is 415", func(t *testing.T) {
		if a := g.do("POST", path, "x", "Content-Type", "application/cloudevents+xml"); a.Status != 415 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
	t.Run("webhook 2.2: an answer with a payload is 200 and has its Content-Type", func(t *testing.T) {
		if a := g.do("POST", path, "x"); a.Status != 200 || a.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%d %v", a.Status, a.Header)
		}
	})
	t.Run("webhook 2.2: 429 says when to come again", func(t *testing.T) {
		limited := start(t, cluster, func(c *config.Config) { c.Limits.PerIdentity.RequestsPerSecond = 0.1 })
		limited.do("POST", path, "x")
		if a := limited.do("POST", path, "x"); a.Status != 429 || a.Header.Get("Retry-After") == "" {
			t.Errorf("%d %v", a.Status, a.Header)
		}
	})
	t.Run("spec, size limits: an event of 64 KiB is forwarded, whatever part of it is large", func(t *testing.T) {
		attributes := `"specversion":"1.0","id":"1","source":"/s","type":"t"`
		const large = 64<<10 - 100 // the required attributes are the rest
		ce := []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}
		text := strings.Repeat("x", large)
		before := len(cluster.Read(topic))
		for name, a := range map[string]answer{
			"binary, data":       g.do("POST", path, text, append(ce, "Content-Type", "text/plain")...),
			"binary, attribute":  g.do("POST", path, "", append(ce, "Ce-Large", text)...),
			"structured, data":   g.do("POST", path, `{`+attributes+`,"data":"`+text+`"}`, "Content-Type", event.MediaStructured),
			"structured, string": g.do("POST", path, `{`+attributes+`,"large":"`+text+`"}`, "Content-Type", event.MediaStructured),
		} {
			if a.Status != 200 {
				t.Errorf("%s: %d %.300s", name, a.Status, a.Body)
			}
		}
		records := cluster.Read(topic)[before:]
		for _, r := range records {
			if len(r.Value) < large && len(header(r, "ce_large")) < large {
				t.Errorf("a value of %d bytes, an attribute of %d", len(r.Value), len(header(r, "ce_large")))
			}
		}
		if len(records) != 4 {
			t.Errorf("%d of 4 are stored", len(records))
		}
	})
	t.Run("webhook 2.2: no answer is a redirection", func(t *testing.T) {
		for _, path := range []string{"/" + path, path + "/", "/v1/./topics/" + topic + "/events", "/v1/topics/x/../" + topic + "/events", "/v1/topics//events", "//example.com/v1"} {
			for _, method := range []string{"POST", "OPTIONS"} {
				request, err := http.NewRequestWithContext(t.Context(), method, g.url("/"), strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				request.URL.Opaque = path
				answer, err := new(http.Transport).RoundTrip(request) // follows nothing
				if err != nil {
					t.Fatal(err)
				}
				_ = answer.Body.Close() // the status is all
				if answer.StatusCode/100 == 3 {
					t.Errorf("%s %s: %d to %s", method, path, answer.StatusCode, answer.Header.Get("Location"))
				}
			}
		}
	})
	t.Run("webhook 4.2: if and only if delivery is allowed", func(t *testing.T) {
		for _, topic := range []string{cluster.Name("_own." + subscriptionsTopic), "no+topic"} {
			a := g.do("OPTIONS", "/v1/topics/"+topic+"/events", "", "WebHook-Request-Origin", "emitter.example.com", "WebHook-Request-Rate", "120")
			if a.Header.Get("WebHook-Allowed-Origin") != "" || a.Header.Get("WebHook-Allowed-Rate") != "" {
				t.Errorf("%s: %v", topic, a.Header)
			}
		}
	})
	for _, c := range []struct {
		name string
		rate float64
		ask  []string
		want map[string]string
	}{
		{
			"webhook 4.2.1, 4.2.2: who asks is allowed, at any rate", 0,
			[]string{"WebHook-Request-Origin", "emitter.example.com", "WebHook-Request-Rate", "120"},
			map[string]string{"WebHook-Allowed-Origin": "emitter.example.com", "WebHook-Allowed-Rate": "*"},
		},
		{
			"webhook 4.2.2: or at the rate of the caller's limit", 2.5,
			[]string{"WebHook-Request-Origin", "emitter.example.com"},
			map[string]string{"WebHook-Allowed-Origin": "emitter.example.com", "WebHook-Allowed-Rate": "150"},
		},
		{"webhook 4.2: who does not ask is told nothing", 0, nil, map[string]string{"WebHook-Allowed-Origin": "", "WebHook-Allowed-Rate": "", "Allow": "GET, POST, OPTIONS"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, cluster, func(config *config.Config) { config.Limits.PerIdentity.RequestsPerSecond = c.rate })
			a := g.do("OPTIONS", path, "", c.ask...)
			for name, want := range c.want {
				if got := a.Header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}
