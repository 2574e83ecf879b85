package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/postern-dev/postern/broker"
)

// awaitCommit waits until each partition's version is in Kafka; false if one
// of them will not be.
func (q *Queue) awaitCommit(ctx context.Context, versions map[*partition]uint64) bool {
	gone := false
	return q.await(ctx, func() bool {
		for p, version := range versions {
			if p.committed >= version {
				continue
			}
			if q.trackers[p.at] != p {
				gone = true
				return true
			}
			q.commits.Ask()
			return false
		}
		return true
	}) && !gone
}

// doCommits commits what changed, at most every commitInterval. A settlement that
// waits for its commit asks for one at once, and those that come while it is under
// way share the next.
func (q *Queue) doCommits() {
	if q.commit(q.ctx, nil) {
		return
	}
	// Whoever waits for its commit asks for it again as soon as this one has
	// failed: not without a pause, or it would spin while Kafka refuses.
	select {
	case <-q.ctx.Done():
	case <-time.After(commitRetry):
		q.commits.AskWithin(commitInterval)
	}
}

// commit writes the positions of the given partitions (nil: of all that
// changed) and tells who waits; false if some were refused.
func (q *Queue) commit(ctx context.Context, only map[broker.TopicPartition]bool) bool {
	select {
	case q.committing <- struct{}{}:
		defer func() { <-q.committing }()
	case <-ctx.Done():
		return false
	}
	what := map[broker.TopicPartition]broker.Committing{}
	versions := map[*partition]uint64{}
	q.mu.Lock()
	q.metrics.tell() // each lease and each settlement leads to a commit
	for tp, p := range q.trackers {
		if p.uncommittable() || p.version == p.committed || only != nil && !only[tp] {
			continue
		}
		// What stands in a side partition and what its source says of it go together.
		for _, p := range [...]*partition{p, p.sourceOf()} {
			if _, there := versions[p]; !there && !p.uncommittable() {
				if p.side != noSide {
					p.epoch = uint64(p.fences.before(p.position()))
				}
				offset, metadata := p.commit()
				what[p.at] = broker.Committing{Offset: offset, Metadata: metadata}
				versions[p] = p.version
			}
		}
	}
	q.mu.Unlock()
	if len(what) == 0 {
		return true
	}
	refused, err := q.consumer.Commit(ctx, what)
	q.mu.Lock()
	defer q.mu.Unlock()
	failed := false
	for p, version := range versions {
		if why := errors.Join(err, refused[p.at]); why != nil {
			failed = true
			q.commitFailing = why
			q.metrics.commitFailed(1)
			if q.ctx.Err() == nil {
				q.log.Warn("a commit failed; it is tried again", "partition", p.at.String(), "offset", what[p.at].Offset, "error", why)
			}
			continue
		}
		p.committed = max(p.committed, version)
		if at := what[p.at].Offset; p.side != noSide && (at >= p.trimmed+trimEvery || at > p.trimmed && p.unsettled == 0) {
			p.trimTo = at
			q.preparing.Ask()
		}
	}
	if !failed {
		q.commitFailing = nil
		if e := q.desired.SeekEpoch; e > q.desired.applied() && q.soughtNone() {
			defer q.tellBegun(e)
		}
	}
	for _, p := range q.trackers {
		if p.version != p.committed && !failed && !p.uncommittable() {
			q.commits.AskWithin(commitInterval)
			break
		}
	}
	q.signal()
	return !failed
}

// soughtNone reports whether every seek is applied here. q.mu is held.
func (q *Queue) soughtNone() bool {
	for _, p := range q.rotation {
		if p.sought || q.isSought(p) {
			return false
		}
	}
	return true
}

// tellBegun has it kept that the group has commits that follow a seek.
func (q *Queue) tellBegun(epoch uint64) {
	if q.begun != nil {
		q.begun(q.options.Name, epoch)
	}
}

// commitRetry is the wait after a failed commit.
const commitRetry = time.Second

// uncommittable reports whether p's state must not be committed: it is not
// known, or a seek is not wholly applied.
func (p *partition) uncommittable() bool {
	return p.stopped || p.sought || p.giveUp && p.preparing
}
