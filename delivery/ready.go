package delivery

// readyHeap is a binary heap of entries by offset. Offsets stand beside the entries, so
// that finding the least touches no entry.
type readyHeap struct{ heap []readySlot }

type readySlot struct {
	from int64
	e    *entry
}

// top is the entry with the lowest offset.
func (h *readyHeap) top() *entry {
	if len(h.heap) == 0 {
		return nil
	}
	return h.heap[0].e
}

func (h *readyHeap) push(e *entry) {
	h.heap = append(h.heap, readySlot{e.from, e})
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
		if other.e != e {
			h.push(other.e)
		}
	}
}

// pop takes the top out.
func (h *readyHeap) pop() {
	last := len(h.heap) - 1
	moved := h.heap[last]
	h.heap[last] = readySlot{}
	h.heap = h.heap[:last]
	if last == 0 {
		return
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= last {
			break
		}
		if right := child + 1; right < last && h.heap[right].from < h.heap[child].from {
			child = right
		}
		if h.heap[child].from >= moved.from {
			break
		}
		h.heap[i] = h.heap[child]
		i = child
	}
	h.heap[i] = moved
}
