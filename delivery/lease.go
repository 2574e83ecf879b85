package delivery

import (
	"fmt"
	"time"

	"github.com/postern-dev/postern/event"
)

// Order says which events of a subscription wait for one another.
type Order uint8

const (
	OrderKey       Order = iota // events of one key, one after the other; keys in parallel
	OrderPartition              // one event of a partition at a time
	OrderNone                   // no event waits for another
	OrderQueue                  // none waits for another, and Kafka's share group gives each to any instance
)

var orders = [...]string{OrderKey: "key", OrderPartition: "partition", OrderNone: "none", OrderQueue: "queue"}

func (o Order) String() string { return orders[o] }

// MarshalText writes key, partition, none or queue.
func (o Order) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads key, partition, none or queue.
func (o *Order) UnmarshalText(b []byte) error {
	for i, name := range orders {
		if name == string(b) {
			*o = Order(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not an order: use key, partition, none or queue", b)
}

// ID names one lease: which instance gave it out (the upper 20 bits) and a
// number that instance never gives twice (the lower 44).
type ID uint64

const sequenceBits = 44

// Instance is the 20-bit name of a running gateway, chosen at random when it starts.
type Instance uint32

func (i Instance) String() string { return fmt.Sprintf("%05x", uint32(i)) }

// Instance tells who gave the id out.
func (id ID) Instance() Instance { return Instance(id >> sequenceBits) }

func (i Instance) id(sequence uint64) ID {
	return ID(uint64(i)<<sequenceBits | sequence&(1<<sequenceBits-1))
}

// Lease is one event lent until Deadline.
type Lease struct {
	ID          ID
	Record      *event.Record // shared: do not change, and clone what is kept for longer than a moment (loans.go)
	Attempt     int           // 1 for the first
	Deadline    time.Time
	LastFailure string // why the attempt before this one failed; "" when unknown
}

// Word is what a borrower says of a lease.
type Word uint8

const (
	Ack    Word = iota // done
	Nack               // not now: again after Delay, or when the retry policy says
	Reject             // never: to the dead letters
	Drop               // never, and no dead letter, by an explicit word of the user
	Extend             // I need Lease longer, from now
)

var words = [...]string{Ack: "ack", Nack: "nack", Reject: "reject", Drop: "drop", Extend: "extend"}

func (w Word) String() string { return words[w] }

// Settlement is what became of one lease.
type Settlement struct {
	ID       ID
	Word     Word
	Delay    time.Duration // Nack: when again
	HasDelay bool          // Nack: Delay was given (0 is "at once"); else the retry policy decides
	Lease    time.Duration // Extend
	Reason   string        // Nack, Reject
	// Undecodable with Reject: it is our own word, because a view could not read the bytes.
	Undecodable bool
}

// Outcome says what a settlement did.
type Outcome uint8

const (
	Accepted      Outcome = iota + 1 // taken; an ack may be forgotten by a crash until it is committed
	Committed                        // Kafka has it
	LeaseExpired                     // too late: the event is, or was, lent again
	Stale                            // settled before, or a newer lease stands
	UnknownID                        // never given out here, or its partition is gone
	WrongInstance                    // given out by another instance
)

var outcomes = [...]string{
	Accepted: "accepted", Committed: "committed", LeaseExpired: "lease_expired",
	Stale: "stale", UnknownID: "unknown_id", WrongInstance: "wrong_instance",
}

func (o Outcome) String() string { return outcomes[o] }

// Result is the receipt for one settlement.
type Result struct {
	ID       ID
	Outcome  Outcome
	Deadline time.Time // after an Extend that was taken
}
