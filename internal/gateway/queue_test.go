package gateway

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// shareCluster is a Kafka of several brokers whose share groups deliver ten times, and whose locks
// are short where the test says so.
func shareCluster(t *testing.T) *brokertest.Cluster {
	if brokertest.Real() {
		return brokertest.New(t)
	}
	return brokertest.Fake(t, kfake.NumBrokers(3), kfake.BrokerConfigs(map[string]string{
		"group.share.delivery.count.limit": "10", "share.record.lock.sweep.interval.ms": "100", "group.share.heartbeat.interval.ms": "200",
	}))
}

// queueOf opens a subscription of order QUEUE.
func queueOf(name string, topics ...string) *posternv1.Open {
	open := inline(name, topics...)
	open.Inline.Order = posternv1.Order_ORDER_QUEUE
	return open
}

func nack(d *posternv1.Delivery, delay time.Duration, why string) *posternv1.Settlement {
	return &posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Nack{Nack: &posternv1.Nack{Delay: durationpb.New(delay), Reason: why}}}
}

// shareLag is how many events of partition 0 the share group has not settled.
// (Its position says less: Kafka moves it with the next word.)
func shareLag(t *testing.T, cluster *brokertest.Cluster, group, topic string) int64 {
	t.Helper()
	client := cluster.Client()
	defer client.Close()
	at, err := client.SharePositions(t.Context(), group, topic)
	if err != nil {
		t.Fatal(err)
	}
	ranges, err := client.Ranges(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return delivery.ShareLag(at, broker.TopicPartition{Topic: topic}, ranges[0])
}

func TestFourQueueConsumersOfOnePartitionAllGetEvents(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-four", 1), cluster.Name("share-four-sub")
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	open := queueOf(group, topic)
	open.Window = &posternv1.Window{MaxMessages: 4}
	streams := []*stream{one.subscribe(open), one.subscribe(open), two.subscribe(open), two.subscribe(open)}
	eventually(t, "both gateways' being in the group", func() bool {
		g, err := one.gateway.kafka.ShareGroup(t.Context(), group)
		return err == nil && len(g.Members) == 2 && len(g.Members[0].Partitions)+len(g.Members[1].Partitions) == 2
	})
	put(cluster, topic, 200, "k")
	seen, by := map[string]int{}, make([]int, 4)
	events := make(chan func(), 1)
	quit := make(chan struct{})
	defer close(quit)
	for i, s := range streams {
		go func() {
			for {
				select {
				case d := <-s.events:
					select {
					case events <- func() { seen[string(d.Event.Data)]++; by[i]++; s.ack(d) }:
					case <-quit:
						return
					}
				case <-quit:
					return
				}
			}
		}()
	}
	for len(seen) < 200 {
		select {
		case do := <-events:
			do()
		case <-time.After(patience):
			t.Fatalf("%d of 200 events came, then none (%v)", len(seen), by)
		}
	}
	for i, n := range by {
		if n == 0 {
			t.Errorf("consumer %d got nothing: %v", i, by)
		}
	}
	for data, n := range seen {
		if n != 1 {
			t.Errorf("%s came %d times", data, n)
		}
	}
}

// TestQueueOfOneAtATimeBringsTheEventsOfEveryBroker has a window of one event: a
// broker that has none must not keep the place from those that have some.
func TestQueueOfOneAtATimeBringsTheEventsOfEveryBroker(t *testing.T) {
	const partitions = 6
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-brokers", partitions), cluster.Name("share-brokers-sub")
	g := start(t, cluster, nil)
	open := queueOf(group, topic)
	open.Window = &posternv1.Window{MaxMessages: 1}
	s := g.subscribe(open)
	for round := range 3 {
		for p := range int32(partitions) {
			cluster.Put(&event.Record{Topic: topic, Partition: p, Value: fmt.Appendf(nil, "%d/%d", round, p)})
		}
		seen := map[string]bool{}
		for len(seen) < partitions {
			d := s.next()
			seen[string(d.Event.Data)] = true
			s.ack(d)
		}
	}
}

func TestQueueReceiptSaysCommittedOnceTheShareGroupHasTheAck(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-ack", 1), cluster.Name("share-ack-sub")
	put(cluster, topic, 3, "a")
	g := start(t, cluster, nil)
	s := g.subscribe(queueOf(group, topic))
	for i := range int64(3) {
		d := s.next()
		if d.Attempt != 1 {
			t.Errorf("attempt %d", d.Attempt)
		}
		s.ack(d)
		if r := s.receipt(); len(r.Committed) != 1 || r.Committed[0] != d.DeliveryId {
			t.Fatalf("the receipt is %v", r)
		}
		if lag := shareLag(t, cluster, group, topic); lag != 2-i {
			t.Errorf("committed, and Kafka has %d events left, want %d", lag, 2-i)
		}
	}
	s.close()
}

func TestNackedQueueEventComesAgainWithKafkasDeliveryCount(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-nack", 1), cluster.Name("share-nack-sub")
	put(cluster, topic, 1, "a")
	g := start(t, cluster, nil)
	s := g.subscribe(queueOf(group, topic))
	for attempt := int32(1); attempt <= 3; attempt++ {
		d := s.next()
		if d.Attempt != attempt {
			t.Fatalf("attempt %d, want %d", d.Attempt, attempt)
		}
		if attempt > 1 && d.GetLastFailure().GetMessage() != "not today" {
			t.Errorf("the failure before is told as %q", d.GetLastFailure().GetMessage())
		}
		if attempt == 3 {
			s.ack(d)
			s.receipt()
			break
		}
		delay := time.Duration(0)
		if attempt == 2 {
			delay = time.Second
		}
		begun := time.Now()
		s.settle(nack(d, delay, "not today"))
		if attempt == 2 {
			d := s.next()
			if waited := time.Since(begun); waited < delay || d.Attempt != 3 {
				t.Errorf("attempt %d came after %s, not after %s", d.Attempt, waited, delay)
			}
			s.ack(d)
			s.receipt()
			break
		}
	}
	s.close()
}

func TestQueueEventHeldLongerThanKafkasLockIsNotDeliveredTwice(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-renew", 1), cluster.Name("share-renew-sub")
	put(cluster, topic, 1, "a")
	cluster.SetGroup(group, "share.record.lock.duration.ms", "5000")
	g := start(t, cluster, nil)
	s := g.subscribe(queueOf(group, topic))
	d := s.next()
	select { // twice the lock and more
	case again := <-s.events:
		t.Fatalf("it came again while it was held: %v", again)
	case <-time.After(12 * time.Second):
	}
	s.ack(d)
	if r := s.receipt(); len(r.Committed) != 1 {
		t.Fatalf("the receipt is %v", r)
	}
	s.close()
}

func TestRejectedAndExhaustedQueueEventsAreDeadLetteredBeforeKafkaArchivesThem(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-dead", 1), cluster.Name("share-dead-sub")
	cluster.Put(&event.Record{Topic: topic, Key: []byte("k"), Value: []byte("poison")}, &event.Record{Topic: topic, Key: []byte("k"), Value: []byte("hopeless")})
	g := start(t, cluster, nil)
	open := queueOf(group, topic)
	open.Inline.DeadLetter = &posternv1.DeadLetter{Topic: cluster.Name("share-graveyard")}
	open.Inline.Retry = &posternv1.RetryPolicy{MaxAttempts: 100, MinBackoff: durationpb.New(time.Millisecond), MaxBackoff: durationpb.New(time.Millisecond)}
	s := g.subscribe(open)
	tries := 0
	for tries < 9 { // Kafka's limit is 10: the ninth is the last to fail
		d := s.next()
		if string(d.Event.Data) == "poison" {
			s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{Reason: "cannot be read"}}})
			continue
		}
		tries++
		if int(d.Attempt) != tries {
			t.Fatalf("attempt %d, want %d", d.Attempt, tries)
		}
		s.settle(nack(d, 0, "no"))
	}
	for end := time.Now().Add(patience); shareLag(t, cluster, group, topic) > 0; {
		if time.Now().After(end) {
			t.Fatal("the rejected events are not settled in Kafka")
		}
	}
	reasons := map[string]string{}
	for _, l := range cluster.Read(open.Inline.DeadLetter.Topic) {
		reasons[string(l.Value)] = header(l, event.DeadLetterReason) + " " + header(l, event.DeadLetterAttempts)
	}
	if want := map[string]string{"poison": "rejected 1", "hopeless": "attempts_exhausted 9"}; fmt.Sprint(reasons) != fmt.Sprint(want) {
		t.Errorf("the dead letters are %v, want %v", reasons, want)
	}
	s.close()
}

func TestQueueEventsOfAGatewayThatStopsGoToAnotherAtOnce(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-drain", 1), cluster.Name("share-drain-sub")
	put(cluster, topic, 5, "a")
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	a := one.subscribe(queueOf(group, topic))
	for range 5 {
		a.next()
	}
	a.cancel()
	one.stopAny()
	begun := time.Now()
	b := two.subscribe(queueOf(group, topic))
	for range 5 {
		d := b.next()
		if d.Attempt < 2 {
			t.Errorf("attempt %d", d.Attempt)
		}
		b.ack(d)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %s: the lock's end was waited for", took)
	}
	b.close()
}

func TestQueueAcksJustBeforeAnOrderlyStopAreNotDeliveredAgain(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-stop", 1), cluster.Name("share-stop-sub")
	put(cluster, topic, 50, "a")
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	open := queueOf(group, topic)
	open.Confirm = posternv1.Confirm_CONFIRM_ON_ACCEPT
	a := one.subscribe(open)
	acked := map[string]bool{}
	var left *posternv1.Delivery
	for range 50 {
		d := a.next()
		if left == nil {
			left = d
			continue
		}
		acked[string(d.Event.Data)] = true
		a.ack(d)
	}
	for n := 0; n < 49; { // taken, and not yet by Kafka
		n += max(len(a.receipt().Accepted), 1)
	}
	a.cancel()
	one.stop()
	b := two.subscribe(open)
	d := b.next()
	if string(d.Event.Data) != string(left.Event.Data) {
		t.Errorf("%s came again, which was acknowledged: %v", d.Event.Data, acked[string(d.Event.Data)])
	}
	b.ack(d)
	eventually(t, "all is settled", func() bool { return shareLag(t, cluster, group, topic) == 0 })
	if len(b.events) > 0 {
		t.Errorf("%d more came", len(b.events))
	}
	b.close()
}
