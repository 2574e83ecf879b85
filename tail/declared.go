package tail

import (
	"net/http"

	"github.com/postern-dev/postern/authz"
)

// Declared is a subscription as the AsyncAPI document tells of it.
type Declared struct {
	Name  string
	Reads func(topic string) bool
	// Summary says in a sentence what is special about its events.
	Summary string
	// Endpoint is where its events are pushed; nil where consumers fetch them.
	Endpoint *Endpoint
}

// Endpoint is where a subscription's events are pushed. Of a URL there is the host
// only: paths and queries of webhooks hold secrets.
type Endpoint struct {
	Host, Protocol string // of AsyncAPI: http, https, grpc
}

// maxReferred bounds the topics that are listed for one subscription: each of
// thousands may have a pattern that all topics match.
const maxReferred = 100

// DescribeSubscriptions has the AsyncAPI document list what declared gives. It is
// called before the first request.
func (s *Server) DescribeSubscriptions(declared func() []Declared) { s.declared = declared }

// subscriptionsFor gives the subscriptions that the caller may see.
func (s *Server) subscriptionsFor(r *http.Request) []Declared {
	if s.declared == nil {
		return nil
	}
	who := authz.FromContext(r.Context())
	var seen []Declared
	for _, d := range s.declared() {
		if len(seen) < maxPage && s.policy.Check(who, authz.Describe, d.Name) == nil {
			seen = append(seen, d)
		}
	}
	return seen
}

// addSubscriptions writes a channel and an operation for each subscription. A
// colon, which no topic's name has, keeps its channel apart from theirs.
func addSubscriptions(doc object, topics []describedTopic, all []Declared) {
	servers, channels, operations := doc["servers"].(object), doc["channels"].(object), doc["operations"].(object)
	for _, d := range all {
		id := "subscription:" + d.Name
		messages, refs, left := object{}, []object{}, 0
		for _, t := range topics {
			switch {
			case !d.Reads(t.name):
			case len(refs) == maxReferred:
				left++
			default:
				messages[t.name] = object{"$ref": "#/components/messages/" + escapePointer(t.name)}
				refs = append(refs, object{"$ref": "#/channels/" + escapePointer(id) + "/messages/" + escapePointer(t.name)})
			}
		}
		channel := object{"title": "Subscription " + d.Name, "messages": messages}
		if left > 0 {
			channel["description"] = "It reads more topics than are listed."
		}
		operation := object{"action": "send", "channel": object{"$ref": "#/channels/" + escapePointer(id)}, "messages": refs}
		if d.Endpoint == nil {
			channel["address"] = "/v1/subscriptions/" + d.Name + "/events"
			channel["servers"] = []object{{"$ref": "#/servers/http"}}
			operation["summary"] = "Deliver the events of " + d.Name + " to whoever reads them, each until it is settled. " + d.Summary
			operation["bindings"] = object{"http": object{"method": http.MethodGet, "bindingVersion": "0.3.0"}}
			operations["subscribe."+d.Name] = operation
		} else {
			server := "push." + d.Name
			servers[server] = object{"host": d.Endpoint.Host, "protocol": d.Endpoint.Protocol, "title": "The endpoint of " + d.Name}
			channel["address"] = nil // it may hold secrets
			channel["servers"] = []object{{"$ref": "#/servers/" + escapePointer(server)}}
			operation["summary"] = "Push the events of " + d.Name + " to its endpoint, each until it is settled. " + d.Summary
			if d.Endpoint.Protocol != "grpc" {
				operation["bindings"] = object{"http": object{"method": http.MethodPost, "bindingVersion": "0.3.0"}}
			}
			operations["push."+d.Name] = operation
		}
		channels[id] = channel
	}
}
