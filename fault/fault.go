// Package fault owns the kinds of failure a caller can act on.
//
// An [Error] has one stable [Reason], a sentence that says what was wrong and
// what to do next, and details (metadata, violations, when to retry). Failures
// of outside things become an Error at one border (Kafka's in broker/faults.go,
// a receiver's in delivery/webhook); an Error becomes a gRPC status or an HTTP
// problem at another (internal/server/status.go). Nothing else maps errors,
// and no decision is made on an error's text.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Domain is the ErrorInfo domain of every reason here.
const Domain = "postern.dev"

// Error is a failure that a caller can act on.
type Error struct {
	Reason     Reason
	Message    string            // what was wrong and what to do next
	Metadata   map[string]string // facts a program may use: topic, partition, limit
	Violations []Violation       // the fields of the request that were wrong
	RetryAfter time.Duration     // 0: unsaid
	cause      error
}

// Violation is one wrong field of a request.
type Violation struct {
	Field       string // proto path (events[3].key), JSON pointer or header name
	Description string
	Rule        string // which rule it breaks, where rules have names: a schema's keyword, a protovalidate id
	Expected    string // what the rule asks for
	Got         string // what was there
}

// New makes an Error; format takes %w as fmt.Errorf does. One of KindExhausted
// says to retry after a second unless After says otherwise: who is told to slow
// down is told for how long (RFC 6585, section 4; the CloudEvents webhook
// specification, section 2.2).
func New(reason Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Reason: reason, Message: err.Error(), cause: errors.Unwrap(err)}
	if reason.Kind() == KindExhausted {
		e.RetryAfter = time.Second
	}
	return e
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.cause }

// Kind is the class of e's reason.
func (e *Error) Kind() Kind { return e.Reason.Kind() }

// With adds a fact to e and returns it.
func (e *Error) With(name, value string) *Error {
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[name] = value
	return e
}

// Field adds a violation to e and returns it.
func (e *Error) Field(field, format string, args ...any) *Error {
	e.Violations = append(e.Violations, Violation{Field: field, Description: fmt.Sprintf(format, args...)})
	return e
}

// After says when a retry makes sense.
func (e *Error) After(d time.Duration) *Error { e.RetryAfter = d; return e }

// Of returns err as an Error: itself when it is one, CANCELLED or
// DEADLINE_EXCEEDED when it is the context's, INTERNAL otherwise. nil stays nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return New(Cancelled, "the caller went away: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return New(DeadlineExceeded, "the caller's deadline passed: %w", err)
	}
	return New(Internal, "unexpected failure: %w", err)
}

// KindOf is the class of err: KindInternal when err is none of ours, KindNone without one.
func KindOf(err error) Kind {
	if err == nil {
		return KindNone
	}
	return Of(err).Kind()
}

// Is reports whether err carries reason.
func Is(err error, reason Reason) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}
