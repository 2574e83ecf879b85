package broker_test

import (
	"context"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
)

// muffled is a network of which nothing gets out while it is muffled.
type muffled struct {
	atomic.Bool
	mu    sync.Mutex
	conns []net.Conn
}

func (m *muffled) dial(ctx context.Context, network, to string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns = append(m.conns, conn)
	return &muffledConn{conn, m}, nil
}

// end lets everything out again, on new connections.
func (m *muffled) end() {
	m.Store(false)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, conn := range m.conns {
		_ = conn.Close() // the client opens another
	}
}

type muffledConn struct {
	net.Conn
	network *muffled
}

func (c *muffledConn) Write(b []byte) (int, error) {
	if c.network.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// A member that has died is awaited by the whole group when another one comes. The
// others' acknowledgements are kept meanwhile, and one that must stop can.
func TestAMemberCommitsAndLeavesWhileADeadOneIsAwaited(t *testing.T) {
	c := brokertest.New(t)
	topic, group := c.Topic("orders", 4), c.Name("mail")
	client, admin := c.Client(), c.Admin()
	committed := func(partition int32) string {
		offsets, err := admin.FetchOffsets(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		o, _ := offsets.Lookup(topic, partition)
		return o.Metadata
	}
	m := newMember(t, client, broker.ConsumerOptions{Group: group, Topics: []string{topic}})
	last := "last word"
	m.revoked = func(ctx context.Context, tps []broker.TopicPartition) {
		what := map[broker.TopicPartition]broker.Committing{}
		for _, tp := range tps {
			what[tp] = broker.Committing{Offset: 0, Metadata: last}
		}
		if refused, err := m.Commit(ctx, what); err != nil || len(refused) > 0 {
			t.Errorf("commit while revoked: %v %v", refused, err)
		}
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.poll()
	take(t, m.assigned, 4, "partitions")

	var network muffled
	member := []kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.SessionTimeout(time.Minute), kgo.RebalanceTimeout(time.Minute)}
	c.Kgo(append(member, kgo.Dialer(network.dial))...)
	gone := take(t, m.gone, 2, "partitions that go to the second member")
	settled := func(members int) func() bool {
		return func() bool {
			g, err := client.Group(t.Context(), group)
			return err == nil && !g.Rebalancing && len(g.Members) == members && len(g.Members[0].Partitions)+len(g.Members[1].Partitions) == 4
		}
	}
	eventually(t, "both members to have their partitions", settled(2))
	mine := int32(-1)
	for p := range int32(4) {
		if gone[0].Partition != p && gone[1].Partition != p {
			mine = p
		}
	}
	network.Store(true)
	c.Kgo(member...)       // the third
	t.Cleanup(network.end) // which ends that member's wait, so that it can be closed

	rebalancing := func() bool {
		g, err := client.Group(t.Context(), group)
		return err == nil && g.Rebalancing
	}
	eventually(t, "the group to rebalance", rebalancing)
	// The member hears of it with its next heartbeat, and from then on the client would commit nothing.
	commits := 0
	for began := time.Now(); time.Since(began) < 5*time.Second; commits++ {
		at := time.Now()
		m.commit(topic, mine, 0, strconv.Itoa(commits))
		if took := time.Since(at); took > 2*time.Second {
			t.Fatalf("commit %d took %s", commits, took)
		}
		if metadata := committed(mine); metadata != strconv.Itoa(commits) {
			t.Fatalf("commit %d was taken, and Kafka has %q", commits, metadata)
		}
	}
	m.stop()
	if !rebalancing() {
		t.Error("the group did not wait for the dead member any more: nothing is shown")
	}
	if metadata := committed(mine); metadata != last {
		t.Errorf("Kafka has %q of what was committed last", metadata)
	}
	g, err := client.Group(t.Context(), group)
	if err != nil || len(g.Members) != 2 {
		t.Errorf("%d members are left, %v: want the dead one and the third", len(g.Members), err)
	}
	t.Logf("%d commits in 5 s", commits)
}
