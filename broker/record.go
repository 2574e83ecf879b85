package broker

import (
	"slices"
	"strings"

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

// fromRecord copies k out of the fetch it came in, because a kgo.Record pins
// its whole batch and an event may be held for long. One allocation for all
// bytes, one for the headers, one for the record.
func fromRecord(k *kgo.Record) *event.Record {
	n := len(k.Key) + len(k.Value)
	for i := range k.Headers {
		n += len(k.Headers[i].Value)
	}
	buf := make([]byte, 0, n)
	take := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		at := len(buf)
		buf = append(buf, b...)
		return buf[at:len(buf):len(buf)]
	}
	r := &event.Record{
		Topic: k.Topic, Partition: k.Partition, Offset: k.Offset, Timestamp: k.Timestamp,
		Key: take(k.Key), Value: take(k.Value),
	}
	if len(k.Headers) > 0 {
		r.Headers = make([]event.Header, len(k.Headers))
		for i, h := range k.Headers {
			r.Headers[i] = event.Header{Name: headerName(h.Key), Value: take(h.Value)}
		}
	}
	return r
}

// headerName returns name without pinning the fetch it is cut from; the names
// met on nearly every event cost nothing.
func headerName(name string) string {
	switch name {
	case event.HeaderContentType:
		return event.HeaderContentType
	case event.HeaderSpecVersion:
		return event.HeaderSpecVersion
	case event.HeaderTraceParent:
		return event.HeaderTraceParent
	case event.HeaderTraceState:
		return event.HeaderTraceState
	case "ce_id":
		return "ce_id"
	case "ce_source":
		return "ce_source"
	case "ce_type":
		return "ce_type"
	case "ce_time":
		return "ce_time"
	case "ce_subject":
		return "ce_subject"
	}
	return strings.Clone(name)
}
