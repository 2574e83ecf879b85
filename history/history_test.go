package history

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write what the golden histories are really judged as")

// TestGoldenHistories judges testdata/*.txt. A line is "log OFFSET KEY VALUE",
// "dead OFFSET", or "MS KIND [VALUE] [OFFSET] [ATTEMPT]"; what follows "judged:" is the judgement.
func TestGoldenHistories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden histories")
	}
	found := map[string]bool{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			head, want, _ := strings.Cut(string(text), "judged:\n")
			report := Check(parse(t, head), Rules{Ordered: true, Allowance: 200 * time.Millisecond})
			got := ""
			for _, a := range report.Anomalies {
				got += a.Kind + ": " + a.What + "\n"
				found[a.Kind] = true
			}
			if got == "" {
				got = "nothing wrong\n"
			}
			if got != want {
				if *rewrite {
					if err := os.WriteFile(file, []byte(head+"judged:\n"+got), 0o644); err != nil {
						t.Fatal(err)
					}
					return
				}
				t.Errorf("judged:\n%swant:\n%s", got, want)
			}
		})
	}
	for _, kind := range []string{LostWrite, AbortedRead, WrongPosition, DuplicateWrite, Phantom, LostDelivery, Stuck, CommittedAgain, DuplicateDelivery, KeyOrder, ConnectionOrder, MissingDeadLetter, AttemptsWentBack} {
		if !found[kind] {
			t.Errorf("no golden history shows a %q", kind)
		}
	}
}

func parse(t *testing.T, text string) History {
	t.Helper()
	var h History
	keys := map[string]string{}
	values := map[int64]string{}
	number := func(w string) int64 {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		switch {
		case len(w) == 0 || strings.HasPrefix(w[0], "#"):
		case w[0] == "log":
			h.Log = append(h.Log, Record{Topic: "t", Offset: number(w[1]), Key: w[2], Value: w[3]})
			keys[w[3]], values[number(w[1])] = w[2], w[3]
		case w[0] == "dead":
			h.DeadLetters = append(h.DeadLetters, Record{Topic: "t", Offset: number(w[1])})
		default:
			e := Entry{At: time.Duration(number(w[0])) * time.Millisecond, Kind: Kind(w[1])}
			switch e.Kind {
			case Invoked: // MS invoked VALUE KEY
				e.Value, e.Key = w[2], w[3]
			case OK: // MS ok VALUE OFFSET
				e.Value, e.Topic, e.Offset = w[2], "t", number(w[3])
			case Failed, Unknown, Fault:
				e.Value = w[2]
			default: // MS delivered OFFSET [ATTEMPT [VALUE]]
				e.Subscription, e.Topic, e.Offset, e.Attempt = "s", "t", number(w[2]), 1
				e.Value = values[e.Offset]
				if len(w) > 3 {
					e.Attempt = int32(number(w[3]))
				}
				if len(w) > 4 {
					e.Value = w[4]
				}
			}
			h.Entries = append(h.Entries, e)
		}
	}
	return h
}

// simulate makes a history in which every promise holds: keys in order, acks
// accepted and committed, crashes that forget only acks of the last 200 ms.
func simulate(seed uint64, events int) History {
	random := rand.New(rand.NewPCG(seed, 1))
	var h History
	now := time.Duration(0)
	tick := func() time.Duration { now += time.Duration(1+random.IntN(5)) * time.Millisecond; return now }
	offsets := [3]int64{}
	lanes := map[string][]Record{}
	var names []string
	for i := range events {
		value, key := fmt.Sprint("v", i), fmt.Sprint("k", random.IntN(10))
		p := int32(len(key)+int(key[1])) % 3
		h.Entries = append(h.Entries, Entry{At: tick(), Kind: Invoked, Value: value, Key: key})
		if random.IntN(50) == 0 {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Failed, Value: value})
			continue
		}
		r := Record{Topic: "t", Partition: p, Offset: offsets[p], Key: key, Value: value}
		offsets[p]++
		h.Log = append(h.Log, r)
		if len(lanes[key]) == 0 {
			names = append(names, key)
		}
		lanes[key] = append(lanes[key], r)
		if random.IntN(50) == 0 {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Unknown, Value: value})
		} else {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: OK, Value: value, Topic: "t", Partition: p, Offset: r.Offset})
		}
	}
	entry := func(kind Kind, r Record, attempt int32) {
		h.Entries = append(h.Entries, Entry{At: tick(), Kind: kind, Value: r.Value, Key: r.Key, Topic: "t", Partition: r.Partition, Offset: r.Offset, Subscription: "s", Attempt: attempt})
	}
	for len(names) > 0 {
		i := random.IntN(len(names))
		r := lanes[names[i]][0]
		attempt := int32(1)
		entry(Delivered, r, attempt)
		for random.IntN(10) == 0 { // nacked, or its lease ran out
			attempt++
			entry(Delivered, r, attempt)
		}
		switch random.IntN(20) {
		case 0:
			entry(Rejected, r, attempt)
			h.DeadLetters = append(h.DeadLetters, r)
		case 1: // acked, accepted, and forgotten by a crash right after
			entry(Acked, r, attempt)
			entry(Accepted, r, attempt)
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Fault, Value: "kill"})
			entry(Delivered, r, attempt)
			entry(Acked, r, attempt)
			entry(Committed, r, attempt)
		default:
			entry(Acked, r, attempt)
			entry(Committed, r, attempt)
		}
		if lanes[names[i]] = lanes[names[i]][1:]; len(lanes[names[i]]) == 0 {
			names[i] = names[len(names)-1]
			names = names[:len(names)-1]
		}
	}
	return h
}

var rules = Rules{Ordered: true, Allowance: 200 * time.Millisecond}

func TestHistoriesInWhichAllHeldRaiseNoAlarm(t *testing.T) {
	for seed := range uint64(200) {
		if r := Check(simulate(seed, 300), rules); len(r.Anomalies) > 0 {
			t.Fatalf("seed %d: %v", seed, r.Anomalies)
		}
	}
}

func TestEveryPlantedViolationIsFound(t *testing.T) {
	find := func(h *History, kind Kind, skip int) int {
		for i := range h.Entries {
			if h.Entries[i].Kind == kind {
				if skip == 0 {
					return i
				}
				skip--
			}
		}
		return -1
	}
	last := func(h *History) time.Duration { return h.Entries[len(h.Entries)-1].At }
	for _, m := range []struct {
		kind   string
		mutate func(h *History, random *rand.Rand)
	}{
		{LostWrite, func(h *History, _ *rand.Rand) {
			e := h.Entries[find(h, OK, 3)]
			for i, r := range h.Log {
				if r.Value == e.Value {
					h.Log = append(h.Log[:i], h.Log[i+1:]...)
					return
				}
			}
		}},
		{WrongPosition, func(h *History, _ *rand.Rand) { h.Entries[find(h, OK, 5)].Offset += 3 }},
		{AbortedRead, func(h *History, _ *rand.Rand) {
			e := h.Entries[find(h, Failed, 0)]
			h.Log = append(h.Log, Record{Topic: "t", Partition: 9, Offset: 1, Value: e.Value})
		}},
		{DuplicateWrite, func(h *History, _ *rand.Rand) {
			e := h.Entries[find(h, OK, 7)]
			h.Log = append(h.Log, Record{Topic: "t", Partition: 9, Offset: 1, Value: e.Value})
		}},
		{LostDelivery, func(h *History, _ *rand.Rand) {
			at := h.Log[10].at()
			var kept []Entry
			for _, e := range h.Entries {
				if e.Subscription == "" || e.at() != at {
					kept = append(kept, e)
				}
			}
			h.Entries = kept
		}},
		{Stuck, func(h *History, _ *rand.Rand) {
			at := h.Log[len(h.Log)-1].at()
			dead := h.DeadLetters[:0]
			for _, d := range h.DeadLetters {
				if d.at() != at {
					dead = append(dead, d)
				}
			}
			h.DeadLetters = dead
			for i := range h.Entries {
				if e := &h.Entries[i]; e.Subscription != "" && e.at() == at && e.Kind != Delivered {
					e.Kind, e.Subscription = Fault, ""
				}
			}
		}},
		{CommittedAgain, func(h *History, _ *rand.Rand) {
			e := h.Entries[find(h, Committed, 4)]
			e.Kind, e.At = Delivered, last(h)+1
			h.Entries = append(h.Entries, e)
		}},
		{DuplicateDelivery, func(h *History, _ *rand.Rand) {
			i := find(h, Committed, 4)
			h.Entries[i].Kind = Accepted
			e := h.Entries[i]
			e.Kind, e.At = Delivered, e.At+1 // before any fault
			h.Entries = append(h.Entries, e)
		}},
		{KeyOrder, func(h *History, _ *rand.Rand) {
			seen := map[string]Entry{}
			for i := range h.Entries {
				e := &h.Entries[i]
				if e.Kind != Delivered {
					continue
				}
				before, ok := seen[e.Key]
				if !ok {
					seen[e.Key] = *e
				} else if before.at() != e.at() {
					e.At = before.At - 1 // ahead of its predecessor
					return
				}
			}
		}},
		{MissingDeadLetter, func(h *History, _ *rand.Rand) { h.DeadLetters = h.DeadLetters[1:] }},
		{Phantom, func(h *History, _ *rand.Rand) { h.Entries[find(h, Delivered, 6)].Value = "nobody's" }},
	} {
		t.Run(m.kind, func(t *testing.T) {
			for seed := range uint64(30) {
				h := simulate(seed, 300)
				m.mutate(&h, rand.New(rand.NewPCG(seed, 2)))
				r := Check(h, rules)
				ok := false
				for _, a := range r.Anomalies {
					ok = ok || a.Kind == m.kind
				}
				if !ok {
					t.Fatalf("seed %d: not found; judged %v", seed, r.Anomalies)
				}
			}
		})
	}
}

func BenchmarkCheckAMillionEvents(b *testing.B) {
	h := simulate(1, 1_000_000)
	b.ReportMetric(float64(len(h.Entries)), "entries")
	for b.Loop() {
		if r := Check(h, rules); len(r.Anomalies) > 0 {
			b.Fatal(r.Anomalies[0])
		}
	}
}
