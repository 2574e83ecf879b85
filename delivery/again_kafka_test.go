package delivery_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// shareCluster is a Kafka whose share groups deliver ten times.
func shareCluster(t *testing.T) *brokertest.Cluster {
	if brokertest.Real() {
		return brokertest.New(t)
	}
	return brokertest.Fake(t, kfake.NumBrokers(3), kfake.BrokerConfigs(map[string]string{
		"group.share.delivery.count.limit": "10", "share.record.lock.sweep.interval.ms": "100", "group.share.heartbeat.interval.ms": "200",
	}))
}

// queueOptions are those of a queue of a share group, whose events are held no
// longer than a second.
func queueOptions(c *brokertest.Cluster, name string, topics ...string) delivery.Options {
	o := options(c, name, topics...)
	o.Order = delivery.OrderQueue
	for _, tier := range []string{"1m", "10m", "1h", "6h"} { // removed at the end
		c.Name("_side.delay." + name + "." + tier)
	}
	c.Name("_side.delay." + name)
	c.Name("_side.again." + name)
	return o
}

// shareLag is how many events of a topic the share group has not settled; -1 while
// its coordinator is not there yet.
func shareLag(t *testing.T, c *brokertest.Cluster, group, topic string) (lag int64) {
	t.Helper()
	client := c.Client()
	defer client.Close()
	at, err := client.SharePositions(t.Context(), group, topic)
	if fault.Is(err, fault.BrokerUnavailable) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	ranges, err := client.Ranges(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for p, held := range ranges {
		lag += delivery.ShareLag(at, broker.TopicPartition{Topic: topic, Partition: p}, held)
	}
	return lag
}

func TestQueueEventThatWaitsLongGivesItsPlaceInTheShareGroupUp(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 2)
	o := queueOptions(c, "patient", topic)
	c.Put(events(topic, "a0")...)
	i := borrow(t, c, o)
	first := i.next()
	began := time.Now()
	i.nack(first, 3*time.Second, "later")
	eventually(t, "the share group is done with it while it waits", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it was held all the time: %s", took)
	}
	again := i.next()
	if waited := time.Since(began); waited < 3*time.Second {
		t.Errorf("it came back after %s", waited)
	}
	if again.Attempt != 2 || again.LastFailure != "later" || again.Record.Position() != first.Record.Position() || string(again.Record.Value) != "a0" || !again.Record.Timestamp.Equal(first.Record.Timestamp) {
		t.Errorf("it came back as %+v of %+v", again, again.Record)
	}
	if len(again.Record.Headers) != 1 || string(again.Record.Headers[0].Value) != "a0" {
		t.Errorf("its headers are %v", again.Record.Headers)
	}
	i.ack(again)
	eventually(t, "nothing of it is left in the share group", func() bool { return shareLag(t, c, o.Group, c.Name("_side.again.patient")) == 0 })
}

func TestAttemptsOfAQueueEventAreCountedOverShortAndLongWaits(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "count", topic)
	o.Retry.MaxAttempts = 5
	c.Put(events(topic, "a0")...)
	i := borrow(t, c, o)
	waits := []time.Duration{0, 1500 * time.Millisecond, 100 * time.Millisecond, 1500 * time.Millisecond, 0}
	for n, wait := range waits {
		l := i.next()
		if l.Attempt != n+1 {
			t.Fatalf("it comes as attempt %d, want %d", l.Attempt, n+1)
		}
		i.nack(l, wait, fmt.Sprint("no ", n))
	}
	eventually(t, "its dead letter", func() bool { return len(c.Read(o.DeadLetterTopic)) == 1 })
	dead := c.Read(o.DeadLetterTopic)[0]
	for name, want := range map[string]string{
		event.DeadLetterAttempts: "5", event.DeadLetterTopic: topic, event.DeadLetterOffset: "0", event.DeadLetterReason: "attempts_exhausted", event.DeadLetterDetail: "no 4", "h": "a0",
	} {
		if v, _ := dead.Header(name); string(v) != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
	if slices.ContainsFunc(dead.Headers, func(h event.Header) bool { return strings.HasPrefix(h.Name, "postern-move-") }) {
		t.Errorf("the way it went shows in the dead letter: %v", dead.Headers)
	}
}

func TestQueueEventsThatWaitSurviveTheGatewayThatPutThemAside(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "survive", topic)
	c.Put(events(topic, "a0", "b0", "c0")...)
	first := borrow(t, c, o)
	for range 3 {
		l := first.next()
		if string(l.Record.Value) == "b0" {
			first.ack(l)
			continue
		}
		first.nack(l, 4*time.Second, "")
	}
	eventually(t, "all are out of the share group", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
	first.stop()
	second := borrow(t, c, o) // it finds what it has to carry on
	var got []string
	for range 2 {
		l := second.next()
		got = append(got, fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
		second.ack(l)
	}
	if slices.Sort(got); strings.Join(got, " ") != "a0#2 c0#2" {
		t.Errorf("delivered %s", got)
	}
}

func TestQueueEventThatCannotBePutAsideIsHeldAndComesWhenItIsDue(t *testing.T) {
	brokertest.NeedsFake(t)
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "denied", topic)
	c.Put(events(topic, "a0")...)
	c.Fake.ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		answer := r.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, of := range r.(*kmsg.CreateTopicsRequest).Topics {
			refused := kmsg.NewCreateTopicsResponseTopic()
			refused.Topic, refused.ErrorCode = of.Topic, kerr.TopicAuthorizationFailed.Code
			answer.Topics = append(answer.Topics, refused)
		}
		return answer, nil, true
	})
	i := borrow(t, c, o)
	l := i.next()
	began := time.Now()
	i.nack(l, 3*time.Second, "later")
	eventually(t, "its cause", func() bool {
		report, err := i.queues.Report(t.Context(), o)
		return err == nil && report.Cause.Kind == delivery.CauseBrokerUnavailable && strings.Contains(report.Cause.Summary, "cannot be put aside")
	})
	if lag := shareLag(t, c, o.Group, topic); lag != 1 {
		t.Errorf("%d events are left in the share group", lag)
	}
	again := i.next()
	if waited := time.Since(began); waited < 3*time.Second || again.Attempt != 2 || again.LastFailure != "later" {
		t.Errorf("attempt %d (%s) came after %s", again.Attempt, again.LastFailure, waited)
	}
	i.ack(again)
	eventually(t, "it is settled", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
}

func TestRecordThatOthersWroteToAQueuesOwnTopicIsDeadLettered(t *testing.T) {
	c := shareCluster(t)
	topic, own := c.Topic("uploads", 1), c.Topic("_side.again.stray", 1)
	o := queueOptions(c, "stray", topic)
	c.Put(&event.Record{Topic: own, Value: []byte("who knows")})
	c.Put(events(topic, "a0")...)
	i := borrow(t, c, o)
	i.ack(i.next())
	eventually(t, "its dead letter", func() bool {
		if topics := c.Read(o.DeadLetterTopic); len(topics) == 1 {
			v, _ := topics[0].Header(event.DeadLetterReason)
			return string(topics[0].Value) == "who knows" && string(v) == "undecodable"
		}
		return false
	})
}

func TestQueueEventWhoseCopyKafkaRefusesStaysInTheShareGroup(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	c.Topic("_side.delay.refused.1m", 1, "max.message.bytes", "10")
	o := queueOptions(c, "refused", topic)
	c.Put(events(topic, "a0", "b0")...)
	i := borrow(t, c, o)
	l := i.next()
	i.ack(i.next())
	began := time.Now()
	i.nack(l, 3*time.Second, "later")
	eventually(t, "the other one is settled", func() bool { return shareLag(t, c, o.Group, topic) == 1 })
	again := i.next()
	if waited := time.Since(began); waited < 3*time.Second || again.Attempt != 2 || string(again.Record.Value) != string(l.Record.Value) {
		t.Errorf("attempt %d of %s came after %s", again.Attempt, again.Record.Value, waited)
	}
	i.ack(again)
	eventually(t, "it is settled", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
}

func TestARedriveOfAQueueReachesOnlyTheSubscriptionItDiedIn(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 2)
	o, other := queueOptions(c, "mine", topic), queueOptions(c, "other", topic)
	a, b := openOffice(t, c, nil), openOffice(t, c, nil)
	a.open(o) // it works already when the redrive begins
	b.open(other)
	c.Put(events(topic, "a0", "a1", "b0")...)
	for range 3 {
		l := a.next()
		a.say(delivery.Settlement{ID: l.ID, Word: delivery.Reject, Reason: "no"})
		b.ack(b.next())
	}
	eventually(t, "all are dead letters", func() bool { return len(list(t, a.letters, o, delivery.LettersQuery{})) == 3 })
	j := b.ended(b.start(o, delivery.JobRequest{Kind: delivery.JobRedrive})) // asked of another gateway
	if j.Matched != 3 || j.Done != 3 || j.Skipped != 0 {
		t.Errorf("the job is %+v", j)
	}
	var got []string
	for range 3 {
		l := a.next()
		if from, _ := l.Record.Header(event.RedriveFrom); l.Record.Topic != topic || !strings.HasPrefix(string(from), o.DeadLetterTopic) {
			t.Errorf("it came as %+v", l.Record)
		}
		got = append(got, fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
		a.ack(l)
	}
	if slices.Sort(got); strings.Join(got, " ") != "a0#1 a1#1 b0#1" {
		t.Errorf("delivered %s", got)
	}
	c.Put(events(topic, "z")...)
	if l := b.next(); string(l.Record.Value) != "z" {
		t.Errorf("the other subscription got %s", l.Record.Value)
	} else {
		b.ack(l)
	}
	if l := list(t, b.letters, o, delivery.LettersQuery{}); len(l) != 0 {
		t.Errorf("%s are still to be redriven", texts(l))
	}
}

func TestWhatIsRedrivenToAQueueBeforeItsShareGroupBeginsIsDelivered(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "later", topic)
	putDead(c, c.Topic("later.dead", 1), topic, o.Name, 3, "a")
	a := openOffice(t, c, nil)
	a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive}))
	a.open(o)
	var got []string
	for range 3 {
		l := a.next()
		got = append(got, fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
		a.ack(l)
	}
	if slices.Sort(got); strings.Join(got, " ") != "a0#1 a1#1 a2#1" {
		t.Errorf("delivered %s", got)
	}
}

func TestAReplayIntoAQueueDeliversASliceAgainAndAsksItsFilter(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "replay", topic)
	c.Put(events(topic, "a0", "b0", "a1", "c0")...)
	o.Filter = onlyKey("a")
	a := openOffice(t, c, nil)
	a.open(o)
	for range 2 {
		a.ack(a.next())
	}
	eventually(t, "all is settled", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
	for _, row := range []struct {
		replay  delivery.ReplayRequest
		matched int64
	}{
		{delivery.ReplayRequest{After: time.UnixMilli(1)}, 4},
		{delivery.ReplayRequest{After: time.UnixMilli(1), HasKey: true, Key: []byte("a")}, 2},
	} {
		if j := a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobReplay, Replay: row.replay})); j.Matched != row.matched || j.Done != row.matched {
			t.Errorf("the job is %+v", j)
		}
		var got []string
		for range 2 {
			l := a.next()
			if l.Record.Topic != topic || len(l.Record.Headers) != 1 {
				t.Errorf("it came as %+v", l.Record)
			}
			got = append(got, fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
			a.ack(l)
		}
		if slices.Sort(got); strings.Join(got, " ") != "a0#1 a1#1" {
			t.Errorf("replayed were %s", got)
		}
	}
}

func TestQueueEventPutAsideByANewerPosternIsKeptForOneAndStopsNobody(t *testing.T) {
	c := shareCluster(t)
	topic, own := c.Topic("uploads", 1), c.Topic("_side.again.newer", 1)
	o := queueOptions(c, "newer", topic)
	c.Put(&event.Record{Topic: own, Value: []byte("tomorrow"), Headers: []event.Header{{Name: event.MoveVersion, Value: []byte("2")}}})
	c.Put(events(topic, "a0", "b0")...)
	i := borrow(t, c, o)
	i.ack(i.next())
	i.ack(i.next())
	eventually(t, "all else is settled", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
	i.stop()
	if lag := shareLag(t, c, o.Group, own); lag != 1 {
		t.Errorf("%d events are left for a newer Postern", lag)
	}
}

func TestStatusOfAQueueCountsWhatWaitsForItsNextAttempt(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "waits", topic)
	c.Put(events(topic, "a0")...)
	i := borrow(t, c, o)
	i.nack(i.next(), time.Hour, "later")
	eventually(t, "its cause", func() bool {
		report, err := i.queues.Report(t.Context(), o)
		return err == nil && report.Cause.Kind == delivery.CauseRetrying && i.queue.Backlog() == 1
	})
}

func TestSoughtQueueStillBringsWhatWaitsInADelayTopic(t *testing.T) {
	c := shareCluster(t)
	topic := c.Topic("uploads", 1)
	o := queueOptions(c, "sought", topic)
	c.Put(events(topic, "a0")...)
	i := prepare(t, c)
	to := seek(1, topic, 2)
	i.queues.NoteBegun(func(name string, epoch uint64) {
		kept := to
		kept.Begun = epoch + 1
		go i.queues.Desire(name, kept) // as the subscription's record does
	})
	i.open(o)
	i.nack(i.next(), 3*time.Second, "later")
	eventually(t, "the share group is done with it while it waits", func() bool { return shareLag(t, c, o.Group, topic) == 0 })
	c.Put(events(topic, "b1")...)
	held := i.next()
	i.queues.Desire(o.Name, to)
	c.Put(events(topic, "c2")...)
	var came []string // whichever is first: a seek may take longer than the wait
	for range 2 {
		next := i.next()
		came = append(came, values([]delivery.Lease{next}))
		i.ack(next)
	}
	if slices.Sort(came); !slices.Equal(came, []string{"a0#2", "c2#1"}) {
		t.Errorf("%v came, want what was put aside and what is behind the position", came)
	}
	if o := i.queue.SettleCommitted(t.Context(), []delivery.Settlement{{ID: held.ID, Word: delivery.Ack}})[0].Outcome; o != delivery.LeaseExpired {
		t.Errorf("an ack of what was at work when the subscription was sought is %s", o)
	}
}
