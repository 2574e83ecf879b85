package subscription

import (
	"syscall"
	"testing"
	"time"
)

// worked is the CPU time that the test's thread has used: on a busy machine the
// clock says nothing of the work done.
func worked(t *testing.T) time.Duration {
	t.Helper()
	const thread = 1 // RUSAGE_THREAD
	var used syscall.Rusage
	if err := syscall.Getrusage(thread, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
