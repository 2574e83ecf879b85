package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Route is a way to publish.
type Route string

// The routes.
const (
	Unary  Route = "unary"  // Publisher.Publish, one event
	Batch  Route = "batch"  // Publisher.Publish, several events of several keys
	Atomic Route = "atomic" // ... all or none
	Stream Route = "stream" // Publisher.PublishStream, pipelined
	Binary Route = "binary" // POST .../events, a CloudEvent
	Lines  Route = "lines"  // POST .../events, NDJSON
)

// Routes are all of them.
var Routes = []Route{Unary, Batch, Atomic, Stream, Binary, Lines}

// Publisher publishes unique values to keys of its own, one request after the other.
type Publisher struct {
	Name     string // begins every value and key
	Topic    string
	Route    Route
	JSON     bool // values are JSON: strings in quotes
	Keys     int
	Count    int // requests; 0: until its context ends
	Targets  func() []*Target
	Recorder *history.Recorder
	Random   *Random
	Wait     time.Duration // of one call
	Pause    time.Duration // between two calls, give or take half
	// Deduplicate sends a dedupe key, and an event of unknown outcome again, to the same gateway.
	Deduplicate bool
	// Hasty callers go away in the middle of a call once in a while.
	Hasty float64
	// Odd is told of what no history can say.
	Odd func(format string, args ...any)
	// Answered, if not nil, is told of each event with a known outcome.
	Answered func(history.Kind, time.Duration)
}

// batchSize is how many events the routes of several carry.
const batchSize = 4

// Run publishes until it has published Count requests or ctx ends. A call under
// way is finished.
func (p *Publisher) Run(ctx context.Context) {
	if p.Route == Stream {
		p.streams(ctx)
		return
	}
	for i := 0; (p.Count == 0 || i < p.Count) && ctx.Err() == nil; i++ {
		p.call(ctx, i)
		pause(ctx, p.Random.Between(p.Pause/2, p.Pause*3/2))
	}
}

// sent is one event on its way.
type sent struct{ key, value string }

func (p *Publisher) events(i int) []sent {
	n := 1
	if p.Route == Batch || p.Route == Atomic || p.Route == Lines {
		n = batchSize
	}
	all := make([]sent, n)
	for j := range all {
		all[j] = sent{fmt.Sprintf("%s-k%d", p.Name, (i+j)%p.Keys), fmt.Sprintf("%s-%d.%d", p.Name, i, j)}
		if p.JSON {
			all[j].value = strconv.Quote(all[j].value)
		}
	}
	return all
}

// answer is what became of one event.
type answer struct {
	kind history.Kind
	at   *posternv1.Position
}

// call makes one request, and repeats one of unknown outcome if it may.
func (p *Publisher) call(ctx context.Context, i int) {
	events := p.events(i)
	trace := p.Random.hex(32)
	request := ""
	if p.Route == Atomic {
		request = fmt.Sprintf("%s-%d", p.Name, i)
	}
	targets := p.Targets()
	target := targets[p.Random.N(len(targets))]
	for try := 0; ; try++ {
		for _, e := range events {
			p.Recorder.Record(history.Entry{Kind: history.Invoked, Value: e.value, Key: e.key, Request: request, Trace: trace})
		}
		wait := p.Wait
		if p.Random.Chance(p.Hasty) {
			wait = p.Random.Between(0, p.Wait/10)
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
		began := time.Now()
		var answers []answer
		if p.Route == Binary || p.Route == Lines {
			answers = p.http(call, target, events, trace)
		} else {
			answers = p.grpc(call, target, events, trace)
		}
		cancel()
		again := false
		for j, a := range answers {
			p.record(events[j], a, time.Since(began))
			again = again || a.kind == history.Unknown
		}
		if !p.Deduplicate || !again || try == 3 || ctx.Err() != nil {
			return
		}
		pause(ctx, p.Random.Between(0, time.Second))
	}
}

func (p *Publisher) record(e sent, a answer, took time.Duration) {
	entry := history.Entry{Kind: a.kind, Value: e.value}
	if a.kind == history.OK {
		entry.Topic, entry.Partition, entry.Offset = a.at.GetTopic(), a.at.GetPartition(), a.at.GetOffset()
	}
	p.Recorder.Record(entry)
	if p.Answered != nil {
		p.Answered(a.kind, took)
	}
}

func (p *Publisher) request(events []sent) *posternv1.PublishRequest {
	request := &posternv1.PublishRequest{Topic: p.Topic, Atomic: p.Route == Atomic}
	for _, e := range events {
		m := &posternv1.Event{Key: []byte(e.key), Data: []byte(e.value)}
		if p.Deduplicate {
			m.DedupeKey = e.value
		}
		request.Events = append(request.Events, m)
	}
	return request
}

func (p *Publisher) grpc(ctx context.Context, to *Target, events []sent, trace string) []answer {
	ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-"+p.Random.hex(16)+"-01")
	response, err := posternv1.NewPublisherClient(to.GRPC).Publish(ctx, p.request(events))
	if err != nil {
		return all(len(events), meaning(err))
	}
	return p.results(response.GetResults(), len(events))
}

func (p *Publisher) results(results []*posternv1.PublishResult, n int) []answer {
	if len(results) != n {
		p.Odd("%s: %d results for %d events", p.Name, len(results), n)
		return all(n, history.Unknown)
	}
	answers := make([]answer, n)
	for i, r := range results {
		answers[i] = answer{history.OK, r.GetPosition()}
		if r.GetError() != nil {
			answers[i].kind = kindMeaning(wire.FromStatus(r.GetError()).Kind())
		}
	}
	return answers
}

func all(n int, kind history.Kind) []answer {
	answers := make([]answer, n)
	for i := range answers {
		answers[i].kind = kind
	}
	return answers
}

// httpPosition is a position in an answer over HTTP.
type httpPosition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (h httpPosition) proto() *posternv1.Position {
	return &posternv1.Position{Topic: h.Topic, Partition: h.Partition, Offset: h.Offset}
}

func (p *Publisher) http(ctx context.Context, to *Target, events []sent, trace string) []answer {
	var body bytes.Buffer
	header := http.Header{"Traceparent": {"00-" + trace + "-" + p.Random.hex(16) + "-01"}}
	if deadline, ok := ctx.Deadline(); ok {
		header.Set("Grpc-Timeout", strconv.FormatInt(max(1, time.Until(deadline).Milliseconds()), 10)+"m")
	}
	if p.Route == Binary {
		e := events[0]
		body.WriteString(e.value)
		for name, value := range map[string]string{"Ce-Specversion": "1.0", "Ce-Id": e.value, "Ce-Source": "/workload", "Ce-Type": "load", "Postern-Key": e.key, "Content-Type": "text/plain"} {
			header.Set(name, value)
		}
		if p.Deduplicate {
			header.Set("Idempotency-Key", strconv.Quote(e.value))
		}
	} else {
		header.Set("Content-Type", "application/x-ndjson")
		for _, e := range events {
			line, err := json.Marshal(map[string]string{"key": e.key, "value": e.value})
			if err != nil { // strings always marshal
				return all(len(events), history.Failed)
			}
			body.Write(append(line, '\n'))
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.Base+"/v1/topics/"+p.Topic+"/events", &body)
	if err != nil {
		p.Odd("%s: %v", p.Name, err)
		return all(len(events), history.Failed)
	}
	request.Header = header
	response, err := to.Web.Do(request)
	if err != nil {
		return all(len(events), history.Unknown)
	}
	defer response.Body.Close() //nolint:errcheck // it is read to its end, or broken
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return all(len(events), history.Unknown)
	}
	return p.httpAnswers(response.StatusCode, text, len(events))
}

func (p *Publisher) httpAnswers(status int, text []byte, n int) []answer {
	if status != http.StatusOK && status != http.StatusMultiStatus {
		var problem wire.Problem
		if json.Unmarshal(text, &problem) != nil || problem.Reason == "" {
			p.Odd("%s: status %d without a problem: %.200s", p.Name, status, text)
			return all(n, history.Unknown)
		}
		return all(n, kindMeaning(problem.Reason.Kind()))
	}
	if p.Route == Binary {
		var at httpPosition
		if err := json.Unmarshal(text, &at); err != nil {
			p.Odd("%s: an answer that is no position: %.200s", p.Name, text)
			return all(n, history.Unknown)
		}
		return []answer{{history.OK, at.proto()}}
	}
	var results struct {
		Results []struct {
			Status   int
			Position httpPosition
			Problem  struct{ Reason fault.Reason }
		}
	}
	if err := json.Unmarshal(text, &results); err != nil || len(results.Results) != n {
		p.Odd("%s: an answer for %d events: %.200s", p.Name, n, text)
		return all(n, history.Unknown)
	}
	answers := make([]answer, n)
	for i, r := range results.Results {
		answers[i] = answer{history.OK, r.Position.proto()}
		if r.Status != http.StatusOK {
			answers[i].kind = kindMeaning(r.Problem.Reason.Kind())
		}
	}
	return answers
}

// ahead is how many requests a stream has unanswered at most.
const ahead = 8

// streams publishes over pipelined streams, a new one when the last broke.
func (p *Publisher) streams(ctx context.Context) {
	next := 0
	for n := 0; (p.Count == 0 || next < p.Count) && ctx.Err() == nil; n++ {
		targets := p.Targets()
		next = p.stream(ctx, targets[p.Random.N(len(targets))], fmt.Sprintf("%s#%d", p.Name, n), next)
		pause(ctx, p.Random.Between(p.Pause, 4*p.Pause))
	}
}

// stream publishes from request next on until the stream breaks, and gives the next one's number.
func (p *Publisher) stream(ctx context.Context, to *Target, connection string, next int) int {
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stream, err := posternv1.NewPublisherClient(to.GRPC).PublishStream(call)
	if err != nil {
		return next
	}
	waiting := make(chan int, ahead) // numbers sent, oldest first
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.streamAnswers(stream, waiting, cancel)
	}()
	for i := 0; i < 40 && (p.Count == 0 || next < p.Count) && ctx.Err() == nil; i++ {
		e := p.events(next)
		p.Recorder.Record(history.Entry{Kind: history.Invoked, Value: e[0].value, Key: e[0].key, Connection: connection})
		number := next
		next++
		select {
		case waiting <- number:
		case <-ended:
			p.record(e[0], answer{kind: history.Unknown}, 0) // it was not even sent, but that is no matter
			return next
		}
		if err := stream.Send(&posternv1.PublishStreamRequest{Sequence: uint64(number) + 1, Request: p.request(e)}); err != nil {
			break
		}
		pause(ctx, p.Random.Between(0, p.Pause/2))
	}
	_ = stream.CloseSend() // a broken one ends all the same
	close(waiting)
	<-ended
	return next
}

// streamAnswers records answers; when the stream ends, what is unanswered is unknown.
func (p *Publisher) streamAnswers(stream grpc.BidiStreamingClient[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse], waiting <-chan int, cancel func()) {
	done := map[uint64]*posternv1.PublishDone{}
	failed := false
	for number := range waiting {
		e := p.events(number)[0]
		sequence := uint64(number) + 1
		limit := time.AfterFunc(p.Wait, cancel)
		for done[sequence] == nil && !failed {
			m, err := stream.Recv()
			if err != nil {
				failed = true
				if errors.Is(err, io.EOF) {
					p.Odd("%s: the stream ended in order before request %d was answered", p.Name, number)
				}
				break
			}
			for _, d := range m.GetDone() {
				if done[d.GetSequence()] != nil {
					p.Odd("%s: request %d was answered twice", p.Name, d.GetSequence())
				}
				done[d.GetSequence()] = proto.CloneOf(d)
			}
		}
		limit.Stop()
		d := done[sequence]
		switch {
		case d == nil:
			p.record(e, answer{kind: history.Unknown}, 0)
		case d.GetError() != nil:
			p.record(e, answer{kind: kindMeaning(wire.FromStatus(d.GetError()).Kind())}, 0)
		default:
			p.record(e, p.results(d.GetResults(), 1)[0], 0)
		}
	}
	for !failed { // until the other side has closed
		if _, err := stream.Recv(); err != nil {
			failed = true
		}
	}
}
