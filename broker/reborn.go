package broker

import (
	"strings"
	"sync/atomic"
	"time"

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

// readAnew begins to read a topic that was made again. Of the topic before nothing is
// committed any more: it would be taken for a position in this one. The group is
// left with the topic, and joined with it when it has taken its partitions away: it
// would leave a member that has them as it is.
func (consumer *Consumer) readAnew(topic string) {
	<-consumer.joined
	consumer.owner.Lost(consumer.having(topic))
	consumer.kgo.PurgeTopicsFromConsuming(topic)
	limit := time.NewTimer(rebalanceTimeout)
	defer limit.Stop()
	for waiting := true; waiting; {
		consumer.mu.Lock()
		forgotten := consumer.forgotten
		consumer.mu.Unlock()
		if len(consumer.having(topic)) == 0 {
			break
		}
		select {
		case <-forgotten:
		case <-limit.C:
			waiting = false
		case <-consumer.closing.Done():
			return
		}
	}
	consumer.kgo.AddConsumeTopics(topic)
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
