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
	// Begun is 0 while the group is not known to have committed; else one more than
	// the SeekEpoch of its last known commit. A group that has no commits and was not
	// sought since has lost its position.
	Begun uint64
}

// Lost reports whether the group, should it have no commits, has lost its position.
func (d Desired) Lost() bool { return d.Begun > 0 && d.SeekEpoch < d.Begun }

// applied is the last seek that is known to be applied.
func (d Desired) applied() uint64 { return max(d.Begun, 1) - 1 }

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
