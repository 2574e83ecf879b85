package broker

import (
	"sync"
	"sync/atomic"

	"github.com/postern-dev/postern/event"
)

// account is what one topic's records take of the publish buffer, however they
// are written.
type account struct{ bytes atomic.Int64 }

func (p *Producer) account(topic string) *account {
	if a, ok := p.accounts.Load(topic); ok {
		return a.(*account)
	}
	a, _ := p.accounts.LoadOrStore(topic, &account{})
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
// here they are taken out of it again, by one goroutine at a time.
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
// wait again is left: they would fail with it, and it may have been created.
func (s *strays) purge(p *Producer) {
	for {
		s.mu.Lock()
		var topics []string
		for name := range s.names {
			if a := p.account(name); a.bytes.Load() == 0 {
				topics = append(topics, name)
				p.accounts.CompareAndDelete(name, a)
			}
		}
		s.names = nil
		if len(topics) == 0 || s.closed {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, l := range *p.lines.Load() {
			l.client.PurgeTopicsFromProducing(topics...)
		}
	}
}

func (s *strays) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
}
