package broker

import (
	"context"
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

// ConsumerOptions says what a group reads.
type ConsumerOptions struct {
	Group  string
	Topics []string
	// Pattern reads, in place of Topics, all topics it matches, those created later
	// too: a glob as in path.Match. Names that begin with an underscore never match,
	// nor do those that Except names.
	Pattern string
	Except  func(topic string) bool
	Start   Start // applied once, when the group's first commit is written
	// Begun says that the group has committed before: that it has no commit is POSITION_LOST.
	Begun bool
	// Metadata gives the metadata of the group's first commits; nil gives none.
	Metadata func(Assigned) string
	// Idle fetches nothing.
	Idle bool
	// Heard is called when the coordinator answers again after a silence in which it
	// may have given the partitions away (Alive). It returns at once.
	Heard func()
}

func (o ConsumerOptions) matches(topic string) bool {
	return matchesPattern(o.Pattern, o.Except, topic)
}

// Assigned is one partition that became ours, with what its last owner left.
type Assigned struct {
	TopicPartition
	TopicID  [16]byte
	Offset   int64  // where reading begins
	Metadata string // of the commit that said so; "" for a first reading
}

// Committing is what to commit for one partition.
type Committing struct {
	Offset   int64
	Metadata string
}

// Owner is told of partitions coming and going. Calls come one at a time, but for a
// Lost when a topic was made again.
type Owner interface {
	// Assigned comes before the first record of the partitions is polled.
	Assigned([]Assigned)
	// Revoked may commit; the partitions go to another member when it returns.
	Revoked(context.Context, []TopicPartition)
	// Lost partitions are gone already; a commit for them would be refused.
	Lost([]TopicPartition)
}

// Consumer is a member of a consumer group. Poll from one goroutine; the rest
// is safe for concurrent use.
type Consumer struct {
	client  *Client
	options ConsumerOptions
	owner   Owner
	membership

	closing context.Context
	close   context.CancelFunc
	watched sync.WaitGroup // the watch for topics

	mu      sync.Mutex
	topics  []string                                                       // read now
	fetched map[TopicPartition]kmsg.OffsetFetchResponseGroupTopicPartition // of the assignment under way
	ids     map[string][16]byte
	ends    map[TopicPartition]int64
	starts  map[TopicPartition]int64
	// members tells as which member of the group each partition was assigned to us.
	// A group that has forgotten its member takes it in again under a new id, and the
	// client goes on with its partitions as if nothing had been; meanwhile others may
	// have had them, and committed.
	members map[TopicPartition]string
	last    map[TopicPartition]Committing // what Kafka has of each, as far as we know
}

// The group client's buffers are small, because what it buffers for a paused
// partition is dropped and fetched again.
const (
	fetchMaxBytes          = 8 << 20
	fetchMaxPartitionBytes = 1 << 20
	commitTimeout          = 10 * time.Second
	// A member has this long to come to a rebalance: to let go of its partitions (two
	// seconds and a commit). While one is awaited, nobody has what was let go, so one
	// that died on its way must not be awaited for long.
	rebalanceTimeout = 15 * time.Second
)

// NewConsumer makes a consumer, which does nothing until Join.
func (c *Client) NewConsumer(o ConsumerOptions, owner Owner) *Consumer {
	consumer := &Consumer{client: c, options: o, owner: owner, topics: slices.Clone(o.Topics), ids: map[string][16]byte{}, ends: map[TopicPartition]int64{}, starts: map[TopicPartition]int64{}, members: map[TopicPartition]string{}, last: map[TopicPartition]Committing{}}
	consumer.closing, consumer.close = context.WithCancel(context.Background())
	return consumer
}

// Join writes the group's first commit if it has none, then joins it. Once.
func (consumer *Consumer) Join(ctx context.Context) error {
	if err := consumer.beginPatiently(ctx); err != nil {
		return err
	}
	if err := consumer.enter(); err != nil {
		return err
	}
	if consumer.options.Pattern != "" {
		consumer.watched.Go(func() { consumer.watch(consumer.closing) })
	}
	return nil
}

// watch looks for topics that the pattern matches, as often as the client looks
// for new partitions.
func (consumer *Consumer) watch(ctx context.Context) {
	ticker := time.NewTicker(patternEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		found, err := consumer.client.Matching(ctx, consumer.options.matches)
		if err != nil {
			continue // the group's own reading says what is wrong
		}
		consumer.mu.Lock()
		var more []string
		for _, t := range found {
			if !slices.Contains(consumer.topics, t) {
				more = append(more, t)
			}
		}
		consumer.topics = append(consumer.topics, more...)
		consumer.mu.Unlock()
		consumer.member().AddConsumeTopics(more...)
	}
}

// patternEvery is how soon a new topic of a pattern is found.
const patternEvery = 30 * time.Second

// reading gives the topics that are read now.
func (consumer *Consumer) reading() []string {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	return slices.Clone(consumer.topics)
}

func (consumer *Consumer) keepFetched(_ context.Context, _ *kgo.Client, answer *kmsg.OffsetFetchResponse) error {
	fetched := map[TopicPartition]kmsg.OffsetFetchResponseGroupTopicPartition{}
	for _, g := range answer.Groups {
		for _, t := range g.Topics {
			name := t.Topic
			if name == "" { // v10 and later name topics by id
				name = consumer.nameOf(t.TopicID)
			}
			for _, p := range t.Partitions {
				fetched[TopicPartition{name, p.Partition}] = p
			}
		}
	}
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	consumer.fetched = fetched
	return nil
}

// assigned is called with the positions of new partitions, after keepFetched
// and before anything of them is fetched.
func (consumer *Consumer) assigned(ctx context.Context, positions map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	consumer.mu.Lock()
	fetched := consumer.fetched
	consumer.fetched = nil
	consumer.mu.Unlock()
	var all []Assigned
	for topic, partitions := range positions {
		id := consumer.idOf(ctx, topic)
		var starts kadm.ListedOffsets
		for p := range partitions {
			a := Assigned{TopicPartition: TopicPartition{topic, p}, TopicID: id}
			was, ok := fetched[a.TopicPartition]
			if ok && was.Offset >= 0 {
				a.Offset = was.Offset
				if was.Metadata != nil {
					a.Metadata = *was.Metadata
				}
			} else {
				if starts == nil {
					var err error
					if starts, err = consumer.client.admin.ListStartOffsets(ctx, topic); err != nil {
						return nil, err
					}
				}
				s, ok := starts.Lookup(topic, p)
				if !ok || s.Err != nil {
					return nil, fmt.Errorf("find the start of %s: %w", a.TopicPartition, s.Err)
				}
				a.Offset = s.Offset
			}
			partitions[p] = kgo.NewOffset().At(a.Offset)
			all = append(all, a)
		}
	}
	if len(all) > 0 {
		consumer.assign(all)
	}
	return positions, nil
}

func (consumer *Consumer) nameOf(id [16]byte) string {
	if name := consumer.cachedName(id); name != "" {
		return name
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	for _, t := range consumer.reading() {
		consumer.idOf(ctx, t)
	}
	return consumer.cachedName(id)
}

func (consumer *Consumer) cachedName(id [16]byte) string {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	for name, known := range consumer.ids {
		if known == id {
			return name
		}
	}
	return ""
}

// idOf asks each time, at assignment only: a topic deleted and created again has a new id.
func (consumer *Consumer) idOf(ctx context.Context, topic string) [16]byte {
	topics, err := consumer.client.Topics(ctx, topic)
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	if err == nil && len(topics) == 1 {
		consumer.ids[topic] = topics[0].ID
	}
	return consumer.ids[topic]
}

// Poll waits for records and gives them to offer, in offset order for each
// partition, while no partition can change hands. offer must not block. The records
// are in the memory of their fetch (event.Record.Clone).
// Errors that Kafka or the client goes on after are returned joined, beside the records.
func (consumer *Consumer) Poll(ctx context.Context, most int, offer func([]*event.Record)) error {
	me := consumer.member()
	fetches := me.PollRecords(ctx, most)
	defer me.AllowRebalance()
	memory := make([]event.Record, fetches.NumRecords())
	records := make([]*event.Record, 0, len(memory))
	fetches.EachRecord(func(k *kgo.Record) {
		r := &memory[len(records)]
		borrowRecord(r, k)
		records = append(records, r)
	})
	if len(records) > 0 {
		me.patience.note()
	}
	consumer.mu.Lock()
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		tp := TopicPartition{f.Topic, f.Partition}
		consumer.ends[tp], consumer.starts[tp] = f.HighWatermark, f.LogStartOffset
	})
	consumer.mu.Unlock()
	offer(records)
	if fetches.IsClientClosed() {
		select {
		case <-me.followed:
			return nil
		case <-consumer.closing.Done():
		}
		return fault.New(fault.ShuttingDown, "the consumer of group %s is closed", consumer.options.Group)
	}
	var errs []error
	for _, f := range fetches.Errors() {
		if errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, context.DeadlineExceeded) {
			continue
		}
		errs = append(errs, toFault(f.Err, fmt.Sprintf("read %s for group %s", TopicPartition{f.Topic, f.Partition}, consumer.options.Group)))
	}
	return errors.Join(errs...)
}

// reads reports whether topic is one of the group's own.
func (consumer *Consumer) reads(topic string) bool {
	return slices.Contains(consumer.reading(), topic)
}

// Commit writes positions with their metadata and answers, for each partition
// that was refused, why. Partitions of topics that the group does not read are
// committed in the same request, beside at least one of a topic it reads.
func (consumer *Consumer) Commit(ctx context.Context, what map[TopicPartition]Committing) (map[TopicPartition]error, error) {
	if len(what) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	joins := consumer.member().heard.joins()
	if joins.Err() != nil {
		return consumer.commitBesideJoin(ctx, what)
	}
	refused, err := consumer.commit(ctx, joins, what)
	if err != nil && joins.Err() != nil && ctx.Err() == nil {
		return consumer.commitBesideJoin(ctx, what)
	}
	return refused, err
}

// commit is Commit by the client, which gives up when a JoinGroup is sent: commits
// wait until it is answered.
func (consumer *Consumer) commit(ctx, joins context.Context, what map[TopicPartition]Committing) (map[TopicPartition]error, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(joins, cancel)()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	beside := map[string][]int32{} // partitions of other topics
	for tp, c := range what {
		if !consumer.reads(tp.Topic) {
			beside[tp.Topic] = append(beside[tp.Topic], tp.Partition)
			continue
		}
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: c.Offset}
	}
	if len(offsets) == 0 {
		return nil, fault.New(fault.Internal, "a commit for group %s names none of its own topics", consumer.options.Group)
	}
	ctx = kgo.PreCommitFnContext(ctx, func(request *kmsg.OffsetCommitRequest) error {
		if err := consumer.refuseStale(request.MemberID, what); err != nil {
			return err
		}
		for i := range request.Topics {
			t := &request.Topics[i]
			for j := range t.Partitions {
				name := t.Topic
				if name == "" {
					name = consumer.cachedName(t.TopicID)
				}
				metadata := what[TopicPartition{name, t.Partitions[j].Partition}].Metadata
				t.Partitions[j].Metadata = &metadata
			}
		}
		for topic, partitions := range beside {
			t := kmsg.NewOffsetCommitRequestTopic()
			t.Topic = topic // without an id, so that the client names all topics by name
			for _, partition := range partitions {
				c := what[TopicPartition{topic, partition}]
				p := kmsg.NewOffsetCommitRequestTopicPartition()
				p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = partition, c.Offset, -1, &c.Metadata
				t.Partitions = append(t.Partitions, p)
			}
			request.Topics = append(request.Topics, t)
		}
		return nil
	})
	var failed error
	var refused map[TopicPartition]error
	consumer.member().CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			failed = toFault(err, "commit for group "+consumer.options.Group)
			return
		}
		refused = consumer.settle(answer, what, consumer.cachedName)
	})
	return refused, failed
}

// settle notes what Kafka took of what, and gives what it refused.
func (consumer *Consumer) settle(answer *kmsg.OffsetCommitResponse, what map[TopicPartition]Committing, nameOf func(id [16]byte) string) map[TopicPartition]error {
	refused := map[TopicPartition]error{}
	for _, t := range answer.Topics {
		name := t.Topic
		if name == "" {
			name = nameOf(t.TopicID)
		}
		for _, p := range t.Partitions {
			tp := TopicPartition{name, p.Partition}
			if err := kerr.ErrorForCode(p.ErrorCode); err == nil {
				consumer.committed(tp, what[tp])
			} else {
				refused[tp] = toFault(err, fmt.Sprintf("commit %s for group %s", tp, consumer.options.Group))
			}
		}
	}
	return refused
}

// Seek moves the reading of partitions that are assigned.
func (consumer *Consumer) Seek(at map[TopicPartition]int64) {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for tp, offset := range at {
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: offset}
	}
	consumer.member().SetOffsets(offsets)
}

// Ends gives where each partition ended when something of it was last polled.
func (consumer *Consumer) Ends() map[TopicPartition]int64 {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	return maps.Clone(consumer.ends)
}

// LogStart gives where a partition began when something of it was last polled:
// what was below is gone. -1 where that is not known.
func (consumer *Consumer) LogStart(tp TopicPartition) int64 {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	if start, ok := consumer.starts[tp]; ok {
		return start
	}
	return -1
}

// Pause stops fetching partitions and drops what is buffered of them; Resume
// fetches again from where the last polled record ended.
func (consumer *Consumer) Pause(tps []TopicPartition) {
	consumer.member().PauseFetchPartitions(nest(tps))
}

// paused reports whether any partition is.
func (consumer *Consumer) paused() bool {
	return len(consumer.member().PauseFetchTopics())+len(consumer.member().PauseFetchPartitions(nil)) > 0
}

// Resume undoes Pause.
func (consumer *Consumer) Resume(tps []TopicPartition) {
	consumer.member().ResumeFetchPartitions(nest(tps))
}

// Close leaves the group, after Owner.Revoked for what is still assigned. Only
// after Join. A static member stays one until its session ends, unless it leaves
// for good.
func (consumer *Consumer) Close(forGood bool) {
	consumer.close()
	consumer.watched.Wait()
	consumer.turning.Lock()
	defer consumer.turning.Unlock()
	me := consumer.member()
	if me.heard.joins().Err() != nil {
		consumer.leaveBesideJoin(me)
	}
	me.CloseAllowingRebalance()
	if name := consumer.client.options.StaticMembership; forGood && name != "" {
		ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
		defer cancel()
		leave := kadm.LeaveGroup(consumer.options.Group).InstanceIDs(name).Reason("nobody reads the subscription here")
		if _, err := consumer.client.admin.LeaveGroup(ctx, leave); err != nil && consumer.client.options.Logger != nil {
			consumer.client.options.Logger.Warn("a static member could not leave its group; its partitions wait for its session to end",
				"group", consumer.options.Group, "member", name, "error", err)
		}
	}
}

func flatten(by map[string][]int32) []TopicPartition {
	var tps []TopicPartition
	for topic, partitions := range by {
		for _, p := range partitions {
			tps = append(tps, TopicPartition{topic, p})
		}
	}
	return sortedPartitions(tps)
}

func nest(tps []TopicPartition) map[string][]int32 {
	by := map[string][]int32{}
	for _, tp := range tps {
		by[tp.Topic] = append(by[tp.Topic], tp.Partition)
	}
	return by
}
