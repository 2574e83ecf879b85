package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"go.opentelemetry.io/otel"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// shop lends like a queue: within the window, a nacked event again after its
// delay, in order within a key.
type shop struct {
	mu       sync.Mutex
	waiting  []delivery.Lease
	lent     map[delivery.ID]delivery.Lease
	window   int
	next     delivery.ID
	ready    chan struct{}
	returned int
	settled  []delivery.Settlement
	done     chan struct{} // closed when settled for good as often as want says
	want     int
	final    int
}

func newShop(records []*event.Record) *shop {
	s := &shop{lent: map[delivery.ID]delivery.Lease{}, ready: make(chan struct{}, 1), done: make(chan struct{}), want: len(records)}
	for _, r := range records {
		s.waiting = append(s.waiting, delivery.Lease{Record: r, Attempt: 1})
	}
	return s
}

func (s *shop) Next(ctx context.Context) ([]delivery.Lease, []delivery.Revocation, error) {
	for {
		s.mu.Lock()
		leases := s.lend(len(s.waiting))
		s.mu.Unlock()
		if len(leases) > 0 {
			return leases, nil, nil
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// lend lends at most n. s.mu is held.
func (s *shop) lend(n int) (leases []delivery.Lease) {
	for i := 0; i < len(s.waiting) && len(s.lent) < s.window && len(leases) < n; {
		if s.busy(s.waiting[i].Record.Key) {
			i++
			continue
		}
		l := s.waiting[i]
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.next++
		l.ID = s.next
		s.lent[l.ID] = l
		leases = append(leases, l)
	}
	return leases
}

func (s *shop) busy(key []byte) bool {
	for _, l := range s.lent {
		if key != nil && string(l.Record.Key) == string(key) {
			return true
		}
	}
	return false
}

func (s *shop) SetWindow(w delivery.Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window = w.Messages
	wake(s.ready)
}

func (s *shop) Decline(leases []delivery.Lease) {
	s.Return(leases)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window = min(s.window, len(s.lent))
}

// lose forgets what is lent, as a queue does whose partitions were taken away.
func (s *shop) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.lent)
	wake(s.ready)
}

func (s *shop) Return(leases []delivery.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range leases {
		delete(s.lent, l.ID)
		s.waiting = append([]delivery.Lease{l}, s.waiting...)
		s.returned++
	}
	wake(s.ready)
}

func (s *shop) Settle(settlements []delivery.Settlement, next []delivery.Lease) ([]delivery.Result, []delivery.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var results []delivery.Result
	for _, settlement := range settlements {
		l, known := s.lent[settlement.ID]
		if !known {
			results = append(results, delivery.Result{ID: settlement.ID, Outcome: delivery.Stale})
			continue
		}
		s.settled = append(s.settled, settlement)
		results = append(results, delivery.Result{ID: settlement.ID, Outcome: delivery.Accepted})
		if settlement.Word == delivery.Nack {
			delay := time.Second
			if settlement.HasDelay {
				delay = settlement.Delay
			}
			time.AfterFunc(delay, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.lent, l.ID) // its key waits until then
				l.Attempt++
				s.waiting = append([]delivery.Lease{l}, s.waiting...)
				wake(s.ready)
			})
			continue
		}
		delete(s.lent, settlement.ID)
		if s.final++; s.final == s.want {
			close(s.done)
		}
	}
	next = append(next, s.lend(cap(next)-len(next))...)
	wake(s.ready)
	return results, next
}

func records(n, keys int) []*event.Record {
	all := make([]*event.Record, n)
	for i := range all {
		all[i] = &event.Record{Topic: "orders", Offset: int64(i), Key: fmt.Appendf(nil, "k%d", i%keys), Value: fmt.Append(nil, i)}
	}
	return all
}

// wire is a Carrier of a test's.
type wire struct {
	carry func(ctx context.Context, p *Parcel) Answer
	mu    sync.Mutex
	times []time.Time
	sizes []int
	most  int
	under int
}

func (w *wire) Carry(ctx context.Context, p *Parcel) Answer {
	w.mu.Lock()
	w.times = append(w.times, time.Now())
	w.sizes = append(w.sizes, len(p.Records))
	w.under++
	w.most = max(w.most, w.under)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.under--
		w.mu.Unlock()
	}()
	return w.carry(ctx, p)
}

func answer(o Outcome) Answer { return Answer{Outcome: o} }

func quiet() Environment {
	return Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}, Instance: "here"}
}

// push runs a pusher over s until everything is settled for good, or for the time given.
func push(t *testing.T, s *shop, o Options, c Carrier, env Environment, most time.Duration) *Pusher {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Concurrency == 0 {
		o.Concurrency = 64
	}
	o.Subscription = "mail"
	p := New(o, c, env)
	s.window = p.Window().Messages
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx, s) }()
	select {
	case <-s.done:
	case <-time.After(most):
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	return p
}

func (s *shop) finished() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func TestEveryEventIsDeliveredAndConcurrencyGrowsToItsMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(2000, 500))
		w := &wire{carry: func(context.Context, *Parcel) Answer { time.Sleep(10 * time.Millisecond); return answer(ok) }}
		push(t, s, Options{Concurrency: 32}, w, quiet(), time.Hour)
		if !s.finished() || w.most != 32 {
			t.Errorf("%d settled, %d at once", s.final, w.most)
		}
	})
}

func TestEventsAreNotHandedToAndFroWhileRequestsOutliveTheirLeases(t *testing.T) {
	for _, batch := range []int{1, 10} {
		synctest.Test(t, func(t *testing.T) {
			s := newShop(records(400, 400))
			s.want -= 8 * batch // lost on their way, and lent by another instance
			w := &wire{}
			w.carry = func(context.Context, *Parcel) Answer {
				w.mu.Lock()
				first := len(w.times) <= 8
				w.mu.Unlock()
				if first {
					time.Sleep(time.Minute)
				}
				return answer(ok)
			}
			time.AfterFunc(time.Second, s.lose)
			push(t, s, Options{Concurrency: 8, Timeout: 2 * time.Minute, Batch: Batch{MaxEvents: batch}}, w, quiet(), time.Hour)
			if !s.finished() || s.returned > 100 {
				t.Errorf("batches of %d: %d settled, %d given back unsent", batch, s.final, s.returned)
			}
		})
	}
}

func TestSlowEndpointIsSentFewerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(400, 400))
		w := &wire{}
		w.carry = func(context.Context, *Parcel) Answer {
			w.mu.Lock()
			under := w.under
			w.mu.Unlock()
			if under > 8 { // it bears eight
				time.Sleep(time.Second)
				return answer(timedOut)
			}
			time.Sleep(100 * time.Millisecond)
			return answer(ok)
		}
		p := push(t, s, Options{Concurrency: 64}, w, quiet(), time.Hour)
		if !s.finished() || w.most > 17 || p.Status().Limit > 12 {
			t.Errorf("%d settled, %d at once, limit %d", s.final, w.most, p.Status().Limit)
		}
	})
}

func TestThrottledEndpointGetsNothingUntilItsTimeAndNoAttemptIsWasted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(100, 100))
		asked := tooMuch
		asked.Pause = time.Hour
		began := time.Now()
		w := &wire{carry: func(context.Context, *Parcel) Answer {
			time.Sleep(time.Millisecond)
			if time.Since(began) < time.Minute {
				return answer(asked)
			}
			return answer(ok)
		}}
		push(t, s, Options{}, w, quiet(), 3*time.Hour)
		early := 0
		for _, at := range w.times {
			if at.Sub(began) < time.Hour {
				early++
			}
		}
		if !s.finished() || early > firstLimit || len(w.times) != 100+early {
			t.Errorf("%d settled by %d requests, %d of them before the hour was over", s.final, len(w.times), early)
		}
		for _, settlement := range s.settled[:early] {
			if settlement.Word != delivery.Nack || settlement.Delay < time.Hour-time.Second {
				t.Errorf("%+v", settlement)
			}
		}
	})
}

func TestDeadEndpointCostsProbesAndNotTheTopicsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(1000, 1000))
		began := time.Now()
		w := &wire{carry: func(context.Context, *Parcel) Answer {
			time.Sleep(time.Millisecond)
			if time.Since(began) < 6*time.Hour {
				return answer(failing)
			}
			return answer(ok)
		}}
		push(t, s, Options{}, w, quiet(), 12*time.Hour)
		down := 0
		for _, at := range w.times {
			if at.Sub(began) < 6*time.Hour {
				down++
			}
		}
		if !s.finished() || down > 100 {
			t.Errorf("%d settled; %d requests went to it in six hours of being down", s.final, down)
		}
	})
}

func TestRateIsKeptWithoutHoldingEventsThatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(600, 600))
		w := &wire{carry: func(context.Context, *Parcel) Answer { return answer(ok) }}
		began := time.Now()
		push(t, s, Options{Rate: 10}, w, quiet(), time.Hour)
		if took := time.Since(began); !s.finished() || took < 59*time.Second || took > 61*time.Second || s.returned > 0 {
			t.Errorf("600 at 10 a second took %s, %d went back", took, s.returned)
		}
	})
}

func TestDisabledEndpointKeepsItsEventsUntilItIsEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(50, 50))
		var on atomic.Bool
		w := &wire{carry: func(context.Context, *Parcel) Answer {
			time.Sleep(time.Millisecond)
			if !on.Load() {
				return answer(gone)
			}
			return answer(ok)
		}}
		p := New(Options{Subscription: "mail", Timeout: time.Second, Concurrency: 64}, w, quiet())
		s.window = p.Window().Messages
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- p.Run(ctx, s) }()
		time.Sleep(disabledRest / 2)
		p.Enable("too soon")
		time.Sleep(disabledRest - time.Second) // it is gone again since
		if len(ended) > 0 {
			t.Errorf("it ended though it was enabled meanwhile")
		}
		if err := <-ended; !errors.Is(err, ErrDisabled) || time.Since(began).Round(time.Second) != disabledRest/2+disabledRest {
			t.Errorf("after %s it ended with %v", time.Since(began), err)
		}
		time.Sleep(1000 * time.Hour)
		w.mu.Lock()
		requests := len(w.times)
		w.mu.Unlock()
		if requests > 2*firstLimit || p.Status().State != Disabled {
			t.Errorf("%d requests, %+v", requests, p.Status())
		}
		on.Store(true)
		if st := p.Enable("mended"); st.State != Active {
			t.Errorf("%+v", st)
		}
		s.window = p.Window().Messages
		go func() { ended <- p.Run(ctx, s) }()
		<-s.done
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestPusherThatIsToStopFinishesItsRequestsAndTakesNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(20, 20))
		c := &wire{carry: func(context.Context, *Parcel) Answer {
			time.Sleep(time.Second)
			return answer(ok)
		}}
		p := New(Options{Subscription: "mail", Timeout: 30 * time.Second, Concurrency: 4}, c, quiet())
		s.window = p.Window().Messages
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx, s) }()
		time.Sleep(1500 * time.Millisecond) // the second of each is under way
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		if under := len(c.times); len(s.settled) != under || under == 0 || under > 8 {
			t.Errorf("%d requests were made and %d events settled", under, len(s.settled))
		}
		if at := time.Since(c.times[0]); at != 2*time.Second {
			t.Errorf("it ended after %s, when the second requests did not", at)
		}
	})
}

func TestBatchesAreFullWhenThereAreEventsAndWaitNoLongerThanTheyMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(1000, 1000))
		w := &wire{carry: func(context.Context, *Parcel) Answer { time.Sleep(10 * time.Millisecond); return answer(ok) }}
		push(t, s, Options{Batch: Batch{MaxEvents: 100, MaxBytes: 1 << 20, MaxWait: time.Second}}, w, quiet(), time.Hour)
		if !s.finished() || len(w.sizes) != 10 {
			t.Errorf("batches of %v", w.sizes)
		}
		s = newShop(records(3, 3))
		began := time.Now()
		w.sizes = nil
		push(t, s, Options{Batch: Batch{MaxEvents: 100, MaxBytes: 1 << 20, MaxWait: time.Second}}, w, quiet(), time.Hour)
		if took := time.Since(began); !s.finished() || len(w.sizes) != 1 || w.sizes[0] != 3 || took > time.Second+20*time.Millisecond {
			t.Errorf("batches of %v after %s", w.sizes, took)
		}
	})
}

func TestKeysKeepTheirOrderInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(500, 7))
		seen := map[string]int64{}
		fails := 0
		w := &wire{}
		w.carry = func(_ context.Context, p *Parcel) Answer {
			w.mu.Lock()
			defer w.mu.Unlock()
			if fails++; fails%5 == 0 {
				return answer(failing)
			}
			for _, r := range p.Records {
				if last, ok := seen[string(r.Key)]; ok && r.Offset != last+7 {
					t.Errorf("key %s: offset %d came after %d", r.Key, r.Offset, last)
				}
				seen[string(r.Key)] = r.Offset
			}
			return answer(ok)
		}
		push(t, s, Options{Batch: Batch{MaxEvents: 3, MaxBytes: 1 << 20, MaxWait: 10 * time.Millisecond}}, w, quiet(), time.Hour)
		if !s.finished() {
			t.Errorf("%d of 500 settled", s.final)
		}
	})
}

func TestEventThatSpoilsItsBatchIsFoundAndTheOthersAreDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(20, 20))
		w := &wire{carry: func(_ context.Context, p *Parcel) Answer {
			for _, r := range p.Records {
				if r.Offset == 13 {
					if len(p.Records) > 1 {
						return answer(Outcome{Action: Split, Class: "status", Why: "422"})
					}
					return answer(Outcome{Action: Reject, Class: "status", Why: "422"})
				}
			}
			return answer(ok)
		}}
		push(t, s, Options{Batch: Batch{MaxEvents: 10, MaxBytes: 1 << 20, MaxWait: time.Millisecond}}, w, quiet(), time.Hour)
		rejected := 0
		for _, settlement := range s.settled {
			if settlement.Word == delivery.Reject {
				rejected++
			}
		}
		if !s.finished() || rejected != 1 || len(s.settled) != 20 {
			t.Errorf("%d settled, %d rejected", len(s.settled), rejected)
		}
	})
}

func TestBatchAnsweredEventByEventIsSettledEventByEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(records(3, 3))
		first := true
		w := &wire{carry: func(_ context.Context, p *Parcel) Answer {
			if first {
				first = false
				return Answer{Outcome: ok, Each: []Outcome{ok, failing, {Action: Reject, Why: "422"}}}
			}
			return answer(ok)
		}}
		push(t, s, Options{Batch: Batch{MaxEvents: 3, MaxBytes: 1 << 20, MaxWait: time.Second}}, w, quiet(), time.Hour)
		var words []delivery.Word
		for _, settlement := range s.settled {
			words = append(words, settlement.Word)
		}
		if want := []delivery.Word{delivery.Ack, delivery.Nack, delivery.Reject, delivery.Ack}; !slices.Equal(words, want) {
			t.Errorf("settled as %v, want %v", words, want)
		}
	})
}

func TestMessageIDIsTheSameInEveryAttemptAndEveryBatchOfTheSameEvents(t *testing.T) {
	at := event.Position{Topic: "orders", Partition: 3, Offset: 7}
	id := MessageID("mail", at)
	if id != MessageID("mail", at) || id == MessageID("other", at) || strings.Contains(id, ".") {
		t.Errorf("id %s", id)
	}
	for _, other := range []event.Position{{Topic: "orders", Partition: 4, Offset: 7}, {Topic: "orders", Partition: 3, Offset: 8}, {Topic: "order", Partition: 3, Offset: 7}} {
		if MessageID("mail", other) == id {
			t.Errorf("%s has the same id", other)
		}
	}
	leases := []delivery.Lease{{Record: records(2, 2)[0]}, {Record: records(2, 2)[1]}}
	if a, b := batchID("mail", leases), batchID("mail", slices.Clone(leases)); a != b || a == batchID("mail", leases[:1]) || batchID("mail", leases[:1]) != MessageID("mail", leases[0].Record.Position()) {
		t.Errorf("batch ids %s and %s", a, b)
	}
}

func TestOneHostIsNotSentMoreThanItsShareByAllItsEndpointsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env := quiet()
		env.Hosts = NewHosts(10)
		w := &wire{carry: func(context.Context, *Parcel) Answer { time.Sleep(5 * time.Millisecond); return answer(ok) }}
		var all sync.WaitGroup
		for range 5 {
			s := newShop(records(300, 300))
			all.Go(func() {
				push(t, s, Options{Host: "example.com:443", Concurrency: 64}, w, env, time.Hour)
				if !s.finished() {
					t.Errorf("%d settled", s.final)
				}
			})
		}
		all.Wait()
		if w.most > 10 {
			t.Errorf("%d requests at once to one host", w.most)
		}
		if len(env.Hosts.hosts) != 0 {
			t.Errorf("hosts that nobody uses are kept: %v", env.Hosts.hosts)
		}
	})
}

func TestWaiterThatGivesUpLeavesItsPlaceToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHosts(1)
		h.Acquire(t.Context(), "a")
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if h.Acquire(short, "a") {
			t.Error("two at once")
		}
		got := make(chan bool, 1)
		go func() { got <- h.Acquire(t.Context(), "a") }()
		synctest.Wait()
		h.Release("a")
		if !<-got || !h.Acquire(t.Context(), "b") {
			t.Error("a place is lost")
		}
	})
}

// notes keeps everything a pusher says.
type notes struct {
	mu       sync.Mutex
	attempts []Attempt
	saved    []Record
	notices  []Notice
	apply    func(Record)
}

func (n *notes) Attempted(a Attempt) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attempts = append(n.attempts, a)
}

func (n *notes) Save(r Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved = append(n.saved, r)
}

func (n *notes) Watch(_ string, apply func(Record)) func() {
	n.apply = apply
	return func() {}
}

func (n *notes) Notify(x Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notices = append(n.notices, x)
}

func TestEveryAttemptIsLoggedAndTheLastOneTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notes{}
		env := quiet()
		env.Attempts, env.States, env.Notices = n, n, n
		r := records(1, 1)
		r[0].Headers = []event.Header{{Name: "ce_id", Value: []byte("e-1")}}
		s := newShop(r)
		tries := 0
		w := &wire{carry: func(context.Context, *Parcel) Answer {
			if tries++; tries < 3 {
				return Answer{Outcome: failing, Status: 500, Timings: Timings{Total: 1500 * time.Microsecond}, Keys: []string{"v1-x"}}
			}
			return Answer{Outcome: ok, Status: 200}
		}}
		push(t, s, Options{Retry: delivery.Retry{MaxAttempts: 2}}, w, env, time.Hour)
		if len(n.attempts) != 3 {
			t.Fatalf("%+v", n.attempts)
		}
		for i, a := range n.attempts {
			want := map[bool]string{true: "retry", false: "ack"}[i < 2]
			if a.Number != i+1 || a.EventID != "e-1" || a.WebhookID != MessageID("mail", r[0].Position()) || a.Action != want || a.Instance != "here" {
				t.Errorf("%+v", a)
			}
		}
		if a := n.attempts[0]; a.Total != 1.5 || a.Keys[0] != "v1-x" || a.Why != "500" || a.Status != 500 {
			t.Errorf("%+v", a)
		}
		if len(n.notices) != 1 || n.notices[0].Type != NoticeExhausted || n.notices[0].Attempts != 2 || n.notices[0].Position != r[0].Position() {
			t.Errorf("%+v", n.notices)
		}
		e := n.notices[0].Event("here", "x")
		if err := e.RequireCloudEvent(); err != nil || !strings.Contains(string(e.Data), `"offset":0`) {
			t.Errorf("%v: %s", err, e.Data)
		}
	})
}

func TestDisablingElsewhereStopsThisInstanceToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notes{}
		env := quiet()
		env.States = n
		s := newShop(records(1000, 1000))
		w := &wire{}
		w.carry = func(context.Context, *Parcel) Answer {
			time.Sleep(time.Second)
			w.mu.Lock()
			count := len(w.times)
			w.mu.Unlock()
			if count == 4 {
				n.apply(Record{State: Disabled, Reason: "elsewhere", Instance: "there"})
			}
			return answer(ok)
		}
		push(t, s, Options{}, w, env, disabledRest/2)
		if s.finished() || len(w.times) > 20 {
			t.Errorf("%d requests were made", len(w.times))
		}
	})
}

// tracers choose as the gateway's telemetry does: by the publishing span.
type tracers struct {
	Tracer, root oteltrace.Tracer
	asked        []oteltrace.SpanContext
	sample       bool // of what was published without a trace
}

func (c *tracers) For(parent oteltrace.SpanContext) oteltrace.Tracer {
	c.asked = append(c.asked, parent)
	switch {
	case parent.IsSampled():
		return c.Tracer
	case !parent.IsValid() && c.sample:
		return c.root
	}
	return nil
}

func TestAttemptsAreLinkedToTheirPublisherAndToTheAttemptBefore(t *testing.T) {
	const published, by = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	old := otel.GetTextMapPropagator()
	otel.SetTextMapPropagator(propagation.TraceContext{})
	defer otel.SetTextMapPropagator(old)
	for name, c := range map[string]struct {
		parent string
		sample bool
		spans  int
		links  int // to the publishing span, of each
		scope  string
	}{
		"published in a recorded span":             {"00-" + published + "-" + by + "-01", false, 3, 1, "by parent"},
		"published in a span that is not recorded": {"00-" + published + "-" + by + "-00", true, 0, 0, ""},
		"published without a trace":                {"", true, 3, 0, "roots"},
		"published without a trace, not sampled":   {"", false, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			provider := trace.NewTracerProvider(trace.WithSpanProcessor(recorder))
			choice := &tracers{Tracer: provider.Tracer("by parent"), root: provider.Tracer("roots"), sample: c.sample}
			carried := []oteltrace.SpanContext{}
			synctest.Test(t, func(t *testing.T) {
				env := quiet()
				env.Tracer, env.TracerFor = tracenoop.Tracer{}, choice.For // the first is for nothing, then
				r := records(1, 1)
				if c.parent != "" {
					r[0].Headers = []event.Header{{Name: event.HeaderTraceParent, Value: []byte(c.parent)}}
				}
				w := &wire{carry: func(ctx context.Context, _ *Parcel) Answer {
					carried = append(carried, oteltrace.SpanContextFromContext(ctx))
					if len(carried) < 3 {
						return answer(failing)
					}
					return answer(ok)
				}}
				push(t, newShop(r), Options{}, w, env, time.Hour)
			})
			if len(carried) != 3 || len(choice.asked) != 3 {
				t.Fatalf("%d attempts, the tracer of %d was asked for", len(carried), len(choice.asked))
			}
			spans := recorder.Ended()
			if len(spans) != c.spans {
				t.Fatalf("%d spans", len(spans))
			}
			for i, got := range carried {
				if want := c.parent != ""; (choice.asked[i].SpanID().String() == by) != want {
					t.Errorf("the tracer was asked for with %v", choice.asked[i])
				}
				switch {
				case c.spans > 0: // the receiver's parent is the attempt
					if got.SpanID() != spans[i].SpanContext().SpanID() {
						t.Errorf("attempt %d carries %v", i, got)
					}
				case c.parent != "": // and without one the publisher
					if got.SpanID().String() != by || got.IsSampled() {
						t.Errorf("attempt %d carries %v", i, got)
					}
				case got.IsValid():
					t.Errorf("attempt %d carries %v", i, got)
				}
			}
			for i, s := range spans {
				if inTrace := s.SpanContext().TraceID().String() == published; inTrace != (c.links > 0) || s.InstrumentationScope().Name != c.scope {
					t.Errorf("span %d is in trace %s, of %s", i, s.SpanContext().TraceID(), s.InstrumentationScope().Name)
				}
				links := s.Links()
				if len(links) != min(i, 1)+c.links || c.links > 0 && links[0].SpanContext.SpanID().String() != by {
					t.Fatalf("span %d has the links %v", i, links)
				}
				if i > 0 && links[c.links].SpanContext.SpanID() != spans[i-1].SpanContext().SpanID() {
					t.Errorf("span %d is not linked to the one before", i)
				}
			}
		})
	}
}
