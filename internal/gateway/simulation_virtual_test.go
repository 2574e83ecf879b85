//go:build synctests

package gateway

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/workload"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

var (
	seeds    = flag.Int("seeds", defaultSeeds, "how many simulations to run")
	seed     = flag.Uint64("seed", 0, "the first seed; 0 draws one")
	loudly   = flag.Bool("loud", false, "log what the simulated gateways log")
	keepPath = flag.String("histories", "", "where the histories of failing seeds go (default: a folder for temporary files)")
)

// TestSeeds simulates gateways, a Kafka, clients and receivers under faults that
// follow from a seed, and judges what the clients saw. A seed fixes what is
// planned and when, but not the order of goroutines: run a seed that failed with
// -seed N -seeds 1 -count 20, or judge its history again.
func TestSeeds(t *testing.T) {
	first := *seed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	t.Logf("seeds %d to %d", first, first+uint64(*seeds)-1)
	var mu sync.Mutex
	var total history.Report
	t.Run("seed", func(t *testing.T) {
		for i := range uint64(*seeds) {
			t.Run(strconv.FormatUint(first+i, 10), func(t *testing.T) {
				t.Parallel()
				defer endsWithin(seedLimit, first+i)()
				var report history.Report
				synctest.Test(t, func(t *testing.T) { report = simulate(t, newPlan(first+i)) })
				mu.Lock()
				defer mu.Unlock()
				total.Published += report.Published
				total.Stored += report.Stored
				total.Deliveries += report.Deliveries
				total.Settled += report.Settled
				total.Faults += report.Faults
				total.DeadLetters += report.DeadLetters
			})
		}
	})
	t.Logf("%d seeds from %d: %d events published, %d stored, %d deliveries, %d settled, %d dead letters, %d faults", *seeds, first, total.Published, total.Stored, total.Deliveries, total.Settled, total.DeadLetters, total.Faults)
	if total.Settled < 20**seeds {
		t.Errorf("only %d events were settled: the simulations show little", total.Settled)
	}
}

// seedLimit is how long one seed may run in real time, of which it needs a second
// or two: in simulated time a gateway that does not end goes on for ever.
const seedLimit = 5 * time.Minute

// endsWithin ends the whole run, and shows what every goroutine waits for, unless
// stop is called in time.
func endsWithin(limit time.Duration, seed uint64) (stop func()) {
	timer := time.AfterFunc(limit, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("seed %d has not ended after %s\n%s", seed, limit, newPlan(seed)))
	})
	return func() { timer.Stop() }
}

// Names in the simulations. Each runs on a cluster of its own.
const (
	simTopic  = "events"
	simStream = "stream"
	simHook   = "hook"
	simPull   = "pull"
)

// simulation is one run of a plan.
type simulation struct {
	t        *testing.T
	plan     plan
	cluster  *brokertest.Cluster
	fleet    *fleet
	recorder *history.Recorder
	topic    string
	topicID  [16]byte
	began    time.Time
	handles  []*kfake.FaultHandle

	later  sync.WaitGroup // ends of faults
	mu     sync.Mutex
	healed bool
}

// simulate runs a plan to its end and judges it.
func simulate(t *testing.T, p plan) history.Report {
	log := slog.New(slog.DiscardHandler)
	if *loudly {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s := &simulation{t: t, plan: p, recorder: history.NewRecorder(), began: time.Now()}
	s.cluster = brokertest.Virtual(t, kfake.NumBrokers(p.brokers), kfake.Ports([]int{9000, 9001, 9002}[:p.brokers]...))
	s.topic = s.cluster.Topic(simTopic, p.partitions)
	s.topicID = s.cluster.Fake.TopicInfo(s.topic).TopicID
	s.observeCommits()
	s.fleet = newFleet(t, s.cluster, log, s.configure)
	stopReceiving := s.receive()
	for range p.gateways {
		s.fleet.add()
	}

	ctx, cancel := context.WithCancel(t.Context())
	var publishers, subscribers, faults sync.WaitGroup
	for i, route := range p.routes {
		publisher := &workload.Publisher{
			Name: fmt.Sprintf("p%d", i), Topic: s.topic, Route: route, Keys: 3, Count: 60, Targets: s.fleet.targets, Recorder: s.recorder,
			Random: workload.NewRandom(p.seed, uint64(10+i)), Wait: 10 * time.Second, Pause: 300 * time.Millisecond,
			Deduplicate: p.deduped && (route == workload.Unary || route == workload.Binary), Hasty: 0.02, Odd: t.Errorf,
		}
		publishers.Go(func() { publisher.Run(ctx) })
	}
	for i := range 2 {
		confirm := []posternv1.Confirm{posternv1.Confirm_CONFIRM_ON_ACCEPT, posternv1.Confirm_CONFIRM_ON_COMMIT}[(int(p.seed)+i)%2]
		subscriber := &workload.Subscriber{
			Subscription: &posternv1.Subscription{Name: simStream, Topics: []string{s.topic}, Order: subscription.OrderToProto(p.order), Retry: &posternv1.RetryPolicy{MaxAttempts: 30}},
			Targets:      s.fleet.targets, Recorder: s.recorder, Random: workload.NewRandom(p.seed, uint64(20+i)), Manner: s.manner, Confirm: confirm, Window: 16, Lease: 3 * time.Second, Odd: t.Errorf,
		}
		subscribers.Go(func() { subscriber.Run(ctx) })
	}
	if p.pull {
		puller := &workload.Subscriber{
			Subscription: &posternv1.Subscription{Name: simPull, Topics: []string{s.topic}}, Targets: s.fleet.targets, Recorder: s.recorder,
			Random: workload.NewRandom(p.seed, 30), Manner: s.manner, Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT, Window: 64, Lease: 3 * time.Second, Pull: true, Odd: t.Errorf,
		}
		for range 2 {
			subscribers.Go(func() { puller.Run(ctx) })
		}
	}
	for i := range p.faults {
		faults.Go(func() { s.cause(i, p.faults[i]) })
	}
	publishers.Wait()
	faults.Wait()
	s.heal()
	settled := s.awaitSettled()
	cancel()
	subscribers.Wait()
	s.later.Wait()
	s.fleet.close()
	stopReceiving() // nothing calls it any more
	s.awaitLatecomers()
	report := s.judge(s.read())
	if !settled && len(report.Anomalies) == 0 {
		t.Errorf("not everything was settled in time, and the checker saw nothing wrong\n%s", p)
	}
	return report
}

func (s *simulation) configure(c *config.Config) {
	if s.plan.pull {
		c.Subscriptions = append(c.Subscriptions, subscription.Spec{Name: simPull, Topics: []string{s.topic}, Retry: delivery.Retry{MaxAttempts: 20, MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Second}})
	}
	if s.plan.hook {
		h := hook(simHook, s.topic, receivesAt, delivery.Retry{MaxAttempts: 6, MinBackoff: 200 * time.Millisecond, MaxBackoff: 2 * time.Second})
		h.Order, h.Webhook.Timeout, h.Webhook.Concurrency = s.plan.order, hookTimeout, 8
		c.Subscriptions = append(c.Subscriptions, h)
	}
}

const hookTimeout = 3 * time.Second

// receive serves the webhook subscription, if the plan has one.
func (s *simulation) receive() (stop func()) {
	receiver := &workload.Receiver{
		Subscription: simHook, Recorder: s.recorder, Random: workload.NewRandom(s.plan.seed, 40), Bad: s.bad, Lease: hookTimeout, Exclusive: s.plan.alone(), Odd: s.t.Errorf,
	}
	return receive(s.t, s.fleet.network, receiver.ServeHTTP)
}

func (s *simulation) isHealed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healed
}

func (s *simulation) manner() workload.Manner {
	if s.isHealed() {
		return workload.Manner{}
	}
	return s.plan.manner
}

func (s *simulation) bad() float64 {
	if s.isHealed() {
		return 0
	}
	return s.plan.bad
}

// observeCommits records every position that a gateway asks Kafka to keep.
func (s *simulation) observeCommits() {
	var last kmsg.Request
	s.cluster.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Count: -1, Observe: true, When: func(r kmsg.Request) bool {
		commit, ok := r.(*kmsg.OffsetCommitRequest)
		if !ok || r == last { // asked once for each of its partitions
			return false
		}
		last = r
		for _, topic := range commit.Topics {
			if topic.Topic != s.topic && topic.TopicID != s.topicID {
				continue
			}
			for _, at := range topic.Partitions {
				s.recorder.Record(history.Entry{Kind: history.Committal, Subscription: commit.Group, Topic: s.topic, Partition: at.Partition, Offset: at.Offset})
			}
		}
		return true
	}})
}

// heal ends every fault, and starts what is not running.
func (s *simulation) heal() {
	for _, h := range s.handles {
		h.Remove()
	}
	for _, n := range s.fleet.nodes[:s.plan.gateways] {
		if !n.serving {
			s.fleet.start(n)
		}
		n.host.thaw()
	}
	s.mu.Lock()
	s.healed = true
	s.mu.Unlock()
	s.recorder.Record(history.Entry{Kind: history.Note, Value: "healed"})
}

// liveness is how long everything may take to be settled after the last fault:
// a session timeout for a dead member, leases, retries, and a receiver's pauses.
const liveness = 90 * time.Second

func (s *simulation) subscriptions() map[string][]string {
	all := map[string][]string{simStream: {s.topic}}
	if s.plan.hook {
		all[simHook] = []string{s.topic}
	}
	if s.plan.pull {
		all[simPull] = []string{s.topic}
	}
	return all
}

// awaitSettled waits until each subscription has settled all that is stored, and no
// transaction is open: what is stored behind one that a killed gateway left is read
// only when Kafka has aborted it.
func (s *simulation) awaitSettled() bool {
	client := s.cluster.Client()
	limit := time.Now().Add(liveness)
	for time.Now().Before(limit) {
		open, err := client.Undecided(s.t.Context(), s.topic)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(open) == 0 && s.isSettled() {
			return true
		}
		time.Sleep(time.Second)
	}
	return false
}

// isSettled reports whether each subscription has settled all that can be read.
func (s *simulation) isSettled() bool {
	end := map[int32]int64{}
	for _, r := range s.read() {
		end[r.Partition] = max(end[r.Partition], r.Offset+1)
	}
	for name := range s.subscriptions() {
		for partition, want := range end {
			if at, _ := s.cluster.Committed(name, s.topic, partition); at < want {
				return false
			}
		}
	}
	return true
}

// awaitLatecomers waits until what a gateway that is gone had sent has arrived, and
// its transactions are aborted.
func (s *simulation) awaitLatecomers() { time.Sleep(15 * time.Second) }

func (s *simulation) read() []history.Record {
	var all []history.Record
	for _, r := range s.cluster.Read(s.topic) {
		all = append(all, history.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: string(r.Key), Value: string(r.Value)})
	}
	return all
}

// deadLetters reads what became of the rejected.
func (s *simulation) deadLetters() []history.DeadLetter {
	var all []history.DeadLetter
	for name := range s.subscriptions() {
		topic := name + ".dead"
		if s.cluster.Fake.TopicInfo(topic) == nil {
			continue
		}
		for _, r := range s.cluster.Read(topic) {
			all = append(all, letterOf(s.t, s.recorder, r))
		}
	}
	return all
}

func letterOf(t testing.TB, recorder *history.Recorder, r *event.Record) history.DeadLetter {
	t.Helper()
	partition, err1 := strconv.ParseInt(header(r, event.DeadLetterPartition), 10, 32)
	offset, err2 := strconv.ParseInt(header(r, event.DeadLetterOffset), 10, 64)
	if err1 != nil || err2 != nil {
		t.Errorf("a dead letter without its origin: %v", r.Headers)
	}
	return history.DeadLetter{
		Subscription: header(r, event.DeadLetterSubscription), Topic: header(r, event.DeadLetterTopic), Partition: int32(partition), Offset: offset,
		At: max(1, recorder.Since(r.Timestamp)),
	}
}

// judge checks the whole history, and writes it to a file if it shows something.
func (s *simulation) judge(stored []history.Record) history.Report {
	h := history.History{Entries: s.recorder.Entries(), Log: stored, DeadLetters: s.deadLetters(), Subscriptions: s.subscriptions()}
	report := history.Check(h, history.Rules{
		Ordered: s.plan.order != delivery.OrderNone, Traced: true, Wait: 21 * time.Second,
		Allowance: s.plan.allowance(),
	})
	if len(report.Anomalies) == 0 {
		return report
	}
	file := s.keep(h)
	s.t.Errorf("%d anomalies; again with: go test -tags synctests ./internal/gateway -run TestSeeds -seeds 1 -seed %d\n%sits history: %s", len(report.Anomalies), s.plan.seed, s.plan, file)
	for i, a := range report.Anomalies {
		if i == 10 {
			s.t.Errorf("... and %d more", len(report.Anomalies)-10)
			break
		}
		s.t.Errorf("%s: %s", a.Kind, a.What)
	}
	return report
}

// keep writes a history, and gives its file.
func (s *simulation) keep(h history.History) string {
	folder := *keepPath
	if folder == "" {
		folder = filepath.Join(os.TempDir(), "postern-histories")
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err.Error()
	}
	file, err := os.Create(filepath.Join(folder, fmt.Sprintf("seed-%d.jsonl", s.plan.seed)))
	if err != nil {
		return err.Error()
	}
	defer file.Close() //nolint:errcheck // what could not be written is said
	if err := h.Write(file); err != nil {
		return err.Error()
	}
	return file.Name()
}

// TestAKeptHistoryCanBeJudgedAgain writes and reads a history as a failing seed does.
func TestAKeptHistoryCanBeJudgedAgain(t *testing.T) {
	recorder := history.NewRecorder()
	recorder.Record(history.Entry{Kind: history.Invoked, Value: "v", Key: "k"})
	recorder.Record(history.Entry{Kind: history.OK, Value: "v", Topic: "t", Offset: 3})
	s := &simulation{t: t, plan: plan{seed: 7}}
	*keepPath = t.TempDir()
	defer func() { *keepPath = "" }()
	file, err := os.Open(s.keep(history.History{Entries: recorder.Entries()}))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // it was read
	h, err := history.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := history.Check(h, history.Rules{}); len(r.Anomalies) != 1 || r.Anomalies[0].Kind != history.LostWrite {
		b, _ := json.Marshal(r)
		t.Errorf("judged %s", b)
	}
}

// TestPlansFollowFromTheirSeeds holds seeds to what they promise: the same plan
// each time, and every kind of fault among them.
func TestPlansFollowFromTheirSeeds(t *testing.T) {
	seen := map[faultKind]bool{}
	for seed := range uint64(200) {
		p := newPlan(seed)
		if p.String() != newPlan(seed).String() {
			t.Fatalf("seed %d has two plans", seed)
		}
		for _, f := range p.faults {
			seen[f.what] = true
		}
	}
	for _, w := range weights {
		if !seen[w.what] {
			t.Errorf("no plan has %q", w.what)
		}
	}
}
