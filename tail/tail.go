// Package tail owns reading a topic without a group and without settling:
// resumable cursors, the gRPC Tail, the topic's HTTP route, and the service
// Topics. Events that must be settled are package subscribe's.
package tail

import (
	"context"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Start is where a tail begins: at Cursor if it is not nil, at Time if it is
// not zero, at the start if Earliest, else at the end.
type Start struct {
	Cursor   Cursor
	Time     time.Time
	Earliest bool
}

// Missed is a range of offsets that retention removed before it was read.
type Missed struct {
	Partition int32
	From, To  int64
}

// Reader reads one topic on from its cursor. Not for concurrent use.
type Reader struct {
	kafka  *broker.Client
	topic  string
	reader *broker.Reader
	cursor Cursor
	grown  time.Time // when partitions were last looked for
}

// growthInterval is how often a tail looks for new partitions.
const growthInterval = 30 * time.Second

// pollEvents bounds one batch; its bytes are bounded by the reader's fetch.
const pollEvents = 500

// Open begins to read topic.
func Open(ctx context.Context, kafka *broker.Client, topic string, from Start) (*Reader, error) {
	ranges, err := kafka.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	var at map[int32]int64
	if !from.Time.IsZero() && from.Cursor == nil {
		if at, err = kafka.OffsetsAt(ctx, topic, from.Time); err != nil {
			return nil, err
		}
	}
	cursor := Cursor{}
	for p, r := range ranges {
		switch {
		case from.Cursor != nil:
			offset, known := from.Cursor[p]
			if !known {
				offset = r.Start
			}
			if offset > r.End {
				return nil, fault.New(fault.InvalidCursor,
					"the cursor stands at offset %d of %s[%d], which ends at %d: the topic was made anew; start without it", offset, topic, p, r.End)
			}
			cursor[p] = offset
		case at != nil:
			cursor[p] = at[p]
		case from.Earliest:
			cursor[p] = r.Start
		default:
			cursor[p] = r.End
		}
	}
	reader, err := kafka.NewReader(topic, cursor)
	if err != nil {
		return nil, err
	}
	return &Reader{kafka: kafka, topic: topic, reader: reader, cursor: cursor, grown: time.Now()}, nil
}

// Next waits for events until ctx ends; then there are none and no error.
func (r *Reader) Next(ctx context.Context) ([]*event.Record, error) {
	var records []*event.Record
	if time.Since(r.grown) >= growthInterval {
		if err := r.grow(ctx); err != nil && ctx.Err() == nil {
			return records, err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, growthInterval)
	defer cancel()
	err := r.reader.Poll(bounded, pollEvents, func(record *event.Record) {
		next := r.cursor[record.Partition]
		if record.Offset < next {
			return // a leader move may repeat offsets
		}
		records = append(records, record)
	})
	return records, err
}

// Advance moves the cursor past record.
func (r *Reader) Advance(record *event.Record) { r.cursor[record.Partition] = record.Offset + 1 }

// Cursor tells where r stands, after what Advance has passed.
func (r *Reader) Cursor() Cursor { return r.cursor }

// grow begins to read partitions that appeared, at their start.
func (r *Reader) grow(ctx context.Context) error {
	r.grown = time.Now()
	topics, err := r.kafka.Topics(ctx, r.topic)
	if err != nil {
		return err
	}
	for _, t := range topics {
		for _, p := range t.Partitions {
			if _, known := r.cursor[p]; !known {
				r.cursor[p] = 0
				r.reader.Add(p, 0)
			}
		}
	}
	return nil
}

// CheckMissed reports, once at the beginning, what retention has removed
// between the cursor and the log's start, and moves the cursor there.
func (r *Reader) CheckMissed(ctx context.Context) ([]Missed, error) {
	ranges, err := r.kafka.Ranges(ctx, r.topic)
	if err != nil {
		return nil, err
	}
	var missed []Missed
	for p, at := range r.cursor {
		if s := ranges[p].Start; at < s {
			missed = append(missed, Missed{p, at, s})
			r.cursor[p] = s
		}
	}
	return missed, nil
}

// Close ends the reading.
func (r *Reader) Close() { r.reader.Close() }

// allowed checks who may tail topic.
func allowed(ctx context.Context, policy authz.Policy, topic string) (string, error) {
	name, err := event.ParseTopic(topic)
	if err != nil {
		return "", fault.New(fault.InvalidTopic, "%w", err).Field("topic", "%v", err)
	}
	return name, policy.Check(authz.FromContext(ctx), authz.Tail, name)
}
