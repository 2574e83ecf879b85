package broker_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// pages is one instance's view of a ledger.
type pages struct {
	ledger *broker.Ledger
	caught chan struct{} // gets one for each CaughtUp

	mu      sync.Mutex
	current map[string]string
	next    map[string]string // between Reset and CaughtUp; nil otherwise
}

func (p *pages) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = map[string]string{}
}

func (p *pages) Take(r *event.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.current
	if p.next != nil {
		m = p.next
	}
	if r.Value == nil {
		delete(m, string(r.Key))
	} else {
		m[string(r.Key)] = string(r.Value)
	}
}

func (p *pages) CaughtUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next != nil {
		p.current, p.next = p.next, nil
	}
	p.caught <- struct{}{}
}

func (p *pages) get(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current[key]
}

// open follows topic with a client of its own until the test ends.
func openLedger(t *testing.T, c *brokertest.Cluster, topic string) *pages {
	t.Helper()
	p := &pages{ledger: c.Client().Ledger(topic), caught: make(chan struct{}, 100), current: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.ledger.Follow(ctx, p, func(err error) { t.Log("trouble:", err) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("following ended with: %v", err)
		}
	})
	p.awaitCaughtUp(t)
	return p
}

func (p *pages) awaitCaughtUp(t *testing.T) {
	t.Helper()
	select {
	case <-p.caught:
	case <-time.After(time.Minute):
		t.Fatal("the ledger is not read to its end")
	}
}

func (p *pages) put(t *testing.T, key, value string) {
	t.Helper()
	if err := p.ledger.Write(t.Context(), func() ([]*event.Record, error) {
		return []*event.Record{{Key: []byte(key), Value: []byte(value)}}, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestAWriteIsSeenByItsWriterAtOnceAndByOthersWithinASecond(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Name("_ledger")
	a, b := openLedger(t, c, topic), openLedger(t, c, topic)
	for i := range 5 { // the first makes the topic
		value := strconv.Itoa(i)
		a.put(t, "k", value)
		if got := a.get("k"); got != value {
			t.Fatalf("the writer reads %q, want %q", got, value)
		}
		began := time.Now()
		for b.get("k") != value {
			if time.Since(began) > 20*time.Second {
				t.Fatal("the other instance never sees it")
			}
			<-time.After(5 * time.Millisecond)
		}
		if took := time.Since(began); took > time.Second && !brokertest.Real() {
			t.Errorf("write %d was seen after %s", i, took)
		}
	}
	late := openLedger(t, c, topic)
	if got := late.get("k"); got != "4" {
		t.Errorf("an instance that starts reads %q", got)
	}
}

func TestNoWriterOverwritesWhatItHasNotSeen(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Name("_ledger")
	instances := []*pages{openLedger(t, c, topic), openLedger(t, c, topic), openLedger(t, c, topic)}
	const each = 10
	var group sync.WaitGroup
	for _, p := range instances {
		group.Go(func() {
			for range each {
				for {
					err := p.ledger.Write(t.Context(), func() ([]*event.Record, error) {
						n, _ := strconv.Atoi(p.get("count"))
						return []*event.Record{{Key: []byte("count"), Value: []byte(strconv.Itoa(n + 1))}}, nil
					})
					if err == nil {
						break
					}
					if !fault.KindOf(err).Retryable() {
						t.Errorf("a write failed for good: %v", err)
						return
					}
					if fault.Is(err, fault.OutcomeUnknown) {
						t.Errorf("a write's outcome is unknown though Kafka was there: %v", err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if got := openLedger(t, c, topic).get("count"); got != strconv.Itoa(each*len(instances)) {
		t.Errorf("after %d increments the count is %s", each*len(instances), got)
	}
}

func TestAWriterThatDiedInTheMiddleHidesNothing(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Name("_ledger")
	p := openLedger(t, c, topic)
	p.put(t, "k", "1")
	dead := c.Kgo(kgo.TransactionalID(topic), kgo.TransactionTimeout(30*time.Second), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := dead.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := dead.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("of the dead")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.put(t, "k", "2")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the next writer waited %s for the dead one", took)
	}
	if err := dead.EndTransaction(t.Context(), kgo.TryCommit); err == nil {
		t.Error("the writer that was fenced could commit")
	}
	p.put(t, "other", "3")
	if fresh := openLedger(t, c, topic); fresh.get("k") != "2" || fresh.get("other") != "3" {
		t.Errorf("k is %q, other is %q", fresh.get("k"), fresh.get("other"))
	}
}

func TestALedgerThatIsMadeAnewIsReadAnew(t *testing.T) {
	brokertest.NeedsFake(t) // a real one deletes late
	c := brokertest.New(t)
	topic := c.Name("_ledger")
	p := openLedger(t, c, topic)
	p.put(t, "k", "1")
	p.put(t, "gone", "1")
	if _, err := c.Admin().DeleteTopics(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	c.Topic("_ledger", 1, "cleanup.policy", "compact")
	for p.get("k") != "" {
		p.awaitCaughtUp(t)
	}
	p.put(t, "k", "2")
	if p.get("k") != "2" || p.get("gone") != "" {
		t.Errorf("k is %q, gone is %q", p.get("k"), p.get("gone"))
	}
}

func TestATopicOfSeveralPartitionsIsNoLedger(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("_ledger", 3)
	l := c.Client().Ledger(topic)
	err := l.Follow(t.Context(), &pages{caught: make(chan struct{}, 1), current: map[string]string{}}, func(error) {})
	if !fault.Is(err, fault.KafkaRefused) {
		t.Errorf("got %v", err)
	}
}
