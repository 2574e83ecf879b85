package broker_test

import (
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
)

func TestABacklogOfSmallEventsIsTakenByATopicOfKafkasDefaults(t *testing.T) {
	c := brokertest.Fake(t, kfake.NumBrokers(1))
	topic := c.Topic("orders", 1)
	p := c.Producer(c.Client())
	produce(t, p, broker.AllReplicas, record(topic, "", "warm"))
	release := make(chan struct{})
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	const n = 8000
	errs := make(chan error, n)
	for range n {
		p.Produce(record(topic, "k", string(make([]byte, 1024))), broker.AllReplicas, func(_ event.Position, err error) { errs <- err })
	}
	close(release)
	failed := 0
	for range n {
		if <-errs != nil {
			failed++
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d events of 1 KiB were refused", failed, n)
	}
}

func TestABacklogOfSmallEventsIsTakenByATopicWithASmallLimit(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("small", 1, "max.message.bytes", "20000")
	client := c.Client()
	p := c.Producer(client)
	records := make([]*event.Record, 500)
	for i := range records {
		records[i] = record(topic, "k", string(make([]byte, 1024)))
	}
	var all sync.WaitGroup
	all.Add(len(records))
	failed := make(chan error, len(records))
	p.ProduceAll(records, broker.How{}, func(_ int, _ event.Position, err error) {
		if err != nil {
			failed <- err
		}
		all.Done()
	})
	all.Wait()
	if n := len(failed); n > 0 {
		t.Errorf("%d of %d events of 1 KiB were refused: %v", n, len(records), <-failed)
	}
}

func TestALargeEventIsStoredWhereRuleAndTopicAllowIt(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("large", 1, "max.message.bytes", "4000000")
	o := c.Options()
	o.EventLimit = func(name string) int {
		if name == topic {
			return 3 << 20
		}
		return broker.DefaultMaxEventBytes
	}
	client, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := c.Producer(client)
	if a := produce(t, p, broker.AllReplicas, record(topic, "", string(make([]byte, 3<<20))))[0]; a.err != nil {
		t.Error(a.err)
	}
	if a := produce(t, p, broker.AllReplicas, record(c.Topic("orders", 1), "", string(make([]byte, broker.DefaultMaxEventBytes))))[0]; a.err != nil {
		t.Errorf("an event as large as the default allows: %v", a.err)
	}
}

func TestDurabilityAndCompressionReachKafka(t *testing.T) {
	for name, how := range map[string]broker.How{
		"all replicas": {}, "leader": {Durability: broker.Leader}, "zstd": {Compression: "zstd"}, "lz4": {Compression: "lz4"},
		"snappy": {Compression: "snappy"}, "gzip": {Compression: "gzip"}, "none": {Compression: "none"},
		"atomic": {Wait: -1}, "atomic zstd": {Wait: -1, Compression: "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			c := brokertest.Fake(t, kfake.NumBrokers(1))
			topic := c.Topic("orders", 1)
			p := c.Producer(c.Client())
			asked := make(chan kmsg.ProduceRequest, 10)
			c.Fake.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.Fake.KeepControl()
				asked <- *r.(*kmsg.ProduceRequest)
				return nil, nil, false
			})
			answer := make(chan error, 1)
			done := func(_ int, _ event.Position, err error) { answer <- err }
			records := []*event.Record{record(topic, "", string(make([]byte, 10000)))}
			if how.Wait < 0 {
				p.ProduceAtomic(t.Context(), records, how.Compression, done)
			} else {
				p.ProduceAll(records, how, done)
			}
			if err := <-answer; err != nil {
				t.Fatal(err)
			}
			r := <-asked
			batch := kmsg.RecordBatch{}
			if err := batch.ReadFrom(r.Topics[0].Partitions[0].Records); err != nil {
				t.Fatal(err)
			}
			wantAcks := int16(-1)
			if how.Durability == broker.Leader {
				wantAcks = 1
			}
			codec := map[broker.Compression]int16{"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}[how.Compression]
			if r.Acks != wantAcks || batch.Attributes&7 != codec {
				t.Errorf("acks %d, codec %d; want %d, %d", r.Acks, batch.Attributes&7, wantAcks, codec)
			}
			if idempotent := batch.ProducerID >= 0; idempotent == (how.Durability == broker.Leader) {
				t.Errorf("producer id %d", batch.ProducerID)
			}
		})
	}
}
