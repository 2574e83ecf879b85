package wire

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/fault"
)

// WaitOf reads how long an HTTP caller wants to wait: Grpc-Timeout as gRPC writes
// it, or Prefer: wait= (RFC 7240, section 4.3) in seconds, of which the first that can
// be read counts: a preference that cannot is ignored (section 2). 0: unsaid.
func WaitOf(h http.Header) (time.Duration, error) {
	if v := h.Get("Grpc-Timeout"); v != "" {
		d, ok := grpcTimeout(v)
		if !ok {
			return 0, fault.New(fault.InvalidHeader, "Grpc-Timeout %q is not digits and one of H M S m u n", v).Field("Grpc-Timeout", "unreadable")
		}
		return d, nil
	}
	for _, prefer := range h["Prefer"] {
		for one := range strings.SplitSeq(prefer, ",") {
			one, _, _ = strings.Cut(one, ";") // parameters say nothing here
			name, value, _ := strings.Cut(one, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err == nil && n > 0 {
				return min(time.Duration(n)*time.Second, maxPreferred), nil
			}
		}
	}
	return 0, nil
}

// maxPreferred is the longest wait in seconds that Grpc-Timeout can carry.
const maxPreferred = 99_999_999 * time.Second

var timeoutUnits = map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}

func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	unit, ok := timeoutUnits[v[len(v)-1]]
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if n > uint64(maxWait/max(unit, 1)) {
		return maxWait, ok && err == nil
	}
	return time.Duration(n) * unit, ok && err == nil && n > 0
}

// maxWait is as long as a duration can be.
const maxWait = time.Duration(1<<63 - 1)
