package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// ShareOptions says what a share group (KIP-932) reads.
type ShareOptions struct {
	Group   string
	Topics  []string
	Pattern string                  // in place of Topics, as in ConsumerOptions
	Except  func(topic string) bool // of what Pattern matches
	Start   Start
	// Beside are further topics that exist, read from their start on; see Read.
	Beside []string
	// Room is how many more events are wanted now; 0: none are fetched. Called often.
	Room func() int
}

func (o ShareOptions) matches(topic string) bool { return matchesPattern(o.Pattern, o.Except, topic) }

// ShareWord is what is said of an acquired event.
type ShareWord int8

// The words, as KIP-932 and KIP-1222 number them.
const (
	shareGap     ShareWord = 0 // there is no event at the offset
	ShareAccept  ShareWord = 1 // done
	ShareRelease ShareWord = 2 // may go to any member, at once
	ShareReject  ShareWord = 3 // never again
	ShareRenew   ShareWord = 4 // the lock begins anew
)

// Acquired is one event that is locked for this member.
type Acquired struct {
	Record     *event.Record
	Deliveries int // Kafka's count, this one included
	Session    *ShareSession
}

// ShareAck says a word of the offsets First to Last of a partition, which
// Session acquired.
type ShareAck struct {
	Session     *ShareSession
	At          TopicPartition
	First, Last int64
	Word        ShareWord
}

// ShareUser is told what becomes of events. Calls must not block, and may call
// Acknowledge and Wake.
type ShareUser interface {
	// Acquired events are locked until that time at least.
	Acquired(all []Acquired, until time.Time)
	// Acknowledged tells that Kafka has durably taken a word, or why not: then the
	// lock is gone. Renewed locks last until that time at least.
	Acknowledged(ack ShareAck, until time.Time, err error)
	// Ended tells that a session's locks are gone; nil: that all is well again or
	// what is wrong, for people.
	Ended(s *ShareSession, err error)
}

// ShareConsumer is a member of a share group. kgo's own takes every event for
// done that is not settled when the next are polled, and renews a lock once;
// here an event is held as long as its user likes. All is safe for concurrent use.
type ShareConsumer struct {
	client  *Client
	options ShareOptions
	user    ShareUser
	kgo     *kgo.Client
	admin   *kadm.Client
	member  string

	ctx    context.Context // ends when the member leaves
	cancel context.CancelFunc
	talk   context.Context // of requests to sessions: one that is cut off takes the session's locks and words with it
	hangUp context.CancelFunc
	done   sync.WaitGroup
	look   chan struct{} // metadata is to be asked for
	apart  chan errand

	mu       sync.Mutex
	topics   []string
	beside   []string // topics that are read too (Read)
	assigned map[[16]byte][]int32
	names    map[[16]byte]string
	nodes    map[int32]*shareNode
	asked    int   // events that fetches under way may bring
	turns    int64 // how often room was asked for
}

const (
	shareLookPause = 250 * time.Millisecond // between askings for metadata
	shareRetry     = 500 * time.Millisecond // after a failed request
	// shareLeaveTimeout bounds the farewell: what is not told then, Kafka finds out by the session's end.
	shareLeaveTimeout = 5 * time.Second
)

// NewShareConsumer makes a member, which does nothing until Join.
func (c *Client) NewShareConsumer(o ShareOptions, user ShareUser) *ShareConsumer {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	ctx, cancel := context.WithCancel(context.Background())
	talk, hangUp := context.WithCancel(context.Background())
	return &ShareConsumer{
		client: c, options: o, user: user, member: hex.EncodeToString(id[:]), ctx: ctx, cancel: cancel, talk: talk, hangUp: hangUp, look: make(chan struct{}, 1), apart: make(chan errand),
		topics: slices.Clone(o.Topics), beside: slices.Clone(o.Beside), names: map[[16]byte]string{}, nodes: map[int32]*shareNode{},
	}
}

// Join looks that the broker can do what is needed, sets where the group begins
// if it is new, and becomes a member. Before its user is told of anything, begun
// has the group's settings. Once.
func (s *ShareConsumer) Join(ctx context.Context, begun func(ShareSettings)) error {
	fail := func(err error) error {
		s.cancel()
		s.hangUp()
		return err
	}
	if err := s.client.shareSupported(ctx); err != nil {
		return fail(err)
	}
	settings, err := s.client.PrepareShareGroup(ctx, s.options.Group)
	if err != nil {
		return fail(err)
	}
	if err := s.begin(ctx); err != nil {
		return fail(err)
	}
	if err := s.connect(); err != nil {
		return fail(err)
	}
	begun(settings)
	s.done.Go(s.heartbeatLoop)
	s.done.Go(s.lookLoop)
	return nil
}

// connect makes connections of its own: a fetch that waits holds up whatever is
// behind it. Those there were are closed.
func (s *ShareConsumer) connect() error {
	cl, err := kgo.NewClient(s.client.base...)
	if err != nil {
		return fmt.Errorf("kafka client for share group %s: %w", s.options.Group, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kgo != nil {
		s.kgo.Close()
	}
	s.kgo, s.admin = cl, kadm.NewClient(cl)
	return nil
}

// begin finds the topics, and writes where a new group begins.
func (s *ShareConsumer) begin(ctx context.Context) error {
	if s.options.Pattern != "" {
		found, err := s.client.Matching(ctx, s.options.matches)
		s.topics = found
		return err // a pattern's topics begin at their start
	}
	topics, err := s.client.topicsToRead(ctx, s.topics, true)
	if err != nil {
		return err
	}
	at, err := s.client.SharePositions(ctx, s.options.Group, s.topics...)
	if err != nil || len(at) > 0 {
		return err
	}
	first, err := s.client.startOffsets(ctx, topics, s.options.Start)
	if err != nil {
		return err
	}
	for _, topic := range s.options.Beside {
		ranges, err := s.client.Ranges(ctx, topic)
		if err != nil {
			return err
		}
		for p, is := range ranges {
			first[TopicPartition{topic, p}] = is.Start
		}
	}
	// Earliest is said too: the group's setting may reach the partitions' leaders
	// later than the first fetch, which then begins at their end.
	earliest := !s.options.Start.Latest && s.options.Start.Time.IsZero()
	err = s.client.AlterShareGroup(ctx, s.options.Group, first)
	if errors.Is(err, kerr.NonEmptyGroup) {
		return nil // another instance was quicker
	}
	if earliest {
		return nil // the settings have to do: it may lack the right, or find a consumer group
	}
	return err
}

// errand is what is done while the member is away.
type errand struct {
	do   func(context.Context)
	done chan struct{}
}

// Apart lets go of everything, leaves the group, and comes back when do has
// returned: a share group's position can be set only while nobody is in it. It
// returns once do has, whose context ends when the consumer is closed; false if it
// is closed already.
func (s *ShareConsumer) Apart(do func(context.Context)) bool {
	e := errand{do, make(chan struct{})}
	select {
	case s.apart <- e:
		<-e.done
		return true
	case <-s.ctx.Done():
		return false
	}
}

// heartbeatLoop keeps the membership and learns the assignment.
func (s *ShareConsumer) heartbeatLoop() {
	epoch, told, matched := int32(0), []string(nil), time.Now()
	for {
		if s.options.Pattern != "" && time.Since(matched) > patternEvery {
			matched = time.Now()
			if found, err := s.client.Matching(s.ctx, s.options.matches); err == nil {
				s.mu.Lock()
				s.topics = found
				s.mu.Unlock()
			}
		}
		topics := s.reading()
		pause := shareRetry
		if epoch != 0 || len(topics) > 0 {
			request := kmsg.NewPtrShareGroupHeartbeatRequest()
			request.GroupID, request.MemberID, request.MemberEpoch = s.options.Group, s.member, epoch
			if epoch == 0 || !slices.Equal(told, topics) {
				request.SubscribedTopicNames = append([]string{}, topics...)
			}
			answer, err := request.RequestWith(s.ctx, s.kgo)
			if err == nil {
				err = kerr.ErrorForCode(answer.ErrorCode)
			}
			switch {
			case s.ctx.Err() != nil:
			case err == nil:
				epoch, told = answer.MemberEpoch, topics
				pause = time.Duration(answer.HeartbeatIntervalMillis) * time.Millisecond
				if a := answer.Assignment; a != nil {
					s.assign(a.TopicPartitions)
				}
				s.user.Ended(nil, nil)
			case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.FencedMemberEpoch):
				epoch, pause = 0, 0 // joined anew at once, under the same id
			default:
				if errors.Is(err, kerr.GroupIDNotFound) {
					if epoch == 0 {
						err = fault.New(fault.QueueUnsupported, "group %s is a consumer group, which order QUEUE cannot use: give the subscription a group of another name", s.options.Group)
					}
					epoch = 0
				}
				told = nil
				s.user.Ended(nil, toFault(err, "be a member of share group "+s.options.Group))
			}
		}
		select {
		case <-s.ctx.Done():
			s.letGo()
			s.leave(epoch)
			return
		case e := <-s.apart:
			s.assign(nil)
			s.letGo()
			// A leader forgets where the group stood with the connection of its last
			// member: it must be gone before the group can be empty.
			if err := s.connect(); err != nil {
				s.user.Ended(nil, err)
			}
			s.leave(epoch)
			e.do(s.ctx)
			close(e.done)
			epoch, told = 0, nil
		case <-time.After(pause):
		}
	}
}

// reading gives the topics that are read now.
func (s *ShareConsumer) reading() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(slices.Clone(s.topics), s.beside...)
}

// Read reads one more topic, which must exist, from its start on if the group has
// not begun it. The group hears of it with the next heartbeat.
func (s *ShareConsumer) Read(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.beside, topic) {
		s.beside = append(slices.Clone(s.beside), topic)
	}
}

// letGo gives everything back.
func (s *ShareConsumer) letGo() {
	s.mu.Lock()
	nodes := slices.Collect(maps.Values(s.nodes))
	clear(s.nodes)
	s.mu.Unlock()
	for _, n := range nodes {
		n.cancel()
		<-n.ended
	}
}

// leave tells the group, if epoch says that this is a member.
func (s *ShareConsumer) leave(epoch int32) {
	if epoch <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shareLeaveTimeout)
	defer cancel()
	request := kmsg.NewPtrShareGroupHeartbeatRequest()
	request.GroupID, request.MemberID, request.MemberEpoch = s.options.Group, s.member, -1
	_, _ = request.RequestWith(ctx, s.kgo) // without it the membership ends with its session
}

func (s *ShareConsumer) assign(topics []kmsg.ShareGroupHeartbeatResponseAssignmentTopicPartition) {
	s.mu.Lock()
	s.assigned = map[[16]byte][]int32{}
	for _, t := range topics {
		s.assigned[t.TopicID] = t.Partitions
	}
	s.mu.Unlock()
	poke(s.look)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lookLoop finds the leaders of what is assigned.
func (s *ShareConsumer) lookLoop() {
	ticker := time.NewTicker(metadataMaxAge)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.look:
		case <-ticker.C:
		}
		if !s.findLeaders() {
			poke(s.look)
		}
		select { // a partition without a leader is asked for again, not at once
		case <-s.ctx.Done():
			return
		case <-time.After(shareLookPause):
		}
	}
}

// findLeaders hands each assigned partition to its leader's node; false if some have none.
func (s *ShareConsumer) findLeaders() bool {
	topics := s.reading()
	if len(topics) == 0 {
		return true
	}
	s.mu.Lock()
	admin := s.admin
	s.mu.Unlock()
	details, err := admin.ListTopicsWithInternal(s.ctx, topics...)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	of := map[int32]map[sharePart]bool{}
	all := true
	ids := map[[16]byte]kadm.TopicDetail{}
	for _, d := range details {
		ids[d.ID] = d
	}
	for id, partitions := range s.assigned {
		d, ok := ids[id]
		if !ok {
			all = false
			continue
		}
		s.names[id] = d.Topic
		for _, p := range partitions {
			leader := int32(-1)
			if pd, ok := d.Partitions[p]; ok && pd.Err == nil {
				leader = pd.Leader
			}
			if leader < 0 {
				all = false
				continue
			}
			if of[leader] == nil {
				of[leader] = map[sharePart]bool{}
			}
			of[leader][sharePart{id, p}] = true
		}
	}
	for node := range of {
		if s.nodes[node] == nil && s.ctx.Err() == nil {
			n := &shareNode{consumer: s, id: node, wake: make(chan struct{}, 1), ended: make(chan struct{})}
			n.ctx, n.cancel = context.WithCancel(s.ctx)
			s.nodes[node] = n
			s.done.Go(n.run)
		}
	}
	for id, n := range s.nodes {
		n.wanted = of[id]
		poke(n.wake)
	}
	return all
}

// Acknowledge says words of acquired events; the user is told of each what
// became of it, never from within this call.
func (s *ShareConsumer) Acknowledge(acks ...ShareAck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range acks {
		n := a.Session.node
		n.pending = append(n.pending, a)
		poke(n.wake)
	}
}

var errShareEnded = fault.New(fault.OutcomeUnknown, "the session with the broker that locked the event has ended: the event comes again unless it was acknowledged before")

// Wake looks at Room again.
func (s *ShareConsumer) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		poke(n.wake)
	}
}

// Partitions gives what is assigned now.
func (s *ShareConsumer) Partitions() []TopicPartition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tps []TopicPartition
	for id, partitions := range s.assigned {
		for _, p := range partitions {
			if name := s.names[id]; name != "" {
				tps = append(tps, TopicPartition{name, p})
			}
		}
	}
	return sortedPartitions(tps)
}

// Close says the last words, releases everything else, and leaves the group.
func (s *ShareConsumer) Close() {
	s.cancel()
	limit := time.AfterFunc(shareLeaveTimeout, s.hangUp)
	defer limit.Stop()
	s.done.Wait()
	s.hangUp()
	s.kgo.Close()
}
