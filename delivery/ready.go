package delivery

// readyHeap is a binary heap of entries by offset.
type readyHeap struct{ heap []*entry }

// top is the entry with the lowest offset.
func (h *readyHeap) top() *entry {
	if len(h.heap) == 0 {
		return nil
	}
	return h.heap[0]
}

func (h *readyHeap) push(e *entry) {
	h.heap = append(h.heap, e)
	for i := len(h.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if h.heap[parent].from <= h.heap[i].from {
			return
		}
		h.heap[parent], h.heap[i] = h.heap[i], h.heap[parent]
		i = parent
	}
}

// remove takes e out, wherever it is. Slow: only for what should not be there.
func (h *readyHeap) remove(e *entry) {
	kept := h.heap
	h.heap = nil
	for _, other := range kept {
		if other != e {
			h.push(other)
		}
	}
}

// pop takes the top out.
func (h *readyHeap) pop() {
	last := len(h.heap) - 1
	h.heap[0], h.heap[last] = h.heap[last], nil
	h.heap = h.heap[:last]
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < last && h.heap[child].from < h.heap[least].from {
				least = child
			}
		}
		if least == i {
			return
		}
		h.heap[i], h.heap[least] = h.heap[least], h.heap[i]
		i = least
	}
}
