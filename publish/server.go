package publish

import (
	"context"
	"errors"
	"io"
	"slices"
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
}

// NewServer makes the service.
func NewServer(p *Publisher, v protovalidate.Validator) *Server {
	return &Server{publisher: p, validator: v}
}

// Publish stores the events and answers for each.
func (s *Server) Publish(ctx context.Context, request *posternv1.PublishRequest) (*posternv1.PublishResponse, error) {
	if request.ValidateOnly {
		previews, err := s.publisher.Preview(ctx, authz.FromContext(ctx), requestOf(request, nil))
		if err != nil {
			return nil, err
		}
		return &posternv1.PublishResponse{Results: previewResults(previews)}, nil
	}
	pending, err := s.publisher.Start(ctx, authz.FromContext(ctx), requestOf(request, nil))
	if err != nil {
		return nil, err
	}
	return &posternv1.PublishResponse{Results: results(pending.WaitAhead(ctx))}, nil
}

// requestOf reads a request; its events go into room, where they fit.
func requestOf(m *posternv1.PublishRequest, room []event.Event) Request {
	events := slices.Grow(room[:0], len(m.Events))
	for _, e := range m.Events {
		events = append(events, wire.FromEvent(e))
	}
	return Request{Topic: m.Topic, Events: events, Durability: durabilityOf(m), Atomic: m.Atomic}
}

func durabilityOf(request *posternv1.PublishRequest) broker.Durability {
	if request.Durability == posternv1.Durability_DURABILITY_LEADER {
		return broker.Leader
	}
	return broker.AllReplicas
}

// results writes receipts as messages: two allocations for all that are stored.
func results(receipts []Receipt) []*posternv1.PublishResult {
	all := make([]*posternv1.PublishResult, len(receipts))
	slab := make([]struct {
		result   posternv1.PublishResult
		position posternv1.Position
	}, len(receipts))
	for i := range receipts {
		all[i] = &slab[i].result
		fillResult(all[i], &slab[i].position, &receipts[i])
	}
	return all
}

// fillResult writes r into m; at is memory for its position.
func fillResult(m *posternv1.PublishResult, at *posternv1.Position, r *Receipt) {
	if r.Err != nil {
		m.Error = wire.Status(r.Err)
		return
	}
	at.Topic, at.Partition, at.Offset = r.Position.Topic, r.Position.Partition, r.Position.Offset
	m.Position, m.Duplicate = at, r.Duplicate
}

func previewResults(previews []Preview) []*posternv1.PublishResult {
	all := make([]*posternv1.PublishResult, len(previews))
	for i := range previews {
		p := &previews[i]
		if p.Err != nil {
			all[i] = &posternv1.PublishResult{Error: wire.Status(p.Err)}
			continue
		}
		m := &posternv1.PublishPreview{Topic: p.Record.Topic, Rule: p.Rule, Key: p.Record.Key, Bytes: int64(p.Record.Size()), Durability: posternv1.Durability_DURABILITY_ALL_REPLICAS}
		if p.How.Durability == broker.Leader {
			m.Durability = posternv1.Durability_DURABILITY_LEADER
		}
		if p.Record.Partition != event.AnyPartition {
			m.Partition = &p.Record.Partition
		}
		if p.Rewritten {
			m.Value = p.Record.Value
		}
		all[i] = &posternv1.PublishResult{Preview: m}
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
// for each in turn and sends, as many answers at once as are there. A client
// that does not read them is cut, with SLOW_CONSUMER.
func (s *Server) PublishStream(stream grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse]) error {
	out := &answers{BidiStreamingServer: stream}
	return out.reading.While(func() error { return s.serveStream(out) }, unread)
}

func (s *Server) serveStream(stream *answers) error {
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

	notice := &drainNotice{publisher: s.publisher, draining: s.publisher.draining, send: func(deadline time.Time) error {
		drain := &posternv1.Drain{Deadline: wire.Time(deadline), Reason: "the gateway is stopping"}
		return stream.Send(&posternv1.PublishStreamResponse{Drain: drain})
	}}
	for {
		select {
		case r, ok := <-started:
			if !ok {
				return <-failed
			}
			if err := notice.whileWaiting(ctx, r.pending); err != nil {
				return err
			}
			answer := &posternv1.PublishStreamResponse{Done: []*posternv1.PublishDone{r.wait(ctx)}}
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
						if err := notice.whileWaiting(ctx, r.pending); err != nil {
							return err
						}
					}
					answer.Done = append(answer.Done, r.wait(ctx))
					room.give(r.events, r.bytes)
				default:
					more = false
				}
			}
			if err := stream.Send(answer); err != nil {
				return err
			}
		case <-notice.draining:
			if err := notice.give(); err != nil {
				return err
			}
		}
	}
}

// drainNotice tells a stream once that the gateway is stopping, also while an
// answer is waited for.
type drainNotice struct {
	publisher *Publisher
	draining  <-chan struct{} // nil when it is told
	send      func(deadline time.Time) error
}

func (d *drainNotice) give() error {
	d.draining = nil
	return d.send(d.publisher.drainTime())
}

// whileWaiting returns when w need not be waited for, or the notice is given.
func (d *drainNotice) whileWaiting(ctx context.Context, w *Pending) error {
	if w == nil || d.draining == nil || w.ready() {
		return nil
	}
	select {
	case <-w.all():
	case <-ctx.Done():
	case <-d.publisher.patience.over(w.began):
	case <-d.draining:
		return d.give()
	}
	return nil
}

// streamed is one request of a stream: started, or refused as a whole.
type streamed struct {
	sequence      uint64
	pending       *Pending // nil when the results are there
	results       []*posternv1.PublishResult
	err           error
	events, bytes int64
}

func (s *Server) readRequests(ctx context.Context, stream *answers, room *room, started chan<- *streamed) error {
	who := authz.FromContext(ctx)
	last := uint64(0)
	var one [1]event.Event // memory for a frame of one event
	for begun := false; ; begun = true {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r := &streamed{sequence: message.GetSequence()}
		if begun && r.sequence <= last {
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
			r.start(ctx, s.publisher, who, requestOf(message.Request, one[:]), message.Request.ValidateOnly)
			clear(one[:])
		}
		select {
		case started <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *streamed) start(ctx context.Context, p *Publisher, who authz.Identity, request Request, validateOnly bool) {
	if !validateOnly {
		r.pending, r.err = p.Start(ctx, who, request)
		return
	}
	previews, err := p.Preview(ctx, who, request)
	if r.err = err; err == nil {
		r.results = previewResults(previews)
	}
}

// ready reports whether wait would not wait.
func (r *streamed) ready() bool { return r.pending == nil || r.pending.ready() }

func (r *streamed) wait(ctx context.Context) *posternv1.PublishDone {
	var receipts []Receipt
	if r.pending != nil {
		receipts = r.pending.Wait(ctx)
	}
	if len(receipts) == 1 { // one allocation: a stream of single events has as many answers
		slab := new(struct {
			done     posternv1.PublishDone
			results  [1]*posternv1.PublishResult
			result   posternv1.PublishResult
			position posternv1.Position
		})
		fillResult(&slab.result, &slab.position, &receipts[0])
		slab.results[0] = &slab.result
		slab.done.Sequence, slab.done.Results = r.sequence, slab.results[:]
		return &slab.done
	}
	done := &posternv1.PublishDone{Sequence: r.sequence, Results: r.results}
	if r.err != nil {
		done.Error = wire.Status(r.err)
	} else if r.pending != nil {
		done.Results = results(receipts)
	}
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
