package subscribe

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/delivery"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// BenchmarkSession is a session's part of a settle frame: 256 acks and 16 nacks read
// from the wire and made words for the queue, of which one was refused, and the
// receipts for the rest written. What goes the other way is BenchmarkFrame.
func BenchmarkSession(b *testing.B) {
	const acks, nacks = 256, 16
	batch := &posternv1.SettleBatch{}
	for i := range acks {
		batch.Acks = append(batch.Acks, uint64(7)<<44|uint64(i))
	}
	for i := range nacks {
		batch.Settlements = append(batch.Settlements, &posternv1.Settlement{DeliveryId: uint64(acks + i), Action: &posternv1.Settlement_Nack{
			Nack: &posternv1.Nack{Delay: durationpb.New(time.Second), Reason: "busy"},
		}})
	}
	frame, err := proto.Marshal(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}})
	if err != nil {
		b.Fatal(err)
	}
	refused := []delivery.Result{{ID: delivery.ID(batch.Acks[acks/2]), Outcome: delivery.Stale}}
	var out []byte
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		in := &posternv1.SubscribeRequest{}
		if err := proto.Unmarshal(frame, in); err != nil {
			b.Fatal(err)
		}
		settle := in.GetSettle()
		words := settlementsOf(nil, settle.GetSettlements())
		receipts := &posternv1.Receipts{Committed: acceptedOf(settle.GetAcks(), refused), Results: []*posternv1.SettleResult{resultOf(refused[0])}}
		for _, s := range words {
			receipts.Committed = append(receipts.Committed, uint64(s.ID))
		}
		if len(receipts.Committed) != acks-1+nacks {
			b.Fatalf("%d are answered", len(receipts.Committed))
		}
		if out, err = (proto.MarshalOptions{}).MarshalAppend(out[:0], receiptsFrame(receipts)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*(acks+nacks)), "ns/event")
}
