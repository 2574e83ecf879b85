package broker

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// patience says how long a consumer's fetches wait at the broker for their first
// byte. A byte ends the wait, but a partition that is resumed meanwhile waits for
// the next fetch; so only one that has had nothing for a while, and has paused
// nothing, waits long. Thousands of idle subscriptions then ask ten times less.
//
// The client has one wait for all fetches, so the number is put into the requests
// on their way out.
type patience struct {
	came   atomic.Int64 // when something came, in nanoseconds of Unix time
	paused func() bool  // whether a partition is paused

	mu    sync.Mutex
	over  bool // no connection is opened any more
	conns map[*patientConn]bool
}

const (
	fetchMaxWait = 500 * time.Millisecond
	// fetchLongWait is the client's own default.
	fetchLongWait = 5 * time.Second
	// calmAfter is how long nothing must have come.
	calmAfter = 10 * time.Second
)

// note remembers that something came.
func (p *patience) note() { p.came.Store(time.Now().UnixNano()) }

// calm reports whether a fetch may wait long.
func (p *patience) calm() bool {
	return time.Now().UnixNano()-p.came.Load() > int64(calmAfter) && !p.paused()
}

// dial wraps connections, so that their fetches wait as p says.
func (p *patience) dial(dial Dial) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &patientConn{conn, p}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.over {
			_ = conn.Close() // nobody is to use it
			return nil, errOver
		}
		p.conns[c] = true
		return c, nil
	}
}

// errOver is an error that the client does not try again after.
var errOver = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EPERM}

// end breaks the member's connections and refuses new ones.
func (p *patience) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	for c := range p.conns {
		_ = c.Conn.Close() // that is what is asked for
	}
}

// Close closes the connection.
func (c *patientConn) Close() error {
	c.patience.mu.Lock()
	delete(c.patience.conns, c)
	c.patience.mu.Unlock()
	return c.Conn.Close()
}

type patientConn struct {
	net.Conn
	patience *patience
}

// Write writes a request, as the client does with one call for each.
func (c *patientConn) Write(request []byte) (int, error) {
	if at := maxWaitAt(request); at > 0 && c.patience.calm() {
		request = slices.Clone(request) // it is the caller's
		binary.BigEndian.PutUint32(request[at:], uint32(fetchLongWait.Milliseconds()))
	}
	return c.Conn.Write(request)
}

const keyFetch = 1

// maxWaitAt finds MaxWaitMs in b if b is a whole Fetch request of version 12 or
// later (header version 2), with no tagged fields in its header, and the client's
// own wait; else 0, and b is left as it is.
// (https://kafka.apache.org/protocol.html#The_Messages_Fetch)
func maxWaitAt(b []byte) int {
	const fixed = 4 + 2 + 2 + 4 + 2 // size, key, version, correlation id, the client id's length
	if len(b) < fixed || int(binary.BigEndian.Uint32(b)) != len(b)-4 || binary.BigEndian.Uint16(b[4:]) != keyFetch {
		return 0
	}
	version := binary.BigEndian.Uint16(b[6:])
	if version < 12 {
		return 0
	}
	at := fixed + max(0, int(int16(binary.BigEndian.Uint16(b[12:])))) + 1 // the client id, and how many tagged fields
	if version < 15 {
		at += 4 // the replica's id
	}
	if len(b) < at+4 || binary.BigEndian.Uint32(b[at:]) != uint32(fetchMaxWait.Milliseconds()) {
		return 0
	}
	return at
}
