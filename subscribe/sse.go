package subscribe

import (
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/eventstream"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Events is the route GET /v1/subscriptions/{name}/events: deliveries as
// server-sent events or NDJSON, each with its delivery_id, to be settled with
// POST /v1/subscriptions/{name}:settle at the same instance.
//
// ?window= is how many may be unsettled, ?lease= how long each is lent (30s),
// ?ack=on_send settles each as it is written, and ?topic= (repeated) opens a
// subscription inline that the configuration does not declare. ?view=json shows
// events as JSON, whatever the topic holds. The id of each
// server-sent event is the resume token: Last-Event-ID takes the leases over
// and never moves the position.
func (s *Server) Events(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	open := &posternv1.Open{Subscription: r.PathValue("name"), ClientId: r.RemoteAddr, ResumeToken: r.Header.Get("Last-Event-ID")}
	if topics := query["topic"]; len(topics) > 0 {
		open.Inline = &posternv1.Subscription{Name: open.Subscription, Topics: topics}
	}
	if v := query.Get("window"); v != "" {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || n < 1 || n > 100_000 {
			return fault.New(fault.InvalidArgument, "window=%s is not a number of events from 1 to 100000", v).Field("window", "out of range")
		}
		open.Window = &posternv1.Window{MaxMessages: n}
	}
	if v := query.Get("lease"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < delivery.MinLease || d > delivery.MaxLease {
			return fault.New(fault.InvalidArgument, "lease=%s is not a duration from 1s to 1h, such as 30s", v).Field("lease", "out of range")
		}
		open.Lease = durationpb.New(d)
	}
	var err error
	if open.View, err = parseView(query.Get("view")); err != nil {
		return err
	}
	ackOnSend := false
	switch v := query.Get("ack"); v {
	case "":
	case "on_send":
		ackOnSend = true
	default:
		return fault.New(fault.InvalidArgument, "ack=%s is not offered: leave it out and settle each event, or use ack=on_send", v).Field("ack", "not offered")
	}
	out, err := eventstream.New(w, r)
	if err != nil {
		return err
	}
	session, err := s.open(r.Context(), open)
	if err != nil {
		return err
	}
	wire.SetInstance(w.Header(), s.queues.Instance().String())
	token := session.attachment.Token()
	return session.serveText(r.Context(), out, token, ackOnSend)
}

// appendDelivery writes a lease as one line of JSON.
func appendDelivery(b []byte, l *delivery.Lease) []byte {
	b = append(b, `{"delivery_id":"`...) // 64 bits: a number would lose some in JavaScript
	b = strconv.AppendUint(b, uint64(l.ID), 10)
	b = strconv.AppendInt(append(b, `","attempt":`...), int64(l.Attempt), 10)
	b = append(b, `,"lease_expires":"`...)
	b = l.Deadline.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `",`...)
	b = eventstream.AppendPosition(b, l.Record)
	b = append(b, `,"event":`...)
	b = l.Record.AppendJSON(b)
	return append(b, '}')
}
