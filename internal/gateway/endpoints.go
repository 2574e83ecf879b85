package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/endpoints"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// buildEndpoints makes what all push endpoints share.
func (g *Gateway) buildEndpoints(instance delivery.Instance) error {
	settings := g.config.Webhooks.WithDefaults()
	var err error
	if g.identity, err = webhook.NewIdentity(settings); err != nil {
		return err
	}
	g.hosts = endpoint.NewHosts(settings.RequestsPerHost)
	g.endpoints = endpoints.New(endpoints.Options{Prefix: g.config.TopicsPrefix, Events: settings.EventsTopic, Attempts: settings.LogAttempts, Instance: instance.String()},
		g.kafka, g.producer, g.log, g.telemetry.Meter)
	g.endpoints.WhenEnabled(g.endpointEnabled)
	return nil
}

// endpointRequests are the messages whose rules are compiled at the start.
func endpointRequests() []protoreflect.MessageDescriptor {
	methods := posternv1.File_postern_v1_endpoints_proto.Services().ByName("Endpoints").Methods()
	var all []protoreflect.MessageDescriptor
	for i := range methods.Len() {
		all = append(all, methods.Get(i).Input())
	}
	return all
}

// declaredEndpoints tells the service Endpoints of the subscriptions that are pushed.
type declaredEndpoints struct{ *Gateway }

func (g declaredEndpoints) Hosts() map[string]string {
	hosts := map[string]string{}
	for _, e := range g.registry.List() {
		if pushed(e) {
			hosts[e.Spec.Name], _ = pushedTo(e.Spec)
		}
	}
	return hosts
}

func (g declaredEndpoints) Host(name string) (string, bool) {
	e := g.registry.Known(name)
	if !pushed(e) {
		return "", false
	}
	host, _ := pushedTo(e.Spec)
	return host, true
}

func (g declaredEndpoints) Topics(ctx context.Context, name string) ([]string, error) {
	spec, err := g.registry.Find(ctx, name)
	return spec.Topics, err
}

func (g declaredEndpoints) Pusher(name string) (*endpoint.Pusher, error) {
	e := g.registry.Known(name)
	if !pushed(e) {
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong
	}
	return g.pusher(e.Spec, e.Spec.Queue().Retry)
}

func (g *Gateway) pushOnce(ctx context.Context, spec *subscription.Spec) error {
	p, err := g.openPushing(ctx, spec)
	if p == nil || err != nil {
		return err
	}
	defer p.close()
	if err = p.pusher.Run(ctx, p.attachment); errors.Is(err, endpoint.ErrDisabled) {
		g.log.Info("webhook subscription leaves its group: its endpoint is disabled", "subscription", spec.Name)
		g.webhookRests(ctx, spec.Name)
		return nil
	}
	return err
}

// pushing is a webhook that is ready to run.
type pushing struct {
	pusher     *endpoint.Pusher
	attachment *delivery.Attachment
	close      func()
}

// openPushing makes a webhook ready; nil: it rests. What waits while it runs does not
// keep the stack that this needs: a thousand webhooks mostly wait.
func (g *Gateway) openPushing(ctx context.Context, spec *subscription.Spec) (*pushing, error) {
	// What is paused, disabled or sought must be known before anything is lent.
	e, err := g.registry.Entry(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	if e.Problem != nil {
		return nil, e.Problem
	}
	g.endpoints.Await(ctx)
	if g.rests(e) {
		g.webhookRests(ctx, spec.Name)
		return nil, nil //nolint:nilnil // nothing runs, and nothing is wrong
	}
	options := spec.Queue()
	pusher, err := g.pusher(*spec, options.Retry)
	if err != nil {
		return nil, err
	}
	ends := []func(){pusher.Close, g.endpoints.Begin(spec.Name, pusher)}
	closeAll := func() {
		for _, end := range slices.Backward(ends) {
			end()
		}
	}
	queue, err := g.queues.Open(ctx, options)
	if err != nil {
		closeAll()
		return nil, err
	}
	ends = append(ends, func() { g.queues.Release(queue, 0) })
	// Nothing is lent before the pusher runs and knows its endpoint's state.
	attachment, _, err := queue.Attach(delivery.AttachOptions{Window: delivery.Window{}, Lease: pusher.Lease(), Client: "webhook", Kind: "webhook", Why: pusher.Why})
	if err != nil {
		closeAll()
		return nil, err
	}
	ends = append(ends, func() { attachment.Detach(0) })
	g.log.Info("webhook subscription runs", "subscription", spec.Name, "topics", spec.Topics, "host", pusher.Host())
	return &pushing{pusher, attachment, closeAll}, nil
}

// rests reports whether a webhook has nothing to do until somebody says so.
func (g *Gateway) rests(e *subscription.Entry) bool {
	_, disabled := g.endpoints.Disabled(e.Spec.Name)
	return e.Desired.Paused || disabled
}

// whyDisabled is the cause that a disabled endpoint is; a zero Kind: it is not disabled.
func (g *Gateway) whyDisabled(name string) delivery.Cause {
	if why, disabled := g.endpoints.Disabled(name); disabled {
		return endpoint.WhyDisabled(name, why)
	}
	return delivery.Cause{}
}

// webhookRests ends a webhook that rests. Whoever resumes or enables it begins it anew.
func (g *Gateway) webhookRests(ctx context.Context, name string) {
	g.webhooks.end(name)
	// That may have been before it ended; nobody else begins it then.
	if e, err := g.registry.Entry(ctx, name); err == nil && e.Problem == nil && !g.rests(e) {
		g.webhooks.begin(e.Spec)
	}
}

// endpointEnabled begins a webhook whose endpoint is not disabled any more. It waits for nothing.
func (g *Gateway) endpointEnabled(name string) {
	if e := g.registry.Known(name); pushed(e) && !g.rests(e) {
		g.webhooks.begin(e.Spec)
	}
}

// pusher makes what carries a subscription's events, over HTTP or gRPC.
func (g *Gateway) pusher(spec subscription.Spec, retry delivery.Retry) (*endpoint.Pusher, error) {
	spec, err := g.config.SubscriptionsAPI.Resolve(spec)
	if err != nil {
		return nil, err
	}
	if spec.Push != nil {
		return push.New(spec.Name, *spec.Push, push.Environment{
			Retry: retry, View: g.schemas.View,
			Endpoint: endpoint.Environment{
				Log: g.log, Tracer: g.telemetry.Tracer, TracerFor: g.telemetry.For, Meter: g.telemetry.Meter, Hosts: g.hosts, Attempts: g.endpoints.Attempts(),
				States: g.endpoints.States(), Notices: g.endpoints.Notices(), Instance: g.Instance(),
			},
		})
	}
	return webhook.New(spec.Name, *spec.Webhook, webhook.Environment{
		Log: g.log, Tracer: g.telemetry.Tracer, TracerFor: g.telemetry.For, Meter: g.telemetry.Meter, Dial: g.dial, View: g.schemas.View, Retry: retry, Identity: g.identity, Callback: g.config.Webhooks.Callback(spec.Name), Deny: g.config.Webhooks.Deny(),
		Hosts: g.hosts, Attempts: g.endpoints.Attempts(), States: g.endpoints.States(), Notices: g.endpoints.Notices(), Instance: g.Instance(),
	})
}

// serveKeys publishes the public keys that verify v1a signatures and minted tokens.
func (g *Gateway) serveKeys(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(g.identity.JWKS(time.Now())) // the caller may be gone
	return nil
}

// serveDiscovery tells libraries of OpenID Connect where the keys are.
func (g *Gateway) serveDiscovery(w http.ResponseWriter, _ *http.Request) error {
	document := g.identity.Discovery()
	if document == nil {
		return fault.New(fault.UnknownRoute, "the gateway mints no tokens: webhooks.issuer is not set")
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(document) // the caller may be gone
	return nil
}
