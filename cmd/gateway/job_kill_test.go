package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/postern-dev/postern/broker/brokertest"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// redriven is what a subscriber has seen come: how often each event's data, and
// after its dead letter.
type redriven struct {
	mu        sync.Mutex
	rejecting bool
	rejected  map[string]bool
	again     map[string]int
}

// take says what is to be done with a delivery.
func (r *redriven) take(d *posternv1.Delivery) *posternv1.Settlement {
	r.mu.Lock()
	defer r.mu.Unlock()
	data := string(d.Event.Data)
	if r.rejecting {
		r.rejected[data] = true
		return &posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{Reason: "no such customer"}}}
	}
	r.again[data]++
	return &posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Ack{Ack: &posternv1.Ack{}}}
}

func (r *redriven) count() (rejected, again int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.rejected), len(r.again)
}

// settleAll settles what comes, over streams that break with the gateway.
func (r *redriven) settleAll(ctx context.Context, conn *grpc.ClientConn, name string) {
	for ctx.Err() == nil {
		stream, err := posternv1.NewSubscriberClient(conn).Subscribe(ctx, grpc.WaitForReady(true))
		if err == nil {
			err = stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: &posternv1.Open{Subscription: name}}})
		}
		for err == nil {
			var m *posternv1.SubscribeResponse
			if m, err = stream.Recv(); len(m.GetDeliveries().GetDeliveries()) > 0 {
				batch := &posternv1.SettleBatch{}
				for _, d := range m.GetDeliveries().GetDeliveries() {
					batch.Settlements = append(batch.Settlements, r.take(d))
				}
				err = stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}})
			}
		}
	}
}

// TestRedriveThatIsKilledTwiceBringsEachDeadLetterBack kills the gateway with
// SIGKILL while it works on a job, and again after it has taken the job up.
func TestRedriveThatIsKilledTwiceBringsEachDeadLetterBack(t *testing.T) {
	const events = 600
	cluster := brokertest.New(t)
	topic, name := cluster.Topic("job-kill", 4), cluster.Name("job-kill-sub")
	gateway := startKillable(t, cluster)
	defer gateway.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	conn := dial(t, gateway.grpc)
	defer conn.Close() //nolint:errcheck // nothing is left to send
	subscriptions := posternv1.NewSubscriptionsClient(conn)
	if _, err := subscriptions.CreateSubscription(ctx, &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: name, Topics: []string{topic}}}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	batch := &posternv1.PublishRequest{Topic: topic}
	for i := range events {
		batch.Events = append(batch.Events, &posternv1.Event{Key: fmt.Appendf(nil, "k%d", i%20), Data: fmt.Appendf(nil, "e%d", i)})
	}
	if _, err := posternv1.NewPublisherClient(conn).Publish(ctx, batch); err != nil {
		t.Fatal(err)
	}
	seen := &redriven{rejecting: true, rejected: map[string]bool{}, again: map[string]int{}}
	var subscriber sync.WaitGroup
	subscribing, stop := context.WithCancel(ctx)
	subscriber.Go(func() { seen.settleAll(subscribing, conn, name) })
	defer subscriber.Wait()
	defer stop()
	waitFor(ctx, t, "all events' being rejected", func() bool { n, _ := seen.count(); return n == events })
	letters := func() (n int) {
		request := &posternv1.ListDeadLettersRequest{Name: name, PageSize: 500, Summary: true}
		for {
			page, err := subscriptions.ListDeadLetters(ctx, request, grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.DeadLetters)
			if request.PageToken = page.NextPageToken; request.PageToken == "" {
				return n
			}
		}
	}
	waitFor(ctx, t, "all dead letters", func() bool { return letters() == events })
	seen.mu.Lock()
	seen.rejecting = false
	seen.mu.Unlock()
	job, err := subscriptions.RedriveDeadLetters(ctx, &posternv1.RedriveDeadLettersRequest{Name: name, RatePerSecond: 200})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		waitFor(ctx, t, fmt.Sprintf("some of them before kill %d", i+1), func() bool { _, n := seen.count(); return n > (i+1)*events/5 })
		gateway.kill()
		if _, n := seen.count(); n >= events {
			t.Fatalf("it was over before kill %d: nothing is shown", i+1)
		}
		gateway.start()
	}
	waitFor(ctx, t, "the job's end", func() bool {
		job, err = subscriptions.GetJob(ctx, &posternv1.GetJobRequest{Name: name, Id: job.GetId()}, grpc.WaitForReady(true))
		return err == nil && job.GetState() >= posternv1.JobState_JOB_STATE_SUCCEEDED
	})
	if job.State != posternv1.JobState_JOB_STATE_SUCCEEDED || job.Done < events {
		t.Errorf("the job ended as %v", job)
	}
	waitFor(ctx, t, "every dead letter's coming back", func() bool { _, n := seen.count(); return n == events })
	stop()
	subscriber.Wait()
	twice := 0
	for _, n := range seen.again {
		twice += n - 1
	}
	t.Logf("%d events came again %d times too often over two kills", events, twice)
	// What was under way comes again, and not all that was redriven before a kill: more
	// than three fifths of the job, over the two.
	if most := events / 2; twice >= most {
		t.Errorf("%d deliveries too many, expected less than %d: %v", twice, most, seen.again)
	}
}
