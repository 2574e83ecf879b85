package delivery

import (
	"context"
	"errors"
	"slices"

	"github.com/postern-dev/postern/broker"
)

// owner is the queue as its consumer sees it: partitions come and go.
type owner struct{ q *Queue }

// Assigned begins each partition where its last owner's commit says.
func (o owner) Assigned(all []broker.Assigned) {
	q := o.q
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range all {
		restored, err := decodeMetadata(a.Metadata, a.TopicID, a.Offset)
		p := &partition{at: a.TopicPartition, owner: q.owner(), preparing: true}
		switch {
		case a.Metadata == "" || err == nil:
		case errors.Is(err, errNewer):
			p.stopped = true
			q.log.Error("a partition is stopped: its acknowledgements were written by a newer Postern; upgrade this instance",
				"partition", a.TopicPartition.String(), "offset", a.Offset)
		default:
			q.metrics.metadataIgnored(1)
			q.log.Warn("a commit's metadata is ignored; events acknowledged above the offset may come again",
				"partition", a.TopicPartition.String(), "offset", a.Offset, "why", err)
		}
		p.Tracker = newTracker(q.options.Order, a.Offset, restored, q.seed)
		p.Tracker.home = p
		if old := q.trackers[a.TopicPartition]; old != nil {
			q.drop(old, "the partition was assigned anew")
		}
		q.trackers[a.TopicPartition] = p
		if p.sought = q.isSought(p); p.sought {
			q.interruptPoll()
		}
		q.rotation = append(q.rotation, p)
		if p.preparing {
			q.preparing.Ask()
		}
		q.log.Debug("partition assigned", "partition", a.TopicPartition.String(), "offset", a.Offset,
			"settled_above", len(restored.settled), "attempted", len(restored.attempts))
	}
}

// Revoked stops lending, gives those who have events of the partitions a
// short time to settle them, commits, and lets go.
func (o owner) Revoked(ctx context.Context, tps []broker.TopicPartition) {
	q := o.q
	only := map[broker.TopicPartition]bool{}
	q.mu.Lock()
	for _, tp := range tps {
		only[tp] = true
		if p := q.trackers[tp]; p != nil {
			p.revoking = true
			for _, s := range p.sides {
				only[s.at], s.revoking = true, true
			}
		}
	}
	for _, e := range q.leases.all() {
		p := e.tracker.home
		switch {
		case !only[p.at]:
		case e.holder.unsend(e.lease):
			q.unlend(p, e)
		default:
			e.holder.revoke(e.lease, "the partition goes to another instance")
		}
	}
	q.mu.Unlock()

	grace, cancel := context.WithTimeout(ctx, revokeGrace)
	defer cancel()
	q.await(grace, func() bool {
		for tp := range only {
			if p := q.trackers[tp]; p != nil && p.lent+p.burying+len(p.moving) > 0 {
				return false
			}
		}
		return true
	})
	// The group's context ends with the rebalance; the commit must not.
	q.commit(context.WithoutCancel(ctx), only)
	q.Lost(tps)
}

// Lost forgets partitions that are somebody else's.
func (o owner) Lost(tps []broker.TopicPartition) { o.q.Lost(tps) }

// Lost forgets partitions and everything lent of them.
func (q *Queue) Lost(tps []broker.TopicPartition) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, tp := range tps {
		if p := q.trackers[tp]; p != nil {
			q.drop(p, "the partition went to another instance")
		}
	}
	q.signal()
	q.dispatch()
}

// forget drops p's state; what is lent of it is revoked. q.mu is held.
func (q *Queue) forget(p *partition, why string) {
	for _, e := range q.leases.all() {
		if e.tracker != p.Tracker {
			continue
		}
		e.holder.revoke(e.lease, why)
		e.holder.messages--
		e.holder.bytes -= int64(e.size)
		q.leases.remove(e)
	}
	delete(q.trackers, p.at)
	q.rotation = slices.DeleteFunc(q.rotation, func(other *partition) bool { return other == p })
}
