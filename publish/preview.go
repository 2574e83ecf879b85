package publish

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Preview says what publishing an event would do, or why it would fail.
type Preview struct {
	Rule      string        // the match of the topic rule that applies; "" for none
	Record    *event.Record // as it would be stored; its Partition is AnyPartition when the producer would choose
	How       broker.How
	Rewritten bool // the record's value is not the event's data
	Err       error
}

// Preview checks a request as Publish does, asks Kafka for its topics, and
// stores nothing.
func (p *Publisher) Preview(ctx context.Context, who authz.Identity, request Request) ([]Preview, error) {
	if err := p.admit(ctx, who, &request); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.MaxWait)
	defer cancel()
	previews := make([]Preview, len(request.Events))
	counts := map[string]int32{}
	failed := false
	for i := range request.Events {
		e := &request.Events[i]
		data := e.Data
		record := &event.Record{}
		r := p.rules.of(e.Topic)
		err := p.record(ctx, record, e, r, request.Atomic)
		if name, ok := p.dedupeKey(who, e); ok && err == nil && !request.Atomic &&
			p.window.peek(name, p.contentOf(e, record, request.Durability), time.Now()) == isOther {
			err = reused(e.Topic)
		}
		if err == nil {
			err = p.place(ctx, record, counts)
		}
		previews[i] = Preview{Rule: r.match, Record: record, How: r.how(request.Durability), Err: err}
		if request.Atomic {
			previews[i].How = broker.How{Durability: broker.AllReplicas}
		}
		previews[i].Rewritten = err == nil && !bytes.Equal(record.Value, data)
		failed = failed || err != nil
	}
	if request.Atomic && failed {
		for i := range previews {
			if previews[i].Err == nil {
				previews[i].Err = broker.Aborted()
			}
		}
	}
	return previews, nil
}

// place finds the partition that r would go to.
func (p *Publisher) place(ctx context.Context, r *event.Record, counts map[string]int32) error {
	n, ok := counts[r.Topic]
	if !ok {
		var err error
		if n, err = p.topics.Partitions(ctx, r.Topic); err != nil {
			return err
		}
		counts[r.Topic] = n
	}
	if n > 0 && r.Partition >= n {
		return fault.New(fault.UnknownPartition, "topic %s has no partition %d: leave the partition out or choose one below %d", r.Topic, r.Partition, n).
			With("topic", r.Topic).With("partition", fmt.Sprint(r.Partition))
	}
	if r.Partition == event.AnyPartition {
		r.Partition = broker.PartitionOf(r.Key, n)
	}
	return nil
}
