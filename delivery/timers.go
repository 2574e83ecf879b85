package delivery

import "time"

// timers find the entries whose time has come. Leases mostly begin in the order in which
// they end: they stand in a line, where an entry is put and taken out without a look at
// any other. A lease that would end before the last of the line, and all that waits for
// something else, is in a heap.
type timers struct {
	line leaseLine
	heap []timerSlot // binary, by due
}

type timerSlot struct {
	due time.Duration
	e   *entry
}

// next is when the first entry is due.
func (h *timers) next() (time.Duration, bool) {
	e := h.least()
	if e == nil {
		return 0, false
	}
	return e.due, true
}

// first gives the first entry that is due at now.
func (h *timers) first(now time.Duration) *entry {
	if e := h.least(); e != nil && e.due <= now {
		return e
	}
	return nil
}

func (h *timers) least() *entry {
	e := h.line.first()
	if len(h.heap) > 0 && (e == nil || h.heap[0].due < e.due) {
		return h.heap[0].e
	}
	return e
}

// set puts e in its place by e.due, whether or not it was there.
func (h *timers) set(e *entry) {
	if e.timer < 0 {
		h.line.remove(e)
	}
	if e.timer == 0 && e.state == lent && h.line.add(e) {
		return
	}
	if e.timer == 0 {
		h.heap = append(h.heap, timerSlot{})
		e.timer = int32(len(h.heap))
	}
	i := int(e.timer) - 1
	h.heap[i] = timerSlot{e.due, e}
	if !h.up(i) {
		h.down(i)
	}
}

// clear takes e out.
func (h *timers) clear(e *entry) {
	switch {
	case e.timer == 0:
		return
	case e.timer < 0:
		h.line.remove(e)
		return
	}
	i, last := int(e.timer)-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = timerSlot{}
	h.heap = h.heap[:last]
	e.timer = 0
	if i < last && !h.up(i) {
		h.down(i)
	}
}

func (h *timers) up(i int) (moved bool) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.heap[parent].due <= h.heap[i].due {
			break
		}
		h.swap(i, parent)
		i, moved = parent, true
	}
	return moved
}

func (h *timers) down(i int) {
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h.heap) && h.heap[child].due < h.heap[least].due {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h *timers) swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].e.timer, h.heap[j].e.timer = int32(i+1), int32(j+1)
}

// leaseLine is a queue of entries by due, in a ring. An entry in it has its index, negated
// and less one, as its timer. What is taken out of the middle leaves its slot behind until
// those before it have gone too, or the ring is full.
type leaseLine struct {
	ring       []*entry      // a power of two of slots, or none; nil: empty
	head, used int           // the first slot in use, which is not empty; how many from it on are in use
	live       int           // of these, not empty
	last       time.Duration // when the one that came last is due
}

const lineMin = 16

// first gives the first entry; nil when there is none.
func (l *leaseLine) first() *entry {
	if l.live == 0 {
		return nil
	}
	return l.ring[l.head]
}

// add puts e at the end, unless it is due before the one that came last: false.
func (l *leaseLine) add(e *entry) bool {
	if l.live > 0 && e.due < l.last {
		return false
	}
	if l.used == len(l.ring) {
		l.resize()
	}
	l.put(e)
	return true
}

func (l *leaseLine) put(e *entry) {
	at := (l.head + l.used) & (len(l.ring) - 1)
	l.ring[at] = e
	e.timer = int32(^at)
	l.last = e.due
	l.used++
	l.live++
}

// remove takes e out.
func (l *leaseLine) remove(e *entry) {
	l.ring[^e.timer] = nil
	e.timer = 0
	l.live--
	if l.live == 0 {
		l.head, l.used = 0, 0
		if len(l.ring) > lineMin {
			l.ring = nil // a queue that rests weighs little
		}
		return
	}
	for l.ring[l.head] == nil {
		l.head = (l.head + 1) & (len(l.ring) - 1)
		l.used--
	}
}

// resize makes room: it closes the gaps, and doubles the ring when few of its slots are gaps.
func (l *leaseLine) resize() {
	old, head, used := l.ring, l.head, l.used
	size := max(lineMin, len(old))
	if 2*l.live > size {
		size *= 2
	}
	l.ring, l.head, l.used, l.live = make([]*entry, size), 0, 0, 0
	for i := range used {
		if e := old[(head+i)&(len(old)-1)]; e != nil {
			l.put(e)
		}
	}
}
