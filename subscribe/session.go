// Package subscribe owns carrying leases over a stream or a pull: the gRPC
// service Subscriber and its hand-written HTTP routes.
//
// A session is one open stream: an attachment to the subscription's queue, the
// frames it sends (opened, deliveries, receipts, heartbeat, revoked, drain) and
// those it takes (window, settle, ping). Nothing here decides when an event is
// delivered, again or never: that is package delivery's.
package subscribe

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/chore"
	"github.com/postern-dev/postern/internal/eventstream"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

const (
	// heartbeatEvery is how long a stream is silent at most.
	heartbeatEvery = 15 * time.Second
	// resumeGrace is how long a broken stream keeps its leases.
	resumeGrace = 10 * time.Second
	// A message carries at most this many deliveries and about this many
	// bytes: large enough to spread the cost of a message, small enough for a
	// tier of grpc-go's buffer pool.
	batchEvents = 500
	batchBytes  = 256 << 10
	// receiptsAhead bounds the settle frames whose commit is awaited at once.
	receiptsAhead = 1024
)

// session is one open stream.
type session struct {
	server     *Server
	queue      *delivery.Queue
	attachment *delivery.Attachment
	opened     *posternv1.Opened
	resumed    []delivery.Lease
	confirm    posternv1.Confirm
	asJSON     bool // deliveries are shown as JSON
}

// open resolves, joins and attaches.
func (s *Server) open(ctx context.Context, open *posternv1.Open) (*session, error) {
	options, err := s.resolve(ctx, open)
	if err != nil {
		return nil, err
	}
	queue, err := s.queues.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	window := delivery.Window{Messages: delivery.DefaultWindow, Bytes: delivery.DefaultWindowBytes}
	if w := open.GetWindow(); w != nil {
		window = delivery.Window{Messages: int(w.GetMaxMessages()), Bytes: w.GetMaxBytes()}
	}
	attachment, resumed, err := queue.Attach(delivery.AttachOptions{
		Window: window, Lease: open.GetLease().AsDuration(), Client: open.GetClientId(), Kind: "stream", Token: open.GetResumeToken(), AutoExtend: open.GetAutoExtend(),
	})
	if err != nil {
		s.queues.Release(queue, delivery.LingerStream)
		return nil, err
	}
	lease := options.Lease
	if open.GetLease() != nil {
		lease = open.GetLease().AsDuration()
	}
	opened := &posternv1.Opened{
		Subscription: options.Name, Instance: s.queues.Instance().String(), ResumeToken: attachment.Token(),
		Window: &posternv1.Window{MaxMessages: int64(window.Messages), MaxBytes: window.Bytes},
		Lease:  durationpb.New(lease), HeartbeatEvery: durationpb.New(heartbeatEvery), Order: subscription.OrderToProto(options.Order),
	}
	for _, l := range resumed {
		opened.ResumedDeliveryIds = append(opened.ResumedDeliveryIds, uint64(l.ID))
	}
	return &session{server: s, queue: queue, attachment: attachment, opened: opened, resumed: resumed, confirm: open.GetConfirm(), asJSON: asJSON(open.GetView())}, nil
}

// close detaches; the leases wait for grace to be taken over.
func (s *session) close(grace time.Duration) {
	s.attachment.Detach(grace)
	s.server.queues.Release(s.queue, max(grace, delivery.LingerStream))
}

// serveText serves deliveries as text over HTTP until the client goes away.
func (s *session) serveText(ctx context.Context, text *eventstream.Writer, token string, ackOnSend bool) error {
	err := s.serve(ctx, func(m *posternv1.SubscribeResponse) error {
		switch frame := m.GetFrame().(type) {
		case *posternv1.SubscribeResponse_Opened:
			return text.Event("opened", token, protoJSON(frame.Opened))
		case *posternv1.SubscribeResponse_Heartbeat:
			return text.Event("heartbeat", token, protoJSON(frame.Heartbeat))
		case *posternv1.SubscribeResponse_Revoked:
			return text.Event("revoked", token, protoJSON(frame.Revoked))
		case *posternv1.SubscribeResponse_Drain:
			return text.Event("drain", token, protoJSON(frame.Drain))
		}
		return nil
	}, func(leases []delivery.Lease) error {
		for i := range leases {
			if err := text.End(appendDelivery(text.Begin("delivery", token), &leases[i])); err != nil {
				return err
			}
		}
		return text.Flush()
	}, ackOnSend)
	if fault.Is(err, fault.ShuttingDown) {
		return nil // drained: the answer ends in order
	}
	return err
}

func protoJSON(m proto.Message) []byte {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil { // our own messages always marshal
		return []byte("{}")
	}
	return b
}

// sendDeliveries makes what sends a batch of leases as a message, encoded from
// the records themselves.
func sendDeliveries(stream grpc.ServerStream) func([]delivery.Lease) error {
	frame := &deliveryFrame{}
	return func(leases []delivery.Lease) error {
		frame.set(leases)
		defer frame.release()
		return stream.SendMsg(frame) // it is encoded when this returns
	}
}

// sender writes frames one at a time and knows when the last one went.
type sender struct {
	slot    chan struct{} // one; a lock that a fake clock can see through
	reading wire.Reading
	send    func(*posternv1.SubscribeResponse) error
	lend    func([]delivery.Lease) error
	last    time.Time
}

func newSender(send func(*posternv1.SubscribeResponse) error, lend func([]delivery.Lease) error) *sender {
	return &sender{slot: make(chan struct{}, 1), send: send, lend: lend, last: time.Now()}
}

func (s *sender) frame(ctx context.Context, m *posternv1.SubscribeResponse) error {
	return s.alone(ctx, func() error { return s.send(m) })
}

func (s *sender) leases(ctx context.Context, leases []delivery.Lease) error {
	return s.alone(ctx, func() error { return s.lend(leases) })
}

// alone runs write while nobody else writes.
func (s *sender) alone(ctx context.Context, write func() error) error {
	select {
	case s.slot <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slot }()
	s.last = time.Now()
	return s.reading.Write(write)
}

// quietFor is how long nothing was sent.
func (s *sender) quietFor() time.Duration {
	s.slot <- struct{}{}
	defer func() { <-s.slot }()
	return time.Since(s.last)
}

// serveBidi serves until the client closes, the connection breaks or the
// gateway has drained.
func (s *session) serveBidi(ctx context.Context, stream grpc.BidiStreamingServer[posternv1.SubscribeRequest, posternv1.SubscribeResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := newSender(stream.Send, sendDeliveries(stream))
	if err := out.frame(ctx, &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Opened{Opened: s.opened}}); err != nil {
		s.close(resumeGrace)
		return err
	}
	commits := &commits{}
	ended := make(chan error, 1)
	go func() { // ends with the stream's context, that is when this handler has returned
		err := s.read(ctx, stream, commits, out)
		commits.end()
		ended <- err
		cancel(errClientDone)
	}()
	err := s.deliverToReader(ctx, out, false)
	if errors.Is(context.Cause(ctx), errClientDone) {
		err = <-ended
		commits.answered.Wait()
	}
	if err == nil {
		s.close(0) // an orderly end: nothing to resume
		return nil
	}
	s.close(resumeGrace)
	return err
}

var errClientDone = errors.New("the client closed its side")

// serve sends deliveries until the client goes away.
func (s *session) serve(ctx context.Context, send func(*posternv1.SubscribeResponse) error, lend func([]delivery.Lease) error, ackOnSend bool) error {
	out := newSender(send, lend)
	err := out.frame(ctx, &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Opened{Opened: s.opened}})
	if err == nil {
		err = s.deliverToReader(ctx, out, ackOnSend)
	}
	s.close(resumeGrace)
	return err
}

// deliverToReader is deliver until the client stops reading: it costs what one
// message does, and is told why its stream ends.
func (s *session) deliverToReader(ctx context.Context, out *sender, ackOnSend bool) error {
	return out.reading.While(func() error { return s.deliver(ctx, out, ackOnSend) }, func(waited time.Duration) error {
		return fault.New(fault.SlowConsumer, "the stream was not read for %s: read on while you work, or take a smaller window", waited.Round(time.Second)).
			With("subscription", s.opened.GetSubscription())
	})
}

// deliver sends deliveries, revocations, heartbeats and the drain notice.
func (s *session) deliver(ctx context.Context, out *sender, ackOnSend bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel(nil)
	alive := s.keepAlive(ctx, out, &others, cancel)
	defer alive.End()
	defer context.AfterFunc(s.server.drain.Began, alive.Ask)()
	alive.AskIn(heartbeatEvery)
	alive.Begin()
	if err := s.sendLeases(ctx, out, s.resumed, ackOnSend); err != nil {
		return err
	}
	var leases []delivery.Lease
	for {
		var revoked []delivery.Revocation
		var err error
		leases, revoked, err = s.attachment.NextInto(ctx, leases)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errClientDone) {
				return cause
			}
			return err
		}
		if len(revoked) > 0 {
			if err := out.frame(ctx, revokedFrame(revoked)); err != nil {
				return err
			}
		}
		if err := s.sendLeases(ctx, out, leases, ackOnSend); err != nil {
			return err
		}
	}
}

func (s *session) sendLeases(ctx context.Context, out *sender, leases []delivery.Lease, ackOnSend bool) error {
	if s.asJSON {
		var later bool
		if leases, later = view(ctx, s.server.viewer, leases, s.queue, s.attachment); later {
			defer pause(ctx)
		}
	}
	for len(leases) > 0 {
		n, size := 0, 0
		for n < len(leases) && n < batchEvents && (n == 0 || size < batchBytes) {
			size += leases[n].Record.Size()
			n++
		}
		if err := out.leases(ctx, leases[:n]); err != nil {
			return err
		}
		if ackOnSend {
			acks := make([]delivery.Settlement, n)
			for i := range acks {
				acks[i] = delivery.Settlement{ID: leases[i].ID, Word: delivery.Ack}
			}
			s.queue.Settle(acks)
		}
		leases = leases[n:]
	}
	return nil
}

// pause waits for viewPause, or ctx.
func pause(ctx context.Context) {
	t := time.NewTimer(viewPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// keepAlive is what sends a heartbeat when nothing was sent for a while, and the drain
// notice, and calls cancel when that fails.
func (s *session) keepAlive(ctx context.Context, out *sender, group *sync.WaitGroup, cancel context.CancelCauseFunc) *chore.Chore {
	var alive *chore.Chore
	told := false
	alive = chore.New(group, func() {
		var err error
		if !told && s.server.drain.Began.Err() != nil {
			told = true
			notice := &posternv1.Drain{Deadline: timestamppb.New(s.server.drain.Deadline()), Reason: "the gateway is stopping"}
			err = out.frame(ctx, &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Drain{Drain: notice}})
		} else if out.quietFor() >= heartbeatEvery*9/10 {
			err = out.frame(ctx, s.heartbeat(0))
		}
		if err != nil {
			cancel(err)
			return
		}
		alive.AskWithin(heartbeatEvery)
	})
	return alive
}

func (s *session) heartbeat(nonce uint64) *posternv1.SubscribeResponse {
	beat := &posternv1.Heartbeat{Nonce: nonce, Outstanding: int64(s.attachment.Outstanding()), Backlog: s.queue.Backlog()}
	for topic, at := range s.queue.Positions() {
		beat.Cursors = append(beat.Cursors, &posternv1.TopicCursor{Topic: topic, Cursor: s.server.Cursor(at)})
	}
	slices.SortFunc(beat.Cursors, func(a, b *posternv1.TopicCursor) int { return strings.Compare(a.Topic, b.Topic) })
	return &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Heartbeat{Heartbeat: beat}}
}

// read takes the client's frames until it closes its side.
func (s *session) read(ctx context.Context, stream grpc.BidiStreamingServer[posternv1.SubscribeRequest, posternv1.SubscribeResponse], commits *commits, out *sender) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.server.validator.Validate(m); err != nil {
			return wire.Invalid(err)
		}
		switch frame := m.GetFrame().(type) {
		case *posternv1.SubscribeRequest_Window:
			s.attachment.SetWindow(delivery.Window{Messages: int(frame.Window.GetMaxMessages()), Bytes: frame.Window.GetMaxBytes()})
		case *posternv1.SubscribeRequest_Settle:
			if err := s.settle(ctx, frame.Settle, commits, out); err != nil {
				return err
			}
		case *posternv1.SubscribeRequest_Ping:
			if err := out.frame(ctx, s.heartbeat(frame.Ping.GetNonce())); err != nil {
				return err
			}
		case *posternv1.SubscribeRequest_Open:
			return fault.New(fault.ProtocolViolation, "open came twice: open another stream")
		default:
			return fault.New(fault.ProtocolViolation, "a frame without content: send window, settle or ping")
		}
	}
}

// awaited are settled leases whose commit a client waits for.
type awaited struct {
	ids    []uint64
	ticket delivery.Ticket
}

// commits are the settlements whose commit a stream awaits. Most streams await none,
// and have neither the room for them nor the goroutine.
type commits struct {
	ahead    chan awaited // nil before the first
	answered sync.WaitGroup
}

// begin gives where to put the next; the first has answer begin.
func (c *commits) begin(answer func(<-chan awaited)) chan<- awaited {
	if c.ahead == nil {
		c.ahead = make(chan awaited, receiptsAhead)
		c.answered.Go(func() { answer(c.ahead) })
	}
	return c.ahead
}

// end says that no more come.
func (c *commits) end() {
	if c.ahead != nil {
		close(c.ahead)
	}
}

// settle applies a frame. What was not taken is answered at once; what was, as the client asked.
func (s *session) settle(ctx context.Context, batch *posternv1.SettleBatch, commits *commits, out *sender) error {
	receipts := &posternv1.Receipts{}
	var accepted []uint64
	refused, ticket := s.queue.Ack(batch.GetAcks())
	for _, r := range refused {
		receipts.Results = append(receipts.Results, resultOf(r))
	}
	if s.confirm >= posternv1.Confirm_CONFIRM_ON_ACCEPT {
		accepted = acceptedOf(batch.GetAcks(), refused)
	}
	settlements := settlementsOf(nil, batch.GetSettlements())
	results := s.queue.SettleMore(settlements, &ticket)
	for i, r := range results {
		if r.Outcome == delivery.Accepted && settlements[i].Word != delivery.Extend {
			if s.confirm >= posternv1.Confirm_CONFIRM_ON_ACCEPT {
				accepted = append(accepted, uint64(r.ID))
			}
			continue
		}
		receipts.Results = append(receipts.Results, resultOf(r))
	}
	if s.confirm == posternv1.Confirm_CONFIRM_ON_ACCEPT {
		receipts.Accepted = accepted
	}
	if len(receipts.Accepted)+len(receipts.Results) > 0 {
		if err := out.frame(ctx, receiptsFrame(receipts)); err != nil {
			return err
		}
	}
	if s.confirm == posternv1.Confirm_CONFIRM_ON_COMMIT && len(accepted) > 0 {
		select {
		case commits.begin(func(all <-chan awaited) { s.confirmCommits(ctx, all, out) }) <- awaited{accepted, ticket}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// acceptedOf gives the ids that are not among the refused, which are in their order.
func acceptedOf(ids []uint64, refused []delivery.Result) []uint64 {
	if len(refused) == 0 {
		return ids
	}
	accepted := make([]uint64, 0, len(ids))
	for _, id := range ids {
		if len(refused) > 0 && refused[0].ID == delivery.ID(id) {
			refused = refused[1:]
			continue
		}
		accepted = append(accepted, id)
	}
	return accepted
}

// confirmCommits answers settlements as their commits become durable; those
// that will not be committed here are answered ACCEPTED.
func (s *session) confirmCommits(ctx context.Context, committed <-chan awaited, out *sender) {
	for a := range committed {
		receipts := &posternv1.Receipts{}
		if s.queue.Committed(context.WithoutCancel(ctx), a.ticket) {
			receipts.Committed = a.ids
		} else {
			receipts.Accepted = a.ids
		}
		// The stream may be gone; the settlements stand all the same.
		_ = out.frame(context.WithoutCancel(ctx), receiptsFrame(receipts))
	}
}

func receiptsFrame(r *posternv1.Receipts) *posternv1.SubscribeResponse {
	return &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Receipts{Receipts: r}}
}

func revokedFrame(revoked []delivery.Revocation) *posternv1.SubscribeResponse {
	r := &posternv1.Revoked{Reason: revoked[0].Reason}
	for _, one := range revoked {
		r.DeliveryIds = append(r.DeliveryIds, uint64(one.ID))
	}
	return &posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Revoked{Revoked: r}}
}

func sameQueue(a, b subscription.Spec) bool { return subscription.SameQueue(a.Queue(), b.Queue()) }
