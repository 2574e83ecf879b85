// Package endpoint owns pushing: one endpoint attached to its subscription's
// queue, whatever the wire. It decides how many requests may be under way and
// when none may, and turns each answer into words for the leases.
//
// A [Pusher] borrows events, gathers them into parcels (one event, or a batch
// where the endpoint asks for batches), has its [Carrier] make the request, and
// settles each lease by the answer. All decisions are pure and stand beside it:
// [AIMD] is how many requests at once, [Breaker] whether the endpoint is broken,
// [Bucket] its rate, [Health] what follows from all three and from what the
// endpoint and people say: ACTIVE, THROTTLED, OPEN, DISABLED.
//
// The HTTP request is package webhook's, the gRPC call package push's. When an
// event is tried again, in which order, and when it is a dead letter is package
// delivery's, and the same as for every other consumer.
package endpoint

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// Lender is the attachment a Pusher borrows from; delivery.Attachment is one.
type Lender interface {
	Next(ctx context.Context) ([]delivery.Lease, []delivery.Revocation, error)
	SetWindow(delivery.Window)
	Return([]delivery.Lease)
	Decline([]delivery.Lease)
	// Settle says what became of leases, and takes more into the room behind next's length.
	Settle(settlements []delivery.Settlement, next []delivery.Lease) ([]delivery.Result, []delivery.Lease)
}

// Carrier makes one attempt: one request, within its own timeout.
type Carrier interface {
	Carry(ctx context.Context, p *Parcel) Answer
}

// Consenter is a Carrier that must ask its endpoint before it may send to it.
type Consenter interface {
	// Consent asks, and offers the callback that key opens; "" offers none. A nil error
	// is an answer, whatever it says.
	Consent(ctx context.Context, key string) (Consent, error)
}

// Parcel is what one request carries.
type Parcel struct {
	// ID is the message's towards the endpoint: the same in every attempt.
	ID string
	// Records are the events; one, unless the endpoint asks for batches.
	Records []*event.Record
	// Attempt is 1 for the first; of a batch it is the largest of its events'.
	Attempt int
	// Replay says that somebody asked for this event once more.
	Replay bool
	// Sample says that this is no event of a topic but a sample to try the endpoint with.
	Sample bool
}

// Action is what an answer has us do.
type Action uint8

// The actions.
const (
	Ack      Action = iota // delivered
	Retry                  // again, when the retry policy says
	Throttle               // again, and the whole endpoint is left alone for a while
	Reject                 // to the dead letters
	Drop                   // forget it, by the word of whoever configured the outcome
	Disable                // again, and the endpoint is disabled until somebody enables it
	Split                  // a batch that was refused as a whole: its events again, each alone
)

var actions = [...]string{Ack: "ack", Retry: "retry", Throttle: "throttle", Reject: "reject", Drop: "drop", Disable: "disable", Split: "split"}

func (a Action) String() string { return actions[a] }

// Outcome is what an attempt came to.
type Outcome struct {
	Action Action
	Class  string        // for logs and metrics: ok, status, throttled, timeout, refused, dns, tls, guard, reset, ...
	Why    string        // for people; empty after a success
	Pause  time.Duration // what the endpoint asked for with Retry-After; 0: it did not
	// Overload says that fewer requests at once might help: timeouts, 429, 502 to 504.
	Overload bool
}

// Answer is an attempt's outcome and what was seen of it.
type Answer struct {
	Outcome
	// Each holds an outcome for each event, when the endpoint answered a batch that way.
	Each    []Outcome
	Status  int // of HTTP, or the gRPC code; 0 without an answer
	Excerpt string
	Timings Timings
	Keys    []string // names of the keys that signed
}

// Timings of an attempt, each from its beginning; 0 where it did not happen,
// as with a connection that was there already.
type Timings struct {
	DNS       time.Duration // name looked up
	Connect   time.Duration // connected
	TLS       time.Duration // handshake done
	FirstByte time.Duration // the answer began
	Total     time.Duration
}

// Options is what an endpoint's transport settles for its Pusher.
type Options struct {
	Subscription string
	Host         string        // host:port, shared by every endpoint there
	Timeout      time.Duration // of an attempt; the carrier keeps it
	Concurrency  int           // most requests at once
	Rate         float64       // most requests a second; 0: no limit
	Batch        Batch         // zero: one event to a request
	DisableAfter time.Duration // without any success this long, the endpoint is disabled
	Retry        delivery.Retry
	Revalidate   time.Duration // consent is asked for again this often
	Callback     bool          // callbacks are offered for it
	AskedRate    int           // requests a minute that consent is asked for; 0: none is named
	Target       string        // names what is consented to: a consent for another URL is none for this
	View         View          // shows events otherwise than they are in Kafka; nil: as they are
}

// View shows a record in another form. UNDECODABLE is for good, every other error for now.
type View func(ctx context.Context, r *event.Record) (*event.Record, error)

// Environment is what a Pusher works with that nobody configures for it alone.
type Environment struct {
	Log    *slog.Logger
	Tracer trace.Tracer
	// TracerFor gives the tracer of an attempt whose event was published in this span; nil
	// where its span would not be recorded. Without it, it is Tracer for all.
	TracerFor func(parent trace.SpanContext) trace.Tracer
	Meter     metric.Meter
	// Hosts bounds the requests to one host over all endpoints; nil does not.
	Hosts *Hosts
	// Attempts takes the record of each attempt; nil keeps none.
	Attempts AttemptLog
	// States keeps the endpoint's state and brings what others make of it; nil keeps it in memory.
	States StateLog
	// Notices takes operational events; nil drops them.
	Notices NoticeLog
	// Instance names this gateway in what it writes.
	Instance string
}

// AttemptLog keeps attempts. It never blocks and never fails a delivery.
type AttemptLog interface{ Attempted(Attempt) }

// StateLog keeps endpoints' states where every instance sees them.
type StateLog interface {
	Save(Record)
	// Watch calls apply with the state last saved, if there is one, and then with
	// every state that another instance, or a person, saves. It returns before.
	Watch(subscription string, apply func(Record)) (stop func())
}

// NoticeLog takes operational events.
type NoticeLog interface{ Notify(Notice) }
