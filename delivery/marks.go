package delivery

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"sync"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// A dead letter cannot be changed where it stands: Kafka only appends. That it was
// redriven, or purged, is therefore written down beside it, in a compacted topic
// of the subscription's own, PREFIXletters.SUBSCRIPTION. A record there, a mark,
// is written for each batch that a job has dealt with and names runs of offsets,
// so that marks are few where jobs take all, and the whole of them fits in memory:
// a page of letters is told from them without a look-up for each letter. (The
// ledger of jobs would grow with the letters, and all instances read all of it; a
// record for each letter, keyed by its position, would be as large as the letters
// are many, and be read whole for each page.)
//
// A mark's key is the batch's place and its job, so that a job that was taken over
// and does a batch again overwrites its own mark. Marks whose letters retention
// has removed are ended by the next job. A mark names the dead-letter topic by its
// id: one made anew under the same name begins without marks.

// mark says what a job did with letters of one partition.
type mark struct {
	Format    int     `json:"format"`
	Topic     string  `json:"topic_id"`
	Partition int32   `json:"partition"`
	Job       string  `json:"job"`
	Purged    bool    `json:"purged,omitempty"`
	Runs      []int64 `json:"runs"` // gap and length in turn, from 0 on
}

const (
	markFormat = 1
	// maxMark bounds the record that is read: a batch of lettersAtOnce needs some 12 KiB.
	maxMark = 1 << 20
	// maxMarkSpans bounds what is held of a subscription's marks, some 40 bytes each.
	maxMarkSpans = 1 << 20
)

// topicKey names a topic as marks do: by id, or by name where the broker gives none.
func topicKey(t broker.Topic) string {
	if t.ID == [16]byte{} {
		return t.Name
	}
	return hex.EncodeToString(t.ID[:])
}

// markRecord writes what job did with letters of a partition; spans are ascending.
func markRecord(topic string, m mark, spans []span) (*event.Record, error) {
	m.Format = markFormat
	at := int64(0)
	for _, s := range spans {
		m.Runs = append(m.Runs, s.from-at, s.to-s.from)
		at = s.to
	}
	value, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write a mark: %w", err)
	}
	kind := "redriven"
	if m.Purged {
		kind = "purged"
	}
	key := fmt.Sprintf("%s/%d/%d/%s/%s", m.Topic, m.Partition, spans[0].from, kind, m.Job)
	return &event.Record{Topic: topic, Partition: 0, Key: []byte(key), Value: value}, nil
}

// decodeMark reads what markRecord wrote.
func decodeMark(value []byte) (mark, []span, error) {
	var m mark
	if len(value) > maxMark {
		return m, nil, errors.New("it is larger than any that is written")
	}
	if err := json.Unmarshal(value, &m); err != nil {
		return m, nil, err
	}
	if m.Format > markFormat {
		return m, nil, errNewer
	}
	if m.Format < 1 || m.Partition < 0 || m.Job == "" || len(m.Runs)%2 != 0 {
		return m, nil, errors.New("it is not a mark")
	}
	var spans []span
	at := int64(0)
	for i := 0; i < len(m.Runs); i += 2 {
		gap, length := m.Runs[i], m.Runs[i+1]
		if gap < 0 || length < 1 || gap > 1<<61 || length > 1<<61 || at+gap+length > 1<<62 {
			return m, nil, errors.New("its runs are no offsets")
		}
		spans = append(spans, span{at + gap, at + gap + length})
		at += gap + length
	}
	return m, spans, nil
}

// redrivenSpan is a run of letters that a job redrove.
type redrivenSpan struct {
	span
	job string
}

// partitionMarks is what is known of one partition's letters: ascending, disjoint.
type partitionMarks struct {
	redriven []redrivenSpan // the last job has the word
	purged   []span
}

// marks is what is known of a dead-letter topic's letters.
type marks struct{ by map[int32]*partitionMarks }

// add takes a mark.
func (m *marks) add(partition int32, job string, purged bool, spans []span) {
	if m.by == nil {
		m.by = map[int32]*partitionMarks{}
	}
	p := m.by[partition]
	if p == nil {
		p = &partitionMarks{}
		m.by[partition] = p
	}
	for _, s := range spans {
		if purged {
			p.purged = addSpan(p.purged, s)
		} else {
			p.redriven = addRedriven(p.redriven, redrivenSpan{s, job})
		}
	}
}

// of tells what became of a letter: the job that redrove it last, and whether it is purged.
func (m *marks) of(partition int32, offset int64) (job string, purged bool) {
	p := m.by[partition]
	if p == nil {
		return "", false
	}
	if i := sort.Search(len(p.redriven), func(i int) bool { return p.redriven[i].to > offset }); i < len(p.redriven) && p.redriven[i].from <= offset {
		job = p.redriven[i].job
	}
	_, purged = p.purgedTo(offset)
	return job, purged
}

// purgedTo gives the end of the run of purged letters that offset is in.
func (p *partitionMarks) purgedTo(offset int64) (int64, bool) {
	if p == nil {
		return 0, false
	}
	i := sort.Search(len(p.purged), func(i int) bool { return p.purged[i].to > offset })
	if i == len(p.purged) || p.purged[i].from > offset {
		return 0, false
	}
	return p.purged[i].to, true
}

// count is how many runs are held.
func (m *marks) count() int {
	n := 0
	for _, p := range m.by {
		n += len(p.redriven) + len(p.purged)
	}
	return n
}

// addSpan joins s to the ascending, disjoint all.
func addSpan(all []span, s span) []span {
	i := sort.Search(len(all), func(i int) bool { return all[i].to >= s.from })
	k := i
	for ; k < len(all) && all[k].from <= s.to; k++ {
		s.from, s.to = min(s.from, all[k].from), max(s.to, all[k].to)
	}
	if i == k {
		all = append(all, span{})
		copy(all[i+1:], all[i:])
		all[i] = s
		return all
	}
	all[i] = s
	return append(all[:i+1], all[k:]...)
}

// addRedriven puts s over the ascending, disjoint all.
func addRedriven(all []redrivenSpan, s redrivenSpan) []redrivenSpan {
	if n := len(all); n > 0 && all[n-1].to == s.from && all[n-1].job == s.job { // the usual case
		all[n-1].to = s.to
		return all
	}
	i := sort.Search(len(all), func(i int) bool { return all[i].to > s.from })
	k := i
	var before, after []redrivenSpan
	for ; k < len(all) && all[k].from < s.to; k++ {
		if old := all[k]; old.from < s.from {
			before = append(before, redrivenSpan{span{old.from, s.from}, old.job})
		}
		if old := all[k]; old.to > s.to {
			after = append(after, redrivenSpan{span{s.to, old.to}, old.job})
		}
	}
	between := append(append(before, s), after...)
	rest := append(between, all[k:]...)
	return append(all[:i:i], rest...)
}

// markReader keeps the marks of one dead-letter topic as far as they are read.
type markReader struct {
	kafka *broker.Client
	topic string // of the marks

	reading chan struct{} // one slot
	mu      sync.Mutex
	id      [16]byte
	letters string // the dead-letter topic's key
	next    int64
	marks   marks
	own     string // a job whose marks are kept apart
	done    marks  // its
	keys    []markKey
}

// markKey is a mark's record.
type markKey struct {
	key       []byte
	partition int32
	end       int64
	letters   string // the dead-letter topic's key
}

func newMarkReader(kafka *broker.Client, prefix, subscription, own string) *markReader {
	return &markReader{kafka: kafka, topic: marksTopic(prefix, subscription), reading: make(chan struct{}, 1), own: own}
}

// marksTopic names the topic of a subscription's marks.
func marksTopic(prefix, subscription string) string {
	return topicName(prefix + "letters." + subscription)
}

// refresh reads the marks that came since the last time; letters is the key of
// the dead-letter topic.
func (r *markReader) refresh(ctx context.Context, letters string) error {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-ctx.Done():
		return fault.Of(ctx.Err())
	}
	existing, err := r.kafka.Existing(ctx, r.topic)
	if err != nil {
		return err
	}
	t, ok := existing[r.topic]
	if !ok {
		r.restart([16]byte{}, letters, 0)
		return nil
	}
	ranges, err := r.kafka.Ranges(ctx, r.topic)
	if err != nil {
		return err
	}
	if is := ranges[0]; t.ID != r.id || letters != r.letters || r.next < is.Start || r.next > is.End {
		r.restart(t.ID, letters, is.Start)
	}
	if r.next >= ranges[0].End {
		return nil
	}
	slices, err := r.kafka.NewSlices(r.topic)
	if err != nil {
		return err
	}
	defer slices.Close()
	err = slices.Read(ctx, map[int32]broker.Range{0: {Start: r.next, End: ranges[0].End}}, r.take)
	if err == nil {
		r.next = ranges[0].End
	}
	return err
}

func (r *markReader) restart(id [16]byte, letters string, next int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id, r.letters, r.next, r.marks, r.done, r.keys = id, letters, next, marks{}, marks{}, nil
}

// take takes one record of the topic.
func (r *markReader) take(record *event.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = record.Offset + 1
	if record.Value == nil {
		return nil // its letters are gone
	}
	m, spans, err := decodeMark(record.Value)
	switch {
	case errors.Is(err, errNewer):
		return fault.New(fault.NewerFormat, "%s was written by a newer Postern: ask a gateway of that version", record.Position())
	case err != nil || len(spans) == 0:
		return nil // none of ours
	}
	if r.own != "" {
		r.keys = append(r.keys, markKey{record.Key, m.Partition, spans[len(spans)-1].to, m.Topic})
	}
	if m.Topic != r.letters {
		return nil
	}
	r.marks.add(m.Partition, m.Job, m.Purged, spans)
	if r.own == m.Job {
		r.done.add(m.Partition, m.Job, m.Purged, spans)
	}
	if r.marks.count() > maxMarkSpans {
		return fault.New(fault.KafkaRefused, "more dead letters were redriven or purged one by one than a gateway keeps track of (%d): purge them without a filter, or delete topic %s to forget that they were", maxMarkSpans, r.topic)
	}
	return nil
}

// of tells what became of a letter.
func (r *markReader) of(partition int32, offset int64) (job string, purged bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marks.of(partition, offset)
}

// purgedTo gives the end of the run of purged letters that offset is in.
func (r *markReader) purgedTo(partition int32, offset int64) (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marks.by[partition].purgedTo(offset)
}

// did reports whether the reader's own job has dealt with a letter.
func (r *markReader) did(partition int32, offset int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	job, purged := r.done.of(partition, offset)
	return job != "" || purged
}

// outdated gives records that end the marks whose letters are gone: below the
// ranges of the dead-letter topic, or with a topic that there tells to exist no more.
func (r *markReader) outdated(ranges map[int32]broker.Range, there map[string]bool) []*event.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ended []*event.Record
	for _, k := range r.keys {
		if is, ok := ranges[k.partition]; !there[k.letters] || k.letters == r.letters && ok && k.end <= is.Start {
			ended = append(ended, &event.Record{Topic: r.topic, Partition: 0, Key: k.key})
		}
	}
	r.keys = nil
	return ended
}

// createMarks makes the topic of marks on first need.
func createMarks(ctx context.Context, kafka *broker.Client, name, letters string) error {
	existing, err := kafka.Existing(ctx, name)
	if _, there := existing[name]; err != nil || there {
		return err
	}
	configs, err := kafka.TopicConfigs(ctx, letters, "min.insync.replicas")
	if err != nil {
		return err
	}
	configs["cleanup.policy"] = "compact"
	configs["segment.bytes"] = strconv.Itoa(16 << 20) // a small topic: what was ended is gone soon
	return kafka.CreateTopic(ctx, name, 1, configs)
}
