package publish

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Server is the gRPC service Publisher. Requests of unary calls come validated
// and errors leave as faults: the interceptors of internal/server do both.
type Server struct {
	posternv1.UnimplementedPublisherServer
	publisher *Publisher
	validator protovalidate.Validator
	draining  <-chan struct{}
	drainTime func() time.Time
}

// NewServer makes the service. draining is closed when the gateway begins to
// stop, and drainTime then tells until when it serves.
func NewServer(p *Publisher, v protovalidate.Validator, draining <-chan struct{}, drainTime func() time.Time) *Server {
	return &Server{publisher: p, validator: v, draining: draining, drainTime: drainTime}
}

// Publish stores the events and answers for each.
func (s *Server) Publish(ctx context.Context, request *posternv1.PublishRequest) (*posternv1.PublishResponse, error) {
	receipts, err := s.publisher.Publish(ctx, authz.FromContext(ctx), request.Topic, eventsOf(request), durabilityOf(request))
	if err != nil {
		return nil, err
	}
	return &posternv1.PublishResponse{Results: results(receipts)}, nil
}

func eventsOf(request *posternv1.PublishRequest) []event.Event {
	events := make([]event.Event, len(request.Events))
	for i, m := range request.Events {
		events[i] = wire.FromEvent(m)
	}
	return events
}

func durabilityOf(request *posternv1.PublishRequest) broker.Durability {
	if request.Durability == posternv1.Durability_DURABILITY_LEADER {
		return broker.Leader
	}
	return broker.AllReplicas
}

func results(receipts []Receipt) []*posternv1.PublishResult {
	all := make([]*posternv1.PublishResult, len(receipts))
	for i, r := range receipts {
		if r.Err != nil {
			all[i] = &posternv1.PublishResult{Error: wire.Status(r.Err)}
		} else {
			all[i] = &posternv1.PublishResult{Position: wire.Position(r.Position)}
		}
	}
	return all
}

// What a stream may have unanswered. Its bytes are the producer's and bounded
// again there; this keeps one stream from taking all of that.
const (
	streamEvents = 10_000
	streamBytes  = 16 << 20
	// doneBatch bounds the answers in one message.
	doneBatch = 256
)

// PublishStream answers requests in their order as Kafka acknowledges them.
//
// One goroutine reads and starts requests while there is room; this one waits
// for each in turn and sends, as many answers at once as are there.
func (s *Server) PublishStream(stream grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse]) error {
	ctx := stream.Context()
	first := &posternv1.PublishStreamResponse{Window: &posternv1.PublishWindow{MaxEvents: streamEvents, MaxBytes: streamBytes}}
	if err := stream.Send(first); err != nil {
		return err
	}
	room := newRoom(streamEvents, streamBytes)
	started := make(chan *streamed, streamEvents)
	failed := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(started)
		failed <- s.readRequests(ctx, stream, room, started)
	})
	defer reader.Wait()
	defer room.close()

	draining := s.draining
	for {
		select {
		case r, ok := <-started:
			if !ok {
				return <-failed
			}
			answer := &posternv1.PublishStreamResponse{Done: []*posternv1.PublishDone{r.wait(ctx, s.publisher)}}
			room.give(r.events, r.bytes)
			for more := true; more && len(answer.Done) < doneBatch; {
				select {
				case r, ok := <-started:
					if !ok {
						more = false
						break
					}
					if !r.ready() && len(answer.Done) > 0 {
						// Send what is there before waiting for this one.
						if err := stream.Send(answer); err != nil {
							return err
						}
						answer = &posternv1.PublishStreamResponse{}
					}
					answer.Done = append(answer.Done, r.wait(ctx, s.publisher))
					room.give(r.events, r.bytes)
				default:
					more = false
				}
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		case <-draining:
			draining = nil
			drain := &posternv1.Drain{Deadline: wire.Time(s.drainTime()), Reason: "the gateway is stopping"}
			if err := stream.Send(&posternv1.PublishStreamResponse{Drain: drain}); err != nil {
				return err
			}
		}
	}
}

// streamed is one request of a stream: started, or refused as a whole.
type streamed struct {
	sequence      uint64
	pending       *Pending
	err           error
	events, bytes int64
}

func (s *Server) readRequests(ctx context.Context, stream grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse], room *room, started chan<- *streamed) error {
	who := authz.FromContext(ctx)
	last := uint64(0)
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r := &streamed{sequence: message.GetSequence()}
		if last != 0 && r.sequence <= last {
			return fault.New(fault.ProtocolViolation, "sequence %d came after %d: sequences must increase", r.sequence, last)
		}
		last = r.sequence
		for _, e := range message.GetRequest().GetEvents() {
			r.events++
			r.bytes += int64(len(e.Data) + len(e.Key))
		}
		if !room.take(ctx, r.events, r.bytes) {
			return ctx.Err()
		}
		if err := s.validator.Validate(message); err != nil {
			r.err = wire.Invalid(err)
		} else {
			r.pending, r.err = s.publisher.Start(ctx, who, message.Request.Topic, eventsOf(message.Request), durabilityOf(message.Request))
		}
		select {
		case started <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ready reports whether wait would not wait.
func (r *streamed) ready() bool {
	return r.pending == nil || len(r.pending.answers) >= r.pending.waiting
}

func (r *streamed) wait(ctx context.Context, p *Publisher) *posternv1.PublishDone {
	done := &posternv1.PublishDone{Sequence: r.sequence}
	if r.err != nil {
		done.Error = wire.Status(r.err)
		return done
	}
	ctx, cancel := context.WithDeadline(ctx, r.pending.began.Add(p.options.MaxWait))
	defer cancel()
	done.Results = results(r.pending.Wait(ctx))
	return done
}

// room counts what a stream has unanswered.
type room struct {
	mu            sync.Mutex
	events, bytes int64
	free          chan struct{}
	closed        bool
}

func newRoom(events, bytes int64) *room {
	return &room{events: events, bytes: bytes, free: make(chan struct{}, 1)}
}

// take waits until there is room. One request larger than all of it is let in alone.
func (r *room) take(ctx context.Context, events, bytes int64) bool {
	for {
		r.mu.Lock()
		fits := events <= r.events && bytes <= r.bytes || r.events == streamEvents && r.bytes == streamBytes
		if fits {
			r.events -= events
			r.bytes -= bytes
		}
		closed := r.closed
		r.mu.Unlock()
		if fits || closed {
			return fits
		}
		select {
		case <-r.free:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *room) give(events, bytes int64) {
	r.mu.Lock()
	r.events += events
	r.bytes += bytes
	r.mu.Unlock()
	r.signal()
}

func (r *room) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.signal()
}

func (r *room) signal() {
	select {
	case r.free <- struct{}{}:
	default:
	}
}
