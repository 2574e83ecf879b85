package subscription

import (
	"context"
	"time"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// PauseSubscription stops delivery.
func (s *Server) PauseSubscription(ctx context.Context, request *posternv1.PauseSubscriptionRequest) (*posternv1.Subscription, error) {
	return s.steer(ctx, request.GetName(), request.GetEtag(), func(d delivery.Desired) delivery.Desired {
		d.Paused = true
		return d
	})
}

// ResumeSubscription lets it go on.
func (s *Server) ResumeSubscription(ctx context.Context, request *posternv1.ResumeSubscriptionRequest) (*posternv1.Subscription, error) {
	return s.steer(ctx, request.GetName(), request.GetEtag(), func(d delivery.Desired) delivery.Desired {
		d.Paused = false
		return d
	})
}

// steer changes what a subscription is to do, whoever declared it.
func (s *Server) steer(ctx context.Context, name, etag string, change func(delivery.Desired) delivery.Desired) (*posternv1.Subscription, error) {
	e, err := s.find(ctx, authz.Manage, name)
	switch {
	case fault.Is(err, fault.UnknownSubscription):
		// Perhaps another gateway has just made it: the write reads all there is.
	case err != nil:
		return nil, err
	case e.Problem != nil && !fault.Is(e.Problem, fault.UnknownSubscription): // one of another gateway's file can be steered from here
		return nil, e.Problem
	}
	if _, err := s.store(ctx); err != nil {
		return nil, err
	}
	if err := s.Registry.Update(ctx, name, func(old *Kept) (*State, error) {
		e := s.Registry.get(name)
		if e == nil {
			return nil, fault.New(fault.UnknownSubscription, "no subscription is called %q", name).With("subscription", name)
		}
		if etag != "" && etag != e.Etag {
			return nil, etagMismatch(name, e.Etag)
		}
		state := State{Spec: declarable(e.Spec), DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE, Generation: 1}
		if old != nil {
			state = *old.State
		}
		before := state.Desired
		state.Desired = change(before)
		if old != nil && state.Desired.Paused == before.Paused && state.Desired.SeekEpoch == before.SeekEpoch {
			return old.State, nil
		}
		return &state, nil
	}); err != nil {
		return nil, err
	}
	return s.answer(ctx, name)
}

// SeekSubscription moves positions. The targets are found here, once: every owner
// applies the same offsets, and a dry run tells what the seek would do.
func (s *Server) SeekSubscription(ctx context.Context, request *posternv1.SeekSubscriptionRequest) (*posternv1.SeekSubscriptionResponse, error) {
	e, err := s.find(ctx, authz.Manage, request.GetName())
	if err != nil {
		return nil, err
	}
	if e.Problem != nil {
		return nil, e.Problem
	}
	targets, answer, err := s.targets(ctx, e.Spec, request)
	if err != nil || request.GetDryRun() {
		return answer, err
	}
	answer.Subscription, err = s.steer(ctx, request.GetName(), request.GetEtag(), func(d delivery.Desired) delivery.Desired {
		return seek(d, time.Now(), targets)
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// targets finds where each partition goes, and what that means.
func (s *Server) targets(ctx context.Context, spec Spec, request *posternv1.SeekSubscriptionRequest) (map[broker.TopicPartition]delivery.Seek, *posternv1.SeekSubscriptionResponse, error) {
	wanted, err := s.explicit(spec, request)
	if err != nil {
		return nil, nil, err
	}
	topics, err := s.topics(ctx, spec.Queue())
	if err != nil {
		return nil, nil, err
	}
	standing, err := s.standing(ctx, spec.Queue(), topics)
	if err != nil {
		return nil, nil, err
	}
	targets, answer := map[broker.TopicPartition]delivery.Seek{}, &posternv1.SeekSubscriptionResponse{}
	for _, topic := range topics {
		if wanted != nil && !namesTopic(wanted, topic) {
			continue
		}
		of, err := s.topicTargets(ctx, topic, wanted, request)
		if err != nil {
			return nil, nil, err
		}
		for _, p := range of {
			targets[p.at] = p.seek
			part := &posternv1.SeekPartition{Topic: topic, Partition: p.at.Partition, To: p.seek.Offset}
			if from, ok := standing[p.at]; ok {
				part.From = &from
				part.Redelivered, part.Skipped = max(0, from-p.seek.Offset), max(0, p.seek.Offset-from)
			}
			answer.Partitions = append(answer.Partitions, part)
			answer.Redelivered += part.Redelivered
			answer.Skipped += part.Skipped
		}
	}
	for at := range wanted {
		if _, ok := targets[at]; !ok {
			return nil, nil, fault.New(fault.UnknownPartition, "%s does not exist", at).Field("to", "%s does not exist", at)
		}
	}
	return targets, answer, nil
}

// standing gives the positions that a group has.
func (s *Server) standing(ctx context.Context, of delivery.Options, topics []string) (map[broker.TopicPartition]int64, error) {
	at := map[broker.TopicPartition]int64{}
	if of.Order == delivery.OrderQueue {
		positions, err := s.Kafka.SharePositions(ctx, of.Group, topics...)
		for tp, p := range positions {
			at[tp] = p.Offset
		}
		return at, err
	}
	committed, err := s.Kafka.Committed(ctx, of.Group, topics...)
	for tp, c := range committed {
		at[tp] = c.Offset
	}
	return at, err
}

type target struct {
	at   broker.TopicPartition
	seek delivery.Seek
}

// topicTargets finds the targets in one topic, by partition.
func (s *Server) topicTargets(ctx context.Context, topic string, wanted map[broker.TopicPartition]int64, request *posternv1.SeekSubscriptionRequest) ([]target, error) {
	topics, err := s.Kafka.Topics(ctx, topic)
	if err != nil {
		return nil, err
	}
	ranges, err := s.Kafka.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	var at map[int32]int64
	if t := request.GetTime(); t != nil {
		if at, err = s.Kafka.OffsetsAt(ctx, topic, t.AsTime()); err != nil {
			return nil, err
		}
	}
	var all []target
	for _, p := range topics[0].Partitions {
		held, ok := ranges[p]
		if !ok {
			continue // it has no leader now: it stays where it is
		}
		tp := broker.TopicPartition{Topic: topic, Partition: p}
		var offset int64
		switch {
		case wanted != nil:
			if offset, ok = wanted[tp]; !ok {
				continue
			}
			if offset > held.End {
				return nil, fault.New(fault.InvalidArgument, "%s ends at offset %d: %d is beyond it", tp, held.End, offset).Field("to", "%s: %d is beyond its end %d", tp, offset, held.End)
			}
		case at != nil:
			if offset, ok = at[p]; !ok || offset < 0 {
				offset = held.End
			}
		case request.GetEdge() == posternv1.Edge_EDGE_EARLIEST:
			offset = held.Start
		default:
			offset = held.End
		}
		all = append(all, target{tp, delivery.Seek{Offset: min(max(offset, held.Start), held.End), TopicID: topics[0].ID}})
	}
	return all, nil
}

func namesTopic(wanted map[broker.TopicPartition]int64, topic string) bool {
	for at := range wanted {
		if at.Topic == topic {
			return true
		}
	}
	return false
}

// explicit gives the offsets that a request names; nil when it goes by edge or time.
func (s *Server) explicit(spec Spec, request *posternv1.SeekSubscriptionRequest) (map[broker.TopicPartition]int64, error) {
	ofSpec := func(topic string) error {
		if !reads(spec, topic) {
			return fault.New(fault.InvalidArgument, "subscription %s does not read topic %s", spec.Name, topic).Field("to", "the subscription does not read %s", topic)
		}
		return nil
	}
	switch to := request.GetTo().(type) {
	case *posternv1.SeekSubscriptionRequest_Positions:
		wanted := map[broker.TopicPartition]int64{}
		for _, p := range to.Positions.GetPositions() {
			if err := ofSpec(p.GetTopic()); err != nil {
				return nil, err
			}
			at := broker.TopicPartition{Topic: p.GetTopic(), Partition: p.GetPartition()}
			if _, twice := wanted[at]; twice || p.GetOffset() < 0 {
				return nil, fault.New(fault.InvalidArgument, "the position of %s is there twice, or negative", at).Field("to", "%s is there twice, or negative", at)
			}
			wanted[at] = p.GetOffset()
		}
		return wanted, nil
	case *posternv1.SeekSubscriptionRequest_Cursor:
		topic := to.Cursor.GetTopic()
		if topic == "" && len(spec.Topics) == 1 {
			topic = spec.Topics[0]
		}
		if topic == "" {
			return nil, fault.New(fault.InvalidArgument, "subscription %s reads several topics: say which one the cursor is of", spec.Name).Field("cursor.topic", "it is needed")
		}
		if err := ofSpec(topic); err != nil {
			return nil, err
		}
		offsets, err := s.Cursor(to.Cursor.GetCursor())
		if err != nil {
			return nil, err
		}
		wanted := map[broker.TopicPartition]int64{}
		for p, offset := range offsets {
			wanted[broker.TopicPartition{Topic: topic, Partition: p}] = offset
		}
		return wanted, nil
	}
	return nil, nil
}

// reads reports whether spec reads topic.
func reads(spec Spec, topic string) bool { return spec.Queue().Reads(topic) }
