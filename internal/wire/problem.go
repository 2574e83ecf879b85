package wire

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// statusOf is the HTTP status of each kind.
var statusOf = map[fault.Kind]int{
	fault.KindInternal:        http.StatusInternalServerError,
	fault.KindInvalid:         http.StatusBadRequest,
	fault.KindTooLarge:        http.StatusRequestEntityTooLarge,
	fault.KindUnsupported:     http.StatusUnsupportedMediaType,
	fault.KindUnauthenticated: http.StatusUnauthorized,
	fault.KindDenied:          http.StatusForbidden,
	fault.KindNotFound:        http.StatusNotFound,
	fault.KindConflict:        http.StatusConflict,
	fault.KindPrecondition:    http.StatusPreconditionFailed,
	fault.KindExhausted:       http.StatusTooManyRequests,
	fault.KindUnavailable:     http.StatusServiceUnavailable,
	fault.KindDeadline:        http.StatusGatewayTimeout,
	fault.KindUnknown:         http.StatusGatewayTimeout,
	fault.KindCancelled:       499, // the client closed the request; nobody reads it
	fault.KindUnimplemented:   http.StatusNotImplemented,
}

// reasonStatus is for the reasons whose HTTP status says more than their kind's.
var reasonStatus = map[fault.Reason]int{
	fault.BodyTimeout:      http.StatusRequestTimeout,
	fault.HeadersTooLarge:  http.StatusRequestHeaderFieldsTooLarge,
	fault.NotAcceptable:    http.StatusNotAcceptable,
	fault.MethodNotAllowed: http.StatusMethodNotAllowed,
	fault.KafkaRefused:     http.StatusBadGateway,
	fault.DedupeKeyReused:  http.StatusUnprocessableEntity, // draft-ietf-httpapi-idempotency-key-header-07, section 2.7
}

// HTTPStatus is the HTTP status of err.
func HTTPStatus(err error) int {
	f := fault.Of(err)
	if s, ok := reasonStatus[f.Reason]; ok {
		return s
	}
	return statusOf[f.Kind()]
}

// Problem is an error as RFC 9457 problem details.
type Problem struct {
	Type     string            `json:"type"`
	Title    string            `json:"title"`
	Status   int               `json:"status"`
	Detail   string            `json:"detail"`
	Reason   fault.Reason      `json:"reason"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Errors   []ProblemField    `json:"errors,omitempty"`
}

// ProblemField is one wrong part of a request.
type ProblemField struct {
	Field    string `json:"field"`
	Detail   string `json:"detail"`
	Rule     string `json:"rule,omitempty"`
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
}

// ProblemOf writes err as problem details. The type is a name, not an address:
// what the reason means is in docs/errors.md.
func ProblemOf(err error) Problem {
	f := fault.Of(err)
	status := HTTPStatus(f)
	p := Problem{
		Type: "urn:postern:reason:" + string(f.Reason), Title: titleOf(f.Reason), Status: status,
		Detail: f.Message, Reason: f.Reason, Metadata: f.Metadata,
	}
	for _, v := range f.Violations {
		p.Errors = append(p.Errors, ProblemField{v.Field, v.Description, v.Rule, v.Expected, v.Got})
	}
	return p
}

func titleOf(reason fault.Reason) string {
	for _, r := range fault.Reasons {
		if r.Reason == reason {
			return r.Means
		}
	}
	return ""
}

// WriteProblem answers an HTTP request with err.
func WriteProblem(w http.ResponseWriter, err error) {
	f := fault.Of(err)
	p := ProblemOf(f)
	body, jsonErr := json.Marshal(p)
	if jsonErr != nil { // no member can fail; keep the promise of a body all the same
		body = []byte(`{"reason":"INTERNAL"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // the client may be gone
}

// FromStatus reads a fault back from a google.rpc.Status; one without our
// ErrorInfo gets the reason its code comes nearest to.
func FromStatus(s *rpcstatus.Status) *fault.Error {
	reason := fault.Internal
	switch codes.Code(s.GetCode()) {
	case codes.InvalidArgument, codes.OutOfRange:
		reason = fault.InvalidArgument
	case codes.NotFound:
		reason = fault.UnknownRoute
	case codes.Unimplemented:
		reason = fault.NotOffered
	case codes.Unavailable:
		reason = fault.ShuttingDown
	case codes.DeadlineExceeded:
		reason = fault.DeadlineExceeded
	case codes.Canceled:
		reason = fault.Cancelled
	case codes.ResourceExhausted:
		reason = fault.BodyTooLarge // grpc-go's own: a message larger than the limit
	case codes.PermissionDenied:
		reason = fault.NotAuthorized
	case codes.Unauthenticated:
		reason = fault.Unauthenticated
	}
	f := fault.New(reason, "%s", s.GetMessage())
	var told *posternv1.Violations
	for _, d := range s.GetDetails() {
		detail, err := d.UnmarshalNew()
		if err != nil {
			continue
		}
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == fault.Domain {
				f.Reason, f.Metadata = fault.Reason(detail.GetReason()), detail.GetMetadata()
			}
		case *errdetails.BadRequest:
			for _, v := range detail.GetFieldViolations() {
				one := fault.Violation{Field: v.GetField(), Description: v.GetDescription()}
				if v.GetReason() != string(f.Reason) {
					one.Rule = v.GetReason()
				}
				f.Violations = append(f.Violations, one)
			}
		case *posternv1.Violations:
			told = detail
		case *errdetails.RetryInfo:
			f.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	if all := told.GetViolations(); len(all) == len(f.Violations) {
		for i, v := range all {
			f.Violations[i].Expected, f.Violations[i].Got = v.GetExpected(), v.GetGot()
		}
	}
	return f
}
