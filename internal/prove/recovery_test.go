package prove

import (
	"maps"
	"testing"
	"time"

	"github.com/postern-dev/postern/history"
)

func TestRecoveryIsThatOfTheSlowestPartition(t *testing.T) {
	at := func(seconds int, kind history.Kind, partition int32, offset int64) history.Entry {
		return history.Entry{At: time.Duration(seconds) * time.Second, Kind: kind, Topic: "t", Partition: partition, Offset: offset}
	}
	note := func(seconds int, fault string) history.Entry {
		return history.Entry{At: time.Duration(seconds) * time.Second, Kind: history.Note, Value: mended + fault}
	}
	got := recovery([]history.Entry{
		at(1, history.OK, 0, 1),
		note(2, "kill"),
		at(3, history.Accepted, 0, 1), // stored before the mending: shows nothing
		at(4, history.OK, 0, 2), at(5, history.Committed, 0, 2),
		at(6, history.OK, 1, 7), at(9, history.Accepted, 1, 7),
		note(10, "freeze"), note(11, "kill"),
		at(12, history.OK, 0, 3), at(13, history.Accepted, 0, 3),
		note(14, "last"),
	})
	want := map[string]time.Duration{"kill": 7 * time.Second, "freeze": 3 * time.Second}
	if !maps.Equal(got, want) {
		t.Errorf("recovery %v, not %v", got, want)
	}
}
