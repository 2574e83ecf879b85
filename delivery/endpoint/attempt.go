package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/postern-dev/postern/event"
)

// Attempt is what the log of attempts keeps of one event in one request (JSON,
// keyed by webhook id). Its names are what people and programs read later.
type Attempt struct {
	Version      int    `json:"v"` // attemptVersion
	WebhookID    string `json:"webhook_id"`
	Subscription string `json:"subscription"`
	Topic        string `json:"topic"`
	Partition    int32  `json:"partition"`
	Offset       int64  `json:"offset"`
	EventID      string `json:"event_id,omitempty"` // of a CloudEvent
	EventSource  string `json:"event_source,omitempty"`
	Number       int    `json:"attempt"`
	Replay       bool   `json:"replay,omitempty"`
	BatchID      string `json:"batch_id,omitempty"` // the webhook id of the batch it went in
	BatchSize    int    `json:"batch_size,omitempty"`

	At        time.Time `json:"at"`
	Action    string    `json:"action"`
	Class     string    `json:"class"`
	Status    int       `json:"status,omitempty"`
	Why       string    `json:"why,omitempty"` // begins with the status, then an excerpt of the answer
	Host      string    `json:"host"`
	Keys      []string  `json:"keys,omitempty"`
	DNS       float64   `json:"dns_ms,omitempty"`
	Connect   float64   `json:"connect_ms,omitempty"`
	TLS       float64   `json:"tls_ms,omitempty"`
	FirstByte float64   `json:"first_byte_ms,omitempty"`
	Total     float64   `json:"total_ms"`
	TraceID   string    `json:"trace_id,omitempty"`
	SpanID    string    `json:"span_id,omitempty"`
	Instance  string    `json:"instance"`
}

const (
	attemptVersion = 1
	// maxAttempt bounds an attempt's record, written or read: an excerpt of 4 KiB,
	// escaped, and names.
	maxAttempt = 64 << 10
)

// Append writes a behind b: by hand, because there is one for each event pushed
// and encoding/json takes four times as long; a test holds them to each other.
func (a *Attempt) Append(b []byte) []byte {
	text := func(name, value string) {
		if value != "" {
			b = event.AppendString(append(append(append(b, ",\""...), name...), "\":"...), value)
		}
	}
	number := func(name string, value int64, always bool) {
		if value != 0 || always {
			b = strconv.AppendInt(append(append(append(b, ",\""...), name...), "\":"...), value, 10)
		}
	}
	took := func(name string, value float64, always bool) {
		if value != 0 || always {
			b = appendThousandths(append(append(append(b, ",\""...), name...), "\":"...), value)
		}
	}
	b = append(b, `{"v":1`...)
	b = event.AppendString(append(b, `,"webhook_id":`...), a.WebhookID)
	b = event.AppendString(append(b, `,"subscription":`...), a.Subscription)
	b = event.AppendString(append(b, `,"topic":`...), a.Topic)
	number("partition", int64(a.Partition), true)
	number("offset", a.Offset, true)
	text("event_id", a.EventID)
	text("event_source", a.EventSource)
	number("attempt", int64(a.Number), true)
	if a.Replay {
		b = append(b, `,"replay":true`...)
	}
	text("batch_id", a.BatchID)
	number("batch_size", int64(a.BatchSize), false)
	b = append(a.At.AppendFormat(append(b, `,"at":"`...), time.RFC3339Nano), '"')
	b = event.AppendString(append(b, `,"action":`...), a.Action)
	b = event.AppendString(append(b, `,"class":`...), a.Class)
	number("status", int64(a.Status), false)
	text("why", a.Why)
	b = event.AppendString(append(b, `,"host":`...), a.Host)
	if len(a.Keys) > 0 {
		b = append(b, `,"keys":[`...)
		for i, k := range a.Keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = event.AppendString(b, k)
		}
		b = append(b, ']')
	}
	took("dns_ms", a.DNS, false)
	took("connect_ms", a.Connect, false)
	took("tls_ms", a.TLS, false)
	took("first_byte_ms", a.FirstByte, false)
	took("total_ms", a.Total, true)
	text("trace_id", a.TraceID)
	text("span_id", a.SpanID)
	b = event.AppendString(append(b, `,"instance":`...), a.Instance)
	return append(b, '}')
}

// appendThousandths writes a number that has three digits behind its point, as
// milliseconds gives it: the shortest form that reads back as v, found without a search.
func appendThousandths(b []byte, v float64) []byte {
	n := int64(v*1000 + 0.5)
	if n < 0 || n > 1<<50 || float64(n)/1000 != v {
		return strconv.AppendFloat(b, v, 'f', -1, 64)
	}
	b = strconv.AppendInt(b, n/1000, 10)
	rest := n % 1000
	if rest > 0 {
		b = append(b, '.')
	}
	for ; rest > 0; rest = rest % 100 * 10 {
		b = append(b, byte('0'+rest/100))
	}
	return b
}

// ParseAttempt reads an attempt. One of a newer version is an error.
func ParseAttempt(b []byte) (Attempt, error) {
	var a Attempt
	if len(b) > maxAttempt {
		return a, errors.New("the attempt's record is too long")
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("the attempt's record cannot be read: %w", err)
	}
	if a.Version != attemptVersion {
		return a, fmt.Errorf("the attempt's record has version %d, this gateway reads %d", a.Version, attemptVersion)
	}
	return a, nil
}

// milliseconds with three digits behind the point.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
