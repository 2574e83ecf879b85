package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// loaded is a queue without a Kafka, whose one partition holds n events of different keys.
func loaded(t *testing.T, n int) *Queue {
	t.Helper()
	var sequence atomic.Uint64
	q := newQueue(Options{Name: "q", Lease: time.Minute, Retry: Retry{}.WithDefaults()}, nil, nil, 7, &sequence, slog.New(slog.DiscardHandler), newMetrics(noop.Meter{}, "q"))
	p := &partition{Tracker: newTracker(OrderKey, 0, progress{}, q.seed), at: broker.TopicPartition{Topic: "t"}}
	p.Tracker.home = p
	q.trackers[p.at] = p
	q.rotation = []*partition{p}
	var records []*event.Record
	for i := range n {
		records = append(records, &event.Record{Topic: "t", Offset: int64(i), Key: fmt.Append(nil, i), Value: []byte("v")})
	}
	q.offer(records)
	return q
}

func attach(t *testing.T, q *Queue, window int) *Attachment {
	t.Helper()
	a, _, err := q.Attach(AttachOptions{Window: Window{Messages: window}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func next(t *testing.T, a *Attachment) []Lease {
	t.Helper()
	leases, _, err := a.Next(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func TestEventsLentToAPullThatHasLeftGoToOthersAsTheirFirstAttempt(t *testing.T) {
	q := loaded(t, 3)
	attach(t, q, 3).Leave() // it never read what was lent to it
	for _, l := range next(t, attach(t, q, 3)) {
		if l.Attempt != 1 {
			t.Errorf("offset %d came as attempt %d", l.Record.Offset, l.Attempt)
		}
	}
}

func TestLeasesOfAPullThatHasLeftAreSettledByTheirIDs(t *testing.T) {
	q := loaded(t, 2)
	a := attach(t, q, 2)
	leases := next(t, a)
	a.Leave()
	results, _ := q.Settle([]Settlement{{ID: leases[0].ID, Word: Ack}, {ID: leases[1].ID, Word: Ack}})
	for _, r := range results {
		if r.Outcome != Accepted {
			t.Errorf("%v", r)
		}
	}
	if !q.idle() {
		t.Error("something is still lent")
	}
}

func TestWhoSettlesAnEventGoesOnWithTheNextAndNobodyIsWokenForIt(t *testing.T) {
	q := loaded(t, 4)
	a := attach(t, q, 1)
	leases := next(t, a)
	<-a.ready // it was told of the first
	room := make([]Lease, 0, 1)
	for want := int64(1); want < 3; want++ {
		var results []Result
		results, leases = a.Settle([]Settlement{{ID: leases[0].ID, Word: Ack}}, room)
		if len(results) != 1 || results[0].Outcome != Accepted || len(leases) != 1 || leases[0].Record.Offset != want {
			t.Fatalf("settling before %d gave %v and %v", want, results, leases)
		}
		if len(a.ready) > 0 {
			t.Errorf("Next is woken for offset %d, which is taken", want)
		}
	}
	// Without room, it is left for Next.
	if _, more := a.Settle([]Settlement{{ID: leases[0].ID, Word: Ack}}, nil); len(more) != 0 || len(a.ready) != 1 {
		t.Errorf("without room %v came, and Next was not woken", more)
	}
	if last := next(t, a); len(last) != 1 || last[0].Record.Offset != 3 {
		t.Errorf("Next gave %v", last)
	}
}

func TestTheLeastLoadedAttachmentIsServedFirst(t *testing.T) {
	q := loaded(t, 0)
	a, b := attach(t, q, 100), attach(t, q, 100)
	var records []*event.Record
	for i := range 100 {
		records = append(records, &event.Record{Topic: "t", Offset: int64(i), Key: fmt.Append(nil, i), Value: []byte("v")})
	}
	q.offer(records)
	if x, y := len(next(t, a)), len(next(t, b)); x != 50 || y != 50 {
		t.Errorf("100 events were shared %d to %d", x, y)
	}
}

func TestABytesWindowHoldsEventsBackButNeverTheFirst(t *testing.T) {
	q := loaded(t, 0)
	a, _, err := q.Attach(AttachOptions{Window: Window{Messages: 100, Bytes: 150}})
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 100)
	q.offer([]*event.Record{{Topic: "t", Offset: 0, Value: make([]byte, 1000)}, {Topic: "t", Offset: 1, Value: big}, {Topic: "t", Offset: 2, Value: big}})
	leases := next(t, a)
	if len(leases) != 1 {
		t.Fatalf("%d events were lent", len(leases))
	}
	q.Settle([]Settlement{{ID: leases[0].ID, Word: Ack}})
	if leases = next(t, a); len(leases) != 1 {
		t.Errorf("%d events were lent into 150 bytes", len(leases))
	}
}
