package delivery

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"slices"
	"time"

	"github.com/postern-dev/postern/fault"
)

// Window is what an attachment may have in hand, in absolute numbers.
type Window struct {
	Messages int   // 0 pauses
	Bytes    int64 // 0 is DefaultWindowBytes
}

// AttachOptions says who attaches.
type AttachOptions struct {
	Window Window
	Lease  time.Duration // 0: the queue's
	Client string        // for logs
	Kind   string        // stream, pull or webhook
	// Why says what the borrower itself is held up by; a zero Kind: by nothing. nil: it never
	// is. It is called without any lock of the queue's.
	Why   func() Cause
	Token string // a resume token to take over; "" for a new attachment
	// AutoExtend keeps leases from running out while the borrower is attached, up to MaxLease each.
	AutoExtend bool
}

// Attachment is one borrower attached to a queue: a stream, a puller or a
// webhook endpoint. Next from one goroutine; the rest is safe for concurrent use.
type Attachment struct {
	queue   *Queue
	options AttachOptions
	token   string
	ready   chan struct{} // pending or revoked has something, or ended is set

	// Guarded by the queue's lock.
	window   Window
	messages int // lent and not settled
	bytes    int64
	pending  []Lease
	revoked  []Revocation
	ended    error
	detached *time.Timer // runs while the attachment waits to be resumed
}

// Revocation tells that a lease is no longer the attachment's.
type Revocation struct {
	ID     ID
	Reason string
}

// maxRevocations bounds the notices kept for a borrower that does not read them.
const maxRevocations = 10_000

// Attach adds a borrower. With a resume token it takes over the leases of the
// attachment that had it; a token that is not known makes a new attachment.
func (q *Queue) Attach(o AttachOptions) (*Attachment, []Lease, error) {
	if o.Window.Bytes <= 0 {
		o.Window.Bytes = DefaultWindowBytes
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.draining {
		return nil, nil, fault.New(fault.ShuttingDown, "subscription %s is draining on this instance; connect again", q.options.Name)
	}
	if o.Token != "" {
		for _, old := range q.attachments {
			if old.token != o.Token {
				continue
			}
			if old.detached == nil || !old.detached.Stop() {
				// The old connection is still there as far as we know: the newer
				// one wins, the older is told.
				old.end(fault.New(fault.ResumeTokenInUse, "another stream took this resume token over"))
			}
			return q.resume(old, o)
		}
	}
	a := &Attachment{queue: q, options: o, token: newToken(), ready: make(chan struct{}, 1), window: o.Window}
	q.attachments = append(q.attachments, a)
	q.log.Debug("consumer attached", "client", o.Client, "window", o.Window.Messages)
	q.dispatch()
	return a, nil, nil
}

// resume replaces old by a new attachment that holds old's leases.
func (q *Queue) resume(old *Attachment, o AttachOptions) (*Attachment, []Lease, error) {
	a := &Attachment{
		queue: q, options: o, token: old.token, ready: make(chan struct{}, 1), window: o.Window,
		messages: old.messages, bytes: old.bytes, pending: old.pending,
	}
	unsent := map[ID]bool{}
	for _, l := range a.pending {
		unsent[l.ID] = true
	}
	var resumed []Lease
	for _, e := range q.leases.all() {
		if e.holder == old {
			e.holder = a
			if !unsent[e.lease] {
				resumed = append(resumed, Lease{ID: e.lease, Record: e.record, Attempt: e.attempt(), Deadline: q.start.Add(e.due), LastFailure: e.failure()})
			}
		}
	}
	old.messages, old.bytes, old.pending, old.token = 0, 0, nil, ""
	q.attachments[slices.Index(q.attachments, old)] = a
	if len(a.pending) > 0 {
		wake(a.ready)
	}
	q.dispatch()
	return a, resumed, nil
}

func newToken() string {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Token resumes the attachment after Detach.
func (a *Attachment) Token() string { return a.token }

// Next waits until events are lent to a, or leases are revoked, and gives
// them. It fails when ctx ends, or when the attachment has ended.
func (a *Attachment) Next(ctx context.Context) ([]Lease, []Revocation, error) {
	return a.NextInto(ctx, nil)
}

// NextInto is Next. done is memory for leases to come: what an earlier call gave and the
// caller has no use for any more, or nil.
func (a *Attachment) NextInto(ctx context.Context, done []Lease) ([]Lease, []Revocation, error) {
	clear(done)
	for {
		a.queue.mu.Lock()
		leases, revoked, ended := a.pending, a.revoked, a.ended
		a.pending, a.revoked = nil, nil
		if len(leases) > 0 { // else it waits, and holds none
			a.pending = done[:0]
		}
		a.queue.mu.Unlock()
		if len(leases) > 0 || len(revoked) > 0 {
			return leases, revoked, nil
		}
		if ended != nil {
			return nil, nil, ended
		}
		select {
		case <-a.ready:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// Settle is Queue.Settle, and takes in the same step what may be lent to a next, as
// Next would: as many as there is room for behind next's length. Who goes on with
// that need not be woken for it.
func (a *Attachment) Settle(settlements []Settlement, next []Lease) ([]Result, []Lease) {
	q := a.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	results := q.settleAll(settlements, &Ticket{})
	q.lend()
	n := min(len(a.pending), cap(next)-len(next))
	next = append(next, a.pending[:n]...)
	a.pending = slices.Delete(a.pending, 0, n)
	q.wakeBorrowers()
	q.checkRoom()
	return results, next
}

// SetWindow changes the window. A smaller one takes nothing back.
func (a *Attachment) SetWindow(w Window) {
	if w.Bytes <= 0 {
		w.Bytes = DefaultWindowBytes
	}
	a.queue.mu.Lock()
	defer a.queue.mu.Unlock()
	a.window = w
	a.queue.dispatch()
}

// Outstanding is how many events a has and has not settled.
func (a *Attachment) Outstanding() int {
	a.queue.mu.Lock()
	defer a.queue.mu.Unlock()
	return a.messages
}

// Detach ends a. Its leases go back at once, or after grace unless Attach with
// its token comes first.
func (a *Attachment) Detach(grace time.Duration) {
	q := a.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if a.token == "" || !slices.Contains(q.attachments, a) {
		return // taken over, or gone before
	}
	a.window = Window{}
	if grace <= 0 || a.messages == 0 || q.draining {
		q.release(a)
		return
	}
	a.detached = time.AfterFunc(grace, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if slices.Contains(q.attachments, a) {
			q.release(a)
		}
	})
}

// Leave ends a but leaves its leases running: they are settled by id, or run
// out. This is how a pull ends. What was lent and not read goes back: nobody
// has its id.
func (a *Attachment) Leave() {
	q := a.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.attachments, a); i >= 0 {
		q.attachments = slices.Delete(q.attachments, i, i+1)
	}
	a.window = Window{}
	for _, l := range a.pending {
		if e := q.leases.get(l.ID); e != nil {
			q.unlend(e.tracker.home, e)
		}
	}
	a.pending = nil
	q.dispatch()
}

// Return gives leases back that nobody saw: they are lent again and were no attempt.
func (a *Attachment) Return(leases []Lease) {
	q := a.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	a.giveBack(leases)
	q.dispatch()
}

// Decline is Return for want of room: nothing more is lent to a until the next
// SetWindow. A consumer still at work on events whose leases it lost counts them
// and the queue does not; without this the two would hand one event to and fro.
func (a *Attachment) Decline(leases []Lease) {
	q := a.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	a.giveBack(leases)
	a.window.Messages = min(a.window.Messages, a.messages)
	q.dispatch()
}

func (a *Attachment) giveBack(leases []Lease) {
	for _, l := range leases {
		if e := a.queue.leases.get(l.ID); e != nil {
			a.queue.unlend(e.tracker.home, e)
		}
	}
}

// release takes every lease of a back, to be lent again at once. q.mu is held.
func (q *Queue) release(a *Attachment) {
	if i := slices.Index(q.attachments, a); i >= 0 {
		q.attachments = slices.Delete(q.attachments, i, i+1)
	}
	for _, e := range q.leases.all() {
		switch {
		case e.holder != a:
		case a.unsend(e.lease):
			q.unlend(e.tracker.home, e)
		default:
			q.metrics.settled("disconnected", 1)
			q.failed(e.tracker.home, e, "the client went away without settling the event", 0)
		}
	}
	a.pending = nil
	q.dispatch()
	q.signal()
}

func (a *Attachment) hasRoom(size int64) bool {
	return a.messages < a.window.Messages && (a.messages == 0 || a.bytes+size <= a.window.Bytes)
}

// unsend takes id out of what a has not read yet; false if a has read it. The queue's lock is held.
func (a *Attachment) unsend(id ID) bool {
	i := slices.IndexFunc(a.pending, func(l Lease) bool { return l.ID == id })
	if i < 0 {
		return false
	}
	a.pending = slices.Delete(a.pending, i, i+1)
	return true
}

// revoke tells a that id is not its own any more. The queue's lock is held.
func (a *Attachment) revoke(id ID, reason string) {
	if len(a.revoked) < maxRevocations {
		a.revoked = append(a.revoked, Revocation{id, reason})
	}
	wake(a.ready)
}

// end makes Next fail once everything before is read. The queue's lock is held.
func (a *Attachment) end(err error) {
	a.ended = err
	wake(a.ready)
}
