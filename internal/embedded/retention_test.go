package embedded

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

// A folder of several topics stays below the cap; what is exempt stays whole;
// and what was trimmed can still be read, and continued after a restart.
func TestTheFolderStaysBelowTheCap(t *testing.T) {
	const limit = 16 << 20
	dir := t.TempDir()
	b := start(t, Options{Dir: dir, Retention: limit})
	admin := kadm.NewClient(client(t, b))
	for topic, configs := range map[string]map[string]*string{
		"state":   {"cleanup.policy": kadm.StringPtr("compact")},
		"waiting": {"retention.bytes": kadm.StringPtr("-1")},
		"own":     {"retention.bytes": kadm.StringPtr("300000")},
	} {
		if _, err := admin.CreateTopic(t.Context(), 1, -1, configs, topic); err != nil {
			t.Fatal(err)
		}
		fill(t, b, topic, 1<<20)
	}
	fill(t, b, "small", 256<<10)
	for range 3 {
		fill(t, b, "orders", limit)
		fill(t, b, "payments", limit)
	}
	exempt := int64(2 << 20)
	await(t, "the folder stays below the cap", func() int64 { return size(t, dir) }, limit+exempt)

	kept := func(topic string) (bytes int64) {
		for _, p := range b.cluster.PartitionInfos(topic) {
			bytes += p.NumBytes
			if p.HighWatermark > 0 && p.NumBytes == 0 {
				t.Errorf("%s[%d] was emptied: its offsets would begin at 0 again", topic, p.Partition)
			}
		}
		return bytes
	}
	for _, topic := range []string{"state", "waiting"} {
		if kept(topic) < 1000<<10 {
			t.Errorf("%s was trimmed to %d bytes", topic, kept(topic))
		}
	}
	await(t, "a topic with retention.bytes of its own keeps no more", func() int64 { return kept("own") }, 300000)
	if kept("own") == 0 {
		t.Error("a topic with retention.bytes of its own keeps nothing")
	}
	if got := kept("small"); got < 250<<10 {
		t.Errorf("a small topic was trimmed to %d bytes for the sake of large ones", got)
	}
	if got := kept("orders") + kept("payments"); got < limit/2 {
		t.Errorf("the large topics were trimmed to %d bytes, far below the cap", got)
	}

	ends, err := admin.ListEndOffsets(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := size(t, dir); got > limit+exempt {
		t.Errorf("after Close the folder has %d bytes", got)
	}
	b = start(t, Options{Dir: dir, Retention: limit})
	after, err := kadm.NewClient(client(t, b)).ListEndOffsets(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) {
		if a, _ := after.Lookup("orders", o.Partition); a.Offset != o.Offset {
			t.Errorf("orders[%d] ended at %d, after the restart at %d", o.Partition, o.Offset, a.Offset)
		}
	})
	starts, err := kadm.NewClient(client(t, b)).ListStartOffsets(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	reader := client(t, b, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"orders": {0: kgo.NewOffset().AtStart()}}))
	record := reader.PollFetches(t.Context()).Records()[0]
	if s, _ := starts.Lookup("orders", 0); s.Offset == 0 || record.Offset != s.Offset {
		t.Errorf("the first record is at %d, the start at %d", record.Offset, s.Offset)
	}
}

// await looks until the bytes are at most so many: trimming tells nobody when it is done.
func await(t *testing.T, what string, bytes func() int64, most int64) {
	t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(20 * time.Second)
	for bytes() > most {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("%s: %d bytes, want at most %d", what, bytes(), most)
		}
	}
}

func TestMemoryIsCappedToo(t *testing.T) {
	b := start(t, Options{Retention: MinRetention})
	fill(t, b, "orders", 4*MinRetention)
	if err := b.trimTo(t.Context(), MinRetention); err != nil {
		t.Fatal(err)
	}
	var held int64
	for _, p := range b.cluster.PartitionInfos("orders") {
		held += p.NumBytes
	}
	if held > MinRetention || held == 0 {
		t.Errorf("%d bytes are held, the cap is %d", held, MinRetention)
	}
}

func TestTheLastRecordAndAnOpenTransactionStay(t *testing.T) {
	b := start(t, Options{Partitions: 1})
	produce(t, client(t, b), "orders", "one", "two")
	if err := b.trimTo(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if p := b.cluster.PartitionInfo("orders", 0); p.HighWatermark-p.LogStartOffset < 1 || p.NumBytes == 0 {
		t.Errorf("the last record is gone: %+v", p)
	}
	cl := client(t, b, kgo.TransactionalID("t"))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, "orders", "three", "four")
	if err := b.trimTo(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if p := b.cluster.PartitionInfo("orders", 0); p.LogStartOffset >= p.LastStableOffset || p.LastStableOffset != 2 {
		t.Errorf("an open transaction was trimmed: %+v", p)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
}

// level never lets more stay than fits, and takes nothing from what fits.
func TestLevel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.Int64Range(0, 1000), 0, 12).Draw(t, "sizes")
		most := rapid.Int64Range(0, 3000).Draw(t, "most")
		var partitions []partition
		var total int64
		for i, s := range sizes {
			p := partition{bytes: s, limit: -1}
			if i%3 == 0 {
				p.limit = s / 2
				s = p.limit
			}
			total += s
			partitions = append(partitions, p)
		}
		sum := func(at int64) (all int64) {
			for _, p := range partitions {
				s := min(p.bytes, at)
				if p.limit >= 0 {
					s = min(s, p.limit)
				}
				all += s
			}
			return all
		}
		at := level(partitions, most)
		if got := sum(at); got > most {
			t.Fatalf("level %d keeps %d of at most %d", at, got, most)
		}
		if got := sum(at); got != min(total, most) && sum(at+1) <= most {
			t.Fatalf("level %d keeps %d, though %d fit", at, got, min(total, most))
		}
	})
}

func TestWritingThatFailedAtTheEndIsToldAndRememberedAtTheNextStart(t *testing.T) {
	dir := t.TempDir()
	b := start(t, Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	b.log.keep()
	b.log.Logf(1, "persist to disk: %v", "no space left")
	err := b.end()
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	b.close = func() error { return nil } // ended above
	if !start(t, Options{Dir: dir}).Recovered {
		t.Error("the next start does not tell")
	}
}

func TestDefaultDir(t *testing.T) {
	for _, c := range []struct{ system, variables, want string }{
		{"linux", "", "/home/anna/.local/state/postern/dev"},
		{"linux", "XDG_STATE_HOME=/state", "/state/postern/dev"},
		{"linux", "XDG_STATE_HOME=state", "/home/anna/.local/state/postern/dev"},
		{"darwin", "", "/home/anna/Library/Application Support/postern/dev"},
		{"windows", "LocalAppData=/local", "/local/postern/dev"},
	} {
		got, err := defaultDir(c.system, "/home/anna", nil, func(name string) string {
			value, _ := strings.CutPrefix(c.variables, name+"=")
			if value == c.variables {
				return ""
			}
			return value
		})
		if err != nil || got != c.want {
			t.Errorf("%s %s: got %s (%v), want %s", c.system, c.variables, got, err, c.want)
		}
	}
}
