package delivery

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Events of a share group that must wait longer than the hold limit would keep
// their place among the few that Kafka lets the group lock, so they go round:
//
//	the share group -> a delay topic -> (relay.go) -> the again topic -> the share group
//
// Each arrow is a write that Kafka has answered before what it copies is given
// up: ACCEPTed in the share group, committed in the relay's. A crash in between
// leaves both, so an event may come twice, and never not at all.
//
// Nobody owns a partition of a share group, so, unlike the side topics of the
// other orders (side.go), these belong to the subscription and to no source
// partition. The delay topics have one partition each: what goes there is bounded
// by the budget (budget.go), at some tenth of what succeeds.
//
// In the again topic an event bears where it came from, how often it was lent
// and when first; Kafka counts its deliveries anew there, and the attempt is the
// sum. Jobs write what they redrive and replay to the again topic too.

const (
	// againEvery is how often a gateway looks for topics that another one made.
	againEvery = 30 * time.Second
	// againSoon is how often it does when it was told that there are some.
	againSoon = time.Second
	// relayPatience is how long a first event that is to be put aside waits for the relay.
	relayPatience = 5 * time.Second
	// never is later than any time a queue sees.
	never = time.Duration(math.MaxInt64 / 2)
)

// arrived is an acquired event, as it was before it went round.
type arrived struct {
	*broker.Acquired
	origin  *event.Record
	past    arrival
	foreign error // a record in the again topic that none of us can have written
	verdict verdict
}

// arrive reads what the again topic says of a, and asks the filter unless the
// event passed it before it was lent.
func (q *Queue) arrive(ctx context.Context, a *broker.Acquired) arrived {
	r := arrived{Acquired: a, origin: a.Record}
	if a.Record.Topic == q.shared.again {
		origin, past, err := unmoved(a.Record)
		if err == nil && past.fence {
			err = errNotMoved
		}
		if err != nil {
			r.foreign = err
			return r
		}
		if r.origin, r.past = origin, past; past.attempts > 0 {
			return r
		}
	}
	r.verdict = q.judge(ctx, r.origin)
	return r
}

// recall adds to what is known of a's past. q.mu is held.
func (q *Queue) recall(was *past, a *arrived) {
	was.attempts = int16(min(a.past.attempts+a.Deliveries-1, math.MaxInt16))
	if first := q.at(a.past.first); first != 0 {
		was.firstLent = first
	}
	if was.story == nil && a.past.failure != "" {
		was.story = &story{failure: a.past.failure}
	}
	if errors.Is(a.foreign, errNewer) {
		was.due = never
	}
}

// takeForeign deals with a record in the again topic that cannot be read: one of a
// newer Postern is held until this gateway ends, so that a newer one gets it; any
// other is dead-lettered. q.mu is held.
func (q *Queue) takeForeign(p *partition, h *hold, why error) {
	at := h.entry.record.Position().String()
	if errors.Is(why, errNewer) {
		q.log.Error("an event was put aside by a newer Postern and waits for one; upgrade this instance", "position", at)
		return
	}
	q.log.Error("a record in the subscription's own topic is none of ours; it is dead-lettered", "position", at, "error", why)
	q.unready(p, h.entry)
	q.bury(p, h.entry, reasonUndecodable, why.Error())
}

// leaveShared has e, which is not lent any more, written to the delay topic for
// its wait; its lock is renewed until Kafka has the copy. q.mu is held.
func (q *Queue) leaveShared(p *partition, e *entry, due, now time.Duration, why string) {
	p.unlend(e)
	p.timers.clear(e)
	s := e.tell()
	s.failure, s.due = why, due
	e.state, e.target = moving, tierFor(due-now)
	q.shared.leaving = append(q.shared.leaving, e)
	q.metrics.putAside(e.target, 1)
	q.moving.Ask()
}

// moveShared writes some of what leaves, and says why not all of it went well.
func (q *Queue) moveShared() error {
	s := q.shared
	todo := q.nextLeaving()
	if len(todo) == 0 {
		return nil
	}
	at, errs := []event.Position(nil), make([]error, len(todo))
	err := q.makeDelays()
	if err == nil {
		at, errs = q.moveAway(todo)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	var again []*entry
	for i, e := range todo {
		if !q.still(e, moving) {
			continue // its lock is gone: the event comes again, the copy as well
		}
		p := e.tracker.home
		switch {
		case at != nil && errs[i] == nil:
			q.log.Debug("event put aside", "position", e.record.Position().String(), "copy", at[i].String(), "due", q.start.Add(e.story.due))
			q.settle(p, e)
			continue
		case errs[i] != nil:
			err = errs[i]
		}
		if e.story.due > now {
			again = append(again, e)
			continue
		}
		e.state = waiting // it has waited here
		q.dueShared(p, e)
	}
	s.leaving = append(again, s.leaving...)
	if q.moveFailing = err; err != nil {
		s.delays = s.delays && !fault.Is(err, fault.UnknownTopic) // somebody deleted one
		q.metrics.moveFailed(1)
		q.log.Error("events that must wait cannot be put aside; they are held, and keep their place in the share group, until that works", "error", err)
	} else if len(s.leaving) > 0 {
		q.moving.Ask()
	}
	q.dispatch()
	q.signal()
	return err
}

// nextLeaving takes what is to be written next.
func (q *Queue) nextLeaving() (todo []*entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s, bytes := q.shared, int64(0)
	for len(s.leaving) > 0 && len(todo) < q.moveAtOnce && bytes < moveBytes {
		e := s.leaving[0]
		if s.leaving = s.leaving[1:]; q.still(e, moving) {
			todo, bytes = append(todo, e), bytes+int64(e.size)
		}
	}
	if len(todo) == 0 {
		s.leaving = nil
		q.signal()
	}
	return todo
}

// moveAway writes entries to their delay topics.
func (q *Queue) moveAway(todo []*entry) ([]event.Position, []error) {
	records := make([]*event.Record, len(todo))
	now := time.Now()
	q.mu.Lock()
	for i, e := range todo {
		if e.record == nil { // its lock was lost a moment ago
			continue
		}
		records[i] = q.aside(delayTopic(q.options.SidePrefix, q.options.Name, e.target), 0, e, now)
	}
	q.mu.Unlock()
	return moveSome(q.ctx, q.mover, records)
}

// moveSome is Move that passes over records that are nil.
func moveSome(ctx context.Context, mover Mover, records []*event.Record) ([]event.Position, []error) {
	at, errs := make([]event.Position, len(records)), make([]error, len(records))
	var all []*event.Record
	for _, r := range records {
		if r != nil {
			all = append(all, r)
		}
	}
	where, why := mover.Move(ctx, all)
	n := 0
	for i, r := range records {
		if r != nil {
			at[i], errs[i] = where[n], why[n]
			n++
		}
	}
	return at, errs
}

// aside writes e for a topic in which it goes round.
func (q *Queue) aside(topic string, partition int32, e *entry, now time.Time) *event.Record {
	a := arrival{attempts: e.attempt(), failure: e.failure(), timestamp: now}
	if e.story != nil && e.story.due > 0 {
		a.due = q.start.Add(e.story.due)
	}
	if e.firstLent != 0 {
		a.first = q.start.Add(e.firstLent)
	}
	return moved(topic, partition, e.record, a)
}

// makeDelays makes the topics in which events go round, unless they are there. The
// again topic is made with them, so that the share group has begun it before there
// is anything in it.
func (q *Queue) makeDelays() error {
	q.mu.Lock()
	there := q.shared.delays
	q.mu.Unlock()
	if there {
		return nil
	}
	ctx, cancel := context.WithTimeout(q.ctx, moveRetryMax)
	defer cancel()
	source := q.sourceTopic()
	if err := createAgain(ctx, q.kafka, q.shared.again, source); err != nil {
		return err
	}
	names := q.delayTopics()
	existing, err := q.kafka.Existing(ctx, names...)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := existing[name]; ok {
			continue
		}
		if err := createLike(ctx, q.kafka, name, source, 1); err != nil {
			return err
		}
		if _, err := awaitTopic(ctx, q.kafka, name, 1); err != nil {
			return err
		}
		q.log.Info("topic for events that must wait created", "topic", name)
	}
	wake(q.lookAgain)
	patience, enough := context.WithTimeout(ctx, relayPatience)
	defer enough()
	if err := q.startRelay().await(patience); err != nil { // what nobody carries on is better held
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shared.delays = true
	return nil
}

// createAgain makes the again topic with the partitions of source, unless it is there.
func createAgain(ctx context.Context, kafka *broker.Client, name, source string) error {
	existing, err := kafka.Existing(ctx, name, source)
	if err != nil {
		return err
	}
	if _, there := existing[name]; there {
		return nil
	}
	partitions := max(1, len(existing[source].Partitions))
	if err := createLike(ctx, kafka, name, source, partitions); err != nil {
		return err
	}
	_, err = awaitTopic(ctx, kafka, name, partitions)
	return err
}

func (q *Queue) delayTopics() (names []string) {
	for i := range tiers {
		names = append(names, delayTopic(q.options.SidePrefix, q.options.Name, sideTier+side(i)))
	}
	return names
}

// againLoop looks for the topics in which events go round: made here, or by other
// gateways, or by a job. When they are there it reads the again topic, and begins
// to relay what waits.
func (q *Queue) againLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	reading, relaying, looks := false, false, 0
	said := ""
	for !reading || !relaying {
		select {
		case <-q.ctx.Done():
			return
		case <-q.lookAgain:
			looks = redriveLooks
		case <-timer.C:
			looks--
		}
		again, delays, err := q.findAgain(q.ctx)
		switch {
		case err == nil:
			said = ""
		case q.ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			q.log.Warn("cannot look for what the subscription put aside; trying on", "error", err)
		}
		if again && !reading {
			q.shared.consumer.Read(q.shared.again)
			reading, looks = true, 0
		}
		if delays && !relaying {
			relaying = true
			q.startRelay()
		}
		if timer.Reset(againEvery); looks > 0 {
			timer.Reset(againSoon)
		}
	}
}

// findAgain reports which of the topics there are.
func (q *Queue) findAgain(ctx context.Context) (again, delays bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveRetryMax)
	defer cancel()
	names, own := q.delayTopics(), againTopic(q.options.SidePrefix, q.options.Name)
	existing, err := q.kafka.Existing(ctx, append(names, own)...)
	if err != nil {
		return false, false, err
	}
	_, again = existing[own]
	delays = true
	for _, name := range names {
		_, ok := existing[name]
		delays = delays && ok
	}
	return again, delays, nil
}

// trimAgain lets Kafka remove what is settled in the again topic: it has no
// retention of its own.
func (q *Queue) trimAgain(positions map[broker.TopicPartition]broker.SharePosition, ranges map[int32]broker.Range) {
	at := map[broker.TopicPartition]int64{}
	for p, is := range ranges {
		tp := broker.TopicPartition{Topic: q.shared.again, Partition: p}
		if position, ok := positions[tp]; ok && (position.Offset >= is.Start+trimEvery || position.Offset > is.Start && position.Lag == 0) {
			at[tp] = position.Offset
		}
	}
	if len(at) == 0 {
		return
	}
	if err := q.kafka.DeleteBefore(q.ctx, at); err != nil && q.ctx.Err() == nil {
		q.log.Warn("settled records of the subscription's own topic could not be removed; they stay until that is allowed", "error", err)
	}
}
