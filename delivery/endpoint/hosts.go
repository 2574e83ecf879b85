package endpoint

import (
	"context"
	"sync"
)

// DefaultHostRequests bounds the requests under way to one host over all endpoints.
const DefaultHostRequests = 256

// Hosts bounds the requests under way to each host, first come first served:
// many subscriptions to one host are one load to it.
type Hosts struct {
	most  int
	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	busy    int
	waiting []chan struct{} // first is next; each is closed when its turn has come
}

// NewHosts makes the bound.
func NewHosts(most int) *Hosts { return &Hosts{most: max(1, most), hosts: map[string]*host{}} }

// Try takes a place if one is free.
func (h *Hosts) Try(name string) bool {
	if h == nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.hosts[name]
	if at == nil {
		at = &host{}
		h.hosts[name] = at
	}
	if at.busy < h.most {
		at.busy++
		return true
	}
	return false
}

// Acquire waits for a place; false when ctx ends first.
func (h *Hosts) Acquire(ctx context.Context, name string) bool {
	if h.Try(name) {
		return true
	}
	h.mu.Lock()
	at := h.hosts[name]
	if at == nil { // all others have left since
		at = &host{}
		h.hosts[name] = at
	}
	if at.busy < h.most {
		at.busy++
		h.mu.Unlock()
		return true
	}
	turn := make(chan struct{})
	at.waiting = append(at.waiting, turn)
	h.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-ctx.Done():
	}
	h.mu.Lock()
	for i, w := range at.waiting {
		if w == turn {
			at.waiting = append(at.waiting[:i], at.waiting[i+1:]...)
			h.mu.Unlock()
			return false
		}
	}
	h.mu.Unlock()
	h.Release(name) // its turn came at the same moment
	return false
}

// Release gives the place to who waits longest.
func (h *Hosts) Release(name string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.hosts[name]
	if len(at.waiting) > 0 {
		close(at.waiting[0])
		at.waiting = at.waiting[1:]
		return
	}
	if at.busy--; at.busy == 0 {
		delete(h.hosts, name)
	}
}
