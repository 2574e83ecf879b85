package delivery

import (
	"context"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Reason classes of a dead letter.
const (
	reasonRejected    = "rejected"
	reasonExhausted   = "attempts_exhausted"
	reasonBlocked     = "blocked_too_long"
	reasonUndecodable = "undecodable"
	reasonFilter      = "filter_error"
)

// Limits of the evidence: with names and the other values all of it stays below 8 KiB.
const (
	deadLetterVersion   = "1"
	maxDeadLetterDetail = 4 << 10
	deadLetterRetention = 30 * 24 * time.Hour
)

// letter is what a dead letter says beyond the event itself.
type letter struct {
	reason, detail string
	attempts       int
	first, last    time.Time // first: zero when this owner did not see it
	subscription   string
}

// deadLetter writes r for the dead-letter topic: key, value and headers as
// they are, the evidence appended. It goes wherever its key goes.
func deadLetter(topic string, r *event.Record, l letter) *event.Record {
	d := *r
	d.Topic, d.Partition, d.Offset, d.Timestamp = topic, event.AnyPartition, -1, time.Time{}
	d.Headers = make([]event.Header, len(r.Headers), len(r.Headers)+12)
	copy(d.Headers, r.Headers)
	put := func(name, value string) {
		d.Headers = append(d.Headers, event.Header{Name: name, Value: []byte(value)})
	}
	put(event.DeadLetterVersion, deadLetterVersion)
	put(event.DeadLetterReason, l.reason)
	put(event.DeadLetterDetail, excerpt(l.detail, maxDeadLetterDetail))
	put(event.DeadLetterAttempts, strconv.Itoa(l.attempts))
	if !l.first.IsZero() {
		put(event.DeadLetterFirstAttempt, l.first.UTC().Format(time.RFC3339Nano))
	}
	put(event.DeadLetterLastAttempt, l.last.UTC().Format(time.RFC3339Nano))
	put(event.DeadLetterSubscription, l.subscription)
	put(event.DeadLetterTopic, r.Topic)
	put(event.DeadLetterPartition, strconv.Itoa(int(r.Partition)))
	put(event.DeadLetterOffset, strconv.FormatInt(r.Offset, 10))
	put(event.DeadLetterTimestamp, r.Timestamp.UTC().Format(time.RFC3339Nano))
	return &d
}

// excerpt cuts text to at most n bytes at a character's edge.
func excerpt(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// bury sends e to the dead letters. q.mu is held.
func (q *Queue) bury(p *partition, e *entry, reason, why string) {
	p.bury(e, why)
	p.burying++
	if p.shared != nil {
		p.shared.said = p.shared.of[e].fate
	}
	e.story.reason = reason
	switch reason {
	case reasonFilter:
		q.filterError = q.filterError.again(why)
	case reasonUndecodable:
		q.undecoded = q.undecoded.again(why)
	}
	q.unburied = append(q.unburied, e)
	q.lettering.Ask()
}

// again is e once more.
func (e *lastError) again(text string) *lastError {
	n := int64(1)
	if e != nil {
		n += e.count
	}
	return &lastError{excerpt(text, 256), n, time.Now()}
}

// doLettering writes dead letters. An event counts as settled only when Kafka
// has its dead letter; until then its key waits, and when writing fails the
// line stops visibly: it is logged, counted, and tried again.
func (q *Queue) doLettering() {
	if !q.letterTopic {
		if err := q.createDeadLetterTopic(); err != nil {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.letterFailing = err
			for _, e := range q.unburied {
				q.buryLater(e, err)
			}
			q.unburied = nil
			return
		}
		q.letterTopic = true
	}
	for q.writeDeadLetters() {
	}
}

// sourceTopic is one of the topics that are read.
func (q *Queue) sourceTopic() string {
	if len(q.options.Topics) > 0 {
		return q.options.Topics[0]
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for tp, p := range q.trackers {
		if p.side == noSide {
			return tp.Topic
		}
	}
	return ""
}

// lettersAtOnce and letterBytesAtOnce bound the dead letters written together.
const (
	lettersAtOnce     = 500
	letterBytesAtOnce = 4 << 20
)

// writeDeadLetters writes some of what waits, and reports whether there is more.
func (q *Queue) writeDeadLetters() (more bool) {
	var todo []*entry
	var records []*event.Record
	now, bytes := time.Now(), 0
	q.mu.Lock()
	for len(q.unburied) > 0 && len(todo) < lettersAtOnce && bytes < letterBytesAtOnce {
		e := q.unburied[0]
		q.unburied = q.unburied[1:]
		if !q.still(e, burying) {
			continue // the partition is somebody else's now, who delivers the event again
		}
		l := letter{reason: e.story.reason, detail: e.failure(), attempts: e.attempt(), last: now, subscription: q.options.Name}
		if e.firstLent != 0 {
			l.first = q.start.Add(e.firstLent)
		}
		todo = append(todo, e)
		records = append(records, deadLetter(q.options.DeadLetterTopic, e.record, l))
		bytes += int(e.size)
	}
	more = len(q.unburied) > 0
	q.mu.Unlock()
	if len(todo) == 0 {
		return more
	}
	at, errs := q.mover.Move(q.ctx, records)
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, e := range todo {
		if !q.still(e, burying) {
			continue
		}
		if errs[i] != nil {
			q.buryLater(e, errs[i])
			continue
		}
		p := e.tracker.home
		q.letterFailing = nil
		q.metrics.deadLettered(e.story.reason, 1)
		q.log.Info("event dead-lettered", "position", e.record.Position().String(), "reason", e.story.reason,
			"detail", excerpt(e.failure(), 256), "attempts", e.attempt(), "dead_letter", at[i].String())
		p.burying--
		q.touch(p)
		q.settle(p, e)
	}
	q.dispatch()
	q.checkRoom()
	q.signal()
	return more
}

// still reports whether e is still ours and what it was. q.mu is held.
func (q *Queue) still(e *entry, was state) bool {
	p := e.tracker.home
	return q.trackers[p.at] == p && e.state == was
}

// createDeadLetterTopic makes the topic on first need, as durable as its source and with room for the evidence.
func (q *Queue) createDeadLetterTopic() error {
	ctx, cancel := context.WithTimeout(q.ctx, deadLetterRetry)
	defer cancel()
	if _, err := q.kafka.Topics(ctx, q.options.DeadLetterTopic); !fault.Is(err, fault.UnknownTopic) {
		return err
	}
	configs, err := q.kafka.TopicConfigs(ctx, q.sourceTopic(), "min.insync.replicas")
	if err != nil {
		return err
	}
	configs["cleanup.policy"] = "delete"
	configs["retention.ms"] = strconv.FormatInt(deadLetterRetention.Milliseconds(), 10)
	// The event may have been compressed in its source, and has the evidence beside it.
	configs["max.message.bytes"] = strconv.Itoa(trackerBytes)
	if err := q.kafka.CreateTopic(ctx, q.options.DeadLetterTopic, 0, configs); err != nil {
		return err
	}
	q.log.Info("dead-letter topic created", "topic", q.options.DeadLetterTopic)
	return nil
}

// buryLater tries again after a while. q.mu is held.
func (q *Queue) buryLater(e *entry, err error) {
	p := e.tracker.home
	if !q.still(e, burying) {
		return
	}
	q.letterFailing = err
	q.metrics.deadLetterFailed(1)
	q.log.Error(fmt.Sprintf("writing a dead letter to %s is failing; its key is stopped until that works", q.options.DeadLetterTopic),
		"position", e.record.Position().String(), "error", err)
	e.story.buryTries = min(e.story.buryTries+1, 6)
	e.due = q.now() + min(time.Second<<(e.story.buryTries-1), deadLetterRetry)
	p.timers.set(e)
	q.rearm()
}
