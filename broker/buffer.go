package broker

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/event"
)

// account is what one topic's records take of the publish buffer, however they
// are written.
type account struct {
	topic   string
	bytes   atomic.Int64
	leaving atomic.Bool // the clients are forgetting the topic (strays)
}

func (p *Producer) account(topic string) *account {
	if a, ok := p.accounts.Load(topic); ok {
		return a.(*account)
	}
	a, _ := p.accounts.LoadOrStore(topic, &account{topic: topic})
	return a.(*account)
}

// reserve takes room in the buffer. One topic gets at most half of it, so that a
// topic which Kafka does not take leaves the others room.
func (p *Producer) reserve(size int, topic *account) error {
	limit := int64(p.client.options.PublishBuffer)
	if n := p.buffered.Add(int64(size)); n > limit {
		p.buffered.Add(int64(-size))
		return bufferFull("the publish buffer (kafka.publish_buffer, %s) is full", p.client.options.PublishBuffer)
	}
	if topic.bytes.Add(int64(size)) > limit/2 {
		topic.bytes.Add(int64(-size))
		p.buffered.Add(int64(-size))
		return bufferFull("this topic's half of the publish buffer (kafka.publish_buffer, %s) is full", p.client.options.PublishBuffer)
	}
	if topic.leaving.Load() {
		topic.bytes.Add(int64(-size))
		p.buffered.Add(int64(-size))
		return p.wrong(topic.topic, kerr.UnknownTopicOrPartition)
	}
	p.records.Add(1)
	return nil
}

func (p *Producer) free(size int, topic *account) {
	p.buffered.Add(int64(-size))
	p.records.Add(-1)
	topic.bytes.Add(int64(-size))
}

// share is the room of records that are stored together.
type share struct {
	account *account
	size    int
}

// reserveAll takes room for all of records, or for none.
func (p *Producer) reserveAll(records []*event.Record) ([]share, error) {
	shares := make([]share, len(records))
	for i, r := range records {
		shares[i] = share{p.account(r.Topic), r.Size() + recordOverhead}
		if err := p.reserve(shares[i].size, shares[i].account); err != nil {
			p.freeAll(shares[:i])
			return nil, err
		}
	}
	return shares, nil
}

func (p *Producer) freeAll(shares []share) {
	for _, s := range shares {
		p.free(s.size, s.account)
	}
}

// strays are topics that do not exist. The client would ask for them for ever;
// here they are taken out of it again, by one goroutine at a time. Only a topic of
// which the client never gave a partition to a record: it would count that
// partition's batches from zero again, and Kafka, which knows the last five of a
// producer, would drop what it takes for one of them and answer with its place. A
// topic that was there stays with the client until it is another one (reborn.go).
type strays struct {
	mu      sync.Mutex
	names   map[string]bool
	running bool
	closed  bool
	work    sync.WaitGroup
}

// maxStrays bounds the names that wait; one beyond stays with the client until it is met again.
const maxStrays = 1000

func (s *strays) met(p *Producer, topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.names) >= maxStrays {
		return
	}
	if s.names == nil {
		s.names = map[string]bool{}
	}
	s.names[topic] = true
	if !s.running {
		s.running = true
		s.work.Go(func() { s.purge(p) })
	}
}

// purge forgets what is there, until there is no more. A topic whose records
// wait again is left: they would fail with it, and it may have been created. While
// it is forgotten it takes none.
func (s *strays) purge(p *Producer) {
	for {
		s.mu.Lock()
		var topics []string
		var accounts []*account
		for name := range s.names {
			a := p.account(name)
			if a.leaving.Store(true); a.bytes.Load() != 0 {
				a.leaving.Store(false)
				continue
			}
			topics, accounts = append(topics, name), append(accounts, a)
		}
		s.names = nil
		if len(topics) == 0 || s.closed {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, l := range *p.lines.Load() {
			forget(l.client, l.gates, topics)
		}
		for _, a := range accounts {
			p.accounts.CompareAndDelete(a.topic, a)
		}
	}
}

// forget takes topics out of a client, except those that it has written to.
func forget(client *kgo.Client, met *gates, topics []string) {
	client.PurgeTopicsFromProducing(slices.DeleteFunc(slices.Clone(topics), func(topic string) bool { return met.route(topic) != nil })...)
}

func (s *strays) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
}
