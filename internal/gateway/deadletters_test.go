package gateway

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// reading is a subscription to topics that begin with prefix, or to one topic.
func reading(name, group, topic, pattern string) func(*config.Config) {
	return func(c *config.Config) {
		s := subscription.Spec{Name: name, Group: group, TopicsPattern: pattern, DeadLetter: subscription.DeadLetter{Topic: group + ".dead"}, Retry: delivery.Retry{MaxAttempts: 1}}
		if topic != "" {
			s.Topics = []string{topic}
		}
		c.Subscriptions = []subscription.Spec{s}
	}
}

// awaitJob waits until a job has ended.
func awaitJob(t *testing.T, api posternv1.SubscriptionsClient, j *posternv1.Job) *posternv1.Job {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for limit := time.After(time.Minute); j.State < posternv1.JobState_JOB_STATE_SUCCEEDED; {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("the job has not ended: %v", j)
		}
		var err error
		if j, err = api.GetJob(t.Context(), &posternv1.GetJobRequest{Name: j.Subscription, Id: j.Id}); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

func TestDeadLettersAreListedRedrivenAndPurgedThroughTheAPI(t *testing.T) {
	for name, pattern := range map[string]bool{"topic": false, "pattern": true} {
		t.Run(name, func(t *testing.T) {
			cluster := brokertest.New(t)
			topic := cluster.Topic("letters-"+name, 1)
			group := cluster.Name("letters-sub-" + name)
			set := reading("mail", group, topic, "")
			if pattern {
				set = reading("mail", group, "", topic[:len(topic)-1]+"*")
			}
			g := start(t, cluster, set)
			api := posternv1.NewSubscriptionsClient(g.conn)
			ctx := t.Context()
			for i := range 3 {
				g.publish(topic, "k", fmt.Sprint("e", i))
			}
			s := g.subscribe(&posternv1.Open{Subscription: "mail"})
			for range 3 {
				d := s.next()
				s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{Reason: "no such customer"}}})
			}
			var letters []*posternv1.DeadLetteredEvent
			for limit := time.Now().Add(time.Minute); len(letters) < 3 && time.Now().Before(limit); {
				page, err := api.ListDeadLetters(ctx, &posternv1.ListDeadLettersRequest{Name: "mail", Order: posternv1.DeadLetterOrder_DEAD_LETTER_ORDER_OLDEST_FIRST})
				if err != nil {
					t.Fatal(err)
				}
				letters = page.DeadLetters
			}
			if len(letters) != 3 || letters[0].Detail != "no such customer" || string(letters[0].Event.Data) != "e0" || letters[0].Origin.Topic != topic {
				t.Fatalf("the list is %v", letters)
			}
			one, err := api.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: letters[1].Id})
			if err != nil || string(one.Event.Data) != "e1" {
				t.Errorf("one is shown as %v, %v", one, err)
			}
			dry, err := api.RedriveDeadLetters(ctx, &posternv1.RedriveDeadLettersRequest{Name: "mail", DryRun: true})
			if err != nil || dry.State != posternv1.JobState_JOB_STATE_SUCCEEDED || dry.Done != 3 {
				t.Errorf("a dry run answers %v, %v", dry, err)
			}
			j, err := api.RedriveDeadLetters(ctx, &posternv1.RedriveDeadLettersRequest{Name: "mail", Filter: &posternv1.DeadLetterFilter{Ids: []string{letters[0].Id, letters[2].Id}}})
			if err != nil {
				t.Fatal(err)
			}
			if j = awaitJob(t, api, j); j.State != posternv1.JobState_JOB_STATE_SUCCEEDED || j.Done != 2 {
				t.Errorf("the redrive ended as %v", j)
			}
			for _, want := range []string{"e0", "e2"} {
				d := s.next()
				if string(d.Event.Data) != want || d.Attempt != 1 {
					t.Errorf("attempt %d of %s came, want %s", d.Attempt, d.Event.Data, want)
				}
				s.ack(d)
			}
			to := &posternv1.RedriveDeadLettersRequest{Name: "mail", To: posternv1.RedriveTo_REDRIVE_TO_TOPIC}
			if pattern { // which topic is written to must be said
				if _, err := api.RedriveDeadLetters(ctx, to); reasonOf(t, err) != fault.InvalidArgument {
					t.Errorf("a redrive to whatever topic answers %v", err)
				}
				to.Filter = &posternv1.DeadLetterFilter{OriginTopic: topic}
			}
			if j, err = api.RedriveDeadLetters(ctx, to); err != nil {
				t.Fatal(err)
			}
			if j = awaitJob(t, api, j); j.Done != 1 {
				t.Errorf("the redrive to the topic ended as %v", j)
			}
			if d := s.next(); string(d.Event.Data) != "e1" || d.Position.Offset != 3 {
				t.Errorf("%v came", d)
			} else {
				s.ack(d)
			}
			if j, err = api.ReplayEvents(ctx, &posternv1.ReplayEventsRequest{Name: "mail", After: timestamppb.New(time.UnixMilli(1))}); err != nil {
				t.Fatal(err)
			}
			if j = awaitJob(t, api, j); j.State != posternv1.JobState_JOB_STATE_SUCCEEDED || j.Done < 3 {
				t.Errorf("the replay ended as %v", j)
			}
			for range j.Done {
				s.ack(s.next())
			}
			if j, err = api.PurgeDeadLetters(ctx, &posternv1.PurgeDeadLettersRequest{Name: "mail", Filter: &posternv1.DeadLetterFilter{}}); err != nil {
				t.Fatal(err)
			}
			if j = awaitJob(t, api, j); j.Done != 3 {
				t.Errorf("the purge ended as %v", j)
			}
			if _, err := api.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: "mail", Id: letters[1].Id}); reasonOf(t, err) != fault.UnknownDeadLetter {
				t.Errorf("a purged one is answered with %v", err)
			}
			jobs, err := api.ListJobs(ctx, &posternv1.ListJobsRequest{Name: "mail"})
			if err != nil || len(jobs.Jobs) != 5 || jobs.Jobs[0].Id != j.Id {
				t.Errorf("the jobs are %v, %v", jobs, err)
			}
			s.close()
			g.stop()
		})
	}
}
