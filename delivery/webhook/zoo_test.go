package webhook

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
)

// animal is a receiver that speaks TCP its own way.
type animal func(t *testing.T, c net.Conn, until <-chan struct{})

// serveAnimal listens; each connection is the animal's.
func serveAnimal(t *testing.T, a animal) (url string, connections *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections = &atomic.Int32{}
	until := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			all.Go(func() {
				defer c.Close() //nolint:errcheck // the animal may have closed it
				a(t, c, until)
			})
		}
	})
	t.Cleanup(func() { close(until); _ = l.Close(); all.Wait() })
	return "http://" + l.Addr().String(), connections
}

// read reads the request, and answers nothing.
func read(c net.Conn) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

// says answers with raw bytes and closes.
func says(answer string) animal {
	return func(_ *testing.T, c net.Conn, _ <-chan struct{}) {
		read(c)
		_, _ = io.WriteString(c, answer)
	}
}

// drips sends bytes one by one until it is cut off.
func drips(first, each string) animal {
	return func(_ *testing.T, c net.Conn, until <-chan struct{}) {
		read(c)
		_, _ = io.WriteString(c, first)
		for {
			if _, err := io.WriteString(c, each); err != nil {
				return
			}
			select {
			case <-until:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// TestWildReceiversCostOneAttemptAndNothingElse is the zoo at the level of TCP:
// whatever comes, the event is settled once, in time, with words for people.
func TestWildReceiversCostOneAttemptAndNothingElse(t *testing.T) {
	type cage struct {
		animal animal
		class  string
	}
	for name, c := range map[string]cage{
		"accepts and says nothing": {func(_ *testing.T, _ net.Conn, until <-chan struct{}) { <-until }, "timeout"},
		"reads and says nothing":   {func(_ *testing.T, c net.Conn, until <-chan struct{}) { read(c); <-until }, "timeout"},
		"closes at once":           {func(_ *testing.T, c net.Conn, _ <-chan struct{}) { _ = c.Close() }, "reset"},
		"closes half way through": {func(_ *testing.T, c net.Conn, _ <-chan struct{}) {
			_, _ = io.ReadFull(c, make([]byte, 10))
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
		}, "reset"},
		"closes its writing half": {func(_ *testing.T, c net.Conn, until <-chan struct{}) {
			read(c)
			_ = c.(*net.TCPConn).CloseWrite()
			<-until
		}, "reset"},
		"drips its status line":          {drips("HTTP/1.1 ", "2"), "timeout|reset"},
		"drips headers for ever":         {drips("HTTP/1.1 500 x\r\n", "X: y\r\n"), "timeout|reset"},
		"drips a body for ever":          {drips("HTTP/1.1 500 x\r\nContent-Length: 100000\r\n\r\n", "."), "status"},
		"continues for ever":             {drips("", "HTTP/1.1 100 Continue\r\n\r\n"), "timeout|reset"},
		"processes for ever":             {drips("", "HTTP/1.1 102 Processing\r\n\r\n"), "timeout|reset"},
		"has a million headers":          {says("HTTP/1.1 500 x\r\n" + strings.Repeat("X: y\r\n", 1<<17) + "\r\n"), "reset"},
		"has one header of a megabyte":   {says("HTTP/1.1 500 x\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n"), "reset"},
		"speaks another protocol":        {says("220 mail.example.com ESMTP\r\n"), "reset"},
		"speaks HTTP 0.9":                {says("<html>hello</html>"), "reset"},
		"has a status that is no number": {says("HTTP/1.1 abc def\r\n\r\n"), "reset"},
		"has a status of four digits":    {says("HTTP/1.1 5000 x\r\n\r\n"), "reset"},
		"has a length below zero":        {says("HTTP/1.1 500 x\r\nContent-Length: -5\r\n\r\n"), "reset"},
		"has two lengths":                {says("HTTP/1.1 500 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), "reset"},
		"has chunks that are none":       {says("HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello"), "status"},
		"has a chunk larger than memory": {says("HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffff\r\nhello"), "status"},
		"promises more than it sends":    {says("HTTP/1.1 500 x\r\nContent-Length: 100\r\n\r\nhalf"), "status"},
		"sends more than it promises":    {says("HTTP/1.1 500 x\r\nContent-Length: 4\r\n\r\nwholeHTTP/1.1 200 OK\r\n\r\n"), "status"},
		"switches protocols":             {says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), "status|reset"},
		"redirects to itself":            {says("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), "redirect"},
		"redirects without a place":      {says("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n"), "redirect"},
		"redirects to the metadata":      {says("HTTP/1.1 307 x\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n"), "redirect"},
		"says control bytes":             {says("HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\n\x1b[31m\x00\xff\r\n"), "status"},
		"splits a header":                {says("HTTP/1.1 500 x\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n"), "status|reset"},
		"answers before it was asked": {func(_ *testing.T, c net.Conn, _ <-chan struct{}) {
			_, _ = io.WriteString(c, "HTTP/1.1 500 early\r\nContent-Length: 0\r\n\r\n")
			read(c)
		}, "status|reset"},
		"asks for a password for ever":    {says("HTTP/1.1 401 x\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"), "status"},
		"sends a bomb that is not opened": {says("HTTP/1.1 500 x\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"), "status"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, connections := serveAnimal(t, c.animal)
			p := pusherTo(t, url, func(o *Options) { o.Timeout = 400 * time.Millisecond })
			l := newLender(t, record("k", "v"))
			began := time.Now()
			run(t, p, l)
			s := l.only()
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			if s.Word != delivery.Nack || s.Reason == "" || len(s.Reason) > endpoint.MaxExcerpt+256 || strings.ContainsAny(s.Reason, "\x1b\x00\r\n") {
				t.Errorf("settled as %+v", s)
			}
			if n := connections.Load(); n != 1 {
				t.Errorf("%d connections for one attempt", n)
			}
			if len(l.settled) != 0 {
				t.Error("it was settled twice")
			}
			// And what it was, as the log has it.
			o := carrierTo(t, url, func(o *Options) { o.Timeout = 400 * time.Millisecond }).Carry(t.Context(), parcel())
			if !strings.Contains("|"+c.class+"|", "|"+o.Class+"|") {
				t.Errorf("class %s, want %s: %s", o.Class, c.class, o.Why)
			}
		})
	}
}
