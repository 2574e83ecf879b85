// Package history records what happened to every event, as its clients saw it,
// and judges whether the promises held: Check finds every lost, repeated,
// reordered or stuck event, and says which entries show it.
//
// Clients record before they act and after they know: a publish is invoked,
// then ok, failed or unknown; a delivery is recorded when it is received, a
// settlement when it is sent and again when its receipt comes. At the end an
// independent client reads the log. The judgement is pure and takes the
// history as it is; it knows nothing of Kafka or of the gateway.
package history

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Kind of an entry.
type Kind string

// The kinds.
const (
	Invoked   Kind = "invoked"   // a publish was sent: Value, Key
	OK        Kind = "ok"        // ... and answered: Value, position
	Failed    Kind = "failed"    // ... refused, surely not stored: Value
	Unknown   Kind = "unknown"   // ... or nobody knows: Value
	Delivered Kind = "delivered" // Subscription, position, Value, Key, Attempt
	Acked     Kind = "acked"     // an ack was sent: Subscription, position
	Accepted  Kind = "accepted"  // its receipt said accepted
	Committed Kind = "committed" // its receipt said committed
	Rejected  Kind = "rejected"  // a reject was sent, or the last attempt failed: a dead letter is due
	Fault     Kind = "fault"     // something was broken on purpose: Value says what
)

// Entry is one thing a client saw. At grows along one process.
type Entry struct {
	At           time.Duration `json:"at"`
	Kind         Kind          `json:"kind"`
	Value        string        `json:"value,omitempty"` // unique to a publish
	Key          string        `json:"key,omitempty"`
	Topic        string        `json:"topic,omitempty"`
	Partition    int32         `json:"partition,omitempty"`
	Offset       int64         `json:"offset,omitempty"`
	Subscription string        `json:"subscription,omitempty"`
	Attempt      int32         `json:"attempt,omitempty"`
}

// Record is one event as an independent client read it from the log.
type Record struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
	Value     string `json:"value"`
}

type position struct {
	topic     string
	partition int32
	offset    int64
}

func (p position) String() string { return fmt.Sprintf("%s[%d]@%d", p.topic, p.partition, p.offset) }

func (e *Entry) at() position  { return position{e.Topic, e.Partition, e.Offset} }
func (r *Record) at() position { return position{r.Topic, r.Partition, r.Offset} }

// History is everything that was seen.
type History struct {
	Entries     []Entry
	Log         []Record // the topics' contents at the end
	DeadLetters []Record // by value; positions are their origin's
}

// Recorder collects entries. It is safe for concurrent use.
type Recorder struct {
	start   time.Time
	mu      sync.Mutex
	entries []Entry
}

// NewRecorder begins a history.
func NewRecorder() *Recorder { return &Recorder{start: time.Now()} }

// Record adds an entry; its time is now.
func (r *Recorder) Record(e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.At = time.Since(r.start)
	r.entries = append(r.entries, e)
}

// Entries gives what was recorded.
func (r *Recorder) Entries() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

// Rules say what the subscriptions under test promise.
type Rules struct {
	// Ordered: the next event of a key is delivered only after the one before it was settled.
	Ordered bool
	// Allowance is how long before a fault an ack may have been accepted and
	// still be forgotten by it: the commit interval and the time of a commit.
	Allowance time.Duration
	// Deduplicated: a publish whose outcome was unknown is stored once all the same.
	Deduplicated bool
}

// Anomaly is a broken promise.
type Anomaly struct {
	Kind string // one of the names below
	What string // the facts, for people
}

// The anomalies.
const (
	LostWrite         = "lost write"          // answered ok and not in the log
	AbortedRead       = "aborted read"        // answered failed and in the log
	WrongPosition     = "wrong position"      // the answer's position holds something else
	DuplicateWrite    = "duplicate write"     // in the log twice without an unknown outcome
	Phantom           = "phantom"             // delivered and not in the log at that place
	LostDelivery      = "lost delivery"       // in the log and never delivered
	Stuck             = "stuck"               // delivered and never settled
	CommittedAgain    = "committed again"     // delivered again after its ack was committed
	DuplicateDelivery = "duplicate delivery"  // delivered again after its ack was accepted, and no fault explains it
	KeyOrder          = "key order"           // delivered before its predecessor of the key was settled
	ConnectionOrder   = "connection order"    // a key's publishes, each sent after the last was answered, lie in another order
	MissingDeadLetter = "missing dead letter" // rejected and neither in the dead letters nor delivered again
	AttemptsWentBack  = "attempts went back"  // an attempt's number below an earlier one's without a fault
)

// Report is the judgement.
type Report struct {
	Anomalies                                     []Anomaly
	Published, Unknowns, Stored                   int
	Deliveries, Settled, Redelivered, DeadLetters int
	// WorstForgotten is how long before a fault the oldest forgotten ack was accepted.
	WorstForgotten time.Duration
}

// Check judges h.
func Check(h History, rules Rules) Report {
	c := &checker{h: h, rules: rules, log: map[position]*Record{}, copies: map[string][]*Record{}}
	slices.SortStableFunc(c.h.Entries, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	for i := range h.Log {
		r := &h.Log[i]
		c.log[r.at()] = r
		c.copies[r.Value] = append(c.copies[r.Value], r)
	}
	c.report.Stored = len(h.Log)
	for _, e := range c.h.Entries {
		if e.Kind == Fault {
			c.faults = append(c.faults, e.At)
		}
	}
	c.writes()
	c.deliveries()
	return c.report
}

type checker struct {
	h      History
	rules  Rules
	log    map[position]*Record
	copies map[string][]*Record
	faults []time.Duration
	report Report
}

func (c *checker) found(kind, format string, args ...any) {
	c.report.Anomalies = append(c.report.Anomalies, Anomaly{kind, fmt.Sprintf(format, args...)})
}

// faultBetween gives the first fault in (from, to].
func (c *checker) faultBetween(from, to time.Duration) (time.Duration, bool) {
	i, _ := slices.BinarySearch(c.faults, from)
	for ; i < len(c.faults) && c.faults[i] <= to; i++ {
		if c.faults[i] >= from {
			return c.faults[i], true
		}
	}
	return 0, false
}

// writes judges publishes against the log.
func (c *checker) writes() {
	type outcome struct {
		invoked Entry
		last    Entry
		unknown bool
	}
	publishes := map[string]*outcome{}
	var order []string
	for _, e := range c.h.Entries {
		switch e.Kind {
		case Invoked:
			if p := publishes[e.Value]; p == nil { // a retry is invoked again
				publishes[e.Value] = &outcome{invoked: e}
				order = append(order, e.Value)
			}
		case OK, Failed, Unknown:
			if p := publishes[e.Value]; p != nil {
				p.last = e
				p.unknown = p.unknown || e.Kind == Unknown
			}
		}
	}
	lastOf := map[string]*Entry{} // key+topic+partition -> the last publish answered before the next was sent
	for _, value := range order {
		p := publishes[value]
		copies := c.copies[value]
		c.report.Published++
		if p.unknown || p.last.Kind == "" {
			c.report.Unknowns++
		}
		switch {
		case p.last.Kind == OK && len(copies) == 0:
			c.found(LostWrite, "%s was answered %s and is not in the log", value, p.last.at())
		case p.last.Kind == OK && (c.log[p.last.at()] == nil || c.log[p.last.at()].Value != value):
			c.found(WrongPosition, "%s was answered %s, which holds %s", value, p.last.at(), valueAt(c.log[p.last.at()]))
		case p.last.Kind == Failed && !p.unknown && len(copies) > 0:
			c.found(AbortedRead, "%s was answered failed and is at %s", value, copies[0].at())
		}
		if len(copies) > 1 && (!p.unknown && p.last.Kind != "" || c.rules.Deduplicated) {
			c.found(DuplicateWrite, "%s is at %s and at %s", value, copies[0].at(), copies[1].at())
		}
		if p.last.Kind == OK && len(copies) == 1 {
			k := p.invoked.Key + "\x00" + p.last.Topic
			if before := lastOf[k]; before != nil && before.Partition == p.last.Partition && before.At < p.invoked.At && before.Offset > p.last.Offset {
				c.found(ConnectionOrder, "%s was sent after %s was answered, and lies before it: %s, %s", value, before.Value, p.last.at(), before.at())
			}
			last := p.last
			lastOf[k] = &last
		}
	}
}

func valueAt(r *Record) string {
	if r == nil {
		return "nothing"
	}
	return r.Value
}

// life is what one subscription saw of one event.
type life struct {
	deliveries int
	lastSeen   time.Duration
	attempt    int32
	settled    time.Duration // when an ack or reject was first sent; 0: never
	accepted   time.Duration // of the latest ack's receipt; 0: none
	committed  time.Duration
	rejected   bool
}

type subject struct {
	subscription string
	at           position
}

// deliveries judges what each subscription saw.
func (c *checker) deliveries() {
	lives := map[subject]*life{}
	subscriptions := map[string]bool{}
	predecessor := c.predecessors()
	dead := map[position]bool{}
	for i := range c.h.DeadLetters {
		dead[c.h.DeadLetters[i].at()] = true
	}
	c.report.DeadLetters = len(dead)
	for _, e := range c.h.Entries {
		s := subject{e.Subscription, e.at()}
		l := lives[s]
		if l == nil && e.Subscription != "" {
			l = &life{}
			lives[s] = l
			subscriptions[e.Subscription] = true
		}
		switch e.Kind {
		case Delivered:
			c.delivered(e, l, lives, predecessor)
		case Acked, Rejected:
			if l.settled == 0 {
				l.settled = max(e.At, 1)
			}
			l.rejected = l.rejected || e.Kind == Rejected
		case Accepted:
			l.accepted = max(e.At, 1)
		case Committed:
			l.accepted, l.committed = max(e.At, 1), max(e.At, 1)
		}
	}
	for name := range subscriptions {
		for i := range c.h.Log {
			r := &c.h.Log[i]
			l := lives[subject{name, r.at()}]
			switch {
			case l == nil || l.deliveries == 0 && !dead[r.at()]:
				c.found(LostDelivery, "%s (%s) was never delivered to %s", r.at(), r.Value, name)
			case l.settled == 0 && !dead[r.at()]:
				c.found(Stuck, "%s (%s) was delivered to %s %d times and never settled", r.at(), r.Value, name, l.deliveries)
			case l.rejected && l.accepted == 0 && !dead[r.at()]:
				c.found(MissingDeadLetter, "%s (%s) was rejected by %s and is not in the dead letters", r.at(), r.Value, name)
			default:
				c.report.Settled++
			}
		}
	}
	slices.SortFunc(c.report.Anomalies, func(a, b Anomaly) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.What, b.What)) })
}

// predecessors gives each event of a key the one before it in its partition.
func (c *checker) predecessors() map[position]position {
	if !c.rules.Ordered {
		return nil
	}
	sorted := slices.Clone(c.h.Log)
	slices.SortFunc(sorted, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	last := map[string]position{}
	before := map[position]position{}
	for i := range sorted {
		r := &sorted[i]
		lane := fmt.Sprintf("%s\x00%d\x00%s", r.Topic, r.Partition, r.Key)
		if p, ok := last[lane]; ok && r.Key != "" {
			before[r.at()] = p
		}
		last[lane] = r.at()
	}
	return before
}

func (c *checker) delivered(e Entry, l *life, lives map[subject]*life, predecessor map[position]position) {
	c.report.Deliveries++
	if r := c.log[e.at()]; r == nil || r.Value != e.Value {
		c.found(Phantom, "%s was delivered as %s, where the log holds %s", e.Value, e.at(), valueAt(r))
	}
	if p, ok := predecessor[e.at()]; ok {
		if before := lives[subject{e.Subscription, p}]; before == nil || before.settled == 0 {
			c.found(KeyOrder, "%s (%s) was delivered to %s before %s of its key was settled", e.at(), e.Value, e.Subscription, p)
		}
	}
	if l.deliveries > 0 {
		c.report.Redelivered++
		c.again(e, l)
	}
	l.deliveries++
	l.lastSeen, l.attempt = e.At, e.Attempt
}

// again judges a delivery that is not the first.
func (c *checker) again(e Entry, l *life) {
	switch {
	case l.committed > 0:
		c.found(CommittedAgain, "%s (%s) was delivered to %s again, attempt %d, %s after its ack was committed", e.at(), e.Value, e.Subscription, e.Attempt, e.At-l.committed)
	case l.accepted > 0:
		fault, ok := c.faultBetween(l.accepted, e.At)
		switch {
		case !ok:
			c.found(DuplicateDelivery, "%s (%s) was delivered to %s again after its ack was accepted, without a fault", e.at(), e.Value, e.Subscription)
		case fault-l.accepted > c.rules.Allowance:
			c.found(DuplicateDelivery, "%s (%s) was delivered to %s again: its ack was accepted %s before the fault, %s are allowed",
				e.at(), e.Value, e.Subscription, fault-l.accepted, c.rules.Allowance)
		}
		c.report.WorstForgotten = max(c.report.WorstForgotten, fault-l.accepted)
		l.accepted = 0 // the next ack counts anew
	}
	if _, ok := c.faultBetween(l.lastSeen, e.At); !ok && e.Attempt < l.attempt {
		c.found(AttemptsWentBack, "%s (%s) came to %s as attempt %d after attempt %d", e.at(), e.Value, e.Subscription, e.Attempt, l.attempt)
	}
}
