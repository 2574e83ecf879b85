package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/fault"
)

// ShareSettings are those settings of a share group that its events' fate depends on.
type ShareSettings struct {
	// Deliveries is how often Kafka delivers an event before it archives it silently.
	Deliveries int
	Lock       time.Duration // how long an acquired event is locked
}

// MinShareDeliveries is the least delivery limit that order QUEUE works with;
// Kafka's default is 5, the most that its default lets a group have 10.
const MinShareDeliveries = 10

// minShareLock leaves a renewal that fails the time to be tried again.
const minShareLock = 5 * time.Second

// Kafka's names of a group's settings (KIP-932, KIP-1222).
const (
	shareReset      = "share.auto.offset.reset"
	shareIsolation  = "share.isolation.level"
	shareDeliveries = "share.delivery.count.limit"
	shareLock       = "share.record.lock.duration.ms"
	shareRenewing   = "share.renew.acknowledge.enable"
)

// ShareDemand is one setting of a group that must change.
type ShareDemand struct {
	Name, Is, Must string
	Explicit       bool // somebody has set it for this group
}

// shareDemands gives what must change for order QUEUE.
func shareDemands(is map[string]ShareDemand) []ShareDemand {
	var all []ShareDemand
	demand := func(name, must string, fits func(string) bool) {
		d, known := is[name]
		if known && fits(d.Is) || !known && name == shareRenewing { // a stand-in that renews without being told
			return
		}
		d.Name, d.Must = name, must
		all = append(all, d)
	}
	equal := func(want string) func(string) bool { return func(v string) bool { return strings.EqualFold(v, want) } }
	least := func(want int64) func(string) bool {
		return func(v string) bool { n, err := strconv.ParseInt(v, 10, 64); return err == nil && n >= want }
	}
	demand(shareReset, "earliest", equal("earliest"))
	demand(shareIsolation, "read_committed", equal("read_committed"))
	demand(shareDeliveries, strconv.Itoa(MinShareDeliveries), least(MinShareDeliveries))
	demand(shareLock, "30000", least(minShareLock.Milliseconds()))
	demand(shareRenewing, "true", equal("true"))
	return all
}

// ShareCommand is the command that an operator changes a group's settings with.
func ShareCommand(group string, demands []ShareDemand) string {
	var pairs []string
	for _, d := range demands {
		pairs = append(pairs, d.Name+"="+d.Must)
	}
	return fmt.Sprintf("kafka-configs --bootstrap-server BROKER --alter --entity-type groups --entity-name %s --add-config %s", group, strings.Join(pairs, ","))
}

// shareSupported reports whether the brokers have share groups and let locks be renewed.
func (c *Client) shareSupported(ctx context.Context) error {
	versions, err := c.admin.ApiVersions(ctx)
	if err != nil {
		return toFault(err, "ask the brokers what they can do")
	}
	for _, v := range versions.Sorted() {
		if v.Err != nil {
			continue // a broker that is down is asked when it is back
		}
		for _, key := range []kmsg.Key{kmsg.ShareGroupHeartbeat, kmsg.ShareFetch, kmsg.ShareAcknowledge} {
			most, ok := v.KeyMaxVersion(key.Int16())
			if !ok {
				return fault.New(fault.QueueUnsupported,
					"broker %d has no share groups, which order QUEUE needs: use Apache Kafka 4.2 or later, with the feature share.version at 1 (kafka-features --bootstrap-server BROKER upgrade --feature share.version=1), or another order", v.NodeID)
			}
			if key == kmsg.ShareAcknowledge && most < 2 {
				return fault.New(fault.QueueUnsupported, "broker %d cannot renew the lock of an event (KIP-1222), which order QUEUE needs: use Apache Kafka 4.2 or later, or another order", v.NodeID)
			}
		}
	}
	return nil
}

// CheckShareGroup reports what must change before a subscription of order QUEUE
// can use group; QUEUE_UNSUPPORTED when the brokers cannot do it at all.
func (c *Client) CheckShareGroup(ctx context.Context, group string) ([]ShareDemand, ShareSettings, error) {
	if err := c.shareSupported(ctx); err != nil {
		return nil, ShareSettings{}, err
	}
	is, err := c.shareConfigs(ctx, group)
	if err != nil {
		return nil, ShareSettings{}, err
	}
	deliveries, _ := strconv.Atoi(is[shareDeliveries].Is)
	lock, _ := strconv.Atoi(is[shareLock].Is)
	return shareDemands(is), ShareSettings{Deliveries: deliveries, Lock: time.Duration(lock) * time.Millisecond}, nil
}

// PrepareShareGroup sets what must be and nobody has set for the group, and
// gives its settings.
func (c *Client) PrepareShareGroup(ctx context.Context, group string) (ShareSettings, error) {
	demands, settings, err := c.CheckShareGroup(ctx, group)
	if err != nil || len(demands) == 0 {
		return settings, err
	}
	refuse := func(why string) error {
		var wrong []string
		for _, d := range demands {
			wrong = append(wrong, fmt.Sprintf("%s is %q", d.Name, d.Is))
		}
		return fault.New(fault.QueueSettings, "share group %s cannot be used for order QUEUE yet: %s%s; have them set: %s", group, strings.Join(wrong, ", "), why, ShareCommand(group, demands))
	}
	if slices.ContainsFunc(demands, func(d ShareDemand) bool { return d.Explicit }) {
		return settings, refuse("")
	}
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	for _, d := range demands {
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Op, config.Value = d.Name, kmsg.IncrementalAlterConfigOpSet, kmsg.StringPtr(d.Must)
		resource.Configs = append(resource.Configs, config)
	}
	request.Resources = append(request.Resources, resource)
	answer, err := request.RequestWith(ctx, c.kgo)
	if err != nil {
		return settings, toFault(err, "set the settings of share group "+group)
	}
	for _, r := range answer.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			why := fmt.Sprintf(", and Kafka does not let the gateway set it (%s)", kadmMessage(err, r.ErrorMessage))
			return settings, refuse(why)
		}
	}
	for _, d := range demands {
		switch d.Name {
		case shareDeliveries:
			settings.Deliveries = MinShareDeliveries
		case shareLock:
			settings.Lock = 30 * time.Second
		}
	}
	return settings, nil
}

func kadmMessage(err error, more *string) string {
	if more != nil && *more != "" {
		return *more
	}
	return err.Error()
}

// shareConfigs reads a group's settings, which it has before it is.
func (c *Client) shareConfigs(ctx context.Context, group string) (map[string]ShareDemand, error) {
	request := kmsg.NewPtrDescribeConfigsRequest()
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	request.Resources = append(request.Resources, resource)
	answer, err := request.RequestWith(ctx, c.kgo)
	if err != nil {
		return nil, toFault(err, "read the settings of share group "+group)
	}
	is := map[string]ShareDemand{}
	for _, r := range answer.Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return nil, toFault(err, "read the settings of share group "+group)
		}
		for _, config := range r.Configs {
			if config.Value != nil {
				is[config.Name] = ShareDemand{Name: config.Name, Is: *config.Value, Explicit: config.Source == kmsg.ConfigSourceGroupConfig}
			}
		}
	}
	return is, nil
}

// SharePosition is where a share group stands in a partition.
type SharePosition struct {
	Offset int64 // everything below is done
	Lag    int64 // -1: the broker does not say
}

// SharePositions gives where a share group stands, of the partitions it has begun.
func (c *Client) SharePositions(ctx context.Context, group string, topics ...string) (map[TopicPartition]SharePosition, error) {
	described, err := coordinated(ctx, func() (kadm.DescribedShareGroupsOffsets, error) { return c.admin.DescribeShareGroupOffsets(ctx, group) })
	of := described[group]
	if err == nil {
		err = of.Err
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, toFault(err, "read the position of share group "+group)
	}
	at := map[TopicPartition]SharePosition{}
	for _, t := range topics {
		for p, o := range of.Offsets[t] {
			if o.Err == nil && o.StartOffset >= 0 {
				at[TopicPartition{t, p}] = SharePosition{o.StartOffset, o.Lag}
			}
		}
	}
	return at, nil
}

// AlterShareGroup sets where a share group without members goes on.
func (c *Client) AlterShareGroup(ctx context.Context, group string, at map[TopicPartition]int64) error {
	offsets := kadm.Offsets{}
	for tp, offset := range at {
		offsets.AddOffset(tp.Topic, tp.Partition, offset, -1)
	}
	what := "set the position of share group " + group
	answer, err := c.admin.AlterShareGroupOffsets(ctx, group, offsets)
	if err != nil {
		return toFault(err, what)
	}
	var failed error
	answer.EachError(func(topic string, p int32, err error) {
		failed = errors.Join(failed, toFault(err, fmt.Sprintf("%s in %s", what, TopicPartition{topic, p})))
	})
	return failed
}

// ShareGroup describes a share group, as Group a consumer group.
func (c *Client) ShareGroup(ctx context.Context, group string) (Group, error) {
	described, err := coordinated(ctx, func() (kadm.DescribedShareGroups, error) { return c.admin.DescribeShareGroups(ctx, group) })
	of := described[group]
	if err == nil {
		err = of.Err
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return Group{}, nil
	}
	if err != nil {
		return Group{}, toFault(err, "describe share group "+group)
	}
	var g Group
	for _, m := range of.Members {
		member := Member{Name: memberName(m.ClientID, m.ClientHost)}
		m.Assignment.Each(func(topic string, p int32) {
			member.Partitions = append(member.Partitions, TopicPartition{topic, p})
		})
		g.Members = append(g.Members, member)
	}
	return g, nil
}
