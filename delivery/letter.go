package delivery

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/event"
)

// letterOf reads a record of a dead-letter topic, and the subscription that it
// died in: "" for one that bears no evidence of ours, which is shown as it is.
func letterOf(r *event.Record) (l DeadLetter, subscription string) {
	l = DeadLetter{At: r.Position(), Written: r.Timestamp}
	own := *r
	begin := -1
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if h := r.Headers[i]; h.Name == event.DeadLetterVersion {
			if string(h.Value) == deadLetterVersion {
				begin = i
			}
			break
		}
	}
	if begin >= 0 {
		subscription = l.evidence(r.Headers[begin:])
	}
	own.Headers = nil
	for i, h := range r.Headers {
		switch {
		case h.Name == event.RedriveCount:
			if n, err := strconv.Atoi(string(h.Value)); err == nil && n > 0 {
				l.Redrives = min(n, maxRedriveCount)
			}
		case strings.HasPrefix(h.Name, redriveHeaders):
		case begin >= 0 && i >= begin && strings.HasPrefix(h.Name, evidenceHeaders): // the last set
		default:
			own.Headers = append(own.Headers, h)
		}
	}
	if l.hasOrigin() {
		own.Topic, own.Partition, own.Offset, own.Timestamp = l.Origin.Topic, l.Origin.Partition, l.Origin.Offset, l.OriginTimestamp
	}
	l.Record = &own
	return l, subscription
}

const (
	redriveHeaders  = "postern-redrive"
	evidenceHeaders = "postern-dead-letter-"
	maxRedriveCount = 1 << 20
)

// evidence reads one set of evidence headers, as far as it can be read.
func (l *DeadLetter) evidence(headers []event.Header) (subscription string) {
	origin := event.Position{Partition: -1, Offset: -1}
	when := func(text string) time.Time {
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return time.Time{} // unknown
		}
		return t
	}
	number := func(text string, bits int) int64 {
		n, err := strconv.ParseInt(text, 10, bits)
		if err != nil {
			return -1
		}
		return n
	}
	for _, h := range headers {
		text := string(h.Value)
		switch h.Name {
		case event.DeadLetterReason:
			l.Reason = text
		case event.DeadLetterDetail:
			l.Detail = text
		case event.DeadLetterAttempts:
			l.Attempts = int(max(number(text, 31), 0))
		case event.DeadLetterFirstAttempt:
			l.First = when(text)
		case event.DeadLetterLastAttempt:
			l.Last = when(text)
		case event.DeadLetterSubscription:
			subscription = text
		case event.DeadLetterTopic:
			origin.Topic = text
		case event.DeadLetterPartition:
			origin.Partition = int32(number(text, 32))
		case event.DeadLetterOffset:
			origin.Offset = number(text, 64)
		case event.DeadLetterTimestamp:
			l.OriginTimestamp = when(text)
		}
	}
	if origin.Topic != "" && origin.Partition >= 0 && origin.Offset >= 0 {
		l.Origin = origin
	}
	return subscription
}

// hasOrigin reports whether it is known where the event came from.
func (l *DeadLetter) hasOrigin() bool { return l.Origin.Topic != "" }

// matches reports whether l fits all that is set in f, marks aside.
func (f *LetterFilter) matches(l *DeadLetter) bool {
	switch {
	case !f.After.IsZero() && l.Written.Before(f.After), !f.Before.IsZero() && !l.Written.Before(f.Before),
		len(f.Reasons) > 0 && !slices.Contains(f.Reasons, l.Reason),
		f.HasKey && (l.Record.Key == nil || !bytes.Equal(f.Key, l.Record.Key)),
		f.OriginTopic != "" && l.Origin.Topic != f.OriginTopic,
		f.OriginPartition != nil && (!l.hasOrigin() || l.Origin.Partition != *f.OriginPartition),
		f.OriginFrom != nil && (!l.hasOrigin() || l.Origin.Offset < *f.OriginFrom),
		f.OriginTo != nil && (!l.hasOrigin() || l.Origin.Offset >= *f.OriginTo),
		len(f.Positions) > 0 && !slices.Contains(f.Positions, l.At):
		return false
	}
	return f.Text == "" || strings.Contains(l.Detail, f.Text) || bytes.Contains(l.Record.Value, []byte(f.Text))
}
