package subscription

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Ledger is where a Store keeps its records: broker.Ledger, a compacted topic.
type Ledger interface {
	Follow(ctx context.Context, to broker.LedgerReader, trouble func(error)) error
	Write(ctx context.Context, decide func() ([]*event.Record, error)) error
}

// Store keeps the state of subscriptions in Kafka: a record for each, its key the
// name. Every instance reads all of them, and sees a change when its record comes.
//
// A change is decided with everything before it read (Ledger says how), so that an
// etag is compared with what there is and not with what this instance happened to
// know, and of two changes at once the later one in the log sees the earlier. When
// Update returns, Get gives what it wrote.
type Store struct {
	ledger Ledger
	log    *slog.Logger
	told   func(names []string) // what changed; called from one goroutine

	mu      sync.Mutex
	current map[string]*Kept
	next    map[string]*Kept // while all is read anew; nil otherwise
	loaded  chan struct{}    // closed when everything that was there at the start is read
	isSo    bool             // that it is closed
	trouble error            // why reading is not getting on
	failed  chan struct{}    // closed when it ended with trouble
}

// Kept is one subscription's record. It is not changed once it is there.
type Kept struct {
	Name string
	// Etag names what the record says.
	Etag string
	// State is what it says; nil when Err says why that cannot be told.
	State *State
	Err   error
}

// maxKept bounds the subscriptions that are held in memory, each a few KiB.
const maxKept = 20_000

// NewStore makes a store. told is called with the names that changed, from Run.
func NewStore(ledger Ledger, log *slog.Logger, told func(names []string)) *Store {
	return &Store{ledger: ledger, log: log, told: told, current: map[string]*Kept{}, loaded: make(chan struct{}), failed: make(chan struct{})}
}

// Run reads until ctx ends. What it returns is for people to mend.
func (s *Store) Run(ctx context.Context) error {
	said := ""
	err := s.ledger.Follow(ctx, s, func(err error) {
		s.mu.Lock()
		s.trouble = err
		s.mu.Unlock()
		if err.Error() != said {
			said = err.Error()
			s.log.Warn("subscriptions cannot be read from Kafka; trying on", "error", err)
		}
	})
	if err != nil {
		s.mu.Lock()
		s.trouble = err
		s.mu.Unlock()
		close(s.failed)
	}
	return err
}

// Reset begins anew: the topic was made again. What was known stands meanwhile.
func (s *Store) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = map[string]*Kept{}
}

// Take takes one record of the ledger.
func (s *Store) Take(r *event.Record) {
	name := string(r.Key)
	if !legalName.MatchString(name) {
		s.log.Warn("a record that is no subscription's is passed over", "position", r.Position().String())
		return
	}
	s.mu.Lock()
	s.trouble = nil
	all := s.current
	if s.next != nil {
		all = s.next
	}
	switch {
	case r.Value == nil:
		delete(all, name)
	case all[name] == nil && len(all) >= maxKept:
		s.mu.Unlock()
		s.log.Error("there are more subscriptions than a gateway holds; one is passed over", "limit", maxKept, "subscription", name)
		return
	default:
		k := &Kept{Name: name, Etag: etagOf(r.Value)}
		if k.State, k.Err = decodeState(name, r.Value); k.State != nil {
			k.State.Desired.Begun = begunOf(r)
		}
		all[name] = k
	}
	reading := s.next != nil
	s.mu.Unlock()
	if !reading {
		s.told([]string{name})
	}
}

// CaughtUp puts what was read in force.
func (s *Store) CaughtUp() {
	s.mu.Lock()
	s.trouble = nil
	var names []string
	if s.next != nil {
		for name := range s.current {
			names = append(names, name)
		}
		for name := range s.next {
			if s.current[name] == nil {
				names = append(names, name)
			}
		}
		s.current, s.next = s.next, nil
	}
	first := !s.isSo
	s.isSo = true
	s.mu.Unlock()
	s.told(names)
	if first {
		close(s.loaded)
		s.told(nil) // that it is
	}
}

// Loaded is closed when everything that was there at the start is read.
func (s *Store) Loaded() <-chan struct{} { return s.loaded }

// await waits until all is read, as long as ctx allows.
func (s *Store) await(ctx context.Context) error { return s.awaitThat(ctx, s.loaded) }

// awaitThat is await for something that comes with all being read.
func (s *Store) awaitThat(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	default:
	}
	s.mu.Lock()
	trouble := s.trouble
	s.mu.Unlock()
	if trouble != nil {
		return trouble
	}
	ctx, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	select {
	case <-done:
		return nil
	case <-s.failed:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble != nil && fault.KindOf(s.trouble) != fault.KindInternal {
		return s.trouble
	}
	return fault.New(fault.BrokerUnavailable, "the subscriptions kept in Kafka are not read yet: retry")
}

// loadPatience bounds how long a caller waits for the subscriptions to be read
// when a gateway has just started.
const loadPatience = 5 * time.Second

// Get gives what is kept under name; nil when nothing is.
func (s *Store) Get(name string) *Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current[name]
}

// Count is how many are kept.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.current)
}

// Update replaces what is kept under name by what change makes of it: nil for
// none, both ways. A change that gives the very State it got writes nothing. It
// may be called more than once. What a newer Postern wrote is not touched.
func (s *Store) Update(ctx context.Context, name string, change func(old *Kept) (*State, error)) (*Kept, error) {
	err := s.UpdateAll(ctx, []string{name}, func(_ string, old *Kept) (*State, error) { return change(old) })
	return s.Get(name), err
}

// UpdateAll is Update of several at once, all or none.
func (s *Store) UpdateAll(ctx context.Context, names []string, change func(name string, old *Kept) (*State, error)) error {
	if err := s.await(ctx); err != nil {
		return err
	}
	return s.ledger.Write(ctx, func() ([]*event.Record, error) {
		var records []*event.Record
		for _, name := range names {
			r, err := s.decide(name, change)
			if err != nil {
				return nil, err
			}
			if r != nil {
				records = append(records, r)
			}
		}
		return records, nil
	})
}

// decide gives the record that changes name; nil when there is nothing to change.
func (s *Store) decide(name string, change func(name string, old *Kept) (*State, error)) (*event.Record, error) {
	kept := s.Get(name)
	if kept != nil && kept.Err != nil {
		return nil, unreadable(name, kept.Err)
	}
	var old *State
	if kept != nil {
		old = kept.State
	}
	state, err := change(name, kept)
	if err != nil || state == old {
		return nil, err
	}
	r := &event.Record{Key: []byte(name), Partition: event.AnyPartition}
	if state == nil {
		return r, nil
	}
	written := *state
	written.Updated = time.Now().UTC()
	written.Revision, written.Created = 1, written.Updated
	if old != nil {
		written.Revision, written.Created = old.Revision+1, old.Created
		if state.Desired.Begun != old.Desired.Begun { // a gateway's note of what it did, and no change
			written.Revision, written.Updated = old.Revision, old.Updated
		}
	}
	if r.Value, err = written.encode(); err != nil {
		return nil, fault.New(fault.InvalidArgument, "%w", err)
	}
	r.Headers = begunHeaders(state.Desired.Begun)
	return r, nil
}

// unreadable says that a record is not this gateway's to touch.
func unreadable(name string, err error) error {
	if errors.Is(err, errNewerFormat) {
		return fault.New(fault.NewerFormat, "subscription %s cannot be served or changed here: %w; ask a gateway of the newer version", name, err).With("subscription", name)
	}
	return fault.New(fault.NewerFormat, "what is kept of subscription %s cannot be read: %w", name, err).With("subscription", name)
}
