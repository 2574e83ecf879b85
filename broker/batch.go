package broker

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// batchBytes is the Kafka client's own limit of a batch, which fits the default of
// Kafka's max.message.bytes (1,048,588) with room: it counts before compression.
const batchBytes = 1_000_012

// batchOverhead is room for what a batch and a record's lengths cost beside the event's own bytes.
const batchOverhead = 64 << 10

// askLimit bounds the question for a topic's max.message.bytes. The client's metadata
// waits for it once a topic; without an answer in time Kafka's default is assumed.
const askLimit = time.Second

// batchLimits say how large a topic's batches may be. Kafka refuses a whole
// batch that is above the topic's max.message.bytes, and the small events in it with
// it, so batches are made no larger than the topic takes; and no larger than the
// client's own limit, unless an event that the topic's rule admits needs it.
type batchLimits struct {
	client *Client

	mu    sync.Mutex
	known map[string]int // max.message.bytes, of topics that exist
}

func (b *batchLimits) of(topic string, compression Compression) int32 {
	largest := int(b.client.options.MaxEventBytes)
	if f := b.client.options.EventLimit; f != nil && topic != "" {
		largest = f(topic)
	}
	if topic == "" { // the client checks its settings
		return int32(batchLimit(largest, 0, compression))
	}
	return int32(batchLimit(largest, b.topicLimit(topic), compression))
}

// batchLimit decides: largest is the largest event the gateway admits, topic what
// Kafka says of the topic, 0 if nothing.
func batchLimit(largest, topic int, compression Compression) int {
	limit := batchBytes
	if topic > 0 {
		limit = min(limit, topic)
	}
	if largest <= DefaultMaxEventBytes {
		return max(limit, 512)
	}
	needed := largest + batchOverhead
	if topic > 0 && (compression == "" || compression == "none") {
		needed = min(needed, topic) // compressed, a larger one may fit
	}
	return max(limit, needed, 512)
}

func (b *batchLimits) topicLimit(topic string) int {
	b.mu.Lock()
	n, ok := b.known[topic]
	b.mu.Unlock()
	if ok {
		return n
	}
	// Asked without the lock: a slow Kafka must not stall every line's metadata.
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	configs, err := b.client.admin.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return 0
	}
	var described kadm.ResourceConfig
	described, err = configs.On(topic, nil)
	if err != nil || described.Err != nil {
		return 0 // the right to describe it may be missing
	}
	for _, c := range described.Configs {
		if c.Key != "max.message.bytes" {
			continue
		}
		if n, err := strconv.Atoi(c.MaybeValue()); err == nil && n > 0 {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.known == nil {
				b.known = map[string]int{}
			}
			b.known[topic] = n
			return n
		}
	}
	return 0
}
