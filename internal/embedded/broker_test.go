package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func start(t *testing.T, o Options) *Broker {
	t.Helper()
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	b, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// client is a Kafka client as anyone has it: it knows the address and nothing else.
func client(t *testing.T, b *Broker, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.Addr()), kgo.AllowAutoTopicCreation(), kgo.MetadataMinAge(50 * time.Millisecond), kgo.FetchMaxWait(100 * time.Millisecond),
		kgo.DisableClientMetrics(), // its last word would wait for a broker that is closed
	}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func produce(t *testing.T, cl *kgo.Client, topic string, values ...string) {
	t.Helper()
	var records []*kgo.Record
	for _, v := range values {
		records = append(records, &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte(v)})
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// consume reads n records as a member of a group and commits them.
func consume(t *testing.T, b *Broker, group, topic string, n int) []string {
	t.Helper()
	cl := client(t, b, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var values []string
	for len(values) < n {
		fetches := cl.PollRecords(ctx, n-len(values))
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %q: %v", values, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	if err := cl.CommitUncommittedOffsets(ctx); err != nil {
		t.Fatal(err)
	}
	return values
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRecordsAndPositionsSurviveAnOrderlyRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a folder", "dev")
	b := start(t, Options{Dir: dir})
	if b.Recovered {
		t.Error("a new folder is said to be recovered")
	}
	produce(t, client(t, b), "orders", "one", "two", "three")
	expect(t, consume(t, b, "mail", "orders", 2), "one", "two")
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}

	b = start(t, Options{Dir: dir})
	if b.Recovered {
		t.Error("an end in order is said to be none")
	}
	expect(t, consume(t, b, "mail", "orders", 1), "three")
	expect(t, consume(t, b, "other", "orders", 3), "one", "two", "three")
	produce(t, client(t, b), "orders", "four")
	expect(t, consume(t, b, "mail", "orders", 1), "four")
}

// A copy of the folder of a running broker is what a killed one leaves behind.
func TestRecordsAndPositionsSurviveAKill(t *testing.T) {
	dir, left := t.TempDir(), filepath.Join(t.TempDir(), "left")
	b := start(t, Options{Dir: dir})
	produce(t, client(t, b), "orders", "one", "two", "three")
	expect(t, consume(t, b, "mail", "orders", 2), "one", "two")
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}

	b = start(t, Options{Dir: left})
	if !b.Recovered {
		t.Error("nothing tells that the last run did not end in order")
	}
	expect(t, consume(t, b, "mail", "orders", 1), "three")
	expect(t, consume(t, b, "other", "orders", 3), "one", "two", "three")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if again := start(t, Options{Dir: left}); again.Recovered {
		t.Error("the marker outlives an end in order")
	}
}

func TestASecondBrokerOnAFolderIsRefusedAndToldByWhom(t *testing.T) {
	dir := t.TempDir()
	b := start(t, Options{Dir: dir})
	_, err := Start(t.Context(), Options{Dir: dir, Address: b.Addr()}) // the same words again: port and folder
	if err == nil {
		t.Fatal("two brokers run on one folder")
	}
	for _, word := range []string{dir, fmt.Sprintf("process %d", os.Getpid()), "--memory", "--data-dir"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, Options{Dir: dir})
}

func TestATakenPortNamesTheFlagAndLeavesTheFolderFree(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // nothing was written
	dir := t.TempDir()
	if _, err = Start(t.Context(), Options{Dir: dir, Address: taken.Addr().String()}); err == nil || !strings.Contains(err.Error(), "--kafka-listen") {
		t.Fatalf("got %v, want an error that names --kafka-listen", err)
	}
	start(t, Options{Dir: dir})
}

func TestAnAddressThatClientsCannotBeSentBackToIsRefused(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "19092"} {
		if _, err := Start(t.Context(), Options{Address: address}); err == nil || !strings.Contains(err.Error(), "--kafka-listen") {
			t.Errorf("%s: got %v, want an error that names --kafka-listen", address, err)
		}
	}
}

func TestMemoryModeServesAndForgets(t *testing.T) {
	b := start(t, Options{Partitions: 3})
	produce(t, client(t, b), "orders", "one")
	expect(t, consume(t, b, "mail", "orders", 1), "one")
	details, err := kadm.NewClient(client(t, b)).ListTopics(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if got := details["orders"].Partitions; len(got) != 3 || len(got[0].Replicas) != 1 {
		t.Errorf("the topic made on first use has the partitions %v, want 3 with one copy", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, Options{Partitions: 3})
	topics, err := kadm.NewClient(client(t, again)).ListTopics(t.Context())
	if err != nil || len(topics) != 0 {
		t.Errorf("a new broker in memory has the topics %v (%v)", topics.Names(), err)
	}
}

func TestStartTakesUnderASecondWithAFullFolder(t *testing.T) {
	dir := t.TempDir()
	b := start(t, Options{Dir: dir})
	fill(t, b, "orders", 32<<20)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	start(t, Options{Dir: dir})
	if took := time.Since(began); took > time.Second {
		t.Errorf("opening 32 MiB took %s", took)
	} else {
		t.Logf("opening 32 MiB took %s", took)
	}
}

func fill(t *testing.T, b *Broker, topic string, bytes int) {
	t.Helper()
	cl := client(t, b, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(128<<10))
	failed := make(chan error, 1)
	for i := range bytes >> 10 {
		value := make([]byte, 1000)
		copy(value, fmt.Sprint(i))
		cl.Produce(t.Context(), &kgo.Record{Topic: topic, Key: fmt.Append(nil, i), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
}

// size counts the bytes under a folder from which segments may be removed meanwhile.
func size(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				bytes += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
