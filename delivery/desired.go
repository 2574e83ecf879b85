package delivery

import (
	"github.com/postern-dev/postern/broker"
)

// Desired is the state people want a subscription in, beyond what it is. It is
// kept in Kafka (package subscription) and the same at every instance.
type Desired struct {
	// Paused lends nothing more; what is lent may be settled.
	Paused bool
	// SeekEpoch grows with each seek. 0: it was never sought.
	SeekEpoch uint64
	// Seeks are the targets by partition. A partition keeps the target of the last
	// seek that named it, so that a seek which its owner has not applied yet is
	// not lost to a later one of other partitions.
	Seeks map[broker.TopicPartition]Seek
}

// Seek is where a partition goes on, once.
type Seek struct {
	// Epoch of the seek that set it, at least 1.
	Epoch uint64
	// Offset of the next event to deliver; those before it count as settled.
	Offset int64
	// TopicID of the topic it was meant for: one made again under the name is
	// another. Zero where the broker gives none.
	TopicID [16]byte
}

// SeekOf gives the seek that the owner of a partition still has to apply, when
// its commit's metadata says that all up to applied are.
func (d Desired) SeekOf(at broker.TopicPartition, topicID [16]byte, applied uint64) (Seek, bool) {
	s, ok := d.Seeks[at]
	if !ok || s.Epoch <= applied || s.TopicID != topicID && s.TopicID != [16]byte{} && topicID != [16]byte{} {
		return Seek{}, false
	}
	return s, true
}
