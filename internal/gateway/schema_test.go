package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/embedded"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/schema"
	"github.com/postern-dev/postern/subscription"
)

// registry is the one that SCHEMA_REGISTRY_URL names, else the embedded one.
type registry struct {
	t   *testing.T
	url string
}

func newSchemaRegistry(t *testing.T) *registry {
	t.Helper()
	if url := os.Getenv("SCHEMA_REGISTRY_URL"); url != "" {
		return &registry{t, url}
	}
	r, err := embedded.StartRegistry(embedded.RegistryOptions{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return &registry{t, r.URL()}
}

// put registers a schema and gives its id.
func (r *registry) put(subject string, f schema.Format, text string, references ...schema.Reference) int {
	r.t.Helper()
	client, err := schema.NewClient(schema.Options{URLs: []string{r.url}}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.Close()
	id, err := client.Register(r.t.Context(), subject, schema.Definition{Format: f, Text: text, References: references})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// with sets the registry, and the rule for topic.
func (r *registry) with(topic string, rules schema.Rules) func(*config.Config) {
	return func(c *config.Config) {
		c.SchemaRegistry.URLs = []string{r.url}
		c.Topics = append(c.Topics, config.TopicRule{Match: topic, Schema: rules})
	}
}

const orderAvro = `{"type":"record","name":"Order","namespace":"shop","fields":[{"name":"id","type":"string"},{"name":"qty","type":"int"},{"name":"note","type":["null","string"],"default":null}]}`

const orderProto = `syntax = "proto3"; package shop; message Order { string id = 1; int32 qty = 2; }`

const orderJSON = `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","required":["id"],"properties":{"id":{"type":"string"},"qty":{"type":"integer"}}}`

func encode() schema.Rules { return schema.Rules{Value: schema.PartRules{Rule: schema.Encode}} }

func framed(id int, rest string) []byte {
	return append([]byte{0, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}, rest...)
}

func TestCurlJSONBecomesAvroAndARefusalNamesEveryField(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("encoded", 1)
	id := reg.put(topic+"-value", schema.Avro, orderAvro)
	g := start(t, cluster, reg.with(topic, encode()))
	path := "/v1/topics/" + topic + "/events"
	if a := g.do("POST", path, `{"qty":3,"id":"a"}`, "Content-Type", "application/json", "Postern-Key", "k"); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	// A CloudEvent in binary mode keeps its attributes, and its data is encoded.
	if a := g.do("POST", path, `{"qty":4,"id":"b","note":"hi"}`, "Content-Type", "application/json", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t"); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	// And one in structured mode likewise.
	if a := g.do("POST", path, `{"specversion":"1.0","id":"2","source":"/s","type":"t","data":{"qty":5,"id":"c"}}`, "Content-Type", "application/cloudevents+json"); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	// Bytes that are in the wire format already pass.
	if a := g.do("POST", path, string(framed(id, "\x02d\x0c\x00"))); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	records := cluster.Read(topic)
	for i, want := range []string{"\x02a\x06\x00", "\x02b\x08\x02\x04hi", "\x02c\x0a\x00", "\x02d\x0c\x00"} {
		if !bytes.Equal(records[i].Value, framed(id, want)) {
			t.Errorf("record %d is %x, want %x", i, records[i].Value, framed(id, want))
		}
	}
	if v, _ := records[1].Header("content-type"); string(v) != "application/vnd.confluent.avro" {
		t.Errorf("the content type is %s", v)
	}
	if v, _ := records[1].Header("ce_type"); string(v) != "t" {
		t.Errorf("the CloudEvent lost its type: %s", v)
	}

	bad := `{"id":7,"qty":"x","colour":1}`
	a := g.do("POST", path, bad, "Content-Type", "application/json")
	if a.Status != 400 || a.Reason != fault.SchemaRefused || a.Metadata["subject"] != topic+"-value" || a.Metadata["version"] != "1" || len(a.Errors) != 3 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if e := a.Errors[1]; e.Field != "/qty" || e.Rule != "avro.type" || e.Expected != "int" || e.Got != `string "x"` {
		t.Errorf("%+v", e)
	}
	results, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte(bad)}, {Data: []byte(`{"id":"e","qty":1}`)}}})
	if err != nil {
		t.Fatal(err)
	}
	if results.Results[1].Position == nil {
		t.Errorf("the good event beside it: %v", results.Results[1])
	}
	var fields []string
	for _, d := range results.Results[0].GetError().GetDetails() {
		m, err := d.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if b, ok := m.(*errdetails.BadRequest); ok {
			for _, v := range b.FieldViolations {
				fields = append(fields, v.Field+" "+v.Reason)
			}
		}
	}
	problem := wire.ProblemOf(wire.FromStatus(results.Results[0].GetError()))
	if !reflect.DeepEqual(problem.Errors, a.Errors) {
		t.Errorf("over gRPC %+v, over HTTP %+v", problem.Errors, a.Errors)
	}
	if fmt.Sprint(fields) != "[/id avro.type /qty avro.type /colour avro.unknown_field]" {
		t.Errorf("%v", fields)
	}
	// A preview shows the bytes and stores nothing.
	preview, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, ValidateOnly: true, Events: []*posternv1.Event{{Data: []byte(`{"id":"e","qty":1}`)}}})
	if err != nil || !bytes.Equal(preview.Results[0].GetPreview().GetValue(), framed(id, "\x02e\x02\x00")) {
		t.Errorf("%v %v", preview, err)
	}
	if n := len(cluster.Read(topic)); n != 5 {
		t.Errorf("%d records are there, want 5", n)
	}
}

func TestPublisherNamesItsSchemaOverHTTPAndGRPC(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("chosen", 1)
	first := reg.put(topic+"-value", schema.Avro, orderAvro)
	second := reg.put(topic+"-value", schema.Avro, strings.Replace(orderAvro, `]}`, `,{"name":"more","type":"int","default":1}]}`, 1))
	g := start(t, cluster, reg.with(topic, schema.Rules{Value: schema.PartRules{Rule: schema.Encode, Version: schema.Version{Publisher: true}}}))
	path, body := "/v1/topics/"+topic+"/events", `{"id":"a","qty":1}`
	ids := []int{second, first, first, first, first}
	for i, headers := range [][]string{
		{},
		{"Postern-Schema-Id", fmt.Sprint(first)},
		{"Postern-Schema-Version", "1"},
		{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t", "ce-dataschema", reg.url + "/subjects/" + topic + "-value/versions/1"},
	} {
		if a := g.do("POST", path, body, headers...); a.Status != 200 {
			t.Errorf("%d: %s", i, a.Body)
		}
	}
	r, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte(body), SchemaVersion: 1}}})
	if err != nil || r.Results[0].Error != nil {
		t.Errorf("%v %v", r, err)
	}
	// Lines name it too, each its own, whether they are answered at once or as a stream.
	lines := strings.Join([]string{
		fmt.Sprintf(`{"value":%s,"schema_id":%d}`, body, first),
		fmt.Sprintf(`{"value":%s,"schema_version":1}`, body),
		fmt.Sprintf(`{"value":%s}`, body),
		fmt.Sprintf(`{"specversion":"1.0","id":"1","source":"/s","type":"t","dataschema":"%s/schemas/ids/%d","data":%s}`, reg.url, first, body),
		fmt.Sprintf(`{"value":%s,"schema_version":0}`, body),
		fmt.Sprintf(`{"value":%s,"schema_id":999999}`, body),
	}, "\n")
	for _, accept := range []string{"application/json", event.MediaNDJSON} {
		a := g.do("POST", path, lines, "Content-Type", event.MediaNDJSON, "Accept", accept)
		for _, want := range []string{`"field":"/schema_version"`, string(fault.UnknownSchema)} {
			if strings.Count(a.Body, `"position"`) != 4 || !strings.Contains(a.Body, want) {
				t.Errorf("%s: %d %s", accept, a.Status, a.Body)
			}
		}
		ids = append(ids, first, first, second, first)
	}
	records := cluster.Read(topic)
	if len(records) != len(ids) {
		t.Fatalf("%d records, want %d", len(records), len(ids))
	}
	for i, record := range records {
		if !bytes.HasPrefix(record.Value, framed(ids[i], "")) {
			t.Errorf("event %d: %x, want schema %d", i, record.Value, ids[i])
		}
	}
	if a := g.do("POST", path, body, "Postern-Schema-Id", "zero"); a.Status != 400 || a.Reason != fault.InvalidHeader {
		t.Errorf("%s", a.Body)
	}
	if a := g.do("POST", path, body, "Postern-Schema-Id", "999999"); a.Status != 404 || a.Reason != fault.UnknownSchema {
		t.Errorf("%s", a.Body)
	}
}

func TestReadersGetJSONWhateverTheTopicHoldsAndWhatCannotBeReadIsADeadLetter(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic, name := cluster.Topic("mixed", 1), cluster.Name("mixed-sub")
	avroID := reg.put(topic+"-value", schema.Avro, orderAvro)
	protoID := reg.put(topic+"-proto", schema.Protobuf, orderProto)
	jsonID := reg.put(topic+"-json", schema.JSON, orderJSON)
	garbage := framed(avroID, "\x7fcut")
	values := [][]byte{
		framed(avroID, "\x02a\x06\x00"), framed(protoID, "\x00\x0a\x01b\x10\x04"), framed(jsonID, `{"id":"c","qty":5}`), []byte(`{"id":"d"}`), garbage, nil, []byte(`{"id":"e"}`),
	}
	want := []string{`{"id":"a","qty":3,"note":null}`, `{"id":"b","qty":4}`, `{"id":"c","qty":5}`, `{"id":"d"}`, "", `{"id":"e"}`}
	var records []*event.Record
	for _, v := range values {
		// One key: the event that cannot be read stands in the way of those after it.
		records = append(records, &event.Record{Topic: topic, Key: []byte("k"), Value: v, Headers: []event.Header{{Name: "x", Value: []byte("y")}}})
	}
	cluster.Put(records...)
	posts := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		posts <- string(b)
		if len(b) > 0 && r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("posted as %s", r.Header.Get("Content-Type"))
		}
	}))
	defer receiver.Close()
	hookName := cluster.Name("mixed-hook")
	g := start(t, cluster, func(c *config.Config) {
		c.SchemaRegistry.URLs = []string{reg.url}
		s := hook(hookName, topic, receiver.URL, delivery.Retry{})
		s.Webhook.View = webhook.ViewJSON
		c.Subscriptions = append(c.Subscriptions, s)
	})

	open := inline(name, topic)
	open.View = posternv1.View_VIEW_JSON
	s := g.subscribe(open)
	for i, w := range want {
		d := s.next()
		if string(d.Event.Data) != w || w != "" && d.Event.ContentType != "application/json" {
			t.Errorf("delivery %d is %q as %s, want %q", i, d.Event.Data, d.Event.ContentType, w)
		}
		s.ack(d)
	}
	s.close()
	for _, w := range want {
		if got := <-posts; got != w {
			t.Errorf("posted %q, want %q", got, w)
		}
	}
	for _, dead := range []string{name + ".dead", hookName + ".dead"} {
		letters := cluster.Read(dead)
		if len(letters) != 1 || !bytes.Equal(letters[0].Value, garbage) {
			t.Fatalf("%s: %v", dead, letters)
		}
		if reason, _ := letters[0].Header(event.DeadLetterReason); string(reason) != "undecodable" {
			t.Errorf("the reason's class is %q", reason)
		}
		if detail, _ := letters[0].Header(event.DeadLetterDetail); !strings.HasPrefix(string(detail), "undecodable: ") {
			t.Errorf("the reason is %q", detail)
		}
	}
	// Raw stays raw, and a pull may ask for either.
	raw := g.subscribe(inline(cluster.Name("mixed-raw"), topic))
	d := raw.next()
	if !bytes.Equal(d.Event.Data, values[0]) {
		t.Errorf("%x", d.Event.Data)
	}
	// A tail shows what it can, and says why of the rest.
	lines, stop := g.lines("/v1/topics/" + topic + "/events?from=earliest&view=json&limit=7")
	defer stop()
	failures := 0
	for range values {
		line := nextLine(t, lines, "")
		var l struct {
			Event struct {
				Value json.RawMessage `json:"value"`
			} `json:"event"`
			ViewError struct {
				Reason fault.Reason `json:"reason"`
			} `json:"view_error"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.ViewError.Reason == fault.Undecodable {
			failures++
		}
	}
	if failures != 1 {
		t.Errorf("%d view errors", failures)
	}
	if a := g.do("GET", "/v1/topics/"+topic+"/events?view=xml", ""); a.Status != 400 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

func TestWebhookMadeByTheAPIShowsEventsInTheViewItAsksFor(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("viewed", 1)
	id := reg.put(topic+"-value", schema.Avro, orderAvro)
	stored := framed(id, "\x02a\x06\x00")
	cluster.Put(&event.Record{Topic: topic, Key: []byte("k"), Value: stored})
	posts := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		posts <- string(b)
	}))
	defer receiver.Close()
	g := start(t, cluster, func(c *config.Config) {
		c.SchemaRegistry.URLs = []string{reg.url}
		c.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true}
	})
	name := cluster.Name("viewed-hook")
	made := g.create(&posternv1.Subscription{
		Name: name, Topics: []string{topic},
		Webhook: &posternv1.Webhook{Url: receiver.URL, AllowHttp: true, AllowLoopback: true, View: posternv1.View_VIEW_JSON},
	})
	if made.GetWebhook().GetView() != posternv1.View_VIEW_JSON {
		t.Errorf("it was made with the view %v", made.GetWebhook().GetView())
	}
	if got := <-posts; got != `{"id":"a","qty":3,"note":null}` {
		t.Errorf("posted %q", got)
	}
	// The view may be changed: the webhook takes it by itself.
	if _, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{
		Subscription: &posternv1.Subscription{Name: name, Webhook: &posternv1.Webhook{Url: receiver.URL, View: posternv1.View_VIEW_RAW}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"webhook.view"}},
	}); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(patience); time.Now().Before(until); {
		cluster.Put(&event.Record{Topic: topic, Key: []byte("k"), Value: stored})
		if <-posts == string(stored) {
			return
		}
	}
	t.Error("the changed view is never obeyed")
}

func TestApplicationIsShownEventsInTheViewItsFileOrTheAPIAsksFor(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("viewed-app", 1)
	id := reg.put(topic+"-value", schema.Avro, orderAvro)
	stored := framed(id, "\x02a\x06\x00")
	cluster.Put(&event.Record{Topic: topic, Key: []byte("k"), Value: stored})
	got := make(chan *posternv1.HandleRequest, 100)
	address := (&app{answer: func(r *posternv1.HandleRequest) error { got <- r; return nil }}).serve(t)
	raw, shown, made := cluster.Name("viewed-raw"), cluster.Name("viewed-json"), cluster.Name("viewed-made")
	g := start(t, cluster, func(c *config.Config) {
		c.SchemaRegistry.URLs = []string{reg.url}
		c.SubscriptionsAPI = subscription.Options{AllowHTTP: true, AllowLoopback: true, PushAddresses: []string{address}}
		c.Subscriptions = []subscription.Spec{
			{Name: raw, Topics: []string{topic}, Push: &push.Options{Address: address}},
			{Name: shown, Topics: []string{topic}, Push: &push.Options{Address: address, View: webhook.ViewJSON}},
		}
	})
	m := g.create(&posternv1.Subscription{Name: made, Topics: []string{topic}, Push: &posternv1.Push{Address: address, View: posternv1.View_VIEW_JSON}})
	if m.GetPush().GetView() != posternv1.View_VIEW_JSON {
		t.Errorf("it was made with the view %v", m.GetPush().GetView())
	}
	const json = `{"id":"a","qty":3,"note":null}`
	want := map[string]string{raw: string(stored), shown: json, made: json}
	for range len(want) {
		select {
		case r := <-got:
			if data := string(r.GetEvent().GetData()); data != want[r.GetSubscription()] {
				t.Errorf("%s got %q, want %q", r.GetSubscription(), data, want[r.GetSubscription()])
			}
			delete(want, r.GetSubscription())
		case <-time.After(patience):
			t.Fatalf("nothing came for %v", want)
		}
	}
}

func TestPullShowsJSON(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic, name := cluster.Topic("pulled", 1), cluster.Name("pulled-sub")
	id := reg.put(topic+"-value", schema.Avro, orderAvro)
	cluster.Put(&event.Record{Topic: topic, Value: framed(id, "\x02a\x06\x00")})
	g := start(t, cluster, func(c *config.Config) {
		c.SchemaRegistry.URLs = []string{reg.url}
		s := hook(name, topic, "https://example.com", delivery.Retry{})
		s.Webhook = nil
		c.Subscriptions = append(c.Subscriptions, s)
	})
	answer, err := g.subscriber().Pull(t.Context(), &posternv1.PullRequest{Name: name, Wait: durationpb.New(patience), View: posternv1.View_VIEW_JSON})
	if err != nil || len(answer.Deliveries) != 1 || string(answer.Deliveries[0].Event.Data) != `{"id":"a","qty":3,"note":null}` {
		t.Fatalf("%v %v", answer, err)
	}
	if _, err := g.subscriber().Settle(t.Context(), &posternv1.SettleRequest{Name: name, Acks: []uint64{answer.Deliveries[0].DeliveryId}}); err != nil {
		t.Fatal(err)
	}
}

func TestAnEventWhoseSchemaCannotBeHadForNowWaitsAndIsNotLost(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("waits", 1), cluster.Name("waits-sub")
	cluster.Put(&event.Record{Topic: topic, Key: []byte("a"), Value: framed(1, "\x02a\x06\x00")}, &event.Record{Topic: topic, Key: []byte("b"), Value: []byte(`{"id":"b"}`)})
	asked := make(chan struct{}, 1000)
	back := make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		select {
		case <-back:
			_ = json.NewEncoder(w).Encode(map[string]string{"schema": orderAvro})
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer front.Close()
	g := start(t, cluster, func(c *config.Config) { c.SchemaRegistry.URLs = []string{front.URL} })
	open := inline(name, topic)
	open.View = posternv1.View_VIEW_JSON
	s := g.subscribe(open)
	if d := s.next(); string(d.Event.Data) != `{"id":"b"}` {
		t.Fatalf("%s came first", d.Event.Data)
	}
	for range 3 {
		<-asked
	}
	close(back)
	if d := s.next(); string(d.Event.Data) != `{"id":"a","qty":3,"note":null}` || d.Attempt != 1 {
		t.Errorf("%s, attempt %d", d.Event.Data, d.Attempt)
	}
}

func TestARegistryThatIsAwayRefusesWhatItWouldHaveToVouchFor(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("unvouched", 1)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	defer front.Close()
	g := start(t, cluster, (&registry{t, front.URL}).with(topic, encode()))
	a := g.do("POST", "/v1/topics/"+topic+"/events", `{"id":"a"}`)
	if a.Status != 503 || a.Reason != fault.RegistryUnavailable {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if n := len(cluster.Read(topic)); n != 0 {
		t.Errorf("%d events were stored unchecked", n)
	}
}

func TestJSONSchemaAndProtobufTopicsRefuseWithTheirRules(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	asJSON, asProto := cluster.Topic("as-json", 1), cluster.Topic("as-proto", 1)
	jsonID := reg.put(asJSON+"-value", schema.JSON, orderJSON)
	protoID := reg.put(asProto+"-value", schema.Protobuf, orderProto)
	g := start(t, cluster, func(c *config.Config) {
		reg.with(asJSON, encode())(c)
		reg.with(asProto, encode())(c)
	})
	for topic, want := range map[string][]byte{asJSON: framed(jsonID, `{"id":"a","qty":3}`), asProto: framed(protoID, "\x00\x0a\x01a\x10\x03")} {
		if a := g.do("POST", "/v1/topics/"+topic+"/events", `{"id":"a","qty":3}`); a.Status != 200 {
			t.Fatalf("%s", a.Body)
		}
		if got := cluster.Read(topic)[0].Value; !bytes.Equal(got, want) {
			t.Errorf("%x, want %x", got, want)
		}
		a := g.do("POST", "/v1/topics/"+topic+"/events", `{"id":7,"qty":"x"}`)
		if a.Status != 400 || a.Reason != fault.SchemaRefused || len(a.Errors) != 2 || a.Errors[0].Field != "/id" || a.Errors[1].Field != "/qty" {
			t.Errorf("%s", a.Body)
		}
	}
}

func TestARetryIsTheSameEventThoughANewerSchemaWouldEncodeIt(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("retried", 1)
	reg.put(topic+"-value", schema.Avro, orderAvro)
	g := start(t, cluster, func(c *config.Config) {
		reg.with(topic, encode())(c)
		c.SchemaRegistry.LatestTTL = time.Nanosecond
	})
	path := "/v1/topics/" + topic + "/events"
	if a := g.do("POST", path, `{"id":"a","qty":1}`, "Idempotency-Key", `"one"`); a.Status != 200 {
		t.Fatal(a.Body)
	}
	second := reg.put(topic+"-value", schema.Avro, strings.Replace(orderAvro, `]}`, `,{"name":"more","type":"int","default":1}]}`, 1))
	if a := g.do("POST", path, `{"id":"a","qty":1}`, "Idempotency-Key", `"one"`); a.Status != 200 || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path, `{"id":"a","qty":1}`, "Idempotency-Key", `"one"`, "Postern-Validate-Only", "true"); a.Status != 200 {
		t.Errorf("validating the retry: %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path, `{"id":"a","qty":2}`, "Idempotency-Key", `"one"`); a.Reason != fault.DedupeKeyReused {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.do("POST", path, `{"id":"b","qty":2}`); a.Status != 200 {
		t.Error(a.Body)
	}
	if records := cluster.Read(topic); len(records) != 2 || !bytes.HasPrefix(records[1].Value, framed(second, "")) {
		t.Errorf("%d records", len(records))
	}
}

func TestAsyncAPITellsThisDeploymentsTopicsSubscriptionsAndEndpoints(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("described", 1)
	reg.put(topic+"-value", schema.Avro, orderAvro)
	fileHook, stream := cluster.Name("described-file"), cluster.Name("described-stream")
	g := start(t, cluster, func(c *config.Config) {
		reg.with(topic, encode())(c)
		s := hook(fileHook, topic, "http://127.0.0.1:9/secret-path?token=fe1c7-of-the-path", delivery.Retry{})
		s.Webhook.View = webhook.ViewJSON
		c.Subscriptions = append(c.Subscriptions, s)
	})
	g.create(&posternv1.Subscription{Name: stream, Topics: []string{topic}, Filter: &posternv1.Filter{Cel: "data.qty > 1"}})
	a := g.do("GET", "/asyncapi.json", "")
	var doc struct {
		Operations map[string]struct{ Action, Summary string }
		Servers    map[string]struct{ Host string }
		Components struct {
			Messages map[string]struct {
				Payload struct{ Schema struct{ Name string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(a.Body), &doc); err != nil || a.Status != 200 {
		t.Fatalf("%d %v %s", a.Status, err, a.Body)
	}
	if doc.Components.Messages[topic].Payload.Schema.Name != "Order" {
		t.Errorf("%+v", doc.Components.Messages[topic])
	}
	if o := doc.Operations["subscribe."+stream]; o.Action != "send" || !strings.Contains(o.Summary, "filter") {
		t.Errorf("%+v", o)
	}
	if o := doc.Operations["push."+fileHook]; o.Action != "send" || !strings.Contains(o.Summary, "JSON") || doc.Servers["push."+fileHook].Host != "127.0.0.1:9" {
		t.Errorf("%+v", o)
	}
	if strings.Contains(a.Body, "secret-path") || strings.Contains(a.Body, "fe1c7-of-the-path") {
		t.Error("a webhook's path is told")
	}
}
