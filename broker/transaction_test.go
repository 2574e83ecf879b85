package broker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// atomically produces records together and gives the answers, in order.
func atomically(t *testing.T, ctx context.Context, p *broker.Producer, records ...*event.Record) []answered {
	t.Helper()
	all := make([]answered, len(records))
	var wait sync.WaitGroup
	wait.Add(len(records))
	p.ProduceAtomic(ctx, records, "", func(i int, at event.Position, err error) {
		all[i] = answered{at, err}
		wait.Done()
	})
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("an atomic request is not answered")
	}
	return all
}

func TestAnAtomicRequestIsStoredInAllItsTopics(t *testing.T) {
	c := brokertest.New(t)
	orders, stock := c.Topic("orders", 3), c.Topic("stock", 2)
	p := c.Producer(c.Client())
	for round := range 3 {
		answers := atomically(t, t.Context(), p, record(orders, "a", fmt.Sprint(round, "a")), record(stock, "b", fmt.Sprint(round, "b")), record(orders, "c", fmt.Sprint(round, "c")))
		for _, a := range answers {
			if a.err != nil {
				t.Fatalf("round %d: %v", round, a.err)
			}
		}
		// Kafka answers a commit before its markers are in every partition.
		stored := map[event.Position]string{}
		eventually(t, "the commit is seen everywhere", func() bool {
			for _, r := range append(c.Read(orders), c.Read(stock)...) {
				stored[r.Position()] = string(r.Value)
			}
			return len(stored) >= 3*(round+1)
		})
		for i, a := range answers {
			if want := fmt.Sprint(round, string("abc"[i])); stored[a.at] != want {
				t.Errorf("%s is said to be at %s; there is %q", want, a.at, stored[a.at])
			}
		}
	}
	if n := len(c.Read(orders)) + len(c.Read(stock)); n != 9 {
		t.Errorf("%d records are stored, want 9", n)
	}
}

func TestWhenOneEventOfAnAtomicRequestFailsNoneIsStored(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	answers := atomically(t, t.Context(), p, record(topic, "", "good"), record(c.Name("nowhere"), "", "x"))
	expectReason(t, answers[0].err, fault.AtomicAborted)
	expectReason(t, answers[1].err, fault.UnknownTopic)
	if n := len(c.Read(topic)); n != 0 {
		t.Errorf("%d records of the failed request are seen", n)
	}
	if a := atomically(t, t.Context(), p, record(topic, "", "next"))[0]; a.err != nil {
		t.Errorf("the next request: %v", a.err)
	}
	eventually(t, "the next request is seen", func() bool { return len(c.Read(topic)) > 0 })
	if records := c.Read(topic); len(records) != 1 || string(records[0].Value) != "next" {
		t.Errorf("stored: %v", records)
	}
}

func TestManyAtomicRequestsShareCommitsAndABadOneFailsAlone(t *testing.T) {
	c := brokertest.New(t)
	topic, nowhere := c.Topic("orders", 3), c.Name("nowhere")
	p := c.Producer(c.Client())
	const requests = 60
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() {
			records := []*event.Record{record(topic, "", fmt.Sprint(i, "-a")), record(topic, "", fmt.Sprint(i, "-b"))}
			if i%20 == 7 {
				records = append(records, record(nowhere, "", "x"))
			}
			for j, a := range atomically(t, t.Context(), p, records...) {
				if bad := i%20 == 7; bad != (a.err != nil) {
					t.Errorf("event %d of request %d: %v", j, i, a.err)
				}
			}
		})
	}
	all.Wait()
	eventually(t, "all commits are seen", func() bool { return len(c.Read(topic)) >= 2*(requests-3) })
	seen := map[string]int{}
	for _, r := range c.Read(topic) {
		seen[string(r.Value)]++
	}
	for i := range requests {
		want := 1
		if i%20 == 7 {
			want = 0
		}
		for _, part := range []string{"-a", "-b"} {
			if n := seen[fmt.Sprint(i, part)]; n != want {
				t.Errorf("request %d: %s is there %d times, want %d", i, part, n, want)
			}
		}
	}
	// Each transaction leaves a marker in every partition it wrote to; they are all
	// there when nothing is open any more.
	end := func() (total int64) {
		eventually(t, "all markers are written", func() bool {
			stable, err1 := c.Admin().ListCommittedOffsets(t.Context(), topic)
			ends, err2 := c.Admin().ListEndOffsets(t.Context(), topic)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			total = 0
			for _, o := range ends.Offsets().Sorted() {
				if s, _ := stable.Lookup(topic, o.Partition); s.Offset != o.At {
					return false
				}
				total += o.At
			}
			return true
		})
		return total
	}
	before := end()
	for i := range requests {
		all.Go(func() { atomically(t, t.Context(), p, record(topic, fmt.Sprint(i), "x")) })
	}
	all.Wait()
	if markers := end() - before - requests; markers < 1 || markers > 3*requests/2 {
		t.Errorf("%d markers for %d requests at once: commits are not shared", markers, requests)
	}
}

func TestACommitWhoseAnswerIsLostIsUnknownAndNeverHalf(t *testing.T) {
	c := brokertest.Fake(t)
	topic := c.Topic("orders", 2)
	p := c.Producer(c.Client())
	for name, fail := range map[string]func(){
		"refused": func() {
			c.Fake.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
				answer := r.ResponseKind().(*kmsg.EndTxnResponse)
				answer.ErrorCode = kerr.InvalidTxnState.Code
				return answer, nil, true
			})
		},
		"unsure": func() {
			c.Fake.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
				answer := r.ResponseKind().(*kmsg.EndTxnResponse)
				answer.ErrorCode = kerr.UnknownServerError.Code
				return answer, nil, true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(c.Read(topic))
			fail()
			answers := atomically(t, t.Context(), p, record(topic, "a", name), record(topic, "b", name))
			want := fault.BrokerUnavailable
			if name == "unsure" {
				want = fault.OutcomeUnknown
			}
			for _, a := range answers {
				expectReason(t, a.err, want)
			}
			if a := atomically(t, t.Context(), p, record(topic, "a", "after"))[0]; a.err != nil {
				t.Fatalf("the next request: %v", a.err)
			}
			n := 0
			for _, r := range c.Read(topic)[before:] {
				if string(r.Value) == name {
					n++
				}
			}
			if n == 1 || name == "refused" && n != 0 {
				t.Errorf("%d of 2 events are seen", n)
			}
		})
	}
}

func TestATransactionThatKafkaTimedOutIsToldAsNotStored(t *testing.T) {
	c := brokertest.Fake(t)
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	if a := atomically(t, t.Context(), p, record(topic, "", "warm"))[0]; a.err != nil {
		t.Fatal(a.err)
	}
	// The coordinator took the transactional id away from us, as it does when a transaction times out.
	c.Fake.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		answer := r.ResponseKind().(*kmsg.EndTxnResponse)
		answer.ErrorCode = kerr.ProducerFenced.Code
		return answer, nil, true
	})
	expectReason(t, atomically(t, t.Context(), p, record(topic, "", "fenced"))[0].err, fault.BrokerUnavailable)
	if a := atomically(t, t.Context(), p, record(topic, "", "after"))[0]; a.err != nil {
		t.Fatalf("the next request: %v", a.err)
	}
	for _, r := range c.Read(topic) {
		if string(r.Value) == "fenced" {
			t.Error("the fenced request is seen")
		}
	}
}

func TestAnAtomicRequestWhoseCallerLeftBeforeItsTurnIsNotBegun(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expectReason(t, atomically(t, ctx, p, record(topic, "", "x"))[0].err, fault.Cancelled)
	if n := len(c.Read(topic)); n != 0 {
		t.Errorf("%d records are stored", n)
	}
	if records, bytes := p.Buffered(); records != 0 || bytes != 0 {
		t.Errorf("%d records, %d bytes still hold room", records, bytes)
	}
}
