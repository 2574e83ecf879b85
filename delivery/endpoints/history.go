package endpoints

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// query says which attempts are looked for; what is zero is not asked.
type query struct {
	eventID, webhookID, subscription string
	position                         *event.Position
	since                            time.Time
	failed                           bool
}

func (q *query) takes(a *endpoint.Attempt) bool {
	return (q.eventID == "" || a.EventID == q.eventID) &&
		(q.webhookID == "" || a.WebhookID == q.webhookID || a.BatchID == q.webhookID) &&
		(q.subscription == "" || a.Subscription == q.subscription) &&
		(q.position == nil || *q.position == event.Position{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}) &&
		(q.since.IsZero() || !a.At.Before(q.since)) &&
		(!q.failed || a.Action != endpoint.Ack.String())
}

// scan gives every attempt in the log as it stands now that q takes, in no order.
func (e *Endpoints) scan(ctx context.Context, q query, take func(endpoint.Attempt)) error {
	topic := e.options.Prefix + "attempts"
	skipped := 0
	err := scan(ctx, e.kafka, topic, q.since, func(r *event.Record) {
		a, err := endpoint.ParseAttempt(r.Value)
		if err != nil {
			skipped++
			return
		}
		if q.takes(&a) {
			take(a)
		}
	})
	if skipped > 0 {
		e.log.Warn("attempts that cannot be read are passed over", "topic", topic, "count", skipped)
	}
	if fault.Is(err, fault.UnknownTopic) {
		return nil // nothing was ever attempted
	}
	return err
}

// scan reads a topic as it stands now, from the first record at or after since.
func scan(ctx context.Context, kafka *broker.Client, topic string, since time.Time, take func(*event.Record)) error {
	ranges, err := kafka.Ranges(ctx, topic)
	if err != nil {
		return err
	}
	var from map[int32]int64
	if !since.IsZero() {
		if from, err = kafka.OffsetsAt(ctx, topic, since); err != nil {
			return err
		}
	}
	at, left := map[int32]int64{}, map[int32]int64{}
	for p, r := range ranges {
		start := max(r.Start, from[p])
		if since.IsZero() {
			start = r.Start
		} else if from[p] < 0 {
			continue // nothing is as new
		}
		if start < r.End {
			at[p], left[p] = start, r.End
		}
	}
	if len(left) == 0 {
		return nil
	}
	reader, err := kafka.NewReader(topic, at)
	if err != nil {
		return err
	}
	defer reader.Close()
	for len(left) > 0 {
		if err := ctx.Err(); err != nil {
			return fault.New(fault.DeadlineExceeded, "the log was not read to its end in time: ask for less, with since")
		}
		poll, cancel := context.WithTimeout(ctx, scanQuiet)
		n := 0
		err := reader.Poll(poll, 1000, func(r *event.Record) {
			n++
			end, open := left[r.Partition]
			if open && r.Offset < end {
				take(r)
			}
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
		quiet := n == 0 && poll.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil {
			return err
		}
		if quiet {
			return nil // the ends are markers of transactions, or holes
		}
	}
	return nil
}

// scanQuiet is how long nothing may come before the end is taken for reached.
const scanQuiet = 5 * time.Second

// latest keeps the n newest of many attempts.
type latest struct {
	n         int
	kept      []endpoint.Attempt
	truncated bool
}

func byTime(a, b endpoint.Attempt) int { return cmp.Or(a.At.Compare(b.At), a.Number-b.Number) }

func (l *latest) take(a endpoint.Attempt) {
	l.kept = append(l.kept, a)
	if len(l.kept) >= 2*l.n+100 {
		l.sorted()
	}
}

// sorted gives them, oldest first.
func (l *latest) sorted() []endpoint.Attempt {
	slices.SortFunc(l.kept, byTime)
	if over := len(l.kept) - l.n; over > 0 {
		l.truncated = true
		l.kept = append(l.kept[:0], l.kept[over:]...)
	}
	return l.kept
}
