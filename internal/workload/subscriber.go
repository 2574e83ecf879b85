package workload

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/history"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Manner is how a subscriber or receiver behaves; each is a chance from 0 to 1 for each event.
type Manner struct {
	Nack      float64 // again, soon
	Reject    float64 // never: a dead letter
	Hang      float64 // say nothing until the lease is over
	Slow      float64 // take up to a second
	AckTwice  float64 // settle a lease twice
	Foreign   float64 // ack ids that were never given out
	Leave     float64 // break the stream after a frame
	Resume    float64 // ... and come back with the resume token
	NeverRead float64 // open a stream and read nothing of it for some seconds
}

// Good settles everything at once.
func (m Manner) Good() bool { return m == Manner{} }

// Subscriber holds one stream of a subscription, or pulls, and settles what it gets.
type Subscriber struct {
	Subscription *posternv1.Subscription // inline
	Targets      func() []*Target
	Recorder     *history.Recorder
	Random       *Random
	Manner       func() Manner
	Confirm      posternv1.Confirm
	Window       int64
	Lease        time.Duration
	Pull         bool
	Odd          func(format string, args ...any)
	// Settled, if not nil, is told of each receipt of an ack.
	Settled func()
}

// Run subscribes until ctx ends, again and again.
func (s *Subscriber) Run(ctx context.Context) {
	token := ""
	var last *Target
	for ctx.Err() == nil {
		targets := s.Targets()
		target := targets[s.Random.N(len(targets))]
		if last == nil || !s.Random.Chance(s.Manner().Resume) {
			token = ""
		} else {
			target = last
		}
		if s.Pull {
			if last != nil { // who had something may have more
				target = last
			}
			if last = nil; s.pull(ctx, target) {
				last = target
				continue
			}
		} else {
			last, token = target, s.stream(ctx, target, token)
		}
		pause(ctx, s.Random.Between(20*time.Millisecond, 400*time.Millisecond))
	}
}

// session is one stream's state.
type session struct {
	*Subscriber
	name     string
	instance string
	out      chan *posternv1.SubscribeRequest
	over     <-chan struct{}
	timers   sync.WaitGroup

	mu   sync.Mutex
	held map[uint64]history.Entry // delivered and not settled
	sent map[uint64]history.Entry // settled, and the receipt is to come
}

// stream opens one stream and works until it ends; it gives the resume token.
func (s *Subscriber) stream(ctx context.Context, to *Target, token string) string {
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := posternv1.NewSubscriberClient(to.GRPC).Subscribe(call)
	if err != nil {
		return ""
	}
	open := &posternv1.Open{
		Inline: s.Subscription, Window: &posternv1.Window{MaxMessages: s.Window}, Confirm: s.Confirm, ResumeToken: token, ClientId: "workload",
	}
	if s.Lease > 0 {
		open.Lease = durationpb.New(s.Lease)
	}
	if stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}) != nil {
		return ""
	}
	if s.Random.Chance(s.Manner().NeverRead) {
		pause(ctx, s.Random.Between(time.Second, 8*time.Second))
		return ""
	}
	w := &session{
		Subscriber: s, name: s.Subscription.GetName(), out: make(chan *posternv1.SubscribeRequest), over: call.Done(),
		held: map[uint64]history.Entry{}, sent: map[uint64]history.Entry{},
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			select {
			case m := <-w.out:
				if stream.Send(m) != nil {
					cancel()
					return
				}
			case <-call.Done():
				return
			}
		}
	})
	token = ""
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		if o := m.GetOpened(); o != nil {
			w.instance, token = o.GetInstance(), o.GetResumeToken()
		}
		w.receipts(m.GetReceipts())
		for _, id := range m.GetRevoked().GetDeliveryIds() {
			w.giveBack(id)
		}
		w.deliveries(m.GetDeliveries().GetDeliveries())
		if s.Random.Chance(s.Manner().Leave) {
			break
		}
	}
	cancel()
	sender.Wait()
	w.timers.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.held {
		w.returned(id)
	}
	return token
}

func (w *session) returned(id uint64) {
	if e, ok := w.held[id]; ok {
		delete(w.held, id)
		e.Kind = history.Returned
		w.Recorder.Record(e)
	}
}

func (w *session) giveBack(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned(id)
}

func (w *session) send(settle *posternv1.SettleBatch) {
	select {
	case w.out <- &posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: settle}}:
	case <-w.over:
	}
}

// entry says what was delivered.
func entry(recorder *history.Recorder, d *posternv1.Delivery, subscription, instance string) history.Entry {
	e := history.Entry{
		Kind: history.Delivered, Value: string(d.GetEvent().GetData()), Key: string(d.GetEvent().GetKey()), Topic: d.GetPosition().GetTopic(),
		Partition: d.GetPosition().GetPartition(), Offset: d.GetPosition().GetOffset(), Subscription: subscription, Attempt: d.GetAttempt(), Instance: instance,
	}
	if d.GetLeaseExpires() != nil {
		e.Until = recorder.Since(d.GetLeaseExpires().AsTime())
	}
	for _, h := range d.GetEvent().GetHeaders() {
		if h.GetName() == "traceparent" {
			e.Trace = traceOf(string(h.GetValue()))
		}
	}
	return e
}

// deliveries decides about each and says so.
func (w *session) deliveries(deliveries []*posternv1.Delivery) {
	batch := &posternv1.SettleBatch{}
	manner := w.Manner()
	for _, d := range deliveries {
		e := entry(w.Recorder, d, w.name, w.instance)
		w.Recorder.Record(e)
		id := d.GetDeliveryId()
		w.mu.Lock()
		w.held[id] = e
		w.mu.Unlock()
		switch {
		case w.Random.Chance(manner.Hang):
		case w.Random.Chance(manner.Slow):
			w.timers.Go(func() {
				timer := time.NewTimer(w.Random.Between(0, time.Second))
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-w.over:
					return
				}
				late := &posternv1.SettleBatch{}
				w.decide(id, manner, late)
				w.send(late)
			})
		default:
			w.decide(id, manner, batch)
		}
		if w.Random.Chance(manner.Foreign) {
			batch.Acks = append(batch.Acks, uint64(w.Random.N(1<<30))<<20|7)
		}
	}
	if len(batch.Acks)+len(batch.Settlements) > 0 {
		w.send(batch)
	}
}

// decide settles a held lease in one of its ways.
func (w *session) decide(id uint64, manner Manner, batch *posternv1.SettleBatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.held[id]
	if !ok {
		return // revoked meanwhile
	}
	switch {
	case w.Random.Chance(manner.Nack):
		w.returned(id)
		batch.Settlements = append(batch.Settlements, &posternv1.Settlement{DeliveryId: id, Action: &posternv1.Settlement_Nack{
			Nack: &posternv1.Nack{Delay: durationpb.New(w.Random.Between(0, 200*time.Millisecond)), Reason: "the workload says so"},
		}})
		return
	case w.Random.Chance(manner.Reject):
		e.Kind = history.Rejected
		batch.Settlements = append(batch.Settlements, &posternv1.Settlement{DeliveryId: id, Action: &posternv1.Settlement_Reject{
			Reject: &posternv1.Reject{Reason: "the workload says so"},
		}})
	default:
		e.Kind = history.Acked
		batch.Acks = append(batch.Acks, id)
		if w.Random.Chance(manner.AckTwice) {
			batch.Acks = append(batch.Acks, id)
		}
	}
	delete(w.held, id)
	w.sent[id] = e
	w.Recorder.Record(e)
}

// receipts records what was taken.
func (w *session) receipts(r *posternv1.Receipts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	took := func(id uint64, kind history.Kind) {
		e, ok := w.sent[id]
		if !ok {
			return // a nack's
		}
		delete(w.sent, id)
		if e.Kind != history.Acked {
			return
		}
		e.Kind = kind
		w.Recorder.Record(e)
		if w.Settled != nil {
			w.Settled()
		}
	}
	for _, id := range r.GetAccepted() {
		took(id, history.Accepted)
	}
	for _, id := range r.GetCommitted() {
		took(id, history.Committed)
	}
	for _, one := range r.GetResults() {
		switch one.GetOutcome() {
		case posternv1.Outcome_OUTCOME_ACCEPTED:
			took(one.GetDeliveryId(), history.Accepted)
		case posternv1.Outcome_OUTCOME_COMMITTED:
			took(one.GetDeliveryId(), history.Committed)
		case posternv1.Outcome_OUTCOME_UNSPECIFIED:
			w.Odd("%s: a receipt without an outcome", w.name)
		}
	}
}

// pull asks once and settles what came, if anything did.
func (s *Subscriber) pull(ctx context.Context, to *Target) bool {
	name := s.Subscription.GetName()
	client := posternv1.NewSubscriberClient(to.GRPC)
	call, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	response, err := client.Pull(call, &posternv1.PullRequest{Name: name, MaxMessages: int32(s.Window), Wait: durationpb.New(time.Second), Lease: durationpb.New(max(time.Second, s.Lease))})
	if err != nil || len(response.GetDeliveries()) == 0 {
		return false
	}
	manner := s.Manner()
	settle := &posternv1.SettleRequest{Name: name, Confirm: s.Confirm}
	entries := map[uint64]history.Entry{}
	for _, d := range response.GetDeliveries() {
		e := entry(s.Recorder, d, name, response.GetInstance())
		e.Until = 0 // who pulls is not told when a partition moves, and its events are lent elsewhere
		s.Recorder.Record(e)
		switch {
		case s.Random.Chance(manner.Hang):
			continue // its lease runs out
		case s.Random.Chance(manner.Nack):
			e.Kind = history.Returned
			settle.Settlements = append(settle.Settlements, &posternv1.Settlement{DeliveryId: d.GetDeliveryId(), Action: &posternv1.Settlement_Nack{Nack: &posternv1.Nack{}}})
		case s.Random.Chance(manner.Reject):
			e.Kind = history.Rejected
			settle.Settlements = append(settle.Settlements, &posternv1.Settlement{DeliveryId: d.GetDeliveryId(), Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{}}})
		default:
			e.Kind = history.Acked
			settle.Acks = append(settle.Acks, d.GetDeliveryId())
			entries[d.GetDeliveryId()] = e
		}
		s.Recorder.Record(e)
	}
	if len(settle.Acks)+len(settle.Settlements) == 0 {
		return true
	}
	receipts, err := client.Settle(call, settle)
	if err != nil {
		return false
	}
	if len(receipts.GetResults()) != len(settle.Acks)+len(settle.Settlements) {
		s.Odd("%s: %d receipts for %d settlements", name, len(receipts.GetResults()), len(settle.Acks)+len(settle.Settlements))
	}
	for _, r := range receipts.GetResults() {
		e, ok := entries[r.GetDeliveryId()]
		switch {
		case !ok:
			continue
		case r.GetOutcome() == posternv1.Outcome_OUTCOME_ACCEPTED:
			e.Kind = history.Accepted
		case r.GetOutcome() == posternv1.Outcome_OUTCOME_COMMITTED:
			e.Kind = history.Committed
		default:
			continue
		}
		s.Recorder.Record(e)
		if s.Settled != nil {
			s.Settled()
		}
	}
	return true
}
