package event

// Every header and attribute name of ours, or that we interpret, is here and
// nowhere else.

// SpecVersion is the CloudEvents version we speak.
const SpecVersion = "1.0"

// Kafka record headers (CloudEvents Kafka binding 1.0, section 3.2; W3C Trace Context).
const (
	kafkaAttributePrefix = "ce_"
	HeaderSpecVersion    = "ce_specversion"
	HeaderContentType    = "content-type"
	HeaderTraceParent    = "traceparent"
	HeaderTraceState     = "tracestate"
)

// CloudEvents extensions we interpret.
const (
	// ExtensionPartitionKey gives the record key when the event has none of its own (Partitioning extension).
	ExtensionPartitionKey = "partitionkey"
)

// HTTP request headers of the events route. Names are in canonical form.
const (
	HTTPKey            = "Postern-Key"            // record key, UTF-8
	HTTPKeyBase64      = "Postern-Key-Base64"     // record key, base64 (standard alphabet)
	HTTPPartition      = "Postern-Partition"      // explicit partition, decimal
	HTTPTimestamp      = "Postern-Timestamp"      // record timestamp, RFC 3339
	HTTPHeaderPrefix   = "Postern-Header-"        // Postern-Header-<name>: a record header; the name arrives lower-cased
	HTTPIdempotencyKey = "Idempotency-Key"        // draft-ietf-httpapi-idempotency-key-header-07
	HTTPDurability     = "Postern-Durability"     // all_replicas or leader
	HTTPAtomic         = "Postern-Atomic"         // true: all events of the request or none
	HTTPValidateOnly   = "Postern-Validate-Only"  // true: check, store nothing
	HTTPSchemaID       = "Postern-Schema-Id"      // the registry's id of the schema the body is of
	HTTPSchemaVersion  = "Postern-Schema-Version" // or its version under the topic's subject
	HTTPReplayed       = "Idempotent-Replayed"    // answer: true when the Idempotency-Key was known
	HTTPInstance       = "Postern-Instance"       // answer: which gateway holds the leases
)

// Evidence headers of a dead-lettered record. They are appended after the
// record's own headers, which stay untouched; a record dead-lettered twice
// carries two sets, the last one being the latest.
const (
	DeadLetterVersion      = "postern-dead-letter-version"       // format of this set: "1"
	DeadLetterReason       = "postern-dead-letter-reason"        // rejected | attempts_exhausted | blocked_too_long | undecodable | filter_error
	DeadLetterDetail       = "postern-dead-letter-detail"        // excerpt of the last failure, at most 4 KiB
	DeadLetterAttempts     = "postern-dead-letter-attempts"      // how often it was lent, decimal
	DeadLetterFirstAttempt = "postern-dead-letter-first-attempt" // RFC 3339; absent when unknown after a restart
	DeadLetterLastAttempt  = "postern-dead-letter-last-attempt"  // RFC 3339
	DeadLetterSubscription = "postern-dead-letter-subscription"
	DeadLetterTopic        = "postern-dead-letter-topic"     // where it came from
	DeadLetterPartition    = "postern-dead-letter-partition" // decimal
	DeadLetterOffset       = "postern-dead-letter-offset"    // decimal
	DeadLetterTimestamp    = "postern-dead-letter-timestamp" // the record's own timestamp, RFC 3339
)

// Headers of a record that a subscription has moved to a side topic of its own
// (a delay tier or the park). They are appended after the record's own headers,
// MoveVersion first, and taken off again before the event is delivered.
const (
	MoveVersion      = "postern-move-version" // format of this set: "1"; everything from here on is ours
	MoveTopic        = "postern-move-topic"   // where it came from
	MovePartition    = "postern-move-partition"
	MoveOffset       = "postern-move-offset"
	MoveTimestamp    = "postern-move-timestamp"     // the record's own timestamp, Unix milliseconds
	MoveOwner        = "postern-move-owner"         // which assignment wrote it, hexadecimal
	MoveFrom         = "postern-move-from"          // the delay tier it was copied from, TIER@OFFSET; absent: where it came from
	MoveAttempts     = "postern-move-attempts"      // how often it was lent
	MoveDue          = "postern-move-due"           // not before, Unix milliseconds; absent: at once
	MoveFirstAttempt = "postern-move-first-attempt" // Unix milliseconds; absent: never lent
	MoveFailure      = "postern-move-failure"       // excerpt of the last failure, at most 1 KiB
	MoveFence        = "postern-move-fence"         // no event: what owners before this one write from here on is void
	MoveJob          = "postern-move-job"           // the redrive or replay that wrote it; its MoveFrom is the dead letter's PARTITION-OFFSET
)

// Headers that a redriven event bears, last of its own. They replace those of an
// earlier redrive, and are taken off where the dead letter is shown.
const (
	RedriveCount  = "postern-redrives"       // how often it was redriven, this time included, decimal
	RedriveFrom   = "postern-redrive-from"   // the dead letter, TOPIC[PARTITION]@OFFSET
	RedriveOrigin = "postern-redrive-origin" // where it stood before it died, TOPIC[PARTITION]@OFFSET
	RedriveJob    = "postern-redrive-job"    // the job that redrove it
)

// ValidAttribute reports whether name may be a CloudEvents attribute's.
func ValidAttribute(name string) bool { return validAttributeName(name) }

// validAttributeName reports whether name may be a CloudEvents attribute
// name: lower-case ASCII letters and digits (CloudEvents 1.0, section 3.1).
// The length is not limited here: the 20 characters there are a SHOULD.
func validAttributeName(name string) bool {
	if name == "" || name == "data" {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
