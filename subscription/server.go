package subscription

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Parts are what a Server works with.
type Parts struct {
	Registry *Registry
	Kafka    *broker.Client
	Policy   authz.Policy
	Options  Options
	Instance string // of this gateway
	// Cursor reads a tail's cursor: the next offset of each partition.
	Cursor func(text string) (map[int32]int64, error)
	// Letters, Jobs and Reporter are delivery's; what is nil is NOT_OFFERED.
	Letters  Letters
	Jobs     Jobs
	Reporter Reporter
	// Endpoint says what holds up a push endpoint that has left its queue; a zero Kind: nothing.
	Endpoint func(name string) delivery.Cause
}

// Server is the gRPC service Subscriptions. Requests come validated.
type Server struct {
	posternv1.UnimplementedSubscriptionsServer
	Parts
}

// NewServer makes the service.
func NewServer(p Parts) *Server { return &Server{Parts: p} }

// check asks the policy.
func (s *Server) check(ctx context.Context, verb authz.Verb, name string) error {
	return s.Policy.Check(authz.FromContext(ctx), verb, name)
}

// find gives the entry of name if the caller may do verb on it.
func (s *Server) find(ctx context.Context, verb authz.Verb, name string) (*Entry, error) {
	if err := s.check(ctx, verb, name); err != nil {
		return nil, err
	}
	return s.Registry.Entry(ctx, name)
}

// toProto writes an entry.
func (e *Entry) toProto() *posternv1.Subscription {
	m := e.Spec.ToProto()
	if e.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE {
		hideFile(m)
	}
	m.Etag, m.Generation, m.DeclaredIn, m.Note = e.Etag, e.Generation, e.DeclaredIn, e.Note
	m.CreateTime, m.UpdateTime = wire.Time(e.Created), wire.Time(e.Updated)
	m.Paused, m.SeekEpoch = e.Desired.Paused, e.Desired.SeekEpoch
	if e.Problem != nil {
		m.Problem = e.Problem.Error()
	}
	return m
}

// declared reads and checks a specification given through the API.
func (s *Server) declared(ctx context.Context, m *posternv1.Subscription) (Spec, error) {
	spec, err := FromProto(m)
	if err == nil {
		err = spec.Validate()
	}
	if err == nil {
		err = s.Options.permit(spec)
	}
	if err != nil {
		return spec, invalid(err)
	}
	for _, topic := range spec.Topics {
		if err := s.check(ctx, authz.Subscribe, topic); err != nil {
			return spec, err
		}
	}
	if spec.Group != "" && spec.Group != spec.Name {
		if err := s.check(ctx, authz.Manage, spec.Group); err != nil {
			return spec, err
		}
	}
	if spec.DeadLetter.Topic != "" {
		if err := s.check(ctx, authz.Publish, spec.DeadLetter.Topic); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// invalid says what is wrong with a specification, each fault with its field.
func invalid(err error) error {
	f := fault.New(fault.InvalidArgument, "the subscription is wrong: %w", err)
	for _, e := range flatten(err) {
		var one *setting.Error
		if errors.As(e, &one) {
			f = f.Field("subscription."+one.Path, "%s", one.Message)
		}
	}
	return f
}

func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// CreateSubscription makes a subscription.
func (s *Server) CreateSubscription(ctx context.Context, request *posternv1.CreateSubscriptionRequest) (*posternv1.Subscription, error) {
	name := request.GetSubscription().GetName()
	if err := s.check(ctx, authz.Manage, name); err != nil {
		return nil, err
	}
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	spec, err := s.declared(ctx, request.GetSubscription())
	if err != nil {
		return nil, err
	}
	vacant := func(kept *Kept) error {
		if e := s.Registry.get(name); kept != nil || e != nil {
			return fault.New(fault.SubscriptionExists, "there is a subscription called %s: choose another name, or update it", name).With("subscription", name)
		}
		for _, e := range s.Registry.List() {
			if e.Spec.group() == spec.group() {
				return fault.New(fault.InvalidArgument, "group %s is subscription %s's: two subscriptions of one group would take each other's partitions", spec.group(), e.Spec.Name).
					Field("subscription.group", "it is subscription %s's", e.Spec.Name)
			}
		}
		if n := s.Options.WithDefaults().MaxSubscriptions; store.Count() >= n {
			return fault.New(fault.TooManySubscriptions, "there are %d subscriptions, as many as may be: delete some, or raise subscriptions_api.max_subscriptions", n)
		}
		return nil
	}
	if request.GetValidateOnly() {
		if err := vacant(store.Get(name)); err != nil {
			return nil, err
		}
		return spec.ToProto(), nil
	}
	if err := s.Registry.Update(ctx, name, func(old *Kept) (*State, error) {
		if err := vacant(old); err != nil {
			return nil, err
		}
		return &State{Spec: spec, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_API, Generation: 1}, nil
	}); err != nil {
		return nil, err
	}
	return s.answer(ctx, name)
}

// store gives where changes are kept, if they are.
func (s *Server) store(ctx context.Context) (*Store, error) {
	if s.Registry.store == nil {
		return nil, fault.New(fault.NotOffered, "this gateway serves its configuration's subscriptions only (subscriptions_api.disabled)")
	}
	return s.Registry.store, s.Registry.await(ctx)
}

// answer gives the subscription as it is after a change.
func (s *Server) answer(ctx context.Context, name string) (*posternv1.Subscription, error) {
	e, err := s.Registry.Entry(ctx, name)
	if fault.Is(err, fault.UnknownSubscription) {
		return nil, fault.New(fault.SubscriptionDeleted, "subscription %s was changed, and deleted by somebody else at once", name)
	}
	if err != nil {
		return nil, err
	}
	return e.toProto(), nil
}

// GetSubscription shows one.
func (s *Server) GetSubscription(ctx context.Context, request *posternv1.GetSubscriptionRequest) (*posternv1.Subscription, error) {
	e, err := s.find(ctx, authz.Describe, request.GetName())
	if err != nil {
		return nil, err
	}
	return e.toProto(), nil
}

const (
	defaultPage = 100
	maxPage     = 1000
)

// ListSubscriptions lists what the caller may see.
func (s *Server) ListSubscriptions(ctx context.Context, request *posternv1.ListSubscriptionsRequest) (*posternv1.ListSubscriptionsResponse, error) {
	unread := s.Registry.await(ctx)
	if unread != nil && fault.KindOf(unread) != fault.KindUnavailable {
		return nil, unread // a list without those in Kafka would be taken for the whole
	}
	if unread != nil && len(s.Registry.List()) == 0 {
		return nil, unread
	}
	size := int(request.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	answer := &posternv1.ListSubscriptionsResponse{}
	for _, e := range s.Registry.List() {
		if e.Spec.Name <= request.GetPageToken() || !wanted(e, request) || s.check(ctx, authz.Describe, e.Spec.Name) != nil {
			continue
		}
		if len(answer.Subscriptions) == min(size, maxPage) {
			answer.NextPageToken = answer.Subscriptions[len(answer.Subscriptions)-1].Name
			break
		}
		answer.Subscriptions = append(answer.Subscriptions, e.toProto())
	}
	return answer, nil
}

func wanted(e *Entry, request *posternv1.ListSubscriptionsRequest) bool {
	for _, label := range request.GetLabels() {
		name, value, _ := strings.Cut(label, "=")
		if v, ok := e.Spec.Labels[name]; !ok || v != value {
			return false
		}
	}
	return request.GetTopic() == "" || slices.Contains(e.Spec.Topics, request.GetTopic())
}

// UpdateSubscription changes one that the API declared.
func (s *Server) UpdateSubscription(ctx context.Context, request *posternv1.UpdateSubscriptionRequest) (*posternv1.Subscription, error) {
	name := request.GetSubscription().GetName()
	if err := s.check(ctx, authz.Manage, name); err != nil {
		return nil, err
	}
	store, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	change := func(old *Kept) (*State, error) {
		state, err := s.changeable(name, old, request.GetSubscription().GetEtag())
		if err != nil {
			return nil, err
		}
		m, err := updated(state.Spec.ToProto(), request.GetSubscription(), request.GetUpdateMask().GetPaths())
		if err != nil {
			return nil, err
		}
		spec, err := s.declared(ctx, m)
		if err != nil {
			return nil, err
		}
		if err := forGood(state.Spec, spec); err != nil {
			return nil, err
		}
		changed := *state
		changed.Spec = spec
		changed.Generation++
		return &changed, nil
	}
	if request.GetValidateOnly() {
		state, err := change(store.Get(name))
		if err != nil {
			return nil, err
		}
		return state.Spec.ToProto(), nil
	}
	if err := s.Registry.Update(ctx, name, change); err != nil {
		return nil, err
	}
	return s.answer(ctx, name)
}

// changeable gives the state of a subscription that may be changed through the API.
func (s *Server) changeable(name string, old *Kept, etag string) (*State, error) {
	e := s.Registry.get(name)
	switch {
	case e != nil && e.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE:
		return nil, fault.New(fault.DeclaredInFile, "subscription %s is declared in a configuration file, which alone can change it; it can be paused, resumed and sought here", name).With("subscription", name)
	case old == nil:
		return nil, fault.New(fault.UnknownSubscription, "no subscription is called %q", name).With("subscription", name)
	case old.Err != nil:
		return nil, unreadable(name, old.Err)
	case etag != "" && etag != old.Etag:
		return nil, etagMismatch(name, old.Etag)
	}
	return old.State, nil
}

func etagMismatch(name, present string) error {
	return fault.New(fault.EtagMismatch, "subscription %s was changed since that etag was read: read it again, and make the change anew", name).
		With("subscription", name).With("etag", present)
}

// forGood refuses a change of what the group's position in Kafka means.
func forGood(old, changed Spec) error {
	f := fault.New(fault.InvalidArgument, "subscription %s cannot change so: delete it and create it anew", old.Name)
	if old.Order != changed.Order {
		f = f.Field("subscription.order", "it is %s for good", old.Order)
	}
	if old.group() != changed.group() {
		f = f.Field("subscription.group", "it is %s for good", old.group())
	}
	if !old.Start.Time.Equal(changed.Start.Time) || old.Start.Latest != changed.Start.Latest {
		f = f.Field("subscription.start", "it was applied when the subscription was first used: seek instead")
	}
	if len(f.Violations) == 0 {
		return nil
	}
	return f
}

// DeleteSubscription ends one that the API declared, or the record of one that a
// file declared and that this gateway does not serve.
func (s *Server) DeleteSubscription(ctx context.Context, request *posternv1.DeleteSubscriptionRequest) (*emptypb.Empty, error) {
	name := request.GetName()
	if err := s.check(ctx, authz.Manage, name); err != nil {
		return nil, err
	}
	if _, err := s.store(ctx); err != nil {
		return nil, err
	}
	if err := s.Registry.Update(ctx, name, func(old *Kept) (*State, error) {
		e := s.Registry.get(name)
		if e != nil && e.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE && e.Problem != nil && old != nil && old.Err == nil {
			if tag := request.GetEtag(); tag != "" && tag != e.Etag {
				return nil, etagMismatch(name, e.Etag)
			}
			return nil, nil
		}
		_, err := s.changeable(name, old, request.GetEtag())
		return nil, err
	}); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
