package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker/brokertest"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// A heartbeat's cursor is what is settled and no more: a tail that begins there
// shows first what is not.
func TestHeartbeatTellsBacklogAndACursorThatATailGoesOnFrom(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	put(cluster, topic, 1, "a", "b", "c", "d")
	g := start(t, cluster, nil)
	open := inline(cluster.Name("mail"), topic)
	open.Window = &posternv1.Window{MaxMessages: 2}
	s := g.subscribe(open)
	beat := func() *posternv1.Heartbeat {
		t.Helper()
		if err := s.raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Ping{Ping: &posternv1.Ping{Nonce: 1}}}); err != nil {
			t.Fatal(err)
		}
		select {
		case b := <-s.beats:
			return b
		case <-time.After(patience):
			t.Fatal("no heartbeat came")
		}
		return nil
	}
	s.ack(s.next())
	var got *posternv1.Heartbeat
	eventually(t, "the backlog's being one", func() bool { got = beat(); return got.Backlog == 1 && got.Outstanding == 2 })
	if len(got.Cursors) != 1 || got.Cursors[0].Topic != topic {
		t.Fatalf("the cursors are %v", got.Cursors)
	}
	lines, stop := g.lines("/v1/topics/"+topic+"/events?from="+got.Cursors[0].Cursor, "Accept", "application/x-ndjson")
	defer stop()
	if first := nextLine(t, lines, "{"); !strings.Contains(first, `"offset":1,`) {
		t.Errorf("from the cursor on comes first %s", first)
	}
}
