package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kversion"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

func TestQueueSubscriptionsOfTheFileAreDeliveredOverEverySurface(t *testing.T) {
	cluster := shareCluster(t)
	topic := cluster.Topic("share-surfaces", 1)
	hooked := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		hooked <- fmt.Sprint(string(b), r.Header.Get("Postern-Attempt"))
		if r.Header.Get("Postern-Attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer receiver.Close()
	handler := &app{answer: func(*posternv1.HandleRequest) error { return nil }}
	retry := delivery.Retry{MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}
	of := func(name string) subscription.Spec {
		return subscription.Spec{Name: cluster.Name(name), Topics: []string{topic}, Order: delivery.OrderQueue, Retry: retry}
	}
	pulled, sse, lines, hook, pushed := of("share-pull"), of("share-sse"), of("share-ndjson"), of("share-hook"), of("share-push")
	hook.Webhook = &webhook.Options{URL: receiver.URL, AllowHTTP: true, AllowLoopback: true}
	pushed.Push = &push.Options{Address: handler.serve(t)}
	g := start(t, cluster, prefixed(cluster, pulled, sse, lines, hook, pushed))
	put(cluster, topic, 1, "k")

	settled := func(name, id string) {
		t.Helper()
		a := g.do("POST", "/v1/subscriptions/"+name+":settle", fmt.Sprintf(`{"acks":[%q],"confirm":"CONFIRM_ON_COMMIT"}`, id))
		if !strings.Contains(a.Body, "OUTCOME_COMMITTED") {
			t.Errorf("%s: %d %s", name, a.Status, a.Body)
		}
		eventually(t, name+" is settled in Kafka", func() bool { return shareLag(t, cluster, name, topic) == 0 })
	}
	type delivered struct {
		DeliveryID string `json:"delivery_id"`
	}
	var answer struct{ Deliveries []delivered }
	eventually(t, "the pull", func() bool {
		a := g.do("POST", "/v1/subscriptions/"+pulled.Name+":pull", `{"max_messages":10,"wait":"5s"}`, "Content-Type", "application/json")
		return json.Unmarshal([]byte(a.Body), &answer) == nil && len(answer.Deliveries) == 1
	})
	settled(pulled.Name, answer.Deliveries[0].DeliveryID)

	var d delivered
	events, stop := g.lines("/v1/subscriptions/"+sse.Name+"/events", "Accept", "text/event-stream")
	for nextLine(t, events, "event: ") != "delivery" {
		continue
	}
	if err := json.Unmarshal([]byte(nextLine(t, events, "data: ")), &d); err != nil {
		t.Fatal(err)
	}
	settled(sse.Name, d.DeliveryID)
	stop()

	events, stop = g.lines("/v1/subscriptions/"+lines.Name+"/events", "Accept", "application/x-ndjson")
	for d.DeliveryID = ""; d.DeliveryID == ""; {
		if err := json.Unmarshal([]byte(nextLine(t, events, "")), &d); err != nil {
			t.Fatal(err)
		}
	}
	settled(lines.Name, d.DeliveryID)
	stop()

	for _, want := range []string{"k01", "k02"} {
		select {
		case got := <-hooked:
			if got != want {
				t.Errorf("the webhook got %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatal("the webhook got nothing")
		}
	}
	eventually(t, "the webhook's event is settled", func() bool { return shareLag(t, cluster, hook.Name, topic) == 0 })
	eventually(t, "the pushed event is settled", func() bool { return shareLag(t, cluster, pushed.Name, topic) == 0 })
	handler.mu.Lock()
	defer handler.mu.Unlock()
	if len(handler.got) != 1 {
		t.Errorf("the application got %d events", len(handler.got))
	}
}

// cuttable dials until it is cut: then every connection is gone, as of a process that was killed.
type cuttable struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c *cuttable) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return nil, errors.New("cut")
	}
	dial := c.dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

func (c *cuttable) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for _, conn := range c.conns {
		_ = conn.Close() // that is the cut
	}
}

func TestQueueEventsOfAKilledGatewayComeAgainToAnother(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-kill", 1), cluster.Name("share-kill-sub")
	put(cluster, topic, 5, "a")
	cluster.SetGroup(group, "share.record.lock.duration.ms", "5000")
	wire := &cuttable{dial: cluster.Dial}
	one := start(t, cluster, func(c *config.Config) { c.Kafka.Dial = wire.Dial })
	two := start(t, cluster, nil)
	a := one.subscribe(queueOf(group, topic))
	var held []*posternv1.Delivery
	for range 5 {
		held = append(held, a.next())
	}
	a.ack(held[0])
	a.receipt()
	wire.end()
	b := two.subscribe(queueOf(group, topic))
	for range 4 {
		d := b.next()
		if d.Attempt != 2 || string(d.Event.Data) == string(held[0].Event.Data) {
			t.Errorf("%s came in attempt %d", d.Event.Data, d.Attempt)
		}
		b.ack(d)
	}
	select { // who held them is told, long before it would find out by its acks
	case <-a.revoked:
	case <-time.After(patience):
		t.Error("the stream of the cut gateway still believes in its leases")
	}
	b.close()
	a.cancel()
	one.stopAny()
}

func TestQueueBeginsWhereItsStartSays(t *testing.T) {
	cluster := shareCluster(t)
	topic := cluster.Topic("share-start", 1)
	put(cluster, topic, 2, "old")
	between := time.Now()
	<-time.After(20 * time.Millisecond) // records' times have milliseconds
	g := start(t, cluster, nil)
	latest := queueOf(cluster.Name("share-latest"), topic)
	latest.Inline.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
	s := g.subscribe(latest)
	put(cluster, topic, 1, "new")
	timed := queueOf(cluster.Name("share-timed"), topic)
	timed.Inline.Start = &posternv1.Start{At: &posternv1.Start_Time{Time: timestamppb.New(between.Add(10 * time.Millisecond))}}
	for _, s := range []*stream{s, g.subscribe(timed)} {
		d := s.next()
		if string(d.Event.Data) != "new0" {
			t.Errorf("%s came first", d.Event.Data)
		}
		s.ack(d)
		s.close()
	}
}

func TestQueueStatusTellsItsLagAndWhoWorksOnIt(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-status", 2), cluster.Name("share-status-sub")
	one, two := start(t, cluster, nil), start(t, cluster, nil)
	one.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE})
	status := func(g *running) *posternv1.SubscriptionStatus {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	// A broker that has just started has no coordinator of share groups for a moment.
	eventually(t, "its status before it was used", func() bool {
		st := status(one)
		return st.State == posternv1.SubscriptionState_SUBSCRIPTION_STATE_IDLE && len(st.Partitions) == 2
	})
	put(cluster, topic, 2, "anna")
	if st := status(one); st.Lag != 2 || st.Cause.Kind != posternv1.CauseKind_CAUSE_KIND_NO_CONSUMER {
		t.Errorf("before anybody asked for its events: %v", st)
	}
	s := one.subscribe(&posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT})
	s.ack(s.next())
	s.receipt()
	held := s.next()
	eventually(t, "the status of the gateway that works on it", func() bool {
		st := status(one)
		return st.State == posternv1.SubscriptionState_SUBSCRIPTION_STATE_ACTIVE && st.Lag == 1 && len(st.Members) == 1 && len(st.Consumers) == 1
	})
	two.awaitKnown(name)
	if st := status(two); st.Lag != 1 || len(st.Members) != 1 {
		t.Errorf("the other gateway says %v", st)
	}
	s.ack(held)
	s.receipt()
	eventually(t, "no lag", func() bool { return status(two).Lag == 0 })
	s.close()
}

func TestPausedQueueGivesBackWhatNobodyHasAndGoesOnWhenResumed(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-pause", 1), cluster.Name("share-pause-sub")
	g := start(t, cluster, nil)
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE})
	s := g.subscribe(&posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT})
	if _, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pause", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && st.State == posternv1.SubscriptionState_SUBSCRIPTION_STATE_PAUSED
	})
	put(cluster, topic, 1, "a")
	select {
	case d := <-s.events:
		t.Fatalf("%v came while it was paused", d)
	case <-time.After(time.Second):
	}
	if _, err := g.subscriptions().ResumeSubscription(t.Context(), &posternv1.ResumeSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	d := s.next()
	if d.Attempt != 1 {
		t.Errorf("attempt %d", d.Attempt)
	}
	s.ack(d)
	s.receipt()
	s.close()
}

// refusal opens a stream that is refused.
func refusal(t *testing.T, g *running, open *posternv1.Open) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	raw, err := g.subscriber().Subscribe(ctx)
	if err == nil {
		err = raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}})
	}
	for err == nil {
		_, err = raw.Recv()
	}
	return err
}

func TestQueueOnBrokersWithoutShareGroupsIsRefusedWithItsReason(t *testing.T) {
	old := brokertest.Fake(t, kfake.MaxVersions(kversion.V4_0_0()))
	topic := old.Topic("share-old", 1)
	g := start(t, old, nil)
	err := refusal(t, g, queueOf("old", topic))
	if reasonOf(t, err) != fault.QueueUnsupported || !strings.Contains(err.Error(), "4.2") {
		t.Errorf("it was told: %v", err)
	}
	c := config.Config{Kafka: old.Options(), Subscriptions: []subscription.Spec{{Name: "old", Topics: []string{topic}, Order: delivery.OrderQueue}}}
	found, err := Connect(t.Context(), c)
	if err != nil || len(found) != 1 || !fault.Is(found[0].Err, fault.QueueUnsupported) {
		t.Errorf("check --connect says %v, %v", found, err)
	}
}

func TestQueueWhoseGroupIsSetOtherwiseIsRefusedWithTheCommandThatSetsIt(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-set", 1), cluster.Name("share-set-sub")
	cluster.SetGroup(name, "share.auto.offset.reset", "latest")
	g := start(t, cluster, nil)
	err := refusal(t, g, queueOf(name, topic))
	if reasonOf(t, err) != fault.QueueSettings || !strings.Contains(err.Error(), "--entity-name "+name+" --add-config share.auto.offset.reset=earliest") {
		t.Errorf("it was told: %v", err)
	}
	c := config.Config{Kafka: cluster.Options(), Subscriptions: []subscription.Spec{{Name: name, Topics: []string{topic}, Order: delivery.OrderQueue}}}
	found, err := Connect(t.Context(), c)
	if err != nil || len(found) == 0 || found[0].Setting != "share.auto.offset.reset" || found[0].ByGateway {
		t.Errorf("check --connect says %v, %v", found, err)
	}
	cluster.SetGroup(name, "share.auto.offset.reset", "earliest")
	put(cluster, topic, 1, "a")
	s := g.subscribe(queueOf(name, topic))
	s.ack(s.next())
	s.receipt()
	if found, err := Connect(t.Context(), c); err != nil || len(found) != 0 {
		t.Errorf("when all is set, check --connect says %v, %v", found, err)
	}
	s.close()
}

func TestQueueWhoseGroupIsAConsumerGroupSaysSo(t *testing.T) {
	cluster := shareCluster(t)
	topic, group, name := cluster.Topic("share-clash", 1), cluster.Name("share-clash-group"), cluster.Name("share-clash-sub")
	put(cluster, topic, 1, "a")
	g := start(t, cluster, nil)
	s := g.subscribe(inline(group, topic))
	s.ack(s.next())
	s.receipt()
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Group: group, Order: posternv1.Order_ORDER_QUEUE})
	other := g.subscribe(&posternv1.Open{Subscription: name})
	eventually(t, "the cause", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		return err == nil && strings.Contains(st.GetCause().GetSummary(), group+" is a consumer group")
	})
	other.cancel()
	s.close()
}

func TestQueueEventThatWaitsComesFromAnotherGatewayWhenTheOneThatPutItAsideIsKilled(t *testing.T) {
	cluster := shareCluster(t)
	topic, group := cluster.Topic("share-wait", 1), cluster.Name("share-wait-sub")
	put(cluster, topic, 2, "a")
	wire := &cuttable{dial: cluster.Dial}
	one := start(t, cluster, func(c *config.Config) { prefixed(cluster)(c); c.Kafka.Dial = wire.Dial })
	two := start(t, cluster, prefixed(cluster))
	open := queueOf(group, topic)
	open.Inline.Retry = &posternv1.RetryPolicy{HoldLimit: durationpb.New(time.Second)}
	a := one.subscribe(open)
	d := a.next()
	a.ack(a.next())
	begun := time.Now()
	a.settle(nack(d, 5*time.Second, "later"))
	eventually(t, "its leaving the share group", func() bool { return shareLag(t, cluster, group, topic) == 0 })
	wire.end()
	b := two.subscribe(open)
	again := b.next()
	if waited := time.Since(begun); waited < 5*time.Second || again.Attempt != 2 || again.GetLastFailure().GetMessage() != "later" || string(again.Event.Data) != string(d.Event.Data) {
		t.Errorf("%s came in attempt %d (%v) after %s", again.Event.Data, again.Attempt, again.GetLastFailure(), waited)
	}
	if again.Position.Topic != topic || again.Position.Offset != d.Position.Offset {
		t.Errorf("it is told to stand at %v, not at %v", again.Position, d.Position)
	}
	b.ack(again)
	b.receipt()
	b.close()
	a.cancel()
	one.stopAny()
}

func TestQueueStatusShowsWhatCameBackFromALongWait(t *testing.T) {
	cluster := shareCluster(t)
	topic, name := cluster.Topic("share-back", 1), cluster.Name("share-back-sub")
	g := start(t, cluster, prefixed(cluster))
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}, Order: posternv1.Order_ORDER_QUEUE, Retry: &posternv1.RetryPolicy{HoldLimit: durationpb.New(time.Second)}})
	put(cluster, topic, 1, "a")
	s := g.subscribe(&posternv1.Open{Subscription: name, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT})
	s.settle(nack(s.next(), 2*time.Second, "later"))
	d := s.next()
	eventually(t, "its place in the status", func() bool {
		st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name})
		if err != nil || st.Lag != 1 {
			return false
		}
		for _, p := range st.Partitions {
			if strings.HasSuffix(p.Topic, ".again."+name) && p.Lag == 1 && p.Outstanding == 1 && p.EndOffset > 0 {
				return true
			}
		}
		return false
	})
	s.ack(d)
	s.receipt()
	s.close()
}
