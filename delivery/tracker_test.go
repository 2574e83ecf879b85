package delivery

import (
	"flag"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-dev/postern/event"
)

var seed = maphash.MakeSeed()

var rewrite = flag.Bool("rewrite", false, "write what the tracker scripts really answer; read the diff before committing it")

// TestTrackerScripts runs testdata/tracker: each line that begins with "> " is
// a command, what follows is its answer.
func TestTrackerScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/tracker/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{t: t}
			var out strings.Builder
			for line := range strings.Lines(string(b)) {
				switch {
				case strings.HasPrefix(line, "#"), line == "\n":
					out.WriteString(line)
				case strings.HasPrefix(line, "> "):
					out.WriteString(line)
					out.WriteString(s.run(strings.Fields(line[2:])))
				}
			}
			if got := out.String(); got != string(b) {
				if *rewrite {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
					return
				}
				t.Errorf("the script answers differently (-rewrite writes it):\n%s", got)
			}
		})
	}
}

// script drives one tracker. Leases are named by their offsets.
type script struct {
	t       *testing.T
	tracker *Tracker
	now     time.Duration
	ids     ID
	order   Order
}

func (s *script) run(words []string) string {
	var out strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	switch words[0] {
	case "new": // new ORDER OFFSET
		if err := s.order.UnmarshalText([]byte(words[1])); err != nil {
			s.t.Fatal(err)
		}
		s.tracker = newTracker(s.order, s.number(words[2]), progress{base: s.number(words[2])}, seed)
	case "offer": // offer OFFSET:KEY ...; a key of - is none
		for _, w := range words[1:] {
			at, key, _ := strings.Cut(w, ":")
			r := &event.Record{Topic: "t", Offset: s.number(at), Value: []byte("v")}
			if key != "-" {
				r.Key = []byte(key)
			}
			if !s.tracker.offer(r) {
				say("%s was offered before", at)
			}
		}
	case "lend": // lends everything that may be lent
		for e := s.tracker.peek(); e != nil; e = s.tracker.peek() {
			s.ids++
			s.tracker.lend(e, s.ids, nil, s.now, s.now+time.Minute, s.now+time.Hour)
			say("%d attempt %d", e.from, e.attempts)
		}
	case "ack":
		for _, w := range words[1:] {
			s.tracker.settle(s.find(w))
		}
	case "nack": // nack OFFSET DELAY
		d, err := time.ParseDuration(words[2])
		if err != nil {
			s.t.Fatal(err)
		}
		s.tracker.retryAt(s.find(words[1]), s.now+d, "nacked")
	case "bury": // its dead letter is being written
		s.tracker.bury(s.find(words[1]), "rejected")
	case "buried": // ... and is in Kafka
		s.tracker.settle(s.find(words[1]))
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now += d
		for e := s.tracker.timers.first(s.now); e != nil; e = s.tracker.timers.first(s.now) {
			if e.state == lent {
				say("%d lease ran out", e.from)
				s.tracker.retryAt(e, s.now, "expired")
				continue
			}
			s.tracker.wake(e)
		}
	case "commit":
		offset, metadata := s.tracker.commit()
		p, err := decodeMetadata(metadata, [16]byte{}, offset)
		if metadata == "" {
			p, err = progress{}, nil
		}
		if err != nil {
			s.t.Fatal(err)
		}
		say("offset %d settled %v attempts %v", offset, p.settled, p.attempts)
	case "restart": // what a new owner makes of the commit
		offset, metadata := s.tracker.commit()
		p, err := decodeMetadata(metadata, [16]byte{}, offset)
		if err != nil && metadata != "" {
			s.t.Fatal(err)
		}
		s.tracker = newTracker(s.order, offset, p, seed)
	case "holds":
		say("unsettled %d lent %d bytes %d runs %d", s.tracker.unsettled, s.tracker.lent, s.tracker.bytes, s.tracker.runs)
	default:
		s.t.Fatalf("unknown command %q", words[0])
	}
	return out.String()
}

func (s *script) number(w string) int64 {
	n, err := strconv.ParseInt(w, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *script) find(w string) *entry {
	at := s.number(w)
	for e := s.tracker.first; e != nil; e = e.next {
		if e.from == at && e.state != settled {
			return e
		}
	}
	s.t.Fatalf("offset %d is not unsettled", at)
	return nil
}

// TestTrackerNeverSkipsForgetsOrReordersWhateverHappens drives a tracker with
// any order of offers (with gaps), lends, acks, nacks, expiries, dead letters
// and restarts, beside a model that only remembers what must hold.
func TestTrackerNeverSkipsForgetsOrReordersWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{order: Order(rapid.IntRange(0, 2).Draw(t, "order")), settled: map[int64]bool{}, attempts: map[int64]int16{}}
		m.tracker = newTracker(m.order, 0, progress{}, seed)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			m.step(t)
			m.check(t)
		}
	})
}

type model struct {
	order    Order
	tracker  *Tracker
	log      []*event.Record // everything the partition holds, in order
	read     int             // how far the current owner has read
	settled  map[int64]bool
	attempts map[int64]int16
	now      time.Duration
	id       ID
}

func (m *model) step(t *rapid.T) {
	switch rapid.SampledFrom([]string{"offer", "offer", "lend", "lend", "settle", "settle", "nack", "bury", "wait", "restart", "repeat"}).Draw(t, "step") {
	case "offer":
		for range rapid.IntRange(1, 30).Draw(t, "count") {
			if m.read == len(m.log) {
				next := int64(0)
				if n := len(m.log); n > 0 {
					next = m.log[n-1].Offset + 1
				}
				next += rapid.SampledFrom([]int64{0, 0, 0, 1, 5}).Draw(t, "gap") // compacted away, or a transaction's marker
				r := &event.Record{Offset: next, Value: make([]byte, 10)}
				if k := rapid.IntRange(0, 5).Draw(t, "key"); k > 0 {
					r.Key = []byte{byte(k)}
				}
				m.log = append(m.log, r)
			}
			if !m.tracker.offer(m.log[m.read]) {
				t.Fatalf("offset %d refused", m.log[m.read].Offset)
			}
			m.read++
		}
	case "repeat":
		if m.read > 0 && m.tracker.offer(m.log[rapid.IntRange(0, m.read-1).Draw(t, "again")]) {
			t.Fatal("an offset was taken twice")
		}
	case "lend":
		for range rapid.IntRange(1, 20).Draw(t, "count") {
			e := m.tracker.peek()
			if e == nil {
				return
			}
			m.mayLend(t, e)
			m.id++
			m.tracker.lend(e, m.id, nil, m.now, m.now+time.Minute, m.now+time.Hour)
			m.attempts[e.from]++
		}
	case "settle":
		if e := m.some(t, lent, burying); e != nil {
			m.settled[e.from] = true
			m.tracker.settle(e)
		}
	case "nack":
		if e := m.some(t, lent); e != nil {
			m.tracker.retryAt(e, m.now+time.Duration(rapid.IntRange(0, 90).Draw(t, "delay"))*time.Second, "")
		}
	case "bury":
		if e := m.some(t, lent); e != nil {
			m.tracker.bury(e, "")
		}
	case "wait":
		m.now += time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second
		for e := m.tracker.timers.first(m.now); e != nil; e = m.tracker.timers.first(m.now) {
			if e.state == lent {
				m.tracker.retryAt(e, m.now, "")
			} else {
				m.tracker.wake(e)
			}
		}
	case "restart":
		offset, metadata := m.tracker.commit()
		p, err := decodeMetadata(metadata, [16]byte{}, offset)
		if err != nil && metadata != "" {
			t.Fatalf("own metadata: %v", err)
		}
		p.base = offset
		m.tracker = newTracker(m.order, offset, p, seed)
		m.read = slices.IndexFunc(m.log, func(r *event.Record) bool { return r.Offset >= offset })
		if m.read < 0 {
			m.read = len(m.log)
		}
	}
}

// mayLend checks the promises at the moment of lending.
func (m *model) mayLend(t *rapid.T, e *entry) {
	if m.settled[e.from] {
		t.Fatalf("offset %d is lent after it was settled", e.from)
	}
	if e.attempts != m.attempts[e.from] {
		t.Fatalf("offset %d: %d attempts remembered, %d were made", e.from, e.attempts, m.attempts[e.from])
	}
	for _, r := range m.log {
		if r.Offset >= e.from {
			break
		}
		same := m.order == OrderPartition || m.order == OrderKey && r.Key != nil && string(r.Key) == string(e.record.Key)
		if same && !m.settled[r.Offset] {
			t.Fatalf("offset %d is lent before %d of its lane is settled", e.from, r.Offset)
		}
	}
}

func (m *model) some(t *rapid.T, states ...state) *entry {
	var all []*entry
	for e := m.tracker.first; e != nil; e = e.next {
		if slices.Contains(states, e.state) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return rapid.SampledFrom(all).Draw(t, "entry")
}

// check compares what is committed, and the tracker's own counters, with the truth.
func (m *model) check(t *rapid.T) {
	offset, metadata := m.tracker.commit()
	if len(metadata) > metadataMaxText {
		t.Fatalf("metadata of %d characters", len(metadata))
	}
	unsettled, bytes := 0, int64(0)
	for _, r := range m.log[:m.read] {
		switch {
		case !m.settled[r.Offset] && r.Offset < offset:
			t.Fatalf("offset %d would be skipped by a commit of %d", r.Offset, offset)
		case !m.settled[r.Offset]:
			unsettled++
			bytes += int64(r.Size())
		}
	}
	if m.tracker.unsettled != unsettled || m.tracker.bytes != bytes {
		t.Fatalf("counts %d unsettled, %d bytes; there are %d, %d", m.tracker.unsettled, m.tracker.bytes, unsettled, bytes)
	}
	if first := m.tracker.first; first != nil && first.state == ready && m.tracker.peek() != first {
		t.Fatalf("the first unsettled event, %d, is ready and cannot be lent: nothing would ever move", first.from)
	}
	runs, lentNow := 0, 0
	for e := m.tracker.first; e != nil; e = e.next {
		if e.state == settled {
			runs++
			if e.prev == nil || e.prev.state == settled {
				t.Fatal("a settled run at the front, or two side by side")
			}
		}
		if e.state == lent {
			lentNow++
		}
	}
	if m.tracker.runs != runs || m.tracker.lent != lentNow {
		t.Fatalf("counts %d runs, %d lent; there are %d, %d", m.tracker.runs, m.tracker.lent, runs, lentNow)
	}
}

// TestMetadataStaysWithinKafkasLimitWhenEverySecondEventIsSettled is the worst
// case for runs: what is lent must be held back before the text grows too long.
func TestMetadataStaysWithinKafkasLimitWhenEverySecondEventIsSettled(t *testing.T) {
	tracker := newTracker(OrderNone, 0, progress{}, seed)
	for i := range int64(200_000) {
		tracker.offer(&event.Record{Offset: i, Value: []byte("v")})
	}
	lentNow, held := 0, 0
	var keep []*entry
	for round := range 200_000 {
		e := tracker.peek()
		if e == nil {
			held++
			if len(keep) == 0 {
				t.Fatal("nothing can be lent and nothing is lent")
			}
			tracker.settle(keep[0]) // the first entry frees the most
			keep = keep[1:]
			continue
		}
		tracker.lend(e, ID(round), nil, 0, 1, 1)
		lentNow++
		if round%2 == 0 {
			tracker.settle(e)
		} else {
			keep = append(keep, e)
		}
		if round%1000 == 0 {
			if _, metadata := tracker.commit(); len(metadata) > metadataMaxText {
				t.Fatalf("%d characters after %d lends", len(metadata), lentNow)
			}
		}
	}
	if held == 0 {
		t.Fatal("lending was never held back: the test does not reach the limit")
	}
}

// TestManyKeysWithManyOutstandingNeverStopForGood is a drain with a large window: lanes become
// ready in any order, far above the committed offset, and the metadata's limit
// holds lending back again and again.
func TestManyKeysWithManyOutstandingNeverStopForGood(t *testing.T) {
	const events = 60_000
	tracker := newTracker(OrderKey, 0, progress{}, seed)
	for i := range int64(events) {
		tracker.offer(&event.Record{Offset: i, Key: fmt.Append(nil, i*i%3000), Value: []byte("v")})
	}
	var held []*entry
	seed, settledCount := uint64(1), 0
	for settledCount < events {
		for e := tracker.peek(); e != nil && len(held) < 5000; e = tracker.peek() {
			tracker.lend(e, 1, nil, 0, 1, 1)
			held = append(held, e)
		}
		if len(held) == 0 {
			t.Fatalf("after %d of %d events nothing is lent and nothing can be", settledCount, events)
		}
		for range min(len(held), 700) {
			seed = seed*6364136223846793005 + 1442695040888963407
			i := int(seed>>33) % len(held)
			tracker.settle(held[i])
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
			settledCount++
		}
		if _, metadata := tracker.commit(); len(metadata) > metadataMaxText {
			t.Fatalf("%d characters of metadata", len(metadata))
		}
	}
}

// What an outstanding event costs beside itself: its entry, its place in the
// tails, in the ready heap or the timers, and among the leases.
func TestAnOutstandingEventCostsAtMost200BytesBesideItself(t *testing.T) {
	const events = 100_000
	records := make([]*event.Record, events)
	for i := range records {
		records[i] = &event.Record{Offset: int64(i), Key: fmt.Append(nil, "key-", i), Value: []byte("v")}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	all := newTracker(OrderKey, 0, progress{}, seed)
	for _, r := range records {
		all.offer(r)
	}
	offered := heap()
	// As many lent as the metadata of one partition allows are enough to weigh them.
	const lentEvents = 1500
	taken := newTracker(OrderKey, 0, progress{}, seed)
	var leases leaseTable
	for i, r := range records[:lentEvents] {
		taken.offer(r)
		e := taken.peek()
		if e == nil {
			t.Fatalf("only %d events may be lent", i)
		}
		taken.lend(e, ID(i+1), nil, 0, time.Minute, time.Hour)
		leases.add(e)
	}
	each := float64(offered-before) / events
	lentEach := float64(heap()-offered) / lentEvents
	t.Logf("%.0f bytes for an event that is not lent, %.0f for one that is", each, lentEach)
	if each > 200 || lentEach > 200 {
		t.Errorf("%.0f bytes for an event that is not lent, %.0f for one that is", each, lentEach)
	}
	runtime.KeepAlive(records)
	runtime.KeepAlive(all)
	runtime.KeepAlive(taken)
}

func BenchmarkTrackerOfferLendSettle(b *testing.B) {
	for _, outstanding := range []int{1, 1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(outstanding), func(b *testing.B) {
			tracker := newTracker(OrderKey, 0, progress{}, seed)
			keys := make([][]byte, 10_000)
			for i := range keys {
				keys[i] = []byte(strconv.Itoa(i))
			}
			var held []*entry
			at := int64(0)
			seed := uint64(1)
			b.ReportAllocs()
			for b.Loop() {
				tracker.offer(&event.Record{Offset: at, Key: keys[at%int64(len(keys))], Value: keys[0]})
				at++
				if e := tracker.peek(); e != nil {
					tracker.lend(e, ID(at), nil, 0, time.Duration(at), time.Hour)
					held = append(held, e)
				}
				if len(held) >= outstanding {
					seed = seed*6364136223846793005 + 1442695040888963407
					i := int(seed>>33) % len(held)
					tracker.settle(held[i])
					held[i] = held[len(held)-1]
					held = held[:len(held)-1]
				}
			}
		})
	}
}
