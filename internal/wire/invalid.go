package wire

import (
	"errors"

	"buf.build/go/protovalidate"

	"github.com/postern-dev/postern/fault"
)

// Invalid says as a fault what protovalidate found wrong with a request.
func Invalid(err error) error {
	if err == nil {
		return nil
	}
	var wrong *protovalidate.ValidationError
	if !errors.As(err, &wrong) || len(wrong.Violations) == 0 {
		return fault.New(fault.Internal, "validate the request: %w", err)
	}
	first := wrong.Violations[0].Proto
	f := fault.New(fault.InvalidArgument, "%s: %s", protovalidate.FieldPathString(first.GetField()), first.GetMessage())
	for _, v := range wrong.Violations {
		field := protovalidate.FieldPathString(v.Proto.GetField())
		f = f.Field(field, "%s", v.Proto.GetMessage())
		if field == "topic" || field == "request.topic" { // of a stream's message
			f.Reason = fault.InvalidTopic
		}
	}
	return f
}
