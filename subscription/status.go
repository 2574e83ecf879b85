package subscription

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// GetSubscriptionStatus tells where a subscription stands: positions and ends from
// Kafka, the rest from what this gateway works on.
func (s *Server) GetSubscriptionStatus(ctx context.Context, request *posternv1.GetSubscriptionStatusRequest) (*posternv1.SubscriptionStatus, error) {
	e, err := s.find(ctx, authz.Describe, request.GetName())
	if err != nil {
		return nil, err
	}
	answer := &posternv1.SubscriptionStatus{Name: e.Spec.Name, Instance: s.Instance, SeekEpoch: e.Desired.SeekEpoch}
	if e.Problem != nil {
		answer.State = posternv1.SubscriptionState_SUBSCRIPTION_STATE_STOPPED
		answer.Cause = problemCause(e.Problem)
		return answer, nil
	}
	of := e.Spec.Queue()
	positions, reachable := s.positions(ctx, of)
	var report delivery.Report
	if s.Reporter != nil {
		if report, err = s.Reporter.Report(ctx, of); err != nil {
			return nil, err
		}
	}
	if s.Endpoint != nil && report.Cause.Kind == 0 {
		report.Cause = s.Endpoint(e.Spec.Name)
	}
	rebalancing := false
	describe := s.Kafka.Group
	if of.Order == delivery.OrderQueue {
		describe = s.Kafka.ShareGroup
	}
	if group, err := describe(ctx, of.Group); reachable == nil && err == nil {
		rebalancing = group.Rebalancing
		for _, m := range group.Members {
			answer.Members = append(answer.Members, m.Name)
			for _, at := range m.Partitions {
				partitionOf(&positions, at).Instance = m.Name
			}
		}
		slices.Sort(answer.Members)
	}
	for _, p := range report.Partitions {
		partitionOf(&positions, p.At).Instance = s.Instance
		fill(partitionOf(&positions, p.At), &p)
	}
	for _, p := range positions {
		answer.Lag += p.GetLag()
		if age := p.GetOldestUnsettledAge(); age != nil && age.AsDuration() > answer.GetOldestUnsettledAge().AsDuration() {
			answer.OldestUnsettledAge = age
		}
		if e.Desired.SeekEpoch > 0 && p.GetSeekEpoch() >= e.Desired.SeekEpoch {
			answer.SeekAppliedPartitions++
		}
	}
	slices.SortFunc(positions, func(a, b *posternv1.PartitionStatus) int {
		if a.Topic != b.Topic {
			return slices.Compare([]string{a.Topic}, []string{b.Topic})
		}
		return int(a.Partition - b.Partition)
	})
	answer.Partitions = positions
	for _, c := range report.Consumers {
		answer.Consumers = append(answer.Consumers, &posternv1.AttachedConsumer{
			ClientId: c.Client, Kind: c.Kind, Outstanding: int64(c.Outstanding), Window: int64(c.Window), OldestLeaseAge: duration(c.OldestLease),
		})
	}
	answer.Cause = cause(e, report.Cause, answer, reachable)
	answer.State = stateOf(e, len(answer.Members) > 0 || len(report.Consumers) > 0, rebalancing, answer.Cause.Kind)
	return answer, nil
}

// positions gives each partition with what Kafka says of it; the error is why it
// says nothing.
func (s *Server) positions(ctx context.Context, of delivery.Options) ([]*posternv1.PartitionStatus, error) {
	topics, err := s.topics(ctx, of)
	if err != nil {
		return nil, err
	}
	if of.Order == delivery.OrderQueue {
		return s.sharePositions(ctx, of, topics)
	}
	committed, err := s.Kafka.Committed(ctx, of.Group, topics...)
	if err != nil {
		return nil, err
	}
	return s.partitions(ctx, topics, func(m *posternv1.PartitionStatus, tp broker.TopicPartition, held broker.Range) {
		position, ok := committed[tp]
		switch {
		case ok:
			m.Position = &position.Offset
			m.Lag = max(0, held.End-max(position.Offset, held.Start))
		case !of.Start.Latest && of.Start.Time.IsZero():
			m.Lag = held.End - held.Start // it will begin at the start
		}
	})
}

// sharePositions is positions of a share group. Its lag counts what is settled
// above the position too.
func (s *Server) sharePositions(ctx context.Context, of delivery.Options, topics []string) ([]*posternv1.PartitionStatus, error) {
	group, err := s.Kafka.ShareGroup(ctx, of.Group)
	if err != nil {
		return nil, err
	}
	topics = slices.Clone(topics)
	for _, m := range group.Members { // it reads a topic of its own too, once there was need of it
		for _, tp := range m.Partitions {
			if !slices.Contains(topics, tp.Topic) {
				topics = append(topics, tp.Topic)
			}
		}
	}
	at, err := s.Kafka.SharePositions(ctx, of.Group, topics...)
	if err != nil {
		return nil, err
	}
	return s.partitions(ctx, topics, func(m *posternv1.PartitionStatus, tp broker.TopicPartition, held broker.Range) {
		position, ok := at[tp]
		if ok {
			m.Position = &position.Offset
		}
		if ok || !of.Start.Latest && of.Start.Time.IsZero() {
			m.Lag = delivery.ShareLag(at, tp, held)
		}
	})
}

// partitions lists the partitions of topics, of each what tell makes of what it holds.
func (s *Server) partitions(ctx context.Context, topics []string, tell func(*posternv1.PartitionStatus, broker.TopicPartition, broker.Range)) ([]*posternv1.PartitionStatus, error) {
	var all []*posternv1.PartitionStatus
	for _, topic := range topics {
		ranges, err := s.Kafka.Ranges(ctx, topic)
		if err != nil {
			return nil, err
		}
		for p, held := range ranges {
			m := &posternv1.PartitionStatus{Topic: topic, Partition: p, StartOffset: held.Start, EndOffset: held.End}
			tell(m, broker.TopicPartition{Topic: topic, Partition: p}, held)
			all = append(all, m)
		}
	}
	return all, nil
}

// topics lists what a subscription reads: those it names, or those that match now.
func (s *Server) topics(ctx context.Context, of delivery.Options) ([]string, error) {
	if of.TopicsPattern == "" {
		return of.Topics, nil
	}
	return s.Kafka.Matching(ctx, of.Reads)
}

// hasLost reports whether the group had a position, has none, and was not told
// where to go on.
func hasLost(e *Entry, status *posternv1.SubscriptionStatus) bool {
	for _, p := range status.GetPartitions() {
		if p.Position != nil {
			return false
		}
	}
	return e.Spec.Order != delivery.OrderQueue && e.Desired.Lost() && len(status.GetPartitions()) > 0 && len(status.GetMembers()) == 0
}

func partitionOf(all *[]*posternv1.PartitionStatus, at broker.TopicPartition) *posternv1.PartitionStatus {
	for _, p := range *all {
		if p.Topic == at.Topic && p.Partition == at.Partition {
			return p
		}
	}
	p := &posternv1.PartitionStatus{Topic: at.Topic, Partition: at.Partition}
	*all = append(*all, p)
	return p
}

// fill puts what the owner of a partition knows over what Kafka says.
func fill(m *posternv1.PartitionStatus, p *delivery.PartitionReport) {
	m.Outstanding, m.Waiting, m.SettledAhead, m.Parked, m.SeekEpoch = int64(p.Outstanding), int64(p.Waiting), p.SettledAhead, p.Parked, p.SeekEpoch
	if p.Position >= 0 && p.Position >= m.GetPosition() {
		position := p.Position
		m.Position = &position
		m.Lag = max(0, m.EndOffset-max(position, m.StartOffset))
	}
	if !p.Oldest.IsZero() && m.Lag > 0 {
		m.OldestUnsettledAge = duration(max(0, time.Since(p.Oldest)))
	}
	for i := range p.Blocked {
		m.BlockedKeys = append(m.BlockedKeys, blockedToProto(&p.Blocked[i]))
	}
}

func blockedToProto(b *delivery.BlockedKey) *posternv1.BlockedKey {
	return &posternv1.BlockedKey{
		Key: b.Key, Position: wire.Position(b.Position), Since: wire.Time(b.Since), Attempts: int32(b.Attempts), NextAttempt: wire.Time(b.NextAttempt),
		Error: b.Error, Waiting: int64(b.Waiting),
	}
}

// cause names the one cause: what stops everything first, then what delivery says.
func cause(e *Entry, of delivery.Cause, status *posternv1.SubscriptionStatus, reachable error) *posternv1.Cause {
	switch {
	case fault.Is(reachable, fault.KafkaNotAuthorized):
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_NOT_AUTHORIZED, Summary: reachable.Error()}
	case reachable != nil:
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_BROKER_UNAVAILABLE, Summary: reachable.Error()}
	case e.Desired.Paused:
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_PAUSED, Summary: "It is paused: nothing is delivered until it is resumed (postern subscriptions resume " + e.Spec.Name + ")."}
	case of.Kind == 0 && hasLost(e, status):
		of = delivery.LostPosition()
	case of.Kind == 0 && status.GetLag() == 0:
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_NONE, Summary: "It does not lag."}
	case of.Kind == 0 && len(status.GetMembers()) == 0:
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_NO_CONSUMER, Summary: "No gateway works on it: no stream, puller or webhook asks for its events."}
	case of.Kind == 0:
		return &posternv1.Cause{Kind: posternv1.CauseKind_CAUSE_KIND_UNSPECIFIED, Summary: "The gateway that answers does not work on it: ask one that does (" + strings.Join(status.GetMembers(), ", ") + ")."}
	}
	m := &posternv1.Cause{Kind: posternv1.CauseKind(of.Kind), Summary: of.Summary, Since: wire.Time(of.Since), Figures: of.Figures}
	if of.Blocked != nil {
		m.Blocked = blockedToProto(of.Blocked)
	}
	return m
}

// problemCause is the cause of one that is not served.
func problemCause(problem error) *posternv1.Cause {
	kind := posternv1.CauseKind_CAUSE_KIND_UNSPECIFIED
	if fault.Is(problem, fault.NewerFormat) {
		kind = posternv1.CauseKind_CAUSE_KIND_NEWER_FORMAT
	}
	return &posternv1.Cause{Kind: kind, Summary: problem.Error()}
}

func stateOf(e *Entry, worked, rebalancing bool, kind posternv1.CauseKind) posternv1.SubscriptionState {
	switch kind {
	case posternv1.CauseKind_CAUSE_KIND_POSITION_LOST, posternv1.CauseKind_CAUSE_KIND_NOT_AUTHORIZED, posternv1.CauseKind_CAUSE_KIND_NEWER_FORMAT, posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED:
		return posternv1.SubscriptionState_SUBSCRIPTION_STATE_STOPPED
	}
	switch {
	case e.Desired.Paused:
		return posternv1.SubscriptionState_SUBSCRIPTION_STATE_PAUSED
	case rebalancing || kind == posternv1.CauseKind_CAUSE_KIND_REBALANCING:
		return posternv1.SubscriptionState_SUBSCRIPTION_STATE_REBALANCING
	case worked:
		return posternv1.SubscriptionState_SUBSCRIPTION_STATE_ACTIVE
	}
	return posternv1.SubscriptionState_SUBSCRIPTION_STATE_IDLE
}
