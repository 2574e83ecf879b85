// Package wire owns the mapping between the program's nouns and the protobuf
// messages of postern.v1: events, positions, errors. The API packages' servers
// use it; what a message's fields mean is written in the protos.
package wire

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// FromEvent reads an event from its message. Bytes are shared.
func FromEvent(m *posternv1.Event) event.Event {
	e := event.Event{
		ID: m.GetId(), Source: m.GetSource(), Type: m.GetType(), Subject: m.GetSubject(),
		ContentType: m.GetContentType(), DataSchema: m.GetDataSchema(),
		Key: m.Key, Data: m.Data, Partition: event.AnyPartition, DedupeKey: m.GetDedupeKey(), Topic: m.GetTopic(),
		SchemaID: m.GetSchemaId(), SchemaVersion: m.GetSchemaVersion(),
	}
	if m.Partition != nil {
		e.Partition = m.GetPartition()
	}
	if m.Time != nil {
		e.Time = m.Time.AsTime()
	}
	if m.Timestamp != nil {
		e.Timestamp = m.Timestamp.AsTime()
	}
	if n := len(m.Extensions); n > 0 {
		e.Extensions = make([]event.Attribute, n)
		for i, x := range m.Extensions {
			e.Extensions[i] = event.Attribute{Name: x.GetName(), Value: x.GetValue()}
		}
	}
	if n := len(m.Headers); n > 0 {
		e.Headers = make([]event.Header, n)
		for i, h := range m.Headers {
			e.Headers[i] = event.Header{Name: h.GetName(), Value: h.Value}
		}
	}
	return e
}

// Event writes a record as an event's message. Bytes are shared.
func Event(r *event.Record) *posternv1.Event {
	m := &posternv1.Event{}
	FillEvent(m, &timestamppb.Timestamp{}, r)
	return m
}

// FillEvent is Event into memory of the caller's: timestamp becomes m's own.
// Batches of deliveries are written into one allocation each that way.
func FillEvent(m *posternv1.Event, timestamp *timestamppb.Timestamp, r *event.Record) {
	e := r.Event()
	m.Id, m.Source, m.Type, m.Subject, m.Time = e.ID, e.Source, e.Type, e.Subject, Time(e.Time)
	m.ContentType, m.DataSchema = e.ContentType, e.DataSchema
	m.Key, m.Data = e.Key, e.Data
	if !r.Timestamp.IsZero() {
		FillTime(timestamp, r.Timestamp)
		m.Timestamp = timestamp
	}
	if n := len(e.Extensions); n > 0 {
		m.Extensions = make([]*posternv1.Attribute, n)
		for i, x := range e.Extensions {
			m.Extensions[i] = &posternv1.Attribute{Name: x.Name, Value: x.Value}
		}
	}
	if n := len(e.Headers); n > 0 {
		m.Headers = make([]*posternv1.Header, n)
		for i, h := range e.Headers {
			m.Headers[i] = &posternv1.Header{Name: ValidUTF8(h.Name), Value: h.Value}
		}
	}
}

// Position writes a position.
func Position(p event.Position) *posternv1.Position {
	return &posternv1.Position{Topic: p.Topic, Partition: p.Partition, Offset: p.Offset}
}

// Time writes a time, absent when zero.
func Time(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// FillTime writes a time into memory of the caller's.
func FillTime(m *timestamppb.Timestamp, t time.Time) {
	m.Seconds, m.Nanos = t.Unix(), int32(t.Nanosecond())
}

// codeOf is the gRPC code of each kind.
var codeOf = map[fault.Kind]codes.Code{
	fault.KindInternal:        codes.Internal,
	fault.KindInvalid:         codes.InvalidArgument,
	fault.KindTooLarge:        codes.InvalidArgument,
	fault.KindUnsupported:     codes.InvalidArgument,
	fault.KindUnauthenticated: codes.Unauthenticated,
	fault.KindDenied:          codes.PermissionDenied,
	fault.KindNotFound:        codes.NotFound,
	fault.KindConflict:        codes.Aborted,
	fault.KindPrecondition:    codes.FailedPrecondition,
	fault.KindExhausted:       codes.ResourceExhausted,
	fault.KindUnavailable:     codes.Unavailable,
	fault.KindDeadline:        codes.DeadlineExceeded,
	fault.KindUnknown:         codes.DeadlineExceeded,
	fault.KindCancelled:       codes.Canceled,
	fault.KindUnimplemented:   codes.Unimplemented,
}

// Status writes err as google.rpc.Status with ErrorInfo, and BadRequest and
// RetryInfo where they say something, and Violations where those say what was
// expected. nil stays nil.
func Status(err error) *rpcstatus.Status {
	f := fault.Of(err)
	if f == nil {
		return nil
	}
	s := &rpcstatus.Status{Code: int32(codeOf[f.Kind()]), Message: ValidUTF8(f.Message)}
	metadata := make(map[string]string, len(f.Metadata))
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		metadata[k] = ValidUTF8(f.Metadata[k])
	}
	attach(s, &errdetails.ErrorInfo{Reason: string(f.Reason), Domain: fault.Domain, Metadata: metadata})
	if len(f.Violations) > 0 {
		bad, told, says := &errdetails.BadRequest{}, &posternv1.Violations{}, false
		for _, v := range f.Violations {
			says = says || v.Expected != "" || v.Got != ""
			told.Violations = append(told.Violations, &posternv1.Violation{
				Field: ValidUTF8(v.Field), Rule: ValidUTF8(v.Rule), Expected: ValidUTF8(v.Expected), Got: ValidUTF8(v.Got),
			})
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: ValidUTF8(v.Field), Description: ValidUTF8(v.Description), Reason: ValidUTF8(cmp.Or(v.Rule, string(f.Reason))),
			})
		}
		attach(s, bad)
		if says { // BadRequest has no place for them
			attach(s, told)
		}
	}
	if f.RetryAfter > 0 {
		attach(s, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	return s
}

func attach(s *rpcstatus.Status, detail proto.Message) {
	if a, err := anypb.New(detail); err == nil {
		s.Details = append(s.Details, a)
	}
}

// ToPosition reads a position.
func ToPosition(m *posternv1.Position) event.Position {
	return event.Position{Topic: m.GetTopic(), Partition: m.GetPartition(), Offset: m.GetOffset()}
}
