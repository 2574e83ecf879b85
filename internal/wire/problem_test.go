package wire

import (
	"reflect"
	"testing"

	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func TestWhatASchemaExpectedAndGotIsDataOverGRPCAndHTTPAlike(t *testing.T) {
	refused := fault.New(fault.SchemaRefused, "it does not fit").With("subject", "orders-value")
	refused.Violations = []fault.Violation{
		{Field: "/qty", Description: "avro.type: expected int, got string \"x\"", Rule: "avro.type", Expected: "int", Got: `string "x"`},
		{Field: "/id", Description: "required", Rule: "required", Expected: "id", Got: "\xff"},
	}
	s := Status(refused)
	var told posternv1.Violations
	if len(s.Details) != 3 || s.Details[2].UnmarshalTo(&told) != nil || len(told.Violations) != 2 {
		t.Fatalf("%v", s)
	}
	if v := told.Violations[0]; v.Field != "/qty" || v.Rule != "avro.type" || v.Expected != "int" || v.Got != `string "x"` {
		t.Errorf("%v", v)
	}
	refused.Violations[1].Got = told.Violations[1].Got // as UTF-8
	if there, back := ProblemOf(refused), ProblemOf(FromStatus(s)); !reflect.DeepEqual(there, back) {
		t.Errorf("over HTTP it is %+v, and by way of gRPC %+v", there, back)
	}
	// Other faults say it in words only, and have no such detail.
	if s := Status(fault.New(fault.InvalidArgument, "x").Field("name", "too long")); len(s.Details) != 2 {
		t.Errorf("%v", s)
	}
}
