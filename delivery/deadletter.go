package delivery

import (
	"context"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Reason classes of a dead letter.
const (
	reasonRejected  = "rejected"
	reasonExhausted = "attempts_exhausted"
)

// Limits of the evidence: with names and the other values all of it stays below 8 KiB.
const (
	deadLetterVersion   = "1"
	maxDeadLetterDetail = 4 << 10
	deadLetterRetention = 30 * 24 * time.Hour
	// deadLetterRoom is what a dead letter may be larger than its event.
	deadLetterRoom = 64 << 10
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
	e.reason = reason
	q.unburied = append(q.unburied, e)
	wake(q.letterWake)
}

// letterLoop writes dead letters. An event counts as settled only when Kafka
// has its dead letter; until then its key waits, and when writing fails the
// line stops visibly: it is logged, counted, and tried again.
func (q *Queue) letterLoop() {
	topicKnown := false
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-q.letterWake:
		}
		if !topicKnown {
			err := q.createDeadLetterTopic()
			topicKnown = err == nil
			if err != nil {
				q.mu.Lock()
				for _, e := range q.unburied {
					q.buryLater(e, err)
				}
				q.unburied = nil
				q.mu.Unlock()
				continue
			}
		}
		q.mu.Lock()
		todo := q.unburied
		q.unburied = nil
		q.mu.Unlock()
		for _, e := range todo {
			q.writeDeadLetter(e)
		}
	}
}

// createDeadLetterTopic makes the topic on first need, as durable as its source and with room for the evidence.
func (q *Queue) createDeadLetterTopic() error {
	ctx, cancel := context.WithTimeout(q.ctx, deadLetterRetry)
	defer cancel()
	if _, err := q.kafka.Topics(ctx, q.options.DeadLetterTopic); !fault.Is(err, fault.UnknownTopic) {
		return err
	}
	configs, err := q.kafka.TopicConfigs(ctx, q.options.Topics[0], "min.insync.replicas", "max.message.bytes")
	if err != nil {
		return err
	}
	configs["cleanup.policy"] = "delete"
	configs["retention.ms"] = strconv.FormatInt(deadLetterRetention.Milliseconds(), 10)
	if most, err := strconv.Atoi(configs["max.message.bytes"]); err == nil {
		configs["max.message.bytes"] = strconv.Itoa(most + deadLetterRoom)
	}
	if err := q.kafka.CreateTopic(ctx, q.options.DeadLetterTopic, 0, configs); err != nil {
		return err
	}
	q.log.Info("dead-letter topic created", "topic", q.options.DeadLetterTopic)
	return nil
}

func (q *Queue) writeDeadLetter(e *entry) {
	q.mu.Lock()
	p := q.trackers[e.partition()]
	if p == nil || p.Tracker != e.tracker || e.state != burying {
		q.mu.Unlock()
		return // the partition is somebody else's now, who delivers the event again
	}
	record := e.record
	l := letter{reason: e.reason, detail: e.failure, attempts: int(e.attempts), last: time.Now(), subscription: q.options.Name}
	if e.firstLent > 0 {
		l.first = q.start.Add(e.firstLent)
	}
	q.mu.Unlock()
	q.letters.Produce(deadLetter(q.options.DeadLetterTopic, record, l), broker.AllReplicas, func(at event.Position, err error) {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.trackers[p.at] != p || e.state != burying {
			return
		}
		if err != nil {
			q.buryLater(e, err)
			return
		}
		q.metrics.deadLettered(l.reason, 1)
		q.log.Info("event dead-lettered", "position", record.Position().String(), "reason", l.reason,
			"detail", excerpt(l.detail, 256), "attempts", l.attempts, "dead_letter", at.String())
		p.burying--
		q.touch(p)
		p.settle(e)
		q.dispatch()
		q.checkRoom()
		q.signal()
	})
}

// buryLater tries again after a while. q.mu is held.
func (q *Queue) buryLater(e *entry, err error) {
	p := q.trackers[e.partition()]
	if p == nil || p.Tracker != e.tracker {
		return
	}
	q.metrics.deadLetterFailed(1)
	q.log.Error(fmt.Sprintf("writing a dead letter to %s is failing; its key is stopped until that works", q.options.DeadLetterTopic),
		"position", e.record.Position().String(), "error", err)
	e.buryTries = min(e.buryTries+1, 6)
	e.due = q.now() + min(time.Second<<(e.buryTries-1), deadLetterRetry)
	p.timers.set(e)
	q.rearm()
}
