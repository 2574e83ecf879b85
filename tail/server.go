package tail

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/schema"
)

// Server serves Tail over gRPC, the topic's events over HTTP (http.go) and the
// service Topics.
type Server struct {
	posternv1.UnimplementedTopicsServer
	kafka    *broker.Client
	policy   authz.Policy
	draining <-chan struct{}
	deadline func() time.Time
	schemas  Schemas
	declared func() []Declared // nil: the document lists none
}

// Schemas shows records as JSON, and tells topics' schema rules; schema.Checker does.
type Schemas interface {
	View(ctx context.Context, r *event.Record) (*event.Record, error)
	Describe(ctx context.Context, topic string) (value, key *schema.Description)
}

// NewServer makes the service. draining is closed when the gateway begins to stop.
func NewServer(kafka *broker.Client, policy authz.Policy, draining <-chan struct{}, deadline func() time.Time, schemas Schemas) *Server {
	return &Server{kafka: kafka, policy: policy, draining: draining, deadline: deadline, schemas: schemas}
}

// show gives r as the caller asked for it; with an error it is raw.
func (s *Server) show(ctx context.Context, r *event.Record, asJSON bool) (*event.Record, error) {
	if !asJSON {
		return r, nil
	}
	seen, err := s.schemas.View(ctx, r)
	if err != nil {
		return r, err
	}
	return seen, nil
}

// heartbeatEvery is how long a tail is silent at most; then it sends its cursor.
const heartbeatEvery = 15 * time.Second

func startOf(m *posternv1.Start) (Start, error) {
	switch at := m.GetAt().(type) {
	case *posternv1.Start_Cursor:
		c, err := ParseCursor(at.Cursor)
		return Start{Cursor: c}, err
	case *posternv1.Start_Time:
		return Start{Time: at.Time.AsTime()}, nil
	case *posternv1.Start_Edge:
		return Start{Earliest: at.Edge == posternv1.Edge_EDGE_EARLIEST}, nil
	}
	return Start{}, nil
}

// Cursor writes positions in a topic as Tail takes them.
func (s *Server) Cursor(at map[int32]int64) string { return Cursor(at).String() }

// Tail streams a topic's events.
func (s *Server) Tail(request *posternv1.TailRequest, stream grpc.ServerStreamingServer[posternv1.TailResponse]) error {
	start, err := startOf(request.GetStart())
	if err != nil {
		return err
	}
	return s.follow(stream.Context(), request.GetTopic(), start, request.GetLimit(), func(f frame) error {
		m := &posternv1.TailResponse{Cursor: f.cursor.String()}
		for _, r := range f.records {
			seen, err := s.show(stream.Context(), r, request.GetView() == posternv1.View_VIEW_JSON)
			m.Events = append(m.Events, &posternv1.TailedEvent{
				Event: wire.Event(seen), Position: wire.Position(r.Position()), Appended: wire.Time(r.Timestamp), ViewError: wire.Status(err),
			})
		}
		for _, gap := range f.missed {
			m.Missed = append(m.Missed, &posternv1.MissedRange{Partition: gap.Partition, From: gap.From, To: gap.To})
		}
		if f.draining {
			m.Drain = &posternv1.Drain{Deadline: wire.Time(s.deadline()), Reason: "the gateway is stopping"}
		}
		return stream.Send(m)
	})
}

// frame is one thing a tail says: events, what was missed, or only where it stands.
type frame struct {
	records  []*event.Record
	missed   []Missed
	cursor   Cursor // after records
	draining bool
}

// follow reads topic and gives frames until the client goes away, limit events
// were given, or the gateway stops. The first frame comes at once.
func (s *Server) follow(ctx context.Context, topic string, start Start, limit int64, send func(frame) error) error {
	topic, err := allowed(ctx, s.policy, topic)
	if err != nil {
		return err
	}
	reader, err := Open(ctx, s.kafka, topic, start)
	if err != nil {
		return err
	}
	defer reader.Close()
	var missed []Missed
	if start.Cursor != nil {
		if missed, err = reader.CheckMissed(ctx); err != nil {
			return err
		}
	}
	if err := send(frame{missed: missed, cursor: reader.Cursor()}); err != nil {
		return err
	}
	given := int64(0)
	for {
		records, err := s.next(ctx, reader)
		if err != nil {
			return err
		}
		select {
		case <-s.draining:
			return send(frame{cursor: reader.Cursor(), draining: true})
		default:
		}
		if err := ctx.Err(); err != nil {
			return fault.Of(err)
		}
		if limit > 0 && int64(len(records)) > limit-given {
			records = records[:limit-given]
		}
		for _, r := range records {
			reader.Advance(r)
		}
		given += int64(len(records))
		if err := send(frame{records: records, cursor: reader.Cursor()}); err != nil {
			return err
		}
		if limit > 0 && given >= limit {
			return nil
		}
	}
}

// next waits for events, a heartbeat's time, or the drain, whichever is first.
func (s *Server) next(ctx context.Context, reader *Reader) ([]*event.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatEvery)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-done:
		}
	}()
	return reader.Next(ctx)
}

// maxPage bounds a page of topics.
const maxPage = 1000

// ListTopics lists the topics the caller may see, without Kafka's own and ours.
func (s *Server) ListTopics(ctx context.Context, request *posternv1.ListTopicsRequest) (*posternv1.ListTopicsResponse, error) {
	topics, err := s.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	who := authz.FromContext(ctx)
	topics = slices.DeleteFunc(topics, func(t broker.Topic) bool {
		return t.Internal || strings.HasPrefix(t.Name, "_") || t.Name <= request.GetPageToken() ||
			s.policy.Check(who, authz.Describe, t.Name) != nil
	})
	size := int(request.GetPageSize())
	if size == 0 {
		size = maxPage
	}
	answer := &posternv1.ListTopicsResponse{}
	if len(topics) > size {
		topics = topics[:size]
		answer.NextPageToken = topics[size-1].Name
	}
	for _, t := range topics {
		answer.Topics = append(answer.Topics, &posternv1.Topic{Name: t.Name})
	}
	return answer, nil
}

// GetTopic tells a topic's partitions and what they hold.
func (s *Server) GetTopic(ctx context.Context, request *posternv1.GetTopicRequest) (*posternv1.Topic, error) {
	name, err := event.ParseTopic(request.GetName())
	if err != nil {
		return nil, fault.New(fault.InvalidTopic, "%w", err).Field("name", "%v", err)
	}
	if err := s.policy.Check(authz.FromContext(ctx), authz.Describe, name); err != nil {
		return nil, err
	}
	ranges, err := s.kafka.Ranges(ctx, name)
	if err != nil {
		return nil, err
	}
	answer := &posternv1.Topic{Name: name}
	for p, r := range ranges {
		answer.Partitions = append(answer.Partitions, &posternv1.Partition{Partition: p, StartOffset: r.Start, EndOffset: r.End})
	}
	slices.SortFunc(answer.Partitions, func(a, b *posternv1.Partition) int { return int(a.Partition - b.Partition) })
	value, key := s.schemas.Describe(ctx, name)
	answer.ValueSchema, answer.KeySchema = schemaOf(value), schemaOf(key)
	return answer, nil
}

func schemaOf(d *schema.Description) *posternv1.TopicSchema {
	if d == nil {
		return nil
	}
	m := &posternv1.TopicSchema{
		Rule: string(d.Rule), SubjectStrategy: string(d.Strategy), Subject: d.Subject, Version: d.Version, Json: string(d.JSON), ReadAs: d.ReadAs,
		Format: string(d.Format), LatestId: int32(d.Latest), Error: wire.Status(d.Err),
	}
	for _, v := range d.Versions {
		m.Versions = append(m.Versions, int32(v))
	}
	return m
}
