package delivery

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// doPreparing looks after the side topics of partitions that were assigned, and
// removes what is settled in them.
func (q *Queue) doPreparing() {
	q.trim()
	if q.lookForRedrives() {
		q.preparing.AskIn(redriveLookAgain)
	}
	q.mu.Lock()
	var todo []*partition
	for _, p := range q.rotation {
		if p.preparing {
			todo = append(todo, p)
		}
	}
	q.mu.Unlock()
	if len(todo) == 0 {
		return
	}
	err := q.prepare(todo)
	q.mu.Lock()
	q.prepareFailing = err
	q.mu.Unlock()
	if err != nil && q.ctx.Err() == nil {
		q.prepareWait = min(max(time.Second, 2*q.prepareWait), moveRetryMax)
		q.log.Warn("what the subscription put aside cannot be read yet; its partitions wait", "error", err, "again_after", q.prepareWait)
		q.preparing.AskIn(q.prepareWait)
		return
	}
	q.prepareWait = 0
}

// found is a side partition as prepare found it.
type found struct {
	side     side
	at       broker.TopicPartition
	id       [16]byte
	offset   int64
	end      int64
	metadata string
	scanned  *scanned
}

// prepare finds out what earlier owners put aside for each of ps, and lets them begin.
func (q *Queue) prepare(ps []*partition) error {
	ctx, cancel := context.WithTimeout(q.ctx, scanPatience)
	defer cancel()
	var names []string
	asked := map[string]bool{}
	for _, p := range ps {
		if !asked[p.at.Topic] {
			asked[p.at.Topic] = true
			for _, s := range sides {
				names = append(names, s.topic(q.options.SidePrefix, q.options.Name, p.at.Topic))
			}
		}
	}
	existing, err := q.kafka.Existing(ctx, names...)
	if err != nil {
		return err
	}
	committed, err := q.kafka.Committed(ctx, q.options.Group, names...)
	if err != nil {
		return err
	}
	ranges := map[string]map[int32]broker.Range{}
	for name := range existing {
		if ranges[name], err = q.kafka.Ranges(ctx, name); err != nil {
			return err
		}
	}
	for at := range committed {
		if _, ok := ranges[at.Topic][at.Partition]; !ok { // a broker that has not heard of it yet
			return fault.New(fault.BrokerUnavailable, "%s has a position, and the broker does not know it", at)
		}
	}
	for _, p := range ps {
		var all []found
		for _, s := range sides {
			at := broker.TopicPartition{Topic: s.topic(q.options.SidePrefix, q.options.Name, p.at.Topic), Partition: p.at.Partition}
			is, ok := ranges[at.Topic][at.Partition]
			if !ok {
				continue
			}
			end := is.End
			if s != sideRedrive {
				if end, err = q.fence(ctx, at, p.owner); err != nil {
					return err
				}
			}
			f := found{side: s, at: at, id: existing[at.Topic].ID, offset: is.Start, end: end}
			switch c, ok := committed[at]; {
			case p.giveUp && s != sideRedrive: // a redriven event is not of the position's
				f.offset = end - 1 // at the fence
			case ok && c.Offset >= is.Start:
				f.offset, f.metadata = c.Offset, c.Metadata
			}
			if s == sidePark && !p.giveUp && f.end > f.offset {
				if f.scanned, err = q.scan(ctx, f); err != nil {
					return err
				}
			}
			all = append(all, f)
		}
		q.begin(p, all)
	}
	return nil
}

// fence makes void what earlier owners still write to a side partition, and
// gives its end.
func (q *Queue) fence(ctx context.Context, at broker.TopicPartition, owner ownerID) (end int64, err error) {
	where, errs := q.mover.Move(ctx, []*event.Record{fence(at, owner, time.Now())})
	return where[0].Offset + 1, errs[0]
}

// scanned is what stands unsettled in a park: for each lane where its last
// event is, and which events of the source are there.
type scanned struct {
	lanes map[uint64]*parkedLane
	// copies are offsets in the park of events that stand there before already.
	copies map[int64]struct{}

	laner   Tracker
	fences  fences
	settled []span // by the park's last commit
	origins int
}

func newScanned(seed maphash.Seed, was progress) *scanned {
	s := &scanned{
		lanes: map[uint64]*parkedLane{}, copies: map[int64]struct{}{},
		laner: Tracker{order: OrderKey, seed: seed}, settled: was.settled,
	}
	if was.epoch != 0 {
		s.fences.raise(was.base-1, ownerID(was.epoch))
	}
	return s
}

// see takes the park's next record.
func (s *scanned) see(r *event.Record) {
	for len(s.settled) > 0 && s.settled[0].to <= r.Offset {
		s.settled = s.settled[1:]
	}
	origin, a, err := unmoved(r)
	switch {
	case err != nil:
		return // met again when it is to be delivered
	case a.fence: // settled or not
		s.fences.raise(r.Offset, a.owner)
		return
	case s.fences.void(a.owner), len(s.settled) > 0 && s.settled[0].from <= r.Offset:
		return
	}
	lane := s.laner.laneOf(origin)
	l := s.lanes[lane]
	if l == nil {
		l = &parkedLane{there: map[int64]stamp{}}
		s.lanes[lane] = l
	}
	l.last = r.Offset
	if l.has(origin.Offset, origin) {
		s.copies[r.Offset] = struct{}{}
	} else if s.origins++; s.origins <= scanOrigins {
		l.there[origin.Offset] = stampOf(origin)
		l.until = max(l.until, origin.Offset+1)
	}
}

// scan reads a park from its position to its end.
func (q *Queue) scan(ctx context.Context, f found) (*scanned, error) {
	restored, _ := decodeMetadata(f.metadata, f.id, f.offset) // addSide says what is wrong with it
	s := newScanned(q.seed, restored)
	reader, err := q.kafka.NewReader(f.at.Topic, map[int32]int64{f.at.Partition: f.offset})
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for next := f.offset; next < f.end; {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("read %s from %d to %d: %w", f.at, next, f.end, fault.Of(ctx.Err()))
		}
		err := reader.Poll(ctx, pollEvents, func(r *event.Record) {
			next = r.Offset + 1
			s.see(r)
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin gives p its side partitions and lets it lend.
func (q *Queue) begin(p *partition, all []found) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.trackers[p.at] != p || !p.preparing {
		return
	}
	p.preparing = false
	q.touch(p)
	q.commits.AskWithin(commitInterval) // a commit that came while it was uncommittable passed it over
	for _, f := range all {
		if s := q.addSide(p, f); p.giveUp {
			q.touch(s)
		}
		if f.scanned != nil && len(f.scanned.lanes) > 0 {
			p.parked = f.scanned.lanes
		}
	}
	held := p.held
	p.held, p.heldBytes = nil, 0
	for _, h := range held {
		q.take(p, h.record, h.verdict)
	}
	q.dispatch()
}

// addSide begins to follow a side partition. q.mu is held.
func (q *Queue) addSide(p *partition, f found) *partition {
	restored, err := decodeMetadata(f.metadata, f.id, f.offset)
	order := OrderNone
	switch f.side {
	case sidePark:
		order = OrderKey
	case sideRedrive:
		order = q.options.Order
	}
	s := &partition{at: f.at, side: f.side, source: p}
	if restored.epoch != 0 {
		s.fences.raise(f.offset-1, ownerID(restored.epoch))
	}
	switch {
	case f.metadata == "" || err == nil:
	case errors.Is(err, errNewer):
		s.stopped = true
		q.log.Error("a side partition is stopped: its acknowledgements were written by a newer Postern; upgrade this instance", "partition", f.at.String(), "offset", f.offset)
	default:
		q.metrics.metadataIgnored(1)
	}
	s.Tracker = newTracker(order, f.offset, restored, q.seed)
	s.Tracker.home = s
	if f.scanned != nil {
		s.copies = f.scanned.copies
	}
	if f.side == sidePark {
		p.parking = s.Tracker
	}
	p.sides = append(p.sides, s)
	q.trackers[s.at] = s
	q.rotation = append(q.rotation, s)
	q.following = append(q.following, follow{s.at, f.offset})
	q.followed.Ask()
	return s
}

// sideOf is p's side partition of a kind; nil when it has none yet.
func (p *partition) sideOf(kind side) *partition {
	for _, s := range p.sides {
		if s.side == kind {
			return s
		}
	}
	return nil
}
