package endpoints

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

const (
	defaultRecoverRate = 10
	// maxRecover bounds the events of one call, of which only the places are held.
	maxRecover   = 500_000
	progressEach = time.Second
)

// RecoverEndpoint pushes events since a time once more.
func (s *Server) RecoverEndpoint(request *posternv1.RecoverEndpointRequest, stream grpc.ServerStreamingServer[posternv1.RecoverEndpointResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	if err := s.allowed(ctx, authz.Manage, request.GetName()); err != nil {
		return err
	}
	if s.endpoints.pusher(request.GetName()) == nil {
		return s.elsewhere(request.GetName())
	}
	places, err := s.lost(ctx, request)
	if err != nil {
		return err
	}
	progress := &posternv1.RecoverEndpointResponse{Total: int64(len(places))}
	if err := stream.Send(progress); err != nil || request.GetDryRun() || len(places) == 0 {
		progress.Done = err == nil
		if err == nil {
			err = stream.Send(progress)
		}
		return err
	}
	rate := request.GetRequestsPerSecond()
	if rate == 0 {
		rate = defaultRecoverRate
	}
	pace := time.NewTicker(max(time.Duration(float64(time.Second)/rate), time.Microsecond))
	defer pace.Stop()
	said := time.Now()
	for _, at := range places {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.draining:
			return fault.New(fault.ShuttingDown, "the gateway is stopping: recover again from another instance")
		}
		p := s.endpoints.ready(ctx, request.GetName())
		if p == nil {
			return ctx.Err()
		}
		if err := s.recoverOne(ctx, p, at, progress); err != nil {
			return err
		}
		if time.Since(said) >= progressEach {
			said = time.Now()
			if err := stream.Send(progress); err != nil {
				return err
			}
		}
	}
	progress.Done = true
	return stream.Send(progress)
}

func (s *Server) recoverOne(ctx context.Context, p *endpoint.Pusher, at event.Position, progress *posternv1.RecoverEndpointResponse) error {
	r, err := s.fetch(ctx, at)
	if fault.Is(err, fault.UnknownEvent) || fault.Is(err, fault.UnknownTopic) {
		progress.Missing++
		return nil
	}
	if err != nil {
		return err
	}
	a, err := p.Resend(ctx, r)
	switch {
	case err != nil:
		return err
	case a.Action == endpoint.Ack.String():
		progress.Succeeded++
	default:
		progress.Failed++
		progress.LastFailure = attemptToProto(a)
	}
	return nil
}

// lost finds the places of what is to be pushed once more, in Kafka's order
// within a partition.
func (s *Server) lost(ctx context.Context, request *posternv1.RecoverEndpointRequest) ([]event.Position, error) {
	since := request.GetSince().AsTime()
	topics, err := s.declared.Topics(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	var places []event.Position
	tooMany := fault.New(fault.InvalidArgument, "more than %d events would be recovered: choose a later time", maxRecover).Field("since", "it is too long ago")
	if request.GetAll() {
		for _, topic := range topics {
			err := scan(ctx, s.endpoints.kafka, topic, since, func(r *event.Record) {
				if len(places) <= maxRecover {
					places = append(places, r.Position())
				}
			})
			if err != nil {
				return nil, err
			}
		}
		if len(places) > maxRecover {
			return nil, tooMany
		}
		return places, nil
	}
	last := map[event.Position]endpoint.Attempt{}
	err = s.endpoints.scan(ctx, query{subscription: request.GetName(), since: since}, func(a endpoint.Attempt) {
		at := event.Position{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}
		before, known := last[at]
		if len(last) > 2*maxRecover || known && byTime(a, before) < 0 {
			return
		}
		if a.Action == endpoint.Ack.String() {
			// Nothing more is kept of what is well.
			a = endpoint.Attempt{At: a.At, Number: a.Number, Action: a.Action}
		}
		last[at] = a
	})
	if err != nil {
		return nil, err
	}
	for at, a := range last {
		if a.Action != endpoint.Ack.String() {
			places = append(places, at)
		}
	}
	if len(last) > 2*maxRecover || len(places) > maxRecover {
		return nil, tooMany
	}
	sortPlaces(places)
	return places, nil
}
