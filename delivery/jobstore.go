package delivery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// storedJob is a job as its record in the ledger has it, under its id.
type storedJob struct {
	Format       int          `json:"format"`
	ID           string       `json:"id"`
	Subscription string       `json:"subscription"`
	Of           storedOf     `json:"of"`
	Asked        storedAsk    `json:"asked"`
	State        JobState     `json:"state"`
	Scanned      int64        `json:"scanned,omitempty"`
	Total        int64        `json:"total,omitempty"`
	Matched      int64        `json:"matched,omitempty"`
	Done         int64        `json:"done,omitempty"`
	Skipped      int64        `json:"skipped,omitempty"`
	Created      time.Time    `json:"created"`
	Updated      time.Time    `json:"updated"`
	Ended        *time.Time   `json:"ended,omitempty"`
	Error        *storedError `json:"error,omitempty"`
	// Instance works on it, under Claim, which is of one run and no other's.
	Instance string `json:"instance,omitempty"`
	Claim    string `json:"claim,omitempty"`
	// Plan is what there is to look at, fixed when the job is first run, so that
	// what dies again meanwhile is not met again. Below Next of slice At all is done.
	Planned bool          `json:"planned,omitempty"`
	Plan    []storedSlice `json:"plan,omitempty"`
	At      int           `json:"at,omitempty"`
	Next    int64         `json:"next,omitempty"`
	// Sides are the sources whose redrive topics the job has seen to.
	Sides []string `json:"sides,omitempty"`
	// Refused counts the events that Kafka did not take, for good.
	Refused int64 `json:"refused,omitempty"`
}

// storedOf is what a job needs of its subscription's options, as they were.
type storedOf struct {
	Group           string   `json:"group"`
	Topics          []string `json:"topics,omitempty"`
	TopicsPattern   string   `json:"topics_pattern,omitempty"`
	DeadLetterTopic string   `json:"dead_letter_topic"`
	Queue           bool     `json:"queue,omitempty"` // of OrderQueue
}

// storedAsk is JobRequest.
type storedAsk struct {
	Kind        JobKind       `json:"kind"`
	Filter      LetterFilter  `json:"filter"`
	ToTopic     bool          `json:"to_topic,omitempty"`
	MaxRedrives int           `json:"max_redrives,omitempty"`
	Rate        float64       `json:"rate,omitempty"`
	DryRun      bool          `json:"dry_run,omitempty"`
	Replay      ReplayRequest `json:"replay"`
}

// storedSlice is the offsets [From, To) of a partition.
type storedSlice struct {
	Topic     string `json:"t"`
	Partition int32  `json:"p,omitempty"`
	From      int64  `json:"f,omitempty"`
	To        int64  `json:"e"`
}

type storedError struct {
	Reason  fault.Reason `json:"reason"`
	Message string       `json:"message"`
}

const (
	// jobFormat is the version of what is written: it grows with whatever an older
	// gateway must not drop. Such a gateway leaves the job to others.
	jobFormat = 1
	// maxJob bounds a record; the plan of some 10,000 partitions fits.
	maxJob      = 900 << 10
	maxJobError = 1 << 10
)

func (s *storedJob) encode() ([]byte, error) {
	s.Format = jobFormat
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write job %s: %w", s.ID, err)
	}
	if len(b) > maxJob {
		return nil, fault.New(fault.InvalidArgument, "the job takes %d bytes, more than the %d that are kept: name fewer dead letters or topics", len(b), maxJob)
	}
	return b, nil
}

// decodeJob reads what encode wrote; one of a newer format, or with a field that
// this build does not know, is errNewer.
func decodeJob(id string, value []byte) (*storedJob, error) {
	if len(value) > 2*maxJob {
		return nil, errors.New("it is larger than any that is written")
	}
	var s storedJob
	strict := json.NewDecoder(bytes.NewReader(value))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&s); err != nil {
		var head struct{ Format int }
		if json.Unmarshal(value, &head) == nil && head.Format > 0 {
			return nil, fmt.Errorf("%w, or damaged (%w)", errNewer, err)
		}
		return nil, err
	}
	switch {
	case s.Format > jobFormat:
		return nil, errNewer
	case s.State == JobCancelled && s.Ended == nil:
		return nil, errors.New("it does not say when it ended")
	case s.Format < 1 || s.ID != id || s.Subscription == "" || s.State < JobPending || s.State > JobCancelled ||
		s.Asked.Kind < JobRedrive || s.Asked.Kind > JobReplay || s.At < 0 || s.At > len(s.Plan) || s.Next < 0:
		return nil, errors.New("it is no job")
	}
	for _, slice := range s.Plan {
		if slice.Topic == "" || slice.Partition < 0 || slice.From < 0 || slice.To < slice.From {
			return nil, errors.New("its plan is damaged")
		}
	}
	return &s, nil
}

// final reports whether the job has ended.
func (s *storedJob) final() bool { return s.State >= JobSucceeded }

// job is s for callers.
func (s *storedJob) job() Job {
	j := Job{
		ID: s.ID, Subscription: s.Subscription, State: s.State, Scanned: s.Scanned, Total: s.Total, Matched: s.Matched, Done: s.Done, Skipped: s.Skipped,
		Created: s.Created, Updated: s.Updated, Instance: s.Instance, Request: JobRequest(s.Asked),
	}
	if s.Ended != nil {
		j.Ended = *s.Ended
	}
	if s.Error != nil {
		j.Err = fault.New(s.Error.Reason, "%s", s.Error.Message)
	}
	return j
}

// fail notes why the job failed, or is not getting on; nil: it is.
func (s *storedJob) fail(err error) {
	s.Error = nil
	if err != nil {
		f := fault.Of(err)
		s.Error = &storedError{f.Reason, excerpt(f.Message, maxJobError)}
	}
}

// end gives the job its last state.
func (s *storedJob) end(state JobState, now time.Time) {
	now = now.UTC()
	s.State, s.Ended = state, &now
	s.Plan, s.At, s.Next = nil, 0, 0
}

// clone is a copy that shares nothing that changes.
func (s *storedJob) clone() *storedJob {
	c := *s
	c.Sides = append([]string(nil), s.Sides...)
	return &c
}

// keptJob is a job's record as this instance read it.
type keptJob struct {
	*storedJob           // nil: it cannot be read, and is left alone
	seen       time.Time // when its record came here
}

// Reset begins anew: the ledger was made again. What was known stands meanwhile.
func (j *Jobs) Reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = map[string]keptJob{}
}

// Take takes one record of the ledger.
func (j *Jobs) Take(r *event.Record) {
	id := string(r.Key)
	var k keptJob
	if r.Value != nil {
		s, err := decodeJob(id, r.Value)
		if err != nil {
			j.log.Warn("a job's record is left alone", "position", r.Position().String(), "error", err)
		}
		k = keptJob{s, time.Now()}
	}
	j.mu.Lock()
	all := j.current
	if j.next != nil {
		all = j.next
	}
	if _, there := all[id]; r.Value == nil {
		delete(all, id)
	} else if there || len(all) < maxJobsHeld {
		all[id] = k
	}
	run := j.running[id]
	j.mu.Unlock()
	if run != nil && (k.storedJob == nil || k.final() || k.Claim != run.claim) {
		run.stop(errNotOurs)
	}
	if k.storedJob != nil {
		j.queues.tellRedrives(k.Subscription, k.Sides)
	}
	wake(j.wake)
}

// maxJobsHeld bounds the jobs in memory.
const maxJobsHeld = 20_000

// CaughtUp puts what was read in force.
func (j *Jobs) CaughtUp() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next != nil {
		j.current, j.next = j.next, nil
	}
	if !j.isLoaded {
		j.isLoaded = true
		close(j.loaded)
	}
	wake(j.wake)
}

// get gives the job called id; nil without one.
func (j *Jobs) get(id string) *storedJob {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.current[id].storedJob
}

// write replaces the job called id by what change makes of it, nil for nothing.
// change may be called more than once, and gets nil where there is no such job.
func (j *Jobs) write(id string, change func(old *storedJob) (*storedJob, error), more func() []*event.Record) func() ([]*event.Record, error) {
	return func() ([]*event.Record, error) {
		s, err := change(j.get(id))
		if err != nil || s == nil {
			return nil, err
		}
		s.Updated = time.Now().UTC()
		value, err := s.encode()
		if err != nil {
			return nil, err
		}
		records := []*event.Record{{Partition: event.AnyPartition, Key: []byte(id), Value: value}}
		if more != nil {
			records = append(records, more()...)
		}
		return records, nil
	}
}
