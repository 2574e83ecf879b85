package broker

import (
	"context"
	"errors"
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
}

// clientFaults are the Kafka client's own failures.
var clientFaults = map[error]fault.Reason{
	kgo.ErrMaxBuffered:   fault.BufferFull,
	kgo.ErrRecordTimeout: fault.OutcomeUnknown,
	kgo.ErrRecordRetries: fault.OutcomeUnknown,
	kgo.ErrClientClosed:  fault.ShuttingDown,
	kgo.ErrAborting:      fault.ShuttingDown,
}

// bufferRetry is what a publisher is told to wait when the buffer is full: long
// enough for a round trip or two, short enough not to idle once it has emptied.
const bufferRetry = time.Second

// toFault says what err, met while doing what, means to a caller.
func toFault(err error, what string) error {
	if err == nil {
		return nil
	}
	for known, reason := range clientFaults {
		if errors.Is(err, known) {
			f := fault.New(reason, "%s: %w", what, err)
			if reason == fault.BufferFull {
				f = fault.New(reason, "%s: the publish buffer is full because Kafka is not keeping up; retry after %s (%w)", what, bufferRetry, err).After(bufferRetry)
			}
			return f
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
