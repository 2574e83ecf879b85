package publish

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func testWindow(age time.Duration, bytes int) (*window, *int) {
	forgotten := 0
	return newWindow(age, bytes, func(n int) { forgotten += n }), &forgotten
}

func position(offset int64) event.Position { return event.Position{Topic: "t", Offset: offset} }

// told takes what a joined event is told.
type told struct{ take func(Receipt) }

func (to *told) answer(_ int, r Receipt) { to.take(r) }

func joining(take func(Receipt)) joiner { return joiner{&told{take}, 0} }

func never(t *testing.T) joiner {
	return joining(func(r Receipt) { t.Errorf("an answer came that nobody waits for: %v", r) })
}

func TestAKeyIsFirstThenJoinedThenKnownThenForgotten(t *testing.T) {
	w, _ := testWindow(time.Minute, 1<<20)
	now := time.Unix(1000, 0)
	key, content, other := keyDigest("me", "t", "k"), digest{1}, digest{2}
	if found, _ := w.claim(key, content, now, never(t)); found != isFirst {
		t.Fatalf("a new key is %d", found)
	}
	var joined []Receipt
	if found, _ := w.claim(key, content, now, joining(func(r Receipt) { joined = append(joined, r) })); found != isJoined {
		t.Fatalf("while the first is under way it is %d", found)
	}
	if found, _ := w.claim(key, other, now, never(t)); found != isOther {
		t.Fatalf("another event under the key is %d", found)
	}
	w.settle(key, Receipt{Position: position(7)}, now)
	if len(joined) != 1 || joined[0].Position.Offset != 7 || !joined[0].Duplicate {
		t.Fatalf("who joined was told %v", joined)
	}
	if found, r := w.claim(key, content, now.Add(time.Minute), never(t)); found != isKnown || r.Position.Offset != 7 || !r.Duplicate {
		t.Fatalf("a stored one is %d %v", found, r)
	}
	if found, _ := w.claim(key, other, now.Add(time.Minute), never(t)); found != isOther {
		t.Fatalf("another event under a stored key is %d", found)
	}
	if found, _ := w.claim(key, content, now.Add(time.Minute+time.Nanosecond), never(t)); found != isFirst {
		t.Fatalf("past its age it is %d", found)
	}
}

func TestAKeyWhoseEventWasNotStoredMayBeTriedAgain(t *testing.T) {
	w, _ := testWindow(time.Minute, 1<<20)
	now := time.Unix(1000, 0)
	key := keyDigest("me", "t", "k")
	w.claim(key, digest{1}, now, never(t))
	var joined []Receipt
	w.claim(key, digest{1}, now, joining(func(r Receipt) { joined = append(joined, r) }))
	failure := fault.New(fault.BrokerUnavailable, "gone")
	w.settle(key, Receipt{Err: failure}, now)
	if len(joined) != 1 || !fault.Is(joined[0].Err, fault.BrokerUnavailable) || joined[0].Duplicate {
		t.Errorf("who joined was told %v", joined)
	}
	if found, _ := w.claim(key, digest{2}, now, never(t)); found != isFirst {
		t.Errorf("the next try is %d, and may be another event: nothing was stored under the key", found)
	}
}

func TestTheWindowForgetsTheOldestWhenItIsFullAndSaysSo(t *testing.T) {
	const room = 10
	w, forgotten := testWindow(time.Hour, room*entryBytes)
	now := time.Unix(1000, 0)
	key := func(i int) digest { return keyDigest("me", "t", fmt.Sprint(i)) }
	for i := range 2 * room {
		if found, _ := w.claim(key(i), digest{}, now, never(t)); found != isFirst {
			t.Fatalf("key %d is %d", i, found)
		}
		w.settle(key(i), Receipt{Position: position(int64(i))}, now)
		if n, bytes := w.size(); n > room || bytes > room*entryBytes {
			t.Fatalf("%d keys, %d bytes are kept", n, bytes)
		}
	}
	if *forgotten != room {
		t.Errorf("%d are said to be forgotten, %d were", *forgotten, room)
	}
	if found, _ := w.claim(key(2*room-1), digest{}, now, never(t)); found != isKnown {
		t.Error("the newest is forgotten")
	}
	// What is under way is not forgotten: a new key is refused instead.
	w, _ = testWindow(time.Hour, room*entryBytes)
	for i := range room {
		w.claim(key(i), digest{}, now, never(t))
	}
	if found, _ := w.claim(key(room), digest{}, now, never(t)); found != isFull {
		t.Errorf("beyond what is under way a key is %d", found)
	}
}

func TestKeysAndContentsOfDifferentPartsDiffer(t *testing.T) {
	keys := map[digest]string{}
	for _, k := range [][]string{{"a", "t", "bc"}, {"ab", "t", "c"}, {"a", "tb", "c"}, {"a", "t", "b", "c"}, {"a", "t", "b\x00c"}, {"a", "t", ""}} {
		d := keyDigest(k[0], k[1], k[2:]...)
		if other, twice := keys[d]; twice {
			t.Errorf("%q and %q are one key", k, other)
		}
		keys[d] = fmt.Sprintf("%q", k)
	}
	at := time.UnixMilli(5)
	contents := map[digest]int{}
	for i, r := range []event.Record{
		{Value: []byte("v"), Partition: -1},
		{Value: []byte("v")},
		{Key: []byte("v"), Partition: -1},
		{Value: []byte{}, Partition: -1},
		{Partition: -1},
		{Value: []byte("v"), Partition: -1, Timestamp: at},
		{Value: []byte("v"), Partition: -1, Headers: []event.Header{{Name: "a", Value: []byte("b")}}},
		{Value: []byte("v"), Partition: -1, Headers: []event.Header{{Name: "ab", Value: []byte{}}}},
		{Value: []byte("v"), Partition: -1, Headers: []event.Header{{Name: "ab"}}},
	} {
		d := contentDigest(&r, broker.AllReplicas)
		if other, twice := contents[d]; twice {
			t.Errorf("records %d and %d have one content", i, other)
		}
		contents[d] = i
	}
	traced := event.Record{Value: []byte("v"), Partition: -1, Headers: []event.Header{{Name: event.HeaderTraceParent, Value: []byte("00-1")}}}
	plain := event.Record{Value: []byte("v"), Partition: -1}
	if contentDigest(&traced, broker.Leader) != contentDigest(&plain, broker.Leader) {
		t.Error("a retry with a trace of its own is another event")
	}
	if contentDigest(&plain, broker.Leader) == contentDigest(&plain, broker.AllReplicas) {
		t.Error("who asks for all replicas is told of a write to the leader only")
	}
}

func TestAHundredAtOnceUnderOneKeyAreOneFirst(t *testing.T) {
	w, _ := testWindow(time.Minute, 1<<20)
	key := keyDigest("me", "t", "k")
	var all, answered sync.WaitGroup
	var mu sync.Mutex
	firsts := 0
	for range 100 {
		answered.Add(1)
		all.Go(func() {
			found, _ := w.claim(key, digest{}, time.Now(), joining(func(r Receipt) {
				if !r.Duplicate || r.Position.Offset != 3 {
					t.Errorf("told %v", r)
				}
				answered.Done()
			}))
			if found != isJoined { // the first, or after it
				answered.Done()
			}
			if found == isFirst {
				mu.Lock()
				firsts++
				mu.Unlock()
				w.settle(key, Receipt{Position: position(3)}, time.Now())
			}
		})
	}
	all.Wait()
	answered.Wait()
	if firsts != 1 {
		t.Errorf("%d were first", firsts)
	}
}

// Those who wait for a first one cost memory too, and give it back when they leave.
func TestThoseWhoJoinAreBoundedAndMayLeave(t *testing.T) {
	const room = 10
	w, _ := testWindow(time.Hour, room*entryBytes)
	now := time.Unix(1000, 0)
	key := keyDigest("me", "t", "k")
	w.claim(key, digest{}, now, never(t))
	var joined []joiner
	for range room - 1 {
		j := never(t)
		if found, _ := w.claim(key, digest{}, now, j); found != isJoined {
			t.Fatalf("with room it is %d", found)
		}
		joined = append(joined, j)
	}
	if found, _ := w.claim(key, digest{}, now, never(t)); found != isFull {
		t.Errorf("without room it is %d", found)
	}
	for _, j := range joined {
		w.leave(key, j)
	}
	if _, bytes := w.size(); bytes != entryBytes {
		t.Errorf("%d bytes are held when all have left, want %d", bytes, entryBytes)
	}
	told := false
	if found, _ := w.claim(key, digest{}, now, joining(func(Receipt) { told = true })); found != isJoined {
		t.Errorf("it is %d when others have left", found)
	}
	w.settle(key, Receipt{Position: position(1)}, now)
	if !told {
		t.Error("who stayed was not told")
	}
}
