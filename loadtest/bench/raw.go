package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// The generator of batches and streams shares the cores with what it measures, and
// the direct client encodes nothing. So it sends frames that were encoded before
// the cell began, and counts the results of an answer without decoding them.

// framesAhead is how many frames each caller has; it sends them over and over. Their
// keys spread over all partitions.
const framesAhead = 64

// rawCodec passes bytes on: a frame is a mem.BufferSlice, an answer a tally of one kind.
type rawCodec struct{}

// counted takes an answer as it came, whose bytes are good only meanwhile.
type counted interface{ count(b []byte) error }

var _ encoding.CodecV2 = rawCodec{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case mem.BufferSlice:
		return m, nil
	case proto.Message: // of which there are few
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("%T is no frame", v)
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	answer, ok := v.(counted)
	if !ok {
		return fmt.Errorf("%T takes no answer", v)
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	return answer.count(whole.ReadOnlyData())
}

// tally counts what an answer says: done messages of a stream, results, failures.
type tally struct {
	stream  bool
	done    int
	results int
	failed  []byte // the first error, as it came
}

// Field numbers of publisher.proto.
const (
	fieldResults     = 1 // PublishResponse
	fieldError       = 2 // PublishResult
	fieldDone        = 1 // PublishStreamResponse
	fieldDoneResults = 2 // PublishDone
	fieldDoneError   = 3 // PublishDone
)

func (a *tally) count(b []byte) error {
	a.done, a.results, a.failed = 0, 0, nil
	if !a.stream {
		return messages(b, fieldResults, a.result)
	}
	return messages(b, fieldDone, func(done []byte) error {
		a.done++
		if err := messages(done, fieldDoneError, a.fail); err != nil {
			return err
		}
		return messages(done, fieldDoneResults, a.result)
	})
}

func (a *tally) result(b []byte) error {
	a.results++
	return messages(b, fieldError, a.fail)
}

func (a *tally) fail(b []byte) error { a.failed = bytes.Clone(b); return nil }

// messages calls each for every message of field.
func messages(b []byte, field protowire.Number, each func([]byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(number, kind, b[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		if number == field && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[n:])
			if err := each(value); err != nil {
				return err
			}
		}
		b = b[n+m:]
	}
	return nil
}

// Field numbers of subscriber.proto.
const (
	fieldDeliveries = 2 // SubscribeResponse
	fieldDelivery   = 1 // DeliveryBatch
	fieldID         = 1 // Delivery, fixed64
)

// lent takes of each of a frame's deliveries its id alone.
type lent struct{ all []uint64 }

func (l *lent) ids() []uint64 { return l.all }

func (l *lent) count(b []byte) error {
	l.all = l.all[:0]
	return messages(b, fieldDeliveries, func(batch []byte) error {
		return messages(batch, fieldDelivery, l.delivery)
	})
}

func (l *lent) delivery(b []byte) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeField(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number == fieldID && kind == protowire.Fixed64Type {
			id, _ := protowire.ConsumeFixed64(b[n-8:])
			l.all = append(l.all, id)
			return nil
		}
		b = b[n:]
	}
	return errors.New("a delivery has no id")
}

// frames encodes a caller's requests.
func frames(topic string, caller, batch int) ([][]byte, error) {
	all := make([][]byte, framesAhead)
	for i := range all {
		var err error
		if all[i], err = proto.Marshal(&posternv1.PublishRequest{Topic: topic, Events: events(caller, i, batch)}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (a *tally) err() error {
	if a.failed == nil {
		return nil
	}
	return errors.New("an event failed: " + strconv.QuoteToASCII(string(a.failed)))
}

func publishGRPC(ctx context.Context, address, topic string, sc scenario, length time.Duration) (int64, []time.Duration, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ready := make([][][]byte, sc.callers)
	for c := range ready {
		if ready[c], err = frames(topic, c, sc.batch); err != nil {
			return 0, nil, err
		}
	}
	return each(ctx, sc, length, func(ctx context.Context, caller, i int) (int, error) {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", traceparent(i))
		answer := &tally{}
		frame := mem.BufferSlice{mem.SliceBuffer(ready[caller%len(ready)][i%framesAhead])}
		if err := conn.Invoke(ctx, posternv1.Publisher_Publish_FullMethodName, frame, answer, grpc.ForceCodecV2(rawCodec{})); err != nil {
			return 0, err
		}
		if answer.results != sc.batch {
			return 0, fmt.Errorf("%d of %d are answered", answer.results, sc.batch)
		}
		return sc.batch, answer.err()
	})
}

// oneStream keeps inFlight events unanswered.
func oneStream(ctx context.Context, conn *grpc.ClientConn, topic string, caller, batch int, length time.Duration) (int64, error) {
	ready, err := frames(topic, caller, batch)
	if err != nil {
		return 0, err
	}
	for i, frame := range ready { // as the request of a stream's message
		ready[i] = append(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.BytesType), uint64(len(frame))), frame...)
	}
	stream, err := conn.NewStream(ctx, &posternv1.Publisher_ServiceDesc.Streams[0], posternv1.Publisher_PublishStream_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return 0, err
	}
	slots := make(chan struct{}, inFlight/batch)
	sent := make(chan error, 1)
	go func() {
		end := time.Now().Add(length)
		for i := 0; time.Now().Before(end) && ctx.Err() == nil; i++ {
			slots <- struct{}{}
			sequence := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(i+1))
			if err := stream.SendMsg(mem.BufferSlice{mem.SliceBuffer(sequence), mem.SliceBuffer(ready[i%framesAhead])}); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	n := int64(0)
	for {
		answer := &tally{stream: true}
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			return n, <-sent
		}
		if err = errors.Join(err, answer.err()); err != nil {
			return n, err
		}
		n += int64(answer.results)
		for range answer.done {
			<-slots
		}
	}
}
