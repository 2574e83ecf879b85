package subscribe

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func leaseOf(t *rapid.T) delivery.Lease {
	maybe := func(name string) []byte {
		if !rapid.Bool().Draw(t, name+" there") {
			return nil
		}
		return rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, name)
	}
	when := func(name string) time.Time {
		if !rapid.Bool().Draw(t, name+" there") {
			return time.Time{}
		}
		return time.Unix(rapid.Int64Range(-1<<33, 1<<35).Draw(t, name), rapid.SampledFrom([]int64{0, 1, 999_999_999}).Draw(t, "nanos"))
	}
	r := &event.Record{
		Topic: rapid.StringMatching("[a-z.]{0,40}").Draw(t, "topic"), Partition: rapid.Int32Range(0, 300).Draw(t, "partition"),
		Offset: rapid.Int64Range(0, 1<<50).Draw(t, "offset"), Timestamp: when("timestamp"), Key: maybe("key"), Value: maybe("data"),
	}
	put := func(name, value string) {
		r.Headers = append(r.Headers, event.Header{Name: name, Value: []byte(value)})
	}
	if rapid.Bool().Draw(t, "cloud event") {
		put("ce_specversion", "1.0")
		put("ce_id", rapid.StringN(1, 50, -1).Draw(t, "id"))
		put("ce_source", "/s")
		put("ce_type", "t")
		if rapid.Bool().Draw(t, "more") {
			put("ce_subject", "x")
			put("ce_time", "2026-01-02T03:04:05.6Z")
			put("ce_dataschema", "urn:x")
			put("ce_region", rapid.SampledFrom([]string{"", "eu"}).Draw(t, "region"))
			put("content-type", "text/plain")
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "headers") {
		r.Headers = append(r.Headers, event.Header{Name: rapid.SampledFrom([]string{"h", "", "traceparent", "\xff"}).Draw(t, "name"), Value: maybe("value")})
	}
	l := delivery.Lease{ID: delivery.ID(rapid.Uint64Min(1).Draw(t, "lease")), Record: r, Attempt: rapid.IntRange(1, 1000).Draw(t, "attempt"), Deadline: when("deadline")}
	if l.Deadline.IsZero() {
		l.Deadline = time.Unix(5, 6)
	}
	if rapid.Bool().Draw(t, "failed") {
		l.LastFailure = "no stock"
	}
	return l
}

func TestFrameOfDeliveriesIsWhatTheGeneratedCodeWrites(t *testing.T) {
	f := &deliveryFrame{}
	rapid.Check(t, func(t *rapid.T) {
		var leases []delivery.Lease
		for range rapid.IntRange(0, 5).Draw(t, "leases") {
			leases = append(leases, leaseOf(t))
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(&posternv1.SubscribeResponse{
			Frame: &posternv1.SubscribeResponse_Deliveries{Deliveries: &posternv1.DeliveryBatch{Deliveries: deliveriesOf(leases)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		f.set(leases)
		got := f.AppendWire(nil)
		if !bytes.Equal(got, want) {
			t.Fatalf("%x\nis not\n%x", got, want)
		}
		if f.WireSize() != len(got) {
			t.Fatalf("%d bytes, and %d were told", len(got), f.WireSize())
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	leases := make([]delivery.Lease, 256)
	for i := range leases {
		leases[i] = delivery.Lease{ID: delivery.ID(i), Attempt: 1, Deadline: time.Now(), Record: &event.Record{
			Topic: "orders", Offset: int64(i), Timestamp: time.Now(), Key: []byte("key-123"), Value: make([]byte, 1024),
			Headers: []event.Header{{Name: "traceparent", Value: make([]byte, 55)}},
		}}
	}
	b.Run("hand", func(b *testing.B) {
		f := &deliveryFrame{}
		var buffer []byte
		b.ReportAllocs()
		for b.Loop() {
			f.set(leases)
			buffer = f.AppendWire(buffer[:0])
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(leases)), "ns/event")
	})
	b.Run("generated", func(b *testing.B) {
		var buffer []byte
		b.ReportAllocs()
		for b.Loop() {
			buffer, _ = proto.MarshalOptions{}.MarshalAppend(buffer[:0], &posternv1.SubscribeResponse{
				Frame: &posternv1.SubscribeResponse_Deliveries{Deliveries: &posternv1.DeliveryBatch{Deliveries: deliveriesOf(leases)}},
			})
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(leases)), "ns/event")
	})
}
