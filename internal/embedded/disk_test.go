package embedded

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestARecordThatCouldNotBeWrittenIsNotAnsweredAndEndsTheBroker(t *testing.T) {
	dir := t.TempDir()
	b, err := Start(t.Context(), Options{Dir: dir, Address: "127.0.0.1:0", Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	produce(t, client(t, b), "orders", "one", "two")
	taken := filepath.Join(dir, "kafka", "partitions", "taken-0") // the broker would make a folder of that name
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := client(t, b, kgo.DisableIdempotentWrite(), kgo.RecordRetries(1)).ProduceSync(ctx, &kgo.Record{Topic: "taken", Value: []byte("lost")}).FirstErr(); err == nil {
		t.Error("a record was acknowledged that is on no disk")
	}
	select {
	case <-b.Failed():
	case <-time.After(20 * time.Second):
		t.Fatal("the broker goes on with a disk that fails")
	}
	if err := b.Close(); err == nil || !strings.Contains(err.Error(), "taken-0") || !strings.Contains(err.Error(), "make room") {
		t.Errorf("%v does not say what failed and what to do", err)
	}
	if err := os.Remove(taken); err != nil {
		t.Fatal(err)
	}
	again := start(t, Options{Dir: dir})
	if !again.Recovered {
		t.Error("nothing tells that the last run did not end in order")
	}
	expect(t, consume(t, again, "mail", "orders", 2), "one", "two")
}

func TestPositionsCommittedBehindATornEntrySurviveTheNextKill(t *testing.T) {
	dir, left := t.TempDir(), filepath.Join(t.TempDir(), "left")
	b := start(t, Options{Dir: dir})
	produce(t, client(t, b), "orders", "one", "two", "three")
	expect(t, consume(t, b, "mail", "orders", 1), "one")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "kafka", "groups.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Write([]byte{200, 0, 0, 0, 1, 2}); err != nil { // what a full disk took of an entry
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	b = start(t, Options{Dir: dir})
	expect(t, consume(t, b, "mail", "orders", 1), "two")
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	expect(t, consume(t, start(t, Options{Dir: left}), "mail", "orders", 1), "three")
}

// anEntry is one as the stand-in writes it.
func anEntry(data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(2+len(data)))
	body := append([]byte{1, 0}, data...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return append(b, body...)
}

func FuzzWholeEntries(f *testing.F) {
	f.Add([]byte("one"), []byte{200, 0, 0, 0, 1, 2})
	f.Add([]byte{}, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data, rest []byte) {
		first := anEntry(data)
		n := wholeEntries(append(first, rest...))
		if n < len(first) || n > len(first)+len(rest) {
			t.Fatalf("%d of %d bytes, of which %d are one whole entry", n, len(first)+len(rest), len(first))
		}
		if again := wholeEntries(append(anEntry(data), rest...)[:n]); again != n {
			t.Fatalf("%d whole bytes are %d when read alone", n, again)
		}
		for cut := range first {
			if n := wholeEntries(first[:cut]); n != 0 {
				t.Fatalf("%d of %d bytes of an entry are called whole", n, cut)
			}
		}
	})
}
