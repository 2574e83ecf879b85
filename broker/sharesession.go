package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/fault"
)

// ShareSession is a broker's memory of what it locked for this member. It ends
// with its connection, and the locks with it.
type ShareSession struct{ node *shareNode }

type sharePart struct {
	topic     [16]byte
	partition int32
}

// shareNode talks to one broker: a request at a time, because each carries the
// session's next epoch.
type shareNode struct {
	consumer *ShareConsumer
	id       int32
	ctx      context.Context // ends when the member leaves
	cancel   context.CancelFunc
	wake     chan struct{}
	ended    chan struct{}

	// Guarded by the consumer's mu.
	wanted  map[sharePart]bool
	pending []ShareAck
	turn    shareTurn

	// Of run alone.
	session *ShareSession
	epoch   int32
	told    map[sharePart]bool // the partitions the session has
	wait    time.Duration      // of the next fetch
}

const (
	shareFetchBytes = 8 << 20
	shareFetchMost  = 1000 // events in one fetch
	shareAcksMost   = 2000 // words in one request
	// A fetch that waits holds up the words behind it, so it waits little when
	// something happened just now, and longer while nothing does.
	shareWaitLeast = 5 * time.Millisecond
	shareWaitMost  = 250 * time.Millisecond
)

func (n *shareNode) run() {
	defer close(n.ended)
	c := n.consumer
	n.wait = shareWaitLeast
	for n.ctx.Err() == nil {
		acks := n.take()
		if len(acks) > 0 {
			n.wait = shareWaitLeast
			n.acknowledge(acks)
		}
		wanted, room := n.plan()
		if room == 0 || len(wanted) == 0 {
			select {
			case <-n.ctx.Done():
			case <-n.wake:
			}
			continue
		}
		err := n.fetch(wanted, room)
		c.fetched(room)
		if err != nil && n.ctx.Err() == nil {
			c.user.Ended(nil, toFault(err, "read for share group "+c.options.Group))
			select {
			case <-n.ctx.Done():
			case <-time.After(shareRetry):
			}
		}
	}
	n.farewell()
}

// take gives the words to say now, one for each offset: a renewal that its
// event's last word overtook is not sent.
func (n *shareNode) take() []ShareAck {
	c := n.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	pending := n.pending[:min(len(n.pending), shareAcksMost)]
	n.pending = slices.Clone(n.pending[len(pending):])
	last := map[TopicPartition]map[int64]int{}
	acks := pending[:0:0]
	for _, a := range pending {
		if last[a.At] == nil {
			last[a.At] = map[int64]int{}
		}
		if i, twice := last[a.At][a.First]; twice && acks[i].Word == ShareRenew {
			acks[i] = a
			continue
		}
		last[a.At][a.First] = len(acks)
		acks = append(acks, a)
	}
	return acks
}

// end gives the session up: its locks are gone.
func (n *shareNode) end(why error) {
	c := n.consumer
	s := n.session
	n.session, n.epoch, n.told = nil, 0, nil
	if s != nil { // the words that wait for it are refused when their turn comes
		c.user.Ended(s, why)
	}
}

func (n *shareNode) advance() {
	if n.epoch++; n.epoch <= 0 {
		n.epoch = 1
	}
}

// fetch asks for up to room events.
func (n *shareNode) fetch(wanted map[sharePart]bool, room int) error {
	c := n.consumer
	request := kmsg.NewPtrShareFetchRequest()
	request.GroupID, request.MemberID, request.ShareSessionEpoch = &c.options.Group, &c.member, n.epoch
	request.MaxWaitMillis = int32(n.wait.Milliseconds())
	request.MinBytes, request.MaxBytes = 1, shareFetchBytes
	request.MaxRecords, request.BatchSize, request.ShareAcquireMode = int32(room), int32(room), 1 // no more than asked for
	add, forget := map[[16]byte][]int32{}, map[[16]byte][]int32{}
	for p := range wanted {
		if !n.told[p] {
			add[p.topic] = append(add[p.topic], p.partition)
		}
	}
	for p := range n.told {
		if !wanted[p] {
			forget[p.topic] = append(forget[p.topic], p.partition)
		}
	}
	for id, partitions := range add {
		t := kmsg.NewShareFetchRequestTopic()
		t.TopicID = id
		for _, p := range partitions {
			part := kmsg.NewShareFetchRequestTopicPartition()
			part.Partition, part.PartitionMaxBytes = p, shareFetchBytes
			t.Partitions = append(t.Partitions, part)
		}
		request.Topics = append(request.Topics, t)
	}
	for id, partitions := range forget {
		t := kmsg.NewShareFetchRequestForgottenTopicsData()
		t.TopicID, t.Partitions = id, partitions
		request.ForgottenTopicsData = append(request.ForgottenTopicsData, t)
	}
	sent := time.Now()
	got, err := c.kgo.Broker(int(n.id)).Request(c.talk, request)
	if err != nil {
		n.end(err)
		poke(c.look) // perhaps it leads nothing any more
		return err
	}
	answer := got.(*kmsg.ShareFetchResponse)
	if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
		n.end(err)
		if errors.Is(err, kerr.ShareSessionNotFound) || errors.Is(err, kerr.InvalidShareSessionEpoch) {
			return nil // the next fetch begins a new one
		}
		return err
	}
	if n.session == nil {
		n.session = &ShareSession{node: n}
	}
	n.advance()
	n.told = maps.Clone(wanted)
	return n.read(answer, sent)
}

// read hands on what a fetch brought.
func (n *shareNode) read(answer *kmsg.ShareFetchResponse, sent time.Time) error {
	c := n.consumer
	// The lock began after the request was sent, so it ends after this.
	until := sent.Add(time.Duration(answer.AcquisitionLockTimeoutMillis) * time.Millisecond)
	var all []Acquired
	var acks []ShareAck
	var failed error
	for _, t := range answer.Topics {
		c.mu.Lock()
		topic := c.names[t.TopicID]
		c.mu.Unlock()
		for i := range t.Partitions {
			p := &t.Partitions[i]
			at := TopicPartition{topic, p.Partition}
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				switch {
				case errors.Is(err, kerr.NotLeaderForPartition), errors.Is(err, kerr.FencedLeaderEpoch), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
					delete(n.told, sharePart{t.TopicID, p.Partition})
					poke(c.look)
				}
				failed = toFault(err, "read "+at.String())
			}
			records, words, err := decodeShare(topic, p, n.session)
			if err != nil {
				failed = err
			}
			all = append(all, records...)
			acks = append(acks, words...)
		}
	}
	if len(all) > 0 {
		n.wait = shareWaitLeast
		c.user.Acquired(all, until)
	} else {
		n.wait = min(2*n.wait, shareWaitMost)
	}
	c.Acknowledge(acks...)
	return failed
}

// decodeShare gives the acquired records of a partition, and the words for
// acquired offsets that hold none: gaps of compaction and transactions, which
// keep their place in the group otherwise, and what cannot be read.
func decodeShare(topic string, p *kmsg.ShareFetchResponseTopicPartition, s *ShareSession) ([]Acquired, []ShareAck, error) {
	at := TopicPartition{topic, p.Partition}
	if len(p.AcquiredRecords) == 0 {
		return nil, nil, nil
	}
	as := kmsg.NewFetchResponseTopicPartition()
	as.Partition, as.RecordBatches = p.Partition, p.Records
	read, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: topic, Partition: p.Partition}, &as, kgo.DefaultDecompressor(), nil)
	records := read.Records
	var all []Acquired
	var acks []ShareAck
	word := shareGap
	if read.Err != nil {
		word = ShareRelease
	}
	for _, r := range p.AcquiredRecords {
		if r.LastOffset < r.FirstOffset || r.FirstOffset < 0 {
			continue
		}
		next := r.FirstOffset
		gap := func(end int64) {
			if next < end {
				acks = append(acks, ShareAck{s, at, next, end - 1, word})
			}
		}
		for _, k := range records {
			if k.Offset < next || k.Offset > r.LastOffset {
				continue
			}
			gap(k.Offset)
			all = append(all, Acquired{Record: fromRecord(k), Deliveries: max(1, int(r.DeliveryCount)), Session: s})
			next = k.Offset + 1
		}
		gap(r.LastOffset + 1)
	}
	if read.Err != nil {
		return all, acks, toFault(read.Err, "read "+at.String())
	}
	return all, acks, nil
}

// acknowledge says words. When Kafka refuses a partition's, all of them are
// refused for the one whose lock is gone: they are said again in halves.
func (n *shareNode) acknowledge(acks []ShareAck) {
	c := n.consumer
	live := acks[:0:0]
	for _, a := range acks {
		if a.Session != n.session || n.session == nil {
			c.user.Acknowledged(a, time.Time{}, errShareEnded)
			continue
		}
		live = append(live, a)
	}
	if len(live) == 0 {
		return
	}
	sent := time.Now()
	answer, err := n.request(n.epoch, live)
	if err == nil {
		err = kerr.ErrorForCode(answer.ErrorCode)
	}
	if err != nil {
		for _, a := range live {
			c.user.Acknowledged(a, time.Time{}, toFault(err, "acknowledge in share group "+c.options.Group))
		}
		n.end(err)
		return
	}
	n.advance()
	n.tell(answer, live, sent)
}

// tell tells the user what became of words, and says those again that were
// refused for others.
func (n *shareNode) tell(answer *kmsg.ShareAcknowledgeResponse, acks []ShareAck, sent time.Time) {
	c := n.consumer
	until := sent.Add(time.Duration(answer.AcquisitionLockTimeoutMillis) * time.Millisecond)
	outcome := map[TopicPartition]error{}
	for _, t := range answer.Topics {
		c.mu.Lock()
		topic := c.names[t.TopicID]
		c.mu.Unlock()
		for _, p := range t.Partitions {
			outcome[TopicPartition{topic, p.Partition}] = kerr.ErrorForCode(p.ErrorCode)
		}
	}
	refused := map[TopicPartition][]ShareAck{}
	for _, a := range acks {
		err, told := outcome[a.At]
		switch {
		case !told:
			c.user.Acknowledged(a, time.Time{}, fault.New(fault.OutcomeUnknown, "Kafka's answer does not tell of %s", a.At))
		case err == nil:
			c.user.Acknowledged(a, until, nil)
		default:
			refused[a.At] = append(refused[a.At], a)
		}
	}
	for at, again := range refused {
		err := outcome[at]
		switch {
		case errors.Is(err, kerr.InvalidRecordState) && len(again) > 1:
			n.acknowledge(again[:len(again)/2])
			n.acknowledge(again[len(again)/2:])
			continue
		case kerr.IsRetriable(err) && !errors.Is(err, kerr.NotLeaderForPartition) && !errors.Is(err, kerr.FencedLeaderEpoch) && !errors.Is(err, kerr.UnknownTopicOrPartition) && n.ctx.Err() == nil:
			select { // the locks hold meanwhile; their user knows how long
			case <-n.ctx.Done():
			case <-time.After(shareRetry / 5):
			}
			c.Acknowledge(again...)
			continue
		case errors.Is(err, kerr.NotLeaderForPartition), errors.Is(err, kerr.FencedLeaderEpoch):
			poke(c.look)
		}
		for _, a := range again {
			c.user.Acknowledged(a, time.Time{}, toFault(err, "acknowledge in "+at.String()))
		}
	}
}

func (n *shareNode) request(epoch int32, acks []ShareAck) (*kmsg.ShareAcknowledgeResponse, error) {
	c := n.consumer
	request := kmsg.NewPtrShareAcknowledgeRequest()
	request.GroupID, request.MemberID, request.ShareSessionEpoch = &c.options.Group, &c.member, epoch
	ids := map[string][16]byte{}
	c.mu.Lock()
	for id, name := range c.names {
		ids[name] = id
	}
	c.mu.Unlock()
	by := map[string]map[int32][]ShareAck{}
	for _, a := range acks {
		if by[a.At.Topic] == nil {
			by[a.At.Topic] = map[int32][]ShareAck{}
		}
		by[a.At.Topic][a.At.Partition] = append(by[a.At.Topic][a.At.Partition], a)
		request.IsRenewAck = request.IsRenewAck || a.Word == ShareRenew
	}
	for topic, partitions := range by {
		t := kmsg.NewShareAcknowledgeRequestTopic()
		t.TopicID = ids[topic]
		for p, of := range partitions {
			part := kmsg.NewShareAcknowledgeRequestTopicPartition()
			part.Partition = p
			part.AcknowledgementBatches = shareBatches(of)
			t.Partitions = append(t.Partitions, part)
		}
		request.Topics = append(request.Topics, t)
	}
	got, err := c.kgo.Broker(int(n.id)).Request(c.talk, request)
	if err != nil {
		return nil, err
	}
	return got.(*kmsg.ShareAcknowledgeResponse), nil
}

// shareBatches joins neighbours with one word, in order of offset.
func shareBatches(acks []ShareAck) []kmsg.ShareAcknowledgeRequestTopicPartitionAcknowledgementBatch {
	acks = slices.Clone(acks)
	slices.SortFunc(acks, func(a, b ShareAck) int {
		if a.First < b.First {
			return -1
		}
		return 1
	})
	var all []kmsg.ShareAcknowledgeRequestTopicPartitionAcknowledgementBatch
	for _, a := range acks {
		if i := len(all) - 1; i >= 0 && all[i].LastOffset+1 == a.First && all[i].AcknowledgeTypes[0] == int8(a.Word) {
			all[i].LastOffset = a.Last
			continue
		}
		b := kmsg.NewShareAcknowledgeRequestTopicPartitionAcknowledgementBatch()
		b.FirstOffset, b.LastOffset, b.AcknowledgeTypes = a.First, a.Last, []int8{int8(a.Word)}
		all = append(all, b)
	}
	return all
}

// farewell says the last words and ends the session, which releases what is left.
func (n *shareNode) farewell() {
	n.sayTheRest()
	if n.session != nil {
		_, _ = n.request(-1, nil) // without it the session ends with the connection
		n.end(nil)
	}
	n.sayTheRest() // what was said while the session ended is refused
}

// sayTheRest says the last words; what would be kept is released.
func (n *shareNode) sayTheRest() {
	for acks := n.take(); len(acks) > 0; acks = n.take() {
		for i := range acks {
			if acks[i].Word == ShareRenew {
				acks[i].Word = ShareRelease
			}
		}
		n.acknowledge(acks)
	}
}
