package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Decode gives an event's data as JSON, where it is in the schema registry's wire
// format. UNDECODABLE is for good, every other error for now.
type Decode func(ctx context.Context, r *event.Record) ([]byte, error)

// ErrEncoded is what a filter says that asks for data in the schema registry's
// wire format. People read it where there is no registry to decode it by.
var ErrEncoded = errors.New("the data is in the schema registry's wire format and the gateway has no schema registry: set schema_registry.urls")

const (
	// judgePatience bounds what decoding may hold up all that is read together.
	// Known schemas take none of it; what is unknown goes on being fetched.
	judgePatience = 100 * time.Millisecond
	// judgeRetry is how long an event waits whose schema cannot be had for now.
	judgeRetry = time.Second
	// judgeAtOnce bounds the events judged again together.
	judgeAtOnce = 500
)

// verdict is what the filter says of a record.
type verdict struct {
	skip  bool
	err   error // of the filter, to be dead-lettered
	later error // why the filter cannot say yet
}

// judge asks the filter. Data is decoded only when the answer depends on it.
func (q *Queue) judge(ctx context.Context, r *event.Record) verdict {
	if q.options.Filter == nil {
		return verdict{}
	}
	match, err := q.options.Filter.Match(r, nil)
	if errors.Is(err, ErrEncoded) && q.decode != nil {
		var decoded []byte
		decoded, err = q.decode(ctx, r)
		switch {
		case err == nil:
			match, err = q.options.Filter.Match(r, decoded)
		case !fault.Is(err, fault.Undecodable):
			return verdict{later: err}
		}
	}
	switch {
	case err == nil:
		return verdict{skip: !match}
	case q.options.FilterErrors == FilterSkips:
		return verdict{skip: true}
	}
	return verdict{err: err}
}

// judgeAside asks the filter about records of side topics that nobody has been
// lent: what is replayed may never have passed it, or another one than there is
// now; what was parked behind others may not have been judged.
func (q *Queue) judgeAside(records []*event.Record) map[*event.Record]verdict {
	if q.options.Filter == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(q.ctx, judgePatience)
	defer cancel()
	var verdicts map[*event.Record]verdict
	for _, r := range records {
		origin, a, err := unmoved(r)
		if err != nil || a.fence || a.job == "" && a.attempts > 0 {
			continue
		}
		if v := q.judge(ctx, origin); v.skip || v.err != nil || v.later != nil {
			if verdicts == nil {
				verdicts = map[*event.Record]verdict{}
			}
			verdicts[r] = v
		}
	}
	return verdicts
}

// judged does with e, which take gave, what the filter says of its event, unless
// that is to pass it over. One behind others of its key is told of when its turn
// comes. q.mu is held.
func (q *Queue) judged(p *partition, e *entry, v verdict) {
	switch {
	case v.later != nil:
		e.tell().unjudged = true
		q.judgeError = v.later
	case v.err != nil && e.state == ready:
		q.unready(p, e)
		q.bury(p, e, reasonFilter, v.err.Error())
	case v.err != nil:
		e.tell().filter = v.err
	}
}

// judgeLater has e, whose turn has come, judged beside. Its key waits, and
// no other one does. q.mu is held.
func (q *Queue) judgeLater(e *entry) {
	e.state = judging
	q.unjudged = append(q.unjudged, e)
	q.rejudging.Ask()
}

// doRejudging asks the filter again about events whose data could not be decoded
// when they were read. None is given up: a registry that is away for days
// costs their keys days.
func (q *Queue) doRejudging() {
	for more := true; more; {
		var err error
		more, err = q.judgeAgain()
		if err != nil && err.Error() != q.judgeSaid {
			q.judgeSaid = err.Error()
			q.log.Warn("the filter asks for data that cannot be decoded for now; those events wait", "error", err)
		}
	}
}

// judgeAgain judges some of what waits. It reports whether there is more, and
// why an event still cannot be judged.
func (q *Queue) judgeAgain() (more bool, failing error) {
	var todo []*entry
	var records []*event.Record
	q.mu.Lock()
	for len(q.unjudged) > 0 && len(todo) < judgeAtOnce {
		e := q.unjudged[0]
		q.unjudged = q.unjudged[1:]
		if q.still(e, judging) {
			todo, records = append(todo, e), append(records, e.record)
		}
	}
	more = len(q.unjudged) > 0
	q.mu.Unlock()
	ctx, cancel := context.WithTimeout(q.ctx, judgePatience)
	defer cancel()
	verdicts := make([]verdict, len(records))
	for i, r := range records {
		verdicts[i] = q.judge(ctx, r)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, e := range todo {
		if !q.still(e, judging) {
			continue // the partition is somebody else's now, or was sought
		}
		p, v := e.tracker.home, verdicts[i]
		if v.later != nil {
			failing, q.judgeError = v.later, v.later
			e.state, e.due = waiting, q.now()+judgeRetry
			p.timers.set(e)
			q.rearm()
			continue
		}
		e.story.unjudged = false
		switch {
		case v.skip:
			q.metrics.filtered(1)
			q.touch(p)
			q.settle(p, e)
		case v.err != nil:
			q.bury(p, e, reasonFilter, v.err.Error())
		default:
			p.makeReady(e)
		}
	}
	q.dispatch()
	q.checkRoom()
	q.signal()
	return more, failing
}
