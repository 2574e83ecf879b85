package delivery

import (
	"context"
	"math/rand/v2"
	"time"
)

// NoteBegun has note called when the group of a subscription is known to have
// commits that follow a seek (Desired.Begun), so that their loss can be told from
// a beginning. note returns soon, and may be called again before its word is
// Desired. Before the first Open.
func (qs *Queues) NoteBegun(note func(name string, epoch uint64)) { qs.begun = note }

const (
	// refreshShare is how often within the time that Kafka keeps the positions of a
	// group without members they are refreshed: three tries may fail.
	refreshShare = 4
	// refreshFirst bounds the wait for the first time after a start.
	refreshFirst = 5 * time.Minute
	// refreshTimeout bounds one refresh.
	refreshTimeout = 30 * time.Second
)

// KeepPositions lets no position expire while its subscription exists, until ctx
// ends: Kafka forgets those of a group that had no members for some days. all
// lists the subscriptions.
func (qs *Queues) KeepPositions(ctx context.Context, all func() []Options) {
	every := func() time.Duration { return qs.kafka.OffsetsRetention(ctx) / refreshShare }
	next := min(every(), refreshFirst)
	for {
		next -= rand.N(next/4 + 1) // instances that start together do not all come together
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
		for _, o := range all() {
			if ctx.Err() != nil || o.Order == OrderQueue || qs.Running(o.Name) != nil { // a share group's do not expire
				continue
			}
			qs.refresh(ctx, o)
		}
		next = every()
	}
}

func (qs *Queues) refresh(ctx context.Context, o Options) {
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	refreshed, err := qs.kafka.Refresh(ctx, o.consumer())
	switch {
	case err != nil && ctx.Err() == nil:
		qs.log.Warn("the position of a subscription that nobody reads could not be kept from expiring; it is tried again", "subscription", o.Name, "error", err)
	case refreshed:
		qs.log.Debug("the position of a subscription that nobody reads was kept from expiring", "subscription", o.Name)
	}
}
