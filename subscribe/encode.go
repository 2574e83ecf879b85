package subscribe

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// deliveryFrame is a SubscribeResponse with a batch of deliveries, encoded by
// hand from the records themselves: no message is built for what is sent most
// often. It is equal to the generated encoding byte for byte (TestFrame...).
// One frame's memory serves a whole session.
type deliveryFrame struct {
	leases []delivery.Lease
	parts  []framePart
	size   int // of the DeliveryBatch

	expires, appended timeField // the last ones: those of a batch mostly have them in common
}

// timeField is a field of a delivery, encoded.
type timeField struct {
	of    time.Time
	bytes [24]byte
	size  int // 0: none is
}

func (f *timeField) encode(field protowire.Number, t time.Time) []byte {
	if f.size == 0 || !f.of.Equal(t) {
		f.of, f.size = t, len(appendTime(f.bytes[:0], field, t))
	}
	return f.bytes[:f.size]
}

// framePart is what WireSize found out about one delivery.
type framePart struct {
	event    event.Event
	failure  []byte // google.rpc.Status
	size     int    // of the Delivery
	eventLen int
}

// Field numbers of subscriber.proto and event.proto.
const (
	fieldResponseDeliveries = 2
	fieldBatchDeliveries    = 1

	fieldDeliveryID       = 1
	fieldDeliveryEvent    = 2
	fieldDeliveryPosition = 3
	fieldDeliveryAttempt  = 4
	fieldDeliveryExpires  = 5
	fieldDeliveryAppended = 6
	fieldDeliveryFailure  = 7

	fieldEventID          = 1
	fieldEventSource      = 2
	fieldEventType        = 3
	fieldEventSubject     = 4
	fieldEventTime        = 5
	fieldEventContentType = 6
	fieldEventDataSchema  = 7
	fieldEventExtensions  = 8
	fieldEventKey         = 9
	fieldEventData        = 10
	fieldEventHeaders     = 11
	fieldEventTimestamp   = 14
)

// set begins a frame of leases.
func (f *deliveryFrame) set(leases []delivery.Lease) {
	f.leases = leases
	if cap(f.parts) < len(leases) {
		f.parts = make([]framePart, len(leases))
	}
	f.parts = f.parts[:len(leases)]
	f.size = 0
	for i := range leases {
		f.parts[i].measure(f, &leases[i])
		f.size += sizeBytes(fieldBatchDeliveries, f.parts[i].size)
	}
}

// release forgets what the frame points to.
func (f *deliveryFrame) release() {
	clear(f.parts)
	f.leases = nil
}

// WireSize is the size of the whole message.
func (f *deliveryFrame) WireSize() int { return sizeBytes(fieldResponseDeliveries, f.size) }

// AppendWire appends the message.
func (f *deliveryFrame) AppendWire(b []byte) []byte {
	b = appendLen(b, fieldResponseDeliveries, f.size)
	for i := range f.leases {
		b = appendLen(b, fieldBatchDeliveries, f.parts[i].size)
		b = f.parts[i].append(b, f, &f.leases[i])
	}
	return b
}

func (p *framePart) measure(f *deliveryFrame, l *delivery.Lease) {
	p.event = l.Record.Event()
	p.failure = nil
	if l.LastFailure != "" {
		// The message is our own: it always marshals.
		p.failure, _ = proto.Marshal(wire.Status(fault.New(fault.AttemptFailed, "%s", l.LastFailure)))
	}
	p.eventLen = sizeEvent(&p.event)
	n := protowire.SizeTag(fieldDeliveryID) + 8
	n += sizeBytes(fieldDeliveryEvent, p.eventLen)
	n += sizeBytes(fieldDeliveryPosition, sizePosition(l.Record))
	n += protowire.SizeTag(fieldDeliveryAttempt) + protowire.SizeVarint(uint64(l.Attempt))
	n += len(f.expires.encode(fieldDeliveryExpires, l.Deadline))
	if !l.Record.Timestamp.IsZero() {
		n += len(f.appended.encode(fieldDeliveryAppended, l.Record.Timestamp))
	}
	if p.failure != nil {
		n += sizeBytes(fieldDeliveryFailure, len(p.failure))
	}
	p.size = n
}

func (p *framePart) append(b []byte, f *deliveryFrame, l *delivery.Lease) []byte {
	b = protowire.AppendTag(b, fieldDeliveryID, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(l.ID))
	b = appendLen(b, fieldDeliveryEvent, p.eventLen)
	b = appendEvent(b, &p.event)
	b = appendLen(b, fieldDeliveryPosition, sizePosition(l.Record))
	b = appendString(b, 1, l.Record.Topic)
	b = appendVarint(b, 2, uint64(l.Record.Partition))
	b = appendVarint(b, 3, uint64(l.Record.Offset))
	b = protowire.AppendTag(b, fieldDeliveryAttempt, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(l.Attempt))
	b = append(b, f.expires.encode(fieldDeliveryExpires, l.Deadline)...)
	if !l.Record.Timestamp.IsZero() {
		b = append(b, f.appended.encode(fieldDeliveryAppended, l.Record.Timestamp)...)
	}
	if p.failure != nil {
		b = appendBytes(b, fieldDeliveryFailure, p.failure)
	}
	return b
}

func sizeEvent(e *event.Event) int {
	n := sizeString(fieldEventID, e.ID) + sizeString(fieldEventSource, e.Source) + sizeString(fieldEventType, e.Type) +
		sizeString(fieldEventSubject, e.Subject) + sizeString(fieldEventContentType, e.ContentType) + sizeString(fieldEventDataSchema, e.DataSchema)
	if !e.Time.IsZero() {
		n += sizeBytes(fieldEventTime, sizeTime(e.Time))
	}
	for i := range e.Extensions {
		n += sizeBytes(fieldEventExtensions, sizeString(1, e.Extensions[i].Name)+sizeString(2, e.Extensions[i].Value))
	}
	if e.Key != nil {
		n += sizeBytes(fieldEventKey, len(e.Key))
	}
	if e.Data != nil {
		n += sizeBytes(fieldEventData, len(e.Data))
	}
	for i := range e.Headers {
		n += sizeBytes(fieldEventHeaders, sizeHeader(&e.Headers[i]))
	}
	if !e.Timestamp.IsZero() {
		n += sizeBytes(fieldEventTimestamp, sizeTime(e.Timestamp))
	}
	return n
}

func appendEvent(b []byte, e *event.Event) []byte {
	b = appendString(b, fieldEventID, e.ID)
	b = appendString(b, fieldEventSource, e.Source)
	b = appendString(b, fieldEventType, e.Type)
	b = appendString(b, fieldEventSubject, e.Subject)
	if !e.Time.IsZero() {
		b = appendTime(b, fieldEventTime, e.Time)
	}
	b = appendString(b, fieldEventContentType, e.ContentType)
	b = appendString(b, fieldEventDataSchema, e.DataSchema)
	for i := range e.Extensions {
		x := &e.Extensions[i]
		b = appendLen(b, fieldEventExtensions, sizeString(1, x.Name)+sizeString(2, x.Value))
		b = appendString(b, 1, x.Name)
		b = appendString(b, 2, x.Value)
	}
	if e.Key != nil {
		b = appendBytes(b, fieldEventKey, e.Key)
	}
	if e.Data != nil {
		b = appendBytes(b, fieldEventData, e.Data)
	}
	for i := range e.Headers {
		h := &e.Headers[i]
		b = appendLen(b, fieldEventHeaders, sizeHeader(h))
		b = appendString(b, 1, wire.ValidUTF8(h.Name))
		if h.Value != nil {
			b = appendBytes(b, 2, h.Value)
		}
	}
	if !e.Timestamp.IsZero() {
		b = appendTime(b, fieldEventTimestamp, e.Timestamp)
	}
	return b
}

func sizeHeader(h *event.Header) int {
	n := sizeString(1, wire.ValidUTF8(h.Name))
	if h.Value != nil {
		n += sizeBytes(2, len(h.Value))
	}
	return n
}

func sizePosition(r *event.Record) int {
	return sizeString(1, r.Topic) + sizeVarint(2, uint64(r.Partition)) + sizeVarint(3, uint64(r.Offset))
}

func sizeTime(t time.Time) int {
	return sizeVarint(1, uint64(t.Unix())) + sizeVarint(2, uint64(t.Nanosecond()))
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	b = appendLen(b, field, sizeTime(t))
	b = appendVarint(b, 1, uint64(t.Unix()))
	return appendVarint(b, 2, uint64(t.Nanosecond()))
}

// sizeBytes is the size of a field of n bytes with its tag and length.
func sizeBytes(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeVarint(uint64(n)) + n
}

// sizeString is the size of a text, which is absent when empty.
func sizeString(field protowire.Number, s string) int {
	if s == "" {
		return 0
	}
	return sizeBytes(field, len(s))
}

// sizeVarint is the size of a number, which is absent when zero.
func sizeVarint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func appendLen(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return append(appendLen(b, field, len(v)), v...)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return append(appendLen(b, field, len(s)), s...)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}
