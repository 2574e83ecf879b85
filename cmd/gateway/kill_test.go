package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// killable is the program as a process that is killed and started again on the same addresses.
type killable struct {
	t      *testing.T
	args   []string
	grpc   string
	mu     sync.Mutex
	cmd    *exec.Cmd
	stderr *strings.Builder
}

// startKillable starts one that works with cluster.
func startKillable(t *testing.T, cluster *brokertest.Cluster) *killable {
	t.Helper()
	k := &killable{t: t, grpc: freeAddress(t)}
	k.args = []string{
		"run", "--kafka-brokers", strings.Join(cluster.Bootstrap, ","),
		"--listen-grpc", k.grpc, "--listen-http", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0", "--kafka-session-timeout", "6s",
	}
	k.start()
	return k
}

func (k *killable) start() {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cmd = program(k.t, k.args...)
	k.stderr = &strings.Builder{}
	k.cmd.Stderr = k.stderr
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
}

func (k *killable) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.cmd.Process.Kill() // SIGKILL
	_ = k.cmd.Wait()         // "signal: killed" is what was asked for
	if strings.Contains(k.stderr.String(), "panic") || strings.Contains(k.stderr.String(), "DATA RACE") {
		k.t.Errorf("the gateway said:\n%s", k.stderr)
	}
}

// TestKillNineUnderLoadLosesNothingAndKeepsTheOrder publishes and subscribes
// through the real program while it is killed three times, then judges the
// whole history: every acknowledged event is in Kafka, every event is settled
// in the end, order per key holds, and no ack comes undone but those of the
// last commit interval.
func TestKillNineUnderLoadLosesNothingAndKeepsTheOrder(t *testing.T) {
	cluster := brokertest.New(t)
	topic, group := cluster.Topic("kill", 4), cluster.Name("kill-sub")
	gateway := startKillable(t, cluster)
	defer gateway.kill()
	recorder := history.NewRecorder()

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	publishing, stopPublishing := context.WithCancel(ctx)
	var publishers, subscribers sync.WaitGroup
	var settled, published atomic.Int64
	for n := range 8 {
		publishers.Go(func() { publishForever(publishing, t, recorder, gateway.grpc, topic, n, &published, &settled) })
	}
	subscribing, stopSubscribing := context.WithCancel(ctx)
	// One subscriber waits for commits; its redeliveries must stay within the
	// promise. It nacks now and then, so that retries are in flight at the kill.
	subscribers.Go(func() { subscribeForever(subscribing, t, recorder, gateway.grpc, topic, group, &settled) })

	for i := range 3 {
		target := settled.Load() + 300
		waitFor(ctx, t, fmt.Sprintf("300 more settled events before kill %d", i+1), func() bool { return settled.Load() >= target })
		recorder.Record(history.Entry{Kind: history.Fault, Value: "kill -9"})
		gateway.kill()
		gateway.start()
		// Receipts on their way when it died are read by now, or never.
		recorder.Record(history.Entry{Kind: history.Healed, Value: "kill -9"})
	}
	target := settled.Load() + 300
	waitFor(ctx, t, "life after the last kill", func() bool { return settled.Load() >= target })
	stopPublishing()
	publishers.Wait()
	log := cluster.Read(topic)
	waitFor(ctx, t, fmt.Sprintf("all %d events to be settled", len(log)), func() bool { return distinctSettled(recorder) >= len(log) })
	stopSubscribing()
	subscribers.Wait()

	report := history.Check(history.History{Entries: recorder.Entries(), Log: records(log)}, history.Rules{
		Ordered: true,
		// The commit interval of 200 ms, and the commit itself on a machine that is busy with tests.
		Allowance: 200*time.Millisecond + 300*time.Millisecond,
	})
	t.Logf("published %d (%d unknown), stored %d, delivered %d (%d again), settled %d, oldest forgotten ack %s before its kill",
		report.Published, report.Unknowns, report.Stored, report.Deliveries, report.Redelivered, report.Settled, report.WorstForgotten)
	if report.Settled < 1000 {
		t.Errorf("only %d events were settled: the story shows little", report.Settled)
	}
	for i, a := range report.Anomalies {
		if i == 20 {
			t.Errorf("... and %d more", len(report.Anomalies)-20)
			break
		}
		t.Errorf("%s: %s", a.Kind, a.What)
	}
}

func waitFor(ctx context.Context, t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func records(log []*event.Record) []history.Record {
	all := make([]history.Record, len(log))
	for i, r := range log {
		all[i] = history.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key), Value: string(r.Value)}
	}
	return all
}

func distinctSettled(recorder *history.Recorder) int {
	seen := map[[2]int64]bool{}
	for _, e := range recorder.Entries() {
		if e.Kind == history.Committed || e.Kind == history.Accepted {
			seen[[2]int64{int64(e.Partition), e.Offset}] = true
		}
	}
	return len(seen)
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		t.Error(err)
	}
	return conn
}

// publishForever publishes unique values, one after the other, to keys of its own.
// It stays a little ahead of the subscriber, so that the end does not wait for a backlog.
func publishForever(ctx context.Context, t *testing.T, recorder *history.Recorder, address, topic string, n int, published, settled *atomic.Int64) {
	conn := dial(t, address)
	defer conn.Close() //nolint:errcheck // nothing is left to send
	client := posternv1.NewPublisherClient(conn)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		for published.Add(1) > settled.Load()+1000 && ctx.Err() == nil {
			published.Add(-1)
			<-ticker.C
		}
		key, value := fmt.Sprintf("p%d-k%d", n, i%3), fmt.Sprintf("p%d-%d", n, i)
		recorder.Record(history.Entry{Kind: history.Invoked, Value: value, Key: key})
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		answer, err := client.Publish(call, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Key: []byte(key), Data: []byte(value)}}}, grpc.WaitForReady(true))
		cancel()
		switch {
		case err != nil && status.Code(err) == codes.InvalidArgument:
			recorder.Record(history.Entry{Kind: history.Failed, Value: value})
		case err != nil: // the connection broke: nobody knows
			recorder.Record(history.Entry{Kind: history.Unknown, Value: value})
		case answer.Results[0].Error != nil:
			kind := history.Failed
			if wire.FromStatus(answer.Results[0].Error).Kind() == fault.KindUnknown {
				kind = history.Unknown
			}
			recorder.Record(history.Entry{Kind: kind, Value: value})
		default:
			p := answer.Results[0].Position
			recorder.Record(history.Entry{Kind: history.OK, Value: value, Topic: p.Topic, Partition: p.Partition, Offset: p.Offset})
		}
	}
}

// subscribeForever settles what it gets, over streams that break with the gateway.
func subscribeForever(ctx context.Context, t *testing.T, recorder *history.Recorder, address, topic, group string, settled *atomic.Int64) {
	conn := dial(t, address)
	defer conn.Close() //nolint:errcheck // nothing is left to send
	random := rand.New(rand.NewPCG(1, 2))
	for ctx.Err() == nil {
		err := subscribeOnce(ctx, conn, recorder, random, topic, group, settled)
		if err != nil && ctx.Err() == nil && status.Code(err) != codes.Unavailable && err != io.EOF { //nolint:errorlint // the very value is grpc's contract
			t.Errorf("the stream ended with: %v", err)
			return
		}
	}
}

func subscribeOnce(ctx context.Context, conn *grpc.ClientConn, recorder *history.Recorder, random *rand.Rand, topic, group string, settled *atomic.Int64) error {
	stream, err := posternv1.NewSubscriberClient(conn).Subscribe(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	open := &posternv1.Open{
		Inline: &posternv1.Subscription{Name: group, Topics: []string{topic}, Retry: &posternv1.RetryPolicy{MaxAttempts: 1000}},
		Window: &posternv1.Window{MaxMessages: 64}, Confirm: posternv1.Confirm_CONFIRM_ON_ACCEPT,
	}
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		return err
	}
	held := map[uint64]history.Entry{}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, id := range m.GetReceipts().GetAccepted() {
			e, ok := held[id]
			if !ok {
				continue // a nack's
			}
			delete(held, id)
			e.Kind = history.Accepted
			recorder.Record(e)
			settled.Add(1)
		}
		batch := &posternv1.SettleBatch{}
		for _, d := range m.GetDeliveries().GetDeliveries() {
			e := history.Entry{
				Kind: history.Delivered, Value: string(d.Event.Data), Key: string(d.Event.Key), Topic: d.Position.Topic,
				Partition: d.Position.Partition, Offset: d.Position.Offset, Subscription: group, Attempt: d.Attempt,
			}
			recorder.Record(e)
			if random.IntN(20) == 0 {
				batch.Settlements = append(batch.Settlements, &posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Nack{
					Nack: &posternv1.Nack{Delay: durationpb.New(time.Duration(random.IntN(100)) * time.Millisecond)},
				}})
				continue
			}
			e.Kind = history.Acked
			recorder.Record(e)
			held[d.DeliveryId] = e
			batch.Acks = append(batch.Acks, d.DeliveryId)
		}
		if len(batch.Acks)+len(batch.Settlements) > 0 {
			if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}}); err != nil {
				return err
			}
		}
	}
}
