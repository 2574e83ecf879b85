//go:generate go run ../internal/errorsdoc

package fault

// Kind is the class of a failure: what a caller does about it. The gRPC code
// and the HTTP status follow from it (internal/server/status.go).
type Kind uint8

const (
	KindInternal        Kind = iota // a bug or an unmapped failure of ours
	KindInvalid                     // the request is wrong: change it
	KindTooLarge                    // the request is too large: make it smaller
	KindUnsupported                 // the media type or encoding is not one we read
	KindUnauthenticated             // say who you are
	KindDenied                      // you may not
	KindNotFound                    // the name does not exist
	KindConflict                    // the name or state is taken
	KindPrecondition                // the system's state forbids it until somebody changes that state
	KindExhausted                   // too much at once: slow down, then retry
	KindUnavailable                 // not now, and nothing was done: retry
	KindDeadline                    // your deadline passed before anything was done
	KindUnknown                     // the outcome is unknown: it may or may not have happened
	KindCancelled                   // you went away
	KindUnimplemented               // not offered
	KindNone                        // no failure
)

// Reason is the stable machine-readable name of a failure. A reason is never
// renamed and never changes its kind.
type Reason string

// The reasons. The table below says of each what it means and what to do;
// docs/errors.md is generated from it.
const (
	InvalidArgument      Reason = "INVALID_ARGUMENT"
	InvalidCloudEvent    Reason = "INVALID_CLOUDEVENT"
	InvalidBody          Reason = "INVALID_BODY"
	InvalidTopic         Reason = "INVALID_TOPIC"
	InvalidHeader        Reason = "INVALID_HEADER"
	InvalidCursor        Reason = "INVALID_CURSOR"
	InvalidRecord        Reason = "INVALID_RECORD"
	UnknownPartition     Reason = "UNKNOWN_PARTITION"
	EventTooLarge        Reason = "EVENT_TOO_LARGE"
	BodyTooLarge         Reason = "BODY_TOO_LARGE"
	BodyTimeout          Reason = "BODY_TIMEOUT"
	HeadersTooLarge      Reason = "HEADERS_TOO_LARGE"
	UnsupportedMediaType Reason = "UNSUPPORTED_MEDIA_TYPE"
	UnsupportedEncoding  Reason = "UNSUPPORTED_ENCODING"
	NotAcceptable        Reason = "NOT_ACCEPTABLE"
	KeyRequired          Reason = "KEY_REQUIRED"
	AttributeRequired    Reason = "ATTRIBUTE_REQUIRED"
	ContentTypeRefused   Reason = "CONTENT_TYPE_REFUSED"
	SchemaRefused        Reason = "SCHEMA_REFUSED"
	UnknownSchema        Reason = "UNKNOWN_SCHEMA"
	SchemaUnusable       Reason = "SCHEMA_UNUSABLE"
	RegistryUnavailable  Reason = "SCHEMA_REGISTRY_UNAVAILABLE"
	Undecodable          Reason = "UNDECODABLE"
	DedupeKeyReused      Reason = "DEDUPE_KEY_REUSED"
	AtomicAborted        Reason = "ATOMIC_ABORTED"
	Unauthenticated      Reason = "UNAUTHENTICATED"
	NotAuthorized        Reason = "NOT_AUTHORIZED"
	OriginRefused        Reason = "ORIGIN_REFUSED"
	HostRefused          Reason = "HOST_REFUSED"
	KafkaNotAuthorized   Reason = "KAFKA_NOT_AUTHORIZED"
	UnknownTopic         Reason = "UNKNOWN_TOPIC"
	UnknownSubscription  Reason = "UNKNOWN_SUBSCRIPTION"
	UnknownEvent         Reason = "UNKNOWN_EVENT"
	UnknownRoute         Reason = "UNKNOWN_ROUTE"
	UnknownConsent       Reason = "UNKNOWN_CONSENT"
	MethodNotAllowed     Reason = "METHOD_NOT_ALLOWED"
	SubscriptionMismatch Reason = "SUBSCRIPTION_MISMATCH"
	SubscriptionExists   Reason = "SUBSCRIPTION_EXISTS"
	PositionLost         Reason = "POSITION_LOST"
	SubscriptionDeleted  Reason = "SUBSCRIPTION_DELETED"
	SubscriptionChanged  Reason = "SUBSCRIPTION_CHANGED"
	EtagMismatch         Reason = "ETAG_MISMATCH"
	DeclaredInFile       Reason = "DECLARED_IN_FILE"
	NewerFormat          Reason = "NEWER_FORMAT"
	TooManySubscriptions Reason = "TOO_MANY_SUBSCRIPTIONS"
	UnknownJob           Reason = "UNKNOWN_JOB"
	UnknownDeadLetter    Reason = "UNKNOWN_DEAD_LETTER"
	ResumeTokenInUse     Reason = "RESUME_TOKEN_IN_USE"
	ProtocolViolation    Reason = "PROTOCOL_VIOLATION"
	NotOffered           Reason = "NOT_OFFERED"
	QueueUnsupported     Reason = "QUEUE_UNSUPPORTED"
	QueueSettings        Reason = "QUEUE_SETTINGS"
	BufferFull           Reason = "BUFFER_FULL"
	RateLimited          Reason = "RATE_LIMITED"
	TooManyStreams       Reason = "TOO_MANY_STREAMS"
	SlowConsumer         Reason = "SLOW_CONSUMER"
	BrokerUnavailable    Reason = "BROKER_UNAVAILABLE"
	NotEnoughReplicas    Reason = "NOT_ENOUGH_REPLICAS"
	KafkaThrottled       Reason = "KAFKA_THROTTLED"
	ShuttingDown         Reason = "SHUTTING_DOWN"
	OutcomeUnknown       Reason = "OUTCOME_UNKNOWN"
	DeadlineExceeded     Reason = "DEADLINE_EXCEEDED"
	Cancelled            Reason = "CANCELLED"
	KafkaRefused         Reason = "KAFKA_REFUSED"
	AttemptFailed        Reason = "ATTEMPT_FAILED"
	Internal             Reason = "INTERNAL"
)

// Entry is one row of the reasons' table.
type Entry struct {
	Reason Reason
	Kind   Kind
	Means  string // what happened
	Do     string // what the caller does next
}

// Reasons is the whole list, in the order of docs/errors.md.
var Reasons = []Entry{
	{InvalidArgument, KindInvalid, "A field of the request breaks a rule of the API.", "Correct the fields named in the violations."},
	{InvalidCloudEvent, KindInvalid, "The event breaks a rule of CloudEvents 1.0.", "Correct the attribute named in the violation."},
	{InvalidBody, KindInvalid, "The body cannot be read as its Content-Type says.", "Correct the body or its Content-Type."},
	{InvalidTopic, KindInvalid, "The topic name is not a legal Kafka topic name.", "Use 1 to 249 of a-z A-Z 0-9 . _ -"},
	{InvalidHeader, KindInvalid, "A Postern- header cannot be read.", "Correct the header named in the violation."},
	{InvalidCursor, KindInvalid, "The cursor or resume token cannot be read.", "Use one as it was given, or start without."},
	{InvalidRecord, KindInvalid, "Kafka refused the record itself.", "Correct what the message names; retrying will not help."},
	{UnknownPartition, KindInvalid, "The partition asked for does not exist.", "Leave the partition out, or choose one the topic has."},
	{KeyRequired, KindInvalid, "The topic's rule asks for a key.", "Send a key."},
	{AttributeRequired, KindInvalid, "The topic's rule asks for an attribute that the event lacks.", "Send the attribute named in the violation."},
	{ContentTypeRefused, KindInvalid, "The topic's rule does not allow the event's content type.", "Use one of those the message names."},
	{DedupeKeyReused, KindConflict, "Another event was published under this dedupe key.", "Use a key of its own for each event."},
	{AtomicAborted, KindConflict, "Another event of the atomic request failed; nothing was stored.", "See the other results; then send all of it again."},
	{SchemaRefused, KindInvalid, "The payload does not fit the topic's schema.", "Correct the fields named in the violations."},
	{UnknownSchema, KindNotFound, "The schema registry has no such subject, version or id; nothing was stored.", "Register the schema, or name one that is there."},
	{SchemaUnusable, KindPrecondition, "The topic's schema cannot be used: it is broken, too large, or refers to what is not there.", "See the message; whoever owns the schema must act."},
	{RegistryUnavailable, KindUnavailable, "The schema is not known here yet and the registry could not be asked; nothing was stored.", "Retry with backoff."},
	{Undecodable, KindPrecondition, "The event's bytes cannot be read by their schema.", "Read the topic without a view; see the dead letter for its bytes."},
	{EventTooLarge, KindTooLarge, "The event is larger than the topic or the gateway allows.", "Send less, or a reference to the data."},
	{BodyTooLarge, KindTooLarge, "The request body is larger than the gateway allows.", "Split the batch."},
	{BodyTimeout, KindDeadline, "The request's body did not come in time; nothing was stored.", "Send it faster, or in smaller requests."},
	{HeadersTooLarge, KindTooLarge, "The request's headers are larger than the gateway allows.", "Send large record headers by gRPC or NDJSON."},
	{UnsupportedMediaType, KindUnsupported, "The Content-Type is not one this route reads.", "Use one of those the message names."},
	{UnsupportedEncoding, KindUnsupported, "The Content-Encoding is not one this route reads.", "Send the body unencoded."},
	{NotAcceptable, KindUnsupported, "None of the types in Accept is offered.", "Accept text/event-stream or application/x-ndjson."},
	{Unauthenticated, KindUnauthenticated, "The gateway could not tell who is calling.", "Send credentials."},
	{NotAuthorized, KindDenied, "The policy does not allow this caller to do this.", "Ask the gateway's operator."},
	{OriginRefused, KindDenied, "A web page of an origin that is not allowed called the gateway.", "Add the origin to listen.allowed_origins."},
	{HostRefused, KindDenied, "The request's Host is not this gateway's.", "Call it by the address it listens on, or add the name to listen.allowed_hosts."},
	{KafkaNotAuthorized, KindDenied, "Kafka does not allow the gateway to use this topic or group.", "Give the gateway's Kafka user the right named in the message."},
	{UnknownTopic, KindNotFound, "The topic does not exist in Kafka.", "Create it with the command in the message."},
	{UnknownSubscription, KindNotFound, "No subscription has this name.", "Declare it in the configuration, or open one inline with topics and a group."},
	{UnknownEvent, KindNotFound, "Kafka does not hold an event at this place any more, or not yet.", "See the offsets in the message."},
	{UnknownConsent, KindNotFound, "No consent waits for this key: it was used, is over, or was never offered.", "Have the endpoint asked again, with a new key: postern webhooks enable NAME."},
	{UnknownRoute, KindNotFound, "No such path.", "See /openapi.json."},
	{MethodNotAllowed, KindUnimplemented, "The path exists, the method does not.", "See the Allow header and /openapi.json."},
	{SubscriptionMismatch, KindConflict, "The subscription is open with other settings.", "Open it with the same settings, or by its name only."},
	{PositionLost, KindPrecondition, "Kafka no longer has the position of a subscription that had one: what was delivered and what was not cannot be told.", "Say where to go on: postern subscriptions seek NAME --to earliest, latest or a time."},
	{SubscriptionExists, KindConflict, "Another subscription has this name.", "Choose another name, or update the one that is there."},
	{SubscriptionDeleted, KindNotFound, "The subscription was deleted while it was in use.", "Create it anew, or stop asking for it."},
	{SubscriptionChanged, KindUnavailable, "The subscription was changed, and is delivered anew by what it says now.", "Connect again at once; no acknowledgement is lost."},
	{EtagMismatch, KindConflict, "Somebody changed the subscription since its etag was read.", "Read it, and make the change anew."},
	{DeclaredInFile, KindPrecondition, "The subscription is declared in a configuration file, which alone can change it.", "Change the file; it can be paused, resumed and sought here."},
	{QueueUnsupported, KindPrecondition, "Kafka cannot do what order QUEUE needs: share groups whose locks can be renewed.", "Upgrade the brokers as the message says, or use another order."},
	{QueueSettings, KindPrecondition, "The settings of the share group do not fit order QUEUE, and the gateway may not change them.", "Have the command in the message run."},
	{NewerFormat, KindPrecondition, "What is kept was written by a newer Postern, and is not touched by this one.", "Ask a gateway of the newer version, or upgrade this one."},
	{TooManySubscriptions, KindExhausted, "There are as many subscriptions as may be.", "Delete some, or raise subscriptions_api.max_subscriptions."},
	{UnknownJob, KindNotFound, "The subscription has no such job.", "See the list of its jobs."},
	{UnknownDeadLetter, KindNotFound, "There is no such dead letter (any more).", "See the list of dead letters."},
	{ResumeTokenInUse, KindConflict, "Another stream took this resume token over.", "Let only one stream use a token."},
	{ProtocolViolation, KindPrecondition, "The stream's frames came in an order the protocol does not allow.", "Send the frame the message names first."},
	{NotOffered, KindUnimplemented, "This build does not offer what was asked for.", "Leave the field out."},
	{BufferFull, KindExhausted, "The gateway's publish buffer is full; nothing was stored.", "Retry after the time given."},
	{RateLimited, KindExhausted, "The caller is over its limit of requests or bytes a second; nothing was done.", "Retry after the time given."},
	{TooManyStreams, KindExhausted, "The gateway serves as many streams as it may.", "Use fewer streams, or retry later."},
	{SlowConsumer, KindExhausted, "The client did not read its stream; it was cut to bound memory.", "Read faster or open a smaller window, then reconnect."},
	{BrokerUnavailable, KindUnavailable, "Kafka could not be reached; nothing was stored.", "Retry with backoff."},
	{NotEnoughReplicas, KindUnavailable, "Fewer replicas are in sync than the topic demands; nothing was stored.", "Retry with backoff."},
	{KafkaThrottled, KindExhausted, "Kafka is throttling the gateway.", "Slow down, then retry."},
	{ShuttingDown, KindUnavailable, "The gateway is draining.", "Retry; another instance answers."},
	{OutcomeUnknown, KindUnknown, "The wait ended before Kafka answered: the event may or may not be stored.", "Publish it again with the same dedupe key; without one, where consumers bear it twice."},
	{DeadlineExceeded, KindDeadline, "The caller's deadline passed before anything was stored.", "Retry with a longer deadline."},
	{Cancelled, KindCancelled, "The caller went away.", "Nothing."},
	{KafkaRefused, KindPrecondition, "Kafka refused for a reason that a retry will not cure.", "See the message; the gateway's operator must act."},
	{AttemptFailed, KindUnavailable, "An earlier delivery of the event was not acknowledged; the message says why.", "Nothing: it tells about a delivery, not a call."},
	{Internal, KindInternal, "An unexpected failure of the gateway.", "Report it with the trace id."},
}

var kinds = func() map[Reason]Kind {
	m := make(map[Reason]Kind, len(Reasons))
	for _, r := range Reasons {
		m[r.Reason] = r.Kind
	}
	return m
}()

// Kind is the class of r; KindInternal for a reason that is not in the table.
func (r Reason) Kind() Kind { return kinds[r] }

// Retryable reports whether the same request may succeed later without a
// change by anyone. After OUTCOME_UNKNOWN a retry may store the event twice.
func (k Kind) Retryable() bool {
	return k == KindExhausted || k == KindUnavailable || k == KindUnknown || k == KindDeadline
}
