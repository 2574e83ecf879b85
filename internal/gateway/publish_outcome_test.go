package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/publish"
)

// reasonIn is the reason of an error inside an answer.
func reasonIn(r *posternv1.PublishResult) fault.Reason {
	if r.GetError() == nil {
		return ""
	}
	return wire.FromStatus(r.Error).Reason
}

// Whatever way a publish comes, a wait that ends leaves no doubt that the event may be stored.
func TestAWaitThatEndsIsUnknownOnEverySurface(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("unknown", 1)
	g.publish(topic, "k", "warm")
	release := make(chan struct{})
	holdProduce(cluster, release)
	body := `{"events":[{"data":"eA=="}]}`
	for name, headers := range map[string][]string{
		"Grpc-Timeout": {"Grpc-Timeout", "300m"}, "Prefer": {"Prefer", "handling=strict, wait=1; x=y"}, "Prefer in capitals": {"Prefer", `Wait="1"`},
	} {
		began := time.Now()
		a := g.do("POST", "/v1/topics/"+topic+":publish", body, headers...)
		var answer struct {
			Results []struct {
				Error struct{ Details []struct{ Reason string } }
			}
		}
		decode(t, a.Body, &answer)
		// Each event's outcome comes in the answer, or, when there was no time left to write one, the request's.
		whole := a.Status == http.StatusGatewayTimeout && a.Reason == fault.OutcomeUnknown
		each := a.Status == 200 && len(answer.Results) == 1 && answer.Results[0].Error.Details[0].Reason == string(fault.OutcomeUnknown)
		if !whole && !each || time.Since(began) > 3*time.Second {
			t.Errorf(":publish with %s: %d %s after %s", name, a.Status, a.Body, time.Since(began))
		}
		if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", headers...); a.Status != http.StatusGatewayTimeout || a.Reason != fault.OutcomeUnknown || a.Metadata["topic"] != topic {
			t.Errorf("events with %s: %d %s", name, a.Status, a.Body)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	r, err := g.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}, {}}})
	if err != nil || reasonIn(r.Results[0]) != fault.OutcomeUnknown || reasonIn(r.Results[1]) != fault.OutcomeUnknown {
		t.Errorf("gRPC: %v %v", r, err)
	}
	close(release)
	// A preference that cannot be read is none (RFC 7240, section 2).
	for _, prefer := range []string{"wait=soon", "wait", "wait=0", "respond-async"} {
		if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "Prefer", prefer); a.Status != 200 {
			t.Errorf("Prefer: %s: %d %s", prefer, a.Status, a.Body)
		}
	}
	if a := g.do("POST", "/v1/topics/"+topic+"/events", "x", "Grpc-Timeout", "soon"); a.Status != 400 || a.Reason != fault.InvalidHeader {
		t.Errorf("Grpc-Timeout: soon: %d %s", a.Status, a.Body)
	}
}

// A drain reaches streams whose answers Kafka keeps, and nothing under way is cut without a word.
func TestAStreamIsToldOfTheDrainWhileKafkaIsSilent(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, func(c *config.Config) { c.DrainTimeout = 2 * time.Second })
	topic := cluster.Topic("stuck", 1)
	g.publish(topic, "k", "warm")
	s, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	l := g.talk(topic, http.DefaultClient)
	asked, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	cluster.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		first.Do(func() { close(asked) })
		cluster.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	if err := s.Send(&posternv1.PublishStreamRequest{Sequence: 1, Request: &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}}); err != nil {
		t.Fatal(err)
	}
	<-asked
	l.send("{\"value\":1}\n")
	held := make(chan answer, 1)
	go func() { held <- g.do("POST", "/v1/topics/"+topic+"/events", "unary") }()
	eventually(t, "all three are with the producer", func() bool { n, _ := g.gateway.producer.Buffered(); return n == 3 })
	stopped := make(chan struct{})
	go func() { defer close(stopped); g.stopAny() }()
	if m, err := s.Recv(); err != nil || m.Drain == nil {
		t.Errorf("first on the stream: %v %v, want the drain notice", m, err)
	}
	if r := l.next(); r.Drain == nil {
		t.Errorf("first of the lines: %+v, want the drain notice", r)
	}
	if m, err := s.Recv(); err != nil || len(m.Done) != 1 || reasonIn(m.Done[0].Results[0]) != fault.OutcomeUnknown {
		t.Errorf("before the cut the stream is told %v %v", m, err)
	}
	if r := l.next(); r.Problem == nil || r.Problem.Reason != fault.OutcomeUnknown {
		t.Errorf("before the cut the lines are told %+v", r)
	}
	if a := <-held; a.Reason != fault.OutcomeUnknown {
		t.Errorf("before the cut a request is told %d %s", a.Status, a.Body)
	}
	close(release)
	<-stopped
}

func TestAStreamsSequencesMustIncrease(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("sequences", 1)
	for name, sequences := range map[string][]uint64{"0 again": {0, 0}, "5 again": {5, 5}, "backwards": {7, 6}} {
		s, err := g.publisher().PublishStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range sequences {
			if err := s.Send(&posternv1.PublishStreamRequest{Sequence: n, Request: &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}}); err != nil {
				t.Fatal(err)
			}
		}
		for err == nil {
			_, err = s.Recv()
		}
		if reasonOf(t, err) != fault.ProtocolViolation {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request that is refused as a whole is answered in its place, and the stream goes on.
func TestAStreamGoesOnAfterABadRequest(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("goes-on", 1)
	s, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, to := range []string{topic, "no topic", topic} {
		if err := s.Send(&posternv1.PublishStreamRequest{Sequence: uint64(i + 1), Request: &posternv1.PublishRequest{Topic: to, Events: []*posternv1.Event{{}}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var done []*posternv1.PublishDone
	for {
		m, err := s.Recv()
		if err == io.EOF { //nolint:errorlint // gRPC's own end
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, m.Done...)
	}
	if len(done) != 3 || done[0].Error != nil || done[2].Error != nil || done[2].Results[0].Error != nil ||
		wire.FromStatus(done[1].Error).Reason != fault.InvalidTopic || done[1].Sequence != 2 {
		t.Errorf("answers %v", done)
	}
}

// What one stream has unanswered is bounded by its window, whatever its client sends.
func TestAStreamIsReadNoFurtherThanItsWindow(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("window", 1)
	g.publish(topic, "k", "warm")
	s, err := g.publisher().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Recv()
	if err != nil || first.Window.GetMaxEvents() != 10_000 || first.Window.GetMaxBytes() <= 0 {
		t.Fatalf("the window: %v %v", first, err)
	}
	release := make(chan struct{})
	holdProduce(cluster, release)
	const n = 20_000
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			if err := s.Send(&posternv1.PublishStreamRequest{Sequence: uint64(i + 1), Request: &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}}); err != nil {
				sent <- err
				return
			}
		}
		sent <- s.CloseSend()
	}()
	eventually(t, "the window is used", func() bool { n, _ := g.gateway.producer.Buffered(); return n >= 10_000 })
	// The client goes on sending into gRPC's own window; none of that is taken up.
	for range 100 {
		g.do("GET", "/openapi.json", "")
		if records, _ := g.gateway.producer.Buffered(); records > 10_000 {
			t.Fatalf("%d are unanswered", records)
		}
	}
	close(release)
	answered := 0
	for answered < n {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		answered += len(m.Done)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestDurabilityAndCompressionOfHTTPRequestsReachKafka(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	g := start(t, cluster, rules(publish.Rules{Compression: "zstd"}))
	topic := cluster.Topic("as-asked", 1)
	asked := make(chan kmsg.ProduceRequest, 10)
	cluster.Fake.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.Fake.KeepControl()
		asked <- *r.(*kmsg.ProduceRequest)
		return nil, nil, false
	})
	for _, c := range []struct {
		headers []string
		acks    int16
	}{{nil, -1}, {[]string{"Postern-Durability", "leader"}, 1}, {[]string{"Postern-Durability", "all_replicas"}, -1}, {[]string{"Postern-Atomic", "true"}, -1}} {
		if a := g.do("POST", "/v1/topics/"+topic+"/events", strings.Repeat("x", 4000), c.headers...); a.Status != 200 {
			t.Fatalf("%v: %d %s", c.headers, a.Status, a.Body)
		}
		r := <-asked
		batch := kmsg.RecordBatch{}
		if err := batch.ReadFrom(r.Topics[0].Partitions[0].Records); err != nil {
			t.Fatal(err)
		}
		if r.Acks != c.acks || batch.Attributes&7 != 4 {
			t.Errorf("%v: acks %d, codec %d", c.headers, r.Acks, batch.Attributes&7)
		}
	}
}

// Publishing counts under the topic that an event goes to, and repeats count as such.
func TestMetricsNameTheEventsTopic(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	a, b := cluster.Topic("counted-a", 1), cluster.Topic("counted-b", 1)
	r, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: a, Events: []*posternv1.Event{
		{}, {Topic: b}, {Topic: b}, {Topic: b, DedupeKey: "k"}, {Topic: b, DedupeKey: "k"}, {Topic: b, Id: "half a cloudevent"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if reasonIn(r.Results[5]) != fault.InvalidCloudEvent {
		t.Errorf("%v", r.Results[5])
	}
	text := g.metrics()
	for _, want := range []string{
		fmt.Sprintf(`messaging_client_sent_messages_total{messaging_destination_name=%q`, a), fmt.Sprintf(`messaging_client_sent_messages_total{messaging_destination_name=%q`, b),
		fmt.Sprintf(`postern_publish_duplicates_total{messaging_destination_name=%q`, b), fmt.Sprintf(`postern_publish_failures_total{messaging_destination_name=%q`, b),
		"\npostern_publish_dedupe_keys", "\npostern_publish_dedupe_size_bytes",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no series %s in %s", want, text)
		}
	}
	for _, wrong := range []string{fmt.Sprintf(`postern_publish_failures_total{messaging_destination_name=%q`, a)} {
		if strings.Contains(text, wrong) {
			t.Errorf("a series %s", wrong)
		}
	}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, fmt.Sprintf(`messaging_client_sent_messages_total{messaging_destination_name=%q`, b)) && !strings.HasSuffix(line, " 3") {
			t.Errorf("%s: want 3", line)
		}
		if strings.HasPrefix(line, "postern_publish_dedupe_keys") && !strings.HasSuffix(line, " 1") {
			t.Errorf("%s: want 1", line)
		}
	}
}
