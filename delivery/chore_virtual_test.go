//go:build synctests

package delivery

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAChoreIsDoneWhenAskedForAndNeverBesideItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var group sync.WaitGroup
		var mu sync.Mutex
		began := time.Now()
		var at []time.Duration // when it was done
		c := newChore(&group, func() {
			mu.Lock()
			at = append(at, time.Since(began))
			mu.Unlock()
			time.Sleep(10 * time.Second)
		})
		done := func(want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(at) != len(want) {
				t.Fatalf("done at %v, want %v", at, want)
			}
			for i := range at {
				if at[i] != want[i]*time.Second {
					t.Fatalf("done at %v, want %v seconds", at, want)
				}
			}
		}
		c.ask() // too early, and remembered
		done()
		c.begin()
		done(0)
		time.Sleep(time.Second)
		c.ask() // while it works: once more, however often
		c.ask()
		c.askIn(3 * time.Second)
		done(0)
		time.Sleep(29 * time.Second)
		done(0, 10)
		c.askIn(5 * time.Second)
		c.askIn(10 * time.Second) // instead
		time.Sleep(15 * time.Second)
		done(0, 10, 40)
		c.ask()
		c.askIn(time.Second)
		c.end()
		group.Wait() // what is done at the moment
		if took := time.Since(began); took != 50*time.Second {
			t.Errorf("the end came after %s", took)
		}
		c.ask()
		c.askIn(time.Second)
		time.Sleep(time.Minute)
		done(0, 10, 40)
	})
}
