package schema

import (
	"context"
	"sync"
	"time"

	"github.com/postern-dev/postern/fault"
)

const (
	// staleWait is how long a fetch is waited for while an old value is there, counted from
	// its beginning: a registry that hangs costs those who ask then, not all that come later.
	staleWait = 250 * time.Millisecond
	// retryAfter is how long a registry that did not answer is not asked again.
	retryAfter = time.Second
	// unknownFor is how long it is believed that something does not exist.
	unknownFor = 5 * time.Second
)

// cache keeps what fetch gives for ttl, or for ever when that is 0. A key is
// fetched once however many ask. What is too old is still given when the
// registry does not answer; that something does not exist replaces it.
type cache[K comparable, V any] struct {
	fetch func(context.Context, K) (V, error)
	ttl   time.Duration
	most  int // entries; one is forgotten for another beyond it

	life context.Context // of fetches: no caller's going away ends one that others wait for
	work *sync.WaitGroup

	mu      sync.RWMutex
	entries map[K]*entry[V]
}

type entry[V any] struct {
	value   V
	known   bool // value is there
	err     error
	fresh   time.Time     // until then value, or err, needs no fetch
	arrives chan struct{} // closed when the fetch under way has ended; nil without one
	began   time.Time     // of that fetch
}

func newCache[K comparable, V any](life context.Context, work *sync.WaitGroup, ttl time.Duration, most int, fetch func(context.Context, K) (V, error)) *cache[K, V] {
	return &cache[K, V]{fetch: fetch, ttl: ttl, most: most, life: life, work: work, entries: map[K]*entry[V]{}}
}

// get gives the value of k, fetched if need be, until ctx ends.
func (c *cache[K, V]) get(ctx context.Context, k K) (V, error) {
	c.mu.RLock()
	if e := c.entries[k]; e != nil && e.known && e.err == nil && (c.ttl == 0 || time.Now().Before(e.fresh)) {
		v := e.value
		c.mu.RUnlock()
		return v, nil
	}
	c.mu.RUnlock()
	arrives, began, old, known, err := c.refresh(k)
	if arrives == nil {
		return old, err
	}
	var patience <-chan time.Time
	if known {
		wait := staleWait - time.Since(began)
		if wait <= 0 {
			return old, nil
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		patience = t.C
	}
	var none V
	select {
	case <-arrives:
	case <-patience:
		return old, nil
	case <-ctx.Done():
		if known {
			return old, nil
		}
		return none, fault.Of(ctx.Err())
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.entries[k]
	switch {
	case e == nil: // forgotten for another meanwhile
		return none, fault.New(fault.RegistryUnavailable, "the schema was forgotten while it was fetched: retry")
	case e.known && !isDefinite(e.err):
		return e.value, nil
	}
	return none, e.err
}

// isDefinite reports whether err says what the registry has, not how it is.
func isDefinite(err error) bool { return err != nil && !fault.Is(err, fault.RegistryUnavailable) }

// refresh sees to it that k is being fetched if it has to be: then arrives is not nil.
func (c *cache[K, V]) refresh(k K) (arrives chan struct{}, began time.Time, old V, known bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		c.makeRoom()
		e = &entry[V]{}
		c.entries[k] = e
	}
	if e.arrives == nil && (e.known || e.err != nil) && (time.Now().Before(e.fresh) || e.known && e.err == nil && c.ttl == 0) {
		if e.known && !isDefinite(e.err) {
			return nil, began, e.value, true, nil
		}
		return nil, began, old, false, e.err
	}
	if e.arrives == nil {
		if c.life.Err() != nil {
			return nil, began, old, false, fault.New(fault.ShuttingDown, "the gateway is stopping: retry")
		}
		e.arrives, e.began = make(chan struct{}), time.Now()
		c.work.Go(func() { c.load(k, e) })
	}
	return e.arrives, e.began, e.value, e.known && !isDefinite(e.err), nil
}

func (c *cache[K, V]) load(k K, e *entry[V]) {
	v, err := c.fetch(c.life, k)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil:
		e.value, e.known, e.err, e.fresh = v, true, nil, now.Add(c.ttl)
	case isDefinite(err):
		e.err, e.fresh = err, now.Add(unknownFor)
	default:
		e.err, e.fresh = err, now.Add(retryAfter)
	}
	close(e.arrives)
	e.arrives = nil
}

// makeRoom forgets an entry when there are too many: one that holds nothing if
// there is one, so that whoever asks for what does not exist drives nothing out.
func (c *cache[K, V]) makeRoom() {
	if len(c.entries) < c.most {
		return
	}
	var victim *K
	for k, e := range c.entries {
		if e.arrives != nil {
			continue
		}
		if victim = &k; !e.known {
			break
		}
	}
	if victim != nil {
		delete(c.entries, *victim)
	}
}

// peek gives the value of k if it is here.
func (c *cache[K, V]) peek(k K) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e := c.entries[k]; e != nil && e.known {
		return e.value, true
	}
	var none V
	return none, false
}

// keep notes a value that came another way, and gives the one that was first.
func (c *cache[K, V]) keep(k K, v V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	switch {
	case e == nil:
		c.makeRoom()
		c.entries[k] = &entry[V]{value: v, known: true, fresh: time.Now().Add(c.ttl)}
	case e.known:
		return e.value
	case e.arrives == nil:
		e.value, e.known, e.err = v, true, nil
	}
	return v
}
