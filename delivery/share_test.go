package delivery

import (
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

func TestLockIsRenewedInTimeAndNeverTrustedPastItsEnd(t *testing.T) {
	const lock, every, patience = 30 * time.Second, time.Second, time.Minute
	for name, row := range map[string]struct {
		state            state
		now, until       time.Duration
		renewing         bool
		nobody, draining bool
		want             lockStep
	}{
		"a fresh lock":                             {state: lent, now: 1 * time.Second, until: lock, want: lockFine},
		"a third of it is over":                    {state: lent, now: 11 * time.Second, until: lock, want: lockRenew},
		"a renewal is under way":                   {state: lent, now: 20 * time.Second, until: lock, renewing: true, want: lockFine},
		"it ends before the next look":             {state: lent, now: lock - every/2, until: lock, renewing: true, want: lockLost},
		"it is over":                               {state: burying, now: lock + 1, until: lock, want: lockLost},
		"an event that waits for its retry":        {state: waiting, now: 11 * time.Second, until: lock, want: lockRenew},
		"one that waits when all is drained":       {state: waiting, now: 1 * time.Second, until: lock, draining: true, want: lockGiveBack},
		"one that nobody here can take":            {state: ready, now: 1 * time.Second, until: lock, nobody: true, want: lockGiveBack},
		"one that nobody here had room for":        {state: ready, now: patience + 1, until: 2 * patience, want: lockGiveBack},
		"one that is lent when all is drained":     {state: lent, now: 1 * time.Second, until: lock, nobody: true, draining: true, want: lockFine},
		"one whose dead letter is being written":   {state: burying, now: 12 * time.Second, until: lock, nobody: true, draining: true, want: lockRenew},
		"one that waits for a place, and its lock": {state: ready, now: 11 * time.Second, until: lock, want: lockRenew},
	} {
		h := &hold{entry: &entry{state: row.state}, until: row.until, renewing: row.renewing}
		if got := lockCare(h, row.now, every, lock, row.nobody, row.draining, patience); got != row.want {
			t.Errorf("%s: step %d, want %d", name, got, row.want)
		}
	}
}

func TestLagOfAShareGroupIsWhatKafkaSaysElseWhatLiesBehindItsPosition(t *testing.T) {
	at := broker.TopicPartition{Topic: "t"}
	held := broker.Range{Start: 10, End: 30}
	for _, row := range []struct {
		positions map[broker.TopicPartition]broker.SharePosition
		want      int64
	}{
		{nil, 20},
		{map[broker.TopicPartition]broker.SharePosition{at: {Offset: 15, Lag: 3}}, 3},
		{map[broker.TopicPartition]broker.SharePosition{at: {Offset: 25, Lag: -1}}, 5},
		{map[broker.TopicPartition]broker.SharePosition{at: {Offset: 5, Lag: -1}}, 20},
		{map[broker.TopicPartition]broker.SharePosition{at: {Offset: 40, Lag: -1}}, 0},
	} {
		if got := ShareLag(row.positions, at, held); got != row.want {
			t.Errorf("%v: %d, want %d", row.positions, got, row.want)
		}
	}
}

func TestManyEventsSettledBehindOneThatIsHeldDoNotStopAShareGroup(t *testing.T) {
	tracker := newTracker(OrderQueue, 0, progress{}, seed)
	for i := range int64(50_000) {
		tracker.take(i+1, &event.Record{Topic: "t", Offset: i, Value: []byte("v")}, past{})
	}
	for lent := range 50_000 {
		e := tracker.peek()
		if e == nil {
			t.Fatalf("nothing more is lent after %d", lent)
		}
		tracker.lend(e, ID(lent+1), nil, 0, time.Minute, time.Hour)
		if lent%2 == 1 {
			tracker.settle(e)
		}
	}
}
