package delivery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Letters shows dead letters.
//
// A page merges the dead-letter topic's partitions by the time at which Kafka took
// the letters: each partition is a column that is read a stretch at a time, from
// its end backwards or from its start, and the column whose next letter is newest
// (or oldest) gives it. Within a partition the order is Kafka's, whatever the
// clocks said. What a page may read is bounded in records, bytes and time: one that
// has used that up is short, and its token says how far each column was looked at.
// A token so names offsets, and pages stay complete while letters arrive: newest
// first, what is new stands before the first page; oldest first, behind the last.
type Letters struct {
	kafka  *broker.Client
	prefix string

	mu    sync.Mutex
	known map[string]*knownMarks // by subscription
}

// knownMarks are a subscription's marks and when they were asked for.
type knownMarks struct {
	reader *markReader
	used   time.Time
}

const (
	// maxKnownMarks bounds the subscriptions whose marks are held.
	maxKnownMarks = 32
	// maxColumns bounds the partitions that are merged, so that a token fits its
	// 4096 characters. Those of larger topics are listed in groups.
	maxColumns = 400
	// pageRecords, pageRead and pageTime bound what a page looks at.
	pageRecords = 50_000
	pageRead    = 64 << 20
	pageTime    = 3 * time.Second
	// pageBytes is what a page may weigh, but for a single larger letter.
	pageBytes = 3 << 20
	// heldBytes bounds the events held while columns are merged; the others are read again.
	heldBytes = 16 << 20
	// Stretches of a column: minStretch records to begin with, up to maxStretch
	// where nothing is found.
	minStretch = 16
	maxStretch = 4000
	// clockSpan is how far apart the clocks of those who write dead letters may be.
	clockSpan = time.Hour
	// positionGap is how near two letters asked for by name must stand to be read together.
	positionGap = 64
)

// NewLetters makes the reader of dead letters. prefix begins the names of the
// topics that the gateway keeps for itself.
func NewLetters(kafka *broker.Client, prefix string) *Letters {
	return &Letters{kafka: kafka, prefix: prefix, known: map[string]*knownMarks{}}
}

// marksOf gives the reader of a subscription's marks.
func (l *Letters) marksOf(subscription string) *markReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.known[subscription]
	if k == nil {
		if len(l.known) >= maxKnownMarks {
			oldest := ""
			for name, k := range l.known {
				if oldest == "" || k.used.Before(l.known[oldest].used) {
					oldest = name
				}
			}
			delete(l.known, oldest)
		}
		k = &knownMarks{reader: newMarkReader(l.kafka, l.prefix, subscription, "")}
		l.known[subscription] = k
	}
	k.used = time.Now()
	return k.reader
}

// ListLetters gives a page of of's dead letters.
func (l *Letters) ListLetters(ctx context.Context, of Options, q LettersQuery) (LettersPage, error) {
	existing, err := l.kafka.Existing(ctx, of.DeadLetterTopic)
	if err != nil {
		return LettersPage{}, err
	}
	topic, ok := existing[of.DeadLetterTopic]
	if !ok {
		return LettersPage{}, nil // nothing ever died
	}
	from, err := parseLetterToken(q.Token, topicKey(topic), &q)
	if err != nil {
		return LettersPage{}, err
	}
	marks := l.marksOf(of.Name)
	if err := marks.refresh(ctx, topicKey(topic)); err != nil {
		return LettersPage{}, err
	}
	plan, err := planLetters(ctx, l.kafka, topic.Name, &q.Filter)
	if err != nil {
		return LettersPage{}, err
	}
	slices, err := l.kafka.NewSlices(topic.Name)
	if err != nil {
		return LettersPage{}, err
	}
	defer slices.Close()
	p := &page{of: of, q: &q, marks: marks, slices: slices, until: time.Now().Add(pageTime)}
	p.columns(plan, from)
	if err := p.fill(ctx); err != nil {
		return LettersPage{}, err
	}
	return LettersPage{Letters: p.letters, Next: p.token(topicKey(topic), plan, from.group)}, nil
}

// planLetters gives the stretches of each partition, ascending, in which letters
// that fit f can stand.
func planLetters(ctx context.Context, kafka *broker.Client, topic string, f *LetterFilter) (map[int32][]broker.Range, error) {
	ranges, err := kafka.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	plan := map[int32][]broker.Range{}
	if len(f.Positions) > 0 {
		for p, is := range ranges {
			plan[p] = positionRanges(topic, p, is, f.Positions)
		}
		return plan, nil
	}
	if !f.After.IsZero() {
		after, err := kafka.OffsetsAt(ctx, topic, f.After)
		if err != nil {
			return nil, err
		}
		for p, is := range ranges {
			ranges[p] = broker.Range{Start: max(is.Start, after[p]), End: is.End}
		}
	}
	if late := f.Before.Add(clockSpan); !f.Before.IsZero() && late.Before(time.Now()) {
		before, err := kafka.OffsetsAt(ctx, topic, late)
		if err != nil {
			return nil, err
		}
		for p, is := range ranges {
			if at, ok := before[p]; ok && at >= 0 {
				ranges[p] = broker.Range{Start: is.Start, End: min(is.End, at)}
			}
		}
	}
	for p, is := range ranges {
		if is.Start < is.End {
			plan[p] = []broker.Range{is}
		}
	}
	return plan, nil
}

// positionRanges gives what of a partition is to be read for the letters at positions.
func positionRanges(topic string, partition int32, is broker.Range, positions []event.Position) []broker.Range {
	var offsets []int64
	for _, at := range positions {
		if at.Topic == topic && at.Partition == partition && at.Offset >= is.Start && at.Offset < is.End {
			offsets = append(offsets, at.Offset)
		}
	}
	slices.Sort(offsets)
	var all []broker.Range
	for _, o := range offsets {
		if n := len(all); n > 0 && o-all[n-1].End <= positionGap {
			all[n-1].End = max(all[n-1].End, o+1)
		} else {
			all = append(all, broker.Range{Start: o, End: o + 1})
		}
	}
	return all
}

// page is a page in the making.
type page struct {
	of      Options
	q       *LettersQuery
	marks   *markReader
	slices  *broker.Slices
	until   time.Time
	cols    []*column
	letters []DeadLetter
	bytes   int64 // of letters
	held    int64 // of events in columns
	seen    int   // records looked at
	read    int64 // bytes
}

// column is one partition's part of the merge.
type column struct {
	partition int32
	rest      []broker.Range // to look at, ascending
	found     []DeadLetter   // the next of the page first; Record nil: to be read again
	reading   broker.Range
	width     int64
	edge      int64 // how far it was looked at: the next offset, or newest first the last one
}

// columns makes the columns of the group that is at turn, from where the token says.
func (p *page) columns(plan map[int32][]broker.Range, from letterToken) {
	for _, partition := range groupOf(plan, from.group) {
		rest := slices.Clone(plan[partition])
		at, listed := from.at[partition]
		switch {
		case listed:
			rest = cut(rest, at, p.q.OldestFirst)
		case from.began && !p.q.OldestFirst:
			continue // it was looked at to its start, or is new
		}
		c := &column{partition: partition, rest: rest, edge: at}
		if !listed && len(rest) > 0 {
			if c.edge = rest[len(rest)-1].End; p.q.OldestFirst {
				c.edge = rest[0].Start
			}
		}
		p.cols = append(p.cols, c)
	}
	for _, c := range p.cols {
		c.width = max(minStretch, int64(2*p.q.Size/len(p.cols)))
	}
}

// groupOf gives the partitions that are merged together.
func groupOf(plan map[int32][]broker.Range, group int) []int32 {
	var all []int32
	for p := range plan {
		if int(p)/maxColumns == group {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all
}

// cut takes away what was looked at.
func cut(rest []broker.Range, at int64, oldestFirst bool) []broker.Range {
	var left []broker.Range
	for _, r := range rest {
		if oldestFirst {
			r.Start = max(r.Start, at)
		} else {
			r.End = min(r.End, at)
		}
		if r.Start < r.End {
			left = append(left, r)
		}
	}
	return left
}

// errEnough ends a reading that brings more bytes than a page may read.
var errEnough = errors.New("enough was read")

// fill merges columns until the page is full, all is looked at, or enough work is done.
func (p *page) fill(ctx context.Context) error {
	for len(p.letters) < p.q.Size && p.bytes < pageBytes {
		var empty []*column
		var best *column
		for _, c := range p.cols {
			switch {
			case len(c.found) > 0:
				if best == nil || p.before(&c.found[0], &best.found[0]) {
					best = c
				}
			case len(c.rest) > 0:
				empty = append(empty, c)
			}
		}
		switch {
		case len(empty) > 0:
			if p.seen >= pageRecords || p.read >= pageRead || time.Now().After(p.until) {
				return nil
			}
			if err := p.load(ctx, empty); err != nil {
				return err
			}
		case best == nil:
			return nil
		default:
			if err := p.emit(ctx, best); err != nil {
				return err
			}
		}
	}
	return nil
}

// before reports whether a comes before b on the page.
func (p *page) before(a, b *DeadLetter) bool {
	if p.q.OldestFirst {
		return a.Written.Before(b.Written)
	}
	return a.Written.After(b.Written)
}

// load reads the next stretch of each of cols.
func (p *page) load(ctx context.Context, cols []*column) error {
	for {
		at := map[int32]broker.Range{}
		by := map[int32]*column{}
		for _, c := range cols {
			c.reading = c.rest[len(c.rest)-1]
			if p.q.OldestFirst {
				c.reading = c.rest[0]
				c.reading.End = min(c.reading.End, c.reading.Start+c.width)
			} else {
				c.reading.Start = max(c.reading.Start, c.reading.End-c.width)
			}
			at[c.partition], by[c.partition] = c.reading, c
		}
		read := int64(0)
		err := p.slices.Read(ctx, at, func(r *event.Record) error {
			p.seen++
			read += int64(r.Size())
			p.read += int64(r.Size())
			p.look(by[r.Partition], r)
			if narrow := len(cols) == 1 && cols[0].width == 1; read > pageRead && !narrow {
				return errEnough
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			if err != nil {
				return err
			}
			break
		}
		// These are large: less of them at once, and one column after the other.
		for _, c := range cols {
			for i := range c.found {
				p.drop(&c.found[i])
			}
			c.found, c.width = nil, max(1, c.width/8)
		}
		if cols[0].width == 1 {
			cols = cols[:1]
		}
	}
	for _, c := range cols {
		p.loaded(c)
	}
	return nil
}

// loaded notes that c's stretch was looked at.
func (p *page) loaded(c *column) {
	if p.q.OldestFirst {
		c.edge = c.reading.End
	} else {
		c.edge = c.reading.Start
		slices.Reverse(c.found)
	}
	c.rest = cut(c.rest, c.edge, p.q.OldestFirst)
	if len(c.found) == 0 {
		c.width = min(4*c.width, maxStretch)
	}
}

// look takes one record of a column that fits.
func (p *page) look(c *column, r *event.Record) {
	l, died := letterOf(r)
	if died != "" && died != p.of.Name || !p.q.Filter.matches(&l) {
		return
	}
	job, purged := p.marks.of(r.Partition, r.Offset)
	if purged || job != "" && !p.q.Filter.IncludeRedriven {
		return
	}
	l.RedrivenBy = job
	if size := int64(l.Record.Size()); p.q.Summary || p.held+size > heldBytes {
		l.Record = nil
	} else {
		p.held += size
	}
	c.found = append(c.found, l)
}

// drop forgets what is held of l.
func (p *page) drop(l *DeadLetter) {
	if l.Record != nil {
		p.held -= int64(l.Record.Size())
	}
}

// emit puts the next letter of c on the page.
func (p *page) emit(ctx context.Context, c *column) error {
	l := c.found[0]
	if l.Record == nil && !p.q.Summary {
		gone := true
		err := p.slices.Read(ctx, map[int32]broker.Range{c.partition: {Start: l.At.Offset, End: l.At.Offset + 1}}, func(r *event.Record) error {
			again, _ := letterOf(r)
			l.Record, gone = again.Record, false
			return nil
		})
		if err != nil {
			return err
		}
		if gone { // retention was quicker
			c.found = c.found[1:]
			return nil
		}
	} else {
		p.drop(&l)
	}
	weight := int64(256 + len(l.Detail))
	if l.Record != nil {
		weight += int64(l.Record.Size())
	}
	if len(p.letters) > 0 && p.bytes+weight > pageBytes {
		p.bytes = pageBytes // full: it is the next page's first
		return nil
	}
	c.found = c.found[1:]
	p.bytes += weight
	p.letters = append(p.letters, l)
	return nil
}

// token says where the next page begins; "" when there is none.
func (p *page) token(topic string, plan map[int32][]broker.Range, group int) string {
	next := letterToken{topic: topic, group: group, began: true, at: map[int32]int64{}}
	more := false
	for _, c := range p.cols {
		left := len(c.rest) > 0 || len(c.found) > 0
		more = more || left
		at := c.edge
		switch {
		case len(c.found) > 0 && p.q.OldestFirst:
			at = c.found[0].At.Offset
		case len(c.found) > 0:
			at = c.found[0].At.Offset + 1
		}
		if left || p.q.OldestFirst {
			next.at[c.partition] = at
		}
	}
	if !more {
		last := int32(-1)
		for partition := range plan {
			last = max(last, partition)
		}
		if int(last)/maxColumns <= group || last < 0 {
			return ""
		}
		next = letterToken{topic: topic, group: group + 1}
	}
	return next.encode(p.q)
}

// filterFault is of a token of another list.
func filterFault(why string) error {
	return fault.New(fault.InvalidCursor, "the page token %s: begin without one", why).Field("page_token", "it is not of this list")
}
