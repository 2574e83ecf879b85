package broker

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
)

// fillRecord writes r for the Kafka client. Nothing is copied: the bytes must not change until the promise.
func fillRecord(k *kgo.Record, r *event.Record) {
	k.Topic, k.Partition, k.Timestamp, k.Key, k.Value = r.Topic, r.Partition, r.Timestamp, r.Key, r.Value
	if len(r.Headers) > 0 {
		k.Headers = make([]kgo.RecordHeader, len(r.Headers))
		for i, h := range r.Headers {
			k.Headers[i] = kgo.RecordHeader{Key: h.Name, Value: h.Value}
		}
	}
}

// borrowRecord is k in r, without its bytes being copied: r keeps the whole of the
// fetch that k came in (8 MiB), or of its batch when that was compressed. Who keeps r
// for longer than a moment keeps a clone.
func borrowRecord(r *event.Record, k *kgo.Record) {
	*r = event.Record{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset, Timestamp: k.Timestamp, Key: slices.Clip(k.Key), Value: slices.Clip(k.Value)}
	if len(k.Headers) > 0 {
		r.Headers = make([]event.Header, len(k.Headers))
		for i, h := range k.Headers {
			r.Headers[i] = event.Header{Name: h.Key, Value: slices.Clip(h.Value)}
		}
	}
}

// fromRecord copies k out of the fetch it came in, because an event may be held for long.
func fromRecord(k *kgo.Record) *event.Record {
	var r event.Record
	borrowRecord(&r, k)
	return r.Clone()
}
