package event

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Record is an event as Kafka has it: bytes and headers, nothing interpreted.
type Record struct {
	Topic     string
	Partition int32 // AnyPartition before it is produced without a choice
	Offset    int64
	Timestamp time.Time // zero before it is produced: the producer's now
	Key       []byte    // nil: null
	Value     []byte    // nil: null, a tombstone
	Headers   []Header
}

// Position is where Kafka keeps r.
func (r *Record) Position() Position { return Position{r.Topic, r.Partition, r.Offset} }

// Size is what r's own bytes weigh: key, value, header names and values.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Name) + len(r.Headers[i].Value)
	}
	return n
}

// Header returns the value of the last header called name, and whether there is one.
func (r *Record) Header(name string) ([]byte, bool) {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if r.Headers[i].Name == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}

// Clone returns a copy of r that shares no bytes with it but its strings': one
// allocation for all bytes, one for the headers, one for the record. A record as the
// Kafka client hands it out keeps the whole of the fetch it came in in memory, so
// whoever keeps one longer than a moment keeps a clone.
func (r *Record) Clone() *Record {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Value)
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
	c := *r
	c.Key, c.Value = take(r.Key), take(r.Value)
	if len(r.Headers) > 0 {
		c.Headers = make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			c.Headers[i] = Header{h.Name, take(h.Value)}
		}
	}
	return &c
}

// Record writes e as a Kafka record for topic, by the CloudEvents Kafka
// binding's binary mode (section 3.2): attributes become ce_ headers in raw
// UTF-8, datacontenttype the content-type header, data the value. The key is
// the event's own; failing that the partitionkey extension (section 3.1, which
// stays an attribute); failing that none.
func (e *Event) Record(topic string) *Record {
	r := &Record{}
	e.FillRecord(r, topic)
	return r
}

// FillRecord is Record into memory of the caller's.
func (e *Event) FillRecord(r *Record, topic string) {
	*r = Record{
		Topic: topic, Partition: e.Partition, Offset: -1, Timestamp: e.Timestamp,
		Key: e.Key, Value: e.Data,
	}
	n := len(e.Headers)
	if e.ContentType != "" {
		n++
	}
	ce := e.IsCloudEvent()
	if ce {
		n += 7 + len(e.Extensions)
	}
	if n == 0 {
		return
	}
	// Room for the trace headers that publishing appends.
	r.Headers = make([]Header, 0, n+2)
	put := func(name, value string) {
		if value != "" {
			r.Headers = append(r.Headers, Header{name, []byte(value)})
		}
	}
	put(HeaderContentType, e.ContentType)
	if ce {
		put(HeaderSpecVersion, SpecVersion)
		put(kafkaAttributePrefix+"id", e.ID)
		put(kafkaAttributePrefix+"source", e.Source)
		put(kafkaAttributePrefix+"type", e.Type)
		put(kafkaAttributePrefix+"subject", e.Subject)
		put(kafkaAttributePrefix+"dataschema", e.DataSchema)
		if !e.Time.IsZero() {
			put(kafkaAttributePrefix+"time", e.Time.Format(time.RFC3339Nano))
		}
		for _, x := range e.Extensions {
			// An extension may be empty text and is still there.
			r.Headers = append(r.Headers, Header{kafkaAttributePrefix + x.Name, []byte(x.Value)})
		}
		if r.Key == nil {
			if k := e.Extension(ExtensionPartitionKey); k != "" {
				r.Key = []byte(k)
			}
		}
	}
	r.Headers = append(r.Headers, e.Headers...)
}

// StructuredRecord writes a CloudEvent as a Kafka record by the Kafka binding's
// structured mode (section 3.3): one JSON document as the value, which the
// content-type header says. Headers of the event's own, and the key, are as in
// the binary mode.
func (e *Event) StructuredRecord(topic string) *Record {
	r := &Record{Topic: topic, Partition: e.Partition, Offset: -1, Timestamp: e.Timestamp, Key: e.Key, Value: e.AppendStructuredJSON(nil)}
	r.Headers = make([]Header, 0, len(e.Headers)+3)
	r.Headers = append(r.Headers, Header{HeaderContentType, []byte(MediaStructured + "; charset=UTF-8")})
	r.Headers = append(r.Headers, e.Headers...)
	if k := e.Extension(ExtensionPartitionKey); r.Key == nil && k != "" {
		r.Key = []byte(k)
	}
	return r
}

// Event reads r as an event. A record whose ce_ headers do not make a valid
// CloudEvent (an id, source or type missing, a value that is not UTF-8, a name
// twice) is a plain one, and all its headers stay headers: nothing is refused
// and nothing is lost, because no record may block its partition.
func (r *Record) Event() Event {
	e := Event{Key: r.Key, Data: r.Value, Partition: r.Partition, Timestamp: r.Timestamp}
	asCloudEvent := r.carriesCloudEvent()
	for i, h := range r.Headers {
		name := h.Name
		switch {
		case name == HeaderContentType && e.ContentType == "" && len(h.Value) > 0 && utf8.Valid(h.Value):
			e.ContentType = string(h.Value)
		case asCloudEvent && strings.HasPrefix(name, kafkaAttributePrefix):
			e.setKafkaAttribute(name[len(kafkaAttributePrefix):], string(h.Value))
		default:
			if e.Headers == nil {
				e.Headers = make([]Header, 0, len(r.Headers)-i)
			}
			e.Headers = append(e.Headers, h)
		}
	}
	return e
}

func (e *Event) setKafkaAttribute(name, value string) {
	switch name {
	case "specversion":
	case "id":
		e.ID = value
	case "source":
		e.Source = value
	case "type":
		e.Type = value
	case "subject":
		e.Subject = value
	case "dataschema":
		e.DataSchema = value
	case "time":
		t, err := time.Parse(time.RFC3339Nano, value)
		if err != nil { // carriesCloudEvent has parsed it before
			panic("event: time checked and then unreadable: " + value)
		}
		e.Time = t
	default:
		e.Extensions = append(e.Extensions, Attribute{name, value})
	}
}

// carriesCloudEvent reports whether every ce_ header of r has its place in an Event.
func (r *Record) carriesCloudEvent() bool {
	var seen [4]bool // specversion, id, source, type
	for i, h := range r.Headers {
		name, ok := strings.CutPrefix(h.Name, kafkaAttributePrefix)
		if !ok {
			continue
		}
		if h.Value == nil || !utf8.Valid(h.Value) {
			return false
		}
		for _, before := range r.Headers[:i] {
			if before.Name == h.Name {
				return false
			}
		}
		switch name {
		case "specversion":
			seen[0] = string(h.Value) == SpecVersion
		case "id":
			seen[1] = len(h.Value) > 0
		case "source":
			seen[2] = len(h.Value) > 0
		case "type":
			seen[3] = len(h.Value) > 0
		case "subject", "dataschema":
			if len(h.Value) == 0 { // an empty attribute would be lost on the way back
				return false
			}
		case "time":
			if t, err := time.Parse(time.RFC3339Nano, string(h.Value)); err != nil || t.IsZero() { // zero stands for none
				return false
			}
		default:
			if !validAttributeName(name) {
				return false
			}
		}
	}
	return seen == [4]bool{true, true, true, true}
}
