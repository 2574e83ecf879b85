package subscription

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// FromProto reads a specification. What the message can say and this build does
// not offer is a *setting.Error, as Validate's are.
func FromProto(m *posternv1.Subscription) (Spec, error) {
	var faults setting.Faults
	s := Spec{
		Name: m.GetName(), Topics: slices.Clone(m.GetTopics()), TopicsPattern: m.GetTopicsPattern(), Group: m.GetGroup(),
		Lease: m.GetLease().AsDuration(), DeadLetter: DeadLetter{Topic: m.GetDeadLetter().GetTopic()}, Labels: maps.Clone(m.GetLabels()),
		Retry: delivery.Retry{
			MaxAttempts: int(m.GetRetry().GetMaxAttempts()),
			MinBackoff:  m.GetRetry().GetMinBackoff().AsDuration(),
			MaxBackoff:  m.GetRetry().GetMaxBackoff().AsDuration(),
			HoldLimit:   m.GetRetry().GetHoldLimit().AsDuration(),
			MaxBlock:    m.GetRetry().GetMaxBlock().AsDuration(),
		},
	}
	for _, d := range m.GetRetry().GetSchedule() {
		s.Retry.Schedule = append(s.Retry.Schedule, d.AsDuration())
	}
	if m.GetRetry().GetOnBlock() == posternv1.OnBlock_ON_BLOCK_MOVE_ON {
		s.Retry.OnBlock = delivery.MoveOn
	}
	switch m.GetOrder() {
	case posternv1.Order_ORDER_PARTITION:
		s.Order = delivery.OrderPartition
	case posternv1.Order_ORDER_NONE:
		s.Order = delivery.OrderNone
	case posternv1.Order_ORDER_QUEUE:
		s.Order = delivery.OrderQueue
	default:
		s.Order = delivery.OrderKey
	}
	switch at := m.GetStart().GetAt().(type) {
	case *posternv1.Start_Edge:
		s.Start.Latest = at.Edge == posternv1.Edge_EDGE_LATEST
	case *posternv1.Start_Time:
		s.Start = Start{broker.Start{Time: at.Time.AsTime()}}
	case *posternv1.Start_Cursor:
		faults.Add("start", "a cursor is for tails: begin at an edge or a time, and seek to the cursor")
	}
	if m.GetFilter() != nil {
		s.Filter = filterFromProto(m.GetFilter(), 1)
	}
	if m.GetOnFilterError() == posternv1.OnFilterError_ON_FILTER_ERROR_SKIP {
		s.OnFilterError = SkipOnError
	}
	if w := m.GetWebhook(); w != nil {
		s.Webhook, s.References = webhookFromProto(w)
		endpointFromProto(w, s.Webhook, &s.References)
	}
	if p := m.GetPush(); p != nil {
		if s.Webhook != nil {
			faults.Add("push", "a subscription pushes to one endpoint: use webhook or push")
		} else {
			s.Push = pushFromProto(p, &s.References)
		}
	}
	return s, faults.Err()
}

// filterFromProto reads a filter. Below the depth that NewFilter allows it stops,
// one part after, so that NewFilter refuses it.
func filterFromProto(m *posternv1.Filter, depth int) *FilterSpec {
	f := &FilterSpec{CEL: m.GetCel(), Exact: maps.Clone(m.GetExact()), Prefix: maps.Clone(m.GetPrefix()), Suffix: maps.Clone(m.GetSuffix()), SQL: m.GetSql()}
	if depth > maxFilterDepth {
		return f
	}
	for _, p := range m.GetAll() {
		f.All = append(f.All, *filterFromProto(p, depth+1))
	}
	for _, p := range m.GetAny() {
		f.Any = append(f.Any, *filterFromProto(p, depth+1))
	}
	if m.GetNot() != nil {
		f.Not = filterFromProto(m.GetNot(), depth+1)
	}
	return f
}

func filterToProto(f *FilterSpec) *posternv1.Filter {
	m := &posternv1.Filter{Cel: f.CEL, Exact: f.Exact, Prefix: f.Prefix, Suffix: f.Suffix, Sql: f.SQL}
	for i := range f.All {
		m.All = append(m.All, filterToProto(&f.All[i]))
	}
	for i := range f.Any {
		m.Any = append(m.Any, filterToProto(&f.Any[i]))
	}
	if f.Not != nil {
		m.Not = filterToProto(f.Not)
	}
	return m
}

func webhookFromProto(m *posternv1.Webhook) (*webhook.Options, References) {
	o := &webhook.Options{
		URL: m.GetUrl(), Timeout: m.GetTimeout().AsDuration(), Concurrency: int(m.GetConcurrency()),
		AllowHTTP: m.GetAllowHttp(), AllowLoopback: m.GetAllowLoopback(), AllowCIDRs: slices.Clone(m.GetAllowCidrs()),
	}
	switch m.GetMode() {
	case posternv1.WebhookMode_WEBHOOK_MODE_BINARY:
		o.Mode = webhook.Binary
	case posternv1.WebhookMode_WEBHOOK_MODE_STRUCTURED:
		o.Mode = webhook.Structured
	case posternv1.WebhookMode_WEBHOOK_MODE_BATCH:
		o.Mode = webhook.Batch
	}
	o.View = viewFromProto(m.GetView())
	var r References
	for _, s := range m.GetSecrets() {
		r.Secrets = append(r.Secrets, s.GetName())
	}
	for name, s := range m.GetHeaders() {
		if r.Headers == nil {
			r.Headers = map[string]string{}
		}
		r.Headers[name] = s.GetName()
	}
	return o, r
}

func viewFromProto(v posternv1.View) webhook.View {
	switch v {
	case posternv1.View_VIEW_RAW:
		return webhook.ViewRaw
	case posternv1.View_VIEW_JSON:
		return webhook.ViewJSON
	}
	return ""
}

func viewToProto(v webhook.View) posternv1.View {
	switch v {
	case webhook.ViewRaw:
		return posternv1.View_VIEW_RAW
	case webhook.ViewJSON:
		return posternv1.View_VIEW_JSON
	}
	return posternv1.View_VIEW_UNSPECIFIED
}

// webhookToProto writes an endpoint. Of secrets there are the references, or,
// of a configuration file's, only how many and for which headers.
func webhookToProto(o *webhook.Options, r References) *posternv1.Webhook {
	m := &posternv1.Webhook{
		Url: o.URL, Timeout: duration(o.Timeout), Concurrency: int32(o.Concurrency),
		AllowHttp: o.AllowHTTP, AllowLoopback: o.AllowLoopback, AllowCidrs: o.AllowCIDRs,
	}
	switch o.Mode {
	case webhook.Binary:
		m.Mode = posternv1.WebhookMode_WEBHOOK_MODE_BINARY
	case webhook.Structured:
		m.Mode = posternv1.WebhookMode_WEBHOOK_MODE_STRUCTURED
	case webhook.Batch:
		m.Mode = posternv1.WebhookMode_WEBHOOK_MODE_BATCH
	}
	m.View = viewToProto(o.View)
	for _, name := range r.Secrets {
		m.Secrets = append(m.Secrets, &posternv1.SecretReference{Name: name})
	}
	for range o.Secrets {
		m.Secrets = append(m.Secrets, &posternv1.SecretReference{})
	}
	if len(r.Headers)+len(o.Headers) > 0 {
		m.Headers = map[string]*posternv1.SecretReference{}
	}
	for header, name := range r.Headers {
		m.Headers[header] = &posternv1.SecretReference{Name: name}
	}
	for header := range o.Headers {
		m.Headers[header] = &posternv1.SecretReference{}
	}
	return m
}

// ToProto writes a specification, as it was declared: what was left out stays out.
func (s Spec) ToProto() *posternv1.Subscription {
	m := &posternv1.Subscription{
		Name: s.Name, Topics: s.Topics, TopicsPattern: s.TopicsPattern, Order: OrderToProto(s.Order), Group: s.Group,
		Lease: duration(s.Lease), Labels: s.Labels,
	}
	if s.DeadLetter.Topic != "" {
		m.DeadLetter = &posternv1.DeadLetter{Topic: s.DeadLetter.Topic}
	}
	switch {
	case !s.Start.Time.IsZero():
		m.Start = &posternv1.Start{At: &posternv1.Start_Time{Time: timestamppb.New(s.Start.Time)}}
	case s.Start.Latest:
		m.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
	}
	r := &posternv1.RetryPolicy{
		MaxAttempts: int32(s.Retry.MaxAttempts), MinBackoff: duration(s.Retry.MinBackoff), MaxBackoff: duration(s.Retry.MaxBackoff),
		HoldLimit: duration(s.Retry.HoldLimit), MaxBlock: duration(s.Retry.MaxBlock),
	}
	for _, d := range s.Retry.Schedule {
		r.Schedule = append(r.Schedule, durationpb.New(d))
	}
	if s.Retry.OnBlock == delivery.MoveOn {
		r.OnBlock = posternv1.OnBlock_ON_BLOCK_MOVE_ON
	}
	if r.MaxAttempts != 0 || r.MinBackoff != nil || r.MaxBackoff != nil || r.HoldLimit != nil || r.MaxBlock != nil || r.Schedule != nil || r.OnBlock != 0 {
		m.Retry = r
	}
	if s.Filter != nil {
		m.Filter = filterToProto(s.Filter)
	}
	switch s.OnFilterError {
	case DeadLetterOnError:
		m.OnFilterError = posternv1.OnFilterError_ON_FILTER_ERROR_DEAD_LETTER
	case SkipOnError:
		m.OnFilterError = posternv1.OnFilterError_ON_FILTER_ERROR_SKIP
	}
	if s.Webhook != nil {
		m.Webhook = webhookToProto(s.Webhook, s.References)
		endpointToProto(m.Webhook, s.Webhook, s.References)
	}
	if s.Push != nil {
		m.Push = pushToProto(s.Push, s.References)
	}
	return m
}

// duration writes d, absent when zero.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// OrderToProto writes an order.
func OrderToProto(o delivery.Order) posternv1.Order {
	switch o {
	case delivery.OrderPartition:
		return posternv1.Order_ORDER_PARTITION
	case delivery.OrderNone:
		return posternv1.Order_ORDER_NONE
	case delivery.OrderQueue:
		return posternv1.Order_ORDER_QUEUE
	}
	return posternv1.Order_ORDER_KEY
}
