package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/fault"
)

// What Kafka and its client answer, and what a caller is told. A code that is
// added to the table needs a row here.
func TestEveryFailureOfKafkaHasItsReason(t *testing.T) {
	rows := []struct {
		err  error
		want fault.Reason
	}{
		{kerr.MessageTooLarge, fault.EventTooLarge},
		{kerr.RecordListTooLarge, fault.EventTooLarge},
		{kerr.InvalidRecord, fault.InvalidRecord},
		{kerr.CorruptMessage, fault.InvalidRecord},
		{kerr.InvalidTimestamp, fault.InvalidRecord},
		{kerr.InvalidTopicException, fault.InvalidTopic},
		{kerr.UnknownTopicOrPartition, fault.UnknownTopic},
		{kerr.UnknownTopicID, fault.UnknownTopic},
		{kerr.TopicAuthorizationFailed, fault.KafkaNotAuthorized},
		{kerr.GroupAuthorizationFailed, fault.KafkaNotAuthorized},
		{kerr.ClusterAuthorizationFailed, fault.KafkaNotAuthorized},
		{kerr.SaslAuthenticationFailed, fault.KafkaNotAuthorized},
		{kerr.NotEnoughReplicas, fault.NotEnoughReplicas},
		{kerr.ThrottlingQuotaExceeded, fault.KafkaThrottled},
		{kerr.PolicyViolation, fault.KafkaRefused},
		{kerr.NotEnoughReplicasAfterAppend, fault.OutcomeUnknown}, // the leader has it
		{kerr.RequestTimedOut, fault.OutcomeUnknown},
		{kerr.UnknownServerError, fault.OutcomeUnknown},
		{kerr.TransactionAbortable, fault.BrokerUnavailable},
		{kerr.TransactionalIDAuthorizationFailed, fault.KafkaNotAuthorized},
		{kerr.OutOfOrderSequenceNumber, fault.OutcomeUnknown},
		{kerr.UnknownProducerID, fault.OutcomeUnknown},
		{kerr.InvalidProducerEpoch, fault.OutcomeUnknown},
		{kerr.ProducerFenced, fault.OutcomeUnknown},
		// Not in the table: by what Kafka says of retrying.
		{kerr.LeaderNotAvailable, fault.BrokerUnavailable},
		{kerr.CoordinatorLoadInProgress, fault.BrokerUnavailable},
		{kerr.OffsetMetadataTooLarge, fault.KafkaRefused},
		{kerr.UnsupportedVersion, fault.KafkaRefused},
		// The client's own.
		{kgo.ErrRecordTimeout, fault.OutcomeUnknown},
		{kgo.ErrRecordRetries, fault.OutcomeUnknown},
		{kgo.ErrClientClosed, fault.ShuttingDown},
		{kgo.ErrAborting, fault.ShuttingDown},
		// The network's and the caller's.
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, fault.BrokerUnavailable},
		{io.EOF, fault.BrokerUnavailable},
		{context.DeadlineExceeded, fault.DeadlineExceeded},
		{context.Canceled, fault.Cancelled},
	}
	covered := map[error]bool{}
	for _, row := range rows {
		covered[row.err] = true
		for _, err := range []error{row.err, fmt.Errorf("as the client wraps it: %w", row.err)} {
			got := toFault(err, "publish to orders")
			if !fault.Is(got, row.want) {
				t.Errorf("%v is %s, want %s", err, fault.Of(got).Reason, row.want)
			}
			if !errors.Is(got, row.err) {
				t.Errorf("%v is no longer in %v", row.err, got)
			}
		}
	}
	for _, table := range []map[error]fault.Reason{kafkaFaults, clientFaults} {
		for err := range table {
			if !covered[err] {
				t.Errorf("%v is in the table and not in this test", err)
			}
		}
	}
	if toFault(nil, "publish") != nil {
		t.Error("no failure became one")
	}
	if f := fault.Of(bufferFull("the buffer is full")); f.Reason != fault.BufferFull || f.RetryAfter <= 0 {
		t.Error("a full buffer does not say when to retry")
	}
	if f := fault.Of(toFault(kerr.PolicyViolation, "create topic")); f.Metadata["kafka_error"] != "POLICY_VIOLATION" {
		t.Errorf("Kafka's own name of the error is not in %v", f.Metadata)
	}
}
