// Command errorsdoc writes docs/errors.md from the table of reasons, so that
// what people read and what the program answers cannot differ.
package main

import (
	"bytes"
	"fmt"
	"os"

	"google.golang.org/grpc/codes"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

func main() {
	if err := os.WriteFile("../docs/errors.md", page(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "errorsdoc:", err)
		os.Exit(1)
	}
}

// page is docs/errors.md.
func page() []byte {
	var b bytes.Buffer
	b.WriteString(`# Errors

Every failure has one stable reason. Over gRPC it is the ErrorInfo reason (domain ` + "`" + fault.Domain + "`" + `) in
google.rpc.Status; over HTTP the member ` + "`reason`" + ` of an RFC 9457 problem (` + "`application/problem+json`" + `). Results of
single events in a batch carry the same. This page is generated from fault/reasons.go.

Three outcomes of a publish are always told apart: stored (a position), not stored (any reason but one), and unknown
(` + "`OUTCOME_UNKNOWN`" + `: the wait ended before Kafka answered).

| reason | HTTP | gRPC | retry | what happened | what to do |
|---|---|---|---|---|---|
`)
	for _, r := range fault.Reasons {
		err := fault.New(r.Reason, "x")
		retry := "no"
		if r.Kind.Retryable() {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %d | %s | %s | %s | %s |\n", r.Reason, wire.HTTPStatus(err), codes.Code(wire.Status(err).GetCode()), retry, r.Means, r.Do)
	}
	b.WriteString(`
## What Kafka answers

Kafka's error codes become reasons in one table (broker/faults.go). A code that is not here is ` + "`KAFKA_REFUSED`" + ` when Kafka
calls it final, and ` + "`BROKER_UNAVAILABLE`" + ` when Kafka calls it retriable and the client's own retries did not get past it
within the event's life (60 s, or as long as its caller waits). The code's name is in the metadata as ` + "`kafka_error`" + `.

| Kafka's code | | reason | HTTP | retry |
|---|---|---|---|---|
`)
	for _, c := range broker.KafkaCodes() {
		retry := "no"
		if c.Reason.Kind().Retryable() {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %d | `%s` | %d | %s |\n", c.Name, c.Number, c.Reason, wire.HTTPStatus(fault.New(c.Reason, "x")), retry)
	}
	return b.Bytes()
}
