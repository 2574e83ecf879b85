package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/netutil"
)

// pipes is a listener in memory, which a bubble's clock sees through.
type pipes struct {
	offered chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newPipes() *pipes { return &pipes{offered: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.offered:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.offered <- server
	return client
}

// resting is a server whose idle connections rest, and how many net/http has of them.
type resting struct {
	*http.Server
	listener *restListener
	dial     func() net.Conn
	mu       sync.Mutex
	had      map[net.Conn]bool
}

func (r *resting) count() (served, rest int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listener.mu.Lock()
	defer r.listener.mu.Unlock()
	return len(r.had), len(r.listener.resting)
}

// serveResting serves until the test ends; most bounds the connections.
func serveResting(t *testing.T, most int, handler http.HandlerFunc) *resting {
	t.Helper()
	p := newPipes()
	r := &resting{listener: newRestListener(netutil.LimitListener(p, most)), dial: p.dial, had: map[net.Conn]bool{}}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	r.Server = &http.Server{Handler: handler, IdleTimeout: time.Minute, ReadHeaderTimeout: 10 * time.Second, Protocols: protocols, ConnState: func(c net.Conn, state http.ConnState) {
		noteIdle(c, state)
		r.mu.Lock()
		defer r.mu.Unlock()
		switch state {
		case http.StateNew:
			r.had[c] = true
		case http.StateClosed, http.StateHijacked:
			delete(r.had, c)
		}
	}}
	done := make(chan error)
	go func() { done <- r.Serve(r.listener) }()
	t.Cleanup(func() {
		_ = r.Close() // twice in some tests
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended: %v", err)
		}
	})
	return r
}

// client is one connection.
type client struct {
	net.Conn
	in *bufio.Reader
}

func (r *resting) connect(t *testing.T) *client {
	t.Helper()
	c := r.dial()
	t.Cleanup(func() { _ = c.Close() }) // some are already
	return &client{Conn: c, in: bufio.NewReader(c)}
}

func (c *client) ask(t *testing.T, text string) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c.answer(t)
}

func (c *client) answer(t *testing.T) string {
	t.Helper()
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it is read whole
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func (c *client) gone() bool {
	_, err := c.in.ReadByte()
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
}

const get = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"

func post(body string) string {
	return fmt.Sprintf("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (r *resting) want(t *testing.T, served, rest int) {
	t.Helper()
	synctest.Wait()
	if s, n := r.count(); s != served || n != rest {
		t.Fatalf("%d connections are served and %d rest, want %d and %d", s, n, served, rest)
	}
}

func TestAnIdleConnectionRestsAndItsNextRequestIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, echo)
		c := r.connect(t)
		for range 3 {
			if got := c.ask(t, post("one")); got != "POST /b one" {
				t.Fatalf("answered %q", got)
			}
			time.Sleep(restAfter - time.Millisecond)
			r.want(t, 1, 0)
			if got := c.ask(t, get); got != "GET /a " { // it is served where it is
				t.Fatalf("answered %q", got)
			}
			time.Sleep(restAfter + time.Millisecond)
			r.want(t, 0, 1)
		}
		large := strings.Repeat("x", 100_000)
		if got := c.ask(t, post(large)); got != "POST /b "+large {
			t.Fatalf("answered %d bytes", len(got))
		}
		r.want(t, 1, 0)
	})
}

func TestAConnectionThatRestsEndsWithItsIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 1, echo)
		c := r.connect(t)
		c.ask(t, get)
		time.Sleep(time.Minute - time.Millisecond)
		r.want(t, 0, 1)
		time.Sleep(2 * time.Millisecond)
		r.want(t, 0, 0)
		if !c.gone() {
			t.Error("it goes on")
		}
		r.connect(t).ask(t, get) // its place is free
	})
}

func TestAClientThatLeavesWhileItsConnectionRestsFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 1, echo)
		c := r.connect(t)
		c.ask(t, get)
		time.Sleep(2 * restAfter)
		r.want(t, 0, 1)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		r.want(t, 0, 0)
		r.connect(t).ask(t, get)
	})
}

func TestTheBeginningOfARequestIsNotLostToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, echo)
		c := r.connect(t)
		c.ask(t, get)
		// Less than net/http wants to see before it begins to read a request.
		if _, err := io.WriteString(c, get[:2]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * restAfter)
		r.want(t, 1, 0)
		if got := c.ask(t, get[2:]); got != "GET /a " {
			t.Fatalf("answered %q", got)
		}
		time.Sleep(2 * restAfter)
		r.want(t, 0, 1)
		if _, err := io.WriteString(c, get[:1]); err != nil { // wakes it
			t.Fatal(err)
		}
		time.Sleep(restAfter)
		if got := c.ask(t, get[1:]); got != "GET /a " {
			t.Fatalf("answered %q", got)
		}
	})
}

func TestHeadersThatComeSlowlyAreWaitedForAsEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, echo)
		c := r.connect(t)
		c.ask(t, get)
		head := "GET /a HTTP/1.1\r\nHost: x\r\nX-Long: "
		head += strings.Repeat("y", serverBuffer-len(head)) // the server's buffer is full, and then empty
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		time.Sleep(restAfter + 2*time.Second)
		r.want(t, 1, 0)
		if got := c.ask(t, "\r\n\r\n"); got != "GET /a " {
			t.Fatalf("answered %q", got)
		}
	})
}

func TestRequestsInARowOnOneConnectionAreAllAnswered(t *testing.T) {
	// What the server holds of the third request: part of a line, and a whole one.
	for _, held := range []int{2, 5, len("GET /a HTTP/1.1\r\n")} {
		synctest.Test(t, func(t *testing.T) {
			r := serveResting(t, 10, echo)
			c := r.connect(t)
			go io.WriteString(c, get+post("two")+get[:held]) //nolint:errcheck // seen by the answers
			for _, want := range []string{"GET /a ", "POST /b two"} {
				if got := c.answer(t); got != want {
					t.Fatalf("answered %q, want %q", got, want)
				}
			}
			time.Sleep(restAfter + time.Second)
			r.want(t, 1, 0)
			if got := c.ask(t, get[held:]); got != "GET /a " {
				t.Fatalf("answered %q", got)
			}
		})
	}
}

func TestARequestUnderWayDoesNotRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * restAfter)
			echo(w, r)
		})
		c := r.connect(t)
		for range 2 {
			if got := c.ask(t, get); got != "GET /a " {
				t.Fatalf("answered %q", got)
			}
			r.want(t, 1, 0)
		}
	})
}

func TestConnectionsOfHTTP2DoNotRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, echo)
		dialled := 0
		transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
			dialled++
			return r.dial(), nil
		}}
		transport.Protocols.SetUnencryptedHTTP2(true)
		defer transport.CloseIdleConnections()
		for range 3 {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/a", nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close() // the status is all
			time.Sleep(3 * restAfter)
			if _, rest := r.count(); rest != 0 || dialled != 1 || answer.ProtoMajor != 2 {
				t.Fatalf("%d rest, %d were opened, HTTP/%d", rest, dialled, answer.ProtoMajor)
			}
		}
	})
}

func TestAServerThatStopsEndsWhatRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := serveResting(t, 10, echo)
		var all []*client
		for range 5 {
			c := r.connect(t)
			c.ask(t, get)
			all = append(all, c)
		}
		time.Sleep(2 * restAfter)
		late := r.connect(t)
		late.ask(t, get)
		r.want(t, 1, 5)
		if err := r.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.want(t, 0, 0)
		for _, c := range append(all, late) {
			if !c.gone() {
				t.Error("a connection goes on")
			}
		}
	})
}
