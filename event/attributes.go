package event

import "unicode/utf8"

// Attributes reads a record's CloudEvents attributes in place: what Event would
// give, without making an Event. For filters, which look at one or two of them.
type Attributes struct {
	record *Record
	// CloudEvent reports whether the record is one; without, only datacontenttype is there.
	CloudEvent bool
}

// Attributes of r.
func (r *Record) Attributes() Attributes { return Attributes{r, r.carriesCloudEvent()} }

// Get gives the bytes of the attribute called name, a string in UTF-8, and
// whether it is there. They are the record's own.
func (a Attributes) Get(name string) ([]byte, bool) {
	if name == "datacontenttype" {
		for i := range a.record.Headers {
			h := &a.record.Headers[i]
			if h.Name == HeaderContentType && len(h.Value) > 0 && utf8.Valid(h.Value) {
				return h.Value, true
			}
		}
		return nil, false
	}
	if !a.CloudEvent {
		return nil, false
	}
	for i := range a.record.Headers {
		h := &a.record.Headers[i]
		if len(h.Name) == len(kafkaAttributePrefix)+len(name) && h.Name[:len(kafkaAttributePrefix)] == kafkaAttributePrefix && h.Name[len(kafkaAttributePrefix):] == name {
			return h.Value, true
		}
	}
	return nil, false
}

// IsAttribute reports whether header is how a record of a CloudEvent, or any
// record for the content type, carries an attribute.
func (a Attributes) IsAttribute(header string) bool {
	return header == HeaderContentType ||
		a.CloudEvent && len(header) > len(kafkaAttributePrefix) && header[:len(kafkaAttributePrefix)] == kafkaAttributePrefix
}
