package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"

	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// seeds are the brokers that a list like KAFKA_BOOTSTRAP's names.
func seeds(bootstrap string) kgo.Opt { return kgo.SeedBrokers(strings.Split(bootstrap, ",")...) }

// producerOptions are those of the gateway's own producer, so that only what
// is around it differs.
func producerOptions(bootstrap string) []kgo.Opt {
	return []kgo.Opt{
		seeds(bootstrap), kgo.MetadataMinAge(250 * time.Millisecond), kgo.ProducerLinger(0), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
	}
}

// serveFloor is the barest server that does what the gateway promises of a
// publish: read the body, produce, wait, answer with the position.
func serveFloor(ctx context.Context, bootstrap string) error {
	client, err := kgo.NewClient(producerOptions(bootstrap)...)
	if err != nil {
		return err
	}
	defer client.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/topics/{topic}/events", func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		record := &kgo.Record{Topic: r.PathValue("topic"), Key: []byte(r.Header.Get("Postern-Key")), Value: body}
		done := make(chan error, 1)
		client.Produce(context.Background(), record, func(_ *kgo.Record, err error) { done <- err })
		if err := <-done; err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		b := append([]byte(`{"partition":`), strconv.Itoa(int(record.Partition))...)
		b = append(append(b, `,"offset":`...), strconv.FormatInt(record.Offset, 10)...)
		_, _ = w.Write(append(b, '}')) // the client may be gone
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	rpc, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	buffers := &wire.Buffers{}
	g := grpc.NewServer(grpc.NumStreamWorkers(64), experimental.BufferPool(buffers), grpc.ForceServerCodecV2(wire.NewCodec(buffers))) // as the gateway's
	posternv1.RegisterPublisherServer(g, &floorPublisher{client: client})
	posternv1.RegisterSubscriberServer(g, floorSubscriber{bootstrap: bootstrap})
	fmt.Printf("http=%s grpc=%s\n", web.Addr(), rpc.Addr())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(web) }) // ends with Close
	serving.Go(func() { _ = g.Serve(rpc) })      // ends with Stop
	<-ctx.Done()
	g.Stop()
	err = server.Close()
	serving.Wait()
	return err
}

type floorPublisher struct {
	posternv1.UnimplementedPublisherServer
	client *kgo.Client
}

func (f *floorPublisher) Publish(_ context.Context, request *posternv1.PublishRequest) (*posternv1.PublishResponse, error) {
	var wait sync.WaitGroup
	records := make([]*kgo.Record, len(request.Events))
	var failed error
	for i, e := range request.Events {
		records[i] = &kgo.Record{Topic: request.Topic, Key: e.Key, Value: e.Data}
		wait.Add(1)
		f.client.Produce(context.Background(), records[i], func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err
			}
			wait.Done()
		})
	}
	wait.Wait()
	if failed != nil {
		return nil, failed
	}
	answer := &posternv1.PublishResponse{Results: make([]*posternv1.PublishResult, len(records))}
	for i, r := range records {
		answer.Results[i] = &posternv1.PublishResult{Position: &posternv1.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}}
	}
	return answer, nil
}

// PublishStream is the barest pipelined publish: one goroutine reads and
// produces, this one answers in order.
func (f *floorPublisher) PublishStream(stream grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse]) error {
	type request struct {
		sequence uint64
		records  []kgo.Record
		wait     sync.WaitGroup
	}
	if err := stream.Send(&posternv1.PublishStreamResponse{}); err != nil {
		return err
	}
	requests := make(chan *request, inFlight)
	failed := make(chan error, 1)
	go func() {
		defer close(requests)
		for {
			m, err := stream.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				failed <- err
				return
			}
			r := &request{sequence: m.Sequence, records: make([]kgo.Record, len(m.Request.Events))}
			r.wait.Add(len(r.records))
			for i, e := range m.Request.Events {
				r.records[i] = kgo.Record{Topic: m.Request.Topic, Key: e.Key, Value: e.Data}
				f.client.Produce(context.Background(), &r.records[i], func(*kgo.Record, error) { r.wait.Done() })
			}
			requests <- r
		}
	}()
	for r := range requests {
		answer := &posternv1.PublishStreamResponse{}
		for {
			r.wait.Wait()
			done := &posternv1.PublishDone{Sequence: r.sequence, Results: make([]*posternv1.PublishResult, len(r.records))}
			for i := range r.records {
				done.Results[i] = &posternv1.PublishResult{Position: &posternv1.Position{Topic: r.records[i].Topic, Partition: r.records[i].Partition, Offset: r.records[i].Offset}}
			}
			answer.Done = append(answer.Done, done)
			if len(requests) == 0 || len(answer.Done) >= 256 {
				break
			}
			r = <-requests
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
	return <-failed
}

// serveDirect drives the Kafka client itself on command: a line of
// "publish TOPIC CALLERS BATCH MILLISECONDS", "stream TOPIC 1 UNANSWERED MILLISECONDS" or "drain TOPIC GROUP EVENTS"
// on standard input is answered by "EVENTS NANOSECONDS".
func serveDirect(ctx context.Context, bootstrap string) error {
	fmt.Println("ready")
	client, err := kgo.NewClient(producerOptions(bootstrap)...)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		var verb, topic, third string
		var fourth, fifth int
		if _, err := fmt.Scanln(&verb, &topic, &third, &fourth, &fifth); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		began := time.Now()
		var n int64
		switch verb {
		case "publish":
			callers, err := strconv.Atoi(third)
			if err != nil {
				return err
			}
			if n, err = publishDirect(ctx, client, topic, callers, fourth, time.Duration(fifth)*time.Millisecond); err != nil {
				return err
			}
		case "stream":
			if n, err = streamDirect(ctx, client, topic, fourth, time.Duration(fifth)*time.Millisecond); err != nil {
				return err
			}
		case "drain":
			if n, err = drainDirect(ctx, bootstrap, topic, third, fourth); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown command %q", verb)
		}
		fmt.Println(n, time.Since(began).Nanoseconds())
	}
}

// publishDirect has callers produce batches and wait for each, as the gateway's clients do.
func publishDirect(ctx context.Context, client *kgo.Client, topic string, callers, batch int, length time.Duration) (int64, error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var total int64
	var failed error
	end := time.Now().Add(length)
	for c := range callers {
		all.Go(func() {
			n := int64(0)
			value := payload()
			for i := 0; time.Now().Before(end) && ctx.Err() == nil; i++ {
				var wait sync.WaitGroup
				wait.Add(batch)
				for j := range batch {
					client.Produce(context.Background(), &kgo.Record{Topic: topic, Key: key(c*1000003 + i*batch + j), Value: value}, func(_ *kgo.Record, err error) {
						if err != nil {
							mu.Lock()
							failed = err
							mu.Unlock()
						}
						wait.Done()
					})
				}
				wait.Wait()
				n += int64(batch)
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	all.Wait()
	return total, failed
}

// streamDirect keeps as many events unanswered as a stream does.
func streamDirect(ctx context.Context, client *kgo.Client, topic string, unanswered int, length time.Duration) (int64, error) {
	slots := make(chan struct{}, unanswered)
	var mu sync.Mutex
	var failed error
	value := payload()
	n := int64(0)
	for end := time.Now().Add(length); time.Now().Before(end) && ctx.Err() == nil; n++ {
		slots <- struct{}{}
		client.Produce(context.Background(), &kgo.Record{Topic: topic, Key: key(int(n)), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
			<-slots
		})
	}
	for range unanswered {
		slots <- struct{}{}
	}
	mu.Lock()
	defer mu.Unlock()
	return n, failed
}

// floorSubscriber is the barest server of subscriptions: what a group consumer
// reads goes into the stream, frames as large as the gateway's, and what comes back
// is read and forgotten.
type floorSubscriber struct {
	posternv1.UnimplementedSubscriberServer
	bootstrap string
}

// floorFrame is how many events of 1 KiB fill one of the gateway's frames.
const floorFrame = 240

func (f floorSubscriber) Subscribe(stream grpc.BidiStreamingServer[posternv1.SubscribeRequest, posternv1.SubscribeResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	of := first.GetOpen().GetInline()
	client, err := kgo.NewClient(drainOptions(f.bootstrap, of.GetTopics()[0], of.GetName())...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		defer cancel()
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	id := uint64(0)
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err0(); err != nil {
			return err
		}
		for part := range slices.Chunk(fetches.Records(), floorFrame) {
			batch := &posternv1.DeliveryBatch{Deliveries: make([]*posternv1.Delivery, len(part))}
			for i, r := range part {
				id++
				batch.Deliveries[i] = &posternv1.Delivery{
					DeliveryId: id, Attempt: 1, Event: &posternv1.Event{Key: r.Key, Data: r.Value},
					Position: &posternv1.Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
				}
			}
			if err := stream.Send(&posternv1.SubscribeResponse{Frame: &posternv1.SubscribeResponse_Deliveries{Deliveries: batch}}); err != nil {
				return err
			}
		}
	}
}

func drainOptions(bootstrap, topic, group string) []kgo.Opt {
	return []kgo.Opt{
		seeds(bootstrap), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitInterval(200 * time.Millisecond), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	}
}

// drainDirect reads events as a bare group consumer that commits every 200 ms.
func drainDirect(ctx context.Context, bootstrap, topic, group string, events int) (int64, error) {
	client, err := kgo.NewClient(drainOptions(bootstrap, topic, group)...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	n := int64(0)
	for n < int64(events) {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return n, err
		}
		n += int64(fetches.NumRecords())
	}
	return n, nil
}
