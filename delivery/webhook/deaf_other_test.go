//go:build !linux

package webhook

import "testing"

func deaf(t *testing.T) string {
	t.Helper()
	t.Skip("how to fill the queue of connections is known of Linux")
	return ""
}
