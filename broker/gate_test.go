package broker_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

// Pipelined publishes of a key stay in order whatever the leaders do: the
// records of a partition pass one gate, and a moved partition takes nothing along
// that came later.
func TestAKeyStaysInOrderWhileLeadersMove(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(3))
	topic := c.Topic("orders", 6)
	p := c.Producer(c.Client())
	const keys, each = 24, 400
	var answered sync.WaitGroup
	var failed atomic.Int64
	answered.Add(keys * each)
	stop := make(chan struct{})
	var moving sync.WaitGroup
	moving.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.Fake.ShufflePartitionLeaders()
				time.Sleep(20 * time.Millisecond) // a pace for the moves; nothing waits for it
			}
		}
	})
	var sending sync.WaitGroup
	for k := range keys {
		sending.Go(func() {
			for i := range each {
				value := make([]byte, 8)
				binary.BigEndian.PutUint64(value, uint64(i))
				r := &event.Record{Topic: topic, Partition: event.AnyPartition, Key: fmt.Append(nil, "key-", k), Value: value}
				p.Produce(r, broker.AllReplicas, func(_ event.Position, err error) {
					if err != nil {
						failed.Add(1)
					}
					answered.Done()
				})
				if i%50 == 0 {
					time.Sleep(time.Millisecond) // spread over the moves
				}
			}
		})
	}
	sending.Wait()
	answered.Wait()
	close(stop)
	moving.Wait()
	if n := failed.Load(); n > 0 {
		t.Fatalf("%d failed", n)
	}
	next := map[string]uint64{}
	for _, r := range c.Read(topic) {
		if got := binary.BigEndian.Uint64(r.Value); got != next[string(r.Key)] {
			t.Fatalf("%s: event %d is stored where %d belongs", r.Key, got, next[string(r.Key)])
		}
		next[string(r.Key)]++
	}
	for k := range keys {
		if n := next[fmt.Sprint("key-", k)]; n != each {
			t.Errorf("key %d has %d events, want %d", k, n, each)
		}
	}
}

// slowConn is a connection whose every request takes a while to arrive. (The
// stand-in's own SleepControl has a data race when requests queue behind it.)
type slowConn struct {
	net.Conn
	delay time.Duration
}

func (c slowConn) Write(b []byte) (int, error) {
	time.Sleep(c.delay) // it is the network that is slow; nothing waits for this to be over
	return c.Conn.Write(b)
}

// slowProducer reaches the broker at address slowly.
func slowProducer(t *testing.T, c *brokertest.Cluster, address string, delay time.Duration) *broker.Producer {
	t.Helper()
	o := c.Options()
	o.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, to)
		if err == nil && to == address {
			conn = slowConn{conn, delay}
		}
		return conn, err
	}
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return c.Producer(client)
}

func TestPublishersAtOnceShareProduceRequests(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 10)
	p := slowProducer(t, c, c.Bootstrap[0], time.Millisecond)
	produce(t, p, broker.AllReplicas, record(topic, "warm", "x"))
	var requests atomic.Int64
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		requests.Add(1)
		return nil, nil, false
	})
	const publishers, each = 64, 50
	var all sync.WaitGroup
	for k := range publishers {
		all.Go(func() {
			for i := range each {
				if a := produce(t, p, broker.AllReplicas, record(topic, fmt.Sprint(k, i), "x"))[0]; a.err != nil {
					t.Error(a.err)
				}
			}
		})
	}
	all.Wait()
	if n := requests.Load(); n > publishers*each/12 { // without gates some 300; with them 100, and twice that under the race detector, where a round may take longer than gateWait
		t.Errorf("%d publishes took %d produce requests: they are not committed in groups", publishers*each, n)
	}
}

func TestASlowBrokerDoesNotHoldTheOthersRecords(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(2))
	topic := c.Topic("orders", 2)
	for partition := range int32(2) {
		if err := c.Fake.MoveTopicPartition(topic, partition, partition); err != nil {
			t.Fatal(err)
		}
	}
	p := slowProducer(t, c, c.Bootstrap[0], 300*time.Millisecond)
	at := func(partition int32) *event.Record {
		return &event.Record{Topic: topic, Partition: partition, Value: []byte("x")}
	}
	for partition := range int32(2) {
		produce(t, p, broker.AllReplicas, at(partition))
	}
	slow := make(chan answered, 100)
	for range cap(slow) {
		p.Produce(at(0), broker.AllReplicas, func(at event.Position, err error) { slow <- answered{at, err} })
	}
	for range 50 { // one after the other while the slow ones are under way
		produce(t, p, broker.AllReplicas, at(1))
	}
	if len(slow) == cap(slow) {
		t.Error("the slow broker answered everything before the other had answered 50 in turn")
	}
	for range cap(slow) {
		if a := <-slow; a.err != nil {
			t.Error(a.err)
		}
	}
}

func TestATopicThatKafkaDoesNotTakeLeavesTheOthersRoom(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(2))
	stuck, well := c.Topic("stuck", 1), c.Topic("well", 1)
	if err := c.Fake.MoveTopicPartition(stuck, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Fake.MoveTopicPartition(well, 0, 1); err != nil {
		t.Fatal(err)
	}
	o := c.Options()
	o.PublishBuffer = 1 << 20
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := c.Producer(client)
	produce(t, p, broker.AllReplicas, record(stuck, "", "x"), record(well, "", "x"))
	release := make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		if c.Fake.CurrentNode() == 0 {
			c.Fake.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	answers := make(chan error, 100)
	refused := 0
	for range cap(answers) {
		p.Produce(record(stuck, "", string(make([]byte, 64<<10))), broker.AllReplicas, func(_ event.Position, err error) { answers <- err })
	}
	for len(answers) > 0 {
		expectReason(t, <-answers, fault.BufferFull, "half")
		refused++
	}
	if refused == 0 {
		t.Error("6 MiB went into half of 1 MiB")
	}
	if a := produce(t, p, broker.AllReplicas, record(well, "", string(make([]byte, 200<<10))))[0]; a.err != nil {
		t.Errorf("the other topic: %v", a.err)
	}
	close(release)
	for range cap(answers) - refused {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}
