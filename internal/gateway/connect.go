package gateway

import (
	"context"
	"fmt"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/config"
)

// Connected is what Kafka says to a configuration.
type Connected struct {
	Subscription string
	Err          error  // why it cannot work; nil: what follows must change, or is told
	Setting      string // of its share group
	Is, Must     string
	Command      string // that changes all of the group's settings
	ByGateway    bool   // the gateway sets it itself when the subscription is first used, if Kafka lets it
}

func (c Connected) String() string {
	switch {
	case c.Err != nil:
		return fmt.Sprintf("subscription %s: %v", c.Subscription, c.Err)
	case c.ByGateway:
		return fmt.Sprintf("subscription %s: %s is %q and must be %s: the gateway sets it, if Kafka lets it alter the group's settings; else: %s", c.Subscription, c.Setting, c.Is, c.Must, c.Command)
	}
	return fmt.Sprintf("subscription %s: %s is %q and must be %s: %s", c.Subscription, c.Setting, c.Is, c.Must, c.Command)
}

// Connect asks Kafka whether the configuration's subscriptions can work: whether
// it is there, has the topics, and whether the share groups of those of order
// QUEUE are set as they must be. It changes nothing.
func Connect(ctx context.Context, c config.Config) ([]Connected, error) {
	kafka, err := broker.New(c.WithDefaults().Kafka)
	if err != nil {
		return nil, err
	}
	defer kafka.Close()
	if err := kafka.Ping(ctx); err != nil {
		return nil, err
	}
	var all []Connected
	for _, s := range c.Subscriptions {
		of := s.Queue()
		if len(of.Topics) > 0 && !c.Kafka.AutoCreateTopics {
			if _, err := kafka.Topics(ctx, of.Topics...); err != nil {
				all = append(all, Connected{Subscription: s.Name, Err: err})
			}
		}
		if of.Order != delivery.OrderQueue {
			continue
		}
		demands, _, err := kafka.CheckShareGroup(ctx, of.Group)
		if err != nil {
			all = append(all, Connected{Subscription: s.Name, Err: err})
			continue
		}
		command := broker.ShareCommand(of.Group, demands)
		for _, d := range demands {
			all = append(all, Connected{Subscription: s.Name, Setting: d.Name, Is: d.Is, Must: d.Must, Command: command, ByGateway: !d.Explicit})
		}
	}
	return all, nil
}
