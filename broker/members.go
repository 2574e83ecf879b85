package broker

import (
	"context"
	"errors"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Group is what Kafka says of a consumer group.
type Group struct {
	// Rebalancing reports whether partitions are being assigned just now.
	Rebalancing bool
	Members     []Member
}

// Member of a group: who it is for people, client@host, and what it has.
type Member struct {
	Name       string
	Partitions []TopicPartition
}

// Group describes a consumer group, of the classic protocol or of KIP-848's. One
// that does not exist has no members.
func (c *Client) Group(ctx context.Context, group string) (Group, error) {
	classic, err := coordinated(ctx, func() (kadm.DescribedGroups, error) { return c.admin.DescribeGroups(ctx, group) })
	if err == nil {
		err = classic[group].Err
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return Group{}, toFault(err, "describe group "+group)
	}
	var g Group
	if d := classic[group]; err == nil && d.State != "Dead" {
		g.Rebalancing = strings.HasSuffix(d.State, "Rebalance")
		for _, m := range d.Members {
			member := Member{Name: memberName(m.ClientID, m.ClientHost)}
			if assigned, ok := m.Assigned.AsConsumer(); ok {
				for _, t := range assigned.Topics {
					for _, p := range t.Partitions {
						member.Partitions = append(member.Partitions, TopicPartition{t.Topic, p})
					}
				}
			}
			g.Members = append(g.Members, member)
		}
		if len(g.Members) > 0 {
			return g, nil
		}
	}
	described, err := c.admin.DescribeConsumerGroups(ctx, group)
	d := described[group]
	if err != nil || d.Err != nil {
		return g, nil // brokers before KIP-848 do not know it, and there is no such group of it
	}
	g.Rebalancing = d.State == "Assigning" || d.State == "Reconciling"
	for _, m := range d.Members {
		member := Member{Name: memberName(m.ClientID, m.ClientHost)}
		m.Assignment.Each(func(topic string, p int32) {
			member.Partitions = append(member.Partitions, TopicPartition{topic, p})
		})
		g.Members = append(g.Members, member)
	}
	return g, nil
}

func memberName(client, host string) string { return client + "@" + strings.TrimPrefix(host, "/") }
