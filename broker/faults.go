package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/fault"
)

// kafkaFaults is the one table from Kafka's error codes to reasons. A code
// that is not here is KAFKA_REFUSED when Kafka calls it final and
// BROKER_UNAVAILABLE when Kafka calls it retriable.
var kafkaFaults = map[error]fault.Reason{
	kerr.MessageTooLarge:              fault.EventTooLarge,
	kerr.RecordListTooLarge:           fault.EventTooLarge,
	kerr.InvalidRecord:                fault.InvalidRecord,
	kerr.CorruptMessage:               fault.InvalidRecord,
	kerr.InvalidTimestamp:             fault.InvalidRecord,
	kerr.InvalidTopicException:        fault.InvalidTopic,
	kerr.UnknownTopicOrPartition:      fault.UnknownTopic,
	kerr.UnknownTopicID:               fault.UnknownTopic,
	kerr.TopicAuthorizationFailed:     fault.KafkaNotAuthorized,
	kerr.GroupAuthorizationFailed:     fault.KafkaNotAuthorized,
	kerr.ClusterAuthorizationFailed:   fault.KafkaNotAuthorized,
	kerr.SaslAuthenticationFailed:     fault.KafkaNotAuthorized,
	kerr.NotEnoughReplicas:            fault.NotEnoughReplicas,
	kerr.ThrottlingQuotaExceeded:      fault.KafkaThrottled,
	kerr.PolicyViolation:              fault.KafkaRefused,
	kerr.NotEnoughReplicasAfterAppend: fault.OutcomeUnknown,
	kerr.RequestTimedOut:              fault.OutcomeUnknown,
	kerr.UnknownServerError:           fault.OutcomeUnknown, // brokers answer it for failures after the append, too
	kerr.TransactionAbortable:         fault.BrokerUnavailable,

	kerr.TransactionalIDAuthorizationFailed: fault.KafkaNotAuthorized,
	// Of the idempotent producer: this attempt was refused, an earlier one of the
	// same batch may have been taken.
	kerr.OutOfOrderSequenceNumber: fault.OutcomeUnknown,
	kerr.UnknownProducerID:        fault.OutcomeUnknown,
	kerr.InvalidProducerEpoch:     fault.OutcomeUnknown,
	kerr.ProducerFenced:           fault.OutcomeUnknown,
}

// KafkaCode is one row of the table from Kafka's error codes to reasons.
type KafkaCode struct {
	Name   string
	Number int16
	Reason fault.Reason
}

// KafkaCodes lists the table by number, for docs/errors.md.
func KafkaCodes() []KafkaCode {
	var all []KafkaCode
	for err, reason := range kafkaFaults {
		var code *kerr.Error
		if errors.As(err, &code) {
			all = append(all, KafkaCode{code.Message, code.Code, reason})
		}
	}
	slices.SortFunc(all, func(a, b KafkaCode) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

// clientFaults are the Kafka client's own failures.
var clientFaults = map[error]fault.Reason{
	kgo.ErrRecordTimeout: fault.OutcomeUnknown,
	kgo.ErrRecordRetries: fault.OutcomeUnknown,
	kgo.ErrClientClosed:  fault.ShuttingDown,
	kgo.ErrAborting:      fault.ShuttingDown,
}

// bufferRetry is what a publisher is told to wait when the buffer is full: long
// enough for a round trip or two, short enough not to idle once it has emptied.
const bufferRetry = time.Second

// bufferFull is BUFFER_FULL; format says which buffer.
func bufferFull(format string, args ...any) error {
	return fault.New(fault.BufferFull, format+" because Kafka is not keeping up: retry after %s", append(args, bufferRetry)...).After(bufferRetry)
}

// toFault says what err, met while doing what, means to a caller.
func toFault(err error, what string) error {
	if err == nil {
		return nil
	}
	for known, reason := range clientFaults {
		if errors.Is(err, known) {
			return fault.New(reason, "%s: %w", what, err)
		}
	}
	var code *kerr.Error
	if errors.As(err, &code) {
		reason, ok := kafkaFaults[code]
		switch {
		case ok:
		case code.Retriable:
			reason = fault.BrokerUnavailable
		default:
			reason = fault.KafkaRefused
		}
		return fault.New(reason, "%s: Kafka answered %s: %s (%w)", what, code.Message, code.Description, err).With("kafka_error", code.Message)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Of(err)
	}
	return fault.New(fault.BrokerUnavailable, "%s: %w", what, err)
}
