package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The cell of isolation: so many endpoints, each with a subscription and a topic
// of its own, of which some never answer and some take two seconds.
const (
	isoEndpoints = 200
	isoDead      = 2
	isoSlow      = 10
	// isoRate is events a second over all: one every 2.5 ms, each to the next
	// endpoint. One topic for all would be a burst of 200 requests for each event, whose
	// latency is its queue's, and no 10 % can be told from it.
	isoRate = 400
)

// isolation is a gateway with the endpoints it pushes to.
type isolation struct {
	b       *bench
	gateway *process
	topics  []string
	healthy *sink
	next    int // index of the next event
	close   func()
}

// webhookIsolation compares the latencies of endpoints among 200 healthy ones with
// those of the same among sick ones. Both gateways run all the time, and windows of
// load take turns; each pair of neighbours gives a ratio. What the healthy ones'
// windows differ by among themselves is how small a difference can be told.
func (b *bench) webhookIsolation(ctx context.Context, w io.Writer) error {
	var sides [2]*isolation
	for i := range sides {
		side, err := b.isolated(ctx, i == 1)
		if err != nil {
			return err
		}
		defer side.close()
		sides[i] = side
	}
	fmt.Fprintln(w, "scenario\tsick endpoints\thealthy deliveries\tmissing\tp50\tp99")
	var p50, p99 [2][]float64
	for pair := range max(2, b.s.rounds) {
		for turn := range 2 {
			which := (turn + pair) % 2
			all, missing, err := sides[which].window(ctx, b.webhookLength()/2)
			if err != nil {
				return err
			}
			if len(all) == 0 || missing > 0 {
				return fmt.Errorf("%d events of healthy endpoints came, %d did not", len(all), missing)
			}
			p50[which], p99[which] = append(p50[which], float64(quantile(all, 0.5))), append(p99[which], float64(quantile(all, 0.99)))
			fmt.Fprintf(w, "webhook-isolation\t%v\t%d\t%d\t%s\t%s\n", which == 1, len(all), missing, quantile(all, 0.5).Round(10*time.Microsecond), quantile(all, 0.99).Round(10*time.Microsecond))
		}
	}
	ratios := func(of [2][]float64) string {
		var r []float64
		for i := range of[0] {
			r = append(r, of[1][i]/of[0][i])
		}
		return show(r)
	}
	noise := func(of []float64) string {
		var r []float64
		for i := range of[1:] {
			r = append(r, of[i+1]/of[i])
		}
		return show(r)
	}
	fmt.Fprintf(w, "webhook-isolation\tsick/healthy\t\t\t%s\t%s\n", ratios(p50), ratios(p99))
	fmt.Fprintf(w, "webhook-isolation\thealthy/the one before\t\t\t%s\t%s\n", noise(p50[0]), noise(p99[0]))
	return nil
}

// isolated starts a gateway, joins its groups and warms it.
func (b *bench) isolated(ctx context.Context, sick bool) (side *isolation, err error) {
	side = &isolation{b: b}
	var closers []func()
	side.close = func() {
		for _, f := range slices.Backward(closers) {
			f()
		}
	}
	defer func() {
		if err != nil {
			side.close()
		}
	}()
	release := make(chan struct{})
	hold := func(until <-chan time.Time) func(http.ResponseWriter, *http.Request, string) bool {
		return func(_ http.ResponseWriter, r *http.Request, _ string) bool {
			select {
			case <-release:
			case <-r.Context().Done():
			case <-until:
			}
			return false
		}
	}
	late := func(w http.ResponseWriter, r *http.Request, key string) bool {
		return hold(time.After(2*time.Second))(w, r, key) // what it has is not counted; the answer is 200
	}
	var sinks [3]*sink
	for i, handle := range []func(http.ResponseWriter, *http.Request, string) bool{nil, hold(nil), late} {
		if sinks[i], err = newSink(handle); err != nil {
			return nil, err
		}
		closers = append(closers, sinks[i].close)
	}
	closers = append(closers, func() { close(release) })
	side.healthy = sinks[0]
	run := time.Now().UnixNano()
	var config strings.Builder
	for i := range isoEndpoints {
		side.topics = append(side.topics, fmt.Sprintf("bench-iso-%d-%d", run, i))
		url := fmt.Sprintf("%s/%d", side.healthy.url, i)
		switch {
		case sick && i < isoDead:
			url = sinks[1].url + "/"
		case sick && i < isoDead+isoSlow:
			url = sinks[2].url + "/"
		}
		config.WriteString(subscriptionTo(fmt.Sprintf("iso-%d-%d", run, i), side.topics[i], url, ""))
	}
	if err = b.makeTopics(ctx, 1, side.topics...); err != nil {
		return nil, err
	}
	gateway, stop, err := b.pushing(ctx, config.String(), "")
	if err != nil {
		return nil, err
	}
	closers = append(closers, stop)
	side.gateway = gateway
	if err = b.joined(ctx, fmt.Sprintf("iso-%d-", run), isoEndpoints); err != nil {
		return nil, err
	}
	// Connections are made, the concurrency is found, breakers of dead endpoints open.
	_, missing, err := side.window(ctx, 10*time.Second)
	if err == nil && missing > 0 {
		err = fmt.Errorf("%d events of healthy endpoints did not come", missing)
	}
	return side, err
}

// window publishes at the rate, one event to each topic in turn, and tells the
// latencies of those endpoints that are healthy on both sides; sorted.
func (s *isolation) window(ctx context.Context, length time.Duration) (all []time.Duration, missing int, err error) {
	s.healthy.mu.Lock()
	clear(s.healthy.at)
	s.healthy.mu.Unlock()
	n := int(length.Seconds() * isoRate)
	n -= n % isoEndpoints
	sent, err := publishSpread(ctx, s.gateway.http, s.topics, s.next, n, isoRate)
	s.next += n
	if err != nil {
		return nil, 0, err
	}
	for e := isoDead + isoSlow; e < isoEndpoints; e++ {
		path, its := "/"+strconv.Itoa(e), func(i int) bool { return i%isoEndpoints == e }
		s.healthy.settle(ctx, sent, path, its, 30*time.Second)
		l, m := s.healthy.latencies(sent, path, its)
		all, missing = append(all, l...), missing+m
	}
	slices.Sort(all)
	return all, missing, nil
}

// publishSpread publishes n events at a rate, each to the next of topics: event i
// is due at i/rate, whatever became of those before.
func publishSpread(ctx context.Context, address string, topics []string, first, n, rate int) (*published, error) {
	const callers = 32
	out := &published{at: map[int]time.Time{}}
	transport := &http.Transport{MaxIdleConnsPerHost: callers, MaxConnsPerHost: callers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body := payload()
	began := time.Now()
	var wait sync.WaitGroup
	failed := make(chan error, callers)
	for c := range callers {
		wait.Go(func() {
			for i := c; i < n && ctx.Err() == nil; i += callers {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				at, err := publishIndexed(ctx, client, address, topics[(first+i)%len(topics)], first+i, body)
				if err != nil {
					failed <- err
					return
				}
				out.mu.Lock()
				out.at[first+i] = at
				out.mu.Unlock()
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return out, err
	default:
		return out, ctx.Err()
	}
}

// publishIndexed publishes one event, and tells when it was acknowledged.
func publishIndexed(ctx context.Context, client *http.Client, address, topic string, index int, body []byte) (time.Time, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/topics/"+topic+"/events", bytes.NewReader(body))
	if err != nil {
		return time.Time{}, err
	}
	r.Header["Postern-Header-Index"] = []string{strconv.Itoa(index)}
	r.Header["Content-Type"] = []string{"application/octet-stream"}
	err = answeredOK(client.Do(r))
	return time.Now(), err
}
