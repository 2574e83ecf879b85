package delivery

import (
	"sync"
	"time"
)

// chore is work of a queue that is done when it is asked for, by a goroutine that
// is there only meanwhile: a thousand idle subscriptions have none. Asked while it
// works, it works once more. Its timer and the asking may be used under q.mu.
type chore struct {
	group *sync.WaitGroup
	work  func()

	mu      sync.Mutex
	begun   bool
	timer   *time.Timer // nil before the first askIn
	asked   bool
	working bool
	over    bool
}

func newChore(group *sync.WaitGroup, work func()) *chore { return &chore{group: group, work: work} }

// begin has done what was asked for before.
func (c *chore) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = true
	c.start()
}

// ask has the work done now.
func (c *chore) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	c.start()
}

// start begins to work if there is something to do. c.mu is held.
func (c *chore) start() {
	if c.asked && c.begun && !c.over && !c.working {
		c.working = true
		c.group.Go(c.run)
	}
}

// askIn has the work done after a while, instead of when it was asked for last so.
func (c *chore) askIn(wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
	case c.timer == nil:
		c.timer = time.AfterFunc(wait, c.ask)
	default:
		c.timer.Reset(wait)
	}
}

// end has nothing more done. What is done at the moment its group waits for.
func (c *chore) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

func (c *chore) run() {
	for c.next() {
		c.work()
	}
}

func (c *chore) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working = c.asked && !c.over
	c.asked = false
	return c.working
}
