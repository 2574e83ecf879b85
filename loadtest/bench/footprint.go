package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// footprint measures what the gateway costs beside its events: how soon it is
// ready, its memory when idle, what an idle connection costs, and whether an
// event costs more with many topics or many connections.
func footprint(ctx context.Context, s settings) error {
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer func() { b.close() }()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tvalue")
	binary, err := os.Stat(s.gateway)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "binary, stripped\t%.1f MiB\n", float64(binary.Size())/(1<<20))

	var ready []time.Duration
	var idle []int64
	for range s.rounds {
		took, rss, err := startOnce(ctx, s)
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		ready, idle = append(ready, took), append(idle, rss)
	}
	slices.Sort(ready)
	slices.Sort(idle)
	fmt.Fprintf(w, "from exec to /readyz\t%s (%s-%s)\n", ready[len(ready)/2].Round(time.Millisecond), ready[0].Round(time.Millisecond), ready[len(ready)-1].Round(time.Millisecond))
	fmt.Fprintf(w, "RSS idle, 13 s after\t%d MiB (%d-%d)\n", idle[len(idle)/2], idle[0], idle[len(idle)-1])

	p := b.contenders["gateway"]
	if err := b.warm(ctx); err != nil {
		return err
	}
	// Per-event cost with one topic and with a thousand, in turns.
	var many []string
	for range 1000 {
		many = append(many, fmt.Sprintf("bench-many-%d-%d", time.Now().UnixNano(), len(many)))
	}
	if err := b.makeTopics(ctx, 1, many...); err != nil {
		return err
	}
	costOf := func(p *process, topics []string) (float64, error) {
		before, _, err := p.usage()
		if err != nil {
			return 0, err
		}
		n, _, err := publishTopics(ctx, p.http, topics, 16, s.cell)
		if err != nil {
			return 0, err
		}
		after, _, err := p.usage()
		return (after - before) / float64(n) * 1e6, err
	}
	cost := func(topics []string) (float64, error) { return costOf(p, topics) }
	floor := b.contenders["floor"]
	for _, p := range []*process{p, floor} { // the first event of each topic waits for its metadata: each of a thousand callers takes one
		if n, _, err := publishTopics(ctx, p.http, many, len(many), 2*time.Second); err != nil || n < int64(len(many)) {
			return fmt.Errorf("warm %d topics: %d: %w", len(many), n, err)
		}
		for range 2 { // and once in the measured way, while the broker still writes its new logs
			if _, err := costOf(p, many); err != nil {
				return err
			}
		}
	}
	growth := func(label string, one, other func() (float64, error)) error {
		var ratios, base []float64
		for range s.rounds {
			a, err1 := one()
			b, err2 := other()
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			ratios, base = append(ratios, b/a), append(base, a)
		}
		fmt.Fprintf(w, "%s\t%s x of %s CPU s/M\n", label, show(ratios), show(base))
		return nil
	}
	profiled := func(name string, topics []string) func() (float64, error) {
		return func() (float64, error) {
			done, err := b.profile(ctx, scenario{name: name}, "gateway")
			if err != nil {
				return 0, err
			}
			c, err := cost(topics)
			return c, errors.Join(err, done())
		}
	}
	few := profiled("topics-1", many[:1])
	if err := growth("CPU per event over HTTP, 16 callers, 1,000 topics against 1", few, profiled("topics-1000", many)); err != nil {
		return err
	}
	if err := growth("the same of the floor: what the Kafka client makes of it", func() (float64, error) { return costOf(floor, many[:1]) },
		func() (float64, error) { return costOf(floor, many) }); err != nil {
		return err
	}
	if err := growth("gateway against floor at 1,000 topics", func() (float64, error) { return costOf(floor, many) }, func() (float64, error) { return cost(many) }); err != nil {
		return err
	}
	const http1, http2 = "OPTIONS /v1/topics/x/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		name, contender, hello string
		address                func(*process) string
	}{
		{"HTTP connection", "gateway", http1, func(p *process) string { return p.http }},
		{"HTTP connection of the floor", "floor", http1, func(p *process) string { return p.http }},
		{"gRPC connection", "gateway", http2, func(p *process) string { return p.grpc }},
	} {
		n := idleConns()
		// A process of its own for each, so that no memory is there to use again.
		b.close()
		if b, err = newBench(ctx, s); err != nil {
			return err
		}
		p := b.contenders[c.contender]
		topic, err := b.topicOf(ctx, 1) // the others went with the bench that made them
		if err != nil {
			return err
		}
		alone, err := costOf(p, []string{topic})
		if err != nil {
			return err
		}
		_, before, err := p.usage()
		if err != nil {
			return err
		}
		conns, err := openIdle(c.address(p), c.hello, n)
		if err != nil {
			return fmt.Errorf("idle %s: %w", c.name, err)
		}
		time.Sleep(settle)
		_, after, err := p.usage()
		if err != nil {
			return err
		}
		with, err := costOf(p, []string{topic})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "RSS of an idle %s, of %d\t%.1f KiB\n", c.name, n, float64(after-before)*1024/float64(n))
		fmt.Fprintf(w, "CPU per event over HTTP, 16 callers, %d of them idle against none\t%.2f x\n", n, with/alone)
		for _, conn := range conns {
			_ = conn.Close() // it was idle
		}
	}
	return w.Flush()
}

// idleConns is how many idle connections are opened: 10,000, or what the limit of
// open files allows this process and the gateway, each of which has them all.
func idleConns() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 10_000
	}
	limit.Cur = limit.Max                                // children get it as well; Go has raised its own
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // else what is left is used
	return min(10_000, int(limit.Cur)-1000)
}

// settle is how long the gateway takes to notice that there is nothing to do.
const settle = 13 * time.Second

// startOnce starts a gateway of its own and tells when it was ready and what it weighs when it has settled.
func startOnce(ctx context.Context, s settings) (time.Duration, int64, error) {
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	address := admin.Addr().String()
	if err := admin.Close(); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	p, err := start(ctx, "gateway", []string{
		s.gateway, "run", "--kafka-brokers", s.bootstrap, "--listen-http", "127.0.0.1:0", "--listen-grpc", "127.0.0.1:0", "--listen-admin", address, "--telemetry-log-format", "text",
	})
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		_ = p.in.Close()
		_ = p.cmd.Wait() // how it ends does not matter any more
	}()
	for {
		answer, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			_ = answer.Body.Close() // the status is all
			if answer.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Since(began) > 30*time.Second {
			return 0, 0, errors.New("it is not ready after 30s")
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	time.Sleep(settle)
	_, rss, err := p.usage()
	return took, rss, err
}

// openIdle opens connections that have said hello and been answered.
func openIdle(address, hello string, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, 0, n)
	answer := make([]byte, 4096)
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return conns, err
		}
		if _, err := io.WriteString(c, hello); err != nil {
			return conns, err
		}
		if _, err := c.Read(answer); err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// publishTopics posts plain events, each to the next topic.
func publishTopics(ctx context.Context, address string, topics []string, callers int, length time.Duration) (int64, []time.Duration, error) {
	body := payload()
	return each(ctx, scenario{callers: callers}, length, func(_ context.Context, caller, i int) (int, error) {
		topic := topics[(caller+i*callers)%len(topics)]
		c, err := idleConn(caller, address)
		if err != nil {
			return 0, err
		}
		head := fmt.Sprintf("POST /v1/topics/%s/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\nPostern-Key: %s\r\nContent-Length: %d\r\n\r\n", topic, key(i), len(body))
		if _, err := c.conn.Write(append([]byte(head), body...)); err != nil {
			return 0, err
		}
		answer, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return 0, err
		}
		text, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err != nil {
			return 0, err
		}
		if answer.StatusCode != http.StatusOK || !bytes.Contains(text, []byte("offset")) {
			return 0, fmt.Errorf("answered %d: %s", answer.StatusCode, text)
		}
		return 1, nil
	})
}

// kept is a caller's connection, kept from cell to cell.
type kept struct {
	conn net.Conn
	in   *bufio.Reader
}

type keptKey struct {
	address string
	caller  int
}

var (
	keptMu    sync.Mutex
	keptConns = map[keptKey]*kept{}
)

func idleConn(caller int, address string) (*kept, error) {
	keptMu.Lock()
	defer keptMu.Unlock()
	at := keptKey{address, caller}
	if keptConns[at] == nil {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		keptConns[at] = &kept{conn, bufio.NewReader(conn)}
	}
	return keptConns[at], nil
}
