package tail

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/schema"
)

// asyncAPITime bounds the making of the document: a schema that is not known by then is left out.
const asyncAPITime = 10 * time.Second

// AsyncAPI is the route GET /asyncapi.json: the topics the caller may see, what
// their events are by the schema rules in force, how they are published and read
// here, and the subscriptions that deliver them, as an AsyncAPI 3.0 document of this deployment.
func (s *Server) AsyncAPI(w http.ResponseWriter, r *http.Request) error {
	topics, err := s.kafka.Topics(r.Context())
	if err != nil {
		return err
	}
	who := authz.FromContext(r.Context())
	topics = slices.DeleteFunc(topics, func(t broker.Topic) bool {
		return t.Internal || strings.HasPrefix(t.Name, "_") || s.policy.Check(who, authz.Describe, t.Name) != nil
	})
	if len(topics) > maxPage {
		topics = topics[:maxPage]
	}
	ctx, cancel := context.WithTimeout(r.Context(), asyncAPITime)
	defer cancel()
	described := make([]describedTopic, len(topics))
	for i, t := range topics {
		described[i] = describedTopic{name: t.Name, partitions: len(t.Partitions)}
		described[i].value, described[i].key = s.schemas.Describe(ctx, t.Name)
	}
	doc := asyncAPI(r.Host, r.TLS != nil, described)
	addSubscriptions(doc, described, s.subscriptionsFor(r))
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(b) // the client may be gone
	return nil
}

type describedTopic struct {
	name       string
	partitions int
	value, key *schema.Description
}

type object = map[string]any

// asyncAPI writes the document: a channel for each topic, an operation for each
// way to use it. Their actions are the gateway's: it receives what is published.
func asyncAPI(host string, secure bool, topics []describedTopic) object {
	protocol := "http"
	if secure {
		protocol = "https"
	}
	channels, operations, messages := object{}, object{}, object{}
	for _, t := range topics {
		at := object{"$ref": "#/channels/" + escapePointer(t.name)}
		messages[t.name] = messageOf(t)
		channels[t.name] = object{
			"address": "/v1/topics/" + t.name + "/events", "title": "Topic " + t.name, "servers": []object{{"$ref": "#/servers/http"}},
			"messages": object{"event": object{"$ref": "#/components/messages/" + escapePointer(t.name)}},
			"bindings": object{"kafka": object{"topic": t.name, "partitions": max(1, t.partitions), "bindingVersion": "0.5.0"}},
		}
		event := []object{{"$ref": "#/channels/" + escapePointer(t.name) + "/messages/event"}}
		operations["publish."+t.name] = object{
			"action": "receive", "channel": at, "messages": event, "summary": "Publish to " + t.name,
			"bindings": object{"http": object{"method": "POST", "bindingVersion": "0.3.0"}},
		}
		operations["read."+t.name] = object{
			"action": "send", "channel": at, "messages": event, "summary": "Read " + t.name + " as it grows; view=json shows events as JSON",
			"bindings": object{"http": object{"method": "GET", "bindingVersion": "0.3.0"}},
		}
	}
	return object{
		"asyncapi": "3.0.0", "id": "urn:postern:gateway", "defaultContentType": "application/json",
		"info":     object{"title": "Postern", "version": "v1", "description": "The topics behind this gateway, what their events are, and the subscriptions that deliver them."},
		"servers":  object{"http": object{"host": host, "protocol": protocol}},
		"channels": channels, "operations": operations, "components": object{"messages": messages},
	}
}

// messageOf describes a topic's events; without a schema rule anything may be one.
func messageOf(t describedTopic) object {
	m := object{"name": t.name, "title": "An event of " + t.name}
	if t.key != nil {
		m["bindings"] = object{"kafka": object{"key": keySchema(t.key), "bindingVersion": "0.5.0"}}
	}
	d := t.value
	if d == nil {
		m["summary"] = "Any bytes: no schema rule is in force."
		return m
	}
	m["summary"] = "Schema rule " + string(d.Rule) + ", version " + d.Version + " of the subject " + d.Subject
	if d.Subject == "" {
		m["summary"] = "Schema rule " + string(d.Rule) + ", a subject for each record (" + string(d.Strategy) + ")"
	}
	if payload := payloadSchema(d); payload != nil {
		m["payload"] = payload
	}
	if d.Err != nil {
		m["description"] = "The schema could not be had: " + d.Err.Error()
	}
	return m
}

// payloadSchema is the schema in its own language, as AsyncAPI names them.
func payloadSchema(d *schema.Description) object {
	switch d.Format {
	case schema.Avro:
		return object{"schemaFormat": "application/vnd.apache.avro+json;version=1.9.0", "schema": raw(d.Text)}
	case schema.JSON:
		return object{"schemaFormat": "application/schema+json;version=draft-07", "schema": raw(d.Text)}
	case schema.Protobuf:
		return object{"schemaFormat": "application/vnd.google.protobuf;version=3", "schema": d.Text}
	}
	return nil
}

// keySchema is the key's schema. The Kafka binding takes JSON Schema only; any other is told in words.
func keySchema(d *schema.Description) any {
	if d.Format == schema.JSON {
		return raw(d.Text)
	}
	return object{"description": string(d.Format) + ", subject " + d.Subject + ": " + d.Text}
}

// raw keeps a schema's JSON as it is written; it was compiled before, so it is JSON.
func raw(text string) any {
	if !json.Valid([]byte(text)) {
		return text
	}
	return json.RawMessage(text)
}

func escapePointer(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
