package gateway

import (
	"testing"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Who could write the gateway's own topics could declare a webhook that the API
// refuses, and who could read them would see other topics' events.
func TestNobodyWritesOrReadsTheGatewaysOwnTopics(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	own := cluster.Name("_own." + subscriptionsTopic)
	g.create(&posternv1.Subscription{Name: cluster.Name("mail"), Topics: []string{topic}})
	answer, err := g.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: own, Events: []*posternv1.Event{{Key: []byte("mail"), Data: []byte("x")}}})
	if reason := reasonOf(t, err); reason != fault.NotAuthorized {
		t.Errorf("published: %v %v", answer, err)
	}
	if a := g.do("POST", "/v1/topics/"+own+"/events", "x", "Postern-Key", "mail"); a.Status != 403 {
		t.Errorf("published over HTTP: %d %s", a.Status, a.Body)
	}
	if a := g.do("POST", "/v1/topics/"+topic+":publish", `{"events":[{"topic":"`+own+`","key":"bWFpbA==","data":"eA=="}]}`); a.Status != 403 {
		t.Errorf("published by the event's topic: %d %s", a.Status, a.Body)
	}
	if a := g.do("GET", "/v1/topics/"+own+"/events?from=earliest", ""); a.Status != 403 {
		t.Errorf("tailed: %d %s", a.Status, a.Body)
	}
	for what, m := range map[string]*posternv1.Subscription{
		"read":         {Name: "thief", Topics: []string{own}},
		"dead letters": {Name: "thief", Topics: []string{topic}, DeadLetter: &posternv1.DeadLetter{Topic: own}},
	} {
		if _, err := g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: m}); reasonOf(t, err) != fault.NotAuthorized {
			t.Errorf("%s through the API: %v", what, err)
		}
		raw, err := g.subscriber().Stream(t.Context(), &posternv1.StreamRequest{Open: &posternv1.Open{Inline: m}})
		if err == nil {
			_, err = raw.Recv()
		}
		if reasonOf(t, err) != fault.NotAuthorized {
			t.Errorf("%s inline: %v", what, err)
		}
	}
	if all := cluster.Read(own); len(all) != 1 {
		t.Errorf("the gateway's own topic holds %d records", len(all))
	}
}

func TestTwoSubscriptionsOfOneGroupAreRefused(t *testing.T) {
	cluster := brokertest.Fake(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	g.create(&posternv1.Subscription{Name: "one", Topics: []string{topic}, Group: "shared"})
	for _, m := range []*posternv1.Subscription{{Name: "two", Topics: []string{topic}, Group: "shared"}, {Name: "shared", Topics: []string{topic}}} {
		if _, err := g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: m}); reasonOf(t, err) != fault.InvalidArgument {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}
