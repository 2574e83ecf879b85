package delivery

import (
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/fault"
)

const (
	// watchEvery is how often Kafka is asked where the partitions end that are read here.
	watchEvery = 10 * time.Second
	// stalledAfter is how long a partition with events that are not read may stand
	// still before that is looked into.
	stalledAfter = 20 * time.Second
	// watchPatience bounds one question, and one look into one partition.
	watchPatience = 5 * time.Second
)

// watched is what the watch knows of a partition: reading it may stop without an
// error, as the client tries most of them again for ever.
type watched struct {
	end    int64     // as Kafka said last
	next   int64     // what was to be read next when it was last seen to move
	since  time.Time // when that was
	empty  span      // nothing in it can be read: markers of transactions
	failed error     // it stands still, and this is why
}

// errUnread is why a partition stands still that Kafka would have read.
var errUnread = fault.New(fault.Internal, "Kafka gives its events to others who ask: start this instance again, and report it")

// keepWatch begins to look at what is read here, unless it has. qs.mu is held.
func (qs *Queues) keepWatch() {
	if qs.watching == nil && !qs.draining {
		qs.watching = time.AfterFunc(watchEvery, qs.watch)
	}
}

// watch looks once, and again later while there is something to look at.
func (qs *Queues) watch() {
	qs.mu.Lock()
	if qs.draining {
		qs.mu.Unlock()
		return
	}
	qs.closing.Add(1)
	defer qs.closing.Done()
	all := qs.opened()
	qs.mu.Unlock()
	reads := map[string]bool{}
	for _, q := range all {
		q.watchTopics(reads)
	}
	topics := make([]string, 0, len(reads))
	for t := range reads {
		topics = append(topics, t)
	}
	if len(topics) > 0 {
		slices.Sort(topics)
		ctx, cancel := context.WithTimeout(qs.watchFor, watchPatience)
		ends, failed, err := qs.kafka.Ends(ctx, topics...)
		cancel()
		if qs.watchFor.Err() != nil {
			return
		}
		for _, q := range all {
			q.compare(ends, failed, err)
		}
	}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if qs.watching = nil; len(qs.running) > 0 {
		qs.keepWatch()
	}
}

// opened lists the queues that are open. qs.mu is held.
func (qs *Queues) opened() []*Queue {
	var all []*Queue
	for _, r := range qs.running {
		select {
		case <-r.opened:
			if r.err == nil {
				all = append(all, r.queue)
			}
		default:
		}
	}
	return all
}

// watchTopics adds the topics that q reads for somebody.
func (q *Queue) watchTopics(to map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.shared != nil { // its lag is asked for anyway (share.go)
		return
	}
	for _, p := range q.rotation {
		if p.side == noSide {
			to[p.at.Topic] = true
		}
	}
}

// compare notes where Kafka says that q's partitions end, and looks into those that
// have more than was read and have not moved for a while.
func (q *Queue) compare(ends map[broker.TopicPartition]int64, failed map[broker.TopicPartition]error, failing error) {
	type still struct {
		p    *partition
		next int64
		end  int64
		err  error
	}
	var look []still
	now := time.Now()
	q.mu.Lock()
	resting := q.desired.Paused || len(q.attachments) == 0 || q.draining || q.shared != nil
	for _, p := range q.rotation {
		if p.side != noSide {
			continue
		}
		w := &p.watched
		err := failing
		if err == nil {
			err = failed[p.at]
		}
		end, told := ends[p.at]
		if told {
			w.end = end
		}
		idle := err == nil && (!told || end <= p.unreadFrom())
		if w.since.IsZero() || p.next != w.next || idle || resting || p.paused || p.stopped || p.preparing || p.sought || p.revoking {
			if w.failed != nil && p.next != w.next {
				q.log.Info("a partition that stood still is read again", "partition", p.at.String())
			}
			w.next, w.since, w.failed = p.next, now, nil
			continue
		}
		if now.Sub(w.since) >= stalledAfter && w.failed == nil {
			look = append(look, still{p, p.next, w.end, err})
		}
	}
	q.mu.Unlock()
	for _, s := range look {
		readable := false
		if s.err == nil {
			ctx, cancel := context.WithTimeout(q.ctx, watchPatience)
			readable, s.err = q.kafka.Readable(ctx, s.p.at, broker.Range{Start: s.next, End: s.end})
			cancel()
		}
		if readable {
			s.err = errUnread
		}
		q.mu.Lock()
		switch w := &s.p.watched; {
		case q.trackers[s.p.at] != s.p || s.p.next != s.next: // gone, or read meanwhile
		case s.err == nil: // markers of transactions alone
			w.empty = span{s.next, s.end}
		default:
			w.failed = s.err
			q.log.Warn("a partition stands still", "partition", s.p.at.String(), "offset", s.next, "end", s.end,
				"for", now.Sub(w.since).Round(time.Second).String(), "error", s.err)
		}
		q.mu.Unlock()
	}
}

// unread is how many of p's events are still to be read, when its end was seen to be end.
func (p *partition) unread(end int64) int64 {
	return max(0, max(end, p.watched.end)-p.unreadFrom())
}

// unreadFrom is next, or where the events go on when none are there.
func (p *partition) unreadFrom() int64 {
	if e := p.watched.empty; e.from <= p.next && p.next < e.to {
		return e.to
	}
	return p.next
}

// stalled tells why p is not read though there is more; nil while it is, or there is not.
func (p *partition) stalled() error {
	if p.next != p.watched.next {
		return nil
	}
	return p.watched.failed
}

// observe tells the instruments what a report says, each time they are read.
func (qs *Queues) observe() {
	lag, _ := qs.meter.Int64ObservableGauge("postern.subscription.lag", metric.WithUnit("{event}"), metric.WithDescription("Events of this instance's partitions that are not settled; of a share group, of all"))
	stalled, _ := qs.meter.Int64ObservableGauge("postern.subscription.stalled_partitions", metric.WithUnit("{partition}"), metric.WithDescription("Partitions of this instance with events that are not read, for no reason of ours"))
	why, _ := qs.meter.Int64ObservableGauge("postern.subscription.cause", metric.WithDescription("1 for the one cause of the subscription's lag on this instance (see GetSubscriptionStatus)"))
	_, _ = qs.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error { // one that cannot be registered tells nothing
		qs.mu.Lock()
		all := qs.opened()
		qs.mu.Unlock()
		for _, q := range all {
			r := q.report()
			name := attribute.String("subscription", q.options.Name)
			of := metric.WithAttributeSet(attribute.NewSet(name))
			o.ObserveInt64(lag, r.Lag, of)
			o.ObserveInt64(stalled, int64(r.Stalled), of)
			o.ObserveInt64(why, 1, metric.WithAttributeSet(attribute.NewSet(name, attribute.String("cause", r.Cause.Kind.String()))))
		}
		return nil
	}, lag, stalled, why)
}
