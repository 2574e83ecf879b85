package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// wires are a program's connections to Kafka, which can be cut all at once: to
// Kafka and to everybody else the program is dead.
type wires struct {
	mu   sync.Mutex
	dead bool
	all  []net.Conn
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || w.dead {
		if err == nil {
			_ = conn.Close() // nothing was sent
		}
		return nil, errors.Join(err, net.ErrClosed)
	}
	w.all = append(w.all, conn)
	return conn, nil
}

func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
	for _, conn := range w.all {
		_ = conn.Close() // that is the point
	}
}

// office is an instance with its dead letters and jobs.
type office struct {
	*instance
	letters *delivery.Letters
	jobs    *delivery.Jobs
	stop    func() // gives its jobs back
}

// openOffice makes an instance whose jobs run.
func openOffice(t *testing.T, c *brokertest.Cluster, w *wires) *office {
	t.Helper()
	return openPatientOffice(t, c, w, 2*time.Second)
}

// openPatientOffice makes one that gives others up when they are silent for stale.
func openPatientOffice(t *testing.T, c *brokertest.Cluster, w *wires, stale time.Duration) *office {
	t.Helper()
	options := c.Options()
	if w != nil {
		options.Dial = w.dial
	}
	client, err := broker.New(options)
	if err != nil {
		t.Fatal(err)
	}
	mover := client.NewMover()
	prefix := c.Name("_side.")
	log := slog.New(slog.DiscardHandler)
	queues := delivery.NewQueues(delivery.NewInstance(), client, mover, prefix, log, noop.Meter{})
	o := &office{
		instance: &instance{t: t, queues: queues},
		letters:  delivery.NewLetters(client, prefix),
		jobs:     delivery.NewJobs(queues, client.Ledger(c.Name("_side.jobs")), log),
	}
	o.jobs.SetTimes(100*time.Millisecond, 300*time.Millisecond, stale)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); o.jobs.Run(ctx) }()
	o.stop = func() { cancel(); <-done }
	t.Cleanup(func() {
		if w != nil { // what it was about to write goes nowhere
			mover.Close()
		}
		o.stop()
		mover.Close()
		client.Close()
	})
	return o
}

// start begins a job.
func (o *office) start(of delivery.Options, r delivery.JobRequest) delivery.Job {
	o.t.Helper()
	j, err := o.jobs.StartJob(o.t.Context(), of, r)
	if err != nil {
		o.t.Fatal(err)
	}
	return j
}

// job gives what is known of one, when it is known here.
func (o *office) job(subscription, id string) (known delivery.Job) {
	o.t.Helper()
	eventually(o.t, "job "+id+" is known", func() bool {
		all, err := o.jobs.ListJobs(o.t.Context(), subscription)
		if err != nil {
			o.t.Fatal(err)
		}
		for _, j := range all {
			if j.ID == id {
				known = j
			}
		}
		return known.ID == id
	})
	return known
}

// ended waits until a job has ended, well.
func (o *office) ended(j delivery.Job) delivery.Job {
	o.t.Helper()
	eventually(o.t, "the job has ended", func() bool { j = o.job(j.Subscription, j.ID); return j.State >= delivery.JobSucceeded })
	if j.State != delivery.JobSucceeded || j.Err != nil || j.Ended.IsZero() {
		o.t.Fatalf("the job ended as %+v", j)
	}
	return j
}

// putDead writes n dead letters of each of keys, in rounds.
func putDead(c *brokertest.Cluster, dead, topic, subscription string, n int, keys ...string) {
	var all []*event.Record
	for i := range n {
		for _, k := range keys {
			all = append(all, delivery.Dead(dead, 0, source(topic, fmt.Sprint(k, i), int64(len(all))), subscription, "rejected", "no"))
		}
	}
	c.Put(all...)
}

func TestARedriveReachesOnlyTheSubscriptionItDiedInAndKeepsEachKeysOrder(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 2)
	o, other := options(c, "mine", topic), options(c, "other", topic)
	a, b := openOffice(t, c, nil), openOffice(t, c, nil)
	a.open(o) // it works already when the redrive begins
	b.open(other)
	var put []*event.Record
	for _, text := range []string{"a0", "b0", "a1", "b1", "a2", "b2"} {
		r := events(topic, text)[0]
		r.Partition = int32(text[0]) % 2
		put = append(put, r)
	}
	c.Put(put...)
	for range put {
		l := a.next()
		a.say(delivery.Settlement{ID: l.ID, Word: delivery.Reject, Reason: "no"})
		b.ack(b.next())
	}
	eventually(t, "all are dead letters", func() bool { return len(list(t, a.letters, o, delivery.LettersQuery{})) == 6 })
	// Another instance than the one that has the partitions is asked.
	j := b.ended(b.start(o, delivery.JobRequest{Kind: delivery.JobRedrive}))
	if j.Matched != 6 || j.Done != 6 || j.Skipped != 0 || j.Scanned != 6 || j.Total != 6 {
		t.Errorf("the job is %+v", j)
	}
	got := map[byte][]string{}
	for range 6 {
		l := a.next()
		if from, _ := l.Record.Header(event.RedriveFrom); l.Record.Topic != topic || l.Record.Partition != int32(l.Record.Key[0])%2 || !strings.HasPrefix(string(from), o.DeadLetterTopic) {
			t.Errorf("it came as %+v", l.Record)
		}
		got[l.Record.Key[0]] = append(got[l.Record.Key[0]], fmt.Sprintf("%s#%d", l.Record.Value, l.Attempt))
		a.ack(l)
	}
	for _, key := range "ab" {
		if text, want := strings.Join(got[byte(key)], " "), fmt.Sprintf("%c0#1 %c1#1 %c2#1", key, key, key); text != want {
			t.Errorf("delivered %s, want %s", text, want)
		}
	}
	// The other subscription sees what is published now, and nothing before it.
	c.Put(events(topic, "z")...)
	if l := b.next(); string(l.Record.Value) != "z" {
		t.Errorf("the other subscription got %s", l.Record.Value)
	}
	// They are marked, and not redriven again.
	if l := list(t, b.letters, o, delivery.LettersQuery{}); len(l) != 0 {
		t.Errorf("%s are still to be redriven", texts(l))
	}
	all := list(t, b.letters, o, delivery.LettersQuery{Filter: delivery.LetterFilter{IncludeRedriven: true}})
	for i := range all {
		if all[i].RedrivenBy != j.ID {
			t.Errorf("%s was redriven by %q", all[i].Record.Value, all[i].RedrivenBy)
		}
	}
	if again := b.ended(b.start(o, delivery.JobRequest{Kind: delivery.JobRedrive})); again.Matched != 0 || again.Scanned != 6 {
		t.Errorf("a second redrive is %+v", again)
	}
}

func TestWhatIsRedrivenBeforeAnybodyListensWaits(t *testing.T) {
	c := brokertest.New(t)
	for _, order := range []delivery.Order{delivery.OrderKey, delivery.OrderPartition, delivery.OrderNone} {
		topic := c.Topic(fmt.Sprint("orders", order), 1)
		o := options(c, fmt.Sprint("later", order), topic)
		o.Order = order
		dead := c.Topic(fmt.Sprint("later", order, ".dead"), 1)
		putDead(c, dead, topic, o.Name, 3, "a")
		a := openOffice(t, c, nil)
		a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive}))
		a.open(o)
		var all []delivery.Lease
		for range 3 {
			l := a.next()
			all = append(all, l)
			a.ack(l)
		}
		if got := values(all); got != "a0#1 a1#1 a2#1" {
			t.Errorf("%s: delivered %s", order, got)
		}
		a.instance.stop()
		again := openOffice(t, c, nil)
		again.open(o)
		c.Put(events(topic, "z")...)
		if l := again.next(); string(l.Record.Value) != "z" {
			t.Errorf("%s: after a restart %s came", order, l.Record.Value)
		} else {
			again.ack(l)
		}
		again.instance.stop()
	}
}

func TestARedrivenEventThatDiesAgainGoesRoundUntilTheLoopGuardStopsIt(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "poison", topic)
	a := openOffice(t, c, nil)
	a.open(o)
	c.Put(events(topic, "p")...)
	for round := range 3 {
		l := a.next()
		if l.Attempt != 1 {
			t.Errorf("round %d begins with attempt %d", round, l.Attempt)
		}
		a.say(delivery.Settlement{ID: l.ID, Word: delivery.Reject, Reason: fmt.Sprint("round ", round)})
		var dead []delivery.DeadLetter
		eventually(t, "it is a dead letter again", func() bool {
			dead = list(t, a.letters, o, delivery.LettersQuery{})
			return len(dead) == 1
		})
		if d := dead[0]; d.Redrives != round || d.Detail != fmt.Sprint("round ", round) || d.Origin != (event.Position{Topic: topic}) || len(d.Record.Headers) != 1 {
			t.Errorf("round %d: the dead letter is %+v of %+v", round, d, d.Record)
		}
		j := a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive, MaxRedrives: 2}))
		if want := int64(min(1, 2-round)); j.Matched != 1 || j.Done != want || j.Skipped != 1-want {
			t.Errorf("round %d: the job is %+v", round, j)
		}
	}
}

func TestARedriveToTheTopicIsSeenByEverySubscription(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "all", topic)
	dead := c.Topic("all.dead", 1)
	putDead(c, dead, topic, o.Name, 2, "a", "b")
	c.Put(delivery.Dead(dead, 0, source("elsewhere", "c", 9), o.Name, "rejected", "")) // a topic that is not the subscription's
	a := openOffice(t, c, nil)
	j := a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive, ToTopic: true, Filter: delivery.LetterFilter{}}))
	if j.Matched != 5 || j.Done != 4 || j.Skipped != 1 {
		t.Errorf("the job is %+v", j)
	}
	var got []string
	for _, r := range c.Read(topic) {
		count, _ := r.Header(event.RedriveCount)
		h, _ := r.Header("h")
		origin, _ := r.Header(event.RedriveOrigin)
		if string(count) != "1" || string(h) != string(r.Value) || !strings.HasPrefix(string(origin), topic+"[0]@") || time.Since(r.Timestamp) > time.Hour {
			t.Errorf("it was published as %+v", r)
		}
		got = append(got, string(r.Value))
	}
	if strings.Join(got, " ") != "a0 b0 a1 b1" {
		t.Errorf("published were %s", got)
	}
}

func TestAJobOfAKilledInstanceIsFinishedByAnotherAndLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for an instance to be given up")
	}
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "killed", topic)
	dead := c.Topic("killed.dead", 1)
	const many = 400
	putDead(c, dead, topic, o.Name, many/4, "a", "b", "c", "d")
	var w wires
	victim, heir := openOffice(t, c, &w), openOffice(t, c, nil)
	j := victim.start(o, delivery.JobRequest{Kind: delivery.JobRedrive, Rate: 200})
	eventually(t, "half of it is done", func() bool { return heir.job(o.Name, j.ID).Done >= many/4 })
	w.cut()
	j = heir.ended(j)
	if j.Matched != many || j.Done != many {
		t.Errorf("the job is %+v", j)
	}
	heir.open(o)
	last := map[byte]int{}
	count := map[string]int{}
	for len(count) < many {
		l := heir.next()
		if l.Attempt != 1 {
			t.Errorf("%s comes as attempt %d", l.Record.Value, l.Attempt)
		}
		var n int
		if _, err := fmt.Sscan(string(l.Record.Value[1:]), &n); err != nil {
			t.Fatal(err)
		}
		if key := l.Record.Key[0]; count[string(l.Record.Value)] == 0 && n != last[key] {
			t.Fatalf("%s comes, %d of its key is next", l.Record.Value, last[key])
		} else if count[string(l.Record.Value)] == 0 {
			last[key]++
		}
		count[string(l.Record.Value)]++
		heir.queue.Settle([]delivery.Settlement{{ID: l.ID, Word: delivery.Ack}})
	}
	for text, n := range count {
		if n > 1 {
			t.Errorf("%s came %d times although its owner never changed", text, n)
		}
	}
	if l := list(t, heir.letters, o, delivery.LettersQuery{}); len(l) != 0 {
		t.Errorf("%d letters are not marked", len(l))
	}
}

func TestAJobOfAnInstanceThatStopsIsGivenBackAtOnce(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "handed", topic)
	dead := c.Topic("handed.dead", 1)
	putDead(c, dead, topic, o.Name, 100, "a")
	first, second := openOffice(t, c, nil), openPatientOffice(t, c, nil, time.Hour) // the second never gives anybody up
	j := first.start(o, delivery.JobRequest{Kind: delivery.JobPurge, Rate: 50})
	eventually(t, "it has begun", func() bool { return second.job(o.Name, j.ID).Done > 0 })
	first.stop()
	if j = second.ended(j); j.Done != 100 || j.Instance != second.queues.Instance().String() {
		t.Errorf("the job is %+v", j)
	}
}

func TestACancelledJobStopsAndWhatItDidStaysDone(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "cancel", topic)
	dead := c.Topic("cancel.dead", 1)
	putDead(c, dead, topic, o.Name, 1000, "a")
	a, b := openOffice(t, c, nil), openOffice(t, c, nil)
	j := a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive, Rate: 100})
	eventually(t, "it has begun", func() bool { return b.job(o.Name, j.ID).Done > 0 })
	answer, err := b.jobs.CancelJob(t.Context(), o.Name, j.ID) // at another instance than the one that works on it
	if err != nil || answer.State != delivery.JobCancelled || answer.Ended.IsZero() {
		t.Fatalf("cancelling answers %+v, %v", answer, err)
	}
	a.stop() // waits for what was under way
	end := b.job(o.Name, j.ID)
	if end.State != delivery.JobCancelled || end.Done == 0 || end.Done >= 1000 {
		t.Errorf("the job is %+v", end)
	}
	marked := 1000 - len(list(t, b.letters, o, delivery.LettersQuery{Size: 500}))
	if int64(marked) != end.Done {
		t.Errorf("%d are marked, and the job tells of %d", marked, end.Done)
	}
	if again, err := b.jobs.CancelJob(t.Context(), o.Name, j.ID); err != nil || again.State != delivery.JobCancelled || again.Done != end.Done {
		t.Errorf("cancelling again answers %+v, %v", again, err)
	}
	if _, err := b.jobs.CancelJob(t.Context(), o.Name, "nothing"); !fault.Is(err, fault.UnknownJob) {
		t.Errorf("cancelling nothing answers %v", err)
	}
}

func TestADryRunCountsAndDoesNothing(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "dry", topic)
	dead := c.Topic("dry.dead", 1)
	putDead(c, dead, topic, o.Name, 10, "a", "b")
	c.Put(&event.Record{Topic: dead, Key: []byte("a"), Value: []byte("of others")})
	a := openOffice(t, c, nil)
	filter := delivery.LetterFilter{HasKey: true, Key: []byte("a")}
	for _, kind := range []delivery.JobKind{delivery.JobRedrive, delivery.JobPurge} {
		j := a.start(o, delivery.JobRequest{Kind: kind, DryRun: true, Filter: filter})
		done, skipped := int64(11), int64(0)
		if kind == delivery.JobRedrive { // where one of others' came from nobody knows
			done, skipped = 10, 1
		}
		if j.State != delivery.JobSucceeded || j.Scanned != 21 || j.Total != 21 || j.Matched != 11 || j.Done != done || j.Skipped != skipped {
			t.Errorf("the dry run is %+v", j)
		}
		if kept := a.job(o.Name, j.ID); kept.Done != j.Done || !kept.Request.DryRun {
			t.Errorf("it is kept as %+v", kept)
		}
	}
	if l := list(t, a.letters, o, delivery.LettersQuery{}); len(l) != 21 {
		t.Errorf("%d letters are left", len(l))
	}
}

func TestPurgedDeadLettersAreGoneAndTheirBytesWhereNothingStandsBefore(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "purge", topic)
	dead := c.Topic("purge.dead", 2)
	putDead(c, dead, topic, o.Name, 3, "a", "b") // a0 b0 a1 b1 a2 b2
	c.Put(delivery.Dead(dead, 1, source(topic, "a9", 90), "another", "rejected", ""))
	a := openOffice(t, c, nil)
	purge := func(filter delivery.LetterFilter) delivery.Job {
		filter.IncludeRedriven = true
		return a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobPurge, Filter: filter}))
	}
	if j := purge(delivery.LetterFilter{HasKey: true, Key: []byte("a")}); j.Done != 3 {
		t.Errorf("the job is %+v", j)
	}
	letters := list(t, a.letters, o, delivery.LettersQuery{OldestFirst: true, Filter: delivery.LetterFilter{IncludeRedriven: true}})
	if texts(letters) != "b0 b1 b2" {
		t.Errorf("the list is %s", texts(letters))
	}
	if l := list(t, a.letters, o, delivery.LettersQuery{Filter: delivery.LetterFilter{Positions: []event.Position{{Topic: dead}}, IncludeRedriven: true}}); len(l) != 0 {
		t.Error("a purged letter is shown by its id")
	}
	if n := len(c.Read(dead)); n != 6 { // a0 stood first; the other subscription's stays
		t.Errorf("%d records are left", n)
	}
	if j := a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive})); j.Matched != 3 {
		t.Errorf("a redrive of the rest is %+v", j)
	}
	if j := purge(delivery.LetterFilter{}); j.Done != 3 {
		t.Errorf("the last purge is %+v", j)
	}
	rest := c.Read(dead)
	if len(rest) != 1 || string(rest[0].Value) != "a9" {
		t.Errorf("%d records are left", len(rest))
	}
	// The marks of what is gone end with the next job.
	a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobRedrive}))
	alive := map[string]bool{}
	for _, r := range c.Read(c.Name("_side.letters.purge")) {
		if alive[string(r.Key)] = r.Value != nil; r.Value == nil {
			delete(alive, string(r.Key))
		}
	}
	if len(alive) != 0 {
		t.Errorf("marks are left: %v", alive)
	}
}

func TestAReplayDeliversASliceAgainAndLeavesThePositionAlone(t *testing.T) {
	c := brokertest.New(t)
	topic, second := c.Topic("orders", 1), c.Topic("bills", 1)
	o := options(c, "replay", topic, second)
	c.Put(events(topic, "a0", "b0")...)
	time0 := c.Read(topic)[1].Timestamp
	c.Put(events(topic, "a1", "b1", "a2")...)
	c.Put(events(second, "a7")...)
	a := openOffice(t, c, nil)
	a.open(o)
	for range 6 {
		a.ack(a.next())
	}
	replay := func(r delivery.ReplayRequest) (delivery.Job, string) {
		j := a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobReplay, Replay: r}))
		var all []delivery.Lease
		for range j.Done {
			l := a.next()
			all = append(all, l)
			a.ack(l)
		}
		return j, values(all)
	}
	if j, got := replay(delivery.ReplayRequest{After: time.UnixMilli(1), Topics: []string{topic}, HasKey: true, Key: []byte("a")}); j.Matched != 3 || got != "a0#1 a1#1 a2#1" {
		t.Errorf("the replay of a key is %+v: %s", j, got)
	}
	if j, got := replay(delivery.ReplayRequest{After: time.UnixMilli(1), Before: time0.Add(time.Millisecond), Topics: []string{topic}}); j.Done < 2 || !strings.HasPrefix(got, "a0#1 b0#1") {
		t.Errorf("the replay of a time is %+v: %s", j, got)
	}
	if j, _ := replay(delivery.ReplayRequest{After: time.UnixMilli(1)}); j.Done != 6 || j.Total != 6 {
		t.Errorf("the replay of all is %+v", j)
	}
	if at := committed(c, o, topic); at != 5 {
		t.Errorf("the position is %d", at)
	}
	c.Put(events(topic, "a3")...)
	l := a.next()
	if string(l.Record.Value) != "a3" || slices.ContainsFunc(l.Record.Headers, func(h event.Header) bool { return strings.HasPrefix(h.Name, "postern-") }) {
		t.Errorf("then %s comes with %v", l.Record.Value, l.Record.Headers)
	}
	// What is not delivered yet is not replayed: it comes anyhow.
	if j := a.start(o, delivery.JobRequest{Kind: delivery.JobReplay, DryRun: true, Replay: delivery.ReplayRequest{After: time.UnixMilli(1), Topics: []string{topic}, Before: time.Now().Add(time.Hour)}}); j.Done != 5 {
		t.Errorf("a dry run is %+v", j)
	}
}

func TestAFilterStandsBeforeWhatIsReplayed(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "sieve", topic)
	o.Filter = onlyKey("a")
	c.Put(events(topic, "a0", "b0", "a1")...)
	a := openOffice(t, c, nil)
	a.open(o)
	for range 2 {
		a.ack(a.next())
	}
	eventually(t, "all is passed", func() bool { return committed(c, o, topic) == 3 })
	a.ended(a.start(o, delivery.JobRequest{Kind: delivery.JobReplay, Replay: delivery.ReplayRequest{After: time.UnixMilli(1)}}))
	var got []delivery.Lease
	for range 2 {
		l := a.next()
		got = append(got, l)
		a.ack(l)
	}
	if values(got) != "a0#1 a1#1" {
		t.Errorf("replayed were %s", values(got))
	}
}

// onlyKey is a filter.
type onlyKey string

func (k onlyKey) Match(r *event.Record, _ []byte) (bool, error) {
	return string(r.Key) == string(k), nil
}
func (k onlyKey) String() string { return string(k) }

func TestASeekLeavesWhatIsRedrivenToComeOnce(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "sought", topic)
	putDead(c, c.Topic("sought.dead", 1), topic, o.Name, 3, "a")
	office := openOffice(t, c, nil)
	office.open(o)
	c.Put(events(topic, "b0", "b1")...)
	for range 2 {
		office.ack(office.next())
	}
	office.ended(office.start(o, delivery.JobRequest{Kind: delivery.JobRedrive}))
	first := office.next()
	office.ack(first)
	held := office.next()
	if string(first.Record.Value) != "a0" || string(held.Record.Value) != "a1" {
		t.Fatalf("redriven came %s and %s", first.Record.Value, held.Record.Value)
	}
	office.queues.Desire(o.Name, seek(1, topic, 0))
	got := map[string]int{}
	order := ""
	for range 4 { // b0 and b1 once more, and what of a is not settled
		l := office.next()
		got[string(l.Record.Value)]++
		order += string(l.Record.Value) + " "
		office.ack(l)
	}
	if got["b0"] != 1 || got["b1"] != 1 || got["a1"] != 1 || got["a2"] != 1 || strings.Index(order, "a1") > strings.Index(order, "a2") || strings.Index(order, "b0") > strings.Index(order, "b1") {
		t.Errorf("after the seek came %s", order)
	}
	// Nor does any of it come again with the next owner.
	office.instance.stop()
	again := openOffice(t, c, nil)
	again.queues.Desire(o.Name, seek(1, topic, 0))
	again.open(o)
	c.Put(events(topic, "z")...)
	if l := again.next(); string(l.Record.Value) != "z" {
		t.Errorf("after a restart %s comes", l.Record.Value)
	} else {
		again.ack(l)
	}
}
