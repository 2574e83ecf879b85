package delivery

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/postern-dev/postern/fault"
)

// facts are what a queue knows that may keep its events waiting.
type facts struct {
	backlog    int64 // not delivered, as far as known
	partitions int
	paused     bool
	consumers  int
	carrier    *Cause // what a consumer says of itself: an endpoint that is throttled, say
	newer      string // a partition that is stopped by a newer format
	readFailing, commitFailing, letterFailing, moveFailing, prepareFailing,
	openFailing error
	stalled   error         // a partition stands still, and why
	joined    time.Duration // since the group was joined
	room      int           // windows' places that are free
	window    int           // windows' places in all
	lent      int
	ready     int           // may be lent now
	retrying  int           // wait for an attempt, nobody behind them
	oldest    time.Duration // how long the longest running lease has run
	full      string        // a partition that holds as much as it may
	narrow    string        // a partition whose commit can say no more
	blocked   *BlockedKey   // with the most events behind it
	keys      int           // that are blocked
	missed    *gap          // the last range that retention removed
	unjudged  int           // wait until the filter can be asked
	judging   error         // why it cannot
	filter    *lastError
	undecoded *lastError
}

// gap is a range of a partition that nobody will see.
type gap struct {
	where    string
	from, to int64
	at       time.Time
}

// lastError is what went wrong lately.
type lastError struct {
	text  string
	count int64
	at    time.Time
}

const (
	// slowHandler is from when on a lease is called slow.
	slowHandler = time.Second
	// lately is how long something that was over at once is still named.
	lately = 10 * time.Minute
)

// cause names the one reason why events wait: what stops everything first, then
// what holds the most up.
func cause(f facts, now time.Time) Cause {
	say := func(kind CauseKind, format string, args ...any) Cause {
		return Cause{Kind: kind, Summary: fmt.Sprintf(format, args...), Figures: map[string]string{"backlog": strconv.FormatInt(f.backlog, 10)}}
	}
	if f.paused {
		return say(CausePaused, "It is paused: nothing is delivered until it is resumed.")
	}
	for _, e := range []error{f.openFailing, f.readFailing, f.commitFailing, f.prepareFailing} {
		if fault.Is(e, fault.KafkaNotAuthorized) {
			return say(CauseNotAuthorized, "Kafka does not let the gateway read the topics or use the group: %v", e)
		}
	}
	switch {
	case fault.Is(f.openFailing, fault.PositionLost):
		return LostPosition()
	case f.newer != "":
		return say(CauseNewerFormat, "%s is stopped: what was committed there was written by a newer Postern. Upgrade this instance.", f.newer)
	}
	for _, e := range []error{f.openFailing, f.readFailing, f.commitFailing, f.prepareFailing} {
		if e != nil {
			return say(CauseBrokerUnavailable, "Kafka does not do what is asked of it: %v", e)
		}
	}
	if f.letterFailing != nil {
		return say(CauseDeadLetterFailing, "Dead letters cannot be written, and their events are not given up before that: %v", f.letterFailing)
	}
	if f.moveFailing != nil {
		return say(CauseBrokerUnavailable, "Events that must wait cannot be put aside in Kafka: %v", f.moveFailing)
	}
	if f.stalled != nil {
		return say(CauseBrokerUnavailable, "%v", f.stalled)
	}
	if f.carrier != nil && f.carrier.Kind == CauseEndpointDisabled { // also without a backlog: nothing will come
		return *f.carrier
	}
	if f.backlog == 0 && f.blocked == nil && f.retrying == 0 {
		if m := f.missed; m != nil && now.Sub(m.at) < lately {
			c := say(CauseRetentionPassed, "It does not lag, but retention removed offsets %d to %d of %s before they were delivered.", m.from, m.to-1, m.where)
			c.Since = m.at
			return c
		}
		return say(CauseNone, "It does not lag.")
	}
	switch {
	case f.consumers == 0:
		return say(CauseNoConsumer, "No stream, puller or webhook asks for its events here.")
	case f.carrier != nil:
		return *f.carrier
	case f.partitions == 0:
		c := say(CauseRebalancing, "The group is being balanced: this instance has no partition yet, or there are fewer partitions than members.")
		c.Figures["joined_for"] = f.joined.Round(time.Second).String()
		return c
	}
	figures := func(c Cause) Cause {
		c.Figures["in_hand"], c.Figures["window"] = strconv.Itoa(f.lent), strconv.Itoa(f.window)
		if f.lent > 0 {
			c.Figures["oldest_lease"] = f.oldest.Round(time.Millisecond).String()
		}
		return c
	}
	switch {
	case f.ready > 0 && f.room == 0 && f.oldest >= slowHandler:
		return figures(say(CauseHandlerSlow, "Consumers have %d events in hand, as many as their windows allow, the oldest for %s.", f.lent, f.oldest.Round(time.Millisecond)))
	case f.ready > 0 && f.room == 0:
		return figures(say(CauseWindowFull, "Consumers have %d events in hand, as many as their windows allow: widen them, or add consumers.", f.lent))
	case f.narrow != "" && f.room > 0:
		return figures(say(CauseMetadataFull, "In %s so many events are settled out of order that a commit can say no more: its first unsettled event must be settled.", f.narrow))
	}
	if f.blocked != nil {
		c := say(CauseBlockedKey, "Key %q is blocked by %s, which failed %d times (%s); %d events are known to wait behind it.", f.blocked.Key, f.blocked.Position, f.blocked.Attempts, f.blocked.Error, f.blocked.Waiting)
		if f.blocked.Key == nil {
			c.Summary = fmt.Sprintf("The partition is blocked by %s, which failed %d times (%s); %d events are known to wait behind it.", f.blocked.Position, f.blocked.Attempts, f.blocked.Error, f.blocked.Waiting)
		}
		c.Blocked, c.Since = f.blocked, f.blocked.Since
		c.Figures["blocked_keys"] = strconv.Itoa(f.keys)
		return c
	}
	switch {
	case f.full != "" && f.room > 0:
		return figures(say(CauseTrackerFull, "%s holds as many unsettled events as memory allows, and none may be delivered now.", f.full))
	case f.unjudged > 0 && f.lent == 0:
		c := say(CauseFilterError, "The filter asks for data that cannot be decoded for now, and those events wait: %v", f.judging)
		c.Figures["waiting"] = strconv.Itoa(f.unjudged)
		return c
	case f.filter != nil && now.Sub(f.filter.at) < lately && f.lent == 0:
		c := say(CauseFilterError, "The filter fails on events, which go to the dead letters: %s", f.filter.text)
		c.Since, c.Figures["failures"] = f.filter.at, strconv.FormatInt(f.filter.count, 10)
		return c
	case f.undecoded != nil && now.Sub(f.undecoded.at) < lately && f.lent == 0:
		c := say(CauseUndecodable, "Events cannot be decoded and go to the dead letters: %s", f.undecoded.text)
		c.Since, c.Figures["failures"] = f.undecoded.at, strconv.FormatInt(f.undecoded.count, 10)
		return c
	case f.retrying > 0 && f.lent == 0 && f.ready == 0:
		return say(CauseRetrying, "%d events wait for their next attempt.", f.retrying)
	case f.lent > 0:
		return figures(say(CauseHandlerSlow, "Consumers have %d events in hand, the oldest for %s.", f.lent, f.oldest.Round(time.Millisecond)))
	case f.missed != nil && now.Sub(f.missed.at) < lately:
		c := say(CauseRetentionPassed, "Retention removed offsets %d to %d of %s before they were delivered.", f.missed.from, f.missed.to-1, f.missed.where)
		c.Since = f.missed.at
		return c
	}
	return say(CauseNone, "Events are on their way.")
}

// LostPosition is the cause of a subscription whose group had commits and has none.
func LostPosition() Cause {
	return Cause{Kind: CausePositionLost, Summary: "Kafka no longer has the group's position, and what was delivered cannot be told: say with a seek where to go on (earliest, latest, a time)."}
}

// maxBlocked is how many blocked keys a partition's report names.
const maxBlocked = 20

// Report tells what this instance knows of a subscription, whether or not it works on it.
func (qs *Queues) Report(_ context.Context, of Options) (Report, error) {
	qs.mu.Lock()
	r := qs.running[of.Name]
	desired := qs.desired[of.Name]
	qs.mu.Unlock()
	if r == nil {
		if desired.Paused {
			return Report{Cause: cause(facts{paused: true}, time.Now())}, nil
		}
		return Report{}, nil // what is known of Kafka says more
	}
	select {
	case <-r.opened:
	default:
		return Report{Cause: cause(facts{openFailing: r.queue.opening(), backlog: 1, consumers: 1}, time.Now())}, nil
	}
	if r.err != nil {
		return Report{Cause: cause(facts{openFailing: r.err}, time.Now())}, nil
	}
	return r.queue.report(), nil
}

// opening is why a queue is not open yet; nil while that is only a matter of moments.
func (q *Queue) opening() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.readFailing
}

// report tells what the queue knows.
func (q *Queue) report() Report {
	ends, carrier := q.ends(), q.carrier()
	q.mu.Lock()
	defer q.mu.Unlock()
	now, wall := q.now(), time.Now()
	f := facts{
		paused: q.desired.Paused, consumers: len(q.attachments), joined: now, missed: q.missed, carrier: carrier, judging: q.judgeError, filter: q.filterError, undecoded: q.undecoded,
		readFailing: q.readFailing, commitFailing: q.commitFailing, letterFailing: q.letterFailing, moveFailing: q.moveFailing, prepareFailing: q.prepareFailing,
	}
	if f.readFailing == nil && q.silent() && len(q.rotation) > 0 {
		f.readFailing = fault.New(fault.BrokerUnavailable, "the coordinator of group %s has not answered for a session: it may have given the partitions to others, and nothing more is delivered until it answers", q.options.Group)
	}
	var report Report
	if q.shared != nil {
		f.partitions, f.backlog = len(q.shared.consumer.Partitions()), max(0, q.shared.lag-int64(q.leases.count))
		f.retrying = int(q.shared.relay.waiting())
		f.backlog += int64(f.retrying)
		for _, tp := range q.shared.consumer.Partitions() {
			if q.trackers[tp] == nil {
				report.Partitions = append(report.Partitions, PartitionReport{At: tp, Position: -1})
			}
		}
	}
	share := q.share()
	byPartition := map[*partition]*PartitionReport{}
	for _, p := range q.rotation {
		if p.side == noSide {
			if p.shared == nil {
				f.partitions++
				report.Partitions = append(report.Partitions, PartitionReport{At: p.at, Position: p.position(), SeekEpoch: p.epoch})
			} else {
				report.Partitions = append(report.Partitions, PartitionReport{At: p.at, Position: -1})
			}
		}
		if p.stopped {
			f.newer = p.at.String()
		}
	}
	for i := range report.Partitions {
		if p := q.trackers[report.Partitions[i].At]; p != nil {
			byPartition[p] = &report.Partitions[i]
		}
	}
	for _, p := range q.rotation {
		q.tell(p, byPartition[p.sourceOf()], &f, now)
		if p.side == noSide {
			f.backlog += p.unread(ends[p.at])
		}
		if p.shared == nil {
			f.backlog += int64(p.unsettled - p.lent)
			report.Lag += int64(p.lent)
		}
		if err := p.stalled(); err != nil {
			report.Stalled++
			f.stalled = fmt.Errorf("%s stands still at offset %d since %s: %w", p.at, p.next, p.watched.since.UTC().Format(time.RFC3339), err)
		}
		if p.full(share, now, q.options.Retry.HoldLimit) && p.side == noSide {
			f.full = p.at.String()
		}
		if p.first != nil && p.ready.top() != nil && p.peek() == nil {
			f.narrow = p.at.String()
		}
	}
	for _, a := range q.attachments {
		c := ConsumerReport{Client: a.options.Client, Kind: a.options.Kind, Outstanding: a.messages, Window: a.window.Messages}
		f.window += a.window.Messages
		f.room += max(0, a.window.Messages-a.messages)
		if a.bytes >= a.window.Bytes {
			f.room -= max(0, a.window.Messages-a.messages)
		}
		f.lent += a.messages
		for _, e := range q.leases.all() {
			if e.holder == a {
				c.OldestLease = max(c.OldestLease, now-e.lentAt(q.leaseOf(a)))
			}
		}
		f.oldest = max(f.oldest, c.OldestLease)
		report.Consumers = append(report.Consumers, c)
	}
	report.Cause = cause(f, wall)
	report.Lag += f.backlog
	return report
}

// carrier asks the consumers what they are held up by, and gives the first answer.
// It is asked without the lock: a consumer may be changing its window, under its own.
func (q *Queue) carrier() *Cause {
	q.mu.Lock()
	attachments := slices.Clone(q.attachments)
	q.mu.Unlock()
	for _, a := range attachments {
		if a.options.Why == nil {
			continue
		}
		if why := a.options.Why(); why.Kind != 0 {
			return &why
		}
	}
	return nil
}

// lentAt is when e's current lease began, told by when it may end at the latest.
func (e *entry) lentAt(lease time.Duration) time.Duration {
	return e.until - max(lease, MaxLease)
}

// tell adds what p knows to the report of its source and to the facts. q.mu is held.
func (q *Queue) tell(p *partition, r *PartitionReport, f *facts, now time.Duration) {
	for e := p.first; e != nil; e = e.next {
		switch e.state {
		case settled:
			if p.shared == nil {
				r.SettledAhead += e.to - e.from
			}
			continue
		case lent:
			r.Outstanding++
		case ready:
			f.ready++
		case judging:
			r.Waiting++
			f.unjudged++
		case waiting:
			r.Waiting++
			if e.story != nil && e.story.unjudged {
				f.unjudged++
				break
			}
			if e.attempt() == 0 {
				break
			}
			b := q.blockedKey(e)
			if b.Waiting == 0 && !q.keepsOrder(e) {
				f.retrying++
				break
			}
			f.keys++
			r.Blocked = append(r.Blocked, b)
			if f.blocked == nil || b.Waiting > f.blocked.Waiting {
				f.blocked = &b
			}
		case moving:
			f.retrying++
		}
		if p.side == sidePark {
			r.Parked++
		}
		if r.Oldest.IsZero() || e.record.Timestamp.Before(r.Oldest) {
			r.Oldest = e.record.Timestamp
		}
	}
	slices.SortFunc(r.Blocked, func(a, b BlockedKey) int { return a.Since.Compare(b.Since) })
	if len(r.Blocked) > maxBlocked {
		r.Blocked = r.Blocked[:maxBlocked]
	}
}

func (q *Queue) blockedKey(e *entry) BlockedKey {
	b := BlockedKey{
		Position: e.record.Position(), Attempts: e.attempt(), NextAttempt: q.start.Add(e.due), Error: e.failure(),
		Since: q.start.Add(e.firstLent), Waiting: laneLength(e.behind, trackerEvents),
	}
	if q.options.Order == OrderKey {
		b.Key = e.record.Key
	}
	return b
}
