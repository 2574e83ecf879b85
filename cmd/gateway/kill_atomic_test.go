package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/broker/brokertest"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// TestKillNineInTheMiddleOfAtomicRequestsLeavesNoHalf publishes requests of many
// events in two topics, kills the gateway while they are under way, and reads
// what is committed: every acknowledged request whole, every other one whole or
// not there at all.
func TestKillNineInTheMiddleOfAtomicRequestsLeavesNoHalf(t *testing.T) {
	cluster := brokertest.New(t)
	topics := []string{cluster.Topic("atomic-a", 3), cluster.Topic("atomic-b", 2)}
	gateway := &killable{t: t, grpc: freeAddress(t)}
	gateway.args = []string{
		"run", "--kafka-brokers", strings.Join(cluster.Bootstrap, ","),
		"--listen-grpc", gateway.grpc, "--listen-http", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0",
	}
	gateway.start()
	defer gateway.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const each = 200 // events of a request, over both topics
	var acked sync.Map
	var sent, stored atomic.Int64
	publishing, stop := context.WithCancel(ctx)
	var publishers sync.WaitGroup
	for n := range 6 {
		publishers.Go(func() {
			conn, err := grpc.NewClient("passthrough:///"+gateway.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			client := posternv1.NewPublisherClient(conn)
			for i := 0; publishing.Err() == nil; i++ {
				name := fmt.Sprintf("%d-%d", n, i)
				request := &posternv1.PublishRequest{Topic: topics[0], Atomic: true}
				for j := range each {
					request.Events = append(request.Events, &posternv1.Event{Key: fmt.Append(nil, j), Data: []byte(name), Topic: topics[j%2]})
				}
				sent.Add(1)
				call, cancel := context.WithTimeout(ctx, 20*time.Second)
				answer, err := client.Publish(call, request, grpc.WaitForReady(true))
				cancel()
				if err == nil && answer.Results[0].Error == nil {
					acked.Store(name, true)
					stored.Add(1)
				}
			}
		})
	}
	for i := range 3 {
		target := stored.Load() + 20
		waitFor(ctx, t, fmt.Sprintf("20 more stored requests before kill %d", i+1), func() bool { return stored.Load() >= target })
		gateway.kill()
		gateway.start()
	}
	target := stored.Load() + 20
	waitFor(ctx, t, "life after the last kill", func() bool { return stored.Load() >= target })
	stop()
	publishers.Wait()
	// What a killed gateway left open, Kafka aborts after the transaction's timeout;
	// until then committed readers wait before it.
	waitFor(ctx, t, "the last stable offsets to reach the ends", func() bool {
		for _, topic := range topics {
			stable, err1 := cluster.Admin().ListCommittedOffsets(ctx, topic)
			ends, err2 := cluster.Admin().ListEndOffsets(ctx, topic)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			for _, e := range ends.Offsets().Sorted() {
				if s, _ := stable.Lookup(topic, e.Partition); s.Offset < e.At {
					return false
				}
			}
		}
		return true
	})
	seen := map[string]int{}
	for _, topic := range topics {
		for _, r := range cluster.Read(topic) {
			seen[string(r.Value)]++
		}
	}
	whole := 0
	for name, n := range seen {
		if n != each {
			t.Errorf("of request %s %d of %d events are committed", name, n, each)
		}
		whole++
	}
	acked.Range(func(name, _ any) bool {
		if seen[name.(string)] != each {
			t.Errorf("request %s was acknowledged, %d of its %d events are there", name, seen[name.(string)], each)
		}
		return true
	})
	t.Logf("%d requests sent, %d acknowledged, %d committed whole", sent.Load(), stored.Load(), whole)
}
