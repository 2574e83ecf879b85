package endpoint

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// MessageID names an event towards one subscription's endpoint: stable over
// retries and over gateways, different from the event's own id, and without
// the dot that would make the signed text ambiguous.
func MessageID(subscription string, at event.Position) string {
	b := make([]byte, 0, 256)
	b = append(b, subscription...)
	b = append(b, 0)
	b = append(b, at.Topic...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(at.Partition))
	b = binary.BigEndian.AppendUint64(b, uint64(at.Offset))
	sum := sha256.Sum256(b)
	return messageID(sum[:])
}

func messageID(sum []byte) string {
	b := append(make([]byte, 0, 40), "msg_"...)
	return string(idEncoding.AppendEncode(b, sum[:20]))
}

// batchID names a batch by its events: the same events, tried again together,
// are the same message.
func batchID(subscription string, leases []delivery.Lease) string {
	if len(leases) == 1 {
		return MessageID(subscription, leases[0].Record.Position())
	}
	h := sha256.New()
	for i := range leases {
		h.Write([]byte(MessageID(subscription, leases[i].Record.Position())))
	}
	return messageID(h.Sum(nil))
}
