//go:build synctests

package gateway

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// knative eventing-kafka-broker#3085: one partition stopped, and nothing said so. The
// Kafka client tries most errors of a partition again for ever, without a word.
func TestPeer_APartitionThatStopsIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		err  *kerr.Error
		when func(kmsg.Request) bool
		says string
	}{
		"for everybody": {kerr.KafkaStorageError, nil, "KAFKA_STORAGE_ERROR"},
		"for the group's client alone": {kerr.OffsetNotAvailable, func(r kmsg.Request) bool {
			return r.(*kmsg.FetchRequest).MaxWaitMillis > 100
		}, "gives its events to others who ask"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// A broker for each partition: beside a good one of the same broker, the client
				// asks for a bad one without a pause, and no simulated time passes.
				cluster := brokertest.Virtual(t, kfake.NumBrokers(2), kfake.Ports(9000, 9001))
				topic := cluster.Topic("orders", 2)
				for p := range int32(2) {
					if err := cluster.Fake.MoveTopicPartition(topic, p, p); err != nil {
						t.Fatal(err)
					}
				}
				b := inBubble(t, cluster, new(kfake.VirtualNetwork), func(c *config.Config) {
					c.Subscriptions = []subscription.Spec{{Name: "stalled", Topics: []string{topic}}}
				})
				defer b.stop()
				s := openOne(t, b, "stalled", topic, posternv1.Confirm_CONFIRM_ON_ACCEPT)
				both := func() {
					for p := range int32(2) {
						cluster.Put(&event.Record{Topic: topic, Partition: p, Value: []byte("x")})
					}
				}
				ack := func() int32 {
					d := nextOne(t, s)
					settleOne(t, s, &posternv1.SettleBatch{Acks: []uint64{d.GetDeliveryId()}})
					return d.GetPosition().GetPartition()
				}
				both()
				ack()
				ack()
				stopped := cluster.Fake.Fault(kfake.Fault{
					Keys: []kmsg.Key{kmsg.Fetch}, TopicID: cluster.Fake.TopicInfo(topic).TopicID, Partitions: []int32{1}, Err: c.err, Count: -1, When: c.when,
				})
				both()
				if p := ack(); p != 0 {
					t.Fatalf("an event of partition %d came", p)
				}
				began := time.Now()
				why := b.expectCause("stalled", posternv1.CauseKind_CAUSE_KIND_BROKER_UNAVAILABLE)
				if took := time.Since(began); took > 45*time.Second {
					t.Errorf("it took %s", took)
				}
				for _, says := range []string{topic + "[1] stands still at offset 1", c.says} {
					if !strings.Contains(why.GetSummary(), says) {
						t.Errorf("%q does not say %q", why.GetSummary(), says)
					}
				}
				b.expectMetrics(`postern_subscription_stalled_partitions{subscription="stalled"} 1`, `postern_subscription_lag{subscription="stalled"} 1`, `cause="BROKER_UNAVAILABLE"`)
				stopped.Remove()
				if p := ack(); p != 1 {
					t.Errorf("an event of partition %d came", p)
				}
				b.expectCause("stalled", posternv1.CauseKind_CAUSE_KIND_NONE)
				b.expectMetrics(`postern_subscription_stalled_partitions{subscription="stalled"} 0`, `postern_subscription_lag{subscription="stalled"} 0`, `cause="NONE"`)
			})
		})
	}
}

// The markers of transactions take offsets that nobody reads.
func TestMarkersOfTransactionsAreNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("orders", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		defer b.stop()
		r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Atomic: true, Events: []*posternv1.Event{{Data: []byte("x")}}})
		if err != nil || r.GetResults()[0].GetError() != nil {
			t.Fatal(r, err)
		}
		s := openOne(t, b, "marked", topic, posternv1.Confirm_CONFIRM_ON_ACCEPT)
		settleOne(t, s, &posternv1.SettleBatch{Acks: []uint64{nextOne(t, s).GetDeliveryId()}})
		for range 20 {
			time.Sleep(10 * time.Second)
			b.expectMetrics(`postern_subscription_stalled_partitions{subscription="marked"} 0`, `cause="NONE"`)
		}
		if report, err := b.gateway.queues.Report(t.Context(), b.gateway.queues.Running("marked").Options()); err != nil || report.Cause.Summary != "It does not lag." || report.Lag != 0 {
			t.Errorf("reported as %+v, %v", report, err)
		}
	})
}

func (b *bubble) expectCause(name string, want posternv1.CauseKind) *posternv1.Cause {
	b.t.Helper()
	var got *posternv1.Cause
	for range 1200 {
		status, err := posternv1.NewSubscriptionsClient(b.conn).GetSubscriptionStatus(b.t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		if err != nil {
			b.t.Fatal(err)
		}
		if got = status.GetCause(); got.GetKind() == want {
			return got
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("the cause is %v, want %v", got, want)
	return nil
}

func (b *bubble) expectMetrics(want ...string) {
	b.t.Helper()
	answer, err := b.web.Get("http://127.0.0.1:7602/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, w := range want {
		if !strings.Contains(string(body), w) {
			b.t.Errorf("the metrics do not say %s:\n%s", w, linesWith(string(body), "postern_subscription"))
		}
	}
}

func linesWith(text, with string) string {
	var some []string
	for l := range strings.Lines(text) {
		if strings.Contains(l, with) {
			some = append(some, l)
		}
	}
	return strings.Join(some, "")
}
