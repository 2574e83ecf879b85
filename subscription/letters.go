package subscription

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// notOffered is of a part that this gateway runs without.
func notOffered(what string) error {
	return fault.New(fault.NotOffered, "this build does not offer %s", what)
}

// letterID names a dead letter within its subscription.
func letterID(at event.Position) string { return fmt.Sprintf("%d-%d", at.Partition, at.Offset) }

// parseLetterID reads what letterID gave, of the dead-letter topic.
func parseLetterID(topic, id string) (event.Position, error) {
	p, o, ok := strings.Cut(id, "-")
	partition, err1 := strconv.ParseInt(p, 10, 32)
	offset, err2 := strconv.ParseInt(o, 10, 64)
	if !ok || err1 != nil || err2 != nil || partition < 0 || offset < 0 {
		return event.Position{}, fault.New(fault.InvalidArgument, "%q is not a dead letter's id, which is as 3-1042", id).Field("id", "it is no id")
	}
	return event.Position{Topic: topic, Partition: int32(partition), Offset: offset}, nil
}

// filterOf reads a filter of dead letters of the topic.
func filterOf(topic string, m *posternv1.DeadLetterFilter) (delivery.LetterFilter, error) {
	f := delivery.LetterFilter{
		Reasons: m.GetReasons(), Text: m.GetText(), OriginTopic: m.GetOriginTopic(), IncludeRedriven: m.GetIncludeRedriven(),
	}
	if m != nil {
		f.OriginPartition, f.OriginFrom, f.OriginTo = m.OriginPartition, m.OriginOffsetFrom, m.OriginOffsetTo
	}
	if m.GetAfter() != nil {
		f.After = m.GetAfter().AsTime()
	}
	if m.GetBefore() != nil {
		f.Before = m.GetBefore().AsTime()
	}
	if m != nil && m.Key != nil {
		f.HasKey, f.Key = true, m.Key
	}
	if m != nil && m.OriginTopic == "" && (m.OriginPartition != nil || m.OriginOffsetFrom != nil || m.OriginOffsetTo != nil) {
		return f, fault.New(fault.InvalidArgument, "a partition or offset of origin needs origin_topic").Field("filter.origin_topic", "it is needed")
	}
	for _, id := range m.GetIds() {
		at, err := parseLetterID(topic, id)
		if err != nil {
			return f, err
		}
		f.Positions = append(f.Positions, at)
	}
	return f, nil
}

// letterToProto writes a dead letter.
func letterToProto(l *delivery.DeadLetter) *posternv1.DeadLetteredEvent {
	m := &posternv1.DeadLetteredEvent{
		Id: letterID(l.At), Position: wire.Position(l.At), Origin: wire.Position(l.Origin), OriginTimestamp: wire.Time(l.OriginTimestamp),
		Reason: l.Reason, Detail: strings.ToValidUTF8(l.Detail, "\uFFFD"), Attempts: int32(l.Attempts),
		FirstAttempt: wire.Time(l.First), LastAttempt: wire.Time(l.Last), DeadLettered: wire.Time(l.Written),
		Redrives: int32(l.Redrives), RedrivenBy: l.RedrivenBy,
	}
	if l.Record != nil {
		m.Event = wire.Event(l.Record)
		if trace, ok := l.Record.Header(event.HeaderTraceParent); ok {
			if parts := strings.Split(string(trace), "-"); len(parts) >= 4 && len(parts[1]) == 32 {
				m.TraceId = parts[1]
			}
		}
	}
	return m
}

// letters finds a subscription whose dead letters the caller may do verb with.
func (s *Server) letters(ctx context.Context, verb authz.Verb, name string) (delivery.Options, error) {
	e, err := s.find(ctx, verb, name)
	if err != nil {
		return delivery.Options{}, err
	}
	return e.Spec.Queue(), e.Problem
}

const (
	defaultLetters = 50
	maxLetters     = 500
)

// ListDeadLetters gives a page of the subscription's dead letters.
func (s *Server) ListDeadLetters(ctx context.Context, request *posternv1.ListDeadLettersRequest) (*posternv1.ListDeadLettersResponse, error) {
	of, err := s.letters(ctx, authz.Subscribe, request.GetName())
	if err != nil {
		return nil, err
	}
	if s.Letters == nil {
		return nil, notOffered("reading dead letters")
	}
	filter, err := filterOf(of.DeadLetterTopic, request.GetFilter())
	if err != nil {
		return nil, err
	}
	size := int(request.GetPageSize())
	if size == 0 {
		size = defaultLetters
	}
	page, err := s.Letters.ListLetters(ctx, of, delivery.LettersQuery{
		Filter: filter, OldestFirst: request.GetOrder() == posternv1.DeadLetterOrder_DEAD_LETTER_ORDER_OLDEST_FIRST,
		Size: min(size, maxLetters), Token: request.GetPageToken(), Summary: request.GetSummary(),
	})
	if err != nil {
		return nil, err
	}
	answer := &posternv1.ListDeadLettersResponse{NextPageToken: page.Next}
	for i := range page.Letters {
		answer.DeadLetters = append(answer.DeadLetters, letterToProto(&page.Letters[i]))
	}
	return answer, nil
}

// GetDeadLetter shows one.
func (s *Server) GetDeadLetter(ctx context.Context, request *posternv1.GetDeadLetterRequest) (*posternv1.DeadLetteredEvent, error) {
	of, err := s.letters(ctx, authz.Subscribe, request.GetName())
	if err != nil {
		return nil, err
	}
	if s.Letters == nil {
		return nil, notOffered("reading dead letters")
	}
	at, err := parseLetterID(of.DeadLetterTopic, request.GetId())
	if err != nil {
		return nil, err
	}
	page, err := s.Letters.ListLetters(ctx, of, delivery.LettersQuery{
		Filter: delivery.LetterFilter{Positions: []event.Position{at}, IncludeRedriven: true}, Size: 1,
	})
	if err != nil {
		return nil, err
	}
	if len(page.Letters) == 0 {
		return nil, fault.New(fault.UnknownDeadLetter, "subscription %s has no dead letter %s: it was purged, or retention removed it", request.GetName(), request.GetId())
	}
	return letterToProto(&page.Letters[0]), nil
}

// RedriveDeadLetters delivers dead letters again.
func (s *Server) RedriveDeadLetters(ctx context.Context, request *posternv1.RedriveDeadLettersRequest) (*posternv1.Job, error) {
	of, err := s.letters(ctx, authz.Manage, request.GetName())
	if err != nil {
		return nil, err
	}
	r := delivery.JobRequest{
		Kind: delivery.JobRedrive, ToTopic: request.GetTo() == posternv1.RedriveTo_REDRIVE_TO_TOPIC, MaxRedrives: int(request.GetMaxRedrives()),
		Rate: request.GetRatePerSecond(), DryRun: request.GetDryRun(),
	}
	if r.Filter, err = filterOf(of.DeadLetterTopic, request.GetFilter()); err != nil {
		return nil, err
	}
	if r.ToTopic {
		topics := of.Topics // whatever the dead letters say they came from, nothing else is written to
		if of.TopicsPattern != "" {
			if topics = []string{r.Filter.OriginTopic}; !of.Reads(r.Filter.OriginTopic) {
				return nil, fault.New(fault.InvalidArgument, "subscription %s reads topics by a pattern: say by origin_topic which of them to redrive to", of.Name).Field("filter.origin_topic", "it is needed")
			}
		}
		for _, topic := range topics {
			if err := s.check(ctx, authz.Publish, topic); err != nil {
				return nil, err
			}
		}
	}
	return s.start(ctx, of, r)
}

// PurgeDeadLetters gives dead letters up.
func (s *Server) PurgeDeadLetters(ctx context.Context, request *posternv1.PurgeDeadLettersRequest) (*posternv1.Job, error) {
	of, err := s.letters(ctx, authz.Manage, request.GetName())
	if err != nil {
		return nil, err
	}
	r := delivery.JobRequest{Kind: delivery.JobPurge, DryRun: request.GetDryRun()}
	if r.Filter, err = filterOf(of.DeadLetterTopic, request.GetFilter()); err != nil {
		return nil, err
	}
	r.Filter.IncludeRedriven = true // what is given up is given up, redriven or not
	return s.start(ctx, of, r)
}

// ReplayEvents delivers a slice of the topics again.
func (s *Server) ReplayEvents(ctx context.Context, request *posternv1.ReplayEventsRequest) (*posternv1.Job, error) {
	e, err := s.find(ctx, authz.Manage, request.GetName())
	if err == nil {
		err = e.Problem
	}
	if err != nil {
		return nil, err
	}
	r := delivery.JobRequest{Kind: delivery.JobReplay, Rate: request.GetRatePerSecond(), DryRun: request.GetDryRun(), Replay: delivery.ReplayRequest{
		After: request.GetAfter().AsTime(), Topics: request.GetTopics(), HasKey: request.Key != nil, Key: request.Key,
	}}
	if request.GetBefore() != nil {
		if r.Replay.Before = request.GetBefore().AsTime(); !r.Replay.Before.After(r.Replay.After) {
			return nil, fault.New(fault.InvalidArgument, "before must be later than after").Field("before", "it is not later than after")
		}
	}
	for i, topic := range r.Replay.Topics {
		if !reads(e.Spec, topic) {
			return nil, fault.New(fault.InvalidArgument, "subscription %s does not read topic %s", e.Spec.Name, topic).Field(fmt.Sprintf("topics[%d]", i), "the subscription does not read it")
		}
	}
	return s.start(ctx, e.Spec.Queue(), r)
}

// start begins a job.
func (s *Server) start(ctx context.Context, of delivery.Options, r delivery.JobRequest) (*posternv1.Job, error) {
	if s.Jobs == nil {
		return nil, notOffered("redriving, purging and replaying")
	}
	j, err := s.Jobs.StartJob(ctx, of, r)
	if err != nil {
		return nil, err
	}
	return jobToProto(&j), nil
}

// jobToProto writes a job. The kinds and states have the proto's numbers.
func jobToProto(j *delivery.Job) *posternv1.Job {
	m := &posternv1.Job{
		Id: j.ID, Subscription: j.Subscription, Kind: posternv1.JobKind(j.Request.Kind), State: posternv1.JobState(j.State), DryRun: j.Request.DryRun,
		Scanned: j.Scanned, Total: j.Total, Matched: j.Matched, Done: j.Done, Skipped: j.Skipped,
		CreateTime: wire.Time(j.Created), UpdateTime: wire.Time(j.Updated), EndTime: wire.Time(j.Ended), Error: wire.Status(j.Err), Instance: j.Instance,
	}
	switch r := j.Request; r.Kind {
	case delivery.JobRedrive:
		redrive := &posternv1.RedriveDeadLettersRequest{
			Name: j.Subscription, Filter: filterBack(r.Filter), To: posternv1.RedriveTo_REDRIVE_TO_SUBSCRIPTION,
			RatePerSecond: r.Rate, DryRun: r.DryRun, MaxRedrives: int32(r.MaxRedrives),
		}
		if r.ToTopic {
			redrive.To = posternv1.RedriveTo_REDRIVE_TO_TOPIC
		}
		m.Request = &posternv1.Job_Redrive{Redrive: redrive}
	case delivery.JobPurge:
		m.Request = &posternv1.Job_Purge{Purge: &posternv1.PurgeDeadLettersRequest{Name: j.Subscription, Filter: filterBack(r.Filter), DryRun: r.DryRun}}
	case delivery.JobReplay:
		replay := &posternv1.ReplayEventsRequest{
			Name: j.Subscription, After: timestamppb.New(r.Replay.After), Before: wire.Time(r.Replay.Before), Topics: r.Replay.Topics, RatePerSecond: r.Rate, DryRun: r.DryRun,
		}
		if r.Replay.HasKey {
			replay.Key = r.Replay.Key
		}
		m.Request = &posternv1.Job_Replay{Replay: replay}
	}
	return m
}

// filterBack writes a filter of dead letters.
func filterBack(f delivery.LetterFilter) *posternv1.DeadLetterFilter {
	m := &posternv1.DeadLetterFilter{
		After: wire.Time(f.After), Before: wire.Time(f.Before), Reasons: f.Reasons, Text: f.Text, OriginTopic: f.OriginTopic,
		OriginPartition: f.OriginPartition, OriginOffsetFrom: f.OriginFrom, OriginOffsetTo: f.OriginTo, IncludeRedriven: f.IncludeRedriven,
	}
	if f.HasKey {
		m.Key = f.Key
	}
	for _, at := range f.Positions {
		m.Ids = append(m.Ids, letterID(at))
	}
	return m
}

// GetJob shows one.
func (s *Server) GetJob(ctx context.Context, request *posternv1.GetJobRequest) (*posternv1.Job, error) {
	jobs, err := s.jobs(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	for i := range jobs {
		if jobs[i].ID == request.GetId() {
			return jobToProto(&jobs[i]), nil
		}
	}
	return nil, fault.New(fault.UnknownJob, "subscription %s has no job %s", request.GetName(), request.GetId())
}

// jobs lists a subscription's jobs, the newest first.
func (s *Server) jobs(ctx context.Context, name string) ([]delivery.Job, error) {
	if _, err := s.find(ctx, authz.Describe, name); err != nil {
		return nil, err
	}
	if s.Jobs == nil {
		return nil, notOffered("redriving, purging and replaying")
	}
	return s.Jobs.ListJobs(ctx, name)
}

// ListJobs lists them. A page's token is the id of its last job.
func (s *Server) ListJobs(ctx context.Context, request *posternv1.ListJobsRequest) (*posternv1.ListJobsResponse, error) {
	jobs, err := s.jobs(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	size := int(request.GetPageSize())
	if size == 0 {
		size = defaultLetters
	}
	from := 0
	for i := range jobs {
		if jobs[i].ID == request.GetPageToken() {
			from = i + 1
		}
	}
	answer := &posternv1.ListJobsResponse{}
	for i := from; i < len(jobs); i++ {
		if len(answer.Jobs) == size {
			answer.NextPageToken = jobs[i-1].ID
			break
		}
		answer.Jobs = append(answer.Jobs, jobToProto(&jobs[i]))
	}
	return answer, nil
}

// CancelJob stops one.
func (s *Server) CancelJob(ctx context.Context, request *posternv1.CancelJobRequest) (*posternv1.Job, error) {
	if _, err := s.find(ctx, authz.Manage, request.GetName()); err != nil {
		return nil, err
	}
	if s.Jobs == nil {
		return nil, notOffered("redriving, purging and replaying")
	}
	j, err := s.Jobs.CancelJob(ctx, request.GetName(), request.GetId())
	if err != nil {
		return nil, err
	}
	return jobToProto(&j), nil
}
