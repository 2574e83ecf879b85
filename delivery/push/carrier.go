package push

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// carrier makes the calls to one application.
type carrier struct {
	subscription string
	conn         *grpc.ClientConn
	client       posternv1.EventHandlerClient
	metadata     []string // name, value pairs
	batch        bool
	timeout      time.Duration
	scrub        *setting.Scrubber // of what the application says back
}

// Close lets go of the connection.
func (c *carrier) Close() { _ = c.conn.Close() } // nothing is left to send

// Carry makes one call. Options.Timeout bounds all of it.
func (c *carrier) Carry(ctx context.Context, p *endpoint.Parcel) (answer endpoint.Answer) {
	began := time.Now()
	defer func() { answer.Timings.Total = time.Since(began) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	md := metadata.Pairs(c.metadata...)
	otel.GetTextMapPropagator().Inject(ctx, carrierOf(md))
	ctx = metadata.NewOutgoingContext(ctx, md)
	if !c.batch {
		_, err := c.client.Handle(ctx, c.message(p, p.Records[0]))
		answer.Outcome = c.judge(status.Convert(err))
		answer.Status = int(status.Code(err))
		return answer
	}
	request := &posternv1.HandleBatchRequest{Requests: make([]*posternv1.HandleRequest, len(p.Records))}
	for i, r := range p.Records {
		request.Requests[i] = c.message(p, r)
	}
	response, err := c.client.HandleBatch(ctx, request)
	answer.Outcome = c.judge(status.Convert(err))
	answer.Status = int(status.Code(err))
	if answer.Action == endpoint.Reject && len(p.Records) > 1 {
		// Refused as a whole: which of them is to blame, the answer does not say.
		answer.Action = endpoint.Split
	}
	results := response.GetResults()
	if err != nil || len(results) == 0 {
		return answer
	}
	if len(results) != len(p.Records) {
		answer.Outcome = endpoint.Outcome{Action: endpoint.Retry, Class: "code", Why: "the application answered a batch with another number of results than it has events"}
		return answer
	}
	for _, r := range results {
		answer.Each = append(answer.Each, c.judge(status.New(codes.Code(r.GetCode()), r.GetMessage())))
	}
	return answer
}

func (c *carrier) message(p *endpoint.Parcel, r *event.Record) *posternv1.HandleRequest {
	id := p.ID
	if !p.Sample {
		id = endpoint.MessageID(c.subscription, r.Position())
	}
	return &posternv1.HandleRequest{
		Subscription: c.subscription, Event: wire.Event(r), Position: wire.Position(r.Position()), Appended: wire.Time(r.Timestamp),
		Attempt: int32(p.Attempt), MessageId: id, Replay: p.Replay,
	}
}

// judge reads a status. Of what the application says back, no secret is kept.
func (c *carrier) judge(s *status.Status) endpoint.Outcome {
	if s.Code() == codes.OK {
		return judge(s)
	}
	said := s.Proto() // a copy
	said.Message = string(c.scrub.Text([]byte(said.Message)))
	return judge(status.FromProto(said))
}

// judge reads a status (proto handler.proto has the table for people).
func judge(s *status.Status) endpoint.Outcome {
	o := endpoint.Outcome{Action: endpoint.Retry, Class: "code"}
	if s.Code() == codes.OK {
		return endpoint.Outcome{Action: endpoint.Ack, Class: "ok"}
	}
	o.Why = "the application answered " + s.Code().String()
	if m := endpoint.Excerpt([]byte(s.Message())); m != "" {
		o.Why += ": " + m
	}
	switch s.Code() {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.DataLoss:
		o.Action = endpoint.Reject
	case codes.ResourceExhausted:
		o.Action, o.Class, o.Overload = endpoint.Throttle, "throttled", true
	case codes.DeadlineExceeded:
		o.Class, o.Overload = "timeout", true
	case codes.Unavailable:
		o.Class, o.Overload = "refused", true
	case codes.Unimplemented:
		o.Why += " (it does not serve postern.v1.EventHandler, or not this method: a misconfiguration; the event is tried again)"
	case codes.Unauthenticated, codes.PermissionDenied:
		o.Class = "auth"
	default: // tried again as it is
	}
	for _, d := range s.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			o.Pause = min(max(retry.GetRetryDelay().AsDuration(), 0), maxPause)
		}
	}
	return o
}

// maxPause bounds what an application may ask for.
const maxPause = 24 * time.Hour

// carrierOf lets the propagator write into metadata.
type carrierOf metadata.MD

func (c carrierOf) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c carrierOf) Set(key, value string) { metadata.MD(c).Set(key, value) }

func (c carrierOf) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
