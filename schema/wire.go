package schema

import (
	"encoding/binary"

	"github.com/postern-dev/postern/event"
)

// The Confluent wire format: a zero byte, the schema's id in four bytes
// big-endian; for Protobuf the message's index; then the payload.
// https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
const (
	magic      = 0
	headerSize = 5
	// headerRoom is kept free before a payload that is made here, so that its header
	// is written without a copy. An index longer than that is rare and is copied.
	headerRoom = 16
	// maxIndex bounds how deep a Protobuf message may be nested in others.
	maxIndex = 32
)

// frame is a value in the wire format, taken apart.
type frame struct {
	id   int
	rest []byte // index and payload
}

// parseFrame reads the header. A value that does not begin with one is not in
// the wire format: no JSON begins with a zero byte.
func parseFrame(value []byte) (frame, bool) {
	if !event.IsEncoded(value) {
		return frame{}, false
	}
	return frame{int(binary.BigEndian.Uint32(value[1:])), value[headerSize:]}, true
}

// payload is what follows the header of a schema of format, and the message's
// index for Protobuf; false when the index cannot be read.
func (f frame) payload(format Format) (payload []byte, index []int, ok bool) {
	if format != Protobuf {
		return f.rest, nil, true
	}
	count, n := binary.Varint(f.rest)
	if n <= 0 || count < 0 || count > maxIndex {
		return nil, nil, false
	}
	rest := f.rest[n:]
	if count == 0 { // short for [0], the first message
		return rest, []int{0}, true
	}
	index = make([]int, count)
	for i := range index {
		v, n := binary.Varint(rest)
		if n <= 0 || v < 0 || v > 1<<20 {
			return nil, nil, false
		}
		index[i], rest = int(v), rest[n:]
	}
	return rest, index, true
}

// seal writes the header of schema id before payload, which begins after headerRoom bytes.
func seal(payload []byte, id int, index []int) []byte {
	var buf [headerSize + (maxIndex+1)*binary.MaxVarintLen64]byte
	header := append(buf[:0], magic)
	header = binary.BigEndian.AppendUint32(header, uint32(id))
	switch {
	case len(index) == 1 && index[0] == 0:
		header = append(header, 0)
	case len(index) > 0:
		header = binary.AppendVarint(header, int64(len(index)))
		for _, i := range index {
			header = binary.AppendVarint(header, int64(i))
		}
	}
	if len(header) <= headerRoom {
		start := headerRoom - len(header)
		copy(payload[start:], header)
		return payload[start:]
	}
	return append(header[:len(header):len(header)], payload[headerRoom:]...)
}
