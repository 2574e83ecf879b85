//go:build synctests

package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// host is the machine a gateway runs on, as far as its network goes: it can be
// switched off, and cut off from Kafka while its clients still reach it.
type host struct {
	clients *kfake.VirtualNetwork // where it listens, and where webhooks are
	kafka   func(ctx context.Context, network, address string) (net.Conn, error)

	mu        sync.Mutex
	off       bool
	listeners []net.Listener
	conns     map[*hostConn]bool
	void      sync.WaitGroup
	voided    []net.Conn
	thawed    [2]chan struct{} // by direction: closed when that direction flows again; nil while it flows
}

// onTheWire is how long bytes to Kafka are on their way. Without it a client that asks
// again at once would do so for ever in the same moment.
const onTheWire = time.Millisecond

// Directions of a cut between a gateway and Kafka.
const (
	fromKafka = 0
	toKafka   = 1
)

func newHost(clients *kfake.VirtualNetwork, kafka func(ctx context.Context, network, address string) (net.Conn, error)) *host {
	return &host{clients: clients, kafka: kafka, conns: map[*hostConn]bool{}}
}

var errOff = errors.New("the host is switched off")

// errOffDial is what the client waits after before it tries again, as it does when a
// broker's machine is not there. After an error that is no dial's it does not wait
// (franz-go's InitProducerID in a sink's drain), and in simulated time that never ends.
var errOffDial = &net.OpError{Op: "dial", Net: "tcp", Err: errOff}

func (h *host) keep(conn net.Conn, kafka bool) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.off {
		_ = conn.Close() // nobody is there to use it
		return nil, errOffDial
	}
	c := &hostConn{Conn: conn, host: h, kafka: kafka, closed: make(chan struct{})}
	h.conns[c] = true
	return c, nil
}

func (h *host) dialKafka(ctx context.Context, network, address string) (net.Conn, error) {
	if err := h.flow(ctx, toKafka); err != nil {
		return nil, err
	}
	conn, err := h.kafka(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return h.keep(conn, true)
}

// flow waits until a direction is open; a dial needs one.
func (h *host) flow(ctx context.Context, direction int) error {
	h.mu.Lock()
	off, thawed := h.off, h.thawed[direction]
	h.mu.Unlock()
	if off {
		return errOffDial
	}
	if thawed == nil {
		return nil
	}
	select {
	case <-thawed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *host) dialWeb(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := h.clients.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return h.keep(conn, false)
}

func (h *host) listen(network, address string) (net.Listener, error) {
	l, err := h.clients.Listen(network, address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners = append(h.listeners, l)
	return &hostListener{l, h}, nil
}

type hostListener struct {
	net.Listener
	host *host
}

func (l *hostListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if kept, err := l.host.keep(conn, false); err == nil {
			return kept, nil
		}
	}
}

// switchOff is what kill -9 looks like from outside: everything is gone at once.
// Kafka is not told: the stand-in forgets to expire a member whose connection
// closes while it waits to join, so its side stays open and is read to nowhere.
func (h *host) switchOff() {
	h.mu.Lock()
	h.off = true
	listeners, conns := h.listeners, h.conns
	h.conns = map[*hostConn]bool{}
	for i, c := range h.thawed {
		if c != nil {
			close(c)
			h.thawed[i] = nil
		}
	}
	h.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // its accept loop ends
	}
	for c := range conns {
		if !c.kafka {
			_ = c.Conn.Close() // both ends see it
			continue
		}
		_ = c.Conn.SetDeadline(time.Unix(0, 0)) // a pipe takes any; who waits in it leaves
		h.void.Go(func() {
			time.Sleep(time.Millisecond)
			_ = c.Conn.SetDeadline(time.Time{})
			_, _ = io.Copy(io.Discard, c.Conn) // until Kafka closes it, or bury does
		})
		h.mu.Lock()
		h.voided = append(h.voided, c.Conn)
		h.mu.Unlock()
	}
}

// bury ends what switchOff left open.
func (h *host) bury() {
	h.mu.Lock()
	voided := h.voided
	h.mu.Unlock()
	for _, c := range voided {
		_ = c.Close() // nobody is there
	}
	h.void.Wait()
}

func (h *host) isOff() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.off
}

// freeze stops one direction of all traffic with Kafka; nothing is lost, and nothing arrives.
func (h *host) freeze(direction int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.thawed[direction] == nil && !h.off {
		h.thawed[direction] = make(chan struct{})
	}
}

func (h *host) thaw() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range h.thawed {
		if c != nil {
			close(c)
			h.thawed[i] = nil
		}
	}
}

// reset breaks the connections that match.
func (h *host) reset(match func(*hostConn) bool) {
	h.mu.Lock()
	var broken []*hostConn
	for c := range h.conns {
		if match(c) {
			broken = append(broken, c)
			delete(h.conns, c)
		}
	}
	h.mu.Unlock()
	for _, c := range broken {
		_ = c.Conn.Close() // both ends see it
	}
}

// hostConn is a connection of a host.
type hostConn struct {
	net.Conn
	host   *host
	kafka  bool
	closed chan struct{}
	once   sync.Once

	mu        sync.Mutex
	deadlines [2]time.Time
}

func (c *hostConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.host.mu.Lock()
	delete(c.host.conns, c)
	off := c.host.off
	c.host.mu.Unlock()
	if off && c.kafka {
		return nil // see switchOff
	}
	return c.Conn.Close()
}

// pass waits while a direction is frozen, as long as the deadline allows.
func (c *hostConn) pass(direction int) error {
	if !c.kafka {
		return nil
	}
	c.host.mu.Lock()
	off, thawed := c.host.off, c.host.thawed[direction]
	c.host.mu.Unlock()
	if off {
		return errOff
	}
	if thawed == nil {
		return nil
	}
	c.mu.Lock()
	deadline := c.deadlines[direction]
	c.mu.Unlock()
	var late <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-thawed:
		return nil
	case <-late:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
}

func (c *hostConn) Read(b []byte) (int, error) {
	if err := c.pass(fromKafka); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if passed := c.pass(fromKafka); passed != nil && err == nil {
		return 0, passed
	}
	return n, err
}

func (c *hostConn) Write(b []byte) (int, error) {
	if err := c.pass(toKafka); err != nil {
		return 0, err
	}
	if c.kafka {
		time.Sleep(onTheWire)
	}
	return c.Conn.Write(b)
}

func (c *hostConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadlines = [2]time.Time{t, t}
	c.mu.Unlock()
	if c.host.isOff() {
		return errOff
	}
	return c.Conn.SetDeadline(t)
}

func (c *hostConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadlines[fromKafka] = t
	c.mu.Unlock()
	if c.host.isOff() {
		return errOff
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *hostConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadlines[toKafka] = t
	c.mu.Unlock()
	if c.host.isOff() {
		return errOff
	}
	return c.Conn.SetWriteDeadline(t)
}
