package broker_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
)

// Found on a new cluster of three brokers: the first subscription with order QUEUE
// was refused while Kafka made the topic of its coordinators.
func TestGroupIsReadOnceItsCoordinatorIsThere(t *testing.T) {
	brokertest.NeedsFake(t)
	for what, ask := range map[string]func(*broker.Client) error{
		"its commits":              func(c *broker.Client) error { _, err := c.Committed(t.Context(), "new", "orders"); return err },
		"its members":              func(c *broker.Client) error { _, err := c.Group(t.Context(), "new"); return err },
		"a share group's position": func(c *broker.Client) error { _, err := c.SharePositions(t.Context(), "new", "orders"); return err },
		"a share group's members":  func(c *broker.Client) error { _, err := c.ShareGroup(t.Context(), "new"); return err },
	} {
		t.Run(what, func(t *testing.T) {
			c := brokertest.Fake(t, kfake.NumBrokers(3))
			c.Topic("orders", 1)
			asked := 0
			c.Fake.ControlKey(int16(kmsg.FindCoordinator), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.Fake.KeepControl()
				if asked++; asked > 3 {
					return nil, nil, false
				}
				find := r.(*kmsg.FindCoordinatorRequest)
				answer := find.ResponseKind().(*kmsg.FindCoordinatorResponse)
				answer.ErrorCode = kerr.CoordinatorNotAvailable.Code
				for _, key := range find.CoordinatorKeys {
					of := kmsg.NewFindCoordinatorResponseCoordinator()
					of.Key, of.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
					answer.Coordinators = append(answer.Coordinators, of)
				}
				return answer, nil, true
			})
			if err := ask(c.Client()); err != nil {
				t.Error(err)
			}
			if asked < 4 {
				t.Errorf("asked %d times", asked)
			}
		})
	}
}
