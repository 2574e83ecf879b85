package endpoints

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// kept is a producer that stores what it gets.
type kept struct{ records []event.Record }

func (k *kept) ProduceAll(records []*event.Record, _ broker.How, done func(i int, at event.Position, err error)) {
	for i, r := range records {
		k.records = append(k.records, *r) // it is the caller's again when it is answered
		done(i, event.Position{}, nil)
	}
}

func testJournal(p Producer) *journal {
	known := &topics{known: map[string]int32{"state-attempts": 3}}
	return newJournal(Options{Prefix: "state-", Instance: "a"}, known, p, slog.New(slog.DiscardHandler), metricnoop.NewMeterProvider().Meter(""))
}

func testAttempt(n int) endpoint.Attempt {
	return endpoint.Attempt{
		Version: 1, WebhookID: "msg_" + strconv.Itoa(n), Subscription: "mail", Topic: "orders", Partition: 3, Offset: int64(n), EventID: "e", EventSource: "/shop", Number: 1,
		At: time.Unix(1764500000, int64(n)).UTC(), Action: "ack", Class: "ok", Status: 204, Why: strings.Repeat("w", n%700), Host: "127.0.0.1:80", Keys: []string{"v1-0a1b2c3d"},
		FirstByte: 0.4, Total: 0.5, Instance: "a",
	}
}

func TestEachAttemptIsReadBackAsItWasMade(t *testing.T) {
	k := &kept{}
	j := testJournal(k)
	n := 0
	for _, together := range []int{1, 3, 700, 2000, 1} { // more than were expected, and fewer
		for range together {
			j.Attempted(testAttempt(n))
			n++
		}
		j.flush(context.Background())
	}
	if len(k.records) != n {
		t.Fatalf("%d attempts were written as %d records", n, len(k.records))
	}
	for i, r := range k.records {
		want := testAttempt(i)
		got, err := endpoint.ParseAttempt(r.Value)
		if err != nil || string(r.Key) != want.WebhookID || got.Offset != want.Offset || got.Why != want.Why || !r.Timestamp.Equal(want.At) {
			t.Fatalf("attempt %d was read back as %+v (key %q, %v)", i, got, r.Key, err)
		}
		if r.Topic != "state-attempts" || r.Partition < 0 || r.Partition > 2 {
			t.Fatalf("attempt %d goes to %s/%d", i, r.Topic, r.Partition)
		}
	}
}

func TestLargeAttemptsAreWrittenLongBeforeTheyFillTheJournal(t *testing.T) {
	j := testJournal(&kept{})
	a := testAttempt(1)
	a.Why = strings.Repeat("w", 4<<10)
	for range maxJournal / 2 / len(a.Why) {
		j.Attempted(a)
	}
	if len(j.full) == 0 {
		t.Errorf("%d attempts of %d bytes wait for more", len(j.attempts), len(a.Why))
	}
}

func TestAttemptsBeyondWhatMayWaitAreDroppedAndTheRestIsKept(t *testing.T) {
	k := &kept{}
	j := testJournal(k)
	for i := range 100_000 {
		j.Attempted(testAttempt(i))
	}
	if j.bytes > maxJournal+1<<10 {
		t.Fatalf("%d bytes wait, at most %d may", j.bytes, maxJournal)
	}
	j.flush(context.Background())
	if n := len(k.records); n < 1000 || n > 99_000 {
		t.Fatalf("%d of 100,000 attempts were kept", n)
	}
	j.Attempted(testAttempt(7))
	k.records = nil
	j.flush(context.Background())
	if len(k.records) != 1 {
		t.Fatalf("once there is room again an attempt becomes %d records", len(k.records))
	}
}

func BenchmarkJournal(b *testing.B) {
	j := testJournal(&dropped{})
	a := testAttempt(0)
	b.ReportAllocs()
	for b.Loop() {
		if j.Attempted(a); len(j.full) > 0 {
			<-j.full
			j.flush(context.Background())
		}
	}
}

// dropped is a producer that keeps nothing.
type dropped struct{}

func (dropped) ProduceAll(records []*event.Record, _ broker.How, done func(i int, at event.Position, err error)) {
	for i := range records {
		done(i, event.Position{}, nil)
	}
}
