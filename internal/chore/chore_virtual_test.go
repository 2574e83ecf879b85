//go:build synctests

package chore

import (
	"slices"
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
		c := New(&group, func() {
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
		c.Ask() // too early, and remembered
		done()
		c.Begin()
		done(0)
		time.Sleep(time.Second)
		c.Ask() // while it works: once more, however often
		c.Ask()
		c.AskIn(3 * time.Second)
		done(0)
		time.Sleep(29 * time.Second)
		done(0, 10)
		c.AskIn(5 * time.Second)
		c.AskIn(10 * time.Second) // instead
		time.Sleep(15 * time.Second)
		done(0, 10, 40)
		c.Ask()
		c.AskIn(time.Second)
		c.End()
		group.Wait() // what is done at the moment
		if took := time.Since(began); took != 50*time.Second {
			t.Errorf("the end came after %s", took)
		}
		c.Ask()
		c.AskIn(time.Second)
		time.Sleep(time.Minute)
		done(0, 10, 40)
	})
}

func TestAChoreAskedForWithinATimeIsNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var group sync.WaitGroup
		began := time.Now()
		var at []time.Duration
		c := New(&group, func() { at = append(at, time.Since(began)) })
		c.Begin()
		done := func(want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(at, want) {
				t.Fatalf("done at %v, want %v", at, want)
			}
		}
		c.AskWithin(5 * time.Second)
		time.Sleep(3 * time.Second)
		c.AskWithin(5 * time.Second) // it will be done in two
		time.Sleep(2 * time.Second)
		done(5 * time.Second)
		c.AskIn(10 * time.Second)
		c.AskWithin(time.Second) // sooner
		time.Sleep(time.Minute)
		done(5*time.Second, 6*time.Second)
		c.AskWithin(time.Second)
		time.Sleep(time.Second)
		done(5*time.Second, 6*time.Second, 66*time.Second)
		c.End()
	})
}
