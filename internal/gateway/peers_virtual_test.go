//go:build synctests

package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/workload"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// These tests are what users of other gateways saw go wrong in public
// (docs/reliability.md has the table). Those of them that are a schedule of
// faults are plans of the simulation, written by hand and judged like the others.

// peer runs a plan and asks for enough to have happened.
func peer(t *testing.T, p plan) history.Report {
	t.Helper()
	var report history.Report
	synctest.Test(t, func(t *testing.T) { report = simulate(t, p) })
	if report.Settled < 100 {
		t.Errorf("only %d events were settled: it shows little", report.Settled)
	}
	return report
}

func every(n int, from, step time.Duration, what faultKind, lasts time.Duration) []planned {
	all := make([]planned, n)
	for i := range all {
		all[i] = planned{at: from + time.Duration(i)*step, what: what, lasts: lasts, count: 3}
	}
	return all
}

// dapr/components-contrib#3849: messages were dropped while they were retried during a rebalance.
func TestPeer_RetriesDuringRebalancesAreNotDropped(t *testing.T) {
	peer(t, plan{
		seed: 3849, gateways: 2, brokers: 1, partitions: 4, routes: []workload.Route{workload.Unary, workload.Batch}, span: 20 * time.Second,
		hook: true, bad: 0.5, faults: every(20, time.Second, 800*time.Millisecond, joins, 400*time.Millisecond),
	})
}

// dapr/components-contrib#4580: after one health blip of 9.5 s two members swapped one message for ever.
func TestPeer_ABlipOfNineSecondsDoesNotSwapAMessageForEver(t *testing.T) {
	r := peer(t, plan{
		seed: 4580, gateways: 2, brokers: 1, partitions: 2, routes: []workload.Route{workload.Unary, workload.Binary}, span: 20 * time.Second,
		hook: true, faults: []planned{{at: 4 * time.Second, what: cutOff, lasts: 9500 * time.Millisecond}},
	})
	if r.Redelivered > r.Stored {
		t.Errorf("%d deliveries came again, of %d events", r.Redelivered, r.Stored)
	}
}

// dapr/dapr#7799 and knative eventing-kafka#549: a redeploy while all deliveries failed,
// before any commit, moved the position to the end.
func TestPeer_RedeploysWhileEverythingFailsLoseNothing(t *testing.T) {
	peer(t, plan{
		seed: 7799, gateways: 1, brokers: 1, partitions: 2, routes: []workload.Route{workload.Unary, workload.Binary}, span: 12 * time.Second,
		hook: true, bad: 1, faults: every(4, time.Second, 3*time.Second, restarted, 0),
	})
}

// dapr/components-contrib#3194: what a crashed replica had was not taken over.
func TestPeer_WhatACrashedReplicaHadIsTakenOver(t *testing.T) {
	r := peer(t, plan{
		seed: 3194, gateways: 2, brokers: 1, partitions: 4, routes: []workload.Route{workload.Unary, workload.Binary}, span: 20 * time.Second,
		hook: true, faults: []planned{{at: 5 * time.Second, what: killed, lasts: 3 * time.Second, gateway: 0}, {at: 9 * time.Second, what: killed, lasts: 3 * time.Second, gateway: 1}},
	})
	if r.WorstRecovery > 15*time.Second {
		t.Errorf("it took %s until deliveries went on", r.WorstRecovery)
	}
}

// knative eventing-kafka-broker#4460: the commit of a revocation failed, and all of the partition came again.
func TestPeer_ACommitThatFailsInARevocationRepeatsLittle(t *testing.T) {
	faults := append(every(5, 2*time.Second, 3*time.Second, joins, time.Second), every(5, 2*time.Second, 3*time.Second, commitFails, time.Second)...)
	peer(t, plan{
		seed: 4460, gateways: 2, brokers: 1, partitions: 4, routes: []workload.Route{workload.Unary, workload.Batch}, span: 20 * time.Second, hook: true, faults: faults,
	})
}

// knative eventing-kafka-broker#2202: a sink that took 3 s got 8,106 of 10,000 events twice.
func TestPeer_ASinkThatTakesThreeSecondsGetsEachOfTenThousandEventsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 10_000
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("slow-sink", 4)
		network := new(kfake.VirtualNetwork)
		var mu sync.Mutex
		seen, again := map[string]bool{}, 0
		all := make(chan struct{})
		defer receive(t, network, func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			time.Sleep(3 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			if seen[string(b)] {
				again++
			}
			seen[string(b)] = true
			if len(seen) == events {
				close(all)
			}
		})()
		var records []*event.Record
		for i := range events {
			records = append(records, &event.Record{Topic: topic, Partition: int32(i % 4), Key: fmt.Append(nil, "k", i%500), Value: fmt.Append(nil, i)})
		}
		cluster.Put(records...)
		b := inBubble(t, cluster, network, func(c *config.Config) {
			h := hook("slow-sink", topic, receivesAt, delivery.Retry{})
			h.Webhook.Concurrency = 64
			c.Subscriptions = []subscription.Spec{h}
		})
		<-all
		b.stop()
		if again > 0 {
			t.Errorf("%d events came again", again)
		}
	})
}

// knative eventing-kafka-broker#1979 and dapr/docs#4332: bytes of a key or a header that no
// HTTP header may have made an event that blocked its partition for ever.
func TestPeer_AnyBytesInKeysAndHeadersAreDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("any-bytes", 1)
		network := new(kfake.VirtualNetwork)
		arrived := make(chan string, 1000)
		defer receive(t, network, func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			arrived <- string(b)
		})()
		var records []*event.Record
		for i := range 256 {
			b := string([]byte{byte(i), 'x', byte(255 - i)})
			records = append(records, &event.Record{
				Topic: topic, Key: []byte(b), Value: fmt.Append(nil, i),
				Headers: []event.Header{{Name: b, Value: []byte(b)}, {Name: "ce_" + b, Value: []byte(b)}, {Name: "traceparent", Value: []byte(b)}, {Name: strings.Repeat(b, 100), Value: nil}},
			})
		}
		cluster.Put(records...)
		b := inBubble(t, cluster, network, func(c *config.Config) {
			c.Subscriptions = []subscription.Spec{hook("any-bytes", topic, receivesAt, delivery.Retry{MaxAttempts: 3})}
		})
		seen := map[string]bool{}
		for limit := time.After(5 * time.Minute); len(seen) < 256; {
			select {
			case v := <-arrived:
				seen[v] = true
			case <-limit:
				t.Fatalf("%d of 256 events came", len(seen))
			}
		}
		b.stop()
	})
}

// twmb/franz-go#1217: a record was acknowledged and lost when its caller left after a
// request that timed out and before a second failure.
func TestPeer_CallersThatLeaveBetweenTwoFailuresLoseNoAcknowledgedEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("leaves-between", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		acked := map[string]bool{}
		var mu sync.Mutex
		var callers sync.WaitGroup
		for i := range 200 {
			cluster.Fake.Fault(
				kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut},
				kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.KafkaStorageError}[i%3]},
			)
			for j := range 3 {
				callers.Go(func() {
					wait := time.Minute
					if j == 0 { // it leaves between the two, or near it
						wait = time.Duration(i) * 5 * time.Millisecond
					}
					ctx, cancel := context.WithTimeout(t.Context(), wait)
					defer cancel()
					name := fmt.Sprint(i, ".", j)
					r, err := b.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Key: []byte("k"), Data: []byte(name)}}})
					if err == nil && r.Results[0].Error == nil {
						mu.Lock()
						acked[name] = true
						mu.Unlock()
					}
				})
			}
			callers.Wait()
		}
		stored := map[string]int{}
		for _, r := range cluster.Read(topic) {
			stored[string(r.Value)]++
		}
		for name := range acked {
			if stored[name] != 1 {
				t.Errorf("%s was acknowledged and is stored %d times", name, stored[name])
			}
		}
		if len(acked) < 400 {
			t.Errorf("only %d were acknowledged", len(acked))
		}
		b.stop()
	})
}

// A dead letter that Kafka refuses keeps its event, and its key, unsettled.
func TestPeer_DeadLetterThatCannotBeWrittenIsNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic, dead := cluster.Topic("refused-letters", 1), cluster.Topic("letters.dead", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		publishOne(t, b, topic)
		refused := cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: dead, Err: kerr.TopicAuthorizationFailed, Count: 3})
		s := openOne(t, b, "letters", topic, posternv1.Confirm_CONFIRM_ON_ACCEPT)
		d := nextOne(t, s)
		settleOne(t, s, &posternv1.SettleBatch{Settlements: []*posternv1.Settlement{{DeliveryId: d.GetDeliveryId(), Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{}}}}})
		for refused.Hits() == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(400 * time.Millisecond)
		if at, _ := cluster.Committed("letters", topic, 0); at != 0 {
			t.Errorf("position %d is committed, and the dead letter was refused", at)
		}
		for range 300 {
			if len(cluster.Read(dead)) > 0 {
				break
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		if n := len(cluster.Read(dead)); n != 1 {
			t.Errorf("%d dead letters are written", n)
		}
		if at, _ := cluster.Committed("letters", topic, 0); at != 1 {
			t.Errorf("position %d is committed after the dead letter was written", at)
		}
		b.stop()
	})
}

// A receipt that says committed is the truth at that moment.
func TestPeer_CommittedAcksAreInKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("receipts", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		publishOne(t, b, topic)
		s := openOne(t, b, "receipts", topic, posternv1.Confirm_CONFIRM_ON_COMMIT)
		d := nextOne(t, s)
		settleOne(t, s, &posternv1.SettleBatch{Acks: []uint64{d.GetDeliveryId()}})
		for {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if len(m.GetReceipts().GetCommitted()) == 1 {
				break
			}
		}
		if at, _ := cluster.Committed("receipts", topic, 0); at != 1 {
			t.Errorf("the receipt says committed; position %d is", at)
		}
		b.stop()
	})
}

func publishOne(t *testing.T, b *bubble, topic string) {
	t.Helper()
	if r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}}); err != nil || r.Results[0].Error != nil {
		t.Fatal(r, err)
	}
}

func openOne(t *testing.T, b *bubble, name, topic string, confirm posternv1.Confirm) posternv1.Subscriber_SubscribeClient {
	t.Helper()
	stream, err := posternv1.NewSubscriberClient(b.conn).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := &posternv1.Open{Inline: &posternv1.Subscription{Name: name, Topics: []string{topic}}, Confirm: confirm}
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	return stream
}

func nextOne(t *testing.T, s posternv1.Subscriber_SubscribeClient) *posternv1.Delivery {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if all := m.GetDeliveries().GetDeliveries(); len(all) > 0 {
			return all[0]
		}
	}
}

func settleOne(t *testing.T, s posternv1.Subscriber_SubscribeClient, batch *posternv1.SettleBatch) {
	t.Helper()
	if err := s.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}}); err != nil {
		t.Fatal(err)
	}
}
