package wire

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that Codec falls back on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Encoder is a message that writes itself: the hand-written encoding of what is
// sent most often, equal to the generated one byte for byte.
type Encoder interface {
	// WireSize is how many bytes AppendWire appends. It is called first.
	WireSize() int
	AppendWire(b []byte) []byte
}

// Codec is gRPC's protobuf codec, which also takes Encoders.
type Codec struct {
	encoding.CodecV2
	pool mem.BufferPool
}

// NewCodec makes a Codec whose own buffers come from pool.
func NewCodec(pool mem.BufferPool) Codec { return Codec{encoding.GetCodecV2("proto"), pool} }

// Marshal writes a message.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	e, ok := v.(Encoder)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	buffer := c.pool.Get(e.WireSize())
	*buffer = e.AppendWire((*buffer)[:0])
	return mem.BufferSlice{mem.NewBuffer(buffer, c.pool)}, nil
}

// Unmarshal reads a message.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	whole := data.MaterializeToBuffer(c.pool)
	defer whole.Free()
	return proto.Unmarshal(whole.ReadOnlyData(), m)
}
