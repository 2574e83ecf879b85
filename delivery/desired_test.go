package delivery

import (
	"testing"

	"github.com/postern-dev/postern/broker"
)

func TestAPartitionIsSoughtOncePerEpochAndOnlyInItsOwnTopic(t *testing.T) {
	at := broker.TopicPartition{Topic: "orders", Partition: 1}
	d := Desired{SeekEpoch: 7, Seeks: map[broker.TopicPartition]Seek{at: {Epoch: 5, Offset: 42, TopicID: [16]byte{1}}}}
	for _, c := range []struct {
		at      broker.TopicPartition
		id      [16]byte
		applied uint64
		want    bool
	}{
		{at, [16]byte{1}, 4, true},
		{at, [16]byte{1}, 0, true},
		{at, [16]byte{1}, 5, false}, // applied
		{at, [16]byte{1}, 7, false}, // a later one of other partitions was applied here too
		{at, [16]byte{2}, 4, false}, // the topic was made again
		{at, [16]byte{}, 4, true},   // a broker that gives no ids
		{broker.TopicPartition{Topic: "orders", Partition: 2}, [16]byte{1}, 0, false},
	} {
		s, ok := d.SeekOf(c.at, c.id, c.applied)
		if ok != c.want || ok && s.Offset != 42 {
			t.Errorf("%v %v applied %d: got %v %v, want %v", c.at, c.id[0], c.applied, s, ok, c.want)
		}
	}
}
