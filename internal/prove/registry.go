package prove

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc/status"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/embedded"
	"github.com/postern-dev/postern/internal/link"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/schema"
)

// registry is the run's own schema registry, in this process. The gateways reach it
// through one link; who registers here does not.
type registry struct {
	dir     string
	topic   string // with a schema rule
	server  *embedded.Registry
	address string // of server, in all its lives
	link    *link.Link
	made    int // schemas registered
}

const (
	// latestTTL is short, so that what a gateway knows has become old while the
	// registry is away.
	latestTTL = time.Second
	// knownPatience is how long a publish may be tried where it must succeed: what was
	// broken before may not have been over for long.
	knownPatience = 30 * time.Second
)

// startRegistry also writes the configuration that has the gateways ask it, and
// registers the topic's first schema.
func startRegistry(ctx context.Context, topic string) (g *registry, err error) {
	g = &registry{topic: topic}
	if g.dir, err = os.MkdirTemp("", "postern-prove-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.stop())
		}
	}()
	g.address = "127.0.0.1:0"
	if err := g.serve(); err != nil {
		return nil, err
	}
	if g.link, err = link.New("127.0.0.1:0", g.address); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("schema_registry:\n  timeout: 1s\n  latest_ttl: %s\ntopics:\n  - match: %s\n    schema:\n      value: {rule: validate, version: publisher}\n", latestTTL, topic)
	if err := os.WriteFile(g.config(), []byte(text), 0o600); err != nil {
		return nil, err
	}
	_, err = g.register(ctx)
	return g, err
}

// flags have a gateway ask the registry for the topic's schemas. A postern dev that
// is given one starts none of its own.
func (g *registry) flags() []string {
	return []string{"--config", g.config(), "--schema-registry-urls", "http://" + g.link.Address()}
}

func (g *registry) config() string { return filepath.Join(g.dir, "gateway.yaml") }

// serve begins a life of the registry, with what earlier ones kept.
func (g *registry) serve() error {
	server, err := embedded.StartRegistry(embedded.RegistryOptions{Dir: g.dir, Address: g.address})
	if err != nil {
		return err
	}
	at, err := url.Parse(server.URL())
	if err != nil {
		return errors.Join(err, server.Close())
	}
	g.server, g.address = server, at.Host
	return nil
}

func (g *registry) end() error {
	if g.server == nil {
		return nil
	}
	err := g.server.Close()
	g.server = nil
	return err
}

func (g *registry) stop() error {
	var err error
	if g.link != nil {
		err = g.link.Close()
	}
	return errors.Join(err, g.end(), os.RemoveAll(g.dir))
}

// register stores a new version of the topic's schema, which takes what all others take.
func (g *registry) register(ctx context.Context) (id int32, err error) {
	client, err := schema.NewClient(schema.Options{URLs: []string{"http://" + g.address}}.WithDefaults(), nil)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	g.made++
	n, err := client.Register(ctx, g.topic+"-value", schema.Definition{Format: schema.JSON, Text: fmt.Sprintf(`{"type":"string","title":"version %d"}`, g.made)})
	return int32(n), err
}

// registryFaults have the registry away in two ways, and ask each gateway meanwhile.
func (r *run) registryFaults() []Fault {
	g := r.registry
	return []Fault{
		{Name: "the schema registry is stopped", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			return r.withoutRegistry(ctx, random, func() error {
				err := g.end()
				g.link.Reset()
				g.link.Mend() // what dials now is refused
				return err
			}, g.serve)
		}},
		{Name: "the schema registry does not answer", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			return r.withoutRegistry(ctx, random, func() error { return nil }, func() error { g.link.Mend(); return nil })
		}},
	}
}

// withoutRegistry cuts the registry off, takes it away, and finds whether each gateway then takes
// events of a schema it knows, refuses one of a schema it does not know by what is
// true, and takes that when the registry is back. What was stored is the judge's.
func (r *run) withoutRegistry(ctx context.Context, random *rand.Rand, away, back func() error) error {
	for _, g := range r.gateways {
		r.mustStore(ctx, g, 0, "before the registry was away")
	}
	r.registry.link.Cut(link.There, link.Back) // before, or a gateway might see it
	unseen, err := r.registry.register(ctx)
	if err != nil {
		return err
	}
	if err := away(); err != nil {
		return err
	}
	sleep(ctx, latestTTL+time.Duration(random.Int64N(int64(2*time.Second))))
	for _, g := range r.gateways {
		r.mustStore(ctx, g, 0, "while the registry was away, of a schema that it knew")
		r.mustRefuse(ctx, g, unseen)
	}
	if err := back(); err != nil {
		return err
	}
	for _, g := range r.gateways {
		r.mustStore(ctx, g, unseen, "when the registry was back, of a schema that is new to it")
	}
	return ctx.Err()
}

// mustStore publishes to g until an event is stored. The registry is no excuse
// where the schema is known to it.
func (r *run) mustStore(ctx context.Context, g *gateway, schemaID int32, when string) {
	reason := r.askUntil(ctx, g, schemaID, func(reason fault.Reason) bool {
		return reason == "" || reason == fault.RegistryUnavailable && schemaID == 0
	})
	if reason != "" && ctx.Err() == nil {
		r.oddly("gateway %d did not store an event %s: %s", g.number, when, reason)
	}
}

// mustRefuse publishes to g by a schema that it cannot know.
func (r *run) mustRefuse(ctx context.Context, g *gateway, schemaID int32) {
	reason := r.askUntil(ctx, g, schemaID, func(reason fault.Reason) bool {
		return reason == "" || reason == fault.RegistryUnavailable || !reason.Kind().Retryable()
	})
	if reason != fault.RegistryUnavailable && ctx.Err() == nil {
		r.oddly("gateway %d answered %q to an event of a schema that it could not know while the registry was away, not %s", g.number, reason, fault.RegistryUnavailable)
	}
}

// askUntil asks until the answer is enough: it may also tell of a connection or a
// broker that another fault has left.
func (r *run) askUntil(ctx context.Context, g *gateway, schemaID int32, enough func(fault.Reason) bool) fault.Reason {
	for until := time.Now().Add(knownPatience); ; sleep(ctx, 200*time.Millisecond) {
		reason := r.ask(ctx, g, schemaID)
		if enough(reason) || time.Now().After(until) || ctx.Err() != nil {
			return reason
		}
	}
}

// ask publishes one event to the topic with the rule, by the schema of an id, or by
// the latest for 0; it gives why not, "" when it is stored.
func (r *run) ask(ctx context.Context, g *gateway, schemaID int32) fault.Reason {
	value := strconv.Quote("asked-" + strconv.FormatInt(r.asked.Add(1), 10))
	r.recorder.Record(history.Entry{Kind: history.Invoked, Value: value, Key: "asked"})
	call, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	response, err := posternv1.NewPublisherClient(g.conn).Publish(call, &posternv1.PublishRequest{
		Topic: r.registry.topic, Events: []*posternv1.Event{{Key: []byte("asked"), Data: []byte(value), SchemaId: schemaID}},
	})
	e, reason := history.Entry{Kind: history.Unknown, Value: value}, fault.OutcomeUnknown
	switch results := response.GetResults(); {
	case err != nil:
		reason = wire.FromStatus(status.Convert(err).Proto()).Reason
	case len(results) != 1:
		r.oddly("%d results for one event", len(results))
	case results[0].GetError() != nil:
		reason = wire.FromStatus(results[0].GetError()).Reason
	default:
		at := results[0].GetPosition()
		e.Kind, e.Topic, e.Partition, e.Offset, reason = history.OK, at.GetTopic(), at.GetPartition(), at.GetOffset(), ""
		r.stored.Add(1)
	}
	if reason == fault.RegistryUnavailable {
		e.Kind = history.Failed
	}
	r.recorder.Record(e)
	return reason
}
