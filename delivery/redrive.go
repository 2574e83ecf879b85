package delivery

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// What jobs redrive or replay to one subscription alone comes by a side topic
// too (PREFIXredrive.SUBSCRIPTION.TOPIC): whoever owns a source partition reads
// the partition of that number, lends, retries and commits as for everything
// else. Jobs write there, from any instance, and owners never do, so there are
// no fences. A job makes the topic when it first needs it; an owner that works
// already is told so, by the job's record in Kafka (Jobs.Take), and looks again.

const (
	// redriveLookAgain is the wait before another look for a redrive topic that not
	// all brokers know yet, and redriveLooks how often that is done.
	redriveLookAgain = time.Second
	redriveLooks     = 60
	// redrivenSeen is how many of a redrive partition's records are remembered, to
	// drop those that a job wrote twice: more than a job writes at once.
	redrivenSeen = 4096
)

// redrives are the redrive topics that a queue expects. Its queue's lock guards it.
type redrives struct {
	expected map[string]int // by source topic: looks left
	told     uint64         // counts the times that there was something to look for
}

// redrivenID names what a job wrote, however often it did.
type redrivenID struct {
	job, from string
	offset    int64
}

// tellRedrives tells the queue that there are redrive topics of these sources.
func (q *Queue) tellRedrives(sources []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.expect(sources)
	wake(q.lookAgain)
	q.preparing.Ask()
}

// expect notes that there are redrive topics of sources. q.mu is held, or q not yet open.
func (q *Queue) expect(sources []string) {
	if q.redrives.expected == nil {
		q.redrives.expected = map[string]int{}
	}
	for _, s := range sources {
		q.redrives.expected[s] = redriveLooks
	}
	q.redrives.told++
}

// lookForRedrives sets up the redrive partitions that are missing, and reports
// whether to look again.
func (q *Queue) lookForRedrives() (again bool) {
	q.mu.Lock()
	var todo []*partition
	told := q.redrives.told
	for _, p := range q.rotation {
		if p.side == noSide && !p.preparing && !p.revoking && p.looked != told && q.redrives.expected[p.at.Topic] > 0 {
			if p.sideOf(sideRedrive) == nil {
				todo = append(todo, p)
			} else {
				p.looked = told
			}
		}
	}
	q.mu.Unlock()
	if len(todo) == 0 {
		return false
	}
	missing, err := q.addRedrives(todo, told)
	if err != nil && q.ctx.Err() == nil {
		q.log.Warn("what was redriven cannot be read yet; trying on", "error", err)
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for source := range missing {
		if q.redrives.expected[source]--; q.redrives.expected[source] <= 0 {
			delete(q.redrives.expected, source) // somebody deleted it
			continue
		}
		again = true
	}
	return again
}

// addRedrives begins to follow the redrive partitions of ps, which it has found
// to be there, and gives the sources whose topic is not.
func (q *Queue) addRedrives(ps []*partition, told uint64) (missing map[string]bool, err error) {
	ctx, cancel := context.WithTimeout(q.ctx, moveRetryMax)
	defer cancel()
	names := map[string]string{} // by source
	var all []string
	for _, p := range ps {
		if names[p.at.Topic] == "" {
			names[p.at.Topic] = sideRedrive.topic(q.options.SidePrefix, q.options.Name, p.at.Topic)
			all = append(all, names[p.at.Topic])
		}
	}
	existing, err := q.kafka.Existing(ctx, all...)
	if err != nil {
		return nil, err
	}
	committed, err := q.kafka.Committed(ctx, q.options.Group, all...)
	if err != nil {
		return nil, err
	}
	missing = map[string]bool{}
	ranges := map[string]map[int32]broker.Range{}
	for source, name := range names {
		if _, ok := existing[name]; !ok {
			missing[source] = true
		} else if ranges[name], err = q.kafka.Ranges(ctx, name); err != nil {
			return nil, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range ps {
		if q.trackers[p.at] != p || p.revoking || missing[p.at.Topic] || p.sideOf(sideRedrive) != nil {
			continue
		}
		p.looked = told
		at := broker.TopicPartition{Topic: names[p.at.Topic], Partition: p.at.Partition}
		is, ok := ranges[at.Topic][at.Partition]
		if !ok {
			continue // the source has more partitions by now: a job that needs this one makes it, and tells
		}
		f := found{side: sideRedrive, at: at, id: existing[at.Topic].ID, offset: is.Start, end: is.End}
		if c, ok := committed[at]; ok && c.Offset >= is.Start {
			f.offset, f.metadata = c.Offset, c.Metadata
		}
		q.addSide(p, f)
	}
	return missing, nil
}

// takeRedriven offers the event origin, which stands at offset in a redrive partition. q.mu is held.
func (q *Queue) takeRedriven(p *partition, offset int64, origin *event.Record, a arrival, v verdict) {
	if offset < p.next {
		p.repeats++
		return
	}
	if p.redriven == nil {
		p.redriven = &recent[redrivenID]{most: redrivenSeen}
	}
	if v.skip || !p.redriven.add(redrivenID{a.job, a.from, origin.Offset}) {
		p.pass(offset)
		q.touch(p)
		return
	}
	e := p.take(offset, origin, past{})
	if e.state == settled {
		q.touch(p)
		return
	}
	q.judged(p, e, v)
}

// redrivenRecord writes a dead letter's event as it is redriven: its own headers,
// and how often and where from.
func redrivenRecord(l *DeadLetter, job string) *event.Record {
	r := *l.Record
	r.Headers = make([]event.Header, len(l.Record.Headers), len(l.Record.Headers)+4)
	copy(r.Headers, l.Record.Headers)
	put := func(name, value string) {
		r.Headers = append(r.Headers, event.Header{Name: name, Value: []byte(value)})
	}
	put(event.RedriveCount, strconv.Itoa(l.Redrives+1))
	put(event.RedriveFrom, l.At.String())
	put(event.RedriveOrigin, l.Origin.String())
	put(event.RedriveJob, job)
	return &r
}

// tellRedrives tells the subscription's queue, now and whenever it is opened, that
// there are redrive topics of these sources.
func (qs *Queues) tellRedrives(subscription string, sources []string) {
	if len(sources) == 0 {
		return
	}
	qs.mu.Lock()
	if qs.redrives == nil {
		qs.redrives = map[string]map[string]bool{}
	}
	if qs.redrives[subscription] == nil {
		qs.redrives[subscription] = map[string]bool{}
	}
	for _, s := range sources {
		qs.redrives[subscription][s] = true
	}
	r := qs.running[subscription]
	qs.mu.Unlock()
	if r != nil {
		r.queue.tellRedrives(sources)
	}
}

// expected are the sources of a subscription that have redrive topics. qs.mu is held.
func (qs *Queues) expected(subscription string) []string {
	var all []string
	for s := range maps.Keys(qs.redrives[subscription]) {
		all = append(all, s)
	}
	return all
}
