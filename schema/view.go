package schema

import (
	"context"
	"net/url"
	"strconv"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func unescape(segment string) (string, error) { return url.PathUnescape(segment) }

// View gives r as JSON: a value in the wire format decoded by its writer's
// schema, or as the topic's read_as has it; JSON as it is, and a tombstone too.
// A key is decoded where the topic's rule encodes keys. r itself is not changed;
// it is returned when there is nothing to change.
//
// It fails with UNDECODABLE when no later try will be better, else with the
// reason why it may: SCHEMA_REGISTRY_UNAVAILABLE or the context's.
func (c *Checker) View(ctx context.Context, r *event.Record) (*event.Record, error) {
	t := c.of(r.Topic)
	value, media := r.Value, ""
	if r.Value != nil {
		var rule *partRule
		if t != nil {
			rule = t.value
		}
		var err error
		if value, media, err = c.decode(ctx, r.Value, r, rule); err != nil {
			return nil, err
		}
	}
	key := r.Key
	if t != nil && t.key != nil && t.key.Rule == Encode && r.Key != nil {
		if f, framed := parseFrame(r.Key); framed {
			var err error
			if key, err = c.decodeFrame(ctx, f, t.key); err != nil {
				return nil, err
			}
		}
	}
	if media == "" && (t == nil || t.key == nil) {
		return r, nil
	}
	seen := *r
	seen.Value, seen.Key = value, key
	if media != "" {
		seen.Headers = withContentType(r.Headers, media)
	}
	return &seen, nil
}

// Data gives r's data as JSON, as View does; the key is not looked at.
func (c *Checker) Data(ctx context.Context, r *event.Record) ([]byte, error) {
	var rule *partRule
	if t := c.of(r.Topic); t != nil {
		rule = t.value
	}
	data, _, err := c.decode(ctx, r.Value, r, rule)
	return data, err
}

// decode gives a value as JSON, and its media type when it is another than the record says.
func (c *Checker) decode(ctx context.Context, value []byte, r *event.Record, rule *partRule) ([]byte, string, error) {
	if f, framed := parseFrame(value); framed {
		text, err := c.decodeFrame(ctx, f, rule)
		return text, mediaJSON, err
	}
	var doc document
	if err := doc.parse(value); err != nil {
		return nil, "", undecodable("the value is neither in the schema registry's wire format nor JSON: %v", err)
	}
	if h, ok := r.Header(event.HeaderContentType); ok && event.IsJSON(string(h)) {
		return value, "", nil
	}
	return value, mediaJSON, nil
}

func (c *Checker) decodeFrame(ctx context.Context, f frame, rule *partRule) ([]byte, error) {
	if c.registry == nil {
		return nil, fault.New(fault.RegistryUnavailable, "the event's schema has the id %d and the gateway has no schema registry: set schema_registry.urls", f.id)
	}
	one, err := c.registry.byID(ctx, f.id)
	if fault.Is(err, fault.UnknownSchema) || fault.Is(err, fault.SchemaUnusable) {
		return nil, undecodable("%w", err)
	}
	if err != nil {
		return nil, err
	}
	payload, index, ok := f.payload(one.format())
	if !ok {
		return nil, undecodable("the Protobuf message's index after the id %d cannot be read", f.id)
	}
	spelling := Plain
	if rule != nil {
		spelling = rule.spelling
		if rule.ReadAs != "" {
			return c.readAs(ctx, rule, one, payload, index)
		}
	}
	text, err := one.toJSON(payload, index, spelling)
	if err != nil {
		return nil, undecodable("the bytes are not of schema %d: %w", f.id, err)
	}
	return text, nil
}

// readAs decodes by the reader's schema that the rule names.
func (c *Checker) readAs(ctx context.Context, rule *partRule, writer *compiled, payload []byte, index []int) ([]byte, error) {
	subject, err := rule.subject(writer, index)
	if err != nil {
		return nil, undecodable("%w", err)
	}
	n := Latest
	if rule.ReadAs != "latest" {
		n, _ = strconv.Atoi(rule.ReadAs) // checked with the configuration
	}
	reader, err := c.registry.at(ctx, subject, n)
	if fault.Is(err, fault.UnknownSchema) || fault.Is(err, fault.SchemaUnusable) {
		return nil, undecodable("%w", err)
	}
	if err != nil {
		return nil, err
	}
	if writer.format() == Avro && reader.format() == Avro && reader.id != writer.id {
		// What the library resolves it must be able to bound: first see that it is whole.
		whole := &report{}
		if writer.check(payload, nil, whole); !whole.ok() {
			return nil, undecodable("the bytes are not of schema %d: %s", writer.id, whole.list[0].Description)
		}
		if w, r := writer.codec.(*avroCodec), reader.codec.(*avroCodec); w.unfolds(payload, r) {
			return nil, undecodable("read as schema %d, whose fields have defaults of %d bytes, its records would become too large", reader.id, r.defaults)
		}
		resolved, err := reader.reading(writer)
		if err != nil {
			return nil, undecodable("schema %d cannot be read as %d: %w", writer.id, reader.id, err)
		}
		if payload, err = resolved.apply(payload); err != nil {
			return nil, undecodable("the bytes cannot be read as schema %d: %w", reader.id, err)
		}
	} else if reader.format() != writer.format() {
		return nil, undecodable("schema %d is of another format than schema %d", writer.id, reader.id)
	}
	if p, ok := reader.codec.(*protoCodec); ok {
		// The reader's file may have the message at another place.
		d := p.message(writer.recordName("", index), nil)
		if d == nil {
			return nil, undecodable("schema %d has no message %s", reader.id, writer.recordName("", index))
		}
		index = indexOf(d)
	}
	text, err := reader.toJSON(payload, index, rule.spelling)
	if err != nil {
		return nil, undecodable("the bytes are not of schema %d: %w", reader.id, err)
	}
	return text, nil
}

// mostReadings bounds the writers' schemas that one reader's keeps its resolutions of.
const mostReadings = 256

// reading gives how c reads what writer wrote; made once.
func (c *compiled) reading(writer *compiled) (*resolution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.readers[writer.id]; one != nil {
		return one, nil
	}
	one, err := newResolution(writer.codec.(*avroCodec), c.codec.(*avroCodec))
	if err != nil {
		return nil, err
	}
	if c.readers == nil || len(c.readers) >= mostReadings {
		c.readers = map[int]*resolution{}
	}
	c.readers[writer.id] = one
	return one, nil
}

func undecodable(format string, args ...any) error {
	return fault.New(fault.Undecodable, "undecodable: "+format, args...)
}

// withContentType gives headers with another content type, in a slice of its own.
func withContentType(headers []event.Header, media string) []event.Header {
	all := make([]event.Header, 0, len(headers)+1)
	done := false
	for _, h := range headers {
		if h.Name == event.HeaderContentType {
			if done {
				continue
			}
			h.Value, done = []byte(media), true
		}
		all = append(all, h)
	}
	if !done {
		all = append(all, event.Header{Name: event.HeaderContentType, Value: []byte(media)})
	}
	return all
}
