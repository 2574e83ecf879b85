package publish

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// window remembers which dedupe keys were published, so that a publish that is
// sent again joins the first or is told its position.
//
// It is this gateway's memory: bounded in age and bytes, lost with the process,
// and not shared with other instances. A key is forgotten when its event was not
// stored, so that the next try is a first one; and also when Kafka's answer was
// lost for good (the record's life is over), so that a try after that may store it twice.
type window struct {
	age   time.Duration
	bytes int
	wake  func(n int) // told how many were forgotten for want of room

	mu      sync.Mutex
	entries map[digest]*entry
	first   *entry // the oldest of those that are answered
	last    *entry
	waiting int // entries without an answer yet
	joiners int // events that wait for a first one
}

// digest stands for a key, or for an event's content: 128 bits of SHA-256, so
// that nobody can make two that meet.
type digest [16]byte

type entry struct {
	key, content digest
	answered     bool
	at           event.Position
	until        time.Time
	next         *entry
	joined       []joiner
}

// joiner is an event that waits for the first one under its key.
type joiner struct {
	request waiter
	index   int
}

// waiter takes the answers of its events; Pending is one.
type waiter interface{ answer(i int, r Receipt) }

// entryBytes is what one remembered key costs, the map's share included, and what one that joins costs.
const entryBytes = 256

func newWindow(age time.Duration, bytes int, forgotten func(int)) *window {
	return &window{age: age, bytes: bytes, wake: forgotten, entries: map[digest]*entry{}}
}

// claim is what claim found.
type claim uint8

const (
	isFirst  claim = iota // publish it, then tell settle
	isJoined              // the first is under way: the answer comes to the function given
	isKnown               // stored before: the receipt says where
	isOther               // another event had the key
	isFull                // no room to remember another
)

// claim says what an event under key is. who is kept only when it joined.
func (w *window) claim(key, content digest, now time.Time, who joiner) (claim, Receipt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire(now)
	if e := w.entries[key]; e != nil {
		switch {
		case e.content != content:
			return isOther, Receipt{}
		case e.answered:
			return isKnown, Receipt{Position: e.at, Duplicate: true}
		}
		if !w.makeRoom() {
			return isFull, Receipt{}
		}
		e.joined = append(e.joined, who)
		w.joiners++
		return isJoined, Receipt{}
	}
	if !w.makeRoom() {
		return isFull, Receipt{}
	}
	w.entries[key] = &entry{key: key, content: content}
	w.waiting++
	return isFirst, Receipt{}
}

// makeRoom forgets the oldest until one more fits, and reports whether it does.
func (w *window) makeRoom() bool {
	forgotten := 0
	full := func() bool { return (len(w.entries)+w.joiners+1)*entryBytes > w.bytes }
	for full() && w.first != nil {
		w.drop()
		forgotten++
	}
	if forgotten > 0 {
		w.wake(forgotten)
	}
	return !full()
}

// peek says what an event under key would be, and changes nothing.
func (w *window) peek(key, content digest, now time.Time) claim {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire(now)
	switch e := w.entries[key]; {
	case e == nil:
		return isFirst
	case e.content != content:
		return isOther
	}
	return isKnown
}

// leave ends the wait of one that joined.
func (w *window) leave(key digest, who joiner) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.entries[key]; e != nil {
		before := len(e.joined)
		e.joined = slices.DeleteFunc(e.joined, func(j joiner) bool { return j == who })
		w.joiners -= before - len(e.joined)
	}
}

// settle takes the answer of the first, and gives it to those that joined.
func (w *window) settle(key digest, r Receipt, now time.Time) {
	w.mu.Lock()
	e := w.entries[key]
	joined := e.joined
	e.joined = nil
	w.joiners -= len(joined)
	w.waiting--
	if r.Err != nil {
		delete(w.entries, key)
	} else {
		e.answered, e.at, e.until = true, r.Position, now.Add(w.age)
		if w.last == nil {
			w.first = e
		} else {
			w.last.next = e
		}
		w.last = e
	}
	w.mu.Unlock()
	for _, j := range joined {
		j.request.answer(j.index, Receipt{Position: r.Position, Err: r.Err, Duplicate: r.Err == nil})
	}
}

func (w *window) expire(now time.Time) {
	for w.first != nil && now.After(w.first.until) {
		w.drop()
	}
}

// drop forgets the oldest.
func (w *window) drop() {
	e := w.first
	delete(w.entries, e.key)
	w.first = e.next
	if w.first == nil {
		w.last = nil
	}
}

// size is how many keys are remembered and their bytes.
func (w *window) size() (entries, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries), (len(w.entries) + w.joiners) * entryBytes
}

// keyDigest names an event: by caller, topic and key, or source and id for a key.
func keyDigest(who, topic string, key ...string) digest {
	h := sha256.New()
	put(h, []byte(who))
	put(h, []byte(topic))
	for _, part := range key {
		put(h, []byte(part))
	}
	return digest(h.Sum(nil)[:16])
}

// contentDigest stands for what a record says, and how surely it is to be stored:
// who asks for more than the first did must not be told that it has it. Trace
// headers are left out: a retry has its own trace.
func contentDigest(r *event.Record, durability broker.Durability) digest {
	h := sha256.New()
	put(h, r.Key)
	put(h, r.Value)
	for _, x := range r.Headers {
		if x.Name == event.HeaderTraceParent || x.Name == event.HeaderTraceState {
			continue
		}
		put(h, []byte(x.Name))
		put(h, x.Value)
	}
	var fixed [14]byte
	fixed[13] = byte(durability)
	binary.BigEndian.PutUint32(fixed[:], uint32(r.Partition))
	if !r.Timestamp.IsZero() {
		binary.BigEndian.PutUint64(fixed[4:], uint64(r.Timestamp.UnixMilli()))
		fixed[12] = 1
	}
	put(h, fixed[:])
	return digest(h.Sum(nil)[:16])
}

// put writes b so that no other sequence of parts gives the same bytes.
func put(h hash.Hash, b []byte) {
	var length [9]byte
	if b != nil {
		length[8] = 1
	}
	binary.BigEndian.PutUint64(length[:], uint64(len(b)))
	_, _ = h.Write(length[:]) // never fails
	_, _ = h.Write(b)
}

func reused(topic string) error {
	return fault.New(fault.DedupeKeyReused, "another event was published to %s under this dedupe key: use a key of its own for each event", topic).
		Field("dedupe_key", "it names another event").With("topic", topic)
}

func windowFull(bytes int) error {
	return fault.New(fault.BufferFull, "the dedupe window (publish.dedupe_bytes, %d) is full of events that Kafka has not answered: retry after 1s", bytes).After(time.Second)
}
