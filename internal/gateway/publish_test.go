package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/status"

	"google.golang.org/grpc/metadata"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func reasonOfStatus(err error) fault.Reason {
	s, _ := status.FromError(err)
	return wire.FromStatus(s.Proto()).Reason
}

func header(r *event.Record, name string) string {
	v, _ := r.Header(name)
	return string(v)
}

func TestEveryWayToPublishOverHTTPStoresWhatWasSent(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	for _, c := range []struct {
		name, body string
		headers    []string
		check      func(*event.Record) string
	}{
		{"plain bytes keep their content type", "\x00\xff raw", []string{"Content-Type", "application/octet-stream", "Postern-Key", "k"}, func(r *event.Record) string {
			return fmt.Sprintf("%q %q %s", r.Value, r.Key, header(r, "content-type"))
		}},
		{"a binary key and headers", "v", []string{"Postern-Key-Base64", "AP8=", "Postern-Header-Shop", "berlin", "Content-Type", "text/plain"}, func(r *event.Record) string {
			return fmt.Sprintf("%q %q %s", r.Value, r.Key, header(r, "shop"))
		}},
		{"a CloudEvent in binary mode", `{"a":1}`, []string{"Content-Type", "application/json", "Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t", "Ce-Subject", "caf%C3%A9", "Ce-Partitionkey", "pk"}, func(r *event.Record) string {
			return fmt.Sprintf("%s %q %s %s %s %s", r.Value, r.Key, header(r, "ce_id"), header(r, "ce_subject"), header(r, "ce_specversion"), header(r, "content-type"))
		}},
		{"a CloudEvent in structured mode", `{"specversion":"1.0","id":"2","source":"/s","type":"t","count":7,"data":{"b" : 2}}`, []string{"Content-Type", "application/cloudevents+json"}, func(r *event.Record) string {
			return fmt.Sprintf("%s %v %s %s %s", r.Value, r.Key, header(r, "ce_id"), header(r, "ce_count"), header(r, "content-type"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			topic := cluster.Topic(strings.ReplaceAll(c.name, " ", "-"), 3)
			a := g.do("POST", "/v1/topics/"+topic+"/events", c.body, c.headers...)
			if a.Status != http.StatusOK {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
			var at struct {
				Topic     string
				Partition int32
				Offset    int64
			}
			if err := json.Unmarshal([]byte(a.Body), &at); err != nil {
				t.Fatal(err)
			}
			records := cluster.Read(topic)
			if len(records) != 1 || records[0].Position() != (event.Position{Topic: at.Topic, Partition: at.Partition, Offset: at.Offset}) {
				t.Fatalf("answered %v, stored %v", at, records)
			}
			want := map[string]string{
				"plain bytes keep their content type": `"\x00\xff raw" "k" application/octet-stream`,
				"a binary key and headers":            `"v" "\x00\xff" berlin`,
				"a CloudEvent in binary mode":         `{"a":1} "pk" 1 café 1.0 application/json`,
				"a CloudEvent in structured mode":     `{"b" : 2} [] 2 7 application/json`,
			}[c.name]
			if got := c.check(records[0]); got != want {
				t.Errorf("stored %s, want %s", got, want)
			}
		})
	}
}

func TestBatchAnswersForEachEventAndOneBadOneFailsAlone(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	for _, c := range []struct{ name, contentType, body string }{
		{"batch", "application/cloudevents-batch+json", `[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"1.0","id":"2","source":"/s"},{"specversion":"1.0","id":"3","source":"/s","type":"t"}]`},
		{"lines", "application/x-ndjson", "{\"key\":\"a\",\"value\":{\"n\":1}}\n{\"kye\":\"a\"}\n{\"key\":\"a\",\"value\":null}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			topic := cluster.Topic("several-"+c.name, 1)
			a := g.do("POST", "/v1/topics/"+topic+"/events", c.body, "Content-Type", c.contentType)
			if a.Status != http.StatusMultiStatus {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
			var got struct {
				Results []struct {
					Status   int
					Position *struct{ Offset int64 }
					Problem  *wire.Problem
				}
			}
			if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Results) != 3 || got.Results[0].Position == nil || got.Results[1].Problem == nil || got.Results[2].Position == nil ||
				got.Results[1].Problem.Reason != map[string]fault.Reason{"batch": fault.InvalidCloudEvent, "lines": fault.InvalidBody}[c.name] || len(got.Results[1].Problem.Errors) != 1 {
				t.Fatalf("%s", a.Body)
			}
			records := cluster.Read(topic)
			if len(records) != 2 {
				t.Fatalf("%d records are stored, 2 were good", len(records))
			}
			if c.name == "lines" && records[1].Value != nil {
				t.Errorf("a null value is stored as %q, not as a tombstone", records[1].Value)
			}
		})
	}
}

func TestEveryBadRequestGetsItsReasonAndStoresNothing(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("bad", 1)
	events := "/v1/topics/" + topic + "/events"
	ce := []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		reason                   fault.Reason
	}{
		{"topic that does not exist", "POST", "/v1/topics/" + cluster.Name("nowhere") + "/events", "x", nil, 404, fault.UnknownTopic},
		{"topic with an illegal name", "POST", "/v1/topics/a%20b/events", "x", nil, 400, fault.InvalidTopic},
		{"topic hidden behind an escaped slash", "POST", "/v1/topics/a%2Fb/events", "x", nil, 400, fault.InvalidTopic},
		{"partition that does not exist", "POST", events, "x", []string{"Postern-Partition", "99"}, 400, fault.UnknownPartition},
		{"partition that is no number", "POST", events, "x", []string{"Postern-Partition", "one"}, 400, fault.InvalidHeader},
		{"two keys", "POST", events, "x", []string{"Postern-Key", "a", "Postern-Key-Base64", "YQ=="}, 400, fault.InvalidHeader},
		{"key that is no base64", "POST", events, "x", []string{"Postern-Key-Base64", "%%"}, 400, fault.InvalidHeader},
		{"timestamp that is no time", "POST", events, "x", []string{"Postern-Timestamp", "noon"}, 400, fault.InvalidHeader},
		{"CloudEvent without a type", "POST", events, "x", ce[:6], 400, fault.InvalidCloudEvent},
		{"CloudEvent of another version", "POST", events, "x", []string{"Ce-Specversion", "0.3", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}, 400, fault.InvalidCloudEvent},
		{"attribute that is no UTF-8 once decoded", "POST", events, "x", append([]string{"Ce-Subject", "%C0%A0"}, ce...), 400, fault.InvalidCloudEvent},
		{"time that is no time", "POST", events, "x", append([]string{"Ce-Time", "yesterday"}, ce...), 400, fault.InvalidCloudEvent},
		{"structured body that is no JSON", "POST", events, "{", []string{"Content-Type", "application/cloudevents+json"}, 400, fault.InvalidBody},
		{"data and data_base64", "POST", events, `{"specversion":"1.0","id":"1","source":"/","type":"t","data":1,"data_base64":"YQ=="}`, []string{"Content-Type", "application/cloudevents+json"}, 400, fault.InvalidCloudEvent},
		{"CloudEvents format nobody reads here", "POST", events, "x", []string{"Content-Type", "application/cloudevents+avro"}, 415, fault.UnsupportedMediaType},
		{"encoded body", "POST", events, "x", []string{"Content-Encoding", "br"}, 415, fault.UnsupportedEncoding},
		{"batch that is no array", "POST", events, "{}", []string{"Content-Type", "application/cloudevents-batch+json"}, 400, fault.InvalidBody},
		{"lines of nothing", "POST", events, "\n\n", []string{"Content-Type", "application/x-ndjson"}, 400, fault.InvalidBody},
		{"lines of nothing", "POST", events, "\n\n", []string{"Content-Type", "application/x-ndjson"}, 400, fault.InvalidBody},
		{"event that is too large", "POST", events, strings.Repeat("x", 1<<20+1), nil, 413, fault.EventTooLarge},
		{"body that is too large", "POST", events, strings.Repeat("x", 16<<20+1), nil, 413, fault.BodyTooLarge},
		{"deadline nobody can read", "POST", events, "x", []string{"Grpc-Timeout", "soon"}, 400, fault.InvalidHeader},
		{"method that is not offered", "DELETE", events, "", nil, 405, fault.MethodNotAllowed},
		{"path that is not there", "GET", "/v2/topics", "", nil, 404, fault.UnknownRoute},
		{"generated route with broken JSON", "POST", "/v1/topics/" + topic + ":publish", "{", nil, 400, fault.InvalidBody},
		{"generated route with an unknown field", "POST", "/v1/topics/" + topic + ":publish", `{"evnets":[]}`, nil, 400, fault.InvalidBody},
		{"generated route without events", "POST", "/v1/topics/" + topic + ":publish", `{}`, nil, 400, fault.InvalidArgument},
		{"page of another origin", "POST", events, "x", []string{"Origin", "https://evil.example"}, 403, fault.OriginRefused},
		{"host that is not ours", "POST", events, "x", []string{"Host", "evil.example:7600"}, 403, fault.HostRefused},
		{"tail from a cursor that is damaged", "GET", events + "?from=c1.AAAA", "", nil, 400, fault.InvalidCursor},
		{"tail as something not offered", "GET", events, "", []string{"Accept", "image/png"}, 406, fault.NotAcceptable},
		{"tail of a topic that does not exist", "GET", "/v1/topics/" + cluster.Name("nowhere") + "/events", "", nil, 404, fault.UnknownTopic},
		{"subscription nobody declared", "GET", "/v1/subscriptions/ghost/events", "", nil, 404, fault.UnknownSubscription},
		{"pull of a subscription nobody declared", "POST", "/v1/subscriptions/ghost:pull", "{}", nil, 404, fault.UnknownSubscription},
		{"settle of a subscription nobody declared", "POST", "/v1/subscriptions/ghost:settle", `{"acks":["1"]}`, nil, 404, fault.UnknownSubscription},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := g.do(c.method, c.path, c.body, c.headers...)
			if a.Status != c.status || a.Reason != c.reason || a.Detail == "" || a.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("got %d %s %q, want %d %s", a.Status, a.Reason, a.Body, c.status, c.reason)
			}
		})
	}
	if records := cluster.Read(topic); len(records) != 0 {
		t.Errorf("%d records were stored", len(records))
	}
}

func TestHeadersOfAMegabyteAreRefusedAndTheGatewayGoesOn(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("headers", 1)
	a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "Postern-Header-Big", strings.Repeat("x", 1<<20))
	if a.Status != http.StatusRequestHeaderFieldsTooLarge || a.Reason != fault.HeadersTooLarge {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "x"); a.Status != 200 {
		t.Errorf("afterwards: %d %s", a.Status, a.Body)
	}
	large := metadata.AppendToOutgoingContext(t.Context(), "big", strings.Repeat("x", 1<<20))
	request := &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}
	if r, err := g.publisher().Publish(large, request); err == nil {
		t.Errorf("a megabyte of gRPC metadata is taken: %v", r)
	}
	if _, err := g.publisher().Publish(t.Context(), request); err != nil {
		t.Errorf("gRPC afterwards: %v", err)
	}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	for size, want := range map[int]int{100 << 10: http.StatusRequestHeaderFieldsTooLarge, 70 << 10: http.StatusOK} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", g.url("/v1/topics/"+topic+"/events"), strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Postern-Header-Big", strings.Repeat("x", size))
		answer, err := h2.RoundTrip(r)
		if err != nil {
			t.Fatalf("%d bytes over HTTP/2: %v", size, err)
		}
		_ = answer.Body.Close() // the status is all
		if answer.StatusCode != want {
			t.Errorf("%d bytes over HTTP/2: %d, want %d", size, answer.StatusCode, want)
		}
	}
}

func TestPublishOverGRPCAnswersForEachEventInOrder(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("grpc", 4)
	far := int32(77)
	two := int32(2)
	results, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{
		{Key: []byte("a"), Data: []byte("1")},
		{Key: []byte("a"), Data: []byte("lost"), Partition: &far},
		{Data: nil, Key: []byte("gone")},
		{Data: []byte{}, Partition: &two, Headers: []*posternv1.Header{{Name: "h", Value: []byte{0xff}}, {Name: "h", Value: nil}}},
		{Id: "1", Data: []byte("half a CloudEvent")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results.Results {
		if r.Error != nil {
			got = append(got, string(wire.FromStatus(r.Error).Reason))
		} else {
			got = append(got, "stored")
		}
	}
	if want := "[stored UNKNOWN_PARTITION stored stored INVALID_CLOUDEVENT]"; fmt.Sprint(got) != want {
		t.Fatalf("got %v, want %s", got, want)
	}
	byPosition := map[string]*event.Record{}
	for _, r := range cluster.Read(topic) {
		byPosition[r.Position().String()] = r
	}
	if len(byPosition) != 3 {
		t.Fatalf("%d records are stored", len(byPosition))
	}
	at := func(i int) *event.Record {
		p := results.Results[i].Position
		return byPosition[event.Position{Topic: p.Topic, Partition: p.Partition, Offset: p.Offset}.String()]
	}
	if r := at(2); r == nil || r.Value != nil || string(r.Key) != "gone" {
		t.Errorf("the tombstone is %+v", r)
	}
	if r := at(3); r == nil || r.Value == nil || len(r.Value) != 0 || r.Partition != 2 || len(r.Headers) != 2 || string(r.Headers[0].Value) != "\xff" || r.Headers[1].Value != nil || r.Key != nil {
		t.Errorf("the empty event with headers is %+v", r)
	}
	if _, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: "no/pe", Events: []*posternv1.Event{{}}}); reasonOf(t, err) != fault.InvalidTopic {
		t.Errorf("an illegal topic: %v", err)
	}
}

func TestPublishStreamAnswersInOrderAndABadEventDoesNotEndIt(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("stream", 3)
	s, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := range uint64(n) {
			request := &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Key: []byte{byte(i)}, Data: fmt.Append(nil, i)}}}
			if i == 100 {
				request.Topic = "no such/topic"
			}
			if err := s.Send(&posternv1.PublishStreamRequest{Sequence: i + 1, Request: request}); err != nil {
				t.Errorf("send: %v", err)
				return
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
	first, err := s.Recv()
	if err != nil || first.GetWindow().GetMaxEvents() == 0 {
		t.Fatalf("the first message is %v, %v", first, err)
	}
	next := uint64(1)
	for {
		m, err := s.Recv()
		if err == io.EOF { //nolint:errorlint // the very value is grpc's contract
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range m.Done {
			if d.Sequence != next {
				t.Fatalf("answer %d came where %d was due", d.Sequence, next)
			}
			if refused := d.Error != nil; refused != (d.Sequence == 101) {
				t.Fatalf("answer %d: %v", d.Sequence, d)
			}
			next++
		}
	}
	sending.Wait()
	if next != n+1 {
		t.Errorf("%d answers came", next-1)
	}
	if records := cluster.Read(topic); len(records) != n-1 {
		t.Errorf("%d records are stored", len(records))
	}
}

func TestExpiredWaitIsUnknownAndNotFailed(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("slow", 1)
	g.publish(topic, "k", "warm") // the producer has its id
	release := make(chan struct{})
	holdProduce(cluster, release)
	a := g.do("POST", "/v1/topics/"+topic+"/events", "slow", "Grpc-Timeout", "300m")
	if a.Status != 504 || a.Reason != fault.OutcomeUnknown {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	close(release)
	for len(cluster.Read(topic)) != 2 { // the write went on: it is stored all the same
		if t.Context().Err() != nil {
			t.Fatal("the event was not stored")
		}
	}
}

func TestTraceOfTheCallerReachesTheRecord(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("trace", 1)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "traceparent", parent); a.Status != 200 {
		t.Fatal(a.Body)
	}
	r := cluster.Read(topic)[0]
	if got := header(r, "traceparent"); !strings.HasPrefix(got, parent[:35]) {
		t.Errorf("the record carries %q", got)
	}
}

func TestSixtyFourPublishersAtOnceAllGetTheirOwnPosition(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("many", 6)
	var mu sync.Mutex
	seen := map[string]string{}
	var all sync.WaitGroup
	for c := range 64 {
		all.Go(func() {
			for i := range 20 {
				data := fmt.Sprintf("%d-%d", c, i)
				results, err := g.publisher().Publish(context.Background(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Key: []byte(data), Data: []byte(data)}}})
				if err != nil || results.Results[0].Error != nil {
					t.Errorf("%v %v", err, results)
					return
				}
				p := results.Results[0].Position
				mu.Lock()
				seen[event.Position{Topic: topic, Partition: p.Partition, Offset: p.Offset}.String()] = data
				mu.Unlock()
			}
		})
	}
	all.Wait()
	records := cluster.Read(topic)
	if len(records) != 64*20 || len(seen) != 64*20 {
		t.Fatalf("%d records, %d positions", len(records), len(seen))
	}
	for _, r := range records {
		if seen[r.Position().String()] != string(r.Value) {
			t.Errorf("%s holds %s, its publisher was told it holds %s", r.Position(), r.Value, seen[r.Position().String()])
		}
	}
}
