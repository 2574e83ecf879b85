package endpoints

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/fault"
)

// topics creates the gateway's own on first need.
type topics struct {
	kafka *broker.Client
	log   *slog.Logger

	mu    sync.Mutex
	known map[string]int32 // by topic, how many partitions it has
}

const ensureTimeout = 15 * time.Second

// ensure makes sure that a topic is there, and says how many partitions it had then.
func (t *topics) ensure(ctx context.Context, name string, partitions int32, configs map[string]string) (int32, error) {
	t.mu.Lock()
	known := t.known[name]
	t.mu.Unlock()
	if known > 0 {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ensureTimeout)
	defer cancel()
	found, err := t.kafka.Topics(ctx, name)
	if fault.Is(err, fault.UnknownTopic) {
		if err = t.kafka.CreateTopic(ctx, name, partitions, configs); err == nil {
			t.log.Info("topic created", "topic", name)
			return 1, nil // how many it has is known to all brokers in a moment
		}
	}
	if err != nil {
		return 0, fmt.Errorf("the topic %s cannot be made; create it, or give the gateway's Kafka user the right to: %w", name, err)
	}
	has := max(1, int32(len(found[0].Partitions)))
	t.mu.Lock()
	t.known[name] = has
	t.mu.Unlock()
	return has, nil
}
