package delivery

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// relayOf is a relay of one partition of each delay topic, for decisions alone.
func relayOf(hold time.Duration) *relay {
	q := &Queue{options: Options{Name: "s", SidePrefix: "p.", Retry: Retry{HoldLimit: hold}}, start: time.Now(), log: slog.New(slog.DiscardHandler), shared: &sharing{again: againTopic("p.", "s")}, seed: seed}
	r := &relay{q: q, parts: map[broker.TopicPartition]*partition{}}
	for _, topic := range q.delayTopics() {
		r.Assigned([]broker.Assigned{{TopicPartition: broker.TopicPartition{Topic: topic}}})
	}
	return r
}

// delayed is an event in the delay topic of a tier, which came there at and is due then.
func delayed(offset int64, tier side, at, due time.Time) *event.Record {
	origin := &event.Record{Topic: "t", Partition: 3, Offset: 100 + offset, Key: []byte("k"), Value: []byte("v"), Timestamp: at.Add(-time.Hour)}
	r := moved(delayTopic("p.", "s", tier), 0, origin, arrival{attempts: 2, due: due, first: at.Add(-time.Minute), failure: "no", timestamp: at})
	r.Offset = offset
	return r
}

func TestWhatWaitsIsCarriedWhenItsTimeIsOverAndNotBefore(t *testing.T) {
	for name, row := range map[string]struct {
		tier      side
		age, left time.Duration // since it came there; until it is due
		to        string        // "": nowhere yet
	}{
		"due":                                    {sideTier, 2 * time.Minute, -time.Second, "p.again.s"},
		"due, long ago: no gateway was there":    {sideTier + 3, 48 * time.Hour, -24 * time.Hour, "p.again.s"},
		"not due, its delay not over":            {sideTier, 30 * time.Second, 50 * time.Second, ""},
		"its delay over, the rest held here":     {sideTier, 61 * time.Second, 50 * time.Second, ""},
		"its delay over, the rest a delay again": {sideTier, 61 * time.Second, 5 * time.Minute, "p.delay.s.1m"},
		"six hours over, three left":             {sideTier + 3, 6*time.Hour + time.Second, 3 * time.Hour, "p.delay.s.1h"},
		"six hours over, a day left":             {sideTier + 3, 6*time.Hour + time.Second, 24 * time.Hour, "p.delay.s.6h"},
	} {
		r := relayOf(time.Minute)
		now := time.Now()
		r.offer([]*event.Record{delayed(7, row.tier, now.Add(-row.age), now.Add(row.left))})
		_, records := r.due()
		switch {
		case row.to == "" && len(records) > 0:
			t.Errorf("%s: it is carried to %s", name, records[0].Topic)
		case row.to != "" && (len(records) != 1 || records[0].Topic != row.to):
			t.Errorf("%s: carried %d, want one to %s", name, len(records), row.to)
		case row.to != "":
			origin, a, err := unmoved(records[0])
			if err != nil || origin.Position() != (event.Position{Topic: "t", Partition: 3, Offset: 107}) || a.attempts != 2 || a.failure != "no" || a.first.IsZero() {
				t.Errorf("%s: it became %+v of %+v: %v", name, a, origin, err)
			}
			if again := row.to == "p.again.s"; again != a.due.IsZero() || again != (records[0].Partition == event.AnyPartition) {
				t.Errorf("%s: it is due %s in partition %d", name, a.due, records[0].Partition)
			}
		}
	}
}

func TestWhatCouldNotBeCarriedIsCarriedAgainAndNothingBehindItIsCommittedAway(t *testing.T) {
	r := relayOf(time.Minute)
	now := time.Now()
	var records []*event.Record
	for offset := range int64(3) {
		records = append(records, delayed(offset, sideTier, now.Add(-2*time.Minute), now.Add(-time.Second)))
	}
	r.offer(records)
	entries, carried := r.due()
	if len(carried) != 3 {
		t.Fatalf("%d are carried", len(carried))
	}
	down := errors.New("down")
	if err := r.carried(entries, []error{down, nil, nil}); !errors.Is(err, down) {
		t.Errorf("the failure is told as %v", err)
	}
	p := entries[0].tracker.home
	offset, metadata := p.commit()
	if offset != 0 || metadata == "" {
		t.Errorf("%d %q is committed", offset, metadata)
	}
	if left := r.waiting(); left != 1 {
		t.Errorf("%d are left", left)
	}
	// Another owner goes on where the commit says: the first, and no other.
	next := relayOf(time.Minute)
	next.Assigned([]broker.Assigned{{TopicPartition: p.at, Offset: offset, Metadata: metadata}})
	next.offer(records)
	if _, carried := next.due(); len(carried) != 1 || carried[0].Topic != "p.again.s" {
		t.Errorf("the next owner carries %d", len(carried))
	}
}

func TestRecordOfOthersInADelayTopicGoesOnAsItIsAndOneOfANewerPosternStopsIt(t *testing.T) {
	r := relayOf(time.Minute)
	at := delayTopic("p.", "s", sideTier)
	r.offer([]*event.Record{{Topic: at, Offset: 0, Value: []byte("stray")}, {Topic: at, Offset: 1, Value: []byte("new"), Headers: []event.Header{{Name: event.MoveVersion, Value: []byte("2")}}}, {Topic: at, Offset: 2, Value: []byte("behind")}})
	entries, records := r.due()
	if len(records) != 1 || records[0].Topic != "p.again.s" || string(records[0].Value) != "stray" {
		t.Fatalf("%d are carried", len(records))
	}
	_ = r.carried(entries, []error{nil})
	if offset, _ := r.parts[broker.TopicPartition{Topic: at}].commit(); offset != 1 {
		t.Errorf("%d is committed over what a newer one wrote", offset)
	}
}

func TestNamesOfASubscriptionsOwnTopicsAreNoOtherSubscriptions(t *testing.T) {
	names := map[string]string{}
	for _, sub := range []string{"a", "a.1m", "a.b", "a.b.1m", strings.Repeat("x", 240), strings.Repeat("x", 241)} {
		all := []string{againTopic("_p.", sub)}
		for i := range tiers {
			all = append(all, delayTopic("_p.", sub, sideTier+side(i)))
		}
		for _, name := range all {
			if of, taken := names[name]; taken || len(name) > maxTopicName {
				t.Errorf("%s of %s is of %q", name, sub, of)
			}
			names[name] = sub
		}
	}
}
