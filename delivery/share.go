package delivery

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/chore"
)

// sharing is a queue of OrderQueue: its events come from a share group (KIP-932),
// in which Kafka itself keeps what became of each. The trackers hold what is
// locked for this instance, numbered as it came; nothing is committed. What is
// said of an event is said to Kafka, and its lock is renewed for as long as the
// event is held. Guarded by the queue's lock.
type sharing struct {
	consumer *broker.ShareConsumer
	limit    int           // deliveries, after which Kafka archives an event
	lock     time.Duration // of one acquisition
	held     map[place]*hold
	of       map[*entry]*hold // the same
	leaving  []*entry         // to be written to a delay topic (again.go)
	again    string           // the subscription's own topic, where they come back
	relay    *relay           // of what waits in delay topics; nil while there are none
	delays   bool             // its topics are there
	saying   map[saying]*fate // last words on their way
	said     *fate            // of the settlement under way, for its ticket
	stories  map[place]past   // of events given back, for when they come again here
	numbered int64
	lag      int64 // of the whole group, when it was last asked for
	wake     chan struct{}
	sought   chan struct{} // what is desired has changed
}

// place is where an event stands in Kafka.
type place struct {
	at     broker.TopicPartition
	offset int64
}

func placeOf(r *event.Record) place {
	return place{broker.TopicPartition{Topic: r.Topic, Partition: r.Partition}, r.Offset}
}

// hold is one locked event.
type hold struct {
	entry      *entry
	place      place
	session    *broker.ShareSession
	deliveries int
	since      time.Duration // of the lock's beginning
	until      time.Duration // the lock lasts at least so long
	renewing   bool
	fate       *fate
}

// saying names a last word on its way.
type saying struct {
	place   place
	session *broker.ShareSession
}

// fate is what became of a last word.
type fate struct{ done, failed bool }

const (
	// storiesMost bounds what is remembered of events given back.
	storiesMost = 10_000
	// lagEvery is how often the group's lag is asked for.
	lagEvery = 5 * time.Second
)

// openShared joins the share group and starts the queue's goroutines.
func (q *Queue) openShared(ctx context.Context) error {
	s := &sharing{held: map[place]*hold{}, of: map[*entry]*hold{}, again: againTopic(q.options.SidePrefix, q.options.Name), saying: map[saying]*fate{}, stories: map[place]past{}, wake: make(chan struct{}, 1), sought: make(chan struct{}, 1)}
	var beside []string
	if again, _, err := q.findAgain(ctx); err == nil && again { // else againLoop finds it, or says why not
		beside = append(beside, s.again)
	}
	s.consumer = q.kafka.NewShareConsumer(broker.ShareOptions{
		Group: q.options.Group, Topics: q.options.Topics, Pattern: q.options.TopicsPattern, Except: q.options.isLetters,
		Start: q.options.Start, Beside: beside, Room: q.roomShared,
	}, sharer{q})
	q.mu.Lock()
	q.shared = s
	q.mu.Unlock()
	if err := s.consumer.Join(ctx, func(settings broker.ShareSettings) {
		q.mu.Lock()
		defer q.mu.Unlock()
		s.limit, s.lock = settings.Deliveries, settings.Lock
	}); err != nil {
		q.cancel()
		return err
	}
	q.done.Go(q.lockLoop)
	q.done.Go(q.lagLoop)
	q.done.Go(q.againLoop)
	q.done.Go(q.seekLoop)
	for _, c := range []*chore.Chore{q.timing, q.lettering, q.rejudging, q.moving} {
		c.Begin()
	}
	return nil
}

// closeShared gives those who have events a short time to settle them, releases
// the rest and leaves the group.
func (q *Queue) closeShared() {
	q.mu.Lock()
	for _, e := range q.leases.all() {
		if e.holder.unsend(e.lease) {
			q.unlend(e.tracker.home, e)
		} else {
			e.holder.revoke(e.lease, "the subscription is closing on this instance")
		}
	}
	q.mu.Unlock()
	grace, cancel := context.WithTimeout(q.ctx, revokeGrace)
	defer cancel()
	q.await(grace, func() bool {
		for _, p := range q.rotation {
			if p.lent+p.burying > 0 {
				return false
			}
		}
		for e := range q.shared.of {
			if e.state == moving {
				return false
			}
		}
		return true
	})
	q.mu.Lock()
	for _, h := range q.shared.held {
		q.giveBack(h)
	}
	relay := q.shared.relay
	q.mu.Unlock()
	if relay != nil {
		relay.stop(grace)
	}
	q.shared.consumer.Close()
}

// roomShared is how many more events the attachments can take now.
func (q *Queue) roomShared() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.halted() {
		return 0
	}
	room := 0
	for _, a := range q.attachments {
		if a.hasRoom(0) && a.bytes < a.window.Bytes {
			room += a.window.Messages - a.messages
		}
	}
	bytes, unsettled := int64(0), 0
	for _, p := range q.rotation {
		room -= len(p.ready.heap)
		bytes, unsettled = bytes+p.bytes, unsettled+p.unsettled
	}
	if bytes >= trackerBytes {
		return 0
	}
	return max(0, min(room, trackerEvents-unsettled))
}

// sharer is the queue as its share consumer sees it.
type sharer struct{ q *Queue }

// Acquired takes events that are locked for this instance.
func (s sharer) Acquired(all []broker.Acquired, until time.Time) {
	q := s.q
	ctx, cancel := context.WithTimeout(q.ctx, judgePatience)
	events := make([]arrived, len(all))
	for i := range all { // outside the lock: it may take a while
		events[i] = q.arrive(ctx, &all[i])
	}
	cancel()
	q.mu.Lock()
	defer q.mu.Unlock()
	now, end := q.now(), q.since(until)
	for i := range events {
		q.takeShared(&events[i], now, end)
	}
	q.dispatch()
	wake(q.shared.wake)
}

// since is t on the queue's clock.
func (q *Queue) since(t time.Time) time.Duration { return t.Sub(q.start) }

// takeShared holds one event. q.mu is held.
func (q *Queue) takeShared(a *arrived, now, until time.Duration) {
	s := q.shared
	at := placeOf(a.Record)
	if old := s.held[at]; old != nil {
		q.lose(old, "Kafka has given the event out anew")
	}
	p := q.trackers[at.at]
	if p == nil {
		p = &partition{at: at.at, shared: s}
		p.Tracker = newTracker(OrderQueue, 0, progress{}, q.seed)
		p.Tracker.home = p
		q.trackers[at.at] = p
		q.rotation = append(q.rotation, p)
	}
	was := s.stories[at]
	delete(s.stories, at)
	if was.story != nil { // what the filter said then is said anew
		was.story.unjudged, was.story.filter = false, nil
	}
	q.recall(&was, a)
	s.numbered++
	h := &hold{place: at, session: a.Session, deliveries: a.Deliveries, since: now, until: until, fate: &fate{}}
	h.entry = p.take(s.numbered, a.origin, was)
	s.held[at], s.of[h.entry] = h, h
	switch {
	case a.foreign != nil:
		q.takeForeign(p, h, a.foreign)
	case a.verdict.skip:
		q.metrics.filtered(1)
		q.say(h, broker.ShareAccept)
		q.letGo(h)
	default:
		q.judged(p, h.entry, a.verdict)
	}
}

// Acknowledged learns what became of a word.
func (s sharer) Acknowledged(ack broker.ShareAck, until time.Time, err error) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	at := place{ack.At, ack.First}
	if ack.Word == broker.ShareRenew {
		h := q.shared.held[at]
		if h == nil || h.session != ack.Session {
			return
		}
		h.renewing = false
		if err != nil {
			q.log.Warn("an event's lock could not be renewed; it comes again", "position", h.entry.record.Position().String(), "error", err)
			q.lose(h, "its lock in Kafka could not be renewed: the event comes again")
			q.dispatch()
			return
		}
		h.until = q.since(until)
		return
	}
	key := saying{at, ack.Session}
	f := q.shared.saying[key]
	if f == nil {
		return // a gap
	}
	delete(q.shared.saying, key)
	f.done, f.failed = true, err != nil
	if err != nil {
		q.metrics.commitFailed(1)
		q.log.Warn("Kafka did not take what became of an event; it may come again", "partition", ack.At.String(), "offset", ack.First, "error", err)
	}
	q.signal()
}

// Ended learns that a broker has released all that it locked in a session, or
// what keeps events from being read.
func (s sharer) Ended(session *broker.ShareSession, err error) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if session == nil {
		if err != nil && reasonOf(q.readFailing) != err.Error() {
			q.log.Warn("reading is failing", "error", err)
		}
		q.readFailing = err
		return
	}
	for _, h := range q.shared.held {
		if h.session == session {
			q.lose(h, "the connection to Kafka that locked the event is gone: the event comes again")
		}
	}
	q.dispatch()
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// say says the last word of h. q.mu is held.
func (q *Queue) say(h *hold, word broker.ShareWord) {
	s := q.shared
	delete(s.held, h.place)
	delete(s.of, h.entry)
	s.saying[saying{h.place, h.session}] = h.fate
	s.said = h.fate
	s.consumer.Acknowledge(broker.ShareAck{Session: h.session, At: h.place.at, First: h.place.offset, Last: h.place.offset, Word: word})
}

// finishShared says that e is done; with what, its state tells. q.mu is held.
func (q *Queue) finishShared(e *entry) {
	h := q.shared.of[e]
	if h == nil {
		return
	}
	delete(q.shared.stories, h.place)
	word := broker.ShareAccept
	if e.state == burying {
		word = broker.ShareReject
	}
	q.say(h, word)
}

// letGo takes the entry of h out of its tracker, whatever its state. q.mu is held.
func (q *Queue) letGo(h *hold) {
	e := h.entry
	p := e.tracker.home
	switch e.state {
	case lent:
		q.takeBack(e)
	case ready:
		p.ready.remove(e)
	case burying:
		p.burying--
	}
	p.settle(e)
	q.signal()
}

// lose drops h, whose lock is gone: whoever has it is told. q.mu is held.
func (q *Queue) lose(h *hold, why string) {
	e := h.entry
	if e.state == lent && !e.holder.unsend(e.lease) {
		q.expired.add(e.lease)
		e.holder.revoke(e.lease, why)
	}
	delete(q.shared.held, h.place)
	delete(q.shared.of, e)
	h.fate.done, h.fate.failed = true, true
	q.letGo(h)
}

// giveBack releases h: it goes to any instance, at once. q.mu is held.
func (q *Queue) giveBack(h *hold) {
	e := h.entry
	if s := q.shared; e.story != nil || e.firstLent != 0 {
		if len(s.stories) >= storiesMost {
			clear(s.stories)
		}
		s.stories[h.place] = past{story: e.story, firstLent: e.firstLent}
	}
	q.say(h, broker.ShareRelease)
	q.letGo(h)
}

// failedShared is failed in a share group. A long wait is spent in a delay topic
// (again.go), another one here, the lock renewed; then, or at once, the event is
// released. The delivery before Kafka's
// last is the last to fail: past its limit Kafka archives without a word, and the
// one left is for an instance that is killed. q.mu is held.
func (q *Queue) failedShared(p *partition, e *entry, why string, delay time.Duration) {
	now := q.now()
	q.takeBack(e)
	h := q.shared.of[e]
	reason := ""
	switch {
	case q.options.Retry.Exhausted(e.attempt()) || q.lastDelivery(h):
		reason = reasonExhausted
	case now-e.firstLent > q.options.Retry.MaxBlock:
		reason = reasonBlocked
	}
	if reason != "" && q.budget.take() {
		q.bury(p, e, reason, why)
		return
	}
	if delay < 0 || delay == 0 && q.lastDelivery(h) {
		delay = q.options.Retry.Delay(e.attempt(), rand.Float64())
	}
	if delay > q.options.Retry.HoldLimit && q.budget.take() {
		q.shared.said = &fate{done: true} // until Kafka has the copy, it is Kafka's lock that remembers it
		q.leaveShared(p, e, now+delay, now, why)
		return
	}
	if next, ok := p.timers.next(); !ok || now+delay < next {
		q.rearm()
	}
	p.retryAt(e, now+delay, why)
	if delay == 0 || q.draining {
		q.giveBack(h)
		return
	}
	q.shared.said = &fate{done: true} // until its time, it is Kafka's lock that remembers it
}

// lastDelivery reports whether h must not be released: the next delivery is
// Kafka's last.
func (q *Queue) lastDelivery(h *hold) bool { return h.deliveries >= q.shared.limit-1 }

// dueShared ends a wait. q.mu is held.
func (q *Queue) dueShared(p *partition, e *entry) {
	h := q.shared.of[e]
	if !q.lastDelivery(h) && e.attempts > 0 { // one that the filter cannot judge yet was tried by nobody
		q.giveBack(h)
		return
	}
	p.wake(e)
}

// lockLoop renews the locks of what is held, gives back what nobody here takes,
// and gives up what Kafka's lock no longer covers.
func (q *Queue) lockLoop() {
	q.mu.Lock()
	every := min(max(q.shared.lock/10, 50*time.Millisecond), time.Second)
	q.mu.Unlock()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-ticker.C:
		case <-q.shared.wake:
		}
		q.mu.Lock()
		q.keepLocks(q.now(), every)
		q.dispatch()
		q.mu.Unlock()
	}
}

// keepLocks is one round of lockLoop. q.mu is held.
func (q *Queue) keepLocks(now, every time.Duration) {
	s := q.shared
	nobody := len(q.attachments) == 0 || q.halted()
	var renewals []broker.ShareAck
	for _, h := range s.held {
		switch lockCare(h, now, every, s.lock, nobody, q.draining, q.options.Lease) {
		case lockLost:
			q.log.Warn("Kafka's lock of an event ran out; it comes again", "position", h.entry.record.Position().String())
			q.lose(h, "Kafka's lock of the event ran out: the event comes again")
		case lockGiveBack:
			q.giveBack(h)
		case lockRenew:
			h.renewing = true
			renewals = append(renewals, broker.ShareAck{Session: h.session, At: h.place.at, First: h.place.offset, Last: h.place.offset, Word: broker.ShareRenew})
		}
	}
	if len(renewals) > 0 {
		s.consumer.Acknowledge(renewals...)
	}
}

// lockStep is what is to be done about a lock.
type lockStep uint8

const (
	lockFine lockStep = iota
	lockRenew
	lockGiveBack
	lockLost
)

// lockCare says what is to be done about h at now, when it is asked again after every.
func lockCare(h *hold, now, every, lock time.Duration, nobody, draining bool, patience time.Duration) lockStep {
	switch state := h.entry.state; {
	case now+every/2 >= h.until:
		return lockLost
	case state == ready && (nobody || now-h.since > patience), state == waiting && draining:
		return lockGiveBack
	case !h.renewing && h.until-now < 2*lock/3:
		return lockRenew
	}
	return lockFine
}

// awaitFates waits until Kafka has taken the last words; false if it refused one.
func (q *Queue) awaitFates(ctx context.Context, fates []*fate) bool {
	taken := true
	return q.await(ctx, func() bool {
		for _, f := range fates {
			if !f.done {
				return false
			}
			taken = taken && !f.failed
		}
		return true
	}) && taken
}

// ends are the ends of the partitions read, as far as known here.
func (q *Queue) ends() map[broker.TopicPartition]int64 {
	if q.consumer == nil {
		return nil
	}
	return q.consumer.Ends()
}

// lagLoop asks how far behind the group is.
func (q *Queue) lagLoop() {
	ticker := time.NewTicker(lagEvery)
	defer ticker.Stop()
	for {
		lag, err := q.askLag()
		if err == nil {
			q.mu.Lock()
			q.shared.lag = lag
			q.mu.Unlock()
		}
		select {
		case <-q.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (q *Queue) askLag() (int64, error) {
	topics := map[string]bool{}
	for _, tp := range q.shared.consumer.Partitions() {
		topics[tp.Topic] = true
	}
	lag := int64(0)
	for topic := range topics {
		positions, err := q.kafka.SharePositions(q.ctx, q.options.Group, topic)
		if err != nil {
			return 0, err
		}
		ranges, err := q.kafka.Ranges(q.ctx, topic)
		if err != nil {
			return 0, err
		}
		for p, held := range ranges {
			lag += ShareLag(positions, broker.TopicPartition{Topic: topic, Partition: p}, held)
		}
		if topic == q.shared.again {
			q.trimAgain(positions, ranges)
		}
	}
	return lag, nil
}

// ShareLag is how many events of a partition a share group has still to settle, as far as Kafka says.
func ShareLag(positions map[broker.TopicPartition]broker.SharePosition, at broker.TopicPartition, held broker.Range) int64 {
	position, ok := positions[at]
	switch {
	case !ok:
		return held.End - held.Start // it begins at the start
	case position.Lag >= 0:
		return position.Lag
	}
	return max(0, held.End-max(position.Offset, held.Start))
}
