package broker

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// shareBatch encodes a record batch of format 2 that begins at offset and holds
// records at the given distances from it.
func shareBatch(t *testing.T, offset int64, deltas ...int32) []byte {
	t.Helper()
	var records []byte
	for _, d := range deltas {
		r := kmsg.NewRecord()
		r.OffsetDelta, r.Value = d, []byte("v")
		r.Length = int32(len(r.AppendTo(nil))) - 1 // without its own byte
		records = r.AppendTo(records)
	}
	b := kmsg.NewRecordBatch()
	b.FirstOffset, b.Magic, b.LastOffsetDelta, b.NumRecords, b.Records = offset, 2, deltas[len(deltas)-1], int32(len(deltas)), records
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	b.Length = int32(len(b.AppendTo(nil)) - 12)
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}
