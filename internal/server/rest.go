package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// An idle HTTP/1.1 connection costs net/http 18 KiB: a goroutine with a grown stack, and a
// buffer of 4 KiB each way. One that has been idle for restAfter is taken from the server,
// which is told that it ended, and rests with a goroutine that waits for one byte. When that
// comes, the server accepts the connection again, as a new one. Clients see none of it.
const (
	restAfter = 5 * time.Second
	// serverBuffer is how much net/http asks to read when it holds nothing that it has
	// not used. Were it to change, no connection would rest (TestAnIdleConnectionRests...).
	serverBuffer = 4096
	// nextRequest is how many bytes net/http waits for before it reads a request and
	// sets the time for that.
	nextRequest = 4
)

// restListener accepts connections, and those that have rested.
type restListener struct {
	net.Listener
	conns  chan accepted
	closed chan struct{}
	once   sync.Once
	err    error // of Close

	mu      sync.Mutex
	resting map[*restConn]struct{} // nil: closed
}

type accepted struct {
	conn net.Conn
	err  error
}

// newRestListener takes l over. The server's ConnState must be noteIdle.
func newRestListener(l net.Listener) *restListener {
	r := &restListener{Listener: l, conns: make(chan accepted), closed: make(chan struct{}), resting: map[*restConn]struct{}{}}
	go r.accept() // ends with Close
	return r
}

// noteIdle is an http.Server's ConnState.
func noteIdle(c net.Conn, state http.ConnState) {
	if r, ok := c.(*restConn); ok {
		phase := busy
		if state == http.StateIdle {
			phase = answered
		}
		r.phase.Store(phase)
	}
}

func (l *restListener) accept() {
	for {
		c, err := l.Listener.Accept()
		var a accepted
		if a.err = err; err == nil {
			a.conn = &restConn{Conn: c, listener: l}
		}
		select {
		case l.conns <- a:
		case <-l.closed:
			if err == nil {
				_ = c.Close() // nobody takes it any more
			}
			return
		}
	}
}

func (l *restListener) Accept() (net.Conn, error) {
	select {
	case a := <-l.conns:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close also ends the connections that rest.
func (l *restListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.err = l.Listener.Close()
		l.mu.Lock()
		resting := l.resting
		l.resting = nil
		l.mu.Unlock()
		for c := range resting {
			_ = c.Conn.Close() // it was idle
		}
	})
	return l.err
}

// rest has c wait for its next request until its idle time is over.
func (l *restListener) rest(c *restConn) {
	l.mu.Lock()
	open := l.resting != nil
	if open {
		l.resting[c] = struct{}{}
	}
	l.mu.Unlock()
	if !open || c.Conn.SetReadDeadline(c.until) != nil {
		_ = c.Conn.Close() // the server is stopping, or it is broken
		l.forget(c)
		return
	}
	go c.wait()
}

func (l *restListener) forget(c *restConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.resting, c)
}

// wait ends with the first byte, or with the connection.
func (c *restConn) wait() {
	n, err := c.Conn.Read(c.first[:])
	c.listener.forget(c)
	if n == 0 || err != nil || c.Conn.SetReadDeadline(time.Time{}) != nil {
		_ = c.Conn.Close() // it was idle
		return
	}
	c.rested = true
	select {
	case c.listener.conns <- accepted{conn: c}:
	case <-c.listener.closed:
		_ = c.Conn.Close() // as an idle one
	}
}

// restConn is a connection as net/http has it, from its opening or from its waking on.
type restConn struct {
	net.Conn
	listener *restListener
	until    time.Time // when the server would end it, idle as it is; zero: never
	phase    atomic.Int32
	left     atomic.Bool // the server has it no more: it rests, or is closed
	known    bool        // whether it is http1 is known
	http1    bool
	rested   bool    // first is to be read
	first    [1]byte // what woke it
}

// Phases of a connection. net/http sets the time to read twice after an answer: for the
// wait, and when the next request begins, which may be in its buffer already.
const (
	busy     int32 = iota
	answered       // and the time for the wait is not set
	waiting        // for the next request, until or restAfter
)

// Read ends, for the server, a connection that is idle for restAfter.
func (c *restConn) Read(p []byte) (int, error) {
	if c.rested && len(p) > 0 {
		c.rested = false
		p[0] = c.first[0]
		return 1, nil
	}
	for {
		n, err := c.Conn.Read(p)
		if n > 0 {
			if n < nextRequest && c.phase.Load() == waiting {
				err = errors.Join(err, c.Conn.SetReadDeadline(c.until))
			}
			c.phase.Store(busy)
			if !c.known { // a client that speaks HTTP/2 says so first
				c.known, c.http1 = true, n >= 3 && !bytes.HasPrefix(p, []byte("PRI"))
			}
		}
		if c.phase.Load() != waiting || !errors.Is(err, os.ErrDeadlineExceeded) || !c.until.IsZero() && !time.Now().Before(c.until) {
			return n, err
		}
		if len(p) == serverBuffer && c.left.CompareAndSwap(false, true) {
			c.listener.rest(&restConn{Conn: c.Conn, listener: c.listener, until: c.until, known: true, http1: true})
			return 0, io.EOF
		}
		if err := c.Conn.SetReadDeadline(c.until); err != nil { // the server holds the beginning of a request
			return 0, err
		}
	}
}

func (c *restConn) SetReadDeadline(t time.Time) error {
	switch {
	case c.phase.CompareAndSwap(waiting, busy):
	case c.http1 && c.phase.CompareAndSwap(answered, waiting):
		c.until = t
		if rest := time.Now().Add(restAfter); t.IsZero() || rest.Before(t) {
			t = rest
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// Close leaves a connection alone that rests.
func (c *restConn) Close() error {
	if !c.left.CompareAndSwap(false, true) {
		return nil
	}
	return c.Conn.Close()
}
