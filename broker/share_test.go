package broker

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestWordsOfNeighboursShareABatchAndKeepTheirOrder(t *testing.T) {
	at := TopicPartition{"t", 0}
	ack := func(first, last int64, word ShareWord) ShareAck {
		return ShareAck{At: at, First: first, Last: last, Word: word}
	}
	got := shareBatches([]ShareAck{ack(7, 7, ShareAccept), ack(5, 5, ShareAccept), ack(6, 6, ShareAccept), ack(8, 9, shareGap), ack(10, 10, ShareRelease), ack(12, 12, ShareRelease)})
	var told []string
	for _, b := range got {
		told = append(told, fmt.Sprintf("%d-%d%v", b.FirstOffset, b.LastOffset, b.AcknowledgeTypes))
	}
	if want := []string{"5-7[1]", "8-9[0]", "10-10[2]", "12-12[2]"}; !slices.Equal(told, want) {
		t.Errorf("%v, want %v", told, want)
	}
}

func TestRenewalThatItsEventsLastWordOvertookIsNotSent(t *testing.T) {
	at := TopicPartition{"t", 0}
	n := &shareNode{consumer: &ShareConsumer{}}
	n.pending = []ShareAck{{At: at, First: 1, Last: 1, Word: ShareRenew}, {At: at, First: 2, Last: 2, Word: ShareRenew}, {At: at, First: 1, Last: 1, Word: ShareAccept}}
	want := []ShareAck{{At: at, First: 1, Last: 1, Word: ShareAccept}, {At: at, First: 2, Last: 2, Word: ShareRenew}}
	if got := n.take(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := n.take(); len(got) != 0 {
		t.Errorf("said again: %v", got)
	}
}

func TestRoomIsSharedOutAmongBrokersInTurns(t *testing.T) {
	a, b, c := &shareTurn{}, &shareTurn{}, &shareTurn{}
	all := []*shareTurn{a, b, c}
	now := int64(0)
	want := func(who *shareTurn, free, want int) {
		t.Helper()
		now++
		if got := who.shareOut(free, now, all); got != want {
			t.Errorf("turn %d: %d of %d, want %d", now, got, free, want)
		}
	}
	want(a, 100, 100) // nobody else wants any
	want(b, 0, 0)
	want(c, 0, 0)
	want(a, 100, 33) // they wait, and had none yet
	want(b, 67, 33)
	want(c, 34, 34)
	want(a, 5000, shareFetchMost)
	want(b, 0, 0)
	want(c, 0, 0)
	want(a, 1, 0) // b and c were served before a was
	want(c, 1, 0) // and b before c
	want(b, 1, 1)
	want(a, 1, 0)
	want(c, 1, 1)
	want(a, 1, 1)
}

func TestDemandsNameOnlyWhatMustChange(t *testing.T) {
	good := map[string]ShareDemand{
		shareReset: {Is: "earliest"}, shareIsolation: {Is: "READ_COMMITTED"}, shareDeliveries: {Is: "12"}, shareLock: {Is: "15000"}, shareRenewing: {Is: "true"},
	}
	if got := shareDemands(good); len(got) != 0 {
		t.Errorf("what is good must change: %v", got)
	}
	for name, is := range map[string]string{shareReset: "latest", shareIsolation: "read_uncommitted", shareDeliveries: "5", shareLock: "1000", shareRenewing: "false"} {
		settings := map[string]ShareDemand{}
		for k, v := range good {
			settings[k] = v
		}
		settings[name] = ShareDemand{Is: is, Explicit: true}
		got := shareDemands(settings)
		if len(got) != 1 || got[0].Name != name || got[0].Is != is || !got[0].Explicit {
			t.Errorf("%s=%s: %v", name, is, got)
		}
		if command := ShareCommand("g", got); !strings.Contains(command, "--entity-name g --add-config "+name+"=") {
			t.Errorf("the command is %s", command)
		}
	}
	delete(good, shareRenewing) // a broker that does not tell of it has no such switch
	if got := shareDemands(good); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// FuzzShareFetch reads what a broker might send for a partition.
func FuzzShareFetch(f *testing.F) {
	f.Add([]byte{}, int64(0), int64(3), int16(1), int64(5), int64(9))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 2}, int64(-1), int64(1)<<62, int16(-1), int64(2), int64(1))
	f.Fuzz(func(t *testing.T, records []byte, first, last int64, count int16, first2, last2 int64) {
		p := kmsg.NewShareFetchResponseTopicPartition()
		p.Records = records
		p.AcquiredRecords = []kmsg.ShareFetchResponseTopicPartitionAcquiredRecord{{FirstOffset: first, LastOffset: last, DeliveryCount: count}, {FirstOffset: first2, LastOffset: last2, DeliveryCount: 1}}
		all, words, _ := decodeShare("t", &p, nil)
		for _, a := range all {
			if o := a.Record.Offset; (o < first || o > last) && (o < first2 || o > last2) {
				t.Errorf("offset %d was not acquired", o)
			}
			if a.Deliveries < 1 {
				t.Errorf("delivery %d", a.Deliveries)
			}
		}
		for _, w := range words {
			if w.First > w.Last || w.First < 0 {
				t.Errorf("words of %d to %d", w.First, w.Last)
			}
		}
	})
}

func TestAcquiredOffsetsWithoutARecordAreGapsAndOthersAreNotDelivered(t *testing.T) {
	// A batch of the offsets 10 to 14, of which compaction has left 10, 11 and 14.
	p := kmsg.NewShareFetchResponseTopicPartition()
	p.Records = shareBatch(t, 10, 0, 1, 4)
	p.AcquiredRecords = []kmsg.ShareFetchResponseTopicPartitionAcquiredRecord{{FirstOffset: 11, LastOffset: 13, DeliveryCount: 2}, {FirstOffset: 14, LastOffset: 15, DeliveryCount: 1}}
	all, words, err := decodeShare("t", &p, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range all {
		got = append(got, fmt.Sprint(a.Record.Offset, "x", a.Deliveries))
	}
	for _, w := range words {
		got = append(got, fmt.Sprint(w.First, "-", w.Last, ":", w.Word))
	}
	if want := []string{"11x2", "14x1", "12-13:0", "15-15:0"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	p.Records[len(p.Records)-1] ^= 0xff // it does not fit its checksum
	all, words, err = decodeShare("t", &p, nil)
	if err == nil || len(all) != 0 || len(words) != 2 || words[0].Word != ShareRelease {
		t.Errorf("of a broken batch: %v, %v, %v", all, words, err)
	}
}
