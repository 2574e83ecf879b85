// Package brokertest gives a test its Kafka: an in-memory stand-in, or the real
// one that POSTERN_TEST_KAFKA names, so that one suite runs on both.
package brokertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// Cluster is a Kafka for a test.
type Cluster struct {
	Bootstrap []string
	Dial      func(ctx context.Context, network, address string) (net.Conn, error) // nil: the network
	Fake      *kfake.Cluster                                                       // nil on the real one

	t      testing.TB
	prefix string
	mu     sync.Mutex
	made   []string
}

// Real reports whether tests run on a real Kafka.
func Real() bool { return os.Getenv("POSTERN_TEST_KAFKA") != "" }

// NeedsFake skips a test that injects faults only the stand-in has.
func NeedsFake(t testing.TB) {
	t.Helper()
	if Real() {
		t.Skip("this test injects faults that only the stand-in broker offers; it runs in `make test`")
	}
}

// NeedsReal skips a test of something that the stand-in does not do as Kafka does.
func NeedsReal(t testing.TB, why string) {
	t.Helper()
	if !Real() {
		t.Skipf("the stand-in broker %s; it runs in `make test-kafka`", why)
	}
}

// New gives the Kafka that the test run is for.
func New(t testing.TB) *Cluster {
	t.Helper()
	if Real() {
		return At(t, os.Getenv("POSTERN_TEST_KAFKA"))
	}
	return Fake(t)
}

// At gives the real Kafka at bootstrap.
func At(t testing.TB, bootstrap string) *Cluster {
	c := &Cluster{t: t, Bootstrap: strings.Split(bootstrap, ",")}
	c.prefix = fmt.Sprintf("t%s-", strings.ToLower(rand.Text()[:10]))
	t.Cleanup(c.remove)
	return c
}

// Fake gives the stand-in whatever the run is for.
func Fake(t testing.TB, more ...kfake.Opt) *Cluster {
	t.Helper()
	fake, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	return &Cluster{t: t, Bootstrap: fake.ListenAddrs(), Fake: fake}
}

// Virtual gives a stand-in on a network of channels, for a testing/synctest bubble.
func Virtual(t testing.TB, more ...kfake.Opt) *Cluster {
	t.Helper()
	network := new(kfake.VirtualNetwork)
	c := Fake(t, append([]kfake.Opt{kfake.ListenFn(network.Listen)}, more...)...)
	c.Dial = network.DialContext
	return c
}

// Topic creates a topic of the test's own and gives its real name.
func (c *Cluster) Topic(name string, partitions int32, configs ...string) string {
	c.t.Helper()
	name = c.Name(name)
	settings := map[string]*string{}
	for i := 0; i+1 < len(configs); i += 2 {
		settings[configs[i]] = &configs[i+1]
	}
	admin := c.Admin()
	if _, err := admin.CreateTopic(context.Background(), partitions, -1, settings, name); err != nil {
		c.t.Fatalf("create topic %s: %v", name, err)
	}
	c.await("topic "+name, func(ctx context.Context) bool {
		details, err := admin.ListTopics(ctx, name)
		if err != nil || details[name].Err != nil || len(details[name].Partitions) != int(partitions) {
			return false
		}
		for _, p := range details[name].Partitions {
			if p.Err != nil || p.Leader < 0 {
				return false
			}
		}
		return true
	})
	return name
}

// patience bounds each wait here for a cluster that may be busy.
const patience = time.Minute

// await asks until the cluster knows: a real one answers a request to create
// something before all of its brokers have heard of it.
func (c *Cluster) await(what string, known func(context.Context) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !known(ctx) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			c.t.Fatalf("%s: the cluster does not know it after %s", what, patience)
		}
	}
}

// Name gives the real name of a topic or group of the test's own, which is removed at the end.
func (c *Cluster) Name(name string) string {
	name = c.prefix + name
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.made, name) { // Kafka refuses to remove one twice
		c.made = append(c.made, name)
	}
	return name
}

// remove takes away what Name named, so that a real cluster does not fill up. A
// name may be a topic's, a group's, both or none's.
func (c *Cluster) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	admin := c.Admin()
	_, _ = admin.DeleteGroups(ctx, c.made...) // one that still has members expires
	_, _ = admin.DeleteTopics(ctx, c.made...)
}

func (c *Cluster) options() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(c.Bootstrap...), kgo.MetadataMinAge(50 * time.Millisecond), kgo.DisableClientMetrics()}
	if c.Dial != nil {
		opts = append(opts, kgo.Dialer(c.Dial))
	}
	return opts
}

// Kgo gives a Kafka client of the test's own, independent of package broker.
func (c *Cluster) Kgo(more ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	cl, err := kgo.NewClient(append(c.options(), more...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

// Admin gives an admin client of the test's own.
func (c *Cluster) Admin() *kadm.Client { return kadm.NewClient(c.Kgo()) }

// Options reach the cluster.
func (c *Cluster) Options() broker.Options {
	return broker.Options{Brokers: c.Bootstrap, Dial: c.Dial, Logger: slog.New(slog.DiscardHandler)}
}

// Client gives the program's own client.
func (c *Cluster) Client() *broker.Client {
	c.t.Helper()
	client, err := broker.New(c.Options())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// Producer gives the program's own producer.
func (c *Cluster) Producer(client *broker.Client) *broker.Producer {
	c.t.Helper()
	p, err := client.NewProducer()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.Close)
	return p
}

// Put writes records with an independent client, in order.
func (c *Cluster) Put(records ...*event.Record) {
	c.t.Helper()
	cl := c.Kgo(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	var all []*kgo.Record
	for _, r := range records {
		k := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kgo.RecordHeader{Key: h.Name, Value: h.Value})
		}
		all = append(all, k)
	}
	for end := time.Now().Add(patience); ; {
		var again []*kgo.Record
		for _, r := range cl.ProduceSync(context.Background(), all...) {
			switch {
			case r.Err == nil:
			case strings.Contains(r.Err.Error(), "invalid record partitioning choice") && time.Now().Before(end):
				again = append(again, r.Record) // a partition that one broker knows, and the one that was asked not yet
			default:
				c.t.Fatal(r.Err)
			}
		}
		if len(again) == 0 {
			return
		}
		all = again
		cl.ForceMetadataRefresh()
	}
}

// Read gives everything committed in a topic, by an independent client.
func (c *Cluster) Read(topic string) []*event.Record {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ends, err := c.Admin().ListCommittedOffsets(ctx, topic)
	if err != nil {
		c.t.Fatal(err)
	}
	starts, err := c.Admin().ListStartOffsets(ctx, topic)
	if err != nil {
		c.t.Fatal(err)
	}
	left := map[int32]int64{}
	from := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		s, _ := starts.Lookup(topic, o.Partition)
		if o.Offset > s.Offset {
			left[o.Partition] = o.Offset
			from[o.Partition] = kgo.NewOffset().At(s.Offset)
		}
	})
	var records []*event.Record
	if len(from) == 0 {
		return nil
	}
	cl := c.Kgo(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords()) // the last offset may be a transaction's marker
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			c.t.Fatalf("read %s: %v", topic, err)
		}
		fetches.EachRecord(func(k *kgo.Record) {
			if k.Offset+1 >= left[k.Partition] {
				delete(left, k.Partition)
			}
			if k.Attrs.IsControl() {
				return
			}
			r := &event.Record{Topic: k.Topic, Partition: k.Partition, Offset: k.Offset, Timestamp: k.Timestamp, Key: k.Key, Value: k.Value}
			for _, h := range k.Headers {
				r.Headers = append(r.Headers, event.Header{Name: h.Key, Value: h.Value})
			}
			records = append(records, r)
		})
	}
	return records
}

// Committed gives a group's position in a partition and the metadata beside it; -1 without one.
func (c *Cluster) Committed(group, topic string, partition int32) (int64, string) {
	c.t.Helper()
	offsets, err := c.Admin().FetchOffsets(context.Background(), group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return -1, ""
	}
	if err != nil {
		c.t.Fatal(err)
	}
	o, ok := offsets.Lookup(topic, partition)
	if !ok {
		return -1, ""
	}
	return o.At, o.Metadata
}
