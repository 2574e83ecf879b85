package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"pgregory.net/rapid"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestWhatIsMovedComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		header := rapid.Custom(func(t *rapid.T) event.Header {
			name := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{event.MoveVersion, event.MoveDue, "a"})).Draw(t, "name")
			return event.Header{Name: name, Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value")}
		})
		r := &event.Record{
			Topic: rapid.StringN(1, 20, -1).Draw(t, "topic"), Partition: rapid.Int32Range(0, 1000).Draw(t, "partition"),
			Offset: rapid.Int64Range(0, 1<<50).Draw(t, "offset"), Timestamp: time.UnixMilli(rapid.Int64Range(-1<<40, 1<<42).Draw(t, "time")),
			Key: rapid.SliceOf(rapid.Byte()).Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "data"),
			Headers: rapid.SliceOfN(header, 0, 4).Draw(t, "headers"),
		}
		a := arrival{attempts: rapid.IntRange(0, 1000).Draw(t, "attempts"), owner: 12, failure: rapid.StringN(0, 50, -1).Draw(t, "failure"), timestamp: time.UnixMilli(5)}
		if rapid.Bool().Draw(t, "waits") {
			a.due, a.first = time.UnixMilli(77), time.UnixMilli(66)
		}
		m := moved("side", 3, r, a)
		m.Offset = 9
		got, was, err := unmoved(m)
		if err != nil {
			t.Fatal(err)
		}
		if got.Topic != r.Topic || got.Partition != r.Partition || got.Offset != r.Offset || !got.Timestamp.Equal(r.Timestamp) ||
			string(got.Key) != string(r.Key) || string(got.Value) != string(r.Value) || fmt.Sprint(got.Headers) != fmt.Sprint(r.Headers) {
			t.Errorf("%+v became %+v", r, got)
		}
		if was != a {
			t.Errorf("its past %+v became %+v", a, was)
		}
	})
}

func FuzzUnmoved(f *testing.F) {
	f.Add("postern-move-version", []byte("1"), "postern-move-offset", []byte("5"), "postern-move-partition", []byte("-1"))
	f.Fuzz(func(t *testing.T, n1 string, v1 []byte, n2 string, v2 []byte, n3 string, v3 []byte) {
		m := &event.Record{Headers: []event.Header{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n3, Value: v3}}}
		if r, _, err := unmoved(m); err == nil && (r.Topic == "" || r.Offset < 0 || r.Partition < 0) {
			t.Errorf("%+v was taken for a moved event", m.Headers)
		}
	})
}

// world is one partition's source and park in memory, and a queue without
// goroutines that owns them, so that every interleaving can be tried.
type world struct {
	source, park []*event.Record
	saved        map[broker.TopicPartition]broker.Committing
	q            *Queue
	p            *partition
	a            *Attachment
	held         map[ID]*event.Record // lent
	done         map[int64]bool       // settled once, by the source's offset
	doneHere     map[int64]bool       // by this owner
	read         int                  // of source, by this owner
	readPark     int
	fail         func() error // what a write meets; nil: it works
	crashes      int
	away         bool // the schema registry
}

// Of a world's events the filter passes those that say yes, and can tell of none
// before the registry has answered.
const (
	plainly   = "v"
	encodedly = "\x00yes"
	filtered  = "\x00no"
)

type worldFilter struct{}

func (worldFilter) String() string { return "yes" }

func (worldFilter) Match(r *event.Record, decoded []byte) (bool, error) {
	if decoded == nil && r.Value[0] == 0 {
		return false, ErrEncoded
	}
	return string(decoded) != filtered, nil
}

func (w *world) decode(_ context.Context, r *event.Record) ([]byte, error) {
	if w.away {
		return nil, fault.New(fault.RegistryUnavailable, "it is away")
	}
	return r.Value, nil
}

var (
	sourceAt = broker.TopicPartition{Topic: "t"}
	parkAt   = broker.TopicPartition{Topic: sidePark.topic("_", "q", "t")}
)

func newWorld() *world {
	w := &world{saved: map[broker.TopicPartition]broker.Committing{}, done: map[int64]bool{}}
	w.own()
	return w
}

// own begins with what was committed, as a new owner does.
func (w *world) own() {
	var sequence atomic.Uint64
	w.crashes++
	o := Options{Name: "q", Topics: []string{"t"}, Lease: time.Minute, SidePrefix: "_", Filter: worldFilter{}, Retry: Retry{MaxAttempts: 1000, MaxBackoff: 10 * time.Second, MaxBlock: 1 << 60}.WithDefaults()}
	w.q = newQueue(o, nil, w, Instance(w.crashes), &sequence, slog.New(slog.DiscardHandler), newMetrics(noop.Meter{}, "q"))
	w.q.moveAtOnce = 3
	w.q.decode = w.decode
	w.q.budget.earned = -1 << 30 // it is tried by itself
	w.q.budget.spent = -1 << 30
	at := w.saved[sourceAt]
	restored, _ := decodeMetadata(at.Metadata, [16]byte{}, at.Offset)
	w.p = &partition{at: sourceAt, owner: w.q.owner(), preparing: true, Tracker: newTracker(OrderKey, at.Offset, restored, w.q.seed)}
	w.p.Tracker.home = w.p
	w.q.trackers[sourceAt] = w.p
	w.q.rotation = []*partition{w.p}
	begun := fence(parkAt, w.p.owner, time.Now())
	begun.Offset = int64(len(w.park))
	w.park = append(w.park, begun)
	f := found{side: sidePark, at: parkAt, offset: w.saved[parkAt].Offset, metadata: w.saved[parkAt].Metadata, end: int64(len(w.park))}
	restoredPark, _ := decodeMetadata(f.metadata, [16]byte{}, f.offset)
	f.scanned = newScanned(w.q.seed, restoredPark)
	for _, r := range w.park[f.offset:] {
		f.scanned.see(r)
	}
	w.q.begin(w.p, []found{f})
	w.read, w.readPark, w.held = int(at.Offset), int(f.offset), map[ID]*event.Record{}
	w.doneHere = map[int64]bool{}
	a, _, err := w.q.Attach(AttachOptions{Window: Window{Messages: 50}})
	if err != nil {
		panic(err)
	}
	w.a = a
}

// Move is the queue's Mover.
func (w *world) Move(_ context.Context, records []*event.Record) ([]event.Position, []error) {
	at, errs := make([]event.Position, len(records)), make([]error, len(records))
	failed := false
	for i, r := range records {
		var err error
		if failed || w.fail != nil {
			if err = errBefore; !failed {
				err = w.fail()
			}
		}
		if err == nil || fault.Is(err, fault.OutcomeUnknown) { // unknown: it is there all the same
			c := *r
			c.Offset = int64(len(w.park))
			w.park = append(w.park, &c)
			at[i] = event.Position{Topic: r.Topic, Offset: c.Offset}
		}
		if err != nil {
			failed = true // everything behind a failure fails
			errs[i] = err
		}
	}
	return at, errs
}

var errBefore = fault.New(fault.BrokerUnavailable, "one before it failed")

// lend takes what the queue lends, and checks the order.
func (w *world) lend(t *rapid.T) {
	w.q.mu.Lock()
	w.q.dispatch()
	leases := w.a.pending
	w.a.pending = nil
	w.q.mu.Unlock()
	for _, l := range leases {
		if string(l.Record.Value) == filtered {
			t.Fatalf("event %d was lent, which the filter does not pass", l.Record.Offset)
		}
		for _, other := range w.source {
			if other.Offset < l.Record.Offset && string(other.Key) == string(l.Record.Key) && l.Record.Key != nil && !w.done[other.Offset] && string(other.Value) != filtered {
				t.Fatalf("event %d of key %s was lent before event %d was ever settled", l.Record.Offset, l.Record.Key, other.Offset)
			}
		}
		for _, r := range w.held {
			if r.Offset == l.Record.Offset {
				t.Fatalf("event %d is lent twice at once", r.Offset)
			}
		}
		if w.doneHere[l.Record.Offset] {
			t.Fatalf("event %d is lent again after its owner took the ack", l.Record.Offset)
		}
		w.held[l.ID] = l.Record
	}
}

func (w *world) commit() {
	for _, p := range w.q.rotation {
		if p.side != noSide {
			p.epoch = uint64(p.fences.before(p.position()))
		}
		offset, metadata := p.commit()
		w.saved[p.at] = broker.Committing{Offset: offset, Metadata: metadata}
	}
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.q.start = w.q.start.Add(-d)
	w.q.mu.Lock()
	w.q.onTime()
	for id := range w.held {
		if w.q.leases.get(id) == nil {
			delete(w.held, id) // it ran out
		}
	}
	w.q.mu.Unlock()
}

func (w *world) settle(t *rapid.T, word Word, delay time.Duration) {
	ids := make([]ID, 0, len(w.held))
	for id := range w.held {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(t, "which")
	r := w.held[id]
	delete(w.held, id)
	if r.Key == nil {
		delay = 0 // one without a key would go to a tier
	}
	results, _ := w.q.Settle([]Settlement{{ID: id, Word: word, HasDelay: true, Delay: delay}})
	if results[0].Outcome == Accepted && word == Ack {
		w.done[r.Offset], w.doneHere[r.Offset] = true, true
	}
}

func (w *world) readSome(n int) {
	var records []*event.Record
	for ; n > 0 && w.read < len(w.source); n-- {
		records = append(records, w.source[w.read])
		w.read++
	}
	w.q.offer(records)
}

func (w *world) readParkSome(n int) {
	var records []*event.Record
	for ; n > 0 && w.readPark < len(w.park); n-- {
		records = append(records, w.park[w.readPark])
		w.readPark++
	}
	w.q.offerAside(records)
}

// TestParkedKeysKeepTheirOrderAndLoseNothingWhateverHappens tries any order of
// reading, lending, failing for long, writing to the park with failures and
// unknown outcomes, a filter that cannot tell for want of a schema, zombies that write to it, commits and crashes.
func TestParkedKeysKeepTheirOrderAndLoseNothingWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		zombie := w.q
		zombieOf := w.p
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"publish", "read", "read park", "lend", "lend", "ack", "ack", "nack", "block", "write", "write", "write badly", "commit", "wait", "crash", "zombie", "registry", "judge"}).Draw(t, "step") {
			case "publish":
				for range rapid.IntRange(1, 10).Draw(t, "count") {
					r := &event.Record{Topic: "t", Offset: int64(len(w.source)), Value: []byte(rapid.SampledFrom([]string{plainly, plainly, encodedly, filtered}).Draw(t, "value"))}
					if k := rapid.IntRange(0, 3).Draw(t, "key"); k > 0 {
						r.Key = []byte{'a' + byte(k)}
					}
					w.source = append(w.source, r)
				}
			case "read":
				w.readSome(rapid.IntRange(1, 20).Draw(t, "count"))
			case "read park":
				w.readParkSome(rapid.IntRange(1, 20).Draw(t, "count"))
			case "lend":
				w.lend(t)
			case "ack":
				w.settle(t, Ack, 0)
			case "nack":
				w.settle(t, Nack, 0)
			case "block":
				w.settle(t, Nack, 2*time.Hour)
			case "write":
				w.fail = nil
				_ = w.q.moveOnce() // nothing can fail
			case "write badly":
				good := rapid.IntRange(0, 5).Draw(t, "good")
				known := rapid.Bool().Draw(t, "known")
				w.fail = func() error {
					if good--; good >= 0 {
						return nil
					}
					if known {
						return fault.New(fault.BrokerUnavailable, "not today")
					}
					return fault.New(fault.OutcomeUnknown, "perhaps")
				}
				_ = w.q.moveOnce() // it is meant to fail
				w.fail = nil
			case "commit":
				w.commit()
			case "wait":
				w.pass(3 * time.Hour)
			case "crash":
				zombie, zombieOf = w.q, w.p
				w.own()
			case "registry":
				w.away = !w.away
			case "judge":
				_, _ = w.q.judgeAgain() // what it cannot say it says later
			case "zombie": // an earlier owner, which does not know yet, writes what it was about to
				if zombie != w.q && zombie.trackers[sourceAt] == zombieOf {
					_ = zombie.moveOnce() // its outcome is nobody's business
				}
			}
		}
		// Everything heals: all is read, and acknowledged.
		w.fail, w.away = nil, false
		wanted := 0
		for _, r := range w.source {
			if string(r.Value) != filtered {
				wanted++
			}
		}
		side := w.p.sideOf(sidePark)
		for round := 0; w.p.position() < int64(len(w.source)) || side.position() < int64(len(w.park)); round++ {
			if round == 10*len(w.source)+20 {
				t.Fatalf("%d of %d events are settled, and no more come", len(w.done), len(w.source))
			}
			w.readSome(100)
			_ = w.q.moveOnce() // nothing can fail
			w.readParkSome(100)
			w.pass(3 * time.Hour)
			w.lend(t)
			_, _ = w.q.judgeAgain() // nothing can fail
			w.lend(t)
			for len(w.held) > 0 {
				w.settle(t, Ack, 0)
			}
		}
		if len(w.done) != wanted {
			t.Fatalf("%d of %d events were settled", len(w.done), wanted)
		}
		w.commit()
		if at := w.saved[sourceAt]; at.Offset != int64(len(w.source)) || at.Metadata != "" {
			t.Errorf("in the end %+v is committed of %d events", at, len(w.source))
		}
		if at := w.saved[parkAt]; at.Offset != int64(len(w.park)) {
			t.Errorf("in the end %+v is committed of %d in the park", at, len(w.park))
		}
		if len(w.p.parked) > 0 {
			t.Errorf("%d lanes are still parked", len(w.p.parked))
		}
	})
}

func TestWaitsOfAParkedEventAreThoseOfItsSchedule(t *testing.T) {
	r := Retry{Schedule: []time.Duration{time.Second, time.Minute, time.Hour, 2 * time.Hour}, MaxAttempts: 5}.WithDefaults()
	for _, c := range []struct {
		before, more int
		want         time.Duration
	}{{2, 0, 0}, {2, 1, time.Hour}, {2, 2, 3 * time.Hour}, {4, 1, 2 * time.Hour}} {
		if got := r.waits(c.before, c.more); got != c.want {
			t.Errorf("after %d attempts, %d more wait %s, want %s", c.before, c.more, got, c.want)
		}
	}
	tracker := &Tracker{}
	tracker.restored.attempts = []attempts{{offset: 3, count: 2}, {offset: 7, count: 4}}
	for offset, want := range map[int64]int{2: 0, 3: 2, 5: 0, 7: 4, 9: 0} {
		if got := tracker.triedBefore(offset); got != want {
			t.Errorf("the event at %d was tried %d times, want %d", offset, got, want)
		}
	}
	if tracker.hadAttempts(7) != 4 || tracker.triedBefore(7) != 0 {
		t.Error("looking took the count, or taking did not")
	}
}
