package broker_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// poll reads n records.
func poll(t *testing.T, r *broker.Reader, n int) []*event.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []*event.Record
	for len(got) < n {
		if err := r.Poll(ctx, n-len(got), func(r *event.Record) { got = append(got, r) }); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d records came", len(got), n)
		}
	}
	return got
}

func values(records []*event.Record) (all []string) {
	for _, r := range records {
		all = append(all, string(r.Value))
	}
	return all
}

func expectValues(t *testing.T, got []*event.Record, want ...string) {
	t.Helper()
	if !slices.Equal(values(got), want) {
		t.Errorf("got %q, want %q", values(got), want)
	}
}

// at is a record in a chosen partition.
func at(topic string, partition int32, value string) *event.Record {
	return &event.Record{Topic: topic, Partition: partition, Value: []byte(value)}
}

func TestAReaderReadsFromItsOffsets(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 3)
	for _, v := range []string{"a", "b", "c"} {
		c.Put(at(topic, 0, v+"0"), at(topic, 1, v+"1"), at(topic, 2, v+"2"))
	}
	reader, err := c.Client().NewReader(topic, map[int32]int64{0: 2, 1: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	got := poll(t, reader, 3)
	slices.SortFunc(got, func(a, b *event.Record) int {
		return int(a.Partition-b.Partition)*10 + int(a.Offset-b.Offset)
	})
	expectValues(t, got, "c0", "b1", "c1")

	// Nothing of partition 2 until it is added; what comes later comes too.
	reader.Add(2, 1)
	expectValues(t, poll(t, reader, 2), "b2", "c2")
	c.Put(at(topic, 0, "d0"))
	expectValues(t, poll(t, reader, 1), "d0")
}

func TestAReaderThatWaitsEndsWithItsContextWithoutAnError(t *testing.T) {
	c := brokertest.New(t)
	reader, err := c.Client().NewReader(c.Topic("orders", 1), map[int32]int64{0: 0})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := reader.Poll(ctx, 1, func(*event.Record) { t.Error("a record of an empty topic") }); err != nil {
		t.Errorf("a context that ended is told as %v", err)
	}
	reader.Close()
	expectReason(t, reader.Poll(t.Context(), 1, func(*event.Record) {}), fault.ShuttingDown)
}

func TestAReaderBelowTheStartContinuesThere(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	c.Put(at(topic, 0, "a"), at(topic, 0, "b"), at(topic, 0, "c"))
	deleteBefore(t, c, topic, 2)
	reader, err := c.Client().NewReader(topic, map[int32]int64{0: 0})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	expectValues(t, poll(t, reader, 1), "c")
}

func TestOnlyWhatIsCommittedIsRead(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	client := c.Client()
	tx := c.Kgo(kgo.TransactionalID(c.Name("tx")), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	write := func(value string) {
		t.Helper()
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := tx.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	end := func(how kgo.TransactionEndTry) {
		t.Helper()
		if err := tx.EndTransaction(t.Context(), how); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	end(kgo.TryCommit)
	write("aborted")
	end(kgo.TryAbort)
	eventually(t, "the abort is seen", func() bool { return len(c.Read(topic)) == 1 })
	expectValues(t, c.Read(topic), "one")
	write("two")
	end(kgo.TryCommit)
	undecided := func(want ...broker.TopicPartition) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v are undecided", want), func() bool {
			open, err := client.Undecided(t.Context(), topic)
			return err == nil && slices.Equal(open, want)
		})
	}
	undecided()
	write("pending")
	undecided(broker.TopicPartition{Topic: topic, Partition: 0})

	// one, its marker, aborted, its marker, two, its marker: 6. "pending" is beyond
	// what a reader may reach now.
	eventually(t, "the range ends before the open transaction", func() bool {
		ranges, err := client.Ranges(t.Context(), topic)
		return err == nil && ranges[0] == broker.Range{Start: 0, End: 6}
	})
	reader, err := client.NewReader(topic, map[int32]int64{0: 0})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	expectValues(t, poll(t, reader, 2), "one", "two")
	end(kgo.TryCommit)
	expectValues(t, poll(t, reader, 1), "pending")
	undecided()
}

func TestTopicsTellTheirPartitionsAndSettings(t *testing.T) {
	c := brokertest.New(t)
	client := c.Client()
	topic := c.Name("orders")
	for range 2 { // one that is there already is no error
		if err := client.CreateTopic(t.Context(), topic, 3, map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"}); err != nil {
			t.Fatal(err)
		}
	}
	c.Topic("other", 1)
	var topics []broker.Topic
	eventually(t, "the topic is known", func() bool {
		var err error
		topics, err = client.Topics(t.Context(), topic)
		return err == nil && len(topics) == 1 && len(topics[0].Partitions) == 3
	})
	if got := topics[0]; got.Name != topic || got.Internal || got.ID == ([16]byte{}) || !slices.Equal(got.Partitions, []int32{0, 1, 2}) {
		t.Errorf("got %+v", got)
	}
	all, err := client.Topics(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(o broker.Topic) bool { return o.Name == topic }) {
		t.Errorf("%s is not among all topics (%v)", topic, err)
	}
	configs, err := client.TopicConfigs(t.Context(), topic, "cleanup.policy", "retention.ms", "no.such.setting")
	if err != nil || !maps.Equal(configs, map[string]string{"cleanup.policy": "compact", "retention.ms": "-1"}) {
		t.Errorf("got %v (%v)", configs, err)
	}
	_, err = client.TopicConfigs(t.Context(), c.Name("nowhere"), "cleanup.policy")
	expectReason(t, err, fault.UnknownTopic)
	if err := client.DeleteTopics(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the topic is gone", func() bool {
		_, err := client.Topics(t.Context(), topic)
		return fault.Is(err, fault.UnknownTopic)
	})
	if brokertest.Real() { // the stand-in takes any name
		expectReason(t, client.CreateTopic(t.Context(), "not a name", 1, nil), fault.InvalidTopic)
	}
}

func TestOffsetsAtATime(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 2)
	noon := time.UnixMilli(1_790_000_000_000)
	p := c.Producer(c.Client())
	for i := range 4 {
		r := at(topic, 0, "x")
		r.Timestamp = noon.Add(time.Duration(i) * time.Minute)
		if a := produce(t, p, broker.AllReplicas, r)[0]; a.err != nil {
			t.Fatal(a.err)
		}
	}
	for _, row := range []struct {
		at   time.Time
		want map[int32]int64 // partition 1 is empty: its end
	}{
		{noon.Add(-time.Hour), map[int32]int64{0: 0, 1: 0}},
		{noon.Add(90 * time.Second), map[int32]int64{0: 2, 1: 0}},
		{noon.Add(time.Hour), map[int32]int64{0: 4, 1: 0}},
	} {
		got, err := c.Client().OffsetsAt(t.Context(), topic, row.at)
		if err != nil || !maps.Equal(got, row.want) {
			t.Errorf("at noon%+v: %v (%v), want %v", row.at.Sub(noon), got, err, row.want)
		}
	}
	_, err := c.Client().OffsetsAt(t.Context(), c.Name("nowhere"), noon)
	expectReason(t, err, fault.UnknownTopic)
	_, err = c.Client().Ranges(t.Context(), c.Name("nowhere"))
	expectReason(t, err, fault.UnknownTopic)
}

func TestAClusterThatIsAwayIsSaidToBeUnavailable(t *testing.T) {
	c := brokertest.Fake(t)
	client := c.Client()
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Fake.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := client.Ping(ctx)
	if k := fault.KindOf(err); k != fault.KindUnavailable && k != fault.KindDeadline {
		t.Errorf("got %v", err)
	}
}

// eventually asks again until yes: a real cluster takes a moment to agree.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(time.Minute)
	for !yes() {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func deleteBefore(t *testing.T, c *brokertest.Cluster, topic string, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, offset, -1)
	answers, err := c.Admin().DeleteRecords(t.Context(), offsets)
	if err == nil {
		err = answers.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}
