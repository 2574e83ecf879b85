// Package link is a TCP connection that can be made bad on purpose: between
// gateways and Kafka, and between clients and gateways, when the promises are
// tried with real processes. A link forwards bytes; on command it holds them in
// one direction or in both (nothing is lost, as when a network is away and comes
// back: TCP sends it again), lets them through slowly, or resets every connection,
// in the middle of what is being sent if wanted. It knows no protocol.
package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// chunk bounds what a link holds for each direction of a connection.
const chunk = 16 << 10

// dialPatience is how long the far side may take to accept.
const dialPatience = 5 * time.Second

// Direction of bytes.
type Direction int

// The directions: from who dialled to who is dialled, and back.
const (
	There Direction = iota
	Back
)

// Link listens, and forwards what it accepts.
type Link struct {
	listener net.Listener
	to       string
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu    sync.Mutex
	pairs map[*pair]struct{}
	ways  [2]way
}

// way is the state of one direction.
type way struct {
	open  chan struct{} // closed while bytes may pass
	delay time.Duration // before each chunk
	rate  int           // bytes a second; 0: as many as come
	left  int64         // bytes until all connections are reset; below 0: no reset is due
}

// pair is one connection: what was accepted, and what was dialled for it.
type pair struct{ near, far net.Conn }

// New listens on address ("127.0.0.1:0" for a free port) and forwards to another.
func New(address, to string) (*Link, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for a link to %s: %w", to, err)
	}
	k := &Link{listener: l, to: to, pairs: map[*pair]struct{}{}}
	k.ctx, k.stop = context.WithCancel(context.Background())
	for d := range k.ways {
		open := make(chan struct{})
		close(open)
		k.ways[d] = way{open: open, left: -1}
	}
	k.running.Go(k.accept)
	return k, nil
}

// Address is where the link listens.
func (k *Link) Address() string { return k.listener.Addr().String() }

// Close ends the link and every connection through it, and waits for them.
func (k *Link) Close() error {
	k.stop()
	err := k.listener.Close()
	k.Reset()
	k.running.Wait()
	return err
}

// Cut holds the bytes of the directions given until Mend. Connections stay.
func (k *Link) Cut(directions ...Direction) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range directions {
		select {
		case <-k.ways[d].open:
			k.ways[d].open = make(chan struct{})
		default: // it is cut
		}
	}
}

// Slow delays each piece of up to 16 KiB, and lets at most so many bytes a second
// (0: any number) through each connection and direction, until Mend.
func (k *Link) Slow(delay time.Duration, bytesPerSecond int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for d := range k.ways {
		k.ways[d].delay, k.ways[d].rate = delay, bytesPerSecond
	}
}

// ResetAfter resets every connection once so many more bytes have passed in a
// direction, wherever in a message that is.
func (k *Link) ResetAfter(d Direction, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ways[d].left = max(bytes, 0)
}

// Reset resets every connection now. New ones are accepted.
func (k *Link) Reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p := range k.pairs {
		p.reset()
	}
}

// Mend ends Cut, Slow and a reset that has not come yet.
func (k *Link) Mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for d := range k.ways {
		w := &k.ways[d]
		select {
		case <-w.open:
		default:
			close(w.open)
		}
		w.delay, w.rate, w.left = 0, 0, -1
	}
}

func (p *pair) reset() {
	for _, c := range []net.Conn{p.near, p.far} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a connection that is gone needs no reset
		}
		_ = c.Close() // the pumps see it
	}
}

func (k *Link) accept() {
	for {
		near, err := k.listener.Accept()
		if err != nil {
			if k.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // one that was reset before it was accepted
		}
		k.running.Go(func() { k.carry(near) })
	}
}

func (k *Link) carry(near net.Conn) {
	dialer := net.Dialer{Timeout: dialPatience}
	far, err := dialer.DialContext(k.ctx, "tcp", k.to)
	if err != nil { // what is not there refuses
		(&pair{near, near}).reset()
		return
	}
	p := &pair{near, far}
	k.mu.Lock()
	k.pairs[p] = struct{}{}
	k.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { k.pump(p, There, near, far) })
	both.Go(func() { k.pump(p, Back, far, near) })
	both.Wait()
	k.mu.Lock()
	delete(k.pairs, p)
	k.mu.Unlock()
	_ = near.Close() // both ends have ended
	_ = far.Close()
}

// pump carries one direction until its connection ends.
func (k *Link) pump(p *pair, d Direction, from, to net.Conn) {
	buffer := make([]byte, chunk)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !k.pass(d, buffer[:n], to) {
			p.reset()
			return
		}
		if err != nil {
			if tcp, ok := to.(*net.TCPConn); ok && k.wait(d) {
				_ = tcp.CloseWrite() // the other direction may go on
			}
			return
		}
	}
}

// pass writes b when it may; false ends the connection.
func (k *Link) pass(d Direction, b []byte, to net.Conn) bool {
	if !k.wait(d) {
		return false
	}
	k.mu.Lock()
	w := &k.ways[d]
	wait := w.delay
	if w.rate > 0 {
		wait += time.Duration(len(b)) * time.Second / time.Duration(w.rate)
	}
	due := false
	if w.left >= 0 {
		if w.left < int64(len(b)) {
			b, w.left, due = b[:w.left], -1, true
		} else {
			w.left -= int64(len(b))
		}
	}
	k.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-k.ctx.Done():
			return false
		}
	}
	if _, err := to.Write(b); err != nil {
		return false
	}
	if due {
		k.Reset()
	}
	return !due
}

// wait waits until d is open; false when the link is closed.
func (k *Link) wait(d Direction) bool {
	k.mu.Lock()
	open := k.ways[d].open
	k.mu.Unlock()
	select {
	case <-open:
		return k.ctx.Err() == nil
	case <-k.ctx.Done():
		return false
	}
}
