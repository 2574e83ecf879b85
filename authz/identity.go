// Package authz owns who may do what on which topic or subscription, as a pure
// decision. Finding out who is calling is internal/server's; for now it is
// decided by the listener, and everyone admitted there may do everything.
// Policy files come with their own grammar and keep this Check.
package authz

import (
	"context"
	"strings"

	"github.com/postern-dev/postern/fault"
)

// Identity is who is calling.
type Identity struct {
	// Name for logs and policy. "anonymous" when the listener admits everyone.
	Name string
	// Source says how the name was learned: "loopback", "unix" or "open".
	Source string
}

// Anonymous is a caller admitted by its listener.
func Anonymous(source string) Identity { return Identity{Name: "anonymous", Source: source} }

// Verb is what a caller wants to do.
type Verb string

// The verbs. A subscription is named by its name, everything else by its topic.
const (
	Publish   Verb = "publish"
	Subscribe Verb = "subscribe"
	Tail      Verb = "tail"
	Describe  Verb = "describe"
	// Manage is to create, change, delete, pause, seek and redrive a subscription.
	Manage Verb = "manage"
)

// Policy decides. The zero Policy denies everything.
type Policy struct {
	open     bool
	reserved string
}

// Open is the policy that allows every admitted caller everything.
func Open() Policy { return Policy{open: true} }

// Reserve returns p without the topics whose names begin with prefix: what the
// gateway keeps there for itself is nobody's to write, and would show one what is
// another's.
func (p Policy) Reserve(prefix string) Policy {
	p.reserved = prefix
	return p
}

// Check decides whether who may do verb on the topic or subscription called
// name; nil allows. The name must be in its canonical form (event.ParseTopic).
func (p Policy) Check(who Identity, verb Verb, name string) error {
	if p.reserved != "" && strings.HasPrefix(name, p.reserved) && verb != Describe && verb != Manage {
		return fault.New(fault.NotAuthorized, "%s is the gateway's own (topics_prefix): nobody may %s it", name, verb).
			With("verb", string(verb)).With("name", name)
	}
	if p.open && who.Name != "" {
		return nil
	}
	return fault.New(fault.NotAuthorized, "%s may not %s %s: ask the gateway's operator", nameOf(who), verb, name).
		With("verb", string(verb)).With("name", name)
}

func nameOf(who Identity) string {
	if who.Name == "" {
		return "a caller without an identity"
	}
	return who.Name
}

type identityKey struct{}

// NewContext returns ctx with who in it.
func NewContext(ctx context.Context, who Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, who)
}

// FromContext returns who is calling; the zero Identity, which no policy
// allows anything, when nobody said.
func FromContext(ctx context.Context) Identity {
	who, _ := ctx.Value(identityKey{}).(Identity)
	return who
}
