package tail

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/postern-dev/postern/fault"
)

// Cursor is where a reader of one topic stands: the next offset of each
// partition. Partitions that are not in it begin at their start, so a cursor
// stays good when a topic grows.
//
// Its text is "c1." and the base64url of a checksum and of (partition delta,
// offset) pairs, at most 4 KiB; any instance can go on from it.
type Cursor map[int32]int64

const (
	cursorPrefix  = "c1."
	maxCursorText = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (c Cursor) String() string {
	b := make([]byte, 4, 4+6*len(c))
	last := int32(0)
	for _, p := range slices.Sorted(maps.Keys(c)) {
		b = binary.AppendUvarint(b, uint64(p-last))
		b = binary.AppendUvarint(b, uint64(c[p]))
		last = p
	}
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return cursorPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads a cursor as it was given.
func ParseCursor(text string) (Cursor, error) {
	bad := func(why string) (Cursor, error) {
		return nil, fault.New(fault.InvalidCursor, "the cursor %s: use one as it was given, or start without", why)
	}
	if len(text) > maxCursorText {
		return bad("is longer than any we give")
	}
	if len(text) < len(cursorPrefix) || text[:len(cursorPrefix)] != cursorPrefix {
		return bad("is not one of ours")
	}
	b, err := base64.RawURLEncoding.DecodeString(text[len(cursorPrefix):])
	if err != nil || len(b) < 4 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return bad("is damaged")
	}
	c, at := Cursor{}, uint64(0)
	for b = b[4:]; len(b) > 0; {
		delta, n := binary.Uvarint(b)
		if n <= 0 || delta > 1<<31 || at+delta > 1<<31-1 || len(c) > 0 && delta == 0 {
			return bad("is damaged")
		}
		at += delta
		offset, m := binary.Uvarint(b[n:])
		if m <= 0 || offset > 1<<62 {
			return bad("is damaged")
		}
		c[int32(at)] = int64(offset)
		b = b[n+m:]
	}
	return c, nil
}
