package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// echo answers what it is sent until its peer is done.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // until the peer is done, or reset
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func linked(t *testing.T) (*Link, net.Conn) {
	t.Helper()
	k, err := New("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	c, err := net.Dial("tcp", k.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return k, c
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("heard %q (%v), not %q", got, err, want)
	}
}

func hearNothing(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("%d bytes passed a link that was cut (%v)", n, err)
	}
}

func TestBytesPassUnchangedAndTheEndPassesToo(t *testing.T) {
	_, c := linked(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	go func() {
		_, _ = c.Write(want) // the reader finds what is missing
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes came back (%v)", len(got), len(want), err)
	}
}

func TestWhatIsHeldByACutComesAfterIt(t *testing.T) {
	for name, ways := range map[string][]Direction{"there": {There}, "back": {Back}, "both": {There, Back}} {
		t.Run(name, func(t *testing.T) {
			k, c := linked(t)
			say(t, c, "one")
			hear(t, c, "one")
			k.Cut(ways...)
			k.Cut(ways...) // twice is once
			say(t, c, "two")
			hearNothing(t, c)
			k.Mend()
			hear(t, c, "two")
		})
	}
}

func TestAResetComesInTheMiddleOfAMessage(t *testing.T) {
	k, c := linked(t)
	k.ResetAfter(Back, 4)
	say(t, c, "0123456789")
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) || len(got) > 4 {
		t.Fatalf("%q came before %v", got, err)
	}
	next, err := net.Dial("tcp", k.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close() //nolint:errcheck // the test is over
	say(t, next, "again")
	hear(t, next, "again")
}

func TestASlowLinkTakesItsTime(t *testing.T) {
	k, c := linked(t)
	k.Slow(50*time.Millisecond, 10_000)
	began := time.Now()
	say(t, c, "0123456789")
	hear(t, c, "0123456789")
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("there and back took %s", took)
	}
}

func TestWhereNothingListensALinkRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	k, err := New("127.0.0.1:0", address)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close() //nolint:errcheck // the test is over
	c, err := net.Dial("tcp", k.Address())
	if errors.Is(err, syscall.ECONNRESET) {
		return // it was even sooner
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test is over
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func TestClosingALinkThatIsCutEndsItsConnections(t *testing.T) {
	k, c := linked(t)
	k.Cut(There, Back)
	say(t, c, "held")
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the end looked orderly")
	}
}
