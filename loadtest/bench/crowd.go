package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// What many subscriptions of one gateway cost: idle with nobody attached, idle with a
// stream each, idle webhooks, and with events of one topic that all of them read. A
// process of as many bare group clients is what they are held against.
const (
	crowdSettle = 30 * time.Second // after the last join, until collectors and scavengers rest
	crowdWatch  = 20 * time.Second // of idleness, and of traffic
	crowdEvents = 100              // published during it, read by every subscription
	crowdConns  = 10               // the streams' connections
)

// crowd measures n subscriptions.
func crowd(ctx context.Context, s settings, n int) error {
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer b.close()
	topic := "" // each contender's own: what others published would be a backlog
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d subscriptions, all of one topic of %d partitions\tRSS, above none\tof a core, idle\twith %d events in %s: CPU us a delivery\tRSS %s after it\n", n, partitions, crowdEvents, crowdWatch, crowdSettle)
	sink, err := newSink(nil)
	if err != nil {
		return err
	}
	defer sink.close()
	declared := func(n int, webhook bool) string {
		var text strings.Builder
		for i := range n {
			if webhook {
				text.WriteString(subscriptionTo(fmt.Sprintf("crowd-%d", i), topic, sink.url, ""))
			} else {
				fmt.Fprintf(&text, "  - {name: crowd-%d, topics: [%s]}\n", i, topic)
			}
		}
		if n == 0 {
			return "  []\n"
		}
		return text.String()
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bare := func(n int) func() (*process, func(), error) {
		return func() (*process, func(), error) {
			p, err := start(ctx, "groups", []string{self, "-role", "groups", "-bootstrap", s.bootstrap, "-only", topic, "-crowd", fmt.Sprint(n)})
			if err != nil {
				return nil, nil, err
			}
			return p, p.leave, nil
		}
	}
	gateway := func(n int, webhook bool) func() (*process, func(), error) {
		return func() (*process, func(), error) { return b.pushing(ctx, declared(n, webhook), "") }
	}
	var none int64
	for _, c := range []struct {
		name   string
		begin  func() (*process, func(), error)
		attach func(*process) (func() int64, func(), error) // counts deliveries; nil: there are none
		base   bool                                         // what the next ones are above
	}{
		{name: "no bare group clients", begin: bare(0), base: true},
		{
			name: "bare group clients", begin: bare(n),
			attach: func(p *process) (func() int64, func(), error) {
				return func() int64 {
					fmt.Fprintln(p.in, "count")
					var count int64
					_, _ = fmt.Fscanln(p.out, &count) // 0 ends the wait with an error
					return count
				}, func() {}, nil
			},
		},
		{name: "gateway without subscriptions", begin: gateway(0, false), base: true},
		{name: "gateway, declared, nobody attached", begin: gateway(n, false)},
		{
			name: "gateway, a gRPC stream each", begin: gateway(n, false),
			attach: func(p *process) (func() int64, func(), error) { return attachStreams(ctx, p, n) },
		},
		{
			name: "gateway, a webhook each", begin: gateway(n, true),
			attach: func(*process) (func() int64, func(), error) { return sink.count.Load, func() {}, nil },
		},
	} {
		if !c.base && !strings.Contains(c.name, s.only) {
			continue
		}
		if err := func() error {
			var err error
			if topic, err = b.topic(ctx); err != nil {
				return err
			}
			p, end, err := c.begin()
			if err != nil {
				return err
			}
			defer end()
			count, detach := func() int64 { return 0 }, func() {}
			if c.attach != nil {
				if count, detach, err = c.attach(p); err != nil {
					return err
				}
			}
			defer detach()
			if c.attach != nil {
				if err := b.awaitMembers(ctx, n); err != nil {
					return err
				}
			}
			time.Sleep(crowdSettle)
			before, _, err1 := p.usage()
			if s.profiles != "" && p.admin != "" {
				if err := crowdProfiles(p.admin, filepath.Join(s.profiles, strings.ReplaceAll(c.name, " ", "-"))); err != nil {
					return err
				}
			} else {
				time.Sleep(crowdWatch)
			}
			after, rss, err2 := p.usage()
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			fmt.Fprintf(w, "%s\t%d MiB", c.name, rss)
			if c.base {
				none = rss
			} else {
				fmt.Fprintf(w, ", %.1f KiB each", float64(rss-none)*1024/float64(n))
			}
			fmt.Fprintf(w, "\t%.1f %%", 100*(after-before)/crowdWatch.Seconds())
			if c.attach != nil {
				had := count()
				began, _, err1 := p.usage()
				for i := range crowdEvents {
					r := &kgo.Record{Topic: topic, Key: key(i), Value: payload()}
					if err := b.kafka.ProduceSync(ctx, r).FirstErr(); err != nil {
						return err
					}
					time.Sleep(crowdWatch / crowdEvents)
				}
				want := int64(n) * crowdEvents
				for limit := time.Now().Add(time.Minute); count()-had < want; {
					if time.Now().After(limit) {
						return fmt.Errorf("%s: %d of %d deliveries came", c.name, count()-had, want)
					}
					time.Sleep(100 * time.Millisecond)
				}
				ended, _, err2 := p.usage()
				time.Sleep(crowdSettle)
				_, rss, err3 := p.usage()
				if err := errors.Join(err1, err2, err3); err != nil {
					return err
				}
				fmt.Fprintf(w, "\t%.1f\t%.1f KiB each", (ended-began)*1e6/float64(want), float64(rss-none)*1024/float64(n))
			}
			fmt.Fprintln(w)
			return nil
		}(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintln(os.Stderr, c.name)
	}
	return w.Flush()
}

// crowdProfiles writes a gateway's profiles of an idle time.
func crowdProfiles(admin, name string) error {
	for _, profile := range []string{"heap", "goroutine", fmt.Sprintf("profile?seconds=%.0f", crowdWatch.Seconds())} {
		answer, err := http.Get("http://" + admin + "/debug/pprof/" + profile)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err != nil {
			return err
		}
		kind, _, _ := strings.Cut(profile, "?")
		if err := os.WriteFile(name+"."+kind+".pprof", text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// awaitMembers waits until n groups have a member that has its partitions.
func (b *bench) awaitMembers(ctx context.Context, n int) error {
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		groups, err := b.admin.ListGroups(ctx, "Stable")
		if err != nil {
			return err
		}
		stable := 0
		for name := range groups {
			if strings.HasPrefix(name, "crowd-") {
				stable++
			}
		}
		if stable >= n {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d groups are stable", stable, n)
		}
	}
}

// attachStreams opens a stream to each subscription, and acknowledges what comes.
func attachStreams(ctx context.Context, p *process, n int) (count func() int64, detach func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var conns []*grpc.ClientConn
	var reading sync.WaitGroup
	var got atomic.Int64
	detach = func() {
		cancel()
		for _, c := range conns {
			_ = c.Close() // nothing is under way
		}
		reading.Wait()
	}
	for range crowdConns {
		c, err := connect(p.grpc)
		if err != nil {
			return nil, detach, err
		}
		conns = append(conns, c)
	}
	for i := range n {
		stream, err := posternv1.NewSubscriberClient(conns[i%len(conns)]).Subscribe(ctx)
		if err != nil {
			return nil, detach, err
		}
		open := &posternv1.Open{Subscription: fmt.Sprintf("crowd-%d", i), Window: &posternv1.Window{MaxMessages: 100}}
		if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
			return nil, detach, err
		}
		reading.Go(func() {
			for {
				m, err := stream.Recv()
				if err != nil {
					return // detach
				}
				settle := &posternv1.SettleBatch{}
				for _, d := range m.GetDeliveries().GetDeliveries() {
					settle.Acks = append(settle.Acks, d.DeliveryId)
				}
				if len(settle.Acks) > 0 {
					got.Add(int64(len(settle.Acks)))
					if stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: settle}}) != nil {
						return
					}
				}
			}
		})
	}
	return got.Load, detach, nil
}

// serveGroups is a process of n bare group clients that read topic and commit
// every 200 ms. Each line it reads is answered with how many records came so far.
func serveGroups(ctx context.Context, bootstrap, topic string, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var got atomic.Int64
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	for i := range n {
		client, err := kgo.NewClient(seeds(bootstrap), kgo.ConsumerGroup(fmt.Sprintf("crowd-bare-%d", i)), kgo.ConsumeTopics(topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitInterval(200*time.Millisecond), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		if err != nil {
			return err
		}
		reading.Go(func() {
			defer client.Close()
			for ctx.Err() == nil {
				got.Add(int64(client.PollFetches(ctx).NumRecords()))
			}
		})
	}
	fmt.Println("ready")
	for {
		var line string
		if _, err := fmt.Scanln(&line); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		fmt.Println(got.Load())
	}
}
