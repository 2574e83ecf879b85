package history

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write what the golden histories are really judged as")

// judging are the rules that golden and made-up histories are judged by.
var judging = Rules{Ordered: true, Allowance: 200 * time.Millisecond, Traced: true, Wait: 10 * time.Second}

// TestGoldenHistories judges testdata/*.txt. A line is "log OFFSET KEY VALUE",
// "dead OFFSET [MS]", or "MS KIND [VALUE KEY | VALUE OFFSET | OFFSET [ATTEMPT [VALUE]]]"
// followed by NAME=VALUE for the rarer fields; what follows "judged:" is the judgement.
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
			report := Check(parse(t, head), judging)
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
	for _, kind := range Anomalies {
		if !found[kind] {
			t.Errorf("no golden history shows a %q", kind)
		}
	}
}

func parse(t *testing.T, text string) History {
	t.Helper()
	var h History
	values := map[int64]string{}
	number := func(w string) int64 {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ms := func(w string) time.Duration { return time.Duration(number(w)) * time.Millisecond }
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var w []string
		more := map[string]string{}
		for _, word := range strings.Fields(lines.Text()) {
			if name, value, ok := strings.Cut(word, "="); ok {
				more[name] = value
			} else {
				w = append(w, word)
			}
		}
		switch {
		case len(w) == 0 || strings.HasPrefix(w[0], "#"):
		case w[0] == "log":
			h.Log = append(h.Log, Record{Topic: "t", Offset: number(w[1]), Key: w[2], Value: w[3]})
			values[number(w[1])] = w[3]
		case w[0] == "dead":
			d := DeadLetter{Topic: "t", Offset: number(w[1])}
			if len(w) > 2 {
				d.At = ms(w[2])
			}
			h.DeadLetters = append(h.DeadLetters, d)
		default:
			e := Entry{At: ms(w[0]), Kind: Kind(w[1]), Instance: more["by"], Connection: more["on"], Request: more["of"], Trace: more["trace"]}
			if more["until"] != "" {
				e.Until = ms(more["until"])
			}
			switch e.Kind {
			case Invoked: // MS invoked VALUE KEY
				e.Value, e.Key = w[2], w[3]
			case OK: // MS ok VALUE OFFSET
				e.Value, e.Topic, e.Offset = w[2], "t", number(w[3])
			case Failed, Unknown, Fault, Healed, Note:
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
// accepted and committed, crashes that forget only acks of the last 200 ms,
// leases, dead letters, atomic requests and commits as they are seen.
func simulate(seed uint64, events int) History {
	random := rand.New(rand.NewPCG(seed, 1))
	var h History
	now := time.Duration(0)
	tick := func() time.Duration { now += time.Duration(1+random.IntN(5)) * time.Millisecond; return now }
	offsets := [3]int64{}
	lanes := map[string][]Record{}
	traces := map[string]string{}
	var names []string
	stored := func(key, value string, p int32) Record {
		r := Record{Topic: "t", Partition: p, Offset: offsets[p], Key: key, Value: value}
		offsets[p]++
		h.Log = append(h.Log, r)
		if len(lanes[key]) == 0 {
			names = append(names, key)
		}
		lanes[key] = append(lanes[key], r)
		return r
	}
	for i := 0; i < events; i++ {
		key := fmt.Sprint("k", random.IntN(10))
		p := int32(len(key)+int(key[1])) % 3
		if random.IntN(20) == 0 { // an atomic request, whole or not at all
			request := fmt.Sprint("r", i)
			n := 2 + random.IntN(3)
			for j := range n {
				h.Entries = append(h.Entries, Entry{At: tick(), Kind: Invoked, Value: fmt.Sprint("v", i, ".", j), Key: key, Request: request})
			}
			there, known := random.IntN(4) > 0, random.IntN(4) > 0
			for j := range n {
				value := fmt.Sprint("v", i, ".", j)
				e := Entry{At: tick(), Kind: Unknown, Value: value}
				if there {
					r := stored(key, value, p)
					if known {
						e.Kind, e.Topic, e.Partition, e.Offset = OK, "t", p, r.Offset
					}
				} else if known {
					e.Kind = Failed
				}
				h.Entries = append(h.Entries, e)
			}
			continue
		}
		value := fmt.Sprint("v", i)
		traces[value] = fmt.Sprintf("%032x", i+1)
		h.Entries = append(h.Entries, Entry{At: tick(), Kind: Invoked, Value: value, Key: key, Connection: "c", Trace: traces[value]})
		if random.IntN(50) == 0 {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Failed, Value: value})
			continue
		}
		r := stored(key, value, p)
		if random.IntN(50) == 0 {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Unknown, Value: value})
		} else {
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: OK, Value: value, Topic: "t", Partition: p, Offset: r.Offset})
		}
	}
	entry := func(kind Kind, r Record, attempt int32) {
		e := Entry{At: tick(), Kind: kind, Value: r.Value, Key: r.Key, Topic: "t", Partition: r.Partition, Offset: r.Offset, Subscription: "s", Attempt: attempt, Instance: "i"}
		if kind == Delivered {
			e.Until, e.Trace = now+time.Minute, traces[r.Value]
		}
		h.Entries = append(h.Entries, e)
	}
	settled := [3][]bool{}
	position := [3]int64{}
	for p := range settled {
		settled[p] = make([]bool, offsets[p])
	}
	for len(names) > 0 {
		i := random.IntN(len(names))
		r := lanes[names[i]][0]
		attempt := int32(1)
		entry(Delivered, r, attempt)
		for random.IntN(10) == 0 { // nacked, or its lease ran out
			attempt++
			if random.IntN(2) == 0 {
				entry(Returned, r, attempt)
			} else {
				now += time.Minute
			}
			entry(Delivered, r, attempt)
		}
		switch random.IntN(20) {
		case 0:
			entry(Rejected, r, attempt)
			h.DeadLetters = append(h.DeadLetters, DeadLetter{Topic: "t", Partition: r.Partition, Offset: r.Offset, At: tick()})
		case 1: // acked, accepted, and forgotten by a crash right after
			entry(Acked, r, attempt)
			entry(Accepted, r, attempt)
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Fault, Value: "kill"})
			entry(Delivered, r, attempt)
			entry(Acked, r, attempt)
			entry(Committed, r, attempt)
		case 2: // acked while Kafka cannot be reached
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Fault, Value: "partition"})
			now += 3 * time.Second
			entry(Acked, r, attempt)
			entry(Accepted, r, attempt)
			now += 3 * time.Second
			h.Entries = append(h.Entries, Entry{At: tick(), Kind: Healed, Value: "partition"})
			entry(Delivered, r, attempt)
			entry(Acked, r, attempt)
			entry(Committed, r, attempt)
		default:
			entry(Acked, r, attempt)
			entry(Committed, r, attempt)
		}
		settled[r.Partition][r.Offset] = true
		for position[r.Partition] < offsets[r.Partition] && settled[r.Partition][position[r.Partition]] {
			position[r.Partition]++
		}
		if random.IntN(10) == 0 {
			r.Offset = position[r.Partition]
			entry(Committal, r, 0)
		}
		if lanes[names[i]] = lanes[names[i]][1:]; len(lanes[names[i]]) == 0 {
			names[i] = names[len(names)-1]
			names = names[:len(names)-1]
		}
	}
	return h
}

func TestHistoriesInWhichAllHeldRaiseNoAlarm(t *testing.T) {
	for seed := range uint64(200) {
		if r := Check(simulate(seed, 300), judging); len(r.Anomalies) > 0 {
			t.Fatalf("seed %d: %v", seed, r.Anomalies)
		}
	}
}

// answered reports whether the publish of record i was answered ok at once.
func answered(h *History, i int) bool {
	ok := false
	for _, e := range h.Entries {
		if e.Value == h.Log[i].Value && e.Subscription == "" {
			ok = e.Kind == OK || ok && e.Kind == Invoked
		}
	}
	return ok
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
	planted := map[string]bool{}
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
				if e.Subscription == "" || e.at() != at || e.Kind == Committal {
					kept = append(kept, e)
				}
			}
			h.Entries = kept
		}},
		{Stuck, func(h *History, _ *rand.Rand) {
			at := h.Log[len(h.Log)-1].at()
			dead := h.DeadLetters[:0]
			for _, d := range h.DeadLetters {
				if (position{d.Topic, d.Partition, d.Offset}) != at {
					dead = append(dead, d)
				}
			}
			h.DeadLetters = dead
			for i := range h.Entries {
				if e := &h.Entries[i]; e.Subscription != "" && e.at() == at && e.Kind != Delivered && e.Kind != Committal {
					e.Kind, e.Subscription = Note, ""
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
		{TornRequest, func(h *History, _ *rand.Rand) {
			for i := range h.Log {
				if strings.HasSuffix(h.Log[i].Value, ".1") {
					h.Log[i].Value = "another"
					return
				}
			}
		}},
		{ConnectionOrder, func(h *History, _ *rand.Rand) {
			a, b := -1, -1
			for i := range h.Log { // two neighbours of a key change places, and the answers say so
				if b = i; a >= 0 && h.Log[a].Partition == h.Log[b].Partition && a != b && !strings.Contains(h.Log[b].Value, ".") && answered(h, a) && answered(h, b) {
					break
				}
				if a < 0 && !strings.Contains(h.Log[i].Value, ".") && answered(h, i) {
					a = i
				}
			}
			for i := range h.Entries {
				switch e := &h.Entries[i]; {
				case e.Kind != OK:
				case e.Value == h.Log[a].Value:
					e.Offset = h.Log[b].Offset
				case e.Value == h.Log[b].Value:
					e.Offset = h.Log[a].Offset
				}
			}
			h.Log[a].Value, h.Log[b].Value = h.Log[b].Value, h.Log[a].Value
		}},
		{LateAnswer, func(h *History, _ *rand.Rand) { h.Entries[find(h, OK, 5)].At += 11 * time.Second }},
		{SkippedOffset, func(h *History, _ *rand.Rand) {
			e := h.Entries[find(h, Delivered, 0)]
			e.Kind, e.Offset = Committal, e.Offset+1
			h.Entries = append(h.Entries, e)
		}},
		{LentTwice, func(h *History, _ *rand.Rand) {
			i := find(h, Delivered, 2)
			e := h.Entries[i]
			e.At++
			h.Entries = append(h.Entries, e)
		}},
		{AttemptsWentBack, func(h *History, _ *rand.Rand) {
			i := find(h, Delivered, 2)
			e := h.Entries[i]
			e.At++
			h.Entries[i].Attempt += 7
			h.Entries = append(h.Entries, e)
		}},
		{MissingTrace, func(h *History, _ *rand.Rand) {
			for i := range h.Entries {
				if e := &h.Entries[i]; e.Kind == Delivered && e.Trace != "" {
					e.Trace = ""
					return
				}
			}
		}},
	} {
		planted[m.kind] = true
		t.Run(m.kind, func(t *testing.T) {
			for seed := range uint64(30) {
				h := simulate(seed, 300)
				m.mutate(&h, rand.New(rand.NewPCG(seed, 2)))
				r := Check(h, judging)
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
	for _, kind := range Anomalies {
		if !planted[kind] {
			t.Errorf("no %q is planted", kind)
		}
	}
}

func TestAHistoryIsTheSameOutOfItsFile(t *testing.T) {
	h := simulate(3, 200)
	h.Subscriptions = map[string][]string{"s": {"t"}}
	var file bytes.Buffer
	if err := h.Write(&file); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&file)
	if err != nil || !reflect.DeepEqual(h, again) {
		t.Errorf("another history came back (%v)", err)
	}
	if _, err := Read(strings.NewReader("{\"entry\": 1}")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestASubscriptionThatSawNothingIsJudgedToo(t *testing.T) {
	h := simulate(4, 50)
	for i := range h.DeadLetters {
		h.DeadLetters[i].Subscription = "s"
	}
	h.Subscriptions = map[string][]string{"s": {"t"}, "forgotten": {"t"}, "elsewhere": {"other"}}
	r := Check(h, judging)
	if len(r.Anomalies) != len(h.Log) || r.Anomalies[0].Kind != LostDelivery {
		t.Errorf("%d anomalies of %d events", len(r.Anomalies), len(h.Log))
	}
}

func TestHowLongRecoveryTookIsMeasured(t *testing.T) {
	h := parse(t, "log 0 k a\n1 fault cut\n100 healed cut\n120 invoked a k\n150 ok a 0\n190 delivered 0\n200 acked 0\n")
	if r := Check(h, judging); r.WorstRecovery != 90*time.Millisecond || r.Faults != 1 || len(r.Anomalies) > 0 {
		t.Errorf("%+v", r)
	}
}

func BenchmarkCheckAMillionEvents(b *testing.B) {
	h := simulate(1, 1_000_000)
	b.ReportMetric(float64(len(h.Entries)), "entries")
	for b.Loop() {
		began := time.Now()
		if r := Check(h, judging); len(r.Anomalies) > 0 {
			b.Fatal(r.Anomalies[0])
		}
		if took := time.Since(began); took > 10*time.Second {
			b.Fatalf("it took %s", took)
		}
	}
}
