package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// desk answers as a gateway with dead letters would.
type desk struct {
	posternv1.UnimplementedSubscriptionsServer
	mu    sync.Mutex
	asked []any
	steps int // of the job
	fails bool
}

func (d *desk) note(m any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, m)
}

func letterOf(id string) *posternv1.DeadLetteredEvent {
	return &posternv1.DeadLetteredEvent{
		Id: id, Origin: &posternv1.Position{Topic: "orders", Partition: 2, Offset: 41}, Reason: "rejected", Detail: "no such \x1b[31mcustomer", Attempts: 3,
		DeadLettered: timestamppb.Now(), Event: &posternv1.Event{Key: []byte("anna"), Data: []byte("tea"), Headers: []*posternv1.Header{{Name: "x", Value: []byte("y")}}},
	}
}

func (d *desk) ListDeadLetters(_ context.Context, m *posternv1.ListDeadLettersRequest) (*posternv1.ListDeadLettersResponse, error) {
	d.note(m)
	if m.GetPageToken() == "" { // a page may be short
		return &posternv1.ListDeadLettersResponse{DeadLetters: []*posternv1.DeadLetteredEvent{letterOf("0-1")}, NextPageToken: "more"}, nil
	}
	return &posternv1.ListDeadLettersResponse{DeadLetters: []*posternv1.DeadLetteredEvent{letterOf("0-2")}}, nil
}

func (d *desk) GetDeadLetter(_ context.Context, m *posternv1.GetDeadLetterRequest) (*posternv1.DeadLetteredEvent, error) {
	if m.GetId() != "0-1" {
		return nil, status.FromProto(wire.Status(fault.New(fault.UnknownDeadLetter, "there is no %s", m.GetId()))).Err()
	}
	return letterOf("0-1"), nil
}

func (d *desk) RedriveDeadLetters(_ context.Context, m *posternv1.RedriveDeadLettersRequest) (*posternv1.Job, error) {
	d.note(m)
	return &posternv1.Job{Id: "j1", Subscription: m.GetName(), Kind: posternv1.JobKind_JOB_KIND_REDRIVE, State: posternv1.JobState_JOB_STATE_RUNNING, DryRun: m.GetDryRun(), Total: 4}, nil
}

func (d *desk) PurgeDeadLetters(_ context.Context, m *posternv1.PurgeDeadLettersRequest) (*posternv1.Job, error) {
	d.note(m)
	return &posternv1.Job{Id: "j2", Subscription: m.GetName(), Kind: posternv1.JobKind_JOB_KIND_PURGE, State: posternv1.JobState_JOB_STATE_SUCCEEDED, Total: 4, Scanned: 4, Matched: 4, Done: 4}, nil
}

func (d *desk) GetJob(_ context.Context, m *posternv1.GetJobRequest) (*posternv1.Job, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps++
	job := &posternv1.Job{Id: m.GetId(), Subscription: m.GetName(), Kind: posternv1.JobKind_JOB_KIND_REDRIVE, State: posternv1.JobState_JOB_STATE_RUNNING, Total: 4, Scanned: int64(d.steps), Matched: 2, Done: 1, Skipped: 1}
	if d.steps == 2 {
		job.State = posternv1.JobState_JOB_STATE_SUCCEEDED
		if d.fails {
			job.State, job.Error = posternv1.JobState_JOB_STATE_FAILED, wire.Status(fault.New(fault.KafkaRefused, "Kafka is full"))
		}
	}
	return job, nil
}

// run runs a command against d and gives what it printed.
func (d *desk) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	posternv1.RegisterSubscriptionsServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	root := rootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append(args, "--address", l.Addr().String()))
	err = root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestDeadLettersAreListedOverShortPagesWithoutControlCharacters(t *testing.T) {
	d := &desk{}
	out, err := d.run(t, "deadletters", "list", "mail", "--since", "2h", "--reason", "rejected", "--key", "anna", "--origin", "orders[2]@41")
	if err != nil || !strings.Contains(out, "0-1") || !strings.Contains(out, "0-2") || !strings.Contains(out, "orders[2]@41") || strings.Contains(out, "\x1b") {
		t.Errorf("%v\n%s", err, out)
	}
	f := d.asked[0].(*posternv1.ListDeadLettersRequest).Filter
	if f.After == nil || f.Reasons[0] != "rejected" || string(f.Key) != "anna" || f.OriginTopic != "orders" || f.GetOriginPartition() != 2 || f.GetOriginOffsetFrom() != 41 || f.GetOriginOffsetTo() != 42 {
		t.Errorf("asked for %v", f)
	}
	if out, err = d.run(t, "deadletters", "list", "mail", "-n", "1", "--output", "json"); err != nil || strings.Count(out, `"id"`) != 1 || !strings.Contains(out, `"next_page_token": "more"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err = d.run(t, "deadletters", "list", "mail", "--since", "yesterday"); exitOf(err) != exitUsage {
		t.Errorf("got %v", err)
	}
}

func TestDeadLetterIsShownWithItsEvidence(t *testing.T) {
	d := &desk{}
	out, err := d.run(t, "deadletters", "show", "mail", "0-1")
	for _, want := range []string{"rejected", "anna", "tea", "header x", "orders[2]@41"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("want %q in: %v\n%s", want, err, out)
		}
	}
	if _, err := d.run(t, "deadletters", "show", "mail", "0-9"); exitOf(err) != exitNotFound {
		t.Errorf("got %v", err)
	}
}

func TestRedriveIsFollowedToItsEnd(t *testing.T) {
	d := &desk{}
	out, err := d.run(t, "deadletters", "redrive", "mail", "--rate", "5", "--to", "topic", "--max-redrives", "3")
	if err != nil || !strings.Contains(out, "succeeded: 2 of 4 looked at, 2 chosen, 1 redriven, 1 left alone.") {
		t.Errorf("%v\n%s", err, out)
	}
	m := d.asked[0].(*posternv1.RedriveDeadLettersRequest)
	if m.GetRatePerSecond() != 5 || m.GetTo() != posternv1.RedriveTo_REDRIVE_TO_TOPIC || m.GetMaxRedrives() != 3 {
		t.Errorf("asked for %v", m)
	}
	d = &desk{fails: true}
	if _, err := d.run(t, "deadletters", "redrive", "mail"); err == nil || !strings.Contains(err.Error(), "Kafka is full") || exitOf(err) != exitFailed {
		t.Errorf("a failed job: %v", err)
	}
	if out, err := (&desk{}).run(t, "deadletters", "redrive", "mail", "--detach"); err != nil || !strings.Contains(out, "running: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPurgeAsksWhich(t *testing.T) {
	d := &desk{}
	if _, err := d.run(t, "deadletters", "purge", "mail"); exitOf(err) != exitUsage || len(d.asked) != 0 {
		t.Errorf("purged without a choice: %v", err)
	}
	if _, err := d.run(t, "deadletters", "purge", "mail", "--all", "--key", "anna"); exitOf(err) != exitUsage {
		t.Errorf("all, and a choice: %v", err)
	}
	if _, err := d.run(t, "deadletters", "purge"); exitOf(err) != exitUsage {
		t.Errorf("purged nobody's: %v", err)
	}
	if out, err := d.run(t, "deadletters", "purge", "mail", "--all"); err != nil || !strings.Contains(out, "4 purged") {
		t.Errorf("%v\n%s", err, out)
	}
}

func FuzzSeekTo(f *testing.F) {
	for _, s := range []string{"earliest", "2h", "c1.abc", "orders[3]@1042", "2026-01-31T10:00:00Z", "x[99999999999]@1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, to string) {
		request := &posternv1.SeekSubscriptionRequest{}
		if err := seekTo(request, []string{to}, ""); err == nil && request.GetTo() == nil {
			t.Errorf("%q seeks nowhere", to)
		}
	})
}
