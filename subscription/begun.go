package subscription

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/postern-dev/postern/event"
)

// headerBegun has State.Desired.Begun beside a subscription's record and not in it:
// the record, and with it the etag, are what people said.
const headerBegun = "postern-begun"

func begunHeaders(begun uint64) []event.Header {
	if begun == 0 {
		return nil
	}
	return []event.Header{{Name: headerBegun, Value: strconv.AppendUint(nil, begun, 10)}}
}

// begunOf reads it; 0 where it is not there or cannot be read, as it is before it is known.
func begunOf(r *event.Record) uint64 {
	text, _ := r.Header(headerBegun)
	begun, _ := strconv.ParseUint(string(text), 10, 64)
	return begun
}

// NoteBegun has it kept that the group of a subscription has commits which follow
// the seek of epoch (delivery.Desired.Begun). It returns at once. A subscription
// that is only inline in a stream has no record: a loss of its position cannot be
// told.
func (r *Registry) NoteBegun(name string, epoch uint64) {
	r.mu.Lock()
	if r.store != nil {
		r.begun[name] = max(r.begun[name], epoch+1)
	}
	r.mu.Unlock()
	select {
	case r.begunWake <- struct{}{}:
	default:
	}
}

// keepBegun writes what was noted until ctx ends: what could not be written, or
// is still to be declared, a little later.
func (r *Registry) keepBegun(ctx context.Context) {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.begunWake:
		case <-retry:
		}
		retry = nil
		if err := r.begunOnce(ctx); err != nil {
			r.log.Debug("which subscriptions have begun is not kept yet; trying on", "error", err)
		}
		r.mu.Lock()
		left := len(r.begun)
		r.mu.Unlock()
		if left > 0 {
			retry = time.After(declareEvery)
		}
	}
}

func (r *Registry) begunOnce(ctx context.Context) error {
	r.mu.Lock()
	todo := maps.Clone(r.begun)
	for name := range r.begun {
		kept := r.store.Get(name)
		switch {
		case r.entries[name] == nil, kept != nil && kept.Err != nil: // inline, deleted, or a newer gateway's
		case kept != nil && kept.State.Desired.Begun >= todo[name]: // a write would fence others for nothing
		default:
			continue
		}
		delete(r.begun, name)
		delete(todo, name)
	}
	r.mu.Unlock()
	for part := range slices.Chunk(slices.Sorted(maps.Keys(todo)), declareTogether) {
		var done []string
		err := r.store.UpdateAll(ctx, part, func(name string, kept *Kept) (*State, error) {
			old := kept.state()
			if old == nil {
				return nil, nil
			}
			if old.Desired.Begun >= todo[name] {
				done = append(done, name)
				return old, nil
			}
			s := *old
			s.Desired.Begun = todo[name]
			done = append(done, name)
			return &s, nil
		})
		if err != nil {
			return err
		}
		r.mu.Lock()
		for _, name := range done {
			if r.begun[name] == todo[name] {
				delete(r.begun, name)
			}
		}
		r.mu.Unlock()
	}
	return nil
}
