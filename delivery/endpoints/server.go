package endpoints

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Server is the service Endpoints.
type Server struct {
	posternv1.UnimplementedEndpointsServer
	endpoints *Endpoints
	policy    authz.Policy
	declared  Declared
	draining  <-chan struct{}
}

// Declared is what the service asks of the subscriptions that this instance knows.
type Declared interface {
	// Hosts are those of all that are pushed, by subscription.
	Hosts() map[string]string
	// Host is one's; false: no such subscription is pushed.
	Host(name string) (string, bool)
	// Topics are those that a subscription reads.
	Topics(ctx context.Context, name string) ([]string, error)
	// Pusher makes what carries a subscription's events, for a person's request while
	// it is at rest; nil: no such subscription is pushed.
	Pusher(name string) (*endpoint.Pusher, error)
}

// NewServer makes the service. draining is closed when the gateway begins to stop.
func NewServer(e *Endpoints, policy authz.Policy, declared Declared, draining <-chan struct{}) *Server {
	return &Server{endpoints: e, policy: policy, declared: declared, draining: draining}
}

func (s *Server) allowed(ctx context.Context, verb authz.Verb, name string) error {
	return s.policy.Check(authz.FromContext(ctx), verb, name)
}

// ListEndpoints lists those the caller may see.
func (s *Server) ListEndpoints(ctx context.Context, request *posternv1.ListEndpointsRequest) (*posternv1.ListEndpointsResponse, error) {
	size := int(request.GetPageSize())
	if size == 0 {
		size = 1000
	}
	answer := &posternv1.ListEndpointsResponse{}
	for _, name := range s.names() {
		if name <= request.GetPageToken() || s.allowed(ctx, authz.Describe, name) != nil {
			continue
		}
		if len(answer.Endpoints) == size {
			answer.NextPageToken = answer.Endpoints[size-1].Name
			break
		}
		if e := s.describe(name); e != nil {
			answer.Endpoints = append(answer.Endpoints, e)
		}
	}
	return answer, nil
}

// GetEndpoint tells of one.
func (s *Server) GetEndpoint(ctx context.Context, request *posternv1.GetEndpointRequest) (*posternv1.Endpoint, error) {
	if err := s.allowed(ctx, authz.Describe, request.GetName()); err != nil {
		return nil, err
	}
	return s.described(request.GetName())
}

func (s *Server) described(name string) (*posternv1.Endpoint, error) {
	if e := s.describe(name); e != nil {
		return e, nil
	}
	return nil, fault.New(fault.UnknownSubscription, "no endpoint of a subscription %s is known here: declare it with webhook or push", name).With("subscription", name)
}

var statesToProto = map[endpoint.State]posternv1.EndpointState{
	endpoint.Active: posternv1.EndpointState_ENDPOINT_STATE_ACTIVE, endpoint.Throttled: posternv1.EndpointState_ENDPOINT_STATE_THROTTLED,
	endpoint.Open: posternv1.EndpointState_ENDPOINT_STATE_OPEN, endpoint.Disabled: posternv1.EndpointState_ENDPOINT_STATE_DISABLED,
}

// names lists the endpoints that are declared here or have a state, in order.
func (s *Server) names() []string {
	names := slices.AppendSeq(s.endpoints.states.names(), maps.Keys(s.declared.Hosts()))
	slices.Sort(names)
	return slices.Compact(names)
}

// describe writes what is known of an endpoint; nil when nothing is.
func (s *Server) describe(name string) *posternv1.Endpoint {
	if p := s.endpoints.pusher(name); p != nil {
		is := p.Status()
		return &posternv1.Endpoint{
			Name: name, Host: p.Host(), State: statesToProto[is.State], Reason: is.Reason, Until: wire.Time(is.Until), Limit: int32(is.Limit), InFlight: int32(is.InFlight),
			FailingSince: wire.Time(is.FailingSince), LastSuccess: wire.Time(is.LastSuccess), AllowedPerMinute: int32(is.Consent.PerMinute), Running: true,
		}
	}
	host, declared := s.declared.Host(name)
	if r, ok := s.endpoints.states.get(name); ok {
		return &posternv1.Endpoint{Name: name, Host: host, State: statesToProto[r.State], Reason: r.Reason, Until: wire.Time(r.Until), FailingSince: wire.Time(r.FailingSince)}
	}
	if declared { // it is about to run, or paused
		return &posternv1.Endpoint{Name: name, Host: host, State: posternv1.EndpointState_ENDPOINT_STATE_ACTIVE}
	}
	return nil
}

// EnableEndpoint begins an endpoint anew.
func (s *Server) EnableEndpoint(ctx context.Context, request *posternv1.EnableEndpointRequest) (*posternv1.Endpoint, error) {
	return s.byHand(ctx, request.GetName(), endpoint.Active, "enabled by hand", request.GetReason())
}

// DisableEndpoint stops an endpoint.
func (s *Server) DisableEndpoint(ctx context.Context, request *posternv1.DisableEndpointRequest) (*posternv1.Endpoint, error) {
	return s.byHand(ctx, request.GetName(), endpoint.Disabled, "disabled by hand", request.GetReason())
}

func (s *Server) byHand(ctx context.Context, name string, state endpoint.State, what, why string) (*posternv1.Endpoint, error) {
	who := authz.FromContext(ctx)
	if err := s.allowed(ctx, authz.Manage, name); err != nil {
		return nil, err
	}
	what += " (" + who.Name + ")"
	if why != "" {
		what += ": " + why
	}
	s.endpoints.log.Info("endpoint "+what, "subscription", name)
	p := s.endpoints.pusher(name)
	switch {
	case p == nil && s.describe(name) == nil:
		return s.described(name)
	case p == nil: // it runs elsewhere, or not yet: its pusher obeys what is saved
		s.endpoints.states.Save(endpoint.Record{
			Subscription: name, State: state, Reason: what, ByHand: true, Instance: s.endpoints.options.Instance, At: time.Now(),
		})
	case state == endpoint.Active:
		p.Enable(what)
	default:
		p.Disable(what)
	}
	return s.described(name)
}

// here gives the pusher of an endpoint that is declared on this instance, at work or
// at rest; done lets go of it.
func (s *Server) here(ctx context.Context, name string) (p *endpoint.Pusher, done func(), err error) {
	if err := s.allowed(ctx, authz.Manage, name); err != nil {
		return nil, nil, err
	}
	if p := s.endpoints.pusher(name); p != nil {
		return p, func() {}, nil
	}
	p, err = s.declared.Pusher(name)
	if err != nil {
		return nil, nil, err
	}
	if p == nil {
		return nil, nil, s.elsewhere(name)
	}
	if r, ok := s.endpoints.states.get(name); ok {
		p.Recall(r)
	}
	return p, p.Close, nil
}

// elsewhere says why an endpoint has no pusher here.
func (s *Server) elsewhere(name string) error {
	if _, err := s.described(name); err != nil {
		return err
	}
	return fault.New(fault.UnknownSubscription, "the endpoint of %s does not run on this instance: resume or enable it if it is paused or disabled, else ask an instance that has it declared", name).With("subscription", name)
}

// TestEndpoint sends a sample.
func (s *Server) TestEndpoint(ctx context.Context, request *posternv1.TestEndpointRequest) (*posternv1.TestEndpointResponse, error) {
	p, done, err := s.here(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	id := rand.Text()
	e := event.Event{
		ID: id, Source: "/postern/" + s.endpoints.options.Instance, Type: "dev.postern.sample", Subject: request.GetName(), Time: time.Now().UTC(),
		ContentType: "application/json", Data: []byte(`{"sample":true}`), Partition: event.AnyPartition,
	}
	if request.GetEvent() != nil {
		e = wire.FromEvent(request.GetEvent())
		if err := e.Validate(); err != nil {
			return nil, err
		}
	}
	r := e.Record("postern.sample")
	r.Partition, r.Offset, r.Timestamp = 0, 0, time.Now()
	a, err := p.Sample(ctx, r, id)
	if err != nil {
		return nil, err
	}
	return &posternv1.TestEndpointResponse{Attempt: attemptToProto(a)}, nil
}

const defaultAttempts = 100

// ListAttempts reads the log.
func (s *Server) ListAttempts(ctx context.Context, request *posternv1.ListAttemptsRequest) (*posternv1.ListAttemptsResponse, error) {
	if err := s.allowed(ctx, authz.Describe, request.GetSubscription()); err != nil {
		return nil, err
	}
	q := query{eventID: request.GetEventId(), webhookID: request.GetWebhookId(), subscription: request.GetSubscription(), failed: request.GetFailed()}
	if request.GetSince() != nil {
		q.since = request.GetSince().AsTime()
	}
	if request.GetPosition() != nil {
		at := wire.ToPosition(request.GetPosition())
		q.position = &at
	}
	newest := latest{n: int(request.GetLimit())}
	if newest.n == 0 {
		newest.n = defaultAttempts
	}
	who := authz.FromContext(ctx)
	err := s.endpoints.scan(ctx, q, func(a endpoint.Attempt) {
		if s.policy.Check(who, authz.Describe, a.Subscription) == nil {
			newest.take(a)
		}
	})
	if err != nil {
		return nil, err
	}
	answer := &posternv1.ListAttemptsResponse{}
	for _, a := range newest.sorted() {
		answer.Attempts = append(answer.Attempts, attemptToProto(a))
	}
	answer.Truncated = newest.truncated
	return answer, nil
}

func attemptToProto(a endpoint.Attempt) *posternv1.Attempt {
	took := func(ms float64) *durationpb.Duration {
		if ms == 0 {
			return nil
		}
		return durationpb.New(time.Duration(ms * float64(time.Millisecond)))
	}
	return &posternv1.Attempt{
		WebhookId: a.WebhookID, Subscription: a.Subscription, Position: wire.Position(event.Position{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}),
		EventId: a.EventID, EventSource: a.EventSource, Number: int32(a.Number), Replay: a.Replay, BatchId: a.BatchID, BatchSize: int32(a.BatchSize),
		Time: wire.Time(a.At), Action: a.Action, Class: a.Class, Status: int32(a.Status), Detail: a.Why, Host: a.Host, Keys: a.Keys,
		Dns: took(a.DNS), Connect: took(a.Connect), Tls: took(a.TLS), FirstByte: took(a.FirstByte), Total: took(a.Total),
		TraceId: a.TraceID, SpanId: a.SpanID, Instance: a.Instance,
	}
}

// ResendEvent pushes one event once more.
func (s *Server) ResendEvent(ctx context.Context, request *posternv1.ResendEventRequest) (*posternv1.ResendEventResponse, error) {
	p, done, err := s.here(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	at := wire.ToPosition(request.GetPosition())
	r, err := s.fetch(ctx, at)
	if err != nil {
		return nil, err
	}
	if err := s.reads(ctx, request.GetName(), at.Topic); err != nil {
		return nil, err
	}
	a, err := p.Resend(ctx, r)
	if err != nil {
		return nil, err
	}
	return &posternv1.ResendEventResponse{Attempt: attemptToProto(a)}, nil
}

// reads refuses topics that are not the subscription's: resending must not be a way to others.
func (s *Server) reads(ctx context.Context, name, topic string) error {
	topics, err := s.declared.Topics(ctx, name)
	if err != nil {
		return err
	}
	if slices.Contains(topics, topic) {
		return nil
	}
	return fault.New(fault.InvalidArgument, "the subscription %s does not read %s", name, topic).Field("position.topic", "it is none of the subscription's topics")
}

// fetch reads one event.
func (s *Server) fetch(ctx context.Context, at event.Position) (*event.Record, error) {
	if _, err := event.ParseTopic(at.Topic); err != nil {
		return nil, fault.New(fault.InvalidTopic, "%w", err).Field("position.topic", "%v", err)
	}
	ranges, err := s.endpoints.kafka.Ranges(ctx, at.Topic)
	if err != nil {
		return nil, err
	}
	r, ok := ranges[at.Partition]
	gone := fault.New(fault.UnknownEvent, "Kafka does not hold %s any more, or not yet: the partition has %d to %d", at, r.Start, r.End-1)
	if !ok || at.Offset < r.Start || at.Offset >= r.End {
		return nil, gone
	}
	reader, err := s.endpoints.kafka.NewReader(at.Topic, map[int32]int64{at.Partition: at.Offset})
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	var found *event.Record
	past := false
	for found == nil && !past {
		poll, cancel := context.WithTimeout(ctx, scanQuiet)
		err := reader.Poll(poll, 1, func(r *event.Record) {
			switch {
			case r.Offset == at.Offset && found == nil:
				found = r.Clone()
			case r.Offset > at.Offset:
				past = true
			}
		})
		quiet := poll.Err() != nil
		cancel()
		switch {
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case found == nil && (past || quiet): // compacted away, or a transaction's marker
			return nil, gone
		}
	}
	return found, nil
}
