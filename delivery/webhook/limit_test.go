package webhook

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func newLimit(timeout time.Duration) *limit {
	l := &limit{Context: context.Background()}
	l.begin(time.Now(), timeout)
	return l
}

func TestARequestsTimeEndsAllThatIsDerivedFromIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(3 * time.Second)
		child, cancel := context.WithCancelCause(l)
		defer cancel(nil)
		grandchild, drop := context.WithTimeout(child, time.Minute)
		defer drop()
		ran := make(chan struct{})
		context.AfterFunc(l, func() { close(ran) })
		kept := false
		stop := context.AfterFunc(l, func() { kept = true })
		if !stop() || stop() {
			t.Error("stop does not tell whether it stopped something")
		}
		began := time.Now()
		<-grandchild.Done()
		<-ran
		if took := time.Since(began); took != 3*time.Second || kept {
			t.Errorf("ended after %s, and what was stopped ran: %v", took, kept)
		}
		for _, ctx := range []context.Context{l, child, grandchild} {
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Errorf("ended with %v", ctx.Err())
			}
		}
		if l.rest() {
			t.Error("what has ended may begin again")
		}
		late, cancelLate := context.WithCancel(l)
		defer cancelLate()
		if <-late.Done(); late.Err() == nil {
			t.Error("what is derived after the end goes on")
		}
	})
}

func TestALimitThatDidNotEndBeginsAgainWithItsWholeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(3 * time.Second)
		before, letGo := context.WithCancel(l)
		time.Sleep(2 * time.Second)
		if !l.rest() {
			t.Fatal("it may not begin again, though it did not end")
		}
		time.Sleep(time.Hour)
		began := time.Now()
		l.begin(began, 5*time.Second)
		now, cancel := context.WithCancel(l)
		defer cancel()
		letGo() // late, as the transport does
		if at, ok := l.Deadline(); !ok || at != began.Add(5*time.Second) || before.Err() == nil || now.Err() != nil {
			t.Errorf("deadline %s (%v); before: %v, now: %v", at, ok, before.Err(), now.Err())
		}
		<-now.Done()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("ended after %s", took)
		}
	})
}

func TestACancelledLimitDoesNotBeginAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(time.Second)
		child, cancel := context.WithCancel(l)
		defer cancel()
		l.cancel()
		<-child.Done()
		if !errors.Is(child.Err(), context.Canceled) || l.rest() {
			t.Errorf("ended with %v", child.Err())
		}
		time.Sleep(time.Minute)
		if !errors.Is(l.Err(), context.Canceled) {
			t.Errorf("its time changed how it ended: %v", l.Err())
		}
	})
}
