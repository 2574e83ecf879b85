package gateway

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/schema"
)

// filtered declares a subscription of those events of topic that order more than one.
func filtered(name, topic string, skip bool) *posternv1.Subscription {
	m := &posternv1.Subscription{Name: name, Topics: []string{topic}, Filter: &posternv1.Filter{Cel: `data.qty > 1`}}
	if skip {
		m.OnFilterError = posternv1.OnFilterError_ON_FILTER_ERROR_SKIP
	}
	return m
}

// settledAll waits until nothing of the subscription is left to do.
func settledAll(t *testing.T, g *running, name string, events int64) {
	t.Helper()
	eventually(t, "the position at the end", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && len(st.Partitions) == 1 && st.Partitions[0].GetPosition() == events
	})
}

func TestFilterSeesTheDataThatASchemaDecodes(t *testing.T) {
	cluster, reg := brokertest.New(t), newSchemaRegistry(t)
	topic := cluster.Topic("sifted", 1)
	avroID := reg.put(topic+"-value", schema.Avro, orderAvro)
	protoID := reg.put(topic+"-proto", schema.Protobuf, orderProto)
	garbage := framed(avroID, "\x7fcut")
	values := [][]byte{
		framed(avroID, "\x02a\x02\x00"), framed(avroID, "\x02b\x06\x00"), framed(protoID, "\x00\x0a\x01c\x10\x01"), framed(protoID, "\x00\x0a\x01d\x10\x04"),
		garbage, []byte(`{"qty":1}`), []byte(`{"qty":2}`),
	}
	var records []*event.Record
	for _, v := range values { // one key: what cannot be judged stands in the way
		records = append(records, &event.Record{Topic: topic, Key: []byte("k"), Value: v})
	}
	cluster.Put(records...)
	g := start(t, cluster, func(c *config.Config) { c.SchemaRegistry.URLs = []string{reg.url} })
	for name, skip := range map[string]bool{cluster.Name("sifted-dead"): false, cluster.Name("sifted-skip"): true} {
		g.create(filtered(name, topic, skip))
		s := g.subscribe(&posternv1.Open{Subscription: name})
		for _, want := range [][]byte{values[1], values[3], values[6]} {
			d := s.next()
			if !bytes.Equal(d.Event.Data, want) { // raw, as the stream asked for it
				t.Errorf("%s: %q, want %q", name, d.Event.Data, want)
			}
			s.ack(d)
		}
		settledAll(t, g, name, int64(len(values)))
		s.close()
		if skip {
			continue
		}
		letters := cluster.Read(name + ".dead")
		if len(letters) != 1 || !bytes.Equal(letters[0].Value, garbage) {
			t.Fatalf("%v", letters)
		}
		reason, _ := letters[0].Header(event.DeadLetterReason)
		detail, _ := letters[0].Header(event.DeadLetterDetail)
		if string(reason) != "filter_error" || !strings.HasPrefix(string(detail), "undecodable: ") {
			t.Errorf("%s: %s", reason, detail)
		}
	}
}

func TestFilterOverEncodedDataWithoutARegistrySaysWhatToSet(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("unregistered", 1), cluster.Name("unregistered-sub")
	cluster.Put(&event.Record{Topic: topic, Value: framed(1, "\x02a\x06\x00")}, &event.Record{Topic: topic, Value: []byte(`{"qty":2}`)})
	g := start(t, cluster, nil)
	g.create(filtered(name, topic, false))
	s := g.subscribe(&posternv1.Open{Subscription: name})
	d := s.next()
	s.ack(d)
	if string(d.Event.Data) != `{"qty":2}` {
		t.Errorf("%q", d.Event.Data)
	}
	settledAll(t, g, name, 2)
	detail, _ := cluster.Read(name + ".dead")[0].Header(event.DeadLetterDetail)
	if !strings.Contains(string(detail), "schema_registry.urls") {
		t.Errorf("%s", detail)
	}
}

func TestAFilterThatCannotTellForNowHoldsUpOnlyItsKeyAndLosesNothing(t *testing.T) {
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("unsure", 1), cluster.Name("unsure-sub")
	cluster.Put(
		&event.Record{Topic: topic, Key: []byte("a"), Value: framed(1, "\x02n\x02\x00")}, // one: not passed
		&event.Record{Topic: topic, Key: []byte("a"), Value: framed(1, "\x02y\x06\x00")},
		&event.Record{Topic: topic, Key: []byte("a"), Value: []byte(`{"qty":7}`)}, // known, and behind its key
		&event.Record{Topic: topic, Key: []byte("b"), Value: []byte(`{"qty":8}`)},
	)
	var back atomic.Bool
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !back.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"schema": orderAvro})
	}))
	defer front.Close()
	g := start(t, cluster, func(c *config.Config) { c.SchemaRegistry.URLs = []string{front.URL} })
	g.create(filtered(name, topic, false))
	s := g.subscribe(&posternv1.Open{Subscription: name})
	d := s.next()
	if string(d.Event.Data) != `{"qty":8}` {
		t.Fatalf("%q came first", d.Event.Data)
	}
	s.ack(d)
	eventually(t, "why it lags", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && st.Cause.Kind == posternv1.CauseKind_CAUSE_KIND_FILTER_ERROR && strings.Contains(st.Cause.Summary, "for now")
	})
	back.Store(true)
	for _, want := range []string{string(framed(1, "\x02y\x06\x00")), `{"qty":7}`} {
		d := s.next()
		if string(d.Event.Data) != want || d.Attempt != 1 {
			t.Errorf("%q, attempt %d; want %q", d.Event.Data, d.Attempt, want)
		}
		s.ack(d)
	}
	settledAll(t, g, name, 4)
	if n := len(cluster.Read(name + ".dead")); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
