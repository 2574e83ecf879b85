package publish

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// Limits of a stream of lines.
const (
	// lineGroup is how many lines that are there at once are published together.
	lineGroup = 256
	// lineIdle is how long a stream may send nothing.
	lineIdle = 5 * time.Minute
)

// IsStream reports whether a request of the events route is a stream of lines.
func IsStream(r *http.Request) bool {
	return event.DetectMode(r.Header) == event.NDJSON && acceptsLines(r)
}

// acceptsLines reports whether the caller wants its answers in lines.
func acceptsLines(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		for one := range strings.SplitSeq(accept, ",") {
			media, _, _ := strings.Cut(one, ";")
			if strings.EqualFold(strings.TrimSpace(media), event.MediaNDJSON) {
				return true
			}
		}
	}
	return false
}

// lines publishes NDJSON while it comes and answers in lines, in order: what
// PublishStream is for gRPC. The whole has no limit of size; a line has, and so
// has what is unanswered: beyond it the gateway reads on when Kafka has answered.
//
// One goroutine reads and starts what has come; this one waits for each group
// in turn and writes.
func (p *Publisher) lines(w http.ResponseWriter, r *http.Request, a asked, wait time.Duration) error {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // HTTP/2 is so by itself
	w.Header().Set("Content-Type", event.MediaNDJSON)
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // what is left of a body that ends early is not the next request
	}
	w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	room := newRoom(streamEvents, streamBytes)
	groups := make(chan *lineSet, streamEvents/lineGroup)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(groups)
		l := &lineReader{publisher: p, asked: a, control: control, room: room, groups: groups, wait: wait, most: int(p.options.MaxBodyBytes)}
		l.run(ctx, r.Body)
	})
	defer reader.Wait()
	defer room.close()
	defer cancel()
	defer func() { _ = control.SetReadDeadline(time.Now()) }() // a reader that waits for a line stops

	write := func(b []byte, flush bool) error {
		_ = control.SetWriteDeadline(time.Now().Add(wire.UnreadLimit))
		_, err := w.Write(b)
		if err == nil && flush {
			err = control.Flush()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.log.WarnContext(ctx, "a stream of lines is cut: its answers are not read", "topic", a.topic, "caller", a.who.Name, "waited", wire.UnreadLimit)
			return unread(wire.UnreadLimit)
		}
		_ = control.SetWriteDeadline(time.Time{}) // HTTP/2 ends the stream when it comes, written or not
		return err
	}
	notice := &drainNotice{publisher: p, draining: p.draining, send: func(deadline time.Time) error {
		b := deadline.UTC().AppendFormat([]byte(`{"drain":{"deadline":"`), time.RFC3339Nano)
		return write(append(b, "\"}}\n"...), true)
	}}
	for {
		var b []byte
		select {
		case g, ok := <-groups:
			if !ok {
				return nil
			}
			var err error
			if b, err = g.answer(ctx, notice, wait); err != nil {
				return err
			}
			room.give(int64(len(g.items)), g.bytes)
		case <-notice.draining:
			if err := notice.give(); err != nil {
				return err
			}
			continue
		}
		if err := write(b, len(groups) == 0); err != nil {
			return err
		}
	}
}

// lineSet is lines that were published together.
type lineSet struct {
	items   []event.Item
	bytes   int64
	at      []int // the items that are events
	pending *Pending
	preview []Preview
	err     error // why the whole of it was refused
}

// answer is append within the caller's wait, and tells of a drain meanwhile.
func (g *lineSet) answer(ctx context.Context, notice *drainNotice, wait time.Duration) ([]byte, error) {
	if wait > 0 && g.pending != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, g.pending.began.Add(wait))
		defer cancel()
	}
	if err := notice.whileWaiting(ctx, g.pending); err != nil {
		return nil, err
	}
	return g.append(ctx, nil), nil
}

// append waits for the set's answers and writes a line for each.
func (g *lineSet) append(ctx context.Context, b []byte) []byte {
	results := make([]result, len(g.items))
	for i := range g.items {
		if err := g.items[i].Err; err != nil {
			results[i].err = invalidItem(err)
		} else {
			results[i].err = g.err
		}
	}
	if g.pending != nil {
		for j, r := range g.pending.Wait(ctx) {
			results[g.at[j]] = result{position: r.Position, duplicate: r.Duplicate, err: r.Err}
		}
	}
	for j := range g.preview {
		results[g.at[j]] = result{preview: &g.preview[j], err: g.preview[j].Err}
	}
	for i := range results {
		b = append(results[i].append(b), '\n')
	}
	return b
}

// invalidItem says what is wrong with a line, or with the body it stands in.
func invalidItem(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return known
	}
	return invalid(err)
}

type lineReader struct {
	publisher *Publisher
	asked     asked
	control   *http.ResponseController
	room      *room
	groups    chan<- *lineSet
	most      int // bytes of a line
	wait      time.Duration
	count     int
}

// run reads lines until the body ends, breaks, or there is nobody to answer.
func (l *lineReader) run(ctx context.Context, source io.Reader) {
	in := bufio.NewReaderSize(source, 64<<10)
	set := &lineSet{}
	for {
		_ = l.control.SetReadDeadline(time.Now().Add(lineIdle))
		line, err := l.line(in)
		if line = bytes.TrimSpace(line); len(line) > 0 {
			set.bytes += int64(len(line))
			e, wrong := event.FromNDJSON(line)
			if l.asked.dedupe != "" {
				e.DedupeKey = l.asked.dedupe + "#" + strconv.Itoa(l.count)
			}
			l.count++
			set.items = append(set.items, event.Item{Event: e, Err: wrong})
		}
		if err != nil && !errors.Is(err, io.EOF) {
			set.items = append(set.items, event.Item{Err: err})
		}
		if n := len(set.items); n > 0 && (err != nil || n >= lineGroup || !hasLine(in)) {
			if !l.start(ctx, set) {
				return
			}
			set = &lineSet{}
		}
		if err != nil {
			return
		}
	}
}

// line reads one line, which is the caller's.
func (l *lineReader) line(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > l.most {
			return nil, &event.InvalidError{Form: true, Field: "line", Message: "it is longer than " + strconv.Itoa(l.most) + " bytes; the stream ends here"}
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.As(err, new(*fault.Error)):
			return nil, err
		case err != nil && !errors.Is(err, io.EOF):
			return nil, &event.InvalidError{Form: true, Field: "body", Message: "it broke off: " + err.Error()}
		default:
			return line, err
		}
	}
}

// hasLine reports whether a whole line is there without waiting.
func hasLine(in *bufio.Reader) bool {
	b, _ := in.Peek(in.Buffered()) // what is buffered cannot fail
	return bytes.IndexByte(b, '\n') >= 0
}

// start publishes a set when there is room for it, and reports whether to go on.
func (l *lineReader) start(ctx context.Context, set *lineSet) bool {
	if !l.room.take(ctx, int64(len(set.items)), set.bytes) {
		return false
	}
	l.publisher.denyItems(l.asked, set.items)
	var events []event.Event
	for i := range set.items {
		if set.items[i].Err == nil {
			events, set.at = append(events, set.items[i].Event), append(set.at, i)
		}
	}
	switch {
	case len(events) == 0:
	case l.asked.validateOnly:
		set.preview, set.err = l.publisher.Preview(ctx, l.asked.who, l.asked.request(events))
	default:
		if l.wait > 0 { // for the records' life
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, l.wait)
			defer cancel()
		}
		set.pending, set.err = l.publisher.Start(ctx, l.asked.who, l.asked.request(events))
	}
	select {
	case l.groups <- set:
		return true
	case <-ctx.Done():
		return false
	}
}
