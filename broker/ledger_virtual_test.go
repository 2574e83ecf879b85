//go:build synctests

package broker_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
)

// The client never gives up a record that it sent and was not answered, whatever its context.
func TestAWriteWhoseRecordsAreNeverAnsweredEndsAndIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := brokertest.Virtual(t)
		topic := c.Name("_ledger")
		p := openLedger(t, c, topic)
		p.put(t, "k", "before")
		unanswered := c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, TopicID: c.Fake.TopicInfo(topic).TopicID, Err: kerr.RequestTimedOut, Count: -1})
		late := time.AfterFunc(10*time.Minute, func() { panic("ten minutes later it has not ended") })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.ledger.Write(ctx, func() ([]*event.Record, error) {
			return []*event.Record{{Key: []byte("k"), Value: []byte("never")}}, nil
		})
		late.Stop()
		if err == nil {
			t.Error("it says that the change is made")
		}
		unanswered.Remove()
		p.put(t, "other", "after")
		if k, other := p.get("k"), p.get("other"); k != "before" || other != "after" {
			t.Errorf("the ledger has %q and %q", k, other)
		}
	})
}
