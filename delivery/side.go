package delivery

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// Events that must wait long, or that hold everybody else up, leave their
// partition for a side topic of the subscription's own, so that the position
// moves on and memory is free: to a delay tier when the events behind need not
// wait for them, to the park when they must (a blocked key's events, in order).
//
// A side topic belongs to one source topic and has its partition count. What
// comes from source partition p stands in side partition p and is read by
// whoever owns p, by rule and not by assignment; its position is committed
// beside p's, in the same request. So nothing has to be discovered, and a
// rebalance moves a partition with all that it has put aside.
//
// Writing comes first: an event counts as settled in its partition only when
// Kafka has the copy.
//
// Each owner of p begins by writing a fence into p's side partitions. Records
// behind it that bear another owner's name were written by one who did not know
// yet that it had lost p; its successor has those events from the source, and
// the records are void. The redrive topics have no fences: no owner writes there.

// A side is one kind of side topic.
type side uint8

const (
	noSide side = iota
	sidePark
	sideRedrive // what jobs redrive and replay (redrive.go)
	sideTier    // the shortest delay tier; longer ones follow
)

// tiers are the delays of the tier topics. An event waits in the longest that
// is not longer than what is left of its wait, and what remains after it in
// shorter ones: records of one tier come due in the order they stand in.
var tiers = [...]struct {
	name  string
	delay time.Duration
}{
	{"1m", time.Minute},
	{"10m", 10 * time.Minute},
	{"1h", time.Hour},
	{"6h", 6 * time.Hour},
}

// sides lists every kind of side topic.
var sides = []side{sidePark, sideRedrive, sideTier, sideTier + 1, sideTier + 2, sideTier + 3}

// tierFor is the tier for a wait; the shortest for waits below it.
func tierFor(wait time.Duration) side {
	for i := len(tiers) - 1; i > 0; i-- {
		if tiers[i].delay <= wait {
			return sideTier + side(i)
		}
	}
	return sideTier
}

func (s side) delay() time.Duration {
	if s < sideTier {
		return 0
	}
	return tiers[s-sideTier].delay
}

func (s side) String() string {
	switch s {
	case noSide:
		return "source"
	case sidePark:
		return "park"
	case sideRedrive:
		return "redrive"
	}
	return tiers[s-sideTier].name
}

// maxTopicName is Kafka's limit.
const maxTopicName = 249

// topic names the side topic of a subscription and one of its source topics:
// PREFIXpark.SUBSCRIPTION.TOPIC, PREFIXredrive.SUBSCRIPTION.TOPIC and
// PREFIXretry.SUBSCRIPTION.TOPIC.TIER.
func (s side) topic(prefix, subscription, source string) string {
	if s < sideTier {
		return topicName(prefix + s.String() + "." + subscription + "." + source)
	}
	return topicName(prefix + "retry." + subscription + "." + source + "." + s.String())
}

// againTopic is what the share group of a subscription of order QUEUE reads beside
// its topics (again.go), delayTopic where its events wait, and delayGroup the
// consumer group that reads those: PREFIXagain.SUBSCRIPTION,
// PREFIXdelay.SUBSCRIPTION.TIER and PREFIXdelay.SUBSCRIPTION.
func againTopic(prefix, subscription string) string {
	return topicName(prefix + "again." + subscription)
}

func delayTopic(prefix, subscription string, s side) string {
	return topicName(prefix + "delay." + subscription + "." + s.String())
}

func delayGroup(prefix, subscription string) string {
	return topicName(prefix + "delay." + subscription)
}

// topicName is name, or, when Kafka does not take one so long, its beginning and
// a hash of it.
func topicName(name string) string {
	if len(name) <= maxTopicName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:maxTopicName-12] + "-" + base64.RawURLEncoding.EncodeToString(sum[:])[:11]
}

// arrival is what a record from a side topic says of the event's past.
type arrival struct {
	attempts  int       // lent so often before it was moved
	due       time.Time // not to be lent before; zero: at once
	first     time.Time // of its first attempt; zero: never lent
	failure   string    // of its last attempt
	from      string    // the tier, and the offset there, that it was copied from, or a job's dead letter; "": its source
	owner     ownerID   // which assignment moved it
	timestamp time.Time // when it was moved
	fence     bool      // it is no event
	job       string    // that wrote it, whoever owned the partition; "": an owner
}

// ownerID names one assignment of a partition to an instance; 0 is nobody.
type ownerID uint64

const (
	moveVersion    = "1"
	maxMoveFailure = 1 << 10
)

// moved writes r for a side topic's partition.
func moved(topic string, partition int32, r *event.Record, a arrival) *event.Record {
	m := *r
	m.Topic, m.Partition, m.Offset, m.Timestamp = topic, partition, -1, a.timestamp
	m.Headers = make([]event.Header, len(r.Headers), len(r.Headers)+12)
	copy(m.Headers, r.Headers)
	put := func(name, value string) {
		m.Headers = append(m.Headers, event.Header{Name: name, Value: []byte(value)})
	}
	put(event.MoveVersion, moveVersion)
	put(event.MoveTopic, r.Topic)
	put(event.MovePartition, strconv.Itoa(int(r.Partition)))
	put(event.MoveOffset, strconv.FormatInt(r.Offset, 10))
	put(event.MoveTimestamp, strconv.FormatInt(r.Timestamp.UnixMilli(), 10))
	put(event.MoveOwner, strconv.FormatUint(uint64(a.owner), 16))
	if a.from != "" {
		put(event.MoveFrom, a.from)
	}
	if a.job != "" {
		put(event.MoveJob, a.job)
	}
	put(event.MoveAttempts, strconv.Itoa(a.attempts))
	if !a.due.IsZero() {
		put(event.MoveDue, strconv.FormatInt(a.due.Add(time.Millisecond-1).UnixMilli(), 10)) // never early
	}
	if !a.first.IsZero() {
		put(event.MoveFirstAttempt, strconv.FormatInt(a.first.UnixMilli(), 10))
	}
	if a.failure != "" {
		put(event.MoveFailure, excerpt(a.failure, maxMoveFailure))
	}
	return &m
}

// fence is the record with which owner begins in a side partition.
func fence(at broker.TopicPartition, owner ownerID, now time.Time) *event.Record {
	return &event.Record{Topic: at.Topic, Partition: at.Partition, Offset: -1, Timestamp: now, Headers: []event.Header{
		{Name: event.MoveVersion, Value: []byte(moveVersion)},
		{Name: event.MoveFence, Value: []byte("1")},
		{Name: event.MoveOwner, Value: strconv.AppendUint(nil, uint64(owner), 16)},
	}}
}

// fences tell whose records count in a side partition.
type fences []struct {
	at    int64 // the fence's offset
	owner ownerID
}

// raise notes a fence.
func (f *fences) raise(at int64, owner ownerID) {
	*f = append(*f, struct {
		at    int64
		owner ownerID
	}{at, owner})
}

// void reports whether a record behind all fences so far, written by owner, does not count.
func (f fences) void(owner ownerID) bool { return len(f) > 0 && f[len(f)-1].owner != owner }

// before tells the last fence below position, and forgets those before it.
func (f *fences) before(position int64) ownerID {
	for len(*f) > 1 && (*f)[1].at < position {
		*f = (*f)[1:]
	}
	if len(*f) > 0 && (*f)[0].at < position {
		return (*f)[0].owner
	}
	return 0
}

// copyID names a copy of an event, however often it was written.
type copyID struct {
	from   string // as in arrival
	offset int64  // in the source
}

// errNotMoved says that a record in a side topic is none of ours.
var errNotMoved = errors.New("not written by a subscription")

// unmoved gives the event as it was before moved, and its past. A set of a
// newer version is errNewer.
func unmoved(m *event.Record) (*event.Record, arrival, error) {
	begin := -1
	for i := len(m.Headers) - 1; i >= 0; i-- {
		if m.Headers[i].Name == event.MoveVersion {
			begin = i
			break
		}
	}
	if begin < 0 {
		return nil, arrival{}, errNotMoved
	}
	if v := string(m.Headers[begin].Value); v != moveVersion {
		if n, err := strconv.Atoi(v); err == nil && n > 1 {
			return nil, arrival{}, errNewer
		}
		return nil, arrival{}, errNotMoved
	}
	r := *m
	r.Headers = m.Headers[:begin:begin]
	if begin == 0 {
		r.Headers = nil
	}
	a := arrival{timestamp: m.Timestamp}
	var bad error
	number := func(h event.Header, bits int) int64 {
		n, err := strconv.ParseInt(string(h.Value), 10, bits)
		if err != nil || n < 0 && h.Name != event.MoveTimestamp && h.Name != event.MoveDue {
			bad = fmt.Errorf("%w: its %s is %q", errNotMoved, h.Name, h.Value)
		}
		return n
	}
	r.Topic, r.Partition, r.Offset = "", -1, -1
	for _, h := range m.Headers[begin+1:] {
		switch h.Name {
		case event.MoveTopic:
			r.Topic = string(h.Value)
		case event.MovePartition:
			r.Partition = int32(number(h, 32))
		case event.MoveOffset:
			r.Offset = number(h, 64)
		case event.MoveTimestamp:
			r.Timestamp = time.UnixMilli(number(h, 64))
		case event.MoveOwner:
			id, err := strconv.ParseUint(string(h.Value), 16, 64)
			if err != nil {
				bad = fmt.Errorf("%w: its %s is %q", errNotMoved, h.Name, h.Value)
			}
			a.owner = ownerID(id)
		case event.MoveFrom:
			a.from = string(h.Value)
		case event.MoveFence:
			a.fence = true
		case event.MoveJob:
			a.job = string(h.Value)
		case event.MoveAttempts:
			a.attempts = int(number(h, 15))
		case event.MoveDue:
			a.due = time.UnixMilli(number(h, 64))
		case event.MoveFirstAttempt:
			a.first = time.UnixMilli(number(h, 64))
		case event.MoveFailure:
			a.failure = string(h.Value)
		}
	}
	if bad == nil && !a.fence && (r.Topic == "" || r.Partition < 0 || r.Offset < 0) {
		bad = fmt.Errorf("%w: it does not say where it came from", errNotMoved)
	}
	return &r, a, bad
}
