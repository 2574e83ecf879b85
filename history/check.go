package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Rules say what the gateways and subscriptions under test promise.
type Rules struct {
	// Ordered: the next event of a key is delivered only after the one before it was settled.
	Ordered bool
	// Allowance is how long before a fault an ack may have been accepted and
	// still be forgotten by it: the commit interval and the time of a commit.
	Allowance time.Duration
	// Deduplicated: a publish whose outcome was unknown is stored once all the same.
	Deduplicated bool
	// Traced: a delivery carries the trace that its publish had.
	Traced bool
	// Wait is how long a publisher is kept waiting at most; 0: not judged.
	Wait time.Duration
}

// Anomaly is a broken promise.
type Anomaly struct {
	Kind string `json:"kind"` // one of the names below
	What string `json:"what"` // the facts, for people
}

// The anomalies.
const (
	LostWrite         = "lost write"          // answered ok and not in the log
	AbortedRead       = "aborted read"        // answered failed and in the log
	WrongPosition     = "wrong position"      // the answer's position holds something else
	DuplicateWrite    = "duplicate write"     // in the log twice without an unknown outcome
	TornRequest       = "torn request"        // an atomic request is in the log in part
	ConnectionOrder   = "connection order"    // a key's publishes, one after the other, lie in another order
	LateAnswer        = "late answer"         // a publisher was kept waiting beyond its deadline
	Phantom           = "phantom"             // delivered and not in the log at that place
	LostDelivery      = "lost delivery"       // in the log and never delivered
	SkippedOffset     = "skipped offset"      // a committed position went past an event that was not settled
	Stuck             = "stuck"               // delivered and never settled
	CommittedAgain    = "committed again"     // delivered again after its ack was committed
	DuplicateDelivery = "duplicate delivery"  // delivered again after its ack was accepted, and no fault explains it
	LentTwice         = "lent twice"          // delivered again while its lease was still running
	KeyOrder          = "key order"           // delivered before its predecessor of the key was settled
	MissingDeadLetter = "missing dead letter" // rejected and neither in the dead letters nor delivered again
	AttemptsWentBack  = "attempts went back"  // an attempt's number below an earlier one's without a fault
	MissingTrace      = "missing trace"       // delivered without the trace that it was published with
)

// Anomalies are the names of all that Check finds.
var Anomalies = []string{
	LostWrite, AbortedRead, WrongPosition, DuplicateWrite, TornRequest, ConnectionOrder, LateAnswer, Phantom, LostDelivery, SkippedOffset, Stuck,
	CommittedAgain, DuplicateDelivery, LentTwice, KeyOrder, MissingDeadLetter, AttemptsWentBack, MissingTrace,
}

// Report is the judgement.
type Report struct {
	Anomalies                                     []Anomaly
	Published, Unknowns, Stored                   int
	Deliveries, Settled, Redelivered, DeadLetters int
	Faults                                        int
	// WorstForgotten is how long before a fault the oldest forgotten ack was accepted.
	WorstForgotten time.Duration
	// WorstRecovery is the longest time from a fault's end to the next publish that
	// is answered ok or the next delivery, whichever is later, of faults that were
	// followed by both.
	WorstRecovery time.Duration
}

// window is a fault, or several that overlap, from begin to end.
type window struct {
	begin, end time.Duration
	instance   string
}

// Check judges h.
func Check(h History, rules Rules) Report {
	c := &checker{h: h, rules: rules}
	if !slices.IsSortedFunc(c.h.Entries, byTime) {
		c.h.Entries = slices.Clone(c.h.Entries)
		slices.SortStableFunc(c.h.Entries, byTime)
	}
	c.index()
	c.collectFaults()
	c.writes()
	c.deliveries()
	c.recovery()
	slices.SortFunc(c.report.Anomalies, func(a, b Anomaly) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.What, b.What)) })
	return c.report
}

func byTime(a, b Entry) int { return cmp.Compare(a.At, b.At) }

type checker struct {
	h       History
	rules   Rules
	log     []Record                     // sorted by position
	parts   map[string]map[int32]*extent // where a partition lies in log
	copies  map[string]int32             // the first record of a value, and its index in log
	again   map[string][]int32           // the others, if any
	faults  []window                     // by begin
	lasting []time.Duration              // the latest end of each fault and those before it
	apart   []window                     // the faults that hold one instance apart
	report  Report
}

// extent is where a partition lies in the log.
type extent struct {
	lo, hi int32 // in checker.log
	first  int64 // offset of lo
}

func (c *checker) found(kind, format string, args ...any) {
	c.report.Anomalies = append(c.report.Anomalies, Anomaly{kind, fmt.Sprintf(format, args...)})
}

// index makes records findable by position and by value.
func (c *checker) index() {
	byPosition := func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	}
	c.log = c.h.Log
	if !slices.IsSortedFunc(c.log, byPosition) {
		c.log = slices.Clone(c.log)
		slices.SortFunc(c.log, byPosition)
	}
	c.report.Stored = len(c.log)
	c.parts, c.copies, c.again = map[string]map[int32]*extent{}, make(map[string]int32, len(c.log)), map[string][]int32{}
	var at *extent
	for i := range c.log {
		r := &c.log[i]
		if at == nil || r.Partition != c.log[at.lo].Partition || r.Topic != c.log[at.lo].Topic {
			at = &extent{lo: int32(i), first: r.Offset}
			if c.parts[r.Topic] == nil {
				c.parts[r.Topic] = map[int32]*extent{}
			}
			c.parts[r.Topic][r.Partition] = at
		}
		at.hi = int32(i) + 1
		if _, twice := c.copies[r.Value]; twice {
			c.again[r.Value] = append(c.again[r.Value], int32(i))
		} else {
			c.copies[r.Value] = int32(i)
		}
	}
}

// lookup finds what is at a position: its index in the log, or -1.
func (c *checker) lookup(topic string, partition int32, offset int64) int32 {
	at := c.parts[topic][partition]
	if at == nil || offset < at.first {
		return -1
	}
	if i := int64(at.lo) + offset - at.first; i < int64(at.hi) && c.log[i].Offset == offset {
		return int32(i) // no gaps before it
	}
	i, ok := slices.BinarySearchFunc(c.log[at.lo:at.hi], offset, func(r Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
	if !ok {
		return -1
	}
	return at.lo + int32(i)
}

func (c *checker) valueAt(i int32) string {
	if i < 0 {
		return "nothing"
	}
	return c.log[i].Value
}

// collectFaults pairs faults with their ends; one without an end is a moment.
func (c *checker) collectFaults() {
	open := map[string]int{}
	for i := range c.h.Entries {
		switch e := &c.h.Entries[i]; e.Kind {
		case Fault:
			open[e.Value] = len(c.faults)
			c.faults = append(c.faults, window{e.At, e.At, e.Instance})
		case Healed:
			if n, ok := open[e.Value]; ok {
				c.faults[n].end = e.At
				delete(open, e.Value)
			}
		}
	}
	c.report.Faults = len(c.faults)
	latest := time.Duration(0)
	for _, w := range c.faults {
		latest = max(latest, w.end)
		c.lasting = append(c.lasting, latest)
		if w.instance != "" {
			c.apart = append(c.apart, w)
		}
	}
}

// disturbed reports whether any fault touches [from, to].
func (c *checker) disturbed(from, to time.Duration) bool {
	n := c.begunBy(to)
	return n > 0 && c.lasting[n-1] >= from
}

// begunBy is how many faults had begun.
func (c *checker) begunBy(at time.Duration) int {
	n, _ := slices.BinarySearchFunc(c.faults, at+1, func(w window, at time.Duration) int { return cmp.Compare(w.begin, at) })
	return n
}

// recovery measures how long it took after each fault until all went on.
func (c *checker) recovery() {
	var answers, deliveries []time.Duration
	for i := range c.h.Entries {
		switch e := &c.h.Entries[i]; e.Kind {
		case OK:
			answers = append(answers, e.At)
		case Delivered:
			deliveries = append(deliveries, e.At)
		}
	}
	for _, w := range c.faults {
		i, _ := slices.BinarySearch(answers, w.end)
		j, _ := slices.BinarySearch(deliveries, w.end)
		if i < len(answers) && j < len(deliveries) {
			c.report.WorstRecovery = max(c.report.WorstRecovery, answers[i]-w.end, deliveries[j]-w.end)
		}
	}
}
