package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// pushCallers is how many requests are under way at once.
const pushCallers = 64

// pusher is a process that pushes a topic's events to a URL.
type pusher func(ctx context.Context, topic, url string, n int64) (*process, func(), error)

// webhookRaw pushes events that are there already to an endpoint that answers at
// once: the gateway, and the floor, which does what a pusher cannot do without.
// A bare client loop posts as many of the same bytes.
func (b *bench) webhookRaw(ctx context.Context, w io.Writer) error {
	n := int64(b.s.drain / 2)
	skip := n / 10 // joining the group and finding the concurrency
	topic, err := b.topic(ctx)
	if err != nil {
		return err
	}
	if err := b.preload(ctx, topic, int(n)); err != nil {
		return err
	}
	poster, err := b.poster(ctx)
	if err != nil {
		return err
	}
	defer poster.leave()
	type contender struct {
		name       string
		measure    func(round int) (cpu, perSecond float64, err error)
		cpu, speed []float64
	}
	contenders := []*contender{
		{name: "bare client", measure: func(int) (float64, float64, error) { return b.postBare(poster, n) }},
		{name: "floor", measure: func(int) (float64, float64, error) { return b.pushRaw(ctx, b.pushFloor, topic, "", n, skip) }},
		{name: "gateway", measure: func(round int) (float64, float64, error) {
			return b.pushRaw(ctx, b.pushGateway(""), topic, fmt.Sprintf("webhook-raw-%d", round), n, skip)
		}},
		// But for what failed: what the log's share is.
		{name: "no attempts logged", measure: func(int) (float64, float64, error) {
			return b.pushRaw(ctx, b.pushGateway("webhooks: {log_attempts: failures}\n"), topic, "", n, skip)
		}},
	}
	for round := range b.s.rounds {
		for turn := range contenders {
			c := contenders[(turn+round)%len(contenders)]
			cpu, speed, err := c.measure(round)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.cpu, c.speed = append(c.cpu, cpu), append(c.speed, speed)
		}
	}
	ratios := func(of, to []float64) string {
		var r []float64
		for i := range of {
			r = append(r, of[i]/to[i])
		}
		return show(r)
	}
	fmt.Fprintln(w, "scenario\tcontender\tCPU s/M\tevents/s\tCPU ratio\tevents/s ratio")
	bare := contenders[0]
	for _, c := range contenders {
		fmt.Fprintf(w, "webhook-raw\t%s\t%s\t%s\t", c.name, show(slices.Clone(c.cpu)), show(slices.Clone(c.speed)))
		if c != bare {
			fmt.Fprintf(w, "%s\t%s", ratios(c.cpu, bare.cpu), ratios(c.speed, bare.speed))
		}
		fmt.Fprintln(w)
	}
	return nil
}

func (b *bench) poster(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, "poster", []string{self, "-role", "poster", "-bootstrap", b.s.bootstrap})
}

func (b *bench) postBare(poster *process, n int64) (cpu, perSecond float64, err error) {
	s, err := newSink(nil)
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	before, _, err := poster.usage()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	done, err := poster.command("post %s/ %d %d", s.url, pushCallers, n)
	took := time.Since(began)
	if err != nil || done != n || s.count.Load() != n {
		return 0, 0, fmt.Errorf("%d posted, %d came: %w", done, s.count.Load(), err)
	}
	after, _, err := poster.usage()
	return (after - before) / float64(n) * 1e6, float64(n) / took.Seconds(), err
}

// pushGateway has the gateway push.
func (b *bench) pushGateway(more string) pusher {
	return func(ctx context.Context, topic, url string, _ int64) (*process, func(), error) {
		return b.pushing(ctx, subscriptionTo(fmt.Sprintf("raw-%d", time.Now().UnixNano()), topic, url, fmt.Sprintf(", concurrency: %d", pushCallers)), more)
	}
}

// pushFloor has the floor push.
func (b *bench) pushFloor(ctx context.Context, topic, url string, n int64) (*process, func(), error) {
	p, err := b.poster(ctx)
	if err != nil {
		return nil, nil, err
	}
	_, err = fmt.Fprintf(p.in, "push %s %d %d %s bench-push-%d\n", url, pushCallers, n, topic, time.Now().UnixNano())
	return p, p.leave, err
}

// pushRaw measures a pusher from its skip-th event to its n-th.
func (b *bench) pushRaw(ctx context.Context, push pusher, topic, profile string, n, skip int64) (cpu, perSecond float64, err error) {
	s, err := newSink(nil)
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	type mark struct {
		at  time.Time
		cpu float64
	}
	var p atomic.Pointer[process]
	marks := make(chan mark, 2)
	take := func() {
		m := mark{at: time.Now()}
		if at := p.Load(); at != nil {
			m.cpu, _, _ = at.usage()
		}
		marks <- m
	}
	s.when(skip, take)
	s.when(n, take)
	started, stop, err := push(ctx, topic, s.url+"/", n)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	p.Store(started)
	if b.s.profiles != "" && profile != "" {
		s.when(skip+1, func() { go b.profileOf(started, profile) })
	}
	var from, to mark
	for _, m := range []*mark{&from, &to} {
		select {
		case *m = <-marks:
		case <-time.After(3 * time.Minute):
			return 0, 0, fmt.Errorf("%d of %d events came", s.count.Load(), n)
		}
	}
	if from.cpu == 0 {
		return 0, 0, errors.New("the first tenth came before the process was known: preload more")
	}
	return (to.cpu - from.cpu) / float64(n-skip) * 1e6, float64(n-skip) / to.at.Sub(from.at).Seconds(), nil
}

// servePoster is the bare client, and the floor of pushing: "post URL CALLERS N"
// posts N requests of one signed event, "push URL CALLERS N TOPIC GROUP" posts N
// events of a topic. Each tells how many were answered 200, and in how many
// nanoseconds.
func servePoster(ctx context.Context, bootstrap string) error {
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var what, url, topic, group string
		var callers int
		var n int64
		if got, err := fmt.Sscan(in.Text(), &what, &url, &callers, &n, &topic, &group); got < 4 {
			return err
		}
		began := time.Now()
		var done int64
		var err error
		if what == "push" {
			done, err = pushBare(ctx, bootstrap, topic, group, url, callers, n)
		} else {
			done, err = post(url, callers, n)
		}
		if err != nil {
			return err
		}
		fmt.Println(done, time.Since(began).Nanoseconds())
	}
	return in.Err()
}

// postHeader is a header as a webhook has it.
func postHeader() http.Header {
	return http.Header{
		"Content-Type": {"application/octet-stream"}, "Postern-Key": {"1234"}, "Postern-Subscription": {"mail"}, "Postern-Attempt": {"1"}, "Postern-Topic": {"bench"},
		"Postern-Partition": {"3"}, "Postern-Offset": {"12345"}, "User-Agent": {"Postern"}, "Webhook-Id": {"msg_J4QOQWZ3QTQ7CQNNTVQXYT6LQWLTLTYP"},
		"Webhook-Timestamp": {"1649367553"}, "Webhook-Signature": {"v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="},
	}
}

func post(url string, callers int, n int64) (int64, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body, header := payload(), postHeader()
	var next, done atomic.Int64
	var wait sync.WaitGroup
	failed := make(chan error, callers)
	for range callers {
		wait.Go(func() {
			for next.Add(1) <= n {
				r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
				if err != nil {
					failed <- err
					return
				}
				r.Header = header
				if err := answeredOK(client.Do(r)); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return done.Load(), err
	default:
		return done.Load(), nil
	}
}

// pushBare is the least that pushes events from Kafka: a group consumer, callers
// that sign, send within a time limit and read the answer, and commits every 200
// ms. It keeps no order, retries nothing and notes no attempts.
func pushBare(ctx context.Context, bootstrap, topic, group, url string, callers int, n int64) (int64, error) {
	client, err := kgo.NewClient(drainOptions(bootstrap, topic, group)...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	transport := &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers}
	defer transport.CloseIdleConnections()
	records := make(chan *kgo.Record, callers)
	failed := make(chan error, callers)
	var done atomic.Int64
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			mac, header := hmac.New(sha256.New, []byte(webhookSecret)), postHeader()
			for r := range records {
				if err := pushOne(ctx, transport, url, r, mac, header); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	var wrong error
	for polled := int64(0); polled < n && wrong == nil; {
		fetches := client.PollFetches(ctx)
		if wrong = fetches.Err0(); wrong != nil {
			break
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if polled++; wrong == nil && polled <= n {
				select {
				case records <- r:
				case wrong = <-failed:
				}
			}
		})
	}
	close(records)
	wait.Wait()
	return done.Load(), wrong
}

const pushTimeout = 15 * time.Second

func pushOne(ctx context.Context, transport *http.Transport, url string, record *kgo.Record, mac hash.Hash, header http.Header) error {
	id := "msg_" + record.Topic + strconv.FormatInt(record.Offset, 10)
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	mac.Reset()
	fmt.Fprintf(mac, "%s.%s.", id, stamp)
	mac.Write(record.Value)
	header["Webhook-Id"][0], header["Webhook-Timestamp"][0] = id, stamp
	header["Webhook-Signature"][0] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	header["Postern-Key"][0], header["Postern-Offset"][0] = string(record.Key), strconv.FormatInt(record.Offset, 10)
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(record.Value))
	if err != nil {
		return err
	}
	r.Header = header
	return answeredOK(transport.RoundTrip(r))
}
