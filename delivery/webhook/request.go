package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/event"
)

// batchMedia is the Content-Type of a batch (CloudEvents HTTP binding 1.0, section 3.3).
const batchMedia = "application/cloudevents-batch+json; charset=utf-8"

// write writes one attempt's body and headers: the event, or the batch, and its
// place; the signature is over exactly the bytes of the body.
func (c *carrier) write(p *endpoint.Parcel, header http.Header, now time.Time) (body []byte, keys []string, err error) {
	if c.options.Mode == Batch && (len(p.Records) > 1 || allCloudEvents(p.Records)) {
		body = appendBatch(nil, p.Records)
		header["Content-Type"] = []string{batchMedia}
		header["Postern-Batch"] = []string{strconv.Itoa(len(p.Records))}
	} else {
		body = c.writeOne(p.Records[0], header)
	}
	v := values{memory: make([]string, 0, 8)}
	header["Webhook-Id"] = v.one(p.ID)
	header["Webhook-Timestamp"] = v.one(strconv.FormatInt(now.Unix(), 10))
	signature, keys, err := sign(c.keys, p.ID, now, body)
	if err != nil {
		return nil, nil, err
	}
	if signature != "" {
		header["Webhook-Signature"] = v.one(signature)
	}
	if len(p.Records) == 1 && header["Postern-Batch"] == nil {
		r := p.Records[0]
		header["Postern-Topic"] = v.one(r.Topic)
		header["Postern-Partition"] = v.one(strconv.Itoa(int(r.Partition)))
		header["Postern-Offset"] = v.one(strconv.FormatInt(r.Offset, 10))
	}
	header["User-Agent"] = userAgent
	header["Postern-Subscription"] = c.name
	header["Postern-Attempt"] = v.one(strconv.Itoa(p.Attempt))
	if p.Replay {
		header["Webhook-Replay"] = yes
	}
	if p.Sample {
		header["Webhook-Sample"] = yes
	}
	if c.options.Handshake != nil {
		header["Webhook-Request-Origin"] = []string{c.options.Handshake.Origin}
	}
	for name, value := range c.static {
		header[name] = value
	}
	return body, keys, nil
}

// Values that every request shares; nobody writes to them.
var (
	userAgent = []string{"Postern"}
	yes       = []string{"true"}
)

// values makes headers' values of one piece of memory.
type values struct{ memory []string }

func (v *values) one(s string) []string {
	n := len(v.memory)
	v.memory = append(v.memory, s)
	return v.memory[n : n+1 : n+1]
}

func (c *carrier) writeOne(r *event.Record, header http.Header) []byte {
	e := r.Event()
	body := e.Data
	if c.options.Mode == Structured && e.IsCloudEvent() {
		body = e.AppendStructuredJSON(nil)
		structured := event.Event{Key: e.Key, Headers: e.Headers, ContentType: event.MediaStructured + "; charset=utf-8"}
		structured.SetHTTPBinary(header)
	} else {
		e.SetHTTPBinary(header)
		if header["Content-Type"] == nil {
			header["Content-Type"] = []string{"application/octet-stream"}
		}
	}
	if e.Data == nil {
		header["Postern-Tombstone"] = yes
	}
	return body
}

func allCloudEvents(records []*event.Record) bool {
	for _, r := range records {
		if e := r.Event(); !e.IsCloudEvent() {
			return false
		}
	}
	return true
}

// appendBatch writes a JSON array of events. One that is no CloudEvent becomes
// one here, because a batch has nothing else: its type says so, and its id is its
// place in Kafka.
func appendBatch(b []byte, records []*event.Record) []byte {
	b = append(b, '[')
	for i, r := range records {
		if i > 0 {
			b = append(b, ',')
		}
		e := r.Event()
		if !e.IsCloudEvent() {
			e.ID, e.Source, e.Type = r.Position().String(), "/topics/"+r.Topic, "dev.postern.record"
			e.Time = r.Timestamp.UTC()
		}
		b = e.AppendStructuredJSON(b)
	}
	return append(b, ']')
}

// request makes the HTTP request. Its body may be read again when a connection
// that was kept turned out to be closed before anything was written to it.
func (c *carrier) request(ctx context.Context, body []byte, header http.Header) *http.Request {
	r := c.template.WithContext(ctx) // a copy
	r.Header = header
	if r.ContentLength = int64(len(body)); len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return r
}

const maxAnswer = 64 << 10 // read of an answer's body

// resultsOf reads the answer to a batch that has a status for each event, in
// their order: 207 and {"results":[{"status":200},{"status":422}]}, as this
// gateway itself answers batches. nil when it is nothing of the kind, or not of
// as many events: then the answer's status is all there is.
func (c *carrier) resultsOf(status int, body []byte, n int, now time.Time) []endpoint.Outcome {
	if status != http.StatusMultiStatus || n < 2 {
		return nil
	}
	var answer struct {
		Results []struct {
			Status int `json:"status"`
		} `json:"results"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Results) != n {
		return nil
	}
	each := make([]endpoint.Outcome, n)
	for i, r := range answer.Results {
		if r.Status < 200 || r.Status > 599 {
			return nil
		}
		each[i] = c.verdicts.judge(r.Status, "", "", now)
	}
	return each
}
