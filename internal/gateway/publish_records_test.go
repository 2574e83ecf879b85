package gateway

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Whichever way a record comes, Kafka gets the same one: a key and a header that
// are no text, a header twice, in its order, a header that is null and one that
// is empty, no value at all, and the partition that was asked for.
func TestARecordAsKafkaHasItGoesOverEverySurface(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("every-surface", 3)
	path := "/v1/topics/" + topic
	two := int32(2)
	message := &posternv1.Event{Key: []byte{0xff, 0}, Partition: &two, Headers: []*posternv1.Header{
		{Name: "a", Value: []byte("1")}, {Name: "bin", Value: []byte{0, 0xff}}, {Name: "a", Value: []byte("2")}, {Name: "none"}, {Name: "empty", Value: []byte{}},
	}}
	const (
		line    = `{"key_base64":"/wA=","value":null,"partition":2,"headers":[["a","1"],["bin",{"base64":"AP8="}],["a","2"],["none",null],["empty",""]]}`
		asProto = `{"key":"/wA=","partition":2,"headers":[{"name":"a","value":"MQ=="},{"name":"bin","value":"AP8="},{"name":"a","value":"Mg=="},{"name":"none"},{"name":"empty","value":""}]}`
	)
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	inHeaders := b64("a") + ":" + b64("1") + "," + b64("bin") + ":" + b64("\x00\xff") + "," + b64("a") + ":" + b64("2") + "," + b64("none") + "," + b64("empty") + ":"
	for name, publish := range map[string]func(t *testing.T){
		"gRPC": func(t *testing.T) {
			r, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{message}})
			if err != nil || r.Results[0].Error != nil {
				t.Fatal(r, err)
			}
		},
		"gRPC, atomic": func(t *testing.T) {
			r, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Atomic: true, Events: []*posternv1.Event{message}})
			if err != nil || r.Results[0].Error != nil {
				t.Fatal(r, err)
			}
		},
		"PublishStream": func(t *testing.T) {
			s, err := g.publisher().PublishStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(&posternv1.PublishStreamRequest{Sequence: 1, Request: &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{message}}}); err != nil {
				t.Fatal(err)
			}
			for {
				m, err := s.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if len(m.Done) == 1 {
					if m.Done[0].Error != nil || m.Done[0].Results[0].Error != nil {
						t.Fatal(m)
					}
					return
				}
			}
		},
		"JSON of the proto": func(t *testing.T) {
			if a := g.do("POST", path+":publish", `{"events":[`+asProto+`]}`); a.Status != http.StatusOK {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		},
		"lines": func(t *testing.T) {
			if a := g.do("POST", path+"/events", line, "Content-Type", event.MediaNDJSON); a.Status != http.StatusOK {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		},
		"a stream of lines": func(t *testing.T) {
			l := g.talk(topic, &http.Client{})
			l.send(line + "\n")
			if r := l.next(); r.Status != http.StatusOK {
				t.Fatalf("%+v", r)
			}
			_ = l.in.Close() // the end of the body
		},
		"headers": func(t *testing.T) { // a body is a value, and an empty one is no null
			if a := g.do("POST", path+"/events", "", "Postern-Key-Base64", "/wA=", "Postern-Partition", "2", "Postern-Headers-Base64", inHeaders); a.Status != http.StatusOK {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(cluster.Read(topic))
			publish(t)
			var records []*event.Record
			eventually(t, "it is there", func() bool { records = cluster.Read(topic); return len(records) > before })
			r := records[len(records)-1]
			if len(records) != before+1 || r.Partition != 2 || !bytes.Equal(r.Key, []byte{0xff, 0}) {
				t.Errorf("%d records, the last in partition %d with key %x", len(records), r.Partition, r.Key)
			}
			if null := r.Value == nil; null == (name == "headers") || len(r.Value) != 0 {
				t.Errorf("the value is %q, null: %t", r.Value, null)
			}
			want := []event.Header{{Name: "a", Value: []byte("1")}, {Name: "bin", Value: []byte{0, 0xff}}, {Name: "a", Value: []byte("2")}, {Name: "none"}, {Name: "empty", Value: []byte{}}}
			if len(r.Headers) < len(want) {
				t.Fatalf("headers %v, want %v", r.Headers, want)
			}
			for i, h := range want {
				if got := r.Headers[i]; got.Name != h.Name || !bytes.Equal(got.Value, h.Value) || (got.Value == nil) != (h.Value == nil) {
					t.Errorf("header %d is %s %q (null: %t), want %s %q", i, got.Name, got.Value, got.Value == nil, h.Name, h.Value)
				}
			}
		})
	}
}
