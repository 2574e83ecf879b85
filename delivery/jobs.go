package delivery

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Jobs redrives and purges dead letters and replays slices of topics, in the
// background and to the end whatever becomes of the instance that was asked.
//
// A job is a record in a ledger (a compacted topic, PREFIXjobs) that all instances
// follow. One of them has claimed it, and writes its progress there once a second;
// that is its heartbeat too. A job whose record does not change for a while, by the
// watcher's own clock, is claimed by another instance, which goes on where the
// progress says; a ledger's writes are in one order, so only one claim stands, and
// a runner that comes back finds that it lost its own. A runner that stops in order
// gives its claim back, and the job is taken up at once.
//
// Work is done batch by batch: events are written, then the marks that they were
// (marks.go), then progress moves on. So a job that is taken over loses nothing,
// and what can double is what was written and not marked when its runner died, one
// batch at most, or what a runner that was given up for dead still writes in its
// last batch. For a subscription's redrive topic the owner of the partition drops
// such repeats (redrive.go), unless it changed in between; in a topic of origin
// they stay.
type Jobs struct {
	queues *Queues
	ledger JobLedger
	log    *slog.Logger
	times  jobTimes

	mu       sync.Mutex
	current  map[string]keptJob
	next     map[string]keptJob // while all is read anew; nil otherwise
	running  map[string]*jobRun // by this instance
	loaded   chan struct{}      // closed when everything that was there at the start is read
	isLoaded bool
	trouble  error         // why reading is not getting on
	failed   chan struct{} // closed when it ended with trouble
	wake     chan struct{}
	work     context.Context // of runs; nil: none may begin
	runs     sync.WaitGroup
}

// JobLedger is where jobs are kept: broker.Ledger.
type JobLedger interface {
	Follow(ctx context.Context, to broker.LedgerReader, trouble func(error)) error
	Write(ctx context.Context, decide func() ([]*event.Record, error)) error
}

// jobTimes are how often a job's progress is written, how long it may be silent
// before another instance takes it over, and what waits before another try.
type jobTimes struct{ save, beat, stale, retry time.Duration }

// defaultJobTimes: progress every second where there is some, a sign of life every
// 3 s; four missed ones are a death, and one write that takes long is none.
var defaultJobTimes = jobTimes{save: time.Second, beat: 3 * time.Second, stale: 15 * time.Second, retry: 10 * time.Second}

const (
	// maxRunning bounds the jobs that an instance works on at once.
	maxRunning = 4
	// maxOpenJobs bounds a subscription's jobs that have not ended; keptJobs is how
	// many of the ended ones are kept.
	maxOpenJobs = 20
	keptJobs    = 50
	// defaultMaxRedrives is how often an event may be redriven.
	defaultMaxRedrives = 5
	// jobsPatience bounds the wait for jobs to be read when a gateway has just started.
	jobsPatience = 5 * time.Second
)

// Why a run ends before its work does.
var (
	errNotOurs  = errors.New("the job was cancelled, or taken over by another instance")
	errStopping = errors.New("this instance is stopping")
)

// NewJobs makes the instance's part of the jobs kept in ledger.
func NewJobs(queues *Queues, ledger JobLedger, log *slog.Logger) *Jobs {
	return &Jobs{
		queues: queues, ledger: ledger, log: log, times: defaultJobTimes, current: map[string]keptJob{}, running: map[string]*jobRun{},
		loaded: make(chan struct{}), failed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// Run follows the jobs and works on those that nobody else does, until ctx ends.
// It gives back what it works on, so that others go on.
func (j *Jobs) Run(ctx context.Context) {
	following, stop := context.WithCancel(context.WithoutCancel(ctx)) // giving back needs the ledger
	var follow sync.WaitGroup
	follow.Go(func() { j.follow(following) })
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	j.mu.Lock()
	j.work = work
	j.mu.Unlock()
	ticker := time.NewTicker(j.times.save)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-j.wake:
			j.takeUp(ctx)
		case <-ticker.C:
			j.takeUp(ctx)
		}
	}
	j.mu.Lock()
	j.work = nil
	j.mu.Unlock()
	cancel(errStopping)
	j.runs.Wait()
	stop()
	follow.Wait()
}

func (j *Jobs) follow(ctx context.Context) {
	said := ""
	tell := func(err error) {
		j.mu.Lock()
		j.trouble = err
		j.mu.Unlock()
		if err.Error() != said {
			said = err.Error()
			j.log.Warn("jobs cannot be read from Kafka", "error", err)
		}
	}
	if err := j.ledger.Follow(ctx, j, tell); err != nil {
		tell(err)
		close(j.failed)
	}
}

// takeUp claims jobs that nobody works on, as far as this instance has room.
func (j *Jobs) takeUp(ctx context.Context) {
	now := time.Now()
	for {
		id := ""
		j.mu.Lock()
		if len(j.running) < maxRunning && j.isLoaded && j.next == nil {
			for candidate, k := range j.current {
				if k.storedJob != nil && !k.final() && j.running[candidate] == nil && (k.Claim == "" || now.Sub(k.seen) > j.times.stale) &&
					(id == "" || k.Created.Before(j.current[id].Created)) {
					id = candidate
				}
			}
		}
		seen := j.current[id].storedJob
		j.mu.Unlock()
		if id == "" || ctx.Err() != nil {
			return
		}
		claim := rand.Text()
		var mine *storedJob
		err := j.ledger.Write(ctx, j.write(id, func(old *storedJob) (*storedJob, error) {
			if mine = nil; old != seen { // it moves, or others were quicker
				return nil, nil
			}
			mine = old.clone()
			mine.State, mine.Instance, mine.Claim = JobRunning, j.queues.instance.String(), claim
			return mine, nil
		}, nil))
		if err != nil {
			j.log.Warn("a job that nobody works on could not be claimed", "job", id, "error", err)
			return
		}
		if mine != nil {
			j.log.Info("job taken up", "job", id, "subscription", mine.Subscription, "done", mine.Done)
			j.begin(mine)
		}
	}
}

// begin starts the run of a job that this instance has claimed.
func (j *Jobs) begin(s *storedJob) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.work == nil || j.running[s.ID] != nil {
		return // stopping: the claim is found to be dead
	}
	run := newJobRun(j, s)
	ctx, cancel := context.WithCancelCause(j.work)
	run.stop = cancel
	j.running[s.ID] = run
	j.runs.Go(func() {
		defer cancel(nil)
		run.run(ctx)
		j.mu.Lock()
		delete(j.running, s.ID)
		j.mu.Unlock()
		wake(j.wake)
	})
}

// await waits until the jobs are read, as long as ctx allows.
func (j *Jobs) await(ctx context.Context) error {
	select {
	case <-j.loaded:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, jobsPatience)
	defer cancel()
	select {
	case <-j.loaded:
		return nil
	case <-j.failed:
	case <-ctx.Done():
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.trouble != nil && fault.KindOf(j.trouble) != fault.KindInternal {
		return j.trouble
	}
	return fault.New(fault.BrokerUnavailable, "the jobs kept in Kafka are not read yet: retry")
}

// StartJob begins a job of of's and answers when it is kept; a dry run when it has ended.
func (j *Jobs) StartJob(ctx context.Context, of Options, r JobRequest) (Job, error) {
	if err := j.await(ctx); err != nil {
		return Job{}, err
	}
	if r.Kind == JobRedrive && r.MaxRedrives == 0 {
		r.MaxRedrives = defaultMaxRedrives
	}
	now := time.Now().UTC()
	s := &storedJob{
		ID: strconv.FormatInt(now.UnixMilli(), 36) + "-" + strings.ToLower(rand.Text()[:8]), Subscription: of.Name, Asked: storedAsk(r),
		Of: storedOf{of.Group, of.Topics, of.TopicsPattern, of.DeadLetterTopic, of.Order == OrderQueue}, State: JobPending, Created: now,
	}
	if r.DryRun {
		return j.dryRun(ctx, s)
	}
	j.mu.Lock()
	if j.work != nil && len(j.running) < maxRunning {
		s.State, s.Instance, s.Claim = JobRunning, j.queues.instance.String(), rand.Text()
	}
	j.mu.Unlock()
	if err := j.keep(ctx, s); err != nil {
		return Job{}, err
	}
	answer := s.job()
	if s.Claim != "" {
		j.begin(s.clone())
	}
	return answer, nil
}

// dryRun counts what s would do, and keeps the outcome.
func (j *Jobs) dryRun(ctx context.Context, s *storedJob) (Job, error) {
	run := newJobRun(j, s)
	s.Instance = j.queues.instance.String()
	if err := run.work(ctx); err != nil {
		if ctx.Err() != nil {
			return Job{}, fault.New(fault.DeadlineExceeded, "the dry run looked at %d of %d records before the call's time was over: allow it more, or narrow the filter", s.Scanned, s.Total)
		}
		return Job{}, err
	}
	s.end(JobSucceeded, time.Now())
	return s.job(), j.keep(ctx, s)
}

// keep writes a new job, and forgets the subscription's oldest that have ended.
func (j *Jobs) keep(ctx context.Context, s *storedJob) error {
	return j.ledger.Write(ctx, j.write(s.ID, func(*storedJob) (*storedJob, error) {
		open := 0
		for _, other := range j.of(s.Subscription) {
			if !other.final() {
				open++
			}
		}
		if open >= maxOpenJobs && !s.final() {
			return nil, fault.New(fault.RateLimited, "subscription %s has %d jobs that have not ended: wait for them, or cancel some", s.Subscription, open)
		}
		return s, nil
	}, func() []*event.Record {
		var ended []*event.Record
		n := 0
		for _, other := range j.of(s.Subscription) {
			if !other.final() {
				continue
			}
			if n++; n >= keptJobs {
				ended = append(ended, &event.Record{Partition: event.AnyPartition, Key: []byte(other.ID)})
			}
		}
		return ended
	}))
}

// of gives a subscription's jobs, the newest first.
func (j *Jobs) of(subscription string) []*storedJob {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []*storedJob
	for _, k := range j.current {
		if k.storedJob != nil && k.Subscription == subscription {
			all = append(all, k.storedJob)
		}
	}
	slices.SortFunc(all, func(a, b *storedJob) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(b.ID, a.ID)
	})
	return all
}

// ListJobs gives the subscription's jobs, the newest first.
func (j *Jobs) ListJobs(ctx context.Context, subscription string) ([]Job, error) {
	if err := j.await(ctx); err != nil {
		return nil, err
	}
	var all []Job
	for _, s := range j.of(subscription) {
		all = append(all, s.job())
	}
	return all, nil
}

// CancelJob ends a job that has not ended. Its runner does no further batch.
func (j *Jobs) CancelJob(ctx context.Context, subscription, id string) (Job, error) {
	if err := j.await(ctx); err != nil {
		return Job{}, err
	}
	var answer Job
	err := j.ledger.Write(ctx, j.write(id, func(old *storedJob) (*storedJob, error) {
		if old == nil || old.Subscription != subscription {
			return nil, fault.New(fault.UnknownJob, "subscription %s has no job %s", subscription, id)
		}
		if old.final() {
			answer = old.job()
			return nil, nil
		}
		s := old.clone()
		s.end(JobCancelled, time.Now())
		answer = s.job()
		return s, nil
	}, nil))
	return answer, err
}
