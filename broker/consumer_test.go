package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// member is a consumer that is polled, and what it was told and given.
type member struct {
	*broker.Consumer
	t        *testing.T
	assigned chan broker.Assigned
	records  chan *event.Record
	revoked  func(context.Context, []broker.TopicPartition) // nil: lets go
	gone     chan broker.TopicPartition
	stop     func()
}

func (m *member) Assigned(all []broker.Assigned) {
	for _, a := range all {
		m.assigned <- a
	}
}

func (m *member) Revoked(ctx context.Context, tps []broker.TopicPartition) {
	if m.revoked != nil {
		m.revoked(ctx, tps)
	}
	m.Lost(tps)
}

func (m *member) Lost(tps []broker.TopicPartition) {
	for _, tp := range tps {
		m.gone <- tp
	}
}

// join makes a member of a group and polls it until stop, which leaves the group.
func join(t *testing.T, client *broker.Client, o broker.ConsumerOptions) *member {
	t.Helper()
	m := newMember(t, client, o)
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.poll()
	return m
}

func newMember(t *testing.T, client *broker.Client, o broker.ConsumerOptions) *member {
	m := &member{t: t, assigned: make(chan broker.Assigned, 100), records: make(chan *event.Record, 1000), gone: make(chan broker.TopicPartition, 100)}
	m.Consumer = client.NewConsumer(o, m)
	return m
}

func (m *member) poll() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			err := m.Poll(ctx, 100, func(all []*event.Record) {
				for _, r := range all {
					m.records <- r
				}
			})
			if err != nil && fault.KindOf(err) != fault.KindUnavailable {
				m.t.Errorf("poll: %v", err)
				return
			}
		}
	}()
	stopped := false
	m.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			m.Close(true)
		}
	}
	m.t.Cleanup(m.stop)
}

// take waits for n of what comes on a channel.
func take[T any](t *testing.T, from chan T, n int, what string) []T {
	t.Helper()
	limit := time.After(time.Minute)
	var got []T
	for len(got) < n {
		select {
		case x := <-from:
			got = append(got, x)
		case <-limit:
			t.Fatalf("%d of %d %s came: %v", len(got), n, what, got)
		}
	}
	return got
}

func (m *member) taken(n int) []*event.Record {
	m.t.Helper()
	return take(m.t, m.records, n, "records")
}

func (m *member) commit(topic string, partition int32, offset int64, metadata string) {
	m.t.Helper()
	refused, err := m.Commit(m.t.Context(), map[broker.TopicPartition]broker.Committing{
		{Topic: topic, Partition: partition}: {Offset: offset, Metadata: metadata},
	})
	if err != nil || len(refused) != 0 {
		m.t.Fatalf("commit: %v %v", refused, err)
	}
}

func TestAMemberIsAssignedTheOffsetAndMetadataThatWereCommitted(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 2), c.Name("mail")
	client := c.Client()
	c.Put(at(topic, 0, "a"), at(topic, 0, "b"), at(topic, 0, "c"), at(topic, 1, "x"))
	o := broker.ConsumerOptions{Group: group, Topics: []string{topic}}

	first := join(t, client, o)
	for _, a := range take(t, first.assigned, 2, "partitions") {
		if a.Offset != 0 || a.Metadata != "" || a.TopicID == ([16]byte{}) {
			t.Errorf("a first reading is assigned %+v", a)
		}
	}
	first.taken(4)
	metadata := "v1;\x00 any text, ünïcode too;" + strings.Repeat("x", 1000)
	first.commit(topic, 0, 2, metadata)
	if offset, got := c.Committed(group, topic, 0); offset != 2 || got != metadata {
		t.Errorf("another client sees %d %q committed", offset, got)
	}
	first.commit(topic, 1, 1, "")
	if ends := first.Ends(); ends[broker.TopicPartition{Topic: topic, Partition: 0}] != 3 || ends[broker.TopicPartition{Topic: topic, Partition: 1}] != 1 {
		t.Errorf("the ends are %v", ends)
	}
	first.stop()

	second := join(t, client, o)
	for _, a := range take(t, second.assigned, 2, "partitions") {
		want := broker.Assigned{TopicPartition: a.TopicPartition, TopicID: a.TopicID, Offset: 2, Metadata: metadata}
		if a.Partition == 1 {
			want.Offset, want.Metadata = 1, ""
		}
		if a != want {
			t.Errorf("assigned %+v, want %+v", a, want)
		}
	}
	expectValues(t, second.taken(1), "c")
	committed, err := client.Committed(t.Context(), group, topic)
	if err != nil || committed[broker.TopicPartition{Topic: topic, Partition: 0}].Offset != 2 || len(committed) != 2 {
		t.Errorf("Committed answers %v (%v)", committed, err)
	}
}

// A subscription that starts at the latest event, is created, and goes away
// before it acknowledged anything, must not skip what came meanwhile.
func TestStartLatestIsWrittenDownAtOnceSoThatARestartSkipsNothing(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 2), c.Name("mail")
	client := c.Client()
	c.Put(at(topic, 0, "old"), at(topic, 1, "old"))
	o := broker.ConsumerOptions{Group: group, Topics: []string{topic}, Start: broker.Start{Latest: true}}
	first := join(t, client, o)
	take(t, first.assigned, 2, "partitions")
	first.stop()
	for partition := range int32(2) {
		if offset, _ := c.Committed(group, topic, partition); offset != 1 {
			t.Errorf("partition %d begins at %d, want 1", partition, offset)
		}
	}

	c.Put(at(topic, 0, "while away"))
	second := join(t, client, o)
	expectValues(t, second.taken(1), "while away")
	select {
	case r := <-second.records:
		t.Errorf("also got %s %q", r.Position(), r.Value)
	default:
	}
}

func TestAGroupBeginsWhereItsStartSays(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	client := c.Client()
	noon := time.UnixMilli(1_790_000_000_000)
	p := c.Producer(client)
	for i := range 4 {
		r := at(topic, 0, fmt.Sprint(i))
		r.Timestamp = noon.Add(time.Duration(i) * time.Minute)
		if a := produce(t, p, broker.AllReplicas, r)[0]; a.err != nil {
			t.Fatal(a.err)
		}
	}
	for name, row := range map[string]struct {
		start broker.Start
		want  int64
	}{
		"earliest":          {broker.Start{}, 0},
		"latest":            {broker.Start{Latest: true}, 4},
		"a time":            {broker.Start{Time: noon.Add(90 * time.Second)}, 2},
		"a time to come":    {broker.Start{Time: noon.Add(time.Hour)}, 4},
		"a time before all": {broker.Start{Time: noon.Add(-time.Hour)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			group := c.Name(strings.ReplaceAll(name, " ", "-"))
			m := join(t, client, broker.ConsumerOptions{Group: group, Topics: []string{topic}, Start: row.start})
			if a := take(t, m.assigned, 1, "partitions")[0]; a.Offset != row.want {
				t.Errorf("assigned at %d, want %d", a.Offset, row.want)
			}
			if offset, _ := c.Committed(group, topic, 0); offset != row.want {
				t.Errorf("%d is written down, want %d", offset, row.want)
			}
			m.stop()
		})
	}
}

// The start is for the topic as it was; a partition that appears later is read
// whole, or what was published before anyone noticed it would be skipped.
func TestAPartitionAddedLaterIsReadFromItsStart(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 1), c.Name("mail")
	client := c.Client()
	o := broker.ConsumerOptions{Group: group, Topics: []string{topic}, Start: broker.Start{Latest: true}}
	c.Put(at(topic, 0, "old"))
	first := join(t, client, o)
	take(t, first.assigned, 1, "partitions")
	first.stop()
	grow(t, c, topic, 2)
	c.Put(at(topic, 1, "in the new partition"))

	second := join(t, client, o)
	for _, a := range take(t, second.assigned, 2, "partitions") {
		if want := int64(1 - a.Partition); a.Offset != want {
			t.Errorf("%s is assigned at %d, want %d", a.TopicPartition, a.Offset, want)
		}
	}
	expectValues(t, second.taken(1), "in the new partition")
}

func grow(t *testing.T, c *brokertest.Cluster, topic string, to int) {
	t.Helper()
	answers, err := c.Admin().UpdatePartitions(t.Context(), to, topic)
	if err == nil {
		err = answers.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new partition has a leader", func() bool {
		details, err := c.Admin().ListTopics(t.Context(), topic)
		return err == nil && len(details[topic].Partitions) == to &&
			!slices.ContainsFunc(details[topic].Partitions.Sorted(), func(p kadm.PartitionDetail) bool { return p.Err != nil || p.Leader < 0 })
	})
}

func TestMetadataThatIsTooLongIsRefusedForItsPartitionOnly(t *testing.T) {
	brokertest.NeedsReal(t, "takes metadata of any length")
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 2), c.Name("mail")
	m := join(t, c.Client(), broker.ConsumerOptions{Group: group, Topics: []string{topic}})
	take(t, m.assigned, 2, "partitions")
	c.Put(at(topic, 0, "a"), at(topic, 1, "b"))
	m.taken(2)
	fits, over := strings.Repeat("x", 4096), strings.Repeat("x", 4097)
	refused, err := m.Commit(t.Context(), map[broker.TopicPartition]broker.Committing{
		{Topic: topic, Partition: 0}: {Offset: 1, Metadata: over},
		{Topic: topic, Partition: 1}: {Offset: 1, Metadata: fits},
	})
	if err != nil {
		t.Fatal(err)
	}
	at0 := broker.TopicPartition{Topic: topic, Partition: 0}
	if len(refused) != 1 || fault.Of(refused[at0]).Metadata["kafka_error"] != "OFFSET_METADATA_TOO_LARGE" {
		t.Errorf("refused %v", refused)
	}
	if offset, metadata := c.Committed(group, topic, 1); offset != 1 || metadata != fits {
		t.Errorf("the other partition has %d and %d characters", offset, len(metadata))
	}
	if offset, _ := c.Committed(group, topic, 0); offset != 0 {
		t.Errorf("the refused one is at %d", offset)
	}
}

// Partitions move to a second member, which begins where the first one's last
// word, in Revoked, says.
func TestARevokedMembersLastCommitReachesTheNextOwner(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 4), c.Name("mail")
	client := c.Client()
	o := broker.ConsumerOptions{Group: group, Topics: []string{topic}}
	for p := range int32(4) {
		c.Put(at(topic, p, "one"), at(topic, p, "two"))
	}
	first := newMember(t, client, o)
	first.revoked = func(ctx context.Context, tps []broker.TopicPartition) {
		what := map[broker.TopicPartition]broker.Committing{}
		for _, tp := range tps {
			what[tp] = broker.Committing{Offset: 1, Metadata: "last word of " + tp.String()}
		}
		if refused, err := first.Commit(context.WithoutCancel(ctx), what); err != nil || len(refused) > 0 {
			t.Errorf("commit while revoked: %v %v", refused, err)
		}
	}
	if err := first.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.poll()
	take(t, first.assigned, 4, "partitions")
	first.taken(8)

	second := join(t, client, o)
	moved := take(t, second.assigned, 2, "partitions")
	for _, a := range moved {
		if a.Offset != 1 || a.Metadata != "last word of "+a.String() {
			t.Errorf("assigned %+v", a)
		}
	}
	for _, r := range second.taken(2) {
		if string(r.Value) != "two" {
			t.Errorf("%s is %q", r.Position(), r.Value)
		}
	}
	gone := take(t, first.gone, 2, "revocations")
	for _, tp := range gone {
		if !slices.ContainsFunc(moved, func(a broker.Assigned) bool { return a.TopicPartition == tp }) {
			t.Errorf("%s went away and did not arrive", tp)
		}
	}

	second.commit(topic, gone[0].Partition, 2, "mine")
	if offset, metadata := c.Committed(group, topic, gone[0].Partition); offset != 2 || metadata != "mine" {
		t.Errorf("the new owner committed 2 \"mine\", there is %d %q", offset, metadata)
	}
}

func TestAPausedPartitionRestsAndGoesOnWhereItStopped(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 2)
	m := join(t, c.Client(), broker.ConsumerOptions{Group: c.Name("mail"), Topics: []string{topic}})
	take(t, m.assigned, 2, "partitions")
	c.Put(at(topic, 0, "0a"))
	expectValues(t, m.taken(1), "0a")
	paused := []broker.TopicPartition{{Topic: topic, Partition: 0}}
	m.Pause(paused)
	c.Put(at(topic, 0, "0b"), at(topic, 0, "0c"))
	for _, v := range []string{"1a", "1b"} { // two fetches after the pause
		c.Put(at(topic, 1, v))
		expectValues(t, m.taken(1), v)
	}
	m.Resume(paused)
	expectValues(t, m.taken(2), "0b", "0c")
}

// Positions that retention has passed continue at the log's start.
func TestAPositionThatRetentionPassedContinuesAtTheStart(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 1), c.Name("mail")
	client := c.Client()
	c.Put(at(topic, 0, "a"), at(topic, 0, "b"), at(topic, 0, "c"))
	o := broker.ConsumerOptions{Group: group, Topics: []string{topic}}
	first := join(t, client, o)
	first.taken(3)
	first.stop() // nothing acknowledged: at 0
	deleteBefore(t, c, topic, 2)
	second := join(t, client, o)
	expectValues(t, second.taken(1), "c")
}

func TestJoiningWithoutTheTopicSaysSo(t *testing.T) {
	c := brokertest.New(t)
	m := newMember(t, c.Client(), broker.ConsumerOptions{Group: c.Name("mail"), Topics: []string{c.Name("nowhere")}})
	expectReason(t, m.Join(t.Context()), fault.UnknownTopic)
}

func TestAClosedConsumerSaysSo(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	group := c.Name("mail")
	m := join(t, c.Client(), broker.ConsumerOptions{Group: group, Topics: []string{topic}})
	take(t, m.assigned, 1, "partitions")
	m.stop()
	take(t, m.gone, 1, "revocations")
	expectReason(t, m.Poll(t.Context(), 1, func([]*event.Record) {}), fault.ShuttingDown)
	if refused, err := m.Commit(t.Context(), map[broker.TopicPartition]broker.Committing{{Topic: topic}: {Offset: 1}}); err == nil && len(refused) == 0 {
		t.Error("a commit after Close is said to be stored")
	}
	if offset, _ := c.Committed(group, topic, 0); offset > 0 {
		t.Errorf("the group is at %d", offset)
	}
}
