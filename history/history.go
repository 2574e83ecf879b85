// Package history records what happened to every event, as its clients saw it,
// and judges whether the promises held: Check finds every lost, repeated,
// reordered, skipped or stuck event, and says which entries show it.
//
// Clients record before they act and after they know: a publish is invoked,
// then ok, failed or unknown; a delivery is recorded when it is received, a
// settlement when it is sent and again when its receipt comes. Whoever breaks
// something says so, from when until when. An observer may add the positions
// it saw committed. At the end an independent client reads the log. The
// judgement is pure and takes the history as it is; it knows nothing of Kafka
// or of the gateway.
//
// Files: history.go what is recorded, check.go the judgement's frame and
// anomalies, writes.go and deliveries.go the two halves of it, file.go
// histories as files.
package history

import (
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
	Rejected  Kind = "rejected"  // a reject was sent: a dead letter is due
	Returned  Kind = "returned"  // nacked, revoked, or its stream ended: it may come again
	Committal Kind = "committal" // a commit of Subscription was seen: everything of the partition below Offset is settled
	Fault     Kind = "fault"     // something was broken on purpose that may make deliveries come again: Value says what
	Healed    Kind = "healed"    // the fault of that Value is over
	Note      Kind = "note"      // something happened that excuses nothing: Value
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
	// Until is when the lease of a delivery ends; 0: not known.
	Until time.Duration `json:"until,omitempty"`
	// Instance delivered, or is cut off by the fault; "" is unknown, or all.
	Instance string `json:"instance,omitempty"`
	// Connection keeps the order of what is published on it; "": only what was
	// answered before the next was sent has an order.
	Connection string `json:"connection,omitempty"`
	// Request joins the events of an atomic request.
	Request string `json:"request,omitempty"`
	// Trace is the trace's id that the event was published with, or came with.
	Trace string `json:"trace,omitempty"`
}

// Record is one event as an independent client read it from the log.
type Record struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key,omitempty"`
	Value     string `json:"value,omitempty"`
}

// DeadLetter is one record of a dead-letter topic: where its event came from.
type DeadLetter struct {
	Subscription string        `json:"subscription,omitempty"` // "": of all
	Topic        string        `json:"topic"`
	Partition    int32         `json:"partition"`
	Offset       int64         `json:"offset"`
	At           time.Duration `json:"at,omitempty"` // when it was written; 0: not known
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
	DeadLetters []DeadLetter
	// Subscriptions lists the topics each reads; one that saw nothing is judged
	// too. One that is not here reads all topics.
	Subscriptions map[string][]string
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

// Since tells a time as entries do.
func (r *Recorder) Since(t time.Time) time.Duration { return t.Sub(r.start) }

// Entries gives what was recorded.
func (r *Recorder) Entries() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}
