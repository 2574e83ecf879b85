package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// listening is `postern listen`: a subscription's events as webhooks to a port of
// this machine, which the gateway need not be able to reach.
type listening struct {
	client     client
	name       string
	topics     []string
	latest     bool
	forward    string
	secret     string
	structured bool
	verbose    bool
	count      int
	timeout    time.Duration
	window     int64

	pusher *endpoint.Pusher
	out    io.Writer
	mu     sync.Mutex // over out, stream's sending and done
	done   int
}

func listenCommand() *cobra.Command {
	var l listening
	command := &cobra.Command{
		Use:   "listen NAME",
		Short: "Forward a subscription's events to a local port, as webhooks, and print each exchange",
		Long: `Forward the events of a subscription to an HTTP server on this machine as the
gateway would push them, signed if a secret is given, and settle each by what it
answers. For developing a webhook receiver without a public URL.`,
		Example: "  postern listen mail --topic orders --forward-to http://localhost:3000/hooks\n  postern listen mail --forward-to 3000 --secret whsec_...",
		Args:    cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			l.name, l.out = args[0], command.OutOrStdout()
			return l.run(command.Context())
		},
	}
	l.client.flags(command)
	f := command.Flags()
	f.StringArrayVarP(&l.topics, "topic", "t", nil, "topic to read, repeatable; needed when the subscription is not declared")
	f.BoolVar(&l.latest, "latest", false, "a new subscription begins with what is published from now on")
	f.StringVarP(&l.forward, "forward-to", "f", "", "`URL` or port of this machine to post to")
	f.StringVar(&l.secret, "secret", "", "whsec_ or whsk_ key to sign with")
	f.BoolVar(&l.structured, "structured", false, "CloudEvents in structured mode")
	f.BoolVarP(&l.verbose, "verbose", "v", false, "print each event's data too")
	f.IntVarP(&l.count, "count", "n", 0, "stop after this many events are settled")
	f.DurationVar(&l.timeout, "timeout", 30*time.Second, "how long the receiver may take")
	f.Int64Var(&l.window, "window", 16, "how many events may be under way")
	return command
}

// target reads what --forward-to says: a port, host:port/path or a URL.
func target(text string) (string, error) {
	if text == "" {
		return "", errors.New("say where to: --forward-to http://localhost:3000/hooks")
	}
	if strings.Trim(text, "0123456789") == "" {
		text = "localhost:" + text
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("--forward-to %q is no URL", text)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String(), nil
}

func (l *listening) run(ctx context.Context) error {
	to, err := target(l.forward)
	if err != nil {
		return usageError{err}
	}
	o := webhook.Options{
		URL: to, AllowHTTP: true, AllowLoopback: true, AllowCIDRs: []string{"0.0.0.0/0", "::/0"}, // it is the user's own word where to
		Timeout: l.timeout, Concurrency: int(max(1, l.window)),
	}
	if l.secret != "" {
		o.Secrets = []setting.Secret{setting.NewSecret(l.secret)}
	}
	if l.structured {
		o.Mode = webhook.Structured
	}
	if l.pusher, err = webhook.New(l.name, o, webhook.Environment{Log: slog.New(slog.DiscardHandler), Tracer: tracenoop.Tracer{}, Meter: metricnoop.Meter{}}); err != nil {
		return usageError{err}
	}
	defer l.pusher.Close()
	conn, err := l.client.connect()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := posternv1.NewSubscriberClient(conn).Subscribe(ctx)
	if err != nil {
		return l.client.explain(ctx, err)
	}
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: l.open()}}); err != nil {
		return l.client.explain(ctx, err)
	}
	fmt.Fprintf(l.out, "forwarding %s to %s; Ctrl-C ends it\n", l.name, to)
	var exchanges sync.WaitGroup
	defer exchanges.Wait()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if l.enough() {
				return nil
			}
			return l.client.explain(ctx, err)
		}
		for _, d := range m.GetDeliveries().GetDeliveries() {
			exchanges.Go(func() { l.exchange(ctx, stream, d) })
		}
		if l.enough() && len(m.GetReceipts().GetCommitted()) > 0 {
			return stream.CloseSend()
		}
	}
}

func (l *listening) enough() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count > 0 && l.done >= l.count
}

func (l *listening) open() *posternv1.Open {
	open := &posternv1.Open{
		Subscription: l.name, ClientId: "postern listen", Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT,
		Window: &posternv1.Window{MaxMessages: l.window}, Lease: durationpb.New(min(l.timeout+15*time.Second, time.Hour)),
	}
	if len(l.topics) > 0 {
		open.Inline = &posternv1.Subscription{Name: l.name, Topics: l.topics}
		if l.latest {
			open.Inline.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
		}
	}
	return open
}

// exchange forwards one event, prints what came of it, and settles it.
func (l *listening) exchange(ctx context.Context, stream grpc.BidiStreamingClient[posternv1.SubscribeRequest, posternv1.SubscribeResponse], d *posternv1.Delivery) {
	e := wire.FromEvent(d.GetEvent())
	at := wire.ToPosition(d.GetPosition())
	r := e.Record(at.Topic)
	r.Partition, r.Offset = at.Partition, at.Offset
	a, err := l.pusher.Forward(ctx, r, int(d.GetAttempt()))
	if err != nil {
		return // the stream ends
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count > 0 && l.done >= l.count {
		return // its lease goes back
	}
	l.print(r, &e, a)
	if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: settlementOf(d.GetDeliveryId(), a)}}); err == nil && a.Action == endpoint.Ack.String() {
		l.done++
	}
}

// settlementOf says what the receiver's answer means.
func settlementOf(id uint64, a endpoint.Attempt) *posternv1.SettleBatch {
	s := &posternv1.Settlement{DeliveryId: id}
	switch a.Action {
	case endpoint.Ack.String():
		return &posternv1.SettleBatch{Acks: []uint64{id}}
	case endpoint.Reject.String():
		s.Action = &posternv1.Settlement_Reject{Reject: &posternv1.Reject{Reason: a.Why}}
	default:
		s.Action = &posternv1.Settlement_Nack{Nack: &posternv1.Nack{Reason: a.Why}}
	}
	return &posternv1.SettleBatch{Settlements: []*posternv1.Settlement{s}}
}

func (l *listening) print(r *event.Record, e *event.Event, a endpoint.Attempt) {
	head := fmt.Sprintf("%s  %s attempt %d", a.At.Local().Format(time.TimeOnly), r.Position(), a.Number)
	if r.Key != nil {
		head += fmt.Sprintf(" key=%q", r.Key)
	}
	if e.IsCloudEvent() {
		head += fmt.Sprintf(" type=%s id=%s", e.Type, e.ID)
	}
	fmt.Fprintf(l.out, "%s  POST %d bytes, %s\n", head, len(e.Data), a.WebhookID)
	if l.verbose && len(e.Data) > 0 {
		fmt.Fprintf(l.out, "  > %q\n", cutData(e.Data))
	}
	took := time.Duration(a.Total * float64(time.Millisecond))
	if a.Status != 0 {
		fmt.Fprintf(l.out, "  < %d in %s: %s", a.Status, rounded(took), a.Action)
	} else {
		fmt.Fprintf(l.out, "  < no answer after %s: %s", rounded(took), a.Action)
	}
	if a.Why != "" {
		fmt.Fprintf(l.out, " (%s)", a.Why)
	}
	fmt.Fprintln(l.out)
}

func cutData(b []byte) []byte {
	const most = 2 << 10
	if len(b) > most {
		return b[:most]
	}
	return b
}
