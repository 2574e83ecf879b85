// Package chore is work that is done when it is asked for, by a goroutine that is there
// only meanwhile.
package chore

import (
	"sync"
	"time"
)

// Chore is work that is done when it is asked for, by a goroutine that is there only
// meanwhile: a thousand idle subscriptions have none. Asked while it works, it works
// once more, never beside itself. Asking does not wait for the work, and takes no lock
// but its own.
type Chore struct {
	group *sync.WaitGroup
	work  func()

	mu      sync.Mutex
	begun   bool
	timer   *time.Timer // nil before the first wait
	due     time.Time   // when the timer ends; zero: it does not run
	asked   bool
	working bool
	over    bool
}

// New makes a chore whose goroutines are in group. It does nothing before Begin.
func New(group *sync.WaitGroup, work func()) *Chore { return &Chore{group: group, work: work} }

// Begin has done what was asked for before.
func (c *Chore) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = true
	c.start()
}

// Ask has the work done now.
func (c *Chore) Ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	c.start()
}

// start begins to work if there is something to do. c.mu is held.
func (c *Chore) start() {
	if c.asked && c.begun && !c.over && !c.working {
		c.working = true
		c.group.Go(c.run)
	}
}

// AskIn has the work done after a while, instead of when it was asked for last so.
func (c *Chore) AskIn(wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set(wait)
}

// AskWithin has the work done after a while, or when AskIn or AskWithin asked for it
// before, if that is sooner.
func (c *Chore) AskWithin(wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.due.IsZero() || time.Until(c.due) > wait {
		c.set(wait)
	}
}

func (c *Chore) set(wait time.Duration) {
	switch {
	case c.over:
		return
	case c.timer == nil:
		c.timer = time.AfterFunc(wait, c.ring)
	default:
		c.timer.Reset(wait)
	}
	c.due = time.Now().Add(wait)
}

// ring is the timer's.
func (c *Chore) ring() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = time.Time{}
	c.asked = true
	c.start()
}

// End has nothing more done. What is done at the moment its group waits for.
func (c *Chore) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

func (c *Chore) run() {
	for c.next() {
		c.work()
	}
}

func (c *Chore) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working = c.asked && !c.over
	c.asked = false
	return c.working
}
