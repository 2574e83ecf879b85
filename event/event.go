// Package event owns the noun everything in Postern carries: an event, its
// headers, and how an event is written as a Kafka record and read back.
//
// An [Event] is what people publish and receive: CloudEvents attributes as
// plain fields, Kafka's own (key, headers, partition, timestamp) beside them.
// A [Record] is the same thing as Kafka keeps it. The mapping between the two
// (Event.Record, Record.Event) follows the CloudEvents Kafka binding in its
// binary mode and loses nothing: whatever of a record is not a CloudEvents
// attribute stays a header with its exact bytes.
//
// HTTP spellings of CloudEvents (binary, structured, batch) are in
// cloudevents.go. Producing and consuming records is package broker's.
package event

import (
	"fmt"
	"time"
)

// AnyPartition as Event.Partition or Record.Partition leaves the choice to the
// partitioner (murmur2 of the key, as Kafka's Java client; sticky without one).
const AnyPartition int32 = -1

// Event is one event, on its way in or out.
//
// It is a CloudEvent when ID, Source and Type are all set (see IsCloudEvent);
// otherwise it is a plain payload and every attribute but ContentType is empty.
type Event struct {
	// CloudEvents 1.0 context attributes.
	ID, Source, Type, Subject string
	Time                      time.Time // zero: absent
	ContentType               string    // CloudEvents datacontenttype; Kafka header "content-type"
	DataSchema                string
	Extensions                []Attribute // in the order given; names are unique, lower-case letters and digits

	// Kafka's own.
	Key       []byte // nil: no key
	Data      []byte // nil: no data, a tombstone on a compacted topic; empty is not nil
	Headers   []Header
	Partition int32     // AnyPartition unless the publisher chose one
	Timestamp time.Time // zero: now, at the producer

	// DedupeKey names the event, so that publishing it twice stores it once (publish.window). It is never stored.
	DedupeKey string
	// SchemaID or SchemaVersion names the schema that the data is of, where the topic's
	// rule leaves it to the publisher (package schema). Not stored; 0 is none.
	SchemaID, SchemaVersion int32
	// Sent is the data as it came, where the topic's schema rule wrote other bytes into Data. Not stored.
	Sent []byte
	// Topic to publish to; "" is the request's.
	Topic string
}

// Attribute is a CloudEvents extension attribute in its canonical string form.
type Attribute struct{ Name, Value string }

// Header is a Kafka record header. Names may repeat and values may be any bytes; nil is Kafka's null.
type Header struct {
	Name  string
	Value []byte
}

// Position is where Kafka keeps an event.
type Position struct {
	Topic     string
	Partition int32
	Offset    int64
}

func (p Position) String() string { return fmt.Sprintf("%s[%d]@%d", p.Topic, p.Partition, p.Offset) }

// IsCloudEvent reports whether e has the attributes that CloudEvents 1.0 requires.
func (e *Event) IsCloudEvent() bool { return e.ID != "" && e.Source != "" && e.Type != "" }

// Extension returns the value of the extension attribute name, or "".
func (e *Event) Extension(name string) string {
	for i := range e.Extensions {
		if e.Extensions[i].Name == name {
			return e.Extensions[i].Value
		}
	}
	return ""
}

// HasAttribute reports whether e is a CloudEvent with the context attribute name.
func (e *Event) HasAttribute(name string) bool {
	if !e.IsCloudEvent() {
		return false
	}
	switch name {
	case "id", "source", "type", "specversion":
		return true
	case "subject":
		return e.Subject != ""
	case "time":
		return !e.Time.IsZero()
	case "datacontenttype":
		return e.ContentType != ""
	case "dataschema":
		return e.DataSchema != ""
	}
	for i := range e.Extensions {
		if e.Extensions[i].Name == name {
			return true
		}
	}
	return false
}

// SetExtension sets the extension attribute name, replacing a value it has.
func (e *Event) SetExtension(name, value string) {
	for i := range e.Extensions {
		if e.Extensions[i].Name == name {
			e.Extensions[i].Value = value
			return
		}
	}
	e.Extensions = append(e.Extensions, Attribute{name, value})
}

// IsEncoded reports whether data is in the schema registry's wire format: a zero
// byte and a schema's id in four, of which the first is below 128. No text of JSON
// begins so. What follows is package schema's.
func IsEncoded(data []byte) bool { return len(data) >= 5 && data[0] == 0 && data[1] < 0x80 }
