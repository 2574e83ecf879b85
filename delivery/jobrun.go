package delivery

import (
	"context"
	"sync"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// jobRun is this instance's work on one job. Its work is one goroutine's; another
// one writes the progress down.
type jobRun struct {
	jobs  *Jobs
	claim string
	stop  context.CancelCauseFunc

	marks   *markReader            // of dead letters
	replays map[string]*markReader // by source: how far a replay came
	sources map[string]int         // partitions of topics of origin; 0: there is no such topic
	sides   map[string]int         // partitions of their redrive topics
	marked  bool                   // the topic of marks is there
	due     time.Time              // the next batch, by the rate
	batch   []chosen
	weight  int64 // of batch
	pending counts
	looked  int64 // the slice's offsets below are looked at

	mu      sync.Mutex
	s       *storedJob
	changed bool // since it was written down
}

// chosen is a record that a job deals with.
type chosen struct {
	at     event.Position // in what is looked through
	letter *DeadLetter    // nil for a replay
	record *event.Record  // to write; nil for a purge
}

// counts are what was met since progress last moved on.
type counts struct{ matched, done, skipped, refused int64 }

func newJobRun(j *Jobs, s *storedJob) *jobRun {
	return &jobRun{
		jobs: j, claim: s.Claim, s: s, marks: newMarkReader(j.queues.kafka, j.queues.prefix, s.Subscription, s.ID),
		replays: map[string]*markReader{}, sources: map[string]int{}, sides: map[string]int{},
	}
}

// jobRetryMin is the first wait after a failure that may pass; it doubles from there.
const jobRetryMin = 200 * time.Millisecond

// run works until the job has ended, or ctx has.
func (r *jobRun) run(ctx context.Context) {
	log := r.jobs.log.With("job", r.s.ID, "subscription", r.s.Subscription)
	beating, still := context.WithCancel(ctx)
	var beat sync.WaitGroup
	beat.Go(func() { r.beat(beating) })
	wait := jobRetryMin
	var failed error
	for {
		before := r.position()
		failed = r.work(ctx)
		if failed == nil || ctx.Err() != nil || !r.passes(failed) {
			break
		}
		if r.position() != before {
			wait = jobRetryMin
		}
		log.Warn("a job is not getting on; trying on", "again_after", wait, "error", failed)
		r.progress(func(s *storedJob) { s.fail(failed) })
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, r.jobs.times.retry)
	}
	still()
	beat.Wait()
	if ctx.Err() == nil {
		r.mu.Lock()
		r.s.fail(failed)
		if r.s.end(JobSucceeded, time.Now()); failed != nil {
			r.s.State = JobFailed
		}
		log.Info("job ended", "matched", r.s.Matched, "done", r.s.Done, "skipped", r.s.Skipped, "error", failed)
		r.mu.Unlock()
		for ctx.Err() == nil {
			if r.save(ctx) == nil {
				return
			}
			select {
			case <-time.After(r.jobs.times.save):
			case <-ctx.Done():
			}
		}
	}
	r.leave(ctx)
}

// leave gives a job back that is not ended by this run, and adds what was still
// done to one that was cancelled.
func (r *jobRun) leave(ctx context.Context) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobsPatience)
	defer cancel()
	err := r.jobs.ledger.Write(last, r.jobs.write(r.s.ID, func(old *storedJob) (*storedJob, error) {
		if old == nil || old.Claim != r.claim || old.State == JobSucceeded || old.State == JobFailed {
			return nil, nil
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		s := r.s.clone()
		switch {
		case old.State == JobCancelled:
			s.end(JobCancelled, *old.Ended)
			s.Claim = ""
		case s.final(): // it came to its end, and that could not be written down
		default:
			s.State, s.Instance, s.Claim = JobPending, "", ""
		}
		return s, nil
	}, nil))
	if err != nil {
		r.jobs.log.Warn("a job could not be given back; it is taken over after a while", "job", r.s.ID, "error", err)
	}
}

// passes reports whether the failure may pass by itself.
func (r *jobRun) passes(err error) bool {
	switch fault.KindOf(err) {
	case fault.KindDenied, fault.KindPrecondition, fault.KindInvalid, fault.KindTooLarge, fault.KindInternal:
		return false
	}
	return true // also a topic that is not found: what the job makes is known everywhere in a moment
}

// beat writes progress down while there is some, and a sign of life when there is none.
func (r *jobRun) beat(ctx context.Context) {
	ticker := time.NewTicker(r.jobs.times.save)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r.mu.Lock()
		due := r.changed || time.Since(last) >= r.jobs.times.beat
		r.changed = false
		r.mu.Unlock()
		if !due {
			continue
		}
		switch err := r.save(ctx); {
		case err == nil:
			last = time.Now()
		case ctx.Err() == nil:
			r.jobs.log.Warn("a job's progress could not be written down", "job", r.s.ID, "error", err)
		}
	}
}

// save writes the job as it is.
func (r *jobRun) save(ctx context.Context) error {
	return r.jobs.ledger.Write(ctx, r.jobs.write(r.s.ID, func(old *storedJob) (*storedJob, error) {
		if old == nil || old.Claim != r.claim || old.final() {
			r.stop(errNotOurs)
			return nil, nil
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.s.clone(), nil
	}, nil))
}

// progress changes what is written down.
func (r *jobRun) progress(change func(*storedJob)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r.s)
	r.changed = true
}

// jobPosition is how far a job is.
type jobPosition struct {
	at   int
	next int64
}

func (r *jobRun) position() jobPosition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return jobPosition{r.s.At, r.s.Next}
}

// work does what is left to do, from where progress is.
func (r *jobRun) work(ctx context.Context) error {
	r.batch, r.weight, r.pending = nil, 0, counts{}
	clear(r.sources)
	clear(r.sides)
	if err := r.plan(ctx); err != nil {
		return err
	}
	if err := r.refreshMarks(ctx); err != nil {
		return err
	}
	if err := r.slices(ctx); err != nil {
		return err
	}
	switch {
	case r.s.Asked.DryRun:
		return nil
	case r.s.Asked.Kind == JobPurge:
		return r.removePurged(ctx)
	case r.s.Asked.Kind == JobReplay:
		if err := r.endReplayMarks(ctx); err != nil {
			return err
		}
	}
	if n := r.s.Refused; n > 0 {
		return fault.New(fault.InvalidRecord, "Kafka refused %d of the events for good; they were left where they are (%s)", n, r.refusal())
	}
	return nil
}

// refusal is what Kafka said of a refused event.
func (r *jobRun) refusal() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.s.Error != nil {
		return r.s.Error.Message
	}
	return "see the log"
}

// slices looks through the slices of the plan that are left.
func (r *jobRun) slices(ctx context.Context) error {
	topic := ""
	read := func(context.Context, storedSlice, int64) error { return nil }
	stop := func() {}
	defer func() { stop() }()
	for at := r.position(); at.at < len(r.s.Plan); at = r.position() {
		slice := r.s.Plan[at.at]
		if slice.Topic != topic {
			stop()
			reader, err := r.jobs.queues.kafka.NewSlices(slice.Topic)
			if err != nil {
				return err
			}
			topic, stop = slice.Topic, reader.Close
			read = func(ctx context.Context, s storedSlice, from int64) error {
				return reader.Read(ctx, ranges(s.Partition, from, s.To), func(record *event.Record) error { return r.look(ctx, record) })
			}
		}
		r.looked = max(slice.From, at.next)
		if err := read(ctx, slice, r.looked); err != nil {
			return err
		}
		r.looked = slice.To
		if err := r.flush(ctx); err != nil {
			return err
		}
		r.progress(func(s *storedJob) { s.At, s.Next = s.At+1, 0 })
	}
	return nil
}

// look takes one record.
func (r *jobRun) look(ctx context.Context, record *event.Record) error {
	c, err := r.choose(ctx, record)
	if err != nil {
		return err
	}
	r.looked = record.Offset + 1
	if c != nil && r.s.Asked.DryRun {
		r.pending.done++
		c = nil
	}
	if c == nil {
		if len(r.batch) == 0 {
			r.moveOn()
		}
		return nil
	}
	r.batch = append(r.batch, *c)
	r.weight += int64(record.Size())
	if len(r.batch) >= r.atOnce() || r.weight >= letterBytesAtOnce {
		return r.flush(ctx)
	}
	return nil
}

// atOnce is how much is written together: a quarter of a second's worth.
func (r *jobRun) atOnce() int {
	if rate := r.s.Asked.Rate; rate > 0 {
		return int(max(1, min(rate/4, lettersAtOnce)))
	}
	return lettersAtOnce
}

// moveOn notes that everything that was looked at is dealt with.
func (r *jobRun) moveOn() {
	p := r.pending
	r.pending = counts{}
	r.progress(func(s *storedJob) {
		if s.At < len(s.Plan) {
			slice := s.Plan[s.At]
			s.Scanned += max(0, r.looked-max(slice.From, s.Next))
			s.Next = r.looked
		}
		s.Matched += p.matched
		s.Done += p.done
		s.Skipped += p.skipped
		s.Refused += p.refused
		if p.refused == 0 && s.Refused == 0 {
			s.fail(nil)
		}
	})
}

// flush deals with the batch.
func (r *jobRun) flush(ctx context.Context) error {
	if len(r.batch) > 0 {
		if err := r.pace(ctx, len(r.batch)); err != nil {
			return err
		}
		if err := r.do(ctx, r.batch); err != nil {
			return err
		}
	}
	r.batch, r.weight = nil, 0
	r.moveOn()
	return nil
}

// pace waits until n more may be written.
func (r *jobRun) pace(ctx context.Context, n int) error {
	if rate := r.s.Asked.Rate; rate > 0 {
		if wait := time.Until(r.due); wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if now := time.Now(); r.due.Before(now) {
			r.due = now
		}
		r.due = r.due.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	}
	if ctx.Err() != nil {
		return fault.Of(ctx.Err())
	}
	return nil
}
