package wire

import (
	"net/http"
	"testing"
	"time"
)

func TestAWaitIsReadAsItWasMeant(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        time.Duration
		wrong       bool
	}{
		{"Prefer", "wait=2", 2 * time.Second, false},
		{"Prefer", `respond-async, WAIT = "3"; x=y`, 3 * time.Second, false},
		{"Prefer", "wait=no, wait=4", 4 * time.Second, false},
		{"Prefer", "wait=0", 0, false},
		{"Prefer", "waiting=5", 0, false},
		{"Prefer", "wait=2147483647", maxPreferred, false},
		{"Grpc-Timeout", "250m", 250 * time.Millisecond, false},
		{"Grpc-Timeout", "1H", time.Hour, false},
		{"Grpc-Timeout", "99999999H", maxWait, false},
		{"Grpc-Timeout", "0S", 0, true},
		{"Grpc-Timeout", "1s", 0, true},
		{"Grpc-Timeout", "123456789S", 0, true},
	} {
		got, err := WaitOf(http.Header{c.name: {c.value}})
		if (err != nil) != c.wrong || err == nil && got != c.want {
			t.Errorf("%s: %s is %s, %v", c.name, c.value, got, err)
		}
	}
}

func FuzzWaitOf(f *testing.F) {
	f.Add("wait=2", "")
	f.Add("", "250m")
	f.Add(`a, wait="1";b`, "99999999H")
	f.Fuzz(func(t *testing.T, prefer, timeout string) {
		if d, err := WaitOf(http.Header{"Prefer": {prefer}, "Grpc-Timeout": {timeout}}); err == nil && d < 0 {
			t.Errorf("%q %q is %s", prefer, timeout, d)
		}
	})
}
