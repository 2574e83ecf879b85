package endpoints

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// states is the compacted topic of endpoints' states: followed from its start by
// every instance that has an endpoint, written when a state changes.
type states struct {
	topic    string
	instance string
	topics   *topics
	kafka    *broker.Client
	producer Producer
	log      *slog.Logger
	wanted   chan struct{} // closed when somebody wants states
	loaded   chan struct{} // closed when the topic was read to its end once, or cannot be
	wake     chan struct{} // something is to be written
	enabled  func(name string)

	mu       sync.Mutex
	want     bool
	latest   map[string]endpoint.Record
	watchers map[string]func(endpoint.Record)
	pending  map[string]endpoint.Record // the last of each endpoint that is not written
}

func newStates(topic, instance string, t *topics, kafka *broker.Client, producer Producer, log *slog.Logger) *states {
	return &states{
		topic: topic, instance: instance, topics: t, kafka: kafka, producer: producer, log: log.With("topic", topic),
		wanted: make(chan struct{}), loaded: make(chan struct{}), wake: make(chan struct{}, 1), enabled: func(string) {},
		latest: map[string]endpoint.Record{}, watchers: map[string]func(endpoint.Record){}, pending: map[string]endpoint.Record{},
	}
}

// Waits between tries to read or write the topic.
const (
	stateRetryMin = 50 * time.Millisecond
	stateRetryMax = 30 * time.Second
	// loadPatience bounds the wait of an endpoint that begins: what cannot be read by then is not waited for.
	loadPatience = 20 * time.Second
)

// need begins the following.
func (s *states) need() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.want {
		s.want = true
		close(s.wanted)
	}
}

// await waits until what was saved is known.
func (s *states) await(ctx context.Context) {
	s.need()
	timer := time.NewTimer(loadPatience)
	defer timer.Stop()
	select {
	case <-s.loaded:
	case <-ctx.Done():
	case <-timer.C:
		s.log.Warn("endpoints begin without their saved states: the topic could not be read in time")
	}
}

// Watch calls apply with the saved state, and with what others save.
func (s *states) Watch(subscription string, apply func(endpoint.Record)) (stop func()) {
	s.need()
	s.mu.Lock()
	s.watchers[subscription] = apply
	r, known := s.latest[subscription]
	s.mu.Unlock()
	if known {
		// Even our own word of before: the pusher is new.
		r.Instance = ""
		apply(r)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, subscription)
	}
}

// Save writes a state soon; of several of one endpoint the last.
func (s *states) Save(r endpoint.Record) {
	s.need()
	s.mu.Lock()
	s.pending[r.Subscription] = r
	before := s.latest[r.Subscription].State
	s.latest[r.Subscription] = r
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if before == endpoint.Disabled && r.State != endpoint.Disabled {
		s.enabled(r.Subscription)
	}
}

func (s *states) get(name string) (endpoint.Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.latest[name]
	return r, ok
}

func (s *states) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.latest))
	for name := range s.latest {
		names = append(names, name)
	}
	return names
}

func (s *states) ensure(ctx context.Context) error {
	_, err := s.topics.ensure(ctx, s.topic, 1, map[string]string{"cleanup.policy": "compact"})
	return err
}

// write sends what is pending until ctx ends, and then once more.
func (s *states) write(ctx context.Context) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = s.flush(last) // what is not written is found out again
			return
		}
		for wait := stateRetryMin; ; wait = min(2*wait, stateRetryMax) {
			err := s.flush(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.log.Error("endpoint states are not saved; trying again", "after", wait, "error", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// flush writes what is pending; what is not written stays so, unless there is newer.
func (s *states) flush(ctx context.Context) error {
	s.mu.Lock()
	pending := s.pending
	s.pending = map[string]endpoint.Record{}
	s.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	var failed error
	again := func(r endpoint.Record, err error) {
		failed = err
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, newer := s.pending[r.Subscription]; !newer {
			s.pending[r.Subscription] = r
		}
	}
	if err := s.ensure(ctx); err != nil {
		for _, r := range pending {
			again(r, err)
		}
		return failed
	}
	type result struct {
		r   endpoint.Record
		err error
	}
	results := make(chan result, len(pending))
	sent := 0
	for name, r := range pending {
		value, err := r.Encode()
		if err != nil {
			s.log.Error("an endpoint's state cannot be written", "subscription", name, "error", err)
			continue
		}
		sent++
		s.producer.ProduceAll([]*event.Record{{Topic: s.topic, Partition: 0, Offset: -1, Key: []byte(name), Value: value}}, broker.How{},
			func(_ int, _ event.Position, err error) { results <- result{r, err} })
	}
	for range sent {
		select {
		case x := <-results:
			if x.err != nil {
				again(x.r, x.err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return failed
}

// follow reads the topic from its start until ctx ends.
func (s *states) follow(ctx context.Context) {
	select {
	case <-s.wanted:
	case <-ctx.Done():
		return
	}
	wait := stateRetryMin
	for ctx.Err() == nil {
		err := s.read(ctx)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("endpoint states are not followed; trying again", "after", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, stateRetryMax)
	}
}

// read reads the topic from its start until something breaks.
func (s *states) read(ctx context.Context) error {
	if err := s.ensure(ctx); err != nil {
		return err
	}
	ranges, err := s.kafka.Ranges(ctx, s.topic)
	if err != nil {
		return err
	}
	at, left := map[int32]int64{}, map[int32]int64{}
	for p, r := range ranges {
		at[p] = r.Start
		if r.End > r.Start {
			left[p] = r.End
		}
	}
	reader, err := s.kafka.NewReader(s.topic, at)
	if err != nil {
		return err
	}
	defer reader.Close()
	for behind := len(left) > 0; ctx.Err() == nil; {
		if !behind {
			s.caughtUp()
		}
		poll, cancel := ctx, func() {}
		if behind {
			// Compaction leaves holes, and the last offset may be one: a poll that
			// brings nothing for a while has reached the end too.
			poll, cancel = context.WithTimeout(ctx, 2*time.Second)
		}
		n := 0
		err := reader.Poll(poll, 1000, func(r *event.Record) {
			n++
			s.take(r)
			if end, ok := left[r.Partition]; ok && r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
		cancel()
		if err != nil {
			return err
		}
		behind = behind && len(left) > 0 && n > 0
	}
	return nil
}

func (s *states) caughtUp() {
	select {
	case <-s.loaded:
	default:
		close(s.loaded)
	}
}

// take hands a record to whoever watches its endpoint.
func (s *states) take(r *event.Record) {
	name := string(r.Key)
	if r.Value == nil {
		s.mu.Lock()
		before := s.latest[name].State
		delete(s.latest, name)
		s.mu.Unlock()
		if before == endpoint.Disabled {
			s.enabled(name)
		}
		return
	}
	state, err := endpoint.ParseRecord(r.Value)
	if err != nil {
		s.log.Warn("an endpoint's saved state is passed over", "subscription", name, "error", err)
		return
	}
	state.Subscription = name
	s.mu.Lock()
	before := s.latest[name].State
	if _, ours := s.pending[name]; !ours {
		s.latest[name] = state
	}
	enabled := before == endpoint.Disabled && s.latest[name].State != endpoint.Disabled
	apply := s.watchers[name]
	s.mu.Unlock()
	if enabled {
		s.enabled(name)
	}
	if apply != nil {
		apply(state)
	}
}
