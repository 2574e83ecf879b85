package event

import (
	"fmt"
	"mime"
	"net/url"
	"strings"
	"unicode/utf8"
)

// InvalidError says which part of an event is wrong.
type InvalidError struct {
	Field   string // an attribute (ce-time), a JSON pointer (/data_base64), a header name (Postern-Key), or a member (extensions)
	Message string // what is wrong and what would be right
	Form    bool   // the body's form is wrong, rather than a rule of CloudEvents broken
}

func (e *InvalidError) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// malformed is invalid for a body that has not the form its type says.
func malformed(field, format string, args ...any) error {
	return &InvalidError{Field: field, Message: fmt.Sprintf(format, args...), Form: true}
}

// Validate checks an event to be published, however it came in: either a
// CloudEvent with every required attribute (CloudEvents 1.0, section 3), or a
// plain payload with none.
func (e *Event) Validate() error {
	if e.Partition < AnyPartition {
		return invalid("partition", "%d is not a partition", e.Partition)
	}
	if strings.ContainsFunc(e.ContentType, isControl) || !utf8.ValidString(e.ContentType) {
		return invalid("content_type", "control characters are not allowed")
	}
	if e.Subject == "" && e.ID == "" && e.Source == "" && e.Type == "" && e.DataSchema == "" && e.Time.IsZero() && len(e.Extensions) == 0 {
		if e.ContentType == "" {
			return nil
		}
		return e.refuseHeaders(false)
	}
	if err := e.RequireCloudEvent(); err != nil {
		return err
	}
	for _, text := range [...]struct{ name, value string }{
		{"id", e.ID}, {"source", e.Source}, {"type", e.Type}, {"subject", e.Subject}, {"dataschema", e.DataSchema},
	} {
		if err := validText(text.name, text.value); err != nil {
			return err
		}
	}
	if e.ContentType != "" && !validMediaType(e.ContentType) {
		return invalid("datacontenttype", "%q is not a media type such as application/json", e.ContentType)
	}
	if err := e.refuseHeaders(true); err != nil {
		return err
	}
	if !isURIReference(e.Source) {
		return invalid("source", "%q is not a URI reference", e.Source)
	}
	if e.DataSchema != "" {
		if u, err := url.Parse(e.DataSchema); err != nil || !u.IsAbs() || !isURIReference(e.DataSchema) {
			return invalid("dataschema", "%q is not an absolute URI", e.DataSchema)
		}
	}
	if y := e.Time.Year(); !e.Time.IsZero() && (y < 0 || y > 9999) {
		return invalid("time", "the year %d cannot be written in RFC 3339", y)
	}
	for i, x := range e.Extensions {
		if !validAttributeName(x.Name) || reservedAttribute(x.Name) {
			return invalid("extensions", "%q is not an extension's name: use lower-case letters and digits, and none of CloudEvents' own names", x.Name)
		}
		for _, before := range e.Extensions[:i] {
			if before.Name == x.Name {
				return invalid("extensions", "%q is there twice", x.Name)
			}
		}
		if x.Value == "" && x.Name == ExtensionPartitionKey {
			return invalid(x.Name, "it is empty: give the event a key, or leave the attribute out")
		}
		if err := validText(x.Name, x.Value); err != nil {
			return err
		}
	}
	return nil
}

// refuseHeaders refuses record headers whose names are an attribute's, or the
// content type's: beside the attribute itself a reader would see two, or one that
// the attribute's rules were never applied to.
func (e *Event) refuseHeaders(cloudEvent bool) error {
	for i := range e.Headers {
		name := e.Headers[i].Name
		if name == HeaderContentType || cloudEvent && strings.HasPrefix(name, kafkaAttributePrefix) {
			return invalid("headers", "%q is how Kafka's readers find an attribute or the content type: send it as that and not as a header", name)
		}
	}
	return nil
}

// isURIReference checks a URI-reference (RFC 3986): the characters that may not
// stand in one, and what Go's parser finds. Letters beyond ASCII pass, as an IRI's:
// refusing them would refuse what the official SDKs send.
func isURIReference(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c <= ' ', c == 0x7f, strings.IndexByte("\"<>\\^`{|}", c) >= 0:
			return false
		case c == '%' && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2])):
			return false
		}
	}
	_, err := url.Parse(s)
	return err == nil
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// RequireCloudEvent checks that e has the attributes that CloudEvents 1.0,
// section 3.1.1 requires, as what says it is a CloudEvent must.
func (e *Event) RequireCloudEvent() error {
	for _, required := range [...]struct{ name, value string }{{"id", e.ID}, {"source", e.Source}, {"type", e.Type}} {
		if required.value == "" {
			return invalid(required.name, "a CloudEvent needs it (and an event without id, source and type may have no other attribute)")
		}
	}
	return nil
}

// reservedAttribute reports whether name is a context attribute of CloudEvents itself.
func reservedAttribute(name string) bool {
	switch name {
	case "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data":
		return true
	}
	return false
}

// validText checks a String attribute (CloudEvents 1.0, type system): valid
// Unicode without control characters and noncharacters.
func validText(name, value string) error {
	if !utf8.ValidString(value) {
		return invalid(name, "the value is not valid UTF-8")
	}
	if strings.ContainsFunc(value, isControl) {
		return invalid(name, "control characters are not allowed")
	}
	if strings.ContainsFunc(value, isNoncharacter) {
		return invalid(name, "code points that Unicode calls noncharacters (U+FFFE and the like) are not allowed")
	}
	return nil
}

// isNoncharacter reports U+FDD0 to U+FDEF and the last two of each plane.
func isNoncharacter(r rune) bool { return r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe }

// validMediaType checks a datacontenttype (RFC 2046): type/subtype, then parameters.
func validMediaType(value string) bool {
	kind, rest, ok := strings.Cut(value, "/")
	if !ok || !isToken(kind) {
		return false
	}
	if isToken(rest) { // most have no parameters
		return true
	}
	_, _, err := mime.ParseMediaType(value)
	return err == nil
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r <= 0x9f }
