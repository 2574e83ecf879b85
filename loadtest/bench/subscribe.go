package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Cells of subscribing beside the drain of a gRPC stream: the other ways to read,
// handlers that take their time, and the way from publisher to subscriber.

// Contenders that are no process: what is measured by them costs the generator.
const (
	byChannel = "channel" // handlers fed in this process
	byClient  = "client"  // the Kafka client on both sides, in this process
	byStream  = "stream"  // the gateway, by a gRPC stream
)

// hosted reports whether a contender is a process of its own.
func hosted(contender string) bool { return contender != byChannel && contender != byClient }

func unique(name string) string { return fmt.Sprintf("%s-%d", name, time.Now().UnixNano()) }

// drainPatience bounds one drain.
const drainPatience = 2 * time.Minute

// subscribeTo opens an inline subscription on a connection.
func subscribeTo(ctx context.Context, conn *grpc.ClientConn, topic, name string, window *posternv1.Window, options ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &posternv1.Subscriber_ServiceDesc.Streams[0], posternv1.Subscriber_Subscribe_FullMethodName, options...)
	if err != nil {
		return nil, err
	}
	open := &posternv1.Open{Inline: &posternv1.Subscription{Name: unique(name), Topics: []string{topic}}, Window: window}
	return stream, stream.SendMsg(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}})
}

// acknowledge settles events, in one frame.
func acknowledge(stream grpc.ClientStream, acks []uint64) error {
	return stream.SendMsg(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: &posternv1.SettleBatch{Acks: acks}}})
}

// frame is a message of a subscription's stream, which is read into again and again.
type frame interface{ ids() []uint64 }

// decoded is a frame as the generated client has it, with an event made of each delivery.
type decoded struct{ posternv1.SubscribeResponse }

func (d *decoded) ids() []uint64 {
	deliveries := d.GetDeliveries().GetDeliveries()
	all := make([]uint64, len(deliveries))
	for i := range deliveries {
		all[i] = deliveries[i].DeliveryId
	}
	return all
}

// drain reads n events, and acknowledges them with one frame for each that came.
func drain(ctx context.Context, address, topic string, n int, into frame, options ...grpc.CallOption) (int64, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	stream, err := subscribeTo(ctx, conn, topic, "drain", &posternv1.Window{MaxMessages: 8000, MaxBytes: 64 << 20}, options...)
	if err != nil {
		return 0, err
	}
	got := int64(0)
	for got < int64(n) {
		if err := stream.RecvMsg(into); err != nil {
			return got, err
		}
		if ids := into.ids(); len(ids) > 0 { // else it is of another kind
			got += int64(len(ids))
			if err := acknowledge(stream, ids); err != nil {
				return got, err
			}
		}
	}
	return got, nil
}

// drainSSE reads events as server-sent events that are acknowledged as they are written.
func drainSSE(ctx context.Context, address, topic string, n int) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	url := fmt.Sprintf("http://%s/v1/subscriptions/%s/events?topic=%s&ack=on_send", address, unique("sse"), topic)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", "text/event-stream")
	transport := &http.Transport{ReadBufferSize: 256 << 10} // 4 KiB would have it spend itself on system calls
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close() //nolint:errcheck // it is left in the middle
	if answer.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(answer.Body, 4096)) // for people
		return 0, fmt.Errorf("answered %d: %s", answer.StatusCode, why)
	}
	got := int64(0)
	lines := bufio.NewReaderSize(answer.Body, 256<<10)
	for got < int64(n) {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return got, err
		}
		if bytes.Equal(line, []byte("event: delivery\n")) {
			got++
		}
	}
	return got, nil
}

// drainPull pulls and settles, four callers at a time.
func drainPull(ctx context.Context, address, topic string, n int) (int64, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	name := unique("pull")
	subscriptions := posternv1.NewSubscriptionsClient(conn)
	if _, err := subscriptions.CreateSubscription(ctx, &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: name, Topics: []string{topic}}}); err != nil {
		return 0, err
	}
	var pullers sync.WaitGroup
	var mu sync.Mutex
	var got int64
	var failed error
	client := posternv1.NewSubscriberClient(conn)
	pulling, stop := context.WithCancel(ctx)
	defer stop()
	for range 4 {
		pullers.Go(func() {
			for {
				m, err := client.Pull(pulling, &posternv1.PullRequest{Name: name, MaxMessages: 1000, Wait: durationpb.New(time.Second)})
				if err == nil && len(m.GetDeliveries()) > 0 {
					acks := make([]uint64, len(m.GetDeliveries()))
					for i, d := range m.GetDeliveries() {
						acks[i] = d.GetDeliveryId()
					}
					var settled *posternv1.SettleResponse
					if settled, err = client.Settle(ctx, &posternv1.SettleRequest{Name: name, Acks: acks}); err == nil {
						for _, r := range settled.GetResults() {
							if r.GetOutcome() != posternv1.Outcome_OUTCOME_ACCEPTED {
								err = fmt.Errorf("an ack was answered %s", r.GetOutcome())
							}
						}
					}
				}
				mu.Lock()
				got += int64(len(m.GetDeliveries()))
				if pulling.Err() == nil { // else all have come, and a pull that waited was ended
					failed = errors.Join(failed, err)
				}
				over := got >= int64(n) || failed != nil
				mu.Unlock()
				if over {
					stop()
					return
				}
			}
		})
	}
	pullers.Wait()
	_, err = subscriptions.DeleteSubscription(ctx, &posternv1.DeleteSubscriptionRequest{Name: name})
	return got, errors.Join(failed, err)
}

// Handlers of the cell, and how long each takes for an event.
const (
	handlers      = 256
	handling      = 5 * time.Millisecond
	handledWindow = 1024
)

// handled is an event as handlers get it.
type handled struct {
	key    string
	offset int64
	id     uint64
}

// order finds events of a key that are done out of their order.
type order struct {
	mu    sync.Mutex
	done  map[string]int64
	wrong int
}

func (o *order) finish(e handled) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if last, ok := o.done[e.key]; ok && e.offset <= last {
		o.wrong++
	}
	o.done[e.key] = e.offset
}

// handleFromChannel is the most that the handlers can do: what they are given is in memory.
func handleFromChannel(n int) (int64, error) {
	in := make(chan handled)
	o := &order{done: map[string]int64{}}
	var all sync.WaitGroup
	for range handlers {
		all.Go(func() {
			for e := range in {
				time.Sleep(handling)
				o.mu.Lock() // as the others do; order is nobody's promise here
				o.done[e.key] = e.offset
				o.mu.Unlock()
			}
		})
	}
	for i := range n {
		in <- handled{key: string(key(i)), offset: int64(i)}
	}
	close(in)
	all.Wait()
	return int64(n), nil
}

// handleFromStream feeds the handlers from a subscription, which keeps keys in order.
func handleFromStream(ctx context.Context, address, topic string, n int) (int64, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	stream, err := subscribeTo(ctx, conn, topic, "handlers", &posternv1.Window{MaxMessages: handledWindow})
	if err != nil {
		return 0, err
	}
	in, acks := make(chan handled, handledWindow), make(chan uint64, handledWindow)
	o := &order{done: map[string]int64{}}
	var all, sender sync.WaitGroup
	for range handlers {
		all.Go(func() {
			for e := range in {
				time.Sleep(handling)
				o.finish(e)
				acks <- e.id
			}
		})
	}
	var sent error
	sender.Go(func() {
		for id := range acks { // as many as are there in one frame
			batch := []uint64{id}
			for len(acks) > 0 {
				batch = append(batch, <-acks)
			}
			if sent == nil {
				if sent = acknowledge(stream, batch); sent != nil {
					cancel()
				}
			}
		}
	})
	got := int64(0)
	for got < int64(n) && err == nil {
		var m posternv1.SubscribeResponse
		err = stream.RecvMsg(&m)
		for _, d := range m.GetDeliveries().GetDeliveries() {
			in <- handled{key: string(d.GetEvent().GetKey()), offset: d.GetPosition().GetOffset(), id: d.GetDeliveryId()}
			got++
		}
	}
	close(in)
	all.Wait()
	close(acks)
	sender.Wait()
	if o.wrong > 0 {
		err = errors.Join(err, fmt.Errorf("%d events were done before an earlier one of their key", o.wrong))
	}
	return got, errors.Join(err, sent)
}

// arrivals takes the time from when each event was due to be sent until it came.
type arrivals struct {
	start time.Time
	rate  int
	mu    sync.Mutex
	took  map[uint64]time.Duration
	twice int
}

func newArrivals(start time.Time, rate int) *arrivals {
	return &arrivals{start: start, rate: rate, took: map[uint64]time.Duration{}}
}

func (a *arrivals) due(i uint64) time.Time {
	return a.start.Add(time.Duration(i) * time.Second / time.Duration(a.rate))
}

func (a *arrivals) take(value []byte, now time.Time) {
	if len(value) < 8 {
		return
	}
	i := binary.BigEndian.Uint64(value)
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.took[i]; ok {
		a.twice++
	}
	a.took[i] = now.Sub(a.due(i))
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.took)
}

// settle waits until n have come, and gives their times.
func (a *arrivals) settle(ctx context.Context, n int64) ([]time.Duration, error) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for int64(a.count()) < n {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d events were delivered: %w", a.count(), n, ctx.Err())
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.twice > 0 {
		return nil, fmt.Errorf("%d events were delivered twice", a.twice)
	}
	all := make([]time.Duration, 0, len(a.took))
	for _, t := range a.took {
		all = append(all, t)
	}
	return all, nil
}

// numbered is an event's value that says which it is.
func numbered(i uint64) []byte {
	value := payload()
	binary.BigEndian.PutUint64(value, i)
	return value
}

// endToEnd publishes at a rate, each event at its appointed time, whatever became of
// those before it, and takes the time until each reaches a subscriber that was there
// before. publish is called side by side, and must return once the event is stored.
func endToEnd(ctx context.Context, rate int, length time.Duration, subscribe func(ctx context.Context, ready func(), take func([]byte, time.Time)) error,
	publish func(ctx context.Context, i uint64) error,
) (int64, []time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, length+drainPatience)
	defer cancel()
	listening, stop := context.WithCancel(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	var counting atomic.Pointer[arrivals] // what comes before is the topic's first event
	go func() {
		ended <- subscribe(listening, func() { once.Do(func() { close(ready) }) }, func(value []byte, now time.Time) {
			if a := counting.Load(); a != nil {
				a.take(value, now)
			}
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		stop()
		return 0, nil, errors.Join(errors.New("the subscriber ended before it was ready"), err)
	}
	a := newArrivals(time.Now().Add(50*time.Millisecond), rate)
	counting.Store(a)
	var under sync.WaitGroup
	var mu sync.Mutex
	var failed error
	n := uint64(length.Seconds() * float64(rate))
	for i := range n {
		time.Sleep(time.Until(a.due(i)))
		under.Go(func() {
			if err := publish(ctx, i); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	under.Wait()
	times, err := []time.Duration(nil), failed
	if err == nil {
		times, err = a.settle(ctx, int64(n))
	}
	stop()
	if told := <-ended; status.Code(told) != codes.Canceled && !errors.Is(told, context.Canceled) {
		err = errors.Join(err, told)
	}
	return int64(n), times, err
}

// endToEndGateway is endToEnd by gRPC, both ways.
func endToEndGateway(ctx context.Context, address, topic string, rate int, length time.Duration) (int64, []time.Duration, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	publisher := posternv1.NewPublisherClient(conn)
	return endToEnd(ctx, rate, length, func(ctx context.Context, ready func(), take func([]byte, time.Time)) error {
		stream, err := subscribeTo(ctx, conn, topic, "latency", &posternv1.Window{MaxMessages: 1000})
		if err != nil {
			return err
		}
		for {
			var m posternv1.SubscribeResponse
			if err := stream.RecvMsg(&m); err != nil {
				return err
			}
			d := m.GetDeliveries().GetDeliveries()
			if len(d) == 0 {
				continue
			}
			now := time.Now()
			var acks []uint64
			for _, one := range d {
				take(one.GetEvent().GetData(), now)
				acks = append(acks, one.GetDeliveryId())
			}
			if err := acknowledge(stream, acks); err != nil {
				return err
			}
			ready() // the event that was there from the start has come: it reads
		}
	}, func(ctx context.Context, i uint64) error {
		answer, err := publisher.Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Key: key(int(i)), Data: numbered(i)}}})
		if err == nil && answer.GetResults()[0].GetPosition() == nil {
			err = errors.New(answer.GetResults()[0].GetError().GetMessage())
		}
		return err
	})
}

// endToEndClient is endToEnd by the Kafka client on both sides.
func endToEndClient(ctx context.Context, bootstrap, topic string, rate int, length time.Duration) (int64, []time.Duration, error) {
	producer, err := kgo.NewClient(producerOptions(bootstrap)...)
	if err != nil {
		return 0, nil, err
	}
	defer producer.Close()
	return endToEnd(ctx, rate, length, func(ctx context.Context, ready func(), take func([]byte, time.Time)) error {
		consumer, err := kgo.NewClient(seeds(bootstrap), kgo.ConsumerGroup(unique("latency")), kgo.ConsumeTopics(topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitInterval(200*time.Millisecond), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		if err != nil {
			return err
		}
		defer consumer.Close()
		for {
			fetches := consumer.PollFetches(ctx)
			if err := fetches.Err0(); err != nil {
				return err
			}
			now := time.Now()
			fetches.EachRecord(func(r *kgo.Record) { take(r.Value, now) })
			if fetches.NumRecords() > 0 {
				ready()
			}
		}
	}, func(ctx context.Context, i uint64) error {
		return producer.ProduceSync(ctx, &kgo.Record{Topic: topic, Key: key(int(i)), Value: numbered(i)}).FirstErr()
	})
}
