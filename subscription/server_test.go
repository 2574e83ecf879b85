package subscription

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// memory is a ledger without a Kafka: one writer at a time, read at once.
type memory struct {
	mu   sync.Mutex
	to   broker.LedgerReader
	next int64
}

func (m *memory) Follow(ctx context.Context, to broker.LedgerReader, _ func(error)) error {
	m.mu.Lock()
	m.to = to
	to.CaughtUp()
	m.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (m *memory) Write(_ context.Context, decide func() ([]*event.Record, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	records, err := decide()
	for _, r := range records {
		r.Offset = m.next
		m.next++
		m.to.Take(r)
	}
	return err
}

// served runs a registry until the test ends.
func served(t *testing.T, file ...Spec) *Registry {
	t.Helper()
	r, err := NewRegistry(file, &memory{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-r.store.Loaded()
	return r
}

func as(name string) context.Context {
	return authz.NewContext(context.Background(), authz.Identity{Name: name})
}

// delivered stands in for delivery: it keeps what it was asked.
type delivered struct {
	query   delivery.LettersQuery
	request delivery.JobRequest
	letters []delivery.DeadLetter
	jobs    []delivery.Job
	report  delivery.Report
}

func (d *delivered) ListLetters(_ context.Context, _ delivery.Options, q delivery.LettersQuery) (delivery.LettersPage, error) {
	d.query = q
	return delivery.LettersPage{Letters: d.letters, Next: "next"}, nil
}

func (d *delivered) StartJob(_ context.Context, of delivery.Options, r delivery.JobRequest) (delivery.Job, error) {
	d.request = r
	return delivery.Job{ID: "j1", Subscription: of.Name, Request: r, State: delivery.JobRunning, Total: 9, Created: time.Unix(1, 0), Err: errors.New("slow")}, nil
}

func (d *delivered) ListJobs(context.Context, string) ([]delivery.Job, error) { return d.jobs, nil }

func (d *delivered) CancelJob(_ context.Context, name, id string) (delivery.Job, error) {
	return delivery.Job{ID: id, Subscription: name, State: delivery.JobCancelled}, nil
}

func (d *delivered) Report(context.Context, delivery.Options) (delivery.Report, error) {
	return d.report, nil
}

func TestRequestsAboutDeadLettersReachDeliveryWhole(t *testing.T) {
	d := &delivered{letters: []delivery.DeadLetter{{
		Record: order(), At: event.Position{Topic: "mail.dead", Partition: 3, Offset: 1042}, Origin: event.Position{Topic: "orders", Partition: 1, Offset: 7},
		Reason: "rejected", Detail: "bad \xff", Attempts: 4, Written: time.Unix(5, 0), Redrives: 2, RedrivenBy: "j0",
	}}}
	d.letters[0].Record.Headers = append(d.letters[0].Record.Headers, event.Header{Name: event.HeaderTraceParent, Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")})
	s := NewServer(Parts{Registry: served(t, Spec{Name: "mail", Topics: []string{"orders"}}), Policy: authz.Open(), Letters: d, Jobs: d})
	ctx := as("anna")
	filter := &posternv1.DeadLetterFilter{
		After: timestamppb.New(time.Unix(1, 0)), Before: timestamppb.New(time.Unix(2, 0)), Reasons: []string{"rejected"}, Key: []byte{}, Text: "x",
		OriginTopic: "orders", OriginPartition: proto.Int32(0), OriginOffsetFrom: proto.Int64(0), OriginOffsetTo: proto.Int64(5), Ids: []string{"3-1042"}, IncludeRedriven: true,
	}
	want := delivery.LetterFilter{
		After: time.Unix(1, 0).UTC(), Before: time.Unix(2, 0).UTC(), Reasons: []string{"rejected"}, HasKey: true, Key: []byte{}, Text: "x",
		OriginTopic: "orders", OriginPartition: proto.Int32(0), OriginFrom: proto.Int64(0), OriginTo: proto.Int64(5),
		Positions: []event.Position{{Topic: "mail.dead", Partition: 3, Offset: 1042}}, IncludeRedriven: true,
	}
	list, err := s.ListDeadLetters(ctx, &posternv1.ListDeadLettersRequest{Name: "mail", Filter: filter, PageSize: 7, PageToken: "t", Order: posternv1.DeadLetterOrder_DEAD_LETTER_ORDER_OLDEST_FIRST, Summary: true})
	if err != nil {
		t.Fatal(err)
	}
	if q := d.query; !reflect.DeepEqual(q.Filter, want) || q.Size != 7 || q.Token != "t" || !q.OldestFirst || !q.Summary {
		t.Errorf("asked %+v", q)
	}
	m := list.DeadLetters[0]
	if m.Id != "3-1042" || m.Reason != "rejected" || m.Detail != "bad \uFFFD" || m.TraceId != "0af7651916cd43dd8448eb211c80319c" || m.Event.Type != "order.created" || m.Redrives != 2 || list.NextPageToken != "next" {
		t.Errorf("told %v", m)
	}
	if _, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: "3-1042"}); err != nil || len(d.query.Filter.Positions) != 1 || !d.query.Filter.IncludeRedriven {
		t.Errorf("%v, asked %+v", err, d.query)
	}
	if _, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: "3"}); !fault.Is(err, fault.InvalidArgument) {
		t.Error(err)
	}
	d.letters = nil
	if _, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: "3-1042"}); !fault.Is(err, fault.UnknownDeadLetter) {
		t.Error(err)
	}

	request := &posternv1.RedriveDeadLettersRequest{Name: "mail", Filter: filter, To: posternv1.RedriveTo_REDRIVE_TO_TOPIC, RatePerSecond: 5, DryRun: true, MaxRedrives: 2}
	job, err := s.RedriveDeadLetters(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if r := d.request; r.Kind != delivery.JobRedrive || !reflect.DeepEqual(r.Filter, want) || !r.ToTopic || r.Rate != 5 || !r.DryRun || r.MaxRedrives != 2 {
		t.Errorf("asked %+v", r)
	}
	if job.Id != "j1" || job.State != posternv1.JobState_JOB_STATE_RUNNING || job.Total != 9 || job.Error == nil || !proto.Equal(job.GetRedrive(), request) {
		t.Errorf("told %s", protojson.Format(job))
	}
	if _, err := s.PurgeDeadLetters(ctx, &posternv1.PurgeDeadLettersRequest{Name: "mail", Filter: &posternv1.DeadLetterFilter{}}); err != nil || d.request.Kind != delivery.JobPurge || !d.request.Filter.IncludeRedriven {
		t.Errorf("%v, asked %+v", err, d.request)
	}
	replay := &posternv1.ReplayEventsRequest{Name: "mail", After: timestamppb.New(time.Unix(9, 0)), Before: timestamppb.New(time.Unix(10, 0)), Topics: []string{"orders"}, Key: []byte("k"), RatePerSecond: 1}
	if job, err := s.ReplayEvents(ctx, replay); err != nil || !proto.Equal(job.GetReplay(), replay) {
		t.Errorf("%v %s", err, protojson.Format(job))
	}
	for _, wrong := range []*posternv1.ReplayEventsRequest{
		{Name: "mail", After: timestamppb.New(time.Unix(9, 0)), Before: timestamppb.New(time.Unix(9, 0))},
		{Name: "mail", After: timestamppb.New(time.Unix(9, 0)), Topics: []string{"others"}},
	} {
		if _, err := s.ReplayEvents(ctx, wrong); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}

func TestJobsAreListedInPages(t *testing.T) {
	d := &delivered{}
	for _, id := range []string{"c", "b", "a"} {
		d.jobs = append(d.jobs, delivery.Job{ID: id, Subscription: "mail"})
	}
	s := NewServer(Parts{Registry: served(t, Spec{Name: "mail", Topics: []string{"orders"}}), Policy: authz.Open(), Jobs: d})
	ctx := as("anna")
	var got []string
	for token, first := "", true; first || token != ""; first = false {
		page, err := s.ListJobs(ctx, &posternv1.ListJobsRequest{Name: "mail", PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range page.Jobs {
			got = append(got, j.Id)
		}
		token = page.NextPageToken
	}
	if !slices.Equal(got, []string{"c", "b", "a"}) {
		t.Error(got)
	}
	if j, err := s.GetJob(ctx, &posternv1.GetJobRequest{Name: "mail", Id: "b"}); err != nil || j.Id != "b" {
		t.Error(j, err)
	}
	if _, err := s.GetJob(ctx, &posternv1.GetJobRequest{Name: "mail", Id: "x"}); !fault.Is(err, fault.UnknownJob) {
		t.Error(err)
	}
	if j, err := s.CancelJob(ctx, &posternv1.CancelJobRequest{Name: "mail", Id: "b"}); err != nil || j.State != posternv1.JobState_JOB_STATE_CANCELLED {
		t.Error(j, err)
	}
}

func TestWhatIsNotThereIsNotOffered(t *testing.T) {
	s := NewServer(Parts{Registry: served(t, Spec{Name: "mail", Topics: []string{"orders"}}), Policy: authz.Open()})
	ctx := as("anna")
	for what, call := range map[string]func() error{
		"list": func() error {
			_, err := s.ListDeadLetters(ctx, &posternv1.ListDeadLettersRequest{Name: "mail"})
			return err
		},
		"show": func() error {
			_, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: "1-1"})
			return err
		},
		"redrive": func() error {
			_, err := s.RedriveDeadLetters(ctx, &posternv1.RedriveDeadLettersRequest{Name: "mail"})
			return err
		},
		"jobs": func() error { _, err := s.ListJobs(ctx, &posternv1.ListJobsRequest{Name: "mail"}); return err },
		"cancel": func() error {
			_, err := s.CancelJob(ctx, &posternv1.CancelJobRequest{Name: "mail", Id: "x"})
			return err
		},
	} {
		if err := call(); !fault.Is(err, fault.NotOffered) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCallerWithoutRightsLearnsAndDoesNothing(t *testing.T) {
	s := NewServer(Parts{Registry: served(t, Spec{Name: "mail", Topics: []string{"orders"}}), Policy: authz.Policy{}, Letters: &delivered{}, Jobs: &delivered{}})
	ctx, name := as("eve"), "mail"
	for what, call := range map[string]func() error{
		"create": func() error {
			_, err := s.CreateSubscription(ctx, &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: "new", Topics: []string{"t"}}})
			return err
		},
		"get": func() error {
			_, err := s.GetSubscription(ctx, &posternv1.GetSubscriptionRequest{Name: name})
			return err
		},
		"update": func() error {
			_, err := s.UpdateSubscription(ctx, &posternv1.UpdateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: name}})
			return err
		},
		"delete": func() error {
			_, err := s.DeleteSubscription(ctx, &posternv1.DeleteSubscriptionRequest{Name: name})
			return err
		},
		"pause": func() error {
			_, err := s.PauseSubscription(ctx, &posternv1.PauseSubscriptionRequest{Name: name})
			return err
		},
		"resume": func() error {
			_, err := s.ResumeSubscription(ctx, &posternv1.ResumeSubscriptionRequest{Name: name})
			return err
		},
		"seek": func() error {
			_, err := s.SeekSubscription(ctx, &posternv1.SeekSubscriptionRequest{Name: name, To: &posternv1.SeekSubscriptionRequest_Edge{Edge: posternv1.Edge_EDGE_LATEST}})
			return err
		},
		"status": func() error {
			_, err := s.GetSubscriptionStatus(ctx, &posternv1.GetSubscriptionStatusRequest{Name: name})
			return err
		},
		"dead letters": func() error {
			_, err := s.ListDeadLetters(ctx, &posternv1.ListDeadLettersRequest{Name: name})
			return err
		},
		"dead letter": func() error {
			_, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: name, Id: "1-1"})
			return err
		},
		"redrive": func() error {
			_, err := s.RedriveDeadLetters(ctx, &posternv1.RedriveDeadLettersRequest{Name: name})
			return err
		},
		"purge": func() error {
			_, err := s.PurgeDeadLetters(ctx, &posternv1.PurgeDeadLettersRequest{Name: name})
			return err
		},
		"replay": func() error {
			_, err := s.ReplayEvents(ctx, &posternv1.ReplayEventsRequest{Name: name})
			return err
		},
		"jobs": func() error { _, err := s.ListJobs(ctx, &posternv1.ListJobsRequest{Name: name}); return err },
		"job":  func() error { _, err := s.GetJob(ctx, &posternv1.GetJobRequest{Name: name, Id: "x"}); return err },
		"cancel": func() error {
			_, err := s.CancelJob(ctx, &posternv1.CancelJobRequest{Name: name, Id: "x"})
			return err
		},
	} {
		if err := call(); !fault.Is(err, fault.NotAuthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if list, err := s.ListSubscriptions(ctx, &posternv1.ListSubscriptionsRequest{}); err != nil || len(list.Subscriptions) != 0 {
		t.Errorf("list: %v %v", list, err)
	}
}

func TestMaskChangesWhatItNamesAndNothingElse(t *testing.T) {
	old := everything()
	for _, c := range []struct {
		paths  []string
		change *posternv1.Subscription
		check  func(*posternv1.Subscription) bool
	}{
		{[]string{"lease"}, &posternv1.Subscription{Lease: durationpb.New(9)}, func(m *posternv1.Subscription) bool { return m.Lease.AsDuration() == 9 && len(m.Topics) == 2 }},
		{[]string{"lease"}, &posternv1.Subscription{}, func(m *posternv1.Subscription) bool { return m.Lease == nil }},
		{[]string{"retry.max_attempts"}, &posternv1.Subscription{Retry: &posternv1.RetryPolicy{MaxAttempts: 5, MinBackoff: durationpb.New(1)}}, func(m *posternv1.Subscription) bool {
			return m.Retry.MaxAttempts == 5 && m.Retry.MinBackoff.AsDuration() == time.Second
		}},
		{[]string{"retry"}, &posternv1.Subscription{}, func(m *posternv1.Subscription) bool { return m.Retry == nil }},
		{[]string{"webhook.url", "webhook.secrets"}, &posternv1.Subscription{Webhook: &posternv1.Webhook{Url: "https://new/"}}, func(m *posternv1.Subscription) bool {
			return m.Webhook.Url == "https://new/" && m.Webhook.Secrets == nil && m.Webhook.Headers["X-Api-Key"].Name == "token"
		}},
		{[]string{"filter.exact"}, &posternv1.Subscription{Filter: &posternv1.Filter{Exact: map[string]string{"id": "1"}}}, func(m *posternv1.Subscription) bool {
			return m.Filter.All == nil && m.Filter.Exact["id"] == "1"
		}},
		{[]string{"etag", "generation", "paused", "seek_epoch", "create_time"}, &posternv1.Subscription{Etag: "x", Paused: true}, func(m *posternv1.Subscription) bool { return proto.Equal(m, everything()) }},
		{nil, &posternv1.Subscription{Name: "mail", Topics: []string{"t"}}, func(m *posternv1.Subscription) bool {
			return m.Webhook == nil && m.Lease == nil && len(m.Topics) == 1 && m.Name == "mail"
		}},
		{[]string{"*"}, &posternv1.Subscription{Topics: []string{"t"}}, func(m *posternv1.Subscription) bool { return m.Webhook == nil && m.Name == "mail" }},
	} {
		m, err := updated(old, c.change, c.paths)
		if err != nil || !c.check(m) {
			t.Errorf("%v: %v %s", c.paths, err, protojson.Format(m))
		}
	}
	if !proto.Equal(old, everything()) {
		t.Error("the old one was changed")
	}
	for _, path := range []string{"colour", "retry.colour", "labels.team", "topics.0", "lease.colour", ""} {
		if _, err := updated(old, &posternv1.Subscription{}, []string{path}); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestSecretsAreReadFromTheSubscriptionsFolderAndNowhereElse(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for path, text := range map[string]string{filepath.Join(dir, "hook", "key"): "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\n", filepath.Join(dir, "other", "key"): "canary", outside: "canary"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "hook", "link")); err != nil {
		t.Fatal(err)
	}
	o := Options{SecretsDir: dir}
	spec := func(names ...string) Spec {
		return Spec{Name: "hook", Webhook: &webhook.Options{URL: "https://example.com/"}, References: References{Secrets: names}}
	}
	s, err := o.Resolve(spec("key"))
	if err != nil || len(s.Webhook.Secrets) != 1 || s.Webhook.Secrets[0].Reveal() != "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD" {
		t.Errorf("%v %v", s.Webhook, err)
	}
	header := spec()
	header.References.Headers = map[string]string{"Authorization": "key"}
	if s, err := o.Resolve(header); err != nil || s.Webhook.Headers["Authorization"].IsZero() || header.Webhook.Headers != nil {
		t.Errorf("%v %v", s.Webhook, err)
	}
	for _, name := range []string{"../other/key", "link", "nothere", "/etc/hostname", ".."} {
		if s, err := o.Resolve(spec(name)); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s is read: %v %v", name, s.Webhook, err)
		}
	}
	// So are all the others, and the paths of certificates lead into the folder.
	all := Spec{
		Name: "hook", Webhook: &webhook.Options{URL: "https://example.com/", Keys: []webhook.Key{{}}, Auth: &webhook.Auth{OAuth2: &webhook.OAuth2{TokenURL: "https://example.com/", ClientID: "c"}}},
		References: References{Keys: []string{"key"}, ClientSecret: "key"},
	}
	if s, err := o.Resolve(all); err != nil || s.Webhook.Keys[0].Secret.IsZero() || s.Webhook.Auth.OAuth2.ClientSecret.IsZero() || !all.Webhook.Auth.OAuth2.ClientSecret.IsZero() || !all.Webhook.Keys[0].Secret.IsZero() {
		t.Errorf("%+v %v", s.Webhook, err)
	}
	call := Spec{Name: "hook", Push: &push.Options{Address: "app:1", TLS: &webhook.TLS{}}, References: References{Metadata: map[string]string{"token": "key"}}}
	if s, err := o.Resolve(call); err != nil || s.Push.Metadata["token"].IsZero() || call.Push.Metadata != nil {
		t.Errorf("%+v %v", s.Push, err)
	}
	for _, name := range []string{"../other/key", "link", "nothere"} {
		call.References = References{TLS: map[string]string{"ca": name}}
		if s, err := o.Resolve(call); err == nil || !strings.Contains(err.Error(), "read the secret") {
			t.Errorf("%s is a certificate's path: %+v %v", name, s.Push.TLS, err)
		}
	}
	call.References = References{TLS: map[string]string{"ca": "key"}}
	if _, err := o.Resolve(call); err == nil || !strings.Contains(err.Error(), "push.tls: tls.ca_file: there is no certificate in it") {
		t.Errorf("a key is a certificate: %v", err)
	}
	if _, err := (Options{}).Resolve(spec("key")); err == nil {
		t.Error("a secret without a folder")
	}
}

func TestCallersOfTheAPIGetOnlyWhatTheOperatorAllowsThem(t *testing.T) {
	jwt := func(audience, subject string) Spec {
		return Spec{Webhook: &webhook.Options{URL: "https://shop.example.com/hook", Auth: &webhook.Auth{JWT: &webhook.JWT{Audience: audience, Subject: subject}}}}
	}
	call := func(address string) Spec { return Spec{Push: &push.Options{Address: address}} }
	open := Options{AllowGatewayKeys: true, PushAddresses: []string{"*.svc:9000", "127.0.0.1:9000", "unix:/run/app.sock"}, SecretsDir: "/nowhere"}
	for name, c := range map[string]struct {
		options Options
		spec    Spec
		want    string // "" is allowed
	}{
		"the gateway's keys":           {Options{}, Spec{Webhook: &webhook.Options{Asymmetric: true}}, "webhook.asymmetric"},
		"the gateway's keys, allowed":  {open, Spec{Webhook: &webhook.Options{Asymmetric: true}}, ""},
		"a token":                      {Options{}, jwt("https://shop.example.com", ""), "webhook.auth.jwt: "},
		"a token, allowed":             {open, jwt("https://shop.example.com/x", ""), ""},
		"a token for somebody else":    {open, jwt("https://bank.example.com", ""), "webhook.auth.jwt.audience"},
		"a token for a longer name":    {open, jwt("https://shop.example.com.evil.com", ""), "webhook.auth.jwt.audience"},
		"a token for a user's host":    {open, jwt("https://bank@shop.example.com/", ""), "webhook.auth.jwt.audience"},
		"a token for a word":           {open, jwt("shop", ""), "webhook.auth.jwt.audience"},
		"a token as somebody else":     {open, jwt("https://shop.example.com", "admin"), "webhook.auth.jwt.subject"},
		"a push":                       {Options{}, call("127.0.0.1:9000"), "push.address"},
		"a push, allowed":              {open, call("orders.svc:9000"), ""},
		"a push to another port":       {open, call("orders.svc:9001"), "push.address"},
		"a push to another host":       {open, call("orders.svc.evil.com:9000"), "push.address"},
		"a push to a socket":           {open, call("unix:/run/docker.sock"), "push.address"},
		"a push to a socket, allowed":  {open, call("unix:/run/app.sock"), ""},
		"a secret without a name":      {open, Spec{Webhook: &webhook.Options{Auth: &webhook.Auth{}}}, "webhook.auth.bearer: it names no secret"},
		"a certificate without a name": {open, Spec{Push: &push.Options{Address: "a.svc:9000", TLS: &webhook.TLS{}}, References: References{TLS: map[string]string{"ca": ""}}}, "push.tls.ca: it names no secret"},
		"a secret without a folder":    {Options{}, Spec{Webhook: &webhook.Options{Auth: &webhook.Auth{}}, References: References{Bearer: "x"}}, "webhook.auth.bearer: this gateway provides no secrets"},
	} {
		if err := c.options.permit(c.spec); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestNumbersOfCausesJobsAndStatesAreTheProtos(t *testing.T) {
	for ours, proto := range map[delivery.CauseKind]posternv1.CauseKind{
		delivery.CauseNone: posternv1.CauseKind_CAUSE_KIND_NONE, delivery.CausePaused: posternv1.CauseKind_CAUSE_KIND_PAUSED,
		delivery.CauseNoConsumer: posternv1.CauseKind_CAUSE_KIND_NO_CONSUMER, delivery.CauseHandlerSlow: posternv1.CauseKind_CAUSE_KIND_HANDLER_SLOW,
		delivery.CauseWindowFull: posternv1.CauseKind_CAUSE_KIND_WINDOW_FULL, delivery.CauseBlockedKey: posternv1.CauseKind_CAUSE_KIND_BLOCKED_KEY,
		delivery.CauseMetadataFull: posternv1.CauseKind_CAUSE_KIND_METADATA_FULL, delivery.CauseTrackerFull: posternv1.CauseKind_CAUSE_KIND_TRACKER_FULL,
		delivery.CauseEndpointThrottled: posternv1.CauseKind_CAUSE_KIND_ENDPOINT_THROTTLED, delivery.CauseEndpointDisabled: posternv1.CauseKind_CAUSE_KIND_ENDPOINT_DISABLED,
		delivery.CauseRateLimited: posternv1.CauseKind_CAUSE_KIND_RATE_LIMITED, delivery.CauseBrokerUnavailable: posternv1.CauseKind_CAUSE_KIND_BROKER_UNAVAILABLE,
		delivery.CauseRebalancing: posternv1.CauseKind_CAUSE_KIND_REBALANCING, delivery.CauseUndecodable: posternv1.CauseKind_CAUSE_KIND_UNDECODABLE,
		delivery.CauseFilterError: posternv1.CauseKind_CAUSE_KIND_FILTER_ERROR, delivery.CauseNotAuthorized: posternv1.CauseKind_CAUSE_KIND_NOT_AUTHORIZED,
		delivery.CauseDeadLetterFailing: posternv1.CauseKind_CAUSE_KIND_DEAD_LETTER_FAILING, delivery.CausePositionLost: posternv1.CauseKind_CAUSE_KIND_POSITION_LOST,
		delivery.CauseRetentionPassed: posternv1.CauseKind_CAUSE_KIND_RETENTION_PASSED, delivery.CauseNewerFormat: posternv1.CauseKind_CAUSE_KIND_NEWER_FORMAT,
		delivery.CauseRetrying: posternv1.CauseKind_CAUSE_KIND_RETRYING, delivery.CauseEndpointOpen: posternv1.CauseKind_CAUSE_KIND_ENDPOINT_OPEN,
	} {
		if int32(ours) != int32(proto) || "CAUSE_KIND_"+ours.String() != proto.String() {
			t.Errorf("%v is %d, %s here", proto, int32(ours), ours)
		}
	}
	if posternv1.JobKind(delivery.JobReplay) != posternv1.JobKind_JOB_KIND_REPLAY || posternv1.JobState(delivery.JobCancelled) != posternv1.JobState_JOB_STATE_CANCELLED {
		t.Error("jobs' numbers differ")
	}
}

func TestWatchersAreToldOnceOfEachChangeAndOfNothingElse(t *testing.T) {
	ledger := &memory{}
	r, err := NewRegistry([]Spec{{Name: "file", Topics: []string{"t"}}}, ledger, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	type change struct {
		name    string
		was, is bool
		paused  bool
	}
	changes := make(chan change, 100)
	r.Watch(func(name string, was, is *Entry) {
		changes <- change{name, was != nil, is != nil, is != nil && is.Desired.Paused}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	expect := func(want change) {
		t.Helper()
		for {
			select {
			case got := <-changes:
				if got == (change{"file", true, true, false}) && got != want {
					continue // its record was written
				}
				if got != want {
					t.Fatalf("told %+v, want %+v", got, want)
				}
				return
			case <-time.After(30 * time.Second):
				t.Fatalf("not told of %+v", want)
			}
		}
	}
	expect(change{"file", false, true, false})
	s := NewServer(Parts{Registry: r, Policy: authz.Open()})
	if _, err := s.CreateSubscription(as("anna"), &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: "mail", Topics: []string{"t"}}}); err != nil {
		t.Fatal(err)
	}
	expect(change{"mail", false, true, false})
	if _, err := s.PauseSubscription(as("anna"), &posternv1.PauseSubscriptionRequest{Name: "mail"}); err != nil {
		t.Fatal(err)
	}
	expect(change{"mail", true, true, true})
	if err := r.SetFile([]Spec{{Name: "file", Topics: []string{"t"}}, {Name: "second", Topics: []string{"t"}}}); err != nil {
		t.Fatal(err)
	}
	expect(change{"second", false, true, false})
	if _, err := s.DeleteSubscription(as("anna"), &posternv1.DeleteSubscriptionRequest{Name: "mail"}); err != nil {
		t.Fatal(err)
	}
	for {
		got := <-changes
		if got == (change{"mail", true, false, false}) {
			break
		}
		if got.name == "mail" {
			t.Fatalf("told %+v", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzLetterID(f *testing.F) {
	f.Add("3-1042")
	f.Add("-")
	f.Fuzz(func(t *testing.T, id string) {
		at, err := parseLetterID("t", id)
		if err != nil {
			return
		}
		again, err := parseLetterID("t", letterID(at))
		if err != nil || again != at {
			t.Errorf("%q: %v, then %v %v", id, at, again, err)
		}
	})
}
