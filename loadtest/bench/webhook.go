package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// webhookKeys is how many keys the cells with a bad key have; the bad one is 0.
const webhookKeys = 32

const webhookSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

// sink is an endpoint inside the bench: what came, when, in which order.
type sink struct {
	server  *http.Server
	url     string
	handle  func(w http.ResponseWriter, r *http.Request, key string) bool // false: no receipt
	mu      sync.Mutex
	at      map[string]time.Time // by path and index, of the first receipt
	last    map[string]int       // by path and key
	ordered bool
	count   atomic.Int64
	reached map[int64]func() // by count
}

func newSink(handle func(w http.ResponseWriter, r *http.Request, key string) bool) (*sink, error) {
	s := &sink{handle: handle, at: map[string]time.Time{}, last: map[string]int{}, ordered: true, reached: map[int64]func(){}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.url = "http://" + l.Addr().String()
	s.server = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(l) }() // ends with Close
	return s, nil
}

func (s *sink) close() { _ = s.server.Close() }

func (s *sink) serve(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	_, _ = io.Copy(io.Discard, r.Body)
	key := r.Header.Get("Postern-Key")
	if s.handle != nil && !s.handle(w, r, key) {
		return
	}
	if index := r.Header.Get("Postern-Header-Index"); index != "" {
		s.receipt(r.URL.Path, key, index, at)
	}
	n := s.count.Add(1)
	s.mu.Lock()
	reached := s.reached[n]
	s.mu.Unlock()
	if reached != nil {
		reached()
	}
}

func (s *sink) receipt(path, key, index string, at time.Time) {
	i, err := strconv.Atoi(index)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.at[path+" "+index]; again {
		return
	}
	s.at[path+" "+index] = at
	if before, ok := s.last[path+" "+key]; ok && before > i {
		s.ordered = false
	}
	s.last[path+" "+key] = i
}

// when calls f once n requests have come.
func (s *sink) when(n int64, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached[n] = f
}

// pushing starts a gateway with these subscriptions, and with more of its configuration.
func (b *bench) pushing(ctx context.Context, subscriptions, more string) (*process, func(), error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte("topics_prefix: bench-state-"+strconv.FormatInt(time.Now().UnixNano(), 10)+"-\n"+more+"subscriptions:\n"+subscriptions), 0o600); err != nil {
		return nil, nil, err
	}
	p, err := start(ctx, "gateway", []string{
		b.s.gateway, "run", "--config", file, "--kafka-brokers", b.s.bootstrap, "--listen-http", "127.0.0.1:0", "--listen-grpc", "127.0.0.1:0",
		"--listen-admin", "127.0.0.1:0", "--telemetry-log-format", "text", "--drain-timeout", "2s",
	})
	stop := func() {
		_ = p.cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = p.in.Close()
		_ = p.cmd.Wait() // how it ends does not matter any more
		_ = os.RemoveAll(dir)
	}
	return p, stop, err
}

func subscriptionTo(name, topic, url, more string) string {
	return fmt.Sprintf("  - {name: %s, topics: [%s], webhook: {url: %q, allow_http: true, allow_loopback: true, secrets: [%s]%s}}\n", name, topic, url, webhookSecret, more)
}

// webhooks measures pushing.
func webhooks(ctx context.Context, s settings) error {
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Fprintln(os.Stderr, "warming the broker")
	if err := b.warm(ctx); err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, c := range []struct {
		name string
		run  func(context.Context, io.Writer) error
	}{
		{"webhook-raw", b.webhookRaw},
		{"webhook-latency", b.webhookLatency},
		{"webhook-slow-key", b.webhookBadKey("slow", func(http.ResponseWriter) bool { time.Sleep(200 * time.Millisecond); return true })},
		{"webhook-failing-key", b.webhookBadKey("failing", func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusInternalServerError); return false })},
		{"webhook-isolation", b.webhookIsolation},
	} {
		if strings.Contains(c.name, s.only) {
			if err := c.run(ctx, w); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			_ = w.Flush() // to the terminal
		}
	}
	return nil
}

// profileOf writes two seconds of a process's CPU profile.
func (b *bench) profileOf(p *process, name string) {
	answer, err := http.Get("http://" + p.admin + "/debug/pprof/profile?seconds=2")
	if err != nil {
		return // the profile is extra
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	profile, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode == http.StatusOK {
		_ = os.WriteFile(filepath.Join(b.s.profiles, name+".pprof"), profile, 0o600)
	}
}

// published is when each event was acknowledged.
type published struct {
	mu sync.Mutex
	at map[int]time.Time
}

// publishAt publishes events at a rate, over HTTP to the gateway, for a time; their indexes begin at first.
func publishAt(ctx context.Context, address, topic string, first, rate, keys int, length time.Duration) (*published, error) {
	out := &published{at: map[int]time.Time{}}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body := payload()
	n := int(length.Seconds() * float64(rate))
	began := time.Now()
	// One publisher for each key, so that the order of a key is the order of its indexes.
	var wait sync.WaitGroup
	failed := make(chan error, keys)
	for k := range keys {
		wait.Go(func() {
			for i := k; i < n && ctx.Err() == nil; i += keys {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/topics/"+topic+"/events", bytes.NewReader(body))
				if err != nil {
					failed <- err
					return
				}
				r.Header["Postern-Key"] = []string{strconv.Itoa(k)}
				r.Header["Postern-Header-Index"] = []string{strconv.Itoa(first + i)}
				r.Header["Content-Type"] = []string{"application/octet-stream"}
				if err := answeredOK(client.Do(r)); err != nil {
					failed <- err
					return
				}
				out.mu.Lock()
				out.at[first+i] = time.Now()
				out.mu.Unlock()
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return out, err
	default:
		return out, nil
	}
}

// answeredOK reads an answer, so that its connection is used again. One that is not 200 is an error.
func answeredOK(answer *http.Response, err error) error {
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close() // it was read
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %d", answer.StatusCode)
	}
	return nil
}

// latencies are from acknowledgement to receipt, of the events that counts takes; sorted.
func (s *sink) latencies(p *published, path string, counts func(i int) bool) (all []time.Duration, missing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, acked := range p.at {
		if !counts(i) {
			continue
		}
		at, ok := s.at[path+" "+strconv.Itoa(i)]
		if !ok {
			missing++
			continue
		}
		all = append(all, max(0, at.Sub(acked)))
	}
	slices.Sort(all)
	return all, missing
}

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return all[min(len(all)-1, int(q*float64(len(all))))]
}

// settle waits until the sink has what it must, or for a while.
func (s *sink) settle(ctx context.Context, p *published, path string, counts func(i int) bool, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, missing := s.latencies(p, path, counts); missing == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

const webhookRate = 500

// length of a cell at a rate: a minute, or what -quick leaves of it.
func (b *bench) webhookLength() time.Duration {
	return min(time.Minute, 30*b.s.cell)
}

func everything(int) bool { return true }

// atRate publishes to a gateway that pushes to s, warm, and tells the latencies of what counts takes.
func (b *bench) atRate(ctx context.Context, s *sink, name string, counts func(int) bool) (all []time.Duration, missing int, err error) {
	topic, err := b.topic(ctx)
	if err != nil {
		return nil, 0, err
	}
	p, stop, err := b.pushing(ctx, subscriptionTo(fmt.Sprintf("%s-%d", name, time.Now().UnixNano()), topic, s.url+"/", ""), "")
	if err != nil {
		return nil, 0, err
	}
	defer stop()
	warm, err := publishAt(ctx, p.http, topic, 0, webhookRate, webhookKeys, 2*time.Second)
	if err != nil {
		return nil, 0, err
	}
	s.settle(ctx, warm, "/", func(i int) bool { return i%webhookKeys != 0 }, 30*time.Second)
	s.mu.Lock()
	clear(s.at)
	clear(s.last)
	s.mu.Unlock()
	sent, err := publishAt(ctx, p.http, topic, 100*webhookKeys, webhookRate, webhookKeys, b.webhookLength())
	if err != nil {
		return nil, 0, err
	}
	s.settle(ctx, sent, "/", counts, time.Minute)
	all, missing = s.latencies(sent, "/", counts)
	return all, missing, nil
}

func (b *bench) webhookLatency(ctx context.Context, w io.Writer) error {
	s, err := newSink(nil)
	if err != nil {
		return err
	}
	defer s.close()
	all, missing, err := b.atRate(ctx, s, "latency", everything)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "scenario\tevents\tmissing\tp50\tp99\tp99.9")
	fmt.Fprintf(w, "webhook-latency %d/s\t%d\t%d\t%s\t%s\t%s\n", webhookRate, len(all), missing, quantile(all, 0.5).Round(10*time.Microsecond),
		quantile(all, 0.99).Round(10*time.Microsecond), quantile(all, 0.999).Round(10*time.Microsecond))
	return nil
}

// webhookBadKey compares the other keys' latencies without and with one key that is bad.
func (b *bench) webhookBadKey(name string, bad func(http.ResponseWriter) bool) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		others := func(i int) bool { return i%webhookKeys != 0 }
		fmt.Fprintln(w, "scenario\tbad key\tother keys' events\tmissing\tp50\tp99\torder kept")
		var ratios []float64
		for round := range b.s.rounds {
			var p99 [2]time.Duration
			for turn := range 2 {
				with := (turn+round)%2 == 1
				s, err := newSink(func(w http.ResponseWriter, _ *http.Request, key string) bool {
					return !with || key != "0" || bad(w)
				})
				if err != nil {
					return err
				}
				all, missing, err := b.atRate(ctx, s, name, others)
				s.close()
				if err != nil {
					return err
				}
				which := 0
				if with {
					which = 1
				}
				p99[which] = quantile(all, 0.99)
				fmt.Fprintf(w, "webhook-%s-key\t%v\t%d\t%d\t%s\t%s\t%v\n", name, with, len(all), missing, quantile(all, 0.5).Round(10*time.Microsecond), p99[which].Round(10*time.Microsecond), s.ordered)
			}
			ratios = append(ratios, float64(p99[1])/float64(p99[0]))
		}
		fmt.Fprintf(w, "webhook-%s-key\tratio\t\t\t\t%s\n", name, show(ratios))
		return nil
	}
}

// joined waits until so many groups whose names begin so have a member with partitions.
func (b *bench) joined(ctx context.Context, prefix string, groups int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		listed, err := b.admin.ListGroups(ctx, "Stable")
		if err != nil {
			return err
		}
		n := 0
		for _, g := range listed.Groups() {
			if strings.HasPrefix(g, prefix) {
				n++
			}
		}
		if n >= groups {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d groups are stable", n, groups)
		}
	}
}
