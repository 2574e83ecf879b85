package subscribe

import (
	"context"
	"errors"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// Specs finds the subscriptions that are served here, or says why one is not;
// UNKNOWN_SUBSCRIPTION when there is none.
type Specs interface {
	Find(ctx context.Context, name string) (subscription.Spec, error)
}

// Tailer serves Tail, which needs no subscription.
type Tailer interface {
	Tail(*posternv1.TailRequest, grpc.ServerStreamingServer[posternv1.TailResponse]) error
	// Cursor writes positions in a topic, by partition, as Tail takes them.
	Cursor(map[int32]int64) string
}

// Drain tells that the gateway is about to stop.
type Drain struct {
	Began    context.Context // ended when the drain begins
	Deadline func() time.Time
}

// Server is the gRPC service Subscriber.
type Server struct {
	posternv1.UnimplementedSubscriberServer
	Tailer
	queues    *delivery.Queues
	specs     Specs
	policy    authz.Policy
	validator protovalidate.Validator
	drain     Drain
	viewer    Viewer
}

// NewServer makes the service.
func NewServer(queues *delivery.Queues, specs Specs, policy authz.Policy, v protovalidate.Validator, tailer Tailer, drain Drain, viewer Viewer) *Server {
	return &Server{queues: queues, specs: specs, policy: policy, validator: v, Tailer: tailer, drain: drain, viewer: viewer}
}

// Tail is the Tailer's.
func (s *Server) Tail(request *posternv1.TailRequest, stream grpc.ServerStreamingServer[posternv1.TailResponse]) error {
	return s.Tailer.Tail(request, stream)
}

// Subscribe serves one stream of deliveries and settlements.
func (s *Server) Subscribe(stream grpc.BidiStreamingServer[posternv1.SubscribeRequest, posternv1.SubscribeResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetOpen() == nil {
		return fault.New(fault.ProtocolViolation, "the first frame must be open")
	}
	if err := s.validator.Validate(first); err != nil {
		return wire.Invalid(err)
	}
	session, err := s.open(ctx, first.GetOpen())
	if err != nil {
		return err
	}
	return session.serveBidi(ctx, stream)
}

// Stream serves deliveries only; settlements come by Settle.
func (s *Server) Stream(request *posternv1.StreamRequest, stream grpc.ServerStreamingServer[posternv1.SubscribeResponse]) error {
	session, err := s.open(stream.Context(), request.GetOpen())
	if err != nil {
		return err
	}
	return session.serve(stream.Context(), stream.Send, sendDeliveries(stream), request.GetAckOnSend())
}

// Pull lends events to a caller who asks again and again.
func (s *Server) Pull(ctx context.Context, request *posternv1.PullRequest) (*posternv1.PullResponse, error) {
	spec, err := s.lookup(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	queue, err := s.queues.Open(ctx, spec.Queue())
	if err != nil {
		return nil, err
	}
	defer s.queues.Release(queue, delivery.LingerPull)
	answer := &posternv1.PullResponse{Instance: s.queues.Instance().String()}
	if err := s.nameInstance(ctx); err != nil {
		return nil, err
	}
	attachment, _, err := queue.Attach(delivery.AttachOptions{
		Window: delivery.Window{Messages: max(1, int(request.GetMaxMessages()))},
		Lease:  request.GetLease().AsDuration(),
		Client: "pull", Kind: "pull",
	})
	if err != nil {
		return nil, err
	}
	defer attachment.Leave()
	wait, cancel := context.WithTimeout(ctx, max(request.GetWait().AsDuration(), minPullWait))
	defer cancel()
	leases, _, err := attachment.Next(wait)
	switch {
	case ctx.Err() != nil:
		// Nobody will read the answer: what was lent goes back at once.
		attachment.Return(leases)
		return nil, fault.Of(ctx.Err())
	case err != nil && wait.Err() != nil:
		return answer, nil
	case err != nil:
		return nil, err
	}
	if asJSON(request.GetView()) {
		var later bool
		if leases, later = view(ctx, s.viewer, leases, queue, attachment); later && len(leases) == 0 {
			pause(wait) // else the caller would ask again at once
		}
	}
	answer.Deliveries = deliveriesOf(leases)
	return answer, nil
}

// nameInstance tells beside an answer whose leases it speaks of.
func (s *Server) nameInstance(ctx context.Context) error {
	return grpc.SetHeader(ctx, metadata.Pairs(wire.InstanceMetadata, s.queues.Instance().String()))
}

// minPullWait lets a pull that does not wait still get what is there.
const minPullWait = 5 * time.Millisecond

// Settle takes settlements of Pull and Stream.
func (s *Server) Settle(ctx context.Context, request *posternv1.SettleRequest) (*posternv1.SettleResponse, error) {
	if err := s.policy.Check(authz.FromContext(ctx), authz.Subscribe, request.GetName()); err != nil {
		return nil, err
	}
	settlements := settlementsOf(request.GetAcks(), request.GetSettlements())
	answer := &posternv1.SettleResponse{Instance: s.queues.Instance().String()}
	if err := s.nameInstance(ctx); err != nil {
		return nil, err
	}
	queue := s.queues.Running(request.GetName())
	if queue == nil {
		if _, err := s.lookup(ctx, request.GetName()); err != nil {
			return nil, err
		}
		for _, one := range settlements {
			r := delivery.Result{ID: one.ID, Outcome: delivery.UnknownID}
			if one.ID.Instance() != s.queues.Instance() {
				r.Outcome = delivery.WrongInstance
			}
			answer.Results = append(answer.Results, resultOf(r))
		}
		return answer, nil
	}
	var results []delivery.Result
	if request.GetConfirm() == posternv1.Confirm_CONFIRM_ON_COMMIT {
		results = queue.SettleCommitted(ctx, settlements)
	} else {
		results, _ = queue.Settle(settlements)
	}
	for _, r := range results {
		answer.Results = append(answer.Results, resultOf(r))
	}
	return answer, nil
}

// lookup finds the declared subscription called name if the caller may have it.
func (s *Server) lookup(ctx context.Context, name string) (subscription.Spec, error) {
	if err := s.policy.Check(authz.FromContext(ctx), authz.Subscribe, name); err != nil {
		return subscription.Spec{}, err
	}
	return s.specs.Find(ctx, name)
}

// resolve tells what an open frame asks for.
func (s *Server) resolve(ctx context.Context, open *posternv1.Open) (delivery.Options, error) {
	inline := open.GetInline()
	switch {
	case inline == nil && open.GetSubscription() == "":
		return delivery.Options{}, fault.New(fault.InvalidArgument, "open names no subscription: set subscription, or inline with name and topics").
			Field("open.subscription", "either it or inline is needed")
	case inline == nil:
		spec, err := s.lookup(ctx, open.GetSubscription())
		return spec.Queue(), err
	case open.GetSubscription() != "" && open.GetSubscription() != inline.GetName():
		return delivery.Options{}, fault.New(fault.InvalidArgument, "open names two subscriptions, %q and inline %q: give one", open.GetSubscription(), inline.GetName()).
			Field("open.inline.name", "differs from open.subscription")
	}
	spec, err := subscription.FromProto(inline)
	if err == nil {
		spec, err = spec.Compiled()
	}
	if err == nil && spec.Webhook != nil {
		err = errors.New("a webhook is declared in the configuration or created, never opened")
	}
	if err != nil {
		return delivery.Options{}, fault.New(fault.InvalidArgument, "the inline subscription is wrong: %w", err).Field("open.inline", "%v", err)
	}
	who := authz.FromContext(ctx)
	for _, name := range append([]string{spec.Name}, spec.Topics...) {
		if err := s.policy.Check(who, authz.Subscribe, name); err != nil {
			return delivery.Options{}, err
		}
	}
	if spec.DeadLetter.Topic != "" {
		if err := s.policy.Check(who, authz.Publish, spec.DeadLetter.Topic); err != nil {
			return delivery.Options{}, err
		}
	}
	if declared, err := s.specs.Find(ctx, spec.Name); err == nil && !sameQueue(declared, spec) {
		return delivery.Options{}, fault.New(fault.SubscriptionMismatch,
			"subscription %s is declared with other settings: open it by its name only", spec.Name).With("subscription", spec.Name)
	}
	return spec.Queue(), nil
}
