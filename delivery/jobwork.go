package delivery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// What each kind of job looks at, chooses and does.

func ranges(partition int32, from, to int64) map[int32]broker.Range {
	return map[int32]broker.Range{partition: {Start: from, End: to}}
}

// plan says what there is to look at, once for the whole job.
func (r *jobRun) plan(ctx context.Context) error {
	if r.s.Planned {
		return nil
	}
	var plan []storedSlice
	var err error
	if r.s.Asked.Kind == JobReplay {
		plan, err = r.planReplay(ctx)
	} else {
		plan, err = r.planLetters(ctx)
	}
	if err != nil {
		return err
	}
	total := int64(0)
	for _, slice := range plan {
		total += slice.To - slice.From
	}
	r.progress(func(s *storedJob) { s.Planned, s.Plan, s.Total = true, plan, total })
	return nil
}

func (r *jobRun) planLetters(ctx context.Context) ([]storedSlice, error) {
	topic := r.s.Of.DeadLetterTopic
	existing, err := r.jobs.queues.kafka.Existing(ctx, topic)
	if _, there := existing[topic]; err != nil || !there {
		return nil, err // nothing ever died
	}
	all, err := planLetters(ctx, r.jobs.queues.kafka, topic, &r.s.Asked.Filter)
	if err != nil {
		return nil, err
	}
	var plan []storedSlice
	for partition, stretches := range all {
		for _, is := range stretches {
			plan = append(plan, storedSlice{topic, partition, is.Start, is.End})
		}
	}
	sortPlan(plan)
	return plan, nil
}

// planReplay gives the slices of the subscription's topics from a time to another,
// or to the position where that comes first: what lies behind it is delivered anyhow.
func (r *jobRun) planReplay(ctx context.Context) ([]storedSlice, error) {
	kafka, asked := r.jobs.queues.kafka, r.s.Asked.Replay
	topics := asked.Topics
	if len(topics) == 0 {
		var err error
		if topics, err = r.topics(ctx); err != nil {
			return nil, err
		}
	}
	positions, err := r.positions(ctx, topics)
	if err != nil {
		return nil, err
	}
	var plan []storedSlice
	for _, topic := range topics {
		all, err := kafka.Ranges(ctx, topic)
		if err != nil {
			return nil, err
		}
		from, err := kafka.OffsetsAt(ctx, topic, asked.After)
		if err != nil {
			return nil, err
		}
		var to map[int32]int64
		if !asked.Before.IsZero() {
			if to, err = kafka.OffsetsAt(ctx, topic, asked.Before); err != nil {
				return nil, err
			}
		}
		for partition, is := range all {
			position, ok := positions[broker.TopicPartition{Topic: topic, Partition: partition}]
			if !ok {
				continue // nothing of it was ever delivered
			}
			slice := storedSlice{topic, partition, max(is.Start, from[partition]), min(is.End, position)}
			if to != nil {
				slice.To = min(slice.To, to[partition])
			}
			if slice.From < slice.To {
				plan = append(plan, slice)
			}
		}
	}
	sortPlan(plan)
	return plan, nil
}

// positions gives where the subscription stands: below, all is settled. Of a share
// group that has nothing left in a partition that is its end: Kafka moves the position
// itself only with the next word.
func (r *jobRun) positions(ctx context.Context, topics []string) (map[broker.TopicPartition]int64, error) {
	kafka, group, at := r.jobs.queues.kafka, r.s.Of.Group, map[broker.TopicPartition]int64{}
	if r.s.Of.Queue {
		shared, err := kafka.SharePositions(ctx, group, topics...)
		for tp, position := range shared {
			if at[tp] = position.Offset; position.Lag == 0 {
				at[tp] = math.MaxInt64
			}
		}
		return at, err
	}
	committed, err := kafka.Committed(ctx, group, topics...)
	for tp, position := range committed {
		at[tp] = position.Offset
	}
	return at, err
}

// of are the subscription's options, as far as a job needs them.
func (r *jobRun) of() Options {
	of := r.s.Of
	return Options{Name: r.s.Subscription, Group: of.Group, Topics: of.Topics, TopicsPattern: of.TopicsPattern, DeadLetterTopic: of.DeadLetterTopic}
}

// topics lists what the subscription reads now.
func (r *jobRun) topics(ctx context.Context) ([]string, error) {
	of := r.of()
	if of.TopicsPattern == "" {
		return of.Topics, nil
	}
	all, err := r.jobs.queues.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range all {
		if of.Reads(t.Name) && !t.Internal {
			names = append(names, t.Name)
		}
	}
	return names, nil
}

func sortPlan(plan []storedSlice) {
	slices.SortFunc(plan, func(a, b storedSlice) int {
		switch {
		case a.Topic != b.Topic:
			return bytes.Compare([]byte(a.Topic), []byte(b.Topic))
		case a.Partition != b.Partition:
			return int(a.Partition - b.Partition)
		case a.From < b.From:
			return -1
		}
		return 1
	})
}

// refreshMarks reads what was done before, by this job and others, and ends the
// marks whose letters are gone.
func (r *jobRun) refreshMarks(ctx context.Context) error {
	kafka := r.jobs.queues.kafka
	all, err := kafka.Topics(ctx)
	if err != nil {
		return err
	}
	there, keys := map[string]bool{}, map[string]string{}
	for _, t := range all {
		there[topicKey(t)], keys[t.Name] = true, topicKey(t)
	}
	if r.s.Asked.Kind == JobReplay {
		r.replays = map[string]*markReader{}
		for _, slice := range r.s.Plan {
			if r.replays[slice.Topic] != nil {
				continue
			}
			reader := newMarkReader(kafka, r.jobs.queues.prefix, r.s.Subscription, r.s.ID)
			if err := reader.refresh(ctx, keys[slice.Topic]); err != nil {
				return err
			}
			r.replays[slice.Topic] = reader
		}
		return nil
	}
	if keys[r.s.Of.DeadLetterTopic] == "" {
		return nil // nothing ever died
	}
	if err := r.marks.refresh(ctx, keys[r.s.Of.DeadLetterTopic]); err != nil {
		return err
	}
	if r.s.Asked.DryRun {
		return nil
	}
	is, err := kafka.Ranges(ctx, r.s.Of.DeadLetterTopic)
	if err != nil {
		return err
	}
	if ended := r.marks.outdated(is, there); len(ended) > 0 {
		_, errs := r.jobs.queues.mover.Move(ctx, ended)
		return errors.Join(errs...)
	}
	return nil
}

// choose decides about a record; nil for one that is left alone.
func (r *jobRun) choose(ctx context.Context, record *event.Record) (*chosen, error) {
	asked := &r.s.Asked
	if asked.Kind == JobReplay {
		return r.chooseReplay(ctx, record)
	}
	l, died := letterOf(record)
	if died != "" && died != r.s.Subscription || !asked.Filter.matches(&l) {
		return nil, nil
	}
	job, purged := r.marks.of(record.Partition, record.Offset)
	switch {
	case r.marks.did(record.Partition, record.Offset): // before it was taken over
		r.pending.matched++
		r.pending.done++
		return nil, nil
	case purged, job != "" && !asked.Filter.IncludeRedriven:
		return nil, nil
	}
	r.pending.matched++
	c := &chosen{at: record.Position(), letter: &l}
	if asked.Kind == JobPurge {
		return c, nil
	}
	partitions := 0
	if l.hasOrigin() && r.of().Reads(l.Origin.Topic) {
		var err error
		if partitions, err = r.partitionsOf(ctx, l.Origin.Topic); err != nil {
			return nil, err
		}
	}
	// One that others wrote has no origin, and one of a topic that the subscription
	// does not read (any more) has nobody to deliver it.
	if partitions == 0 || l.Redrives >= asked.MaxRedrives {
		r.pending.skipped++
		return nil, nil
	}
	c.record = redrivenRecord(&l, r.s.ID)
	if asked.ToTopic {
		c.record.Offset, c.record.Timestamp = -1, time.Time{} // now: the topic's retention begins anew
		if int(c.record.Partition) >= partitions {
			c.record.Partition = event.AnyPartition
		}
		return c, nil
	}
	c.record = r.aside(c.record, partitions, fmt.Sprintf("%d-%d", record.Partition, record.Offset))
	return c, nil
}

// chooseReplay is choose for a replay.
func (r *jobRun) chooseReplay(ctx context.Context, record *event.Record) (*chosen, error) {
	if asked := r.s.Asked.Replay; asked.HasKey && (record.Key == nil || !bytes.Equal(asked.Key, record.Key)) {
		return nil, nil
	}
	r.pending.matched++
	if r.replays[record.Topic].did(record.Partition, record.Offset) {
		r.pending.done++
		return nil, nil
	}
	partitions, err := r.partitionsOf(ctx, record.Topic)
	if err != nil {
		return nil, err
	}
	return &chosen{at: record.Position(), record: r.aside(record, max(partitions, int(record.Partition)+1), "")}, nil
}

// aside writes an event for the subscription's redrive topic, or, of a share group,
// for its again topic.
func (r *jobRun) aside(record *event.Record, partitions int, from string) *event.Record {
	if r.s.Of.Queue {
		return moved(againTopic(r.jobs.queues.prefix, r.s.Subscription), event.AnyPartition, record, arrival{timestamp: time.Now(), job: r.s.ID, from: from})
	}
	name := sideRedrive.topic(r.jobs.queues.prefix, r.s.Subscription, record.Topic)
	return moved(name, record.Partition%int32(partitions), record, arrival{timestamp: time.Now(), job: r.s.ID, from: from})
}

// partitionsOf tells how many partitions a topic has; 0 when there is no such topic.
func (r *jobRun) partitionsOf(ctx context.Context, topic string) (int, error) {
	if n, known := r.sources[topic]; known {
		return n, nil
	}
	existing, err := r.jobs.queues.kafka.Existing(ctx, topic)
	if err != nil {
		return 0, err
	}
	r.sources[topic] = len(existing[topic].Partitions)
	return r.sources[topic], nil
}

// do deals with a batch: writes what is to be written, then marks.
func (r *jobRun) do(ctx context.Context, batch []chosen) error {
	if r.s.Asked.Kind == JobPurge {
		if err := r.mark(ctx, batch, true); err != nil {
			return err
		}
		r.pending.done += int64(len(batch))
		return nil
	}
	if !r.s.Asked.ToTopic {
		for i := range batch {
			source := batch[i].at.Topic
			if batch[i].letter != nil {
				source = batch[i].letter.Origin.Topic
			}
			if err := r.prepareSide(ctx, source, batch[i].record); err != nil {
				return err
			}
		}
	}
	written, refused, err := r.write(ctx, batch)
	if len(written) > 0 {
		// What is there is marked also when the rest has to be tried again.
		if marking := r.mark(ctx, written, false); marking != nil {
			return marking
		}
	}
	if err != nil {
		return err
	}
	r.pending.done += int64(len(written))
	r.pending.refused += int64(refused)
	return nil
}

// write writes a batch, in order. What Kafka refuses for good is left out; an error
// is of the others.
func (r *jobRun) write(ctx context.Context, batch []chosen) (written []chosen, refused int, err error) {
	records := make([]*event.Record, len(batch))
	for i := range batch {
		records[i] = batch[i].record
	}
	_, errs := r.jobs.queues.mover.Move(ctx, records)
	for i := range batch {
		why := errs[i]
		if unfit(why) && len(batch) > 1 { // perhaps not itself, but one beside it
			_, again := r.jobs.queues.mover.Move(ctx, records[i:i+1])
			why = again[0]
		}
		switch {
		case why == nil:
			written = append(written, batch[i])
		case unfit(why):
			refused++
			r.jobs.log.Warn("an event is refused by Kafka and left where it is", "job", r.s.ID, "event", batch[i].at.String(), "error", why)
			r.progress(func(s *storedJob) { s.fail(why) })
		case r.s.Asked.Kind == JobReplay:
			return written, refused, why // its mark says up to where
		case err == nil:
			err = why // nothing behind it in its partition is there either (broker.Mover)
		}
	}
	return written, refused, err
}

// unfit reports whether Kafka will never take the record.
func unfit(err error) bool {
	kind := fault.KindOf(err)
	return err != nil && (kind == fault.KindTooLarge || kind == fault.KindInvalid)
}

// prepareSide makes the redrive topic of source, if it is not there with the
// partition that record goes to, and tells owners to look for it.
func (r *jobRun) prepareSide(ctx context.Context, source string, record *event.Record) error {
	if max(0, int(record.Partition)) < r.sides[source] {
		return nil
	}
	kafka := r.jobs.queues.kafka
	if r.s.Of.Queue {
		if err := createAgain(ctx, kafka, record.Topic, source); err != nil {
			return err
		}
		r.sides[source] = 1
	} else {
		partitions, created, err := createSide(ctx, kafka, record.Topic, source, int(record.Partition)+1)
		if err != nil {
			return err
		}
		if created {
			r.jobs.log.Info("topic for redriven events created", "topic", record.Topic, "partitions", partitions)
		}
		if r.sides[source], err = awaitTopic(ctx, kafka, record.Topic, partitions); err != nil {
			return err
		}
	}
	r.progress(func(s *storedJob) {
		if !slices.Contains(s.Sides, source) {
			s.Sides = append(s.Sides, source)
		}
	})
	r.jobs.queues.tellRedrives(r.s.Subscription, []string{source}) // others learn it from the progress
	return nil
}

// awaitTopic waits until a topic just made is known, and gives its partitions.
func awaitTopic(ctx context.Context, kafka *broker.Client, name string, partitions int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, moveRetryMax)
	defer cancel()
	for {
		existing, err := kafka.Existing(ctx, name)
		if err != nil {
			return 0, err
		}
		if n := len(existing[name].Partitions); n >= partitions {
			return n, nil
		}
		select {
		case <-time.After(sideTopicPause):
		case <-ctx.Done():
			return 0, fault.New(fault.BrokerUnavailable, "topic %s is not there yet", name)
		}
	}
}

// mark writes down what was done with the batch.
func (r *jobRun) mark(ctx context.Context, batch []chosen, purged bool) error {
	name := marksTopic(r.jobs.queues.prefix, r.s.Subscription)
	if !r.marked {
		if err := createMarks(ctx, r.jobs.queues.kafka, name, batch[0].at.Topic); err != nil {
			return err
		}
		if _, err := awaitTopic(ctx, r.jobs.queues.kafka, name, 1); err != nil {
			return err
		}
		r.marked = true
	}
	m := mark{Topic: r.marks.letters, Partition: batch[0].at.Partition, Job: r.s.ID, Purged: purged}
	var record *event.Record
	var err error
	if r.s.Asked.Kind == JobReplay {
		m.Topic = r.replays[batch[0].at.Topic].letters
		// All up to here, under one key: it is overwritten as the replay goes on.
		record, err = markRecord(name, m, []span{{r.s.Plan[r.s.At].From, batch[len(batch)-1].at.Offset + 1}})
	} else {
		var spans []span
		for i := range batch {
			spans = addSpan(spans, span{batch[i].at.Offset, batch[i].at.Offset + 1})
		}
		record, err = markRecord(name, m, spans)
	}
	if err != nil {
		return err
	}
	_, errs := r.jobs.queues.mover.Move(ctx, []*event.Record{record})
	return errs[0]
}

// endReplayMarks takes a replay's marks away: they are nothing to anybody but its runner.
func (r *jobRun) endReplayMarks(ctx context.Context) error {
	name := marksTopic(r.jobs.queues.prefix, r.s.Subscription)
	var ended []*event.Record
	for _, slice := range r.s.Plan {
		m := mark{Topic: r.replays[slice.Topic].letters, Partition: slice.Partition, Job: r.s.ID}
		record, err := markRecord(name, m, []span{{slice.From, slice.To}})
		if err != nil {
			return err
		}
		record.Value = nil
		ended = append(ended, record)
	}
	existing, err := r.jobs.queues.kafka.Existing(ctx, name)
	if _, there := existing[name]; err != nil || !there || len(ended) == 0 {
		return err
	}
	_, errs := r.jobs.queues.mover.Move(ctx, ended)
	return errors.Join(errs...)
}

// errFound ends a search.
var errFound = errors.New("found")

// removePurged lets Kafka remove the letters of each partition up to the first
// that is not purged.
func (r *jobRun) removePurged(ctx context.Context) error {
	topic, kafka := r.s.Of.DeadLetterTopic, r.jobs.queues.kafka
	if len(r.s.Plan) == 0 {
		return nil
	}
	if err := r.marks.refresh(ctx, r.marks.letters); err != nil {
		return err
	}
	all, err := kafka.Ranges(ctx, topic)
	if err != nil {
		return err
	}
	reader, err := kafka.NewSlices(topic)
	if err != nil {
		return err
	}
	defer reader.Close()
	remove := map[broker.TopicPartition]int64{}
	for partition, is := range all {
		at := is.Start
		for at < is.End {
			if to, purged := r.marks.purgedTo(partition, at); purged {
				at = min(to, is.End)
				continue
			}
			next := is.End // nothing but what compaction and transactions leave
			err := reader.Read(ctx, ranges(partition, at, is.End), func(record *event.Record) error {
				next = record.Offset
				return errFound
			})
			if err != nil && !errors.Is(err, errFound) {
				return err
			}
			if next == at {
				break
			}
			if _, purged := r.marks.purgedTo(partition, next); next < is.End && !purged {
				break
			}
			at = next
		}
		if at > is.Start {
			remove[broker.TopicPartition{Topic: topic, Partition: partition}] = at
		}
	}
	if len(remove) == 0 {
		return nil
	}
	if err := kafka.DeleteBefore(ctx, remove); err != nil {
		f := fault.Of(err)
		return fault.New(f.Reason, "the dead letters are purged and not shown any more, but their bytes stay in %s: %w", topic, err)
	}
	return nil
}
