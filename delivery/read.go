package delivery

import (
	"context"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// pollLoop reads the group's partitions into their trackers.
func (q *Queue) pollLoop() {
	lastText := ""
	for q.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(q.ctx)
		q.mu.Lock()
		q.interrupt = cancel
		q.mu.Unlock()
		q.applySeeks()
		q.pace()
		err := q.consumer.Poll(ctx, pollEvents, q.offer)
		cancel()
		switch {
		case fault.Is(err, fault.ShuttingDown):
			return
		case err == nil:
			lastText = ""
		case err.Error() != lastText: // the client goes on trying: say it once
			lastText = err.Error()
			q.log.Warn("reading is failing", "error", err)
		}
		q.mu.Lock()
		q.readFailing = err
		q.mu.Unlock()
	}
}

// pace stops fetching partitions that are full and starts those that have room
// again. A pause drops what the client has buffered, so the gap between the
// two marks is wide.
func (q *Queue) pace() {
	if q.shared != nil {
		return // it fetches what there is room for
	}
	q.pacing.Lock()
	defer q.pacing.Unlock()
	var pause, resume, pauseAside, resumeAside []broker.TopicPartition
	q.mu.Lock()
	share, now, hold := q.share(), q.now(), q.options.Retry.HoldLimit
	for tp, p := range q.trackers {
		switch {
		case !p.paused && p.full(share, now, hold):
			p.paused = true
			if p.side == noSide {
				pause = append(pause, tp)
			} else {
				pauseAside = append(pauseAside, tp)
			}
		case p.paused && p.roomy(share, now, hold):
			p.paused = false
			if p.side == noSide {
				resume = append(resume, tp)
			} else {
				resumeAside = append(resumeAside, tp)
			}
		}
	}
	follower := q.follower
	q.mu.Unlock()
	if follower != nil { // what Unfollow and Follow meet again begins unpaused
		follower.Resume(resumeAside)
		follower.Pause(pauseAside)
	}
	if len(resume) > 0 {
		q.consumer.Resume(resume)
	}
	if len(pause) == 0 {
		return
	}
	q.consumer.Pause(pause)
	// One that was taken away and given back meanwhile is a new partition,
	// which does not know that it is paused.
	var again []broker.TopicPartition
	q.mu.Lock()
	for _, tp := range pause {
		if p := q.trackers[tp]; p == nil || !p.paused {
			again = append(again, tp)
		}
	}
	q.mu.Unlock()
	if len(again) > 0 {
		q.consumer.Resume(again)
	}
}

// share is what one partition may hold: the queue's bytes, divided among the
// partitions that hold something, so that a single busy one has all of them,
// or among all of them once they are used up. q.mu is held.
func (q *Queue) share() int64 {
	held, busy := int64(0), 0
	for _, p := range q.trackers {
		held += p.bytes + p.heldBytes
		if p.bytes+p.heldBytes > 0 {
			busy++
		}
	}
	if held >= trackerBytes {
		busy = len(q.trackers)
	}
	return trackerBytes / int64(max(1, busy))
}

// offer hands polled records, in the memory of their fetch, to their trackers and
// lends what can be lent.
func (q *Queue) offer(records []*event.Record) {
	if len(records) == 0 {
		return
	}
	var verdicts []verdict
	if q.options.Filter != nil { // outside the lock: it may take a while
		ctx, cancel := context.WithTimeout(q.ctx, judgePatience)
		verdicts = make([]verdict, len(records))
		for i, r := range records {
			verdicts[i] = q.judge(ctx, r)
		}
		cancel()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	var last *partition
	for i, r := range records {
		p := last
		if p == nil || p.at.Partition != r.Partition || p.at.Topic != r.Topic {
			p = q.trackers[broker.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
			last = p
		}
		if p == nil || p.stopped || p.sought {
			continue
		}
		v := verdict{}
		if verdicts != nil {
			v = verdicts[i]
		}
		if r.Offset > p.next && len(p.held) == 0 {
			q.checkMissed(p, r.Offset)
		}
		if p.preparing {
			p.held = append(p.held, held{r.Clone(), v})
			p.heldBytes += int64(r.Size())
			continue
		}
		q.noteLoan(p, r, now)
		q.take(p, r, v)
	}
	q.dispatch()
	q.endLoans(now)
	if q.options.movesAside() {
		share := q.share()
		for _, p := range q.rotation {
			q.relieve(p, share, now)
		}
	}
}

// checkMissed notes what retention removed before it was read, when offset comes
// where an earlier one was expected. (Compaction and transactions leave gaps too:
// nothing is missing there.) q.mu is held.
func (q *Queue) checkMissed(p *partition, offset int64) {
	start := min(q.consumer.LogStart(p.at), offset)
	if start <= p.next {
		return
	}
	q.missed = &gap{p.at.String(), p.next, start, time.Now()}
	q.metrics.missed(start - p.next)
	q.log.Error("retention removed events before they were delivered; the subscription goes on behind them",
		"partition", p.at.String(), "from", p.next, "to", start)
}

// take offers one record to its tracker. q.mu is held.
func (q *Queue) take(p *partition, r *event.Record, v verdict) {
	switch {
	case r.Offset < p.next:
		p.repeats++
		q.metrics.repeated(1)
	case v.skip:
		p.pass(r.Offset)
		q.touch(p)
		q.metrics.filtered(1)
	default:
		e := p.take(r.Offset, r, past{})
		switch e.state {
		case settled:
			q.touch(p)
		case moving: // it is judged again where it goes
			q.moving.Ask()
		default:
			q.judged(p, e, v)
		}
	}
}
