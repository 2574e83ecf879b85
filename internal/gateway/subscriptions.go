package gateway

import (
	"context"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
	"github.com/postern-dev/postern/tail"
)

// Ledgers, below topics_prefix.
const (
	subscriptionsTopic = "subscriptions"
	jobsTopic          = "jobs"
)

// buildSubscriptions makes the registry, and lets what runs follow it.
func (g *Gateway) buildSubscriptions() error {
	var ledger subscription.Ledger
	if !g.config.SubscriptionsAPI.Disabled {
		ledger = g.kafka.Ledger(g.config.TopicsPrefix + subscriptionsTopic)
	}
	var err error
	if g.registry, err = subscription.NewRegistry(g.config.Subscriptions, ledger, g.log); err != nil {
		return err
	}
	g.queues.NoteBegun(g.registry.NoteBegun)
	g.letters = delivery.NewLetters(g.kafka, g.config.TopicsPrefix)
	if ledger != nil {
		g.jobs = delivery.NewJobs(g.queues, g.kafka.Ledger(g.config.TopicsPrefix+jobsTopic), g.log)
	}
	g.webhooks = newWebhooks(g.push)
	g.registry.Watch(g.subscriptionChanged)
	return nil
}

// keptPositions lists the subscriptions whose positions must not expire: those
// that are declared, and over a consumer group.
func (g *Gateway) keptPositions() []delivery.Options {
	var all []delivery.Options
	for _, e := range g.registry.List() {
		if e.Problem == nil {
			all = append(all, e.Spec.Queue())
		}
	}
	return all
}

// subscriptionParts are what the service Subscriptions asks for its answers.
func (g *Gateway) subscriptionParts(policy authz.Policy) subscription.Parts {
	parts := subscription.Parts{
		Registry: g.registry, Kafka: g.kafka, Policy: policy, Options: g.config.SubscriptionsAPI, Instance: g.Instance(), Cursor: parseCursor,
		Letters: g.letters, Reporter: g.queues, Endpoint: g.whyDisabled,
	}
	if g.jobs != nil { // an interface of a nil pointer is not nil
		parts.Jobs = g.jobs
	}
	return parts
}

// declared tells the AsyncAPI document of the subscriptions.
func (g *Gateway) declared() []tail.Declared {
	var all []tail.Declared
	for _, e := range g.registry.List() {
		if e.Problem != nil {
			continue // it is not served here
		}
		d := tail.Declared{Name: e.Spec.Name, Reads: e.Spec.Queue().Reads}
		if e.Spec.Filter != nil {
			d.Summary = "Only those that its filter passes."
		}
		if pushed(e) {
			host, protocol := pushedTo(e.Spec)
			d.Endpoint = &tail.Endpoint{Host: host, Protocol: protocol}
			if shownAsJSON(e.Spec) {
				d.Summary = strings.TrimSpace(d.Summary + " They are shown as JSON.")
			}
		}
		all = append(all, d)
	}
	return all
}

// runJobs works on jobs until ctx ends, and gives back what is not done by then.
func (g *Gateway) runJobs(ctx context.Context) {
	if g.jobs != nil {
		g.jobs.Run(ctx)
	}
}

// subscriptionRequests are the messages whose rules are compiled at the start.
func subscriptionRequests() []protoreflect.MessageDescriptor {
	methods := posternv1.File_postern_v1_subscriptions_proto.Services().ByName("Subscriptions").Methods()
	var all []protoreflect.MessageDescriptor
	for i := range methods.Len() {
		all = append(all, methods.Get(i).Input())
	}
	return all
}

func parseCursor(text string) (map[int32]int64, error) {
	c, err := tail.ParseCursor(text)
	return c, err
}

// subscriptionChanged lets what runs of one subscription follow a change, and
// nothing else. The registry calls it from one goroutine, so it waits for nothing.
func (g *Gateway) subscriptionChanged(name string, was, is *subscription.Entry) {
	if is == nil {
		g.queues.Forget(name)
	} else {
		g.queues.Desire(name, is.Desired)
	}
	ends := served(was) && (!served(is) || subscription.Changed(was, is) ||
		pushed(was) && (!pushed(is) || subscription.WebhookChanged(was, is)))
	if ends {
		g.webhooks.end(name)
		g.queues.End(name, ending(name, is))
		g.log.Info("subscription changed or ended", "subscription", name)
	}
	switch {
	case !pushed(is):
	case is.Desired.Paused:
		g.webhooks.rest(name)
	default:
		g.webhooks.begin(is.Spec)
	}
}

// served reports whether a subscription is served here, pushed whether to an endpoint.
func served(e *subscription.Entry) bool { return e != nil && e.Problem == nil }

func pushed(e *subscription.Entry) bool {
	return served(e) && (e.Spec.Webhook != nil || e.Spec.Push != nil)
}

// pushedTo names the host and the protocol of an endpoint.
func pushedTo(spec subscription.Spec) (host, protocol string) {
	if spec.Push != nil {
		return spec.Push.Address, "grpc"
	}
	u, err := url.Parse(spec.Webhook.URL)
	if err != nil {
		return "", "" // it was checked where it was declared
	}
	return webhook.HostOf(u), u.Scheme
}

func shownAsJSON(spec subscription.Spec) bool {
	if spec.Push != nil {
		return spec.Push.View == webhook.ViewJSON
	}
	return spec.Webhook.View == webhook.ViewJSON
}

// ending is what streams of a subscription are told that ends as it was.
func ending(name string, is *subscription.Entry) error {
	switch {
	case is == nil:
		return fault.New(fault.SubscriptionDeleted, "subscription %s was deleted", name).With("subscription", name)
	case is.Problem != nil:
		return is.Problem
	}
	return fault.New(fault.SubscriptionChanged, "subscription %s was changed: connect again, and it is delivered as it is now", name).With("subscription", name)
}

// webhooks are the webhook subscriptions at work.
type webhooks struct {
	push func(ctx context.Context, ending <-chan struct{}, spec *subscription.Spec)

	mu      sync.Mutex
	stopped bool
	running map[string]*runningWebhook // the last of each name
	all     map[*runningWebhook]bool
	work    sync.WaitGroup
}

// runningWebhook is one at work, or one that ends and whose successor waits for it.
type runningWebhook struct {
	cancel context.CancelFunc
	ending chan struct{}
	ended  bool          // ending is closed
	done   chan struct{} // it has stopped
	rests  *time.Timer   // ends it, because it is paused; nil: it is not
}

// webhookGrace bounds the wait for requests that are under way when a webhook
// changes: longer than the queue waits for their outcome.
const webhookGrace = 5 * time.Second

// webhookRest is how long a webhook that is paused stays in its group: what is
// under way has its outcome by then, unless its timeout is longer, and one that is
// resumed soon goes on at once. Then it costs no more than its specification.
const webhookRest = time.Minute

func newWebhooks(push func(context.Context, <-chan struct{}, *subscription.Spec)) *webhooks {
	return &webhooks{push: push, running: map[string]*runningWebhook{}, all: map[*runningWebhook]bool{}}
}

// begin starts spec's webhook unless it is at work, when the one before it has stopped.
func (w *webhooks) begin(spec subscription.Spec) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.running[spec.Name]
	if before != nil && before.rests != nil {
		before.rests.Stop()
		before.rests = nil
	}
	if w.stopped || before != nil && !before.ended {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runningWebhook{cancel: cancel, ending: make(chan struct{}), done: make(chan struct{})}
	w.running[spec.Name], w.all[r] = r, true
	w.work.Go(func() {
		defer w.forget(spec.Name, r)
		defer close(r.done)
		defer cancel()
		if before != nil {
			<-before.done
		}
		w.push(ctx, r.ending, &spec)
	})
}

func (w *webhooks) forget(name string, r *runningWebhook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, r)
	if r.rests != nil {
		r.rests.Stop()
		r.rests = nil
	}
	if w.running[name] == r {
		delete(w.running, name)
	}
}

// end lets the webhook called name take nothing more, and stop when what is under
// way has its outcome, or when its time is over.
func (w *webhooks) end(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.running[name]; r != nil && !r.ended {
		r.ended = true
		close(r.ending)
		time.AfterFunc(webhookGrace, r.cancel)
	}
}

// rest ends the webhook called name, which is paused, after a while, unless it begins again.
func (w *webhooks) rest(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.running[name]
	if r == nil || r.ended || r.rests != nil {
		return
	}
	r.rests = time.AfterFunc(webhookRest, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.rests != nil && !r.ended {
			r.ended = true
			close(r.ending)
			r.cancel()
		}
	})
}

// stop ends all of them at once, and waits.
func (w *webhooks) stop() {
	w.mu.Lock()
	w.stopped = true
	for r := range w.all {
		r.cancel()
	}
	w.mu.Unlock()
	w.work.Wait()
}

// Waits between tries to begin a webhook subscription whose topic or Kafka is missing.
const (
	pushRetryMin = time.Second
	pushRetryMax = 30 * time.Second
)

// push keeps one webhook subscription running.
func (g *Gateway) push(ctx context.Context, ending <-chan struct{}, spec *subscription.Spec) {
	wait := pushRetryMin
	for ctx.Err() == nil {
		err := g.pushOnce(ctx, spec)
		select {
		case <-ending:
			return
		default:
		}
		if ctx.Err() != nil || g.isDraining() {
			return
		}
		g.log.Warn("webhook subscription is not running; trying again", "subscription", spec.Name, "after", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		case <-ending:
			return
		case <-g.drained.Done():
		}
		wait = min(wait*2, pushRetryMax)
	}
}
