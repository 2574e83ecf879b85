package broker

import (
	"strings"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// reborn learns from a client's log that a topic was deleted and made again. The
// client neither writes to it nor reads it until it is told to forget the one it
// knew, and says so nowhere else: its error is also a broker's that is behind.
type reborn struct {
	kgo.Logger
	anew func(topic string) // on a goroutine of its own
}

// rebornMessage begins what franz-go v1.22 logs (mergeTopicPartitions); the topic is
// the first value.
const rebornMessage = "metadata has a new ID for a topic we already hold"

// Level lets that message through.
func (r reborn) Level() kgo.LogLevel { return max(r.Logger.Level(), kgo.LogLevelWarn) }

// Log is kgo.Logger's.
func (r reborn) Log(level kgo.LogLevel, msg string, kv ...any) {
	if strings.HasPrefix(msg, rebornMessage) && len(kv) > 1 {
		if topic, ok := kv[1].(string); ok {
			go r.anew(topic) // forgetting waits for the goroutine that says this
		}
	}
	if level <= r.Logger.Level() {
		r.Logger.Log(level, msg, kv...)
	}
}

// writer makes a client that writes. It forgets a topic that was made again: the new
// topic's log knows nothing of the client, so that nothing can be taken for repeated
// (see strays).
func (c *Client) writer(options ...kgo.Opt) (*kgo.Client, error) {
	var made atomic.Pointer[kgo.Client]
	client, err := kgo.NewClient(append(options, kgo.WithLogger(reborn{logger{c.options.Logger}, func(topic string) {
		if client := made.Load(); client != nil {
			client.PurgeTopicsFromProducing(topic) // nothing once it is closed
		}
	}}))...)
	made.Store(client)
	return client, err
}

// readAnew begins to read a topic that was made again, as a new member of the group:
// a client that is told to forget a topic and to read it may have both in KIP-848's
// protocol, where the group gives out the new topic meanwhile. Of the topic before
// nothing is committed any more: it would be taken for a position in this one.
func (consumer *Consumer) readAnew(me *member, topic string) {
	consumer.turning.Lock()
	defer consumer.turning.Unlock()
	if consumer.closing.Err() != nil || consumer.member() != me {
		return // it is gone already
	}
	gone := consumer.having(topic)
	consumer.owner.Lost(gone)
	consumer.forget(gone)
	if me.heard.joins().Err() != nil {
		consumer.leaveBesideJoin(me)
	}
	me.Close()                               // waits for the records that were polled
	if err := consumer.enter(); err != nil { // what made the first client makes another
		consumer.client.options.Logger.Error("a topic that was made again is not read until the gateway is started again",
			"group", consumer.options.Group, "topic", topic, "error", err)
	}
}

// having lists the partitions of a topic that the member has.
func (consumer *Consumer) having(topic string) []TopicPartition {
	consumer.mu.Lock()
	defer consumer.mu.Unlock()
	var tps []TopicPartition
	for tp := range consumer.members {
		if tp.Topic == topic {
			tps = append(tps, tp)
		}
	}
	return sortedPartitions(tps)
}
