// Package prove breaks gateways on purpose under load and judges what their
// clients saw: `postern prove` on a user's machine, and the rig's runs with real
// brokers (loadtest/faults). Gateways are processes; they are killed, frozen and
// restarted, and whoever calls adds faults of its own. Package workload is the
// load, package history the judge. A schema registry of the run's own (registry.go) is
// taken away, too, from a topic with a rule.
package prove

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/workload"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Options of a run.
type Options struct {
	Brokers []string // of a Kafka that may be written to
	// Through gives the brokers' addresses for a gateway that reaches them by links
	// of its own; nil: Brokers. The run's own client always uses Brokers.
	Through func(gateway int) []string
	// Dev is a folder: the only gateway is a `postern dev` that keeps its data there,
	// with its Kafka at the one address in Brokers. "": gateways are `postern run`.
	Dev string
	// Started, if not nil, is told of each process.
	Started  func(gateway, pid int)
	Program  []string      // the program, and arguments before its verb
	Env      []string      // for the program
	Gateways int           // processes; default 2
	Duration time.Duration // of load and faults; default 30s
	Seed     uint64        // of faults and clients; 0 draws one
	Faults   []Fault       // beside those of the gateways
	Progress func(format string, args ...any)
	History  io.Writer // takes the whole history at the end, if not nil
}

// Fault is something that can be broken.
type Fault struct {
	Name string
	// Cause brings it about, and returns when it is mended. A gateway that hears
	// nothing of its group meanwhile, and may lend what others have settled until it
	// knows, is named by apart before.
	Cause func(ctx context.Context, random *rand.Rand, apart func(gateway int)) error
	// Ends says that Cause kills the gateways' processes; they are started again.
	Ends bool
}

// Result of a run.
type Result struct {
	Seed     uint64         `json:"seed"`
	Took     time.Duration  `json:"took_ns"`
	Broken   map[string]int `json:"faults"` // how often each
	Report   history.Report `json:"report"`
	Promises []Promise      `json:"promises"`
	// Recovery is, for each fault, the longest that any partition took after the
	// fault was mended until an event stored after that was settled.
	Recovery map[string]time.Duration `json:"recovery_ns"`
	Odd      []string                 `json:"odd,omitempty"`
}

// OK reports whether every promise held.
func (r Result) OK() bool {
	for _, p := range r.Promises {
		if !p.Held {
			return false
		}
	}
	return len(r.Odd) == 0
}

const (
	sessionTimeout = 6 * time.Second
	partitions     = 4
	// pace is how long lies between two faults, give or take half.
	pace = 3 * time.Second
	// aftermath is how long after its end a fault may still bring deliveries again:
	// a member's session, and a rebalance it had begun to join.
	aftermath = sessionTimeout + 15*time.Second
	// liveness is how long everything may take to be settled once nothing is broken.
	liveness = 90 * time.Second
	callWait = 10 * time.Second
)

// run is a run under way.
type run struct {
	Options
	recorder *history.Recorder
	gateways []*gateway
	kafka    *broker.Client
	topics   []string // the load's; the last is the registry's
	name     string   // of the subscription
	registry *registry
	settled  atomic.Int64
	stored   atomic.Int64
	asked    atomic.Int64 // events published by faults themselves
	mu       sync.Mutex
	odd      []string
	broken   map[string]int
	ends     sync.WaitGroup
}

// Run proves. It fails when it could not be carried out; what was found is in the Result.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Gateways == 0 {
		o.Gateways = 2
	}
	if o.Duration == 0 {
		o.Duration = 30 * time.Second
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1 << 40)
	}
	began := time.Now()
	r := &run{Options: o, recorder: history.NewRecorder(), broken: map[string]int{}}
	suffix := strconv.FormatInt(began.UnixMilli(), 36)
	r.name = "prove-" + suffix
	r.topics = []string{r.name, r.name + ".schema"}
	var err error
	if r.registry, err = startRegistry(ctx, r.topics[1]); err != nil {
		return Result{}, err
	}
	defer func() { _ = r.registry.stop() }() // all that counted is recorded
	if r.kafka, err = broker.New(broker.Options{Brokers: o.Brokers, Logger: slog.New(slog.DiscardHandler)}.WithDefaults()); err != nil {
		return Result{}, err
	}
	defer r.kafka.Close()
	for i := range o.Gateways {
		g, err := newGateway(i, o, r.registry.flags()...)
		if err != nil {
			return Result{}, err
		}
		r.gateways = append(r.gateways, g)
		defer func() { _ = errors.Join(g.end(syscall.SIGKILL), g.unlink()) }() // after an orderly end it finds nothing
		if err := g.start(ctx); err != nil {
			return Result{}, err
		}
	}
	for _, topic := range r.topics {
		if err := r.kafka.CreateTopic(ctx, topic, partitions, nil); err != nil {
			return Result{}, err
		}
	}
	defer func() {
		_ = r.kafka.DeleteTopics(context.WithoutCancel(ctx), append(r.topics, r.name+".dead")...) // a topic that stays does no harm
	}()
	r.Progress("%d gateways are up; seed %d", o.Gateways, o.Seed)
	h, err := r.load(ctx)
	if err != nil {
		return Result{}, err
	}
	for _, g := range r.gateways {
		if err := g.end(syscall.SIGTERM); err != nil {
			r.oddly("%v", err)
		}
		_ = g.conn.Close() // nothing is left to send
	}
	if o.History != nil {
		if err := h.Write(o.History); err != nil {
			return Result{}, fmt.Errorf("write the history: %w", err)
		}
	}
	rules := history.Rules{Ordered: true, Traced: true, Allowance: aftermath, Wait: 2*callWait + time.Second}
	result := Result{Seed: o.Seed, Took: time.Since(began), Broken: r.broken, Report: history.Check(h, rules), Recovery: recovery(h.Entries), Odd: r.odd}
	result.Promises = promises(result.Report)
	return result, nil
}

func (r *run) oddly(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.odd) < 100 {
		r.odd = append(r.odd, fmt.Sprintf(format, args...))
	}
}

// targets are the gateways that serve, or all when none does.
func (r *run) targets() []*workload.Target {
	var serving, all []*workload.Target
	for _, g := range r.gateways {
		all = append(all, g.target)
		g.mu.Lock()
		if g.serving {
			serving = append(serving, g.target)
		}
		g.mu.Unlock()
	}
	if len(serving) == 0 {
		return all
	}
	return serving
}

// load puts load on the gateways, breaks things, mends them, waits until all is
// settled, and reads the log.
func (r *run) load(ctx context.Context) (history.History, error) {
	loading, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	subscribing, stopSubscribing := context.WithCancel(ctx)
	defer stopSubscribing()
	var publishers, subscribers sync.WaitGroup
	// Half of the ways publish to the topic with the rule, too.
	for i, route := range append(slices.Clone(workload.Routes), workload.Unary, workload.Stream, workload.Lines) {
		topic, ruled := r.topics[0], i >= len(workload.Routes)
		if ruled {
			topic = r.registry.topic
		}
		p := &workload.Publisher{
			Name: fmt.Sprintf("p%d", i), Topic: topic, JSON: ruled, Route: route, Keys: 4, Targets: r.targets, Recorder: r.recorder,
			Random: workload.NewRandom(r.Seed, uint64(10+i)), Wait: callWait, Pause: 20 * time.Millisecond, Hasty: 0.01, Odd: r.oddly,
			Answered: func(kind history.Kind, _ time.Duration) {
				if kind == history.OK {
					r.stored.Add(1)
				}
			},
		}
		publishers.Go(func() { p.Run(loading) })
	}
	manner := workload.Manner{Nack: 0.03, Reject: 0.005, Slow: 0.02, AckTwice: 0.01, Foreign: 0.01, Leave: 0.002, Resume: 0.5}
	var mending atomic.Bool
	for i := range 3 {
		s := &workload.Subscriber{
			Subscription: &posternv1.Subscription{Name: r.name, Topics: r.topics, Retry: &posternv1.RetryPolicy{MaxAttempts: 100}},
			Targets:      r.targets, Recorder: r.recorder, Random: workload.NewRandom(r.Seed, uint64(30+i)), Window: 64, Lease: 5 * time.Second, Odd: r.oddly,
			Confirm: []posternv1.Confirm{posternv1.Confirm_CONFIRM_ON_COMMIT, posternv1.Confirm_CONFIRM_ON_ACCEPT}[i%2],
			Manner: func() workload.Manner {
				if mending.Load() {
					return workload.Manner{}
				}
				return manner
			},
			Settled: func() { r.settled.Add(1) },
		}
		subscribers.Go(func() { s.Run(subscribing) })
	}
	if err := r.nemesis(ctx); err != nil {
		return history.History{}, err
	}
	stopLoad()
	publishers.Wait()
	mending.Store(true)
	for _, g := range r.gateways {
		if err := g.mend(ctx); err != nil {
			return history.History{}, err
		}
	}
	if r.Dev != "" { // what it has acknowledged must be on its disk
		g := r.gateways[0]
		r.recorder.Record(history.Entry{Kind: history.Fault, Value: "the last kill"})
		if err := errors.Join(g.end(syscall.SIGKILL), g.start(ctx)); err != nil {
			return history.History{}, err
		}
	}
	r.Progress("nothing is broken any more; waiting until all %d events are settled", r.stored.Load())
	if err := r.awaitSettled(ctx); err != nil {
		r.oddly("%v", err)
	}
	stopSubscribing()
	subscribers.Wait()
	r.ends.Wait()
	return r.history(ctx)
}

// nemesis breaks one thing after the other until the duration is over.
func (r *run) nemesis(ctx context.Context) error {
	random := rand.New(rand.NewPCG(r.Seed, 3))
	faults := slices.Concat(r.gatewayFaults(), r.registryFaults(), r.Faults)
	until := time.Now().Add(r.Duration)
	for n := 0; ; n++ {
		wait := pace/2 + time.Duration(random.Int64N(int64(pace)))
		if time.Now().Add(wait).After(until) {
			sleep(ctx, time.Until(until))
			return ctx.Err()
		}
		sleep(ctx, wait)
		f := faults[random.IntN(len(faults))]
		if n < len(faults) {
			f = faults[n] // each once, before any twice
		}
		name := fmt.Sprintf("%d: %s", n, f.Name)
		r.Progress("%3d s left, %6d stored, %6d settled: %s", int(time.Until(until).Seconds()), r.stored.Load(), r.settled.Load(), f.Name)
		r.recorder.Record(history.Entry{Kind: history.Fault, Value: name})
		var ends []string // of this fault: it, and each gateway apart
		ends = append(ends, name)
		apart := func(gateway int) {
			instance := r.gateways[gateway].identity()
			ends = append(ends, name+" "+instance)
			r.recorder.Record(history.Entry{Kind: history.Fault, Value: name + " " + instance, Instance: instance})
		}
		if err := f.Cause(ctx, random, apart); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		for _, g := range r.gateways {
			if err := r.revive(ctx, g, f); err != nil {
				return err
			}
		}
		r.recorder.Record(history.Entry{Kind: history.Note, Value: mended + f.Name})
		r.broken[f.Name]++
		r.ends.Go(func() {
			sleep(ctx, aftermath)
			for _, end := range ends {
				r.recorder.Record(history.Entry{Kind: history.Healed, Value: end})
			}
		})
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// awaitSettled waits until the subscription's position is at the end of each partition.
func (r *run) awaitSettled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, liveness)
	defer cancel()
	if err := r.awaitDecided(ctx); err != nil {
		return err
	}
	// A partition's end may be a transaction's marker, which is no event: the last
	// event decides. Nothing is published any more.
	ends := map[broker.TopicPartition]int64{}
	var stored []event.Position
	for _, topic := range r.topics {
		records, err := r.read(ctx, topic)
		if err != nil {
			return err
		}
		for _, e := range records {
			at := broker.TopicPartition{Topic: topic, Partition: e.Partition}
			ends[at] = max(ends[at], e.Offset+1)
			stored = append(stored, e.Position())
		}
	}
	behind := ""
	for {
		committed, err := r.kafka.Committed(ctx, r.name, r.topics...)
		if err == nil {
			left := 0
			behind = ""
			for p, end := range ends {
				if at := committed[p].Offset; at < end {
					left++
					behind += fmt.Sprintf(" %s[%d] is at %d of %d;", p.Topic, p.Partition, at, end)
				}
			}
			if left == 0 {
				return r.awaitParked(ctx, stored)
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("not everything was settled within %s:%s %w", liveness, behind, errors.Join(err, ctx.Err()))
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

// awaitDecided waits until no transaction is open: what is stored behind one that a
// killed gateway left is read, and delivered, only when Kafka has aborted it.
func (r *run) awaitDecided(ctx context.Context) error {
	for {
		open, err := r.kafka.Undecided(ctx, r.topics...)
		if err == nil && len(open) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("transactions are still open after %s in %v: %w", liveness, open, errors.Join(err, ctx.Err()))
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

// awaitParked waits until each stored event has been settled: the group's position
// passes what is parked or waits in a delay topic, which comes later.
func (r *run) awaitParked(ctx context.Context, stored []event.Position) error {
	for {
		settled := map[event.Position]bool{}
		for _, e := range r.recorder.Entries() {
			if e.Kind == history.Acked || e.Kind == history.Rejected {
				settled[event.Position{Topic: e.Topic, Partition: e.Partition, Offset: e.Offset}] = true
			}
		}
		left := slices.DeleteFunc(slices.Clone(stored), func(at event.Position) bool { return settled[at] })
		if len(left) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d events were put aside and not settled within %s, the first is %s: %w", len(left), liveness, left[0], ctx.Err())
		}
		sleep(ctx, time.Second)
	}
}

// history reads the log and the dead letters, and joins them to what the clients saw.
func (r *run) history(ctx context.Context) (history.History, error) {
	h := history.History{Subscriptions: map[string][]string{r.name: r.topics}}
	for _, topic := range r.topics {
		records, err := r.read(ctx, topic)
		if err != nil {
			return h, err
		}
		for _, e := range records {
			h.Log = append(h.Log, history.Record{Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Key: string(e.Key), Value: string(e.Value)})
		}
	}
	there, err := r.kafka.Existing(ctx, r.name+".dead")
	if err != nil {
		return h, err
	}
	if len(there) > 0 {
		letters, err := r.read(ctx, r.name+".dead")
		if err != nil {
			return h, err
		}
		for _, e := range letters {
			p, err1 := strconv.ParseInt(header(e, event.DeadLetterPartition), 10, 32)
			at, err2 := strconv.ParseInt(header(e, event.DeadLetterOffset), 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				return h, fmt.Errorf("a dead letter without its origin: %w", err)
			}
			h.DeadLetters = append(h.DeadLetters, history.DeadLetter{
				Subscription: r.name, Topic: header(e, event.DeadLetterTopic), Partition: int32(p), Offset: at, At: max(1, r.recorder.Since(e.Timestamp)),
			})
		}
	}
	h.Entries = r.recorder.Entries()
	return h, nil
}

func header(r *event.Record, name string) string {
	v, _ := r.Header(name)
	return string(v)
}

// read gives all that is committed in a topic.
func (r *run) read(ctx context.Context, topic string) ([]*event.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, liveness)
	defer cancel()
	ranges, err := r.kafka.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	from, left := map[int32]int64{}, map[int32]int64{}
	for p, span := range ranges {
		if span.End > span.Start {
			from[p], left[p] = span.Start, span.End
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	reader, err := r.kafka.NewReader(topic, from)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	var all []*event.Record
	last := time.Now()
	// The last offsets may be a transaction's markers, which no reader shows: an end
	// that stays quiet for a while is one.
	for len(left) > 0 && (time.Since(last) < quiet || len(all) == 0) {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		err := reader.Poll(poll, 10_000, func(e *event.Record) {
			last = time.Now()
			all = append(all, e)
			if e.Offset+1 >= left[e.Partition] {
				delete(left, e.Partition)
			}
		})
		cancel()
		if err != nil && ctx.Err() != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return all, nil
}

const quiet = 5 * time.Second
