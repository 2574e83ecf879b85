package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// messageID names an event towards one subscription's endpoint: stable over
// retries and over gateways, different from the event's own id, and without
// the dot that would make the signed text ambiguous.
func messageID(subscription string, at event.Position) string {
	h := sha256.New()
	h.Write([]byte(subscription))
	h.Write([]byte{0})
	h.Write([]byte(at.Topic))
	h.Write([]byte{0})
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(at.Partition)), uint64(at.Offset)))
	return "msg_" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil)[:20])
}

// request writes one attempt: the event, its place, the signature over exactly
// the bytes of the body.
func (p *Pusher) request(ctx context.Context, lease *delivery.Lease, now time.Time) (*http.Request, error) {
	e := lease.Record.Event()
	body := e.Data
	header := make(http.Header, 24)
	if p.options.Mode == Structured && e.IsCloudEvent() {
		body = e.AppendStructuredJSON(nil)
		structured := event.Event{Key: e.Key, Headers: e.Headers, ContentType: event.MediaStructured + "; charset=utf-8"}
		structured.SetHTTPBinary(header)
	} else {
		e.SetHTTPBinary(header)
		if header["Content-Type"] == nil {
			header["Content-Type"] = []string{"application/octet-stream"}
		}
	}
	at := lease.Record.Position()
	id := messageID(p.subscription, at)
	header["Webhook-Id"] = []string{id}
	header["Webhook-Timestamp"] = []string{strconv.FormatInt(now.Unix(), 10)}
	if s := sign(p.keys, id, now, body); s != "" {
		header["Webhook-Signature"] = []string{s}
	}
	header["User-Agent"] = []string{"Postern"}
	header["Postern-Subscription"] = []string{p.subscription}
	header["Postern-Attempt"] = []string{strconv.Itoa(lease.Attempt)}
	header["Postern-Topic"] = []string{at.Topic}
	header["Postern-Partition"] = []string{strconv.Itoa(int(at.Partition))}
	header["Postern-Offset"] = []string{strconv.FormatInt(at.Offset, 10)}
	if e.Data == nil {
		header["Postern-Tombstone"] = []string{"true"}
	}
	for name, value := range p.options.Headers {
		header.Set(name, value.Reveal())
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.options.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = header
	r.ContentLength = int64(len(body))
	if len(body) == 0 {
		r.Body = http.NoBody
	}
	return r, nil
}

const (
	maxAnswer  = 64 << 10 // read of an answer's body
	maxExcerpt = 4 << 10  // kept of it
)

// excerptOf reads the beginning of an answer for people: printable text, at most maxExcerpt.
func excerptOf(body io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(body, maxAnswer)) // what came before an error is what there is
	if len(b) > maxExcerpt {
		b = b[:maxExcerpt]
	}
	return printable(b)
}

// printable keeps text readable in a log or a header: no control characters, valid UTF-8.
func printable(b []byte) string {
	return string(bytes.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r <= 0x9f:
			return -1
		}
		return r
	}, bytes.ToValidUTF8(b, []byte("\uFFFD"))))
}
