package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// scenario is one row of the speed tables. The first contender is what the others are measured by.
type scenario struct {
	name       string
	contenders []string
	kind       string // http, grpc, stream; drain, decode, sse, pull, handlers; latency
	callers    int
	batch      int
	rate       int // events a second, at their appointed times; 0: as fast as answers come
}

// processOf names the process that a contender is; "plain" is the gateway, given
// plain payloads, where the contender called gateway is given something dearer.
func processOf(contender string) string {
	switch contender {
	case "plain", byStream, byChannel, byClient:
		return "gateway"
	}
	return contender
}

var all = []scenario{
	{name: "http-1", contenders: []string{"floor", "gateway"}, kind: "http", callers: 1, batch: 1},
	{name: "http-16", contenders: []string{"floor", "gateway"}, kind: "http", callers: 16, batch: 1},
	{name: "http-64", contenders: []string{"floor", "gateway"}, kind: "http", callers: 64, batch: 1},
	{name: "http-open-1000/s", contenders: []string{"floor", "gateway"}, kind: "http", callers: 64, batch: 1, rate: 1000},
	{name: "http-open-4000/s", contenders: []string{"floor", "gateway"}, kind: "http", callers: 256, batch: 1, rate: 4000},
	{name: "http-structured-16", contenders: []string{"plain", "gateway"}, kind: "http", callers: 16, batch: 1},
	{name: "grpc-1", contenders: []string{"floor", "gateway"}, kind: "grpc", callers: 1, batch: 1},
	{name: "grpc-16", contenders: []string{"floor", "gateway"}, kind: "grpc", callers: 16, batch: 1},
	{name: "grpc-64", contenders: []string{"floor", "gateway"}, kind: "grpc", callers: 64, batch: 1},
	{name: "grpc-open-1000/s", contenders: []string{"floor", "gateway"}, kind: "grpc", callers: 64, batch: 1, rate: 1000},
	{name: "grpc-open-4000/s", contenders: []string{"floor", "gateway"}, kind: "grpc", callers: 256, batch: 1, rate: 4000},
	{name: "grpc-batch-100", contenders: []string{"direct", "floor", "gateway"}, kind: "grpc", callers: 8, batch: 100},
	{name: "stream-100", contenders: []string{"floor", "direct", "gateway"}, kind: "stream", callers: 1, batch: 100},
	{name: "stream-1", contenders: []string{"floor", "direct", "gateway"}, kind: "stream", callers: 1, batch: 1},
	{name: "subscribe-drain", contenders: []string{"direct", "floor", "gateway"}, kind: "drain", callers: 1, batch: 1},
	{name: "subscribe-decode", contenders: []string{"direct", "floor", "gateway"}, kind: "decode", callers: 1, batch: 1},
	{name: "sse-drain", contenders: []string{byStream, "gateway"}, kind: "sse"},
	{name: "pull-drain", contenders: []string{byStream, "gateway"}, kind: "pull"},
	{name: "handlers-256x5ms", contenders: []string{byChannel, "gateway"}, kind: "handlers"},
	{name: "end-to-end-1000/s", contenders: []string{byClient, "gateway"}, kind: "latency", rate: 1000},
}

// reads reports whether a scenario reads what was stored before it began.
func (sc scenario) reads() bool {
	switch sc.kind {
	case "drain", "decode", "sse", "pull", "handlers":
		return true
	}
	return false
}

// inFlight is how many events a stream keeps unanswered.
const inFlight = 1000

const (
	partitions = 10
	keys       = 10_000
	size       = 1024
)

func payload() []byte { return bytes.Repeat([]byte("x"), size) }

func key(i int) []byte { return strconv.AppendInt(nil, int64(i%keys), 10) }

// process is a contender.
type process struct {
	cmd        *exec.Cmd
	in         io.WriteCloser
	out        *bufio.Reader
	http, grpc string
	admin      string // of the gateway
}

type bench struct {
	s          settings
	contenders map[string]*process
	admin      *kadm.Client
	kafka      *kgo.Client
	topics     []string // that were made, and go with the bench
	preloaded  string
	narrow     string // preloaded, of one partition
	spans      *spans
}

func newBench(ctx context.Context, s settings) (*bench, error) {
	client, err := kgo.NewClient(seeds(s.bootstrap), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return nil, err
	}
	b := &bench{s: s, contenders: map[string]*process{}, admin: kadm.NewClient(client), kafka: client}
	if b.spans, err = receiveSpans(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for name, args := range map[string][]string{
		"floor":  {self, "-role", "floor", "-bootstrap", s.bootstrap},
		"direct": {self, "-role", "direct", "-bootstrap", s.bootstrap},
		"gateway": {
			s.gateway, "run", "--kafka-brokers", s.bootstrap, "--listen-http", "127.0.0.1:0", "--listen-grpc", "127.0.0.1:0", "--listen-admin", "127.0.0.1:0",
			"--telemetry-log-format", "text", "--telemetry-otlp-endpoint", b.spans.address, "--telemetry-otlp-insecure", "true", "--telemetry-sample-ratio", "0.01",
		},
	} {
		p, err := start(ctx, name, args)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		b.contenders[name] = p
	}
	return b, nil
}

// start runs a contender and reads where it listens.
func start(ctx context.Context, name string, args []string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, args[0], args[1:]...)}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	pipe := p.cmd.StdoutPipe
	if name == "gateway" { // it says so in its log
		pipe = p.cmd.StderrPipe
	} else {
		p.cmd.Stderr = os.Stderr
	}
	out, err := pipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("it ended before it was up: %w", err)
		}
		if strings.HasPrefix(line, "ready") {
			return p, nil
		}
		for _, word := range strings.Fields(line) {
			if a, ok := strings.CutPrefix(word, "http="); ok {
				p.http = a
			}
			if a, ok := strings.CutPrefix(word, "grpc="); ok {
				p.grpc = a
			}
			if a, ok := strings.CutPrefix(word, "admin="); ok {
				p.admin = a
			}
		}
		if p.http != "" && p.grpc != "" {
			if name == "gateway" {
				go func() { _, _ = io.Copy(io.Discard, p.out) }() // its log goes on; ends with the process
			}
			return p, nil
		}
	}
}

func (b *bench) close() {
	for _, p := range b.contenders {
		_ = p.cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = p.in.Close()
		_ = p.cmd.Wait() // how it ends does not matter any more
	}
	b.spans.stop()
	// A run writes some ten gigabytes; a broker that serves the next one too need not keep them.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := b.admin.DeleteTopics(ctx, b.topics...); err != nil {
		fmt.Fprintln(os.Stderr, "bench: its topics stay:", err)
	}
	b.kafka.Close()
}

// leave ends a process that ends with its input.
func (p *process) leave() {
	_ = p.in.Close()
	_ = p.cmd.Wait() // how it ends does not matter any more
}

func (p *process) usage() (cpu float64, rss int64, err error) { return usage(p.cmd.Process.Pid) }

// usage reads a process's CPU seconds and resident MiB from the system.
func usage(pid int) (cpu float64, rss int64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	pages, err3 := strconv.ParseInt(fields[21], 10, 64)
	const ticks = 100 // USER_HZ, the same on every Linux
	return (user + system) / ticks, pages * int64(os.Getpagesize()) >> 20, errors.Join(err1, err2, err3)
}

func (b *bench) topic(ctx context.Context) (string, error) {
	return b.topicOf(ctx, partitions)
}

func (b *bench) topicOf(ctx context.Context, partitions int32) (string, error) {
	name := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), len(b.topics))
	return name, b.makeTopics(ctx, partitions, name)
}

// makeTopics makes topics that go with the bench.
func (b *bench) makeTopics(ctx context.Context, partitions int32, names ...string) error {
	b.topics = append(b.topics, names...)
	made, err := b.admin.CreateTopics(ctx, partitions, -1, nil, names...)
	return errors.Join(err, made.Error())
}

// warm lets the broker compile what it will need: its first 400,000 records are slow.
func (b *bench) warm(ctx context.Context) error {
	topic, err := b.topic(ctx)
	if err != nil {
		return err
	}
	if _, err := publishDirect(ctx, b.kafka, topic, 8, 500, max(2*b.s.cell, 3*time.Second)); err != nil {
		return err
	}
	if b.preloaded, err = b.topic(ctx); err != nil {
		return err
	}
	return b.preload(ctx, b.preloaded, b.s.drain)
}

// preload writes exactly n events: a drain of fewer than a topic holds would
// pay for reading ahead.
func (b *bench) preload(ctx context.Context, topic string, n int) error {
	value := payload()
	var failed error
	var mu sync.Mutex
	for i := range n {
		b.kafka.Produce(ctx, &kgo.Record{Topic: topic, Key: key(i), Value: value}, func(_ *kgo.Record, err error) {
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
		})
	}
	if err := b.kafka.Flush(ctx); err != nil {
		return err
	}
	return failed
}

// topicFor is a topic of sc's own, or the one that is preloaded for those that read.
func (b *bench) topicFor(ctx context.Context, sc scenario) (string, error) {
	switch {
	case !sc.reads():
		return b.topic(ctx)
	case sc.kind != "handlers":
		return b.preloaded, nil
	case b.narrow == "":
		name, err := b.topicOf(ctx, 1)
		if err != nil {
			return "", err
		}
		if err := b.preload(ctx, name, b.s.drain); err != nil {
			return "", err
		}
		b.narrow = name
	}
	return b.narrow, nil
}

// stored counts a topic's events.
func (b *bench) stored(ctx context.Context, topic string) (int64, error) {
	ends, err := b.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	n := int64(0)
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n, nil
}

func (b *bench) measure(ctx context.Context, sc scenario, contender string) (cell, error) {
	p := b.contenders[processOf(contender)]
	topic, err := b.topicFor(ctx, sc)
	if err != nil {
		return cell{}, err
	}
	var n, primed int64
	var latencies []time.Duration
	if !sc.reads() { // the first event of a new topic waits for the topic's metadata
		if primed, err = b.prime(ctx, sc, contender, p, topic); err != nil {
			return cell{}, err
		}
	}
	before, _, err := p.usage()
	if err != nil {
		return cell{}, err
	}
	own, _, err := usage(os.Getpid())
	if err != nil {
		return cell{}, err
	}
	profiled, err := b.profile(ctx, sc, contender)
	if err != nil {
		return cell{}, err
	}
	began := time.Now()
	switch {
	case contender == "direct" && sc.reads():
		n, err = p.command("drain %s g-%d %d 0", topic, time.Now().UnixNano(), b.s.drain)
	case contender == byChannel:
		n, err = handleFromChannel(b.s.drain)
	case contender == byClient:
		n, latencies, err = endToEndClient(ctx, b.s.bootstrap, topic, sc.rate, b.s.cell)
	case sc.kind == "latency":
		n, latencies, err = endToEndGateway(ctx, p.grpc, topic, sc.rate, b.s.cell)
	case sc.kind == "handlers":
		n, err = handleFromStream(ctx, p.grpc, topic, b.s.drain)
	case contender == byStream && sc.kind == "pull", sc.kind == "decode":
		n, err = drain(ctx, p.grpc, topic, b.s.drain, &decoded{})
	case contender == byStream, sc.kind == "drain":
		n, err = drain(ctx, p.grpc, topic, b.s.drain, &lent{}, grpc.ForceCodecV2(rawCodec{}))
	case sc.kind == "sse":
		n, err = drainSSE(ctx, p.http, topic, b.s.drain)
	case sc.kind == "pull":
		n, err = drainPull(ctx, p.grpc, topic, b.s.drain)
	case contender == "direct" && sc.kind == "stream":
		n, err = p.command("stream %s 1 %d %d", topic, inFlight, b.s.cell.Milliseconds())
	case contender == "direct":
		n, err = p.command("publish %s %d %d %d", topic, sc.callers, sc.batch, b.s.cell.Milliseconds())
	case sc.kind == "http":
		n, latencies, err = publishHTTP(ctx, p.http, topic, sc, strings.Contains(sc.name, "structured") && contender == "gateway", b.s.cell)
	case sc.kind == "grpc":
		n, latencies, err = publishGRPC(ctx, p.grpc, topic, sc, b.s.cell)
	case sc.kind == "stream":
		n, err = publishStream(ctx, p.grpc, topic, sc.callers, sc.batch, b.s.cell)
	}
	seconds := time.Since(began).Seconds()
	err = errors.Join(err, profiled())
	if err != nil {
		return cell{}, err
	}
	after, rss, err := p.usage()
	if err != nil {
		return cell{}, err
	}
	ownAfter, _, err := usage(os.Getpid())
	if err != nil {
		return cell{}, err
	}
	if n == 0 {
		return cell{}, errors.New("nothing was done")
	}
	if sc.reads() {
		if n != int64(b.s.drain) {
			return cell{}, fmt.Errorf("%d events were delivered, %d are stored", n, b.s.drain)
		}
	} else { // what was answered must be in Kafka
		stored, err := b.stored(ctx, topic)
		if err != nil {
			return cell{}, err
		}
		if stored != n+primed {
			return cell{}, fmt.Errorf("%d events were answered, %d are stored", n+primed, stored)
		}
	}
	if !hosted(contender) {
		before, after, rss = 0, 0, 0
	}
	c := cell{Scenario: sc.name, Contender: contender, Events: n, Seconds: seconds, PerSecond: float64(n) / seconds, CPU: (after - before) / float64(n) * 1e6, Generator: (ownAfter - own) / float64(n) * 1e6, RSS: rss}
	slices.Sort(latencies)
	if k := len(latencies); k > 0 {
		at := func(q float64) float64 { return float64(latencies[min(k-1, int(q*float64(k)))].Microseconds()) / 1000 }
		c.P50, c.P99, c.P999 = at(0.5), at(0.99), at(0.999)
	}
	return c, nil
}

// prime publishes the first events of a cell's topic.
func (b *bench) prime(ctx context.Context, sc scenario, contender string, p *process, topic string) (n int64, err error) {
	const moment = time.Millisecond // each caller publishes once at least
	switch {
	case contender == "direct":
		return p.command("publish %s 1 1 1", topic)
	case contender == byClient:
		return 1, b.kafka.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: payload()}).FirstErr()
	case sc.kind == "http":
		n, _, err = publishHTTP(ctx, p.http, topic, scenario{callers: 1}, false, moment)
	default:
		n, _, err = publishGRPC(ctx, p.grpc, topic, scenario{callers: 1, batch: 1}, moment)
	}
	return n, err
}

// command has the direct client work and tells how many events it did.
func (p *process) command(format string, args ...any) (int64, error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		return 0, err
	}
	var n, nanoseconds int64
	line, err := p.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(line, &n, &nanoseconds)
	return n, err
}

// each runs callers until the time is over and gathers what they did and how
// long each call took. At a rate, a call's time counts from when it was due, so
// that one answer that is late counts for all that waited behind it (no
// coordinated omission).
func each(ctx context.Context, sc scenario, length time.Duration, call func(ctx context.Context, caller, i int) (int, error)) (int64, []time.Duration, error) {
	var wait sync.WaitGroup
	var mu sync.Mutex
	var total int64
	var latencies []time.Duration
	var failed error
	var next atomic.Int64
	start := time.Now()
	end := start.Add(length)
	for c := range sc.callers {
		wait.Go(func() {
			n := int64(0)
			var mine []time.Duration
			for i := 0; ctx.Err() == nil; i++ {
				due := time.Now()
				if sc.rate > 0 {
					due = start.Add(time.Duration(next.Add(1)-1) * time.Second / time.Duration(sc.rate))
					time.Sleep(time.Until(due))
				}
				if due.After(end) {
					break
				}
				k, err := call(ctx, c, i)
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					break
				}
				mine = append(mine, time.Since(due))
				n += int64(k)
			}
			mu.Lock()
			total += n
			latencies = append(latencies, mine...)
			mu.Unlock()
		})
	}
	wait.Wait()
	return total, latencies, failed
}

func publishHTTP(ctx context.Context, address, topic string, sc scenario, structured bool, length time.Duration) (int64, []time.Duration, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: sc.callers, MaxConnsPerHost: sc.callers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	plain, contentType := payload(), "application/octet-stream"
	if structured {
		contentType = "application/cloudevents+json"
	}
	return each(ctx, sc, length, func(ctx context.Context, caller, i int) (int, error) {
		body := plain
		if structured {
			body = fmt.Appendf(nil, `{"specversion":"1.0","id":"%d-%d","source":"/bench","type":"bench.event","time":"2026-11-24T10:00:00Z","subject":"order","data":{"text":"%s"}}`,
				caller, i, strings.Repeat("x", size-160))
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/topics/"+topic+"/events", bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		r.Header["Postern-Key"] = []string{string(key(caller*1000003 + i))}
		r.Header["Content-Type"] = []string{contentType}
		r.Header["Traceparent"] = []string{traceparent(i)}
		answer, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		b, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err != nil {
			return 0, err
		}
		if answer.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("answered %d: %s", answer.StatusCode, b)
		}
		return 1, nil
	})
}

// traceparent carries a trace; one of a hundred is sampled.
func traceparent(i int) string {
	if i%100 == 99 {
		return "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	}
	return "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
}

func connect(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

func events(caller, i, batch int) []*posternv1.Event {
	body := payload()
	all := make([]*posternv1.Event, batch)
	for j := range all {
		all[j] = &posternv1.Event{Key: key(caller*1000003 + i*batch + j), Data: body}
	}
	return all
}

// publishStream keeps inFlight events of each stream unanswered.
func publishStream(ctx context.Context, address, topic string, callers, batch int, length time.Duration) (int64, error) {
	conn, err := connect(address)
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	var wait sync.WaitGroup
	var mu sync.Mutex
	var total int64
	var failed error
	for c := range callers {
		wait.Go(func() {
			n, err := oneStream(ctx, conn, topic, c, batch, length)
			mu.Lock()
			total, failed = total+n, errors.Join(failed, err)
			mu.Unlock()
		})
	}
	wait.Wait()
	return total, failed
}
