package delivery

import "time"

// timers is a binary heap of entries by due. Leases of one length arrive in
// order of due, which a heap takes without moving anything.
type timers struct{ heap []*entry }

// next is when the first entry is due.
func (h *timers) next() (time.Duration, bool) {
	if len(h.heap) == 0 {
		return 0, false
	}
	return h.heap[0].due, true
}

// first gives the first entry that is due at now.
func (h *timers) first(now time.Duration) *entry {
	if len(h.heap) == 0 || h.heap[0].due > now {
		return nil
	}
	return h.heap[0]
}

// set puts e in its place by e.due, whether or not it was there.
func (h *timers) set(e *entry) {
	if e.timer == 0 {
		h.heap = append(h.heap, e)
		e.timer = int32(len(h.heap))
	}
	i := int(e.timer) - 1
	if !h.up(i) {
		h.down(i)
	}
}

// clear takes e out.
func (h *timers) clear(e *entry) {
	if e.timer == 0 {
		return
	}
	i, last := int(e.timer)-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = nil
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
	h.heap[i].timer, h.heap[j].timer = int32(i+1), int32(j+1)
}
