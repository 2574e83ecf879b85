// Package gateway wires the parts into the program, and owns the order in which
// they start and stop. It decides nothing else.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/endpoints"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/server"
	"github.com/postern-dev/postern/internal/telemetry"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/publish"
	"github.com/postern-dev/postern/schema"
	"github.com/postern-dev/postern/subscribe"
	"github.com/postern-dev/postern/subscription"
	"github.com/postern-dev/postern/tail"
)

// Gateway is the program.
type Gateway struct {
	config    config.Config
	log       *slog.Logger
	telemetry *telemetry.Telemetry
	kafka     *broker.Client
	producer  *broker.Producer
	mover     *broker.Mover
	queues    *delivery.Queues
	endpoints *endpoints.Endpoints
	hosts     *endpoint.Hosts
	identity  *webhook.Identity
	registry  *subscription.Registry
	webhooks  *webhooks
	schemas   *schema.Checker
	letters   *delivery.Letters
	jobs      *delivery.Jobs // nil: nothing is kept in Kafka
	server    *server.Server
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	tends     bool

	drained       context.Context // ended when the drain begins
	beginDrain    context.CancelFunc
	drainDeadline atomic.Int64 // UnixNano
}

// Options are what no configuration sets.
type Options struct {
	Version string
	Log     *slog.Logger
	// TendMemory lets the gateway set the garbage collector's target by its work.
	TendMemory bool
	// WebhookDial opens connections to webhook endpoints; nil is the network. Tests pass a virtual one.
	WebhookDial func(ctx context.Context, network, address string) (net.Conn, error)
	// RegistryDial opens connections to the schema registry; nil is the network. Tests pass a virtual one.
	RegistryDial func(ctx context.Context, network, address string) (net.Conn, error)
}

// New builds a gateway of a valid configuration and opens its addresses.
// Kafka need not be there yet.
func New(ctx context.Context, c config.Config, o Options) (*Gateway, error) {
	g := &Gateway{config: c, log: o.Log, dial: o.WebhookDial, tends: o.TendMemory}
	g.drained, g.beginDrain = context.WithCancel(context.Background())
	c.Kafka.Logger = o.Log
	c.Kafka.EventLimit = publish.EventLimit(c.Publish, c.PublishRules())
	var err error
	if g.kafka, err = broker.New(c.Kafka); err != nil {
		return nil, err
	}
	if g.producer, err = g.kafka.NewProducer(); err != nil {
		g.kafka.Close()
		return nil, err
	}
	if g.schemas, err = newSchemas(c, o); err != nil {
		g.producer.Close()
		g.kafka.Close()
		return nil, err
	}
	if err := g.build(ctx, o); err != nil {
		g.schemas.Close()
		g.producer.Close()
		g.kafka.Close()
		return nil, err
	}
	return g, nil
}

// newSchemas makes the checker, over a registry when one is named.
func newSchemas(c config.Config, o Options) (*schema.Checker, error) {
	if len(c.SchemaRegistry.URLs) == 0 {
		return schema.NewChecker(c.SchemaRules(), nil), nil
	}
	client, err := schema.NewClient(c.SchemaRegistry, o.RegistryDial)
	if err != nil {
		return nil, err
	}
	return schema.NewChecker(c.SchemaRules(), schema.NewRegistry(client, c.SchemaRegistry.LatestTTL)), nil
}

func (g *Gateway) build(ctx context.Context, o Options) error {
	var err error
	instance := delivery.NewInstance()
	if g.telemetry, err = telemetry.Start(ctx, g.config.Telemetry, "postern", o.Version, instance.String(), g.log); err != nil {
		return err
	}
	validator := wire.Validator{Validator: &wire.Rules{Compile: compileRules}}
	policy := authz.Open().Reserve(g.config.TopicsPrefix)
	publisher := publish.New(g.config.Publish, publish.Parts{
		Policy: policy, Rules: g.config.PublishRules(), Schemas: g.schemas, Producer: g.producer, Topics: g.kafka,
		Tracer: g.telemetry.Tracer, Root: g.telemetry.Root, Sample: g.telemetry.Sample, Meter: g.telemetry.Meter, Log: g.log, Draining: g.drained.Done(), DrainTime: g.deadline,
		RatePerMinute: int(60 * g.config.Limits.PerIdentity.RequestsPerSecond),
	})
	g.mover = g.kafka.NewMover()
	g.queues = delivery.NewQueues(instance, g.kafka, g.mover, g.config.TopicsPrefix, g.log, g.telemetry.Meter)
	if len(g.config.SchemaRegistry.URLs) > 0 {
		g.queues.DecodeWith(g.schemas.Data)
	}
	if err := g.buildEndpoints(instance); err != nil {
		return err
	}
	if err := g.buildSubscriptions(); err != nil {
		return err
	}
	pushed := endpoints.NewServer(g.endpoints, policy, declaredEndpoints{g}, g.drained.Done())
	tails := tail.NewServer(g.kafka, policy, g.drained.Done(), g.deadline, g.schemas)
	tails.DescribeSubscriptions(g.declared)
	subscriber := subscribe.NewServer(g.queues, g.registry, policy, validator, tails, subscribe.Drain{Began: g.drained, Deadline: g.deadline}, g.schemas)
	subscriptions := subscription.NewServer(g.subscriptionParts(policy))

	g.server, err = server.New(g.config.Listen, server.Parts{
		Register: func(r grpc.ServiceRegistrar) {
			posternv1.RegisterPublisherServer(r, publish.NewServer(publisher, validator))
			posternv1.RegisterSubscriberServer(r, subscriber)
			posternv1.RegisterTopicsServer(r, tails)
			posternv1.RegisterEndpointsServer(r, pushed)
			posternv1.RegisterSubscriptionsServer(r, subscriptions)
		},
		Gateway: []server.GatewayRegister{
			posternv1.RegisterPublisherHandler, posternv1.RegisterSubscriberHandler, posternv1.RegisterTopicsHandler,
			posternv1.RegisterSubscriptionsHandler, posternv1.RegisterEndpointsHandler,
		},
		Routes: []server.Route{
			{Pattern: "POST /v1/topics/{topic}/events", Handle: publisher.Events, Stream: publish.IsStream},
			{Pattern: "OPTIONS /v1/topics/{topic}/events", Handle: publisher.Handshake},
			{Pattern: "GET /v1/topics/{topic}/events", Handle: tails.Events, Stream: always},
			{Pattern: "GET /asyncapi.json", Handle: tails.AsyncAPI},
			{Pattern: "GET /v1/subscriptions/{name}/events", Handle: subscriber.Events, Stream: always},
			{Pattern: "GET /v1/endpoints/{name}/consent", Handle: pushed.Consent},
			{Pattern: "POST /v1/endpoints/{name}/consent", Handle: pushed.Consent},
			{Pattern: "GET /.well-known/jwks.json", Handle: g.serveKeys},
			{Pattern: "GET /.well-known/openid-configuration", Handle: g.serveDiscovery},
		},
		Admin:     g.telemetry.Handler(),
		Validator: validator,
		MaxBody:   int64(g.config.Publish.MaxBodyBytes),
		Bodies:    int64(g.config.Publish.BodyBuffer),
		Limits:    g.config.Limits,
		Log:       g.log,
	})
	if err != nil {
		return err
	}
	g.server.SetReady("Kafka has not answered yet")
	return g.server.Listen()
}

// compileRules makes the rules that requests are checked by.
func compileRules() (protovalidate.Validator, error) {
	return protovalidate.New(protovalidate.WithMessages(
		&posternv1.PublishRequest{}, &posternv1.PublishStreamRequest{}, &posternv1.SubscribeRequest{}, &posternv1.StreamRequest{},
		&posternv1.PullRequest{}, &posternv1.SettleRequest{}, &posternv1.TailRequest{}, &posternv1.ListTopicsRequest{}, &posternv1.GetTopicRequest{}),
		protovalidate.WithMessageDescriptors(subscriptionRequests()...), protovalidate.WithMessageDescriptors(endpointRequests()...))
}

func always(*http.Request) bool { return true }

// Addrs are the addresses that are listened on.
func (g *Gateway) Addrs() server.Addrs { return g.server.Addrs }

// Instance names this gateway in leases.
func (g *Gateway) Instance() string { return g.queues.Instance().String() }

func (g *Gateway) deadline() time.Time { return time.Unix(0, g.drainDeadline.Load()) }

// Run serves until ctx ends, then stops in order: not ready; nothing new is
// lent, while settlements still arrive; what is lent is settled or the drain
// time is over; positions are committed and the groups left; what is produced
// is answered; the servers stop; telemetry is flushed.
func (g *Gateway) Run(ctx context.Context) error {
	var work sync.WaitGroup
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	served := make(chan error, 1)
	go func() { served <- g.server.Run() }()
	work.Go(func() { g.watchKafka(working) })
	if g.tends {
		work.Go(func() { tend(working, g.queues.Len) })
	}
	var keeping sync.WaitGroup
	keep, stopKeeping := context.WithCancel(working)
	defer stopKeeping()
	keeping.Go(func() { g.endpoints.Run(keep) })
	registering, stopRegistering := context.WithCancel(working)
	defer stopRegistering()
	work.Go(func() { g.queues.KeepPositions(registering, g.keptPositions) })
	jobbing, stopJobs := context.WithCancel(working)
	defer stopJobs()
	jobs := make(chan struct{})
	go func() { defer close(jobs); g.runJobs(jobbing) }()
	registered := make(chan error, 1)
	go func() { registered <- g.registry.Run(registering) }()

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
	case failed = <-registered:
		registered <- nil
	}
	began := time.Now()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.config.DrainTimeout)
	defer cancel()
	g.drainDeadline.Store(time.Now().Add(g.config.DrainTimeout).UnixNano())
	g.server.SetReady("draining")
	g.log.Info("draining", "limit", g.config.DrainTimeout)
	g.beginDrain()
	stopJobs()        // another instance goes on with them
	stopRegistering() // no webhook begins any more
	if err := <-registered; err != nil {
		failed = errors.Join(failed, err)
	}
	select {
	case <-jobs:
	case <-limit.Done(): // a batch of theirs hangs: closing the mover ends it
	}
	g.queues.Close(limit) // ends every attachment, so the pushers end too
	g.webhooks.stop()
	stopKeeping() // writes what is left of attempts and states, for the flush below
	keeping.Wait()
	stopping, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancelStop()
	if err := g.flush(limit, stopping); err != nil {
		failed = errors.Join(failed, err)
	}
	// A grace of its own: when the flush took all there was, callers are just now told that their events are unknown.
	stopping, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancelLast()
	g.server.Stop(stopping)
	stopWork()
	work.Wait()
	g.schemas.Close()
	g.producer.Close()
	g.mover.Close()
	<-jobs
	g.kafka.Close()
	if err := g.telemetry.Stop(stopping); err != nil {
		g.log.Warn("telemetry was not sent to the end", "error", err)
	}
	g.log.Info("stopped", "after", time.Since(began).Round(time.Millisecond))
	return failed
}

// flush waits for what is produced until the drain time, or the last grace, is over.
func (g *Gateway) flush(limit, stopping context.Context) error {
	if limit.Err() != nil {
		limit = stopping
	}
	if err := g.producer.Flush(limit); err != nil {
		return fmt.Errorf("events were still unanswered by Kafka when the drain time was over: %w", err)
	}
	return nil
}

// stopGrace bounds the wait for streams that a client keeps open after its
// drain notice.
const stopGrace = 2 * time.Second

// How often Kafka is asked whether it is there, and how often it is said again that it is not.
const (
	pingEvery = 2 * time.Second
	sayEvery  = 30 * time.Second
)

// watchKafka binds readiness to Kafka's answering.
func (g *Gateway) watchKafka(ctx context.Context) {
	ready, said := false, time.Time{}
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		ping, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := g.kafka.Ping(ping)
		if err == nil && !ready {
			err = g.producer.Warm(ping)
		}
		cancel()
		switch {
		case ctx.Err() != nil || g.isDraining():
			return
		case err == nil && !ready:
			ready = true
			g.server.SetReady("")
			g.log.Info("Kafka answers", "brokers", g.config.Kafka.Brokers)
		case err != nil && (ready || time.Since(said) >= sayEvery):
			ready, said = false, time.Now()
			g.server.SetReady("Kafka does not answer")
			g.log.Warn("Kafka does not answer; trying on", "brokers", g.config.Kafka.Brokers, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-g.drained.Done():
			return
		case <-ticker.C:
		}
	}
}

func (g *Gateway) isDraining() bool {
	select {
	case <-g.drained.Done():
		return true
	default:
		return false
	}
}
