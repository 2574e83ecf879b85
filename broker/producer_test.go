package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// answered is what Produce answered.
type answered struct {
	at  event.Position
	err error
}

func produce(t *testing.T, p *broker.Producer, durability broker.Durability, records ...*event.Record) []answered {
	t.Helper()
	answers := make([]chan answered, len(records))
	for i, r := range records {
		answers[i] = make(chan answered, 1)
		p.Produce(r, durability, func(at event.Position, err error) { answers[i] <- answered{at, err} })
	}
	limit := time.After(time.Minute)
	all := make([]answered, len(records))
	for i := range answers {
		select {
		case all[i] = <-answers[i]:
		case <-limit:
			t.Fatalf("record %d of %d is not answered", i, len(records))
		}
	}
	return all
}

func record(topic, key, value string) *event.Record {
	return &event.Record{Topic: topic, Partition: event.AnyPartition, Key: []byte(key), Value: []byte(value)}
}

func expectReason(t *testing.T, err error, want fault.Reason, words ...string) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Fatalf("got %v, want %s", err, want)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestProduceAnswersWhereEachEventIs(t *testing.T) {
	for name, durability := range map[string]broker.Durability{"all replicas": broker.AllReplicas, "leader": broker.Leader} {
		t.Run(name, func(t *testing.T) {
			c := brokertest.New(t)
			topic := c.Topic("orders", 3)
			var records []*event.Record
			for i := range 50 {
				records = append(records, record(topic, fmt.Sprint("key-", i%7), fmt.Sprint("value-", i)))
			}
			answers := produce(t, c.Producer(c.Client()), durability, records...)
			// What only the leader has is not shown to readers yet.
			eventually(t, "everything is readable", func() bool { return len(c.Read(topic)) >= len(records) })
			stored := map[event.Position]string{}
			for _, r := range c.Read(topic) {
				stored[r.Position()] = string(r.Value)
			}
			if len(stored) != len(records) {
				t.Errorf("%d records are stored, want %d", len(stored), len(records))
			}
			for i, a := range answers {
				if a.err != nil || stored[a.at] != string(records[i].Value) {
					t.Errorf("%s is said to be at %s (%v); there is %q", records[i].Value, a.at, a.err, stored[a.at])
				}
			}
		})
	}
}

// A key goes where Kafka's other producers send it, so that they can share a topic.
func TestAKeyGoesToThePartitionJavaSendsItTo(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 12)
	p := c.Producer(c.Client())
	// murmur2 of the key, positive, modulo 12, by Kafka's Java client.
	hash := kgo.KafkaHasher(murmur2)
	for i := range 40 {
		key := fmt.Appendf(nil, "customer-%d", i)
		a := produce(t, p, broker.AllReplicas, &event.Record{Topic: topic, Partition: event.AnyPartition, Key: key})[0]
		if want := hash(key, 12); a.err != nil || a.at.Partition != int32(want) {
			t.Errorf("%s went to %s (%v), Java sends it to partition %d", key, a.at, a.err, want)
		}
	}
}

// murmur2 as org.apache.kafka.common.utils.Utils has it.
func murmur2(data []byte) uint32 {
	const m, r = 0x5bd1e995, 24
	h := 0x9747b28c ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h = h*m ^ k
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(data[0])) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

func TestAChosenPartitionIsKept(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 4)
	p := c.Producer(c.Client())
	for partition := range int32(4) {
		r := record(topic, "one key", "x")
		r.Partition = partition
		if a := produce(t, p, broker.AllReplicas, r)[0]; a.err != nil || a.at.Partition != partition {
			t.Errorf("partition %d was chosen, the answer is %s (%v)", partition, a.at, a.err)
		}
	}
	absent := record(topic, "", "x")
	absent.Partition = 4
	err := produce(t, p, broker.AllReplicas, absent)[0].err
	expectReason(t, err, fault.UnknownPartition, topic, "4")
	if f := fault.Of(err); f.Metadata["topic"] != topic || f.Metadata["partition"] != "4" {
		t.Errorf("metadata %v", f.Metadata)
	}
	if n := len(c.Read(topic)); n != 4 {
		t.Errorf("%d records are stored, want 4", n)
	}
}

func TestAnUnknownTopicIsSaidSoonAndNotCreated(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Name("nowhere")
	p := c.Producer(c.Client())
	began := time.Now()
	err := produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0].err
	expectReason(t, err, fault.UnknownTopic, topic, "kafka-topics", "--create")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	_, err = c.Client().Topics(t.Context(), topic)
	expectReason(t, err, fault.UnknownTopic)
	if got := fault.Of(err).Metadata["topic"]; got != topic {
		t.Errorf("metadata names topic %q", got)
	}

	// Once it is there, the same producer finds it.
	c.Topic("nowhere", 1)
	if a := produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0]; a.err != nil {
		t.Errorf("the topic was created, and still: %v", a.err)
	}
}

func TestDevCreatesATopicOnFirstPublish(t *testing.T) {
	c := brokertest.Fake(t, kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(6))
	o := c.Options()
	o.AutoCreateTopics = true
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if a := produce(t, c.Producer(client), broker.AllReplicas, record("orders", "", "x"))[0]; a.err != nil {
		t.Fatal(a.err)
	}
	topics, err := client.Topics(t.Context(), "orders")
	if err != nil || len(topics) != 1 || len(topics[0].Partitions) != 6 {
		t.Errorf("got %v (%v)", topics, err)
	}
}

func TestBytesPassUntouched(t *testing.T) {
	binary := []byte{0, 1, 0xff, 0xfe, '\n', 0}
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	written := []*event.Record{
		{Key: []byte("k"), Value: nil},      // a tombstone
		{Key: []byte("k"), Value: []byte{}}, // an empty value is none
		{Key: nil, Value: []byte("v")},      // no key
		{Key: []byte{}, Value: []byte("v")}, // an empty key is a key
		{Key: binary, Value: binary, Timestamp: time.UnixMilli(1_700_000_000_123)},
		{Value: []byte("v"), Headers: []event.Header{
			{Name: "again", Value: []byte("1")},
			{Name: "Again", Value: []byte("2")},
			{Name: "again", Value: []byte("3")},
			{Name: "binary", Value: binary},
			{Name: "null", Value: nil},
			{Name: "empty", Value: []byte{}},
			{Name: "", Value: []byte("no name")},
			{Name: "ünïcode", Value: []byte("x")},
		}},
	}
	for _, r := range written {
		r.Topic = topic
	}
	for i, a := range produce(t, c.Producer(c.Client()), broker.AllReplicas, written...) {
		if a.err != nil {
			t.Fatalf("record %d: %v", i, a.err)
		}
	}
	sameRecords(t, "as another client reads them", c.Read(topic), written)

	reader, err := c.Client().NewReader(topic, map[int32]int64{0: 0})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	sameRecords(t, "as our reader reads them", poll(t, reader, len(written)), written)
}

func sameRecords(t *testing.T, how string, got, want []*event.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d records, want %d", how, len(got), len(want))
	}
	same := func(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }
	for i, g := range got {
		w := want[i]
		if !same(g.Key, w.Key) || !same(g.Value, w.Value) {
			t.Errorf("%s: record %d is %#v %#v, want %#v %#v", how, i, g.Key, g.Value, w.Key, w.Value)
		}
		if !w.Timestamp.IsZero() && !g.Timestamp.Equal(w.Timestamp) {
			t.Errorf("%s: record %d is of %s, want %s", how, i, g.Timestamp, w.Timestamp)
		}
		if len(g.Headers) != len(w.Headers) {
			t.Errorf("%s: record %d has the headers %v, want %v", how, i, g.Headers, w.Headers)
			continue
		}
		for j, h := range g.Headers {
			if h.Name != w.Headers[j].Name || !same(h.Value, w.Headers[j].Value) {
				t.Errorf("%s: header %d is %q %#v, want %q %#v", how, j, h.Name, h.Value, w.Headers[j].Name, w.Headers[j].Value)
			}
		}
	}
}

func TestAnEventThatIsTooLargeIsRefusedAndTheNextOneIsNot(t *testing.T) {
	c := brokertest.New(t)
	p := c.Producer(c.Client())
	for name, large := range map[string]struct {
		topic string
		bytes int
	}{
		"for the topic":   {c.Topic("small", 1, "max.message.bytes", "2000"), 4000},
		"for the gateway": {c.Topic("orders", 1), broker.DefaultMaxEventBytes + 128<<10},
	} {
		t.Run(name, func(t *testing.T) {
			r := record(large.topic, "", "")
			r.Value = make([]byte, large.bytes)
			a := produce(t, p, broker.AllReplicas, r)[0]
			expectReason(t, a.err, fault.EventTooLarge, large.topic)
			if a := produce(t, p, broker.AllReplicas, record(large.topic, "", "small"))[0]; a.err != nil {
				t.Errorf("the next one: %v", a.err)
			}
		})
	}
}

func TestAFullBufferAnswersAtOnceAndEmptiesAgain(t *testing.T) {
	brokertest.NeedsFake(t)
	c := brokertest.New(t)
	topic, other := c.Topic("orders", 1), c.Topic("other", 1) // each may fill half of it
	o := c.Options()
	o.PublishBuffer = 1 << 20
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := c.Producer(client)

	release := make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	held := make(chan answered, 100)
	full := make(chan answered, 100)
	for i := range 20 {
		r := record([]string{topic, other}[i%2], "", "")
		r.Value = make([]byte, 100_000)
		to := held
		if i >= 10 { // 1 MiB holds ten
			to = full
		}
		p.Produce(r, broker.AllReplicas, func(at event.Position, err error) { to <- answered{at, err} })
	}
	for range 10 { // while Kafka is silent
		a := <-full
		expectReason(t, a.err, fault.BufferFull, "retry after")
		if fault.Of(a.err).RetryAfter <= 0 {
			t.Error("it does not say when to retry")
		}
	}
	if records, bytes := p.Buffered(); records != 10 || bytes < 1_000_000 || bytes > 1<<20 {
		t.Errorf("%d records of %d bytes are buffered", records, bytes)
	}
	close(release)
	for range 10 {
		if a := <-held; a.err != nil {
			t.Error(a.err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if records, bytes := p.Buffered(); records != 0 || bytes != 0 {
		t.Errorf("after Flush %d records of %d bytes are buffered", records, bytes)
	}
	if a := produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0]; a.err != nil {
		t.Error(a.err)
	}
}

func TestFlushEndsWithItsContext(t *testing.T) {
	brokertest.NeedsFake(t)
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	release, asked := make(chan struct{}), make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(asked)
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	answers := make(chan answered, 1)
	p.Produce(record(topic, "", "x"), broker.AllReplicas, func(at event.Position, err error) { answers <- answered{at, err} })
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expectReason(t, p.Flush(ctx), fault.Cancelled)
	close(release)
	if a := <-answers; a.err != nil {
		t.Errorf("a Flush that ended early took an event with it: %v", a.err)
	}
}

func TestAfterCloseTheProducerSaysItIsShuttingDown(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	p.Close()
	for _, durability := range []broker.Durability{broker.AllReplicas, broker.Leader} {
		expectReason(t, produce(t, p, durability, record(topic, "", "x"))[0].err, fault.ShuttingDown)
	}
}

// The client counts its own delivery timeout from the record's timestamp.
func TestAnEventOfLastYearIsPublished(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	for _, durability := range []broker.Durability{broker.AllReplicas, broker.Leader} {
		r := record(topic, "", "x")
		r.Timestamp = time.Now().AddDate(-1, 0, 0)
		if a := produce(t, c.Producer(c.Client()), durability, r)[0]; a.err != nil {
			t.Error(a.err)
		}
	}
}

func TestANilBetweenTwoTopicsKeepsTheirOrder(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(2))
	a, b := c.Topic("a", 1), c.Topic("b", 1)
	if err1, err2 := c.Fake.MoveTopicPartition(a, 0, 0), c.Fake.MoveTopicPartition(b, 0, 1); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	p := slowProducer(t, c, c.Bootstrap[0], 20*time.Millisecond)
	for range 2 {
		produce(t, p, broker.AllReplicas, record(a, "k", "warm"), record(b, "k", "warm"))
	}
	for i := range 20 {
		var all sync.WaitGroup
		all.Add(4)
		done := func(_ int, _ event.Position, err error) { all.Done() }
		p.ProduceAll([]*event.Record{record(a, "k", "busy")}, broker.How{}, done)
		p.ProduceAll([]*event.Record{record(a, "k", "y"), nil, record(b, "k", fmt.Sprint(2*i))}, broker.How{}, done)
		p.ProduceAll([]*event.Record{record(b, "k", fmt.Sprint(2*i+1))}, broker.How{}, done)
		all.Wait()
	}
	last := -1
	for _, r := range c.Read(b) {
		if n := 0; string(r.Value) != "warm" {
			_, _ = fmt.Sscan(string(r.Value), &n)
			if n < last {
				t.Errorf("%d is stored after %d", n, last)
			}
			last = n
		}
	}
}

func TestWhatIsUnderWayAtCloseIsUnknown(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	produce(t, p, broker.AllReplicas, record(topic, "", "warm"))
	asked, release := make(chan struct{}), make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(asked)
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	answer := make(chan error, 1)
	p.Produce(record(topic, "", "x"), broker.AllReplicas, func(_ event.Position, err error) { answer <- err })
	<-asked
	go p.Close()
	err := <-answer
	close(release)
	expectReason(t, err, fault.OutcomeUnknown)
}

func TestAnUnknownServerErrorIsUnknown(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	produce(t, p, broker.AllReplicas, record(topic, "", "warm"))
	c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownServerError, Count: 1})
	expectReason(t, produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0].err, fault.OutcomeUnknown)
}

// Found by the simulation (seed 291): the answer to a record's first try was lost,
// the second was refused for good, and its publisher was told that nothing was stored.
func TestARefusalAfterALostAnswerIsUnknown(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	topic := cluster.Topic("refused-later", 1)
	p := cluster.Producer(cluster.Client())
	publish := func() error { return produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0].err }
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	refused := func() *kfake.FaultHandle {
		return cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed})
	}
	refused()
	if err := publish(); !fault.Is(err, fault.KafkaNotAuthorized) {
		t.Errorf("refused at once: %v", err)
	}
	cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut})
	refused()
	if err := publish(); !fault.Is(err, fault.OutcomeUnknown) {
		t.Errorf("refused after its answer was lost: %v", err)
	}
	if n := len(cluster.Read(topic)); n != 2 {
		t.Errorf("%d records are stored, want the first and the one of unknown outcome", n)
	}
}

func TestARetriableRefusalThatEndsATryAfterALostAnswerIsUnknown(t *testing.T) {
	brokertest.NeedsFake(t)
	cluster := brokertest.New(t)
	topic := cluster.Topic("fenced-later", 1)
	p := cluster.Producer(cluster.Client())
	publish := func() error { return produce(t, p, broker.AllReplicas, record(topic, "", "x"))[0].err }
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	// Stored, and told that it may not be; then the topic is missing for a while, and
	// the next answer ends the batch, though Kafka calls it retriable.
	cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: 1})
	cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Err: kerr.UnknownTopicOrPartition, Count: 3})
	refused := cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.FencedLeaderEpoch, Count: 1000})
	if err := publish(); !fault.Is(err, fault.OutcomeUnknown) {
		t.Errorf("fenced after its answer was lost: %v", err)
	}
	refused.Remove()
	if n := len(cluster.Read(topic)); n != 2 {
		t.Errorf("%d records are stored, want the first and the one of unknown outcome", n)
	}
}
