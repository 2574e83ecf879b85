package delivery

import (
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// What is told of dead letters, jobs and a queue's state. Their meaning is
// written at the messages of the same names in proto/postern/v1/subscriptions.proto;
// package subscription turns one into the other.

// LetterFilter chooses dead letters: those that fit all that is set. The zero
// value chooses all that were not redriven.
type LetterFilter struct {
	After, Before   time.Time // of Kafka's taking the dead letter; [After, Before)
	Reasons         []string
	HasKey          bool // false: any key
	Key             []byte
	Text            string // in the detail or the data
	OriginTopic     string
	OriginPartition *int32
	OriginFrom      *int64 // offsets [OriginFrom, OriginTo) of the origin
	OriginTo        *int64
	Positions       []event.Position // in the dead-letter topic; empty: any
	IncludeRedriven bool
}

// LettersQuery asks for a page of dead letters.
type LettersQuery struct {
	Filter      LetterFilter
	OldestFirst bool
	Size        int    // at least 1
	Token       string // of the page before
	Summary     bool   // without key, headers and data
}

// LettersPage is its answer; Next is empty on the last.
type LettersPage struct {
	Letters []DeadLetter
	Next    string
}

// DeadLetter is an event that was given up, and the evidence.
type DeadLetter struct {
	Record          *event.Record  // as it was, without the evidence headers
	At              event.Position // in the dead-letter topic
	Origin          event.Position
	OriginTimestamp time.Time
	Reason, Detail  string
	Attempts        int
	First, Last     time.Time // First: zero when unknown
	Written         time.Time
	Redrives        int
	RedrivenBy      string // the job; empty: it was not redriven
}

// JobKind is what a job does.
type JobKind uint8

// The kinds of job.
const (
	JobRedrive JobKind = iota + 1
	JobPurge
	JobReplay
)

// JobState is how far a job is.
type JobState uint8

// The states of a job; the last three are final.
const (
	JobPending JobState = iota + 1
	JobRunning
	JobSucceeded
	JobFailed
	JobCancelled
)

// JobRequest is what a job is asked to do.
type JobRequest struct {
	Kind        JobKind
	Filter      LetterFilter // of redrives and purges
	ToTopic     bool         // redrive to the topic of origin, not to the subscription alone
	MaxRedrives int          // leave alone what was redriven this often; 0: the default
	Rate        float64      // a second; 0: no limit
	DryRun      bool
	Replay      ReplayRequest // of replays
}

// ReplayRequest is a slice of a subscription's topics.
type ReplayRequest struct {
	After, Before time.Time // Before zero: up to the subscription's position
	Topics        []string  // empty: all
	HasKey        bool
	Key           []byte
}

// Job is work that goes on after it was asked for.
type Job struct {
	ID, Subscription        string
	Request                 JobRequest
	State                   JobState
	Scanned, Total          int64
	Matched, Done, Skipped  int64
	Created, Updated, Ended time.Time
	Err                     error
	Instance                string
}

// CauseKind names why events wait. The values are those of the proto's CauseKind.
type CauseKind int32

// Causes of lag, as the proto's CauseKind says them.
const (
	CauseNone CauseKind = iota + 1
	CausePaused
	CauseNoConsumer
	CauseHandlerSlow
	CauseWindowFull
	CauseBlockedKey
	CauseMetadataFull
	CauseTrackerFull
	CauseEndpointThrottled
	CauseEndpointDisabled
	CauseRateLimited
	CauseBrokerUnavailable
	CauseRebalancing
	CauseUndecodable
	CauseFilterError
	CauseNotAuthorized
	CauseDeadLetterFailing
	CausePositionLost
	CauseRetentionPassed
	CauseNewerFormat
	CauseRetrying
	CauseEndpointOpen
)

var causeNames = [...]string{
	"UNSPECIFIED", "NONE", "PAUSED", "NO_CONSUMER", "HANDLER_SLOW", "WINDOW_FULL", "BLOCKED_KEY", "METADATA_FULL", "TRACKER_FULL",
	"ENDPOINT_THROTTLED", "ENDPOINT_DISABLED", "RATE_LIMITED", "BROKER_UNAVAILABLE", "REBALANCING", "UNDECODABLE", "FILTER_ERROR",
	"NOT_AUTHORIZED", "DEAD_LETTER_FAILING", "POSITION_LOST", "RETENTION_PASSED", "NEWER_FORMAT", "RETRYING", "ENDPOINT_OPEN",
}

// String is the name in the proto, without its prefix.
func (k CauseKind) String() string {
	if k < 0 || int(k) >= len(causeNames) {
		return strconv.Itoa(int(k))
	}
	return causeNames[k]
}

// Cause is the one cause of lag, with its figures.
type Cause struct {
	Kind    CauseKind
	Summary string
	Since   time.Time // zero: unknown
	Figures map[string]string
	Blocked *BlockedKey
}

// BlockedKey is a key whose events wait for one that fails.
type BlockedKey struct {
	Key         []byte // nil: no key, or a whole partition
	Position    event.Position
	Since       time.Time
	Attempts    int
	NextAttempt time.Time
	Error       string
	Waiting     int // behind it
}

// PartitionReport is what the owner of a partition knows of it.
type PartitionReport struct {
	At           broker.TopicPartition
	Position     int64     // the first unsettled offset
	Oldest       time.Time // its record timestamp; zero: nothing unsettled was read
	Outstanding  int       // lent
	Waiting      int       // in memory for a later attempt
	SettledAhead int64
	Parked       int64
	Blocked      []BlockedKey // the longest first
	SeekEpoch    uint64
}

// ConsumerReport is one attachment.
type ConsumerReport struct {
	Client, Kind string // Kind: stream, pull or webhook
	Outstanding  int
	Window       int
	OldestLease  time.Duration
}

// Report is what this instance knows of a subscription.
type Report struct {
	Cause      Cause
	Lag        int64 // events not settled, as far as known
	Stalled    int   // partitions with events that are not read
	Partitions []PartitionReport
	Consumers  []ConsumerReport
}
