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
	known map[string]bool
}

const ensureTimeout = 15 * time.Second

// ensure makes sure that a topic is there.
func (t *topics) ensure(ctx context.Context, name string, partitions int32, configs map[string]string) error {
	t.mu.Lock()
	known := t.known[name]
	t.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ensureTimeout)
	defer cancel()
	_, err := t.kafka.Topics(ctx, name)
	if fault.Is(err, fault.UnknownTopic) {
		if err = t.kafka.CreateTopic(ctx, name, partitions, configs); err == nil {
			t.log.Info("topic created", "topic", name)
		}
	}
	if err != nil {
		return fmt.Errorf("the topic %s cannot be made; create it, or give the gateway's Kafka user the right to: %w", name, err)
	}
	t.mu.Lock()
	t.known[name] = true
	t.mu.Unlock()
	return nil
}
