package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func subscriptionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "subscriptions",
		Aliases: []string{"subscription", "subs"},
		Short:   "Make subscriptions, steer them, and see how they fare",
		Long: `Make subscriptions, steer them, and see how they fare. Those of a gateway's
configuration file are read-only here, but can be paused, resumed and sought.
` + exitCodes,
	}
	c.AddCommand(listSubscriptions(), showSubscription(), createSubscription(), updateSubscription(), deleteSubscription(),
		steerSubscription("pause", "Stop a subscription's delivery at every gateway"), steerSubscription("resume", "Let a paused subscription go on"),
		seekSubscription(), statusSubscription())
	return c
}

// asking is a command that asks the Subscriptions service.
type asking struct {
	client
	output
}

func (a *asking) flags(c *cobra.Command) {
	a.client.flags(c)
	a.output.flags(c)
}

// ask connects and calls do; what the gateway refuses is told in words.
func (a *asking) ask(c *cobra.Command, do func(ctx context.Context, s posternv1.SubscriptionsClient) error) error {
	if err := a.check(); err != nil {
		return err
	}
	conn, err := a.connect()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	return a.explain(c.Context(), do(c.Context(), posternv1.NewSubscriptionsClient(conn)))
}

func (a *asking) show(w io.Writer, m *posternv1.Subscription) error {
	return a.write(w, m, func(t *tabwriter.Writer) {
		line := func(name string, value any) {
			if text := fmt.Sprint(value); text != "" && text != "0" && text != "<nil>" {
				fmt.Fprintf(t, "%s\t%s\n", name, oneLine(text))
			}
		}
		line("name", m.GetName())
		line("declared in", enum(m.GetDeclaredIn(), "DECLARED_IN_"))
		line("problem", m.GetProblem())
		line("note", m.GetNote())
		line("topics", strings.Join(m.GetTopics(), ", "))
		line("topics pattern", m.GetTopicsPattern())
		line("order", enum(m.GetOrder(), "ORDER_"))
		line("group", m.GetGroup())
		line("start", startText(m.GetStart()))
		line("lease", howLong(m.GetLease()))
		line("filter", filterText(m.GetFilter()))
		if m.GetRetry() != nil {
			line("retry", protojson.MarshalOptions{UseProtoNames: true}.Format(m.GetRetry()))
		}
		line("dead letters", m.GetDeadLetter().GetTopic())
		line("webhook", m.GetWebhook().GetUrl())
		line("labels", labelsText(m.GetLabels()))
		line("paused", map[bool]string{true: "yes"}[m.GetPaused()])
		line("sought", sought(m.GetSeekEpoch()))
		line("generation", m.GetGeneration())
		line("created", when(m.GetCreateTime()))
		line("updated", when(m.GetUpdateTime()))
		line("etag", m.GetEtag())
	})
}

// sought is when a subscription was sought last: epochs go by the clock.
func sought(epoch uint64) string {
	if epoch == 0 {
		return ""
	}
	return time.UnixMilli(int64(epoch)).Local().Format(time.RFC3339)
}

func startText(s *posternv1.Start) string {
	switch at := s.GetAt().(type) {
	case *posternv1.Start_Time:
		return when(at.Time)
	case *posternv1.Start_Edge:
		return enum(at.Edge, "EDGE_")
	}
	return ""
}

func filterText(f *posternv1.Filter) string {
	switch {
	case f == nil:
		return ""
	case f.GetCel() != "":
		return f.GetCel()
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Format(f)
}

func labelsText(labels map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, name+"="+labels[name])
	}
	return strings.Join(all, ", ")
}

func listSubscriptions() *cobra.Command {
	var a asking
	request := &posternv1.ListSubscriptionsRequest{PageSize: 1000}
	c := &cobra.Command{
		Use: "list", Short: "List the subscriptions", Args: usage(cobra.NoArgs),
		Example: "  postern subscriptions list --topic orders\n  postern subscriptions list --label team=billing --output json",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				all := &posternv1.ListSubscriptionsResponse{}
				for {
					page, err := s.ListSubscriptions(ctx, request)
					if err != nil {
						return err
					}
					all.Subscriptions = append(all.Subscriptions, page.Subscriptions...)
					if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
						break
					}
				}
				return a.write(c.OutOrStdout(), all, func(t *tabwriter.Writer) {
					row(t, "NAME", "TOPICS", "ORDER", "DECLARED IN", "WEBHOOK", "STATE")
					for _, m := range all.GetSubscriptions() {
						state := "served"
						switch {
						case m.GetProblem() != "":
							state = "not served"
						case m.GetPaused():
							state = "paused"
						}
						row(t, m.GetName(), strings.Join(m.GetTopics(), ",")+m.GetTopicsPattern(), enum(m.GetOrder(), "ORDER_"), enum(m.GetDeclaredIn(), "DECLARED_IN_"), m.GetWebhook().GetUrl(), state)
					}
				})
			})
		},
	}
	a.flags(c)
	c.Flags().StringArrayVarP(&request.Labels, "label", "l", nil, "only those with this `name=value`, repeatable")
	c.Flags().StringVarP(&request.Topic, "topic", "t", "", "only those that read this topic")
	return c
}

func showSubscription() *cobra.Command {
	var a asking
	c := &cobra.Command{
		Use: "show NAME", Short: "Show what a subscription is", Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				m, err := s.GetSubscription(ctx, &posternv1.GetSubscriptionRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.show(c.OutOrStdout(), m)
			})
		},
	}
	a.flags(c)
	return c
}

// specification is a subscription given by flags, over one given by a file.
type specification struct {
	file, order, start, filter, sql, webhook, deadLetter string
	topics, labels, secrets                              []string
	lease                                                time.Duration
	maxAttempts                                          int32
	allowHTTP, allowLoopback                             bool
}

func (s *specification) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&s.file, "file", "f", "", "read it from `FILE` (- is standard input): YAML as in the configuration, or the API's JSON")
	f.StringArrayVarP(&s.topics, "topic", "t", nil, "topic to read, repeatable")
	f.StringVar(&s.order, "order", "", "what waits for what: key, partition or none")
	f.StringVar(&s.start, "start", "", "where reading begins: earliest, latest, a time, or how long ago (5m)")
	f.DurationVar(&s.lease, "lease", 0, "how long a delivered event may stay unsettled")
	f.StringVar(&s.filter, "filter", "", "deliver only events for which this CEL `expression` holds")
	f.StringVar(&s.sql, "filter-sql", "", "deliver only events for which this CloudEvents SQL `expression` holds")
	f.Int32Var(&s.maxAttempts, "max-attempts", 0, "deliveries before an event is dead-lettered")
	f.StringVar(&s.deadLetter, "dead-letter", "", "`topic` of the dead letters")
	f.StringVar(&s.webhook, "webhook", "", "push to this `URL`")
	f.StringArrayVar(&s.secrets, "webhook-secret", nil, "`name` of a secret at the gateway that signs the requests, repeatable")
	f.BoolVar(&s.allowHTTP, "webhook-allow-http", false, "permit a plain http: URL")
	f.BoolVar(&s.allowLoopback, "webhook-allow-loopback", false, "permit addresses of the gateway's machine")
	f.StringArrayVarP(&s.labels, "label", "l", nil, "label `name=value`, repeatable")
}

// message gives the subscription, and the fields that were given.
func (s *specification) message(c *cobra.Command, name string) (*posternv1.Subscription, []string, error) {
	m, mask := &posternv1.Subscription{}, []string(nil)
	if s.file != "" {
		var err error
		if m, err = readSubscription(c.InOrStdin(), s.file); err != nil {
			return nil, nil, usageError{err}
		}
		if name != "" && m.GetName() != "" && m.GetName() != name {
			return nil, nil, usageError{fmt.Errorf("%s is about %s, not about %s", s.file, m.GetName(), name)}
		}
		mask = []string{"*"}
	}
	if name != "" {
		m.Name = name
	}
	given := func(flag, path string, set func()) {
		if c.Flags().Changed(flag) {
			set()
			mask = append(mask, path)
		}
	}
	given("topic", "topics", func() { m.Topics = s.topics })
	given("lease", "lease", func() { m.Lease = durationpb.New(s.lease) })
	given("filter", "filter", func() { m.Filter = &posternv1.Filter{Cel: s.filter} })
	given("filter-sql", "filter", func() { m.Filter = &posternv1.Filter{Sql: s.sql} })
	if m.GetFilter() != nil && m.GetFilter().GetCel() == "" && m.GetFilter().GetSql() == "" && (c.Flags().Changed("filter") || c.Flags().Changed("filter-sql")) {
		m.Filter = nil // an empty flag takes the filter away
	}
	given("max-attempts", "retry.max_attempts", func() {
		if m.Retry == nil {
			m.Retry = &posternv1.RetryPolicy{}
		}
		m.Retry.MaxAttempts = s.maxAttempts
	})
	given("dead-letter", "dead_letter", func() { m.DeadLetter = &posternv1.DeadLetter{Topic: s.deadLetter} })
	webhook := func() *posternv1.Webhook {
		if m.Webhook == nil {
			m.Webhook = &posternv1.Webhook{}
		}
		return m.Webhook
	}
	given("webhook", "webhook.url", func() { webhook().Url = s.webhook })
	given("webhook-secret", "webhook.secrets", func() {
		webhook().Secrets = nil
		for _, name := range s.secrets {
			m.Webhook.Secrets = append(m.Webhook.Secrets, &posternv1.SecretReference{Name: name})
		}
	})
	given("webhook-allow-http", "webhook.allow_http", func() { webhook().AllowHttp = s.allowHTTP })
	given("webhook-allow-loopback", "webhook.allow_loopback", func() { webhook().AllowLoopback = s.allowLoopback })
	var wrong error
	given("order", "order", func() {
		n, ok := posternv1.Order_value["ORDER_"+strings.ToUpper(s.order)]
		if !ok || n == 0 {
			wrong = fmt.Errorf("--order %s is not offered: use key, partition or none", s.order)
		}
		m.Order = posternv1.Order(n)
	})
	given("start", "start", func() {
		if m.Start = startOf(s.start); m.Start.GetCursor() != "" {
			wrong = fmt.Errorf("--start %s is no start: use earliest, latest, a time such as 2026-01-31T10:00:00Z, or how long ago (5m)", s.start)
		}
	})
	given("label", "labels", func() {
		m.Labels = map[string]string{}
		for _, l := range s.labels {
			name, value, ok := strings.Cut(l, "=")
			if !ok {
				wrong = fmt.Errorf("--label %s is not name=value", l)
			}
			m.Labels[name] = value
		}
	})
	if wrong != nil {
		return nil, nil, usageError{wrong}
	}
	return m, mask, nil
}

// maxSpecification bounds the file of a subscription.
const maxSpecification = 1 << 20

// readSubscription reads one from a file: the API's JSON, or YAML with the
// configuration's names.
func readSubscription(stdin io.Reader, path string) (*posternv1.Subscription, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxSpecification+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxSpecification {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxSpecification)
	}
	m := &posternv1.Subscription{}
	if protojson.Unmarshal(text, m) == nil {
		return m, nil
	}
	spec, err := config.ReadSubscription(path, text)
	if err != nil {
		return nil, fmt.Errorf("the subscription is wrong:\n%w", err)
	}
	return spec.ToProto(), nil
}

func createSubscription() *cobra.Command {
	var a asking
	var s specification
	validateOnly := false
	c := &cobra.Command{
		Use: "create [NAME]", Short: "Make a subscription", Args: usage(cobra.MaximumNArgs(1)),
		Example: `  postern subscriptions create mail --topic orders --filter 'event.type == "order.created"'
  postern subscriptions create hook --topic orders --webhook https://example.com/hook --webhook-secret signing
  postern subscriptions create -f mail.yaml`,
		RunE: func(c *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			m, _, err := s.message(c, name)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, client posternv1.SubscriptionsClient) error {
				made, err := client.CreateSubscription(ctx, &posternv1.CreateSubscriptionRequest{Subscription: m, ValidateOnly: validateOnly})
				if err != nil {
					return err
				}
				return a.show(c.OutOrStdout(), made)
			})
		},
	}
	a.flags(c)
	s.flags(c)
	c.Flags().BoolVar(&validateOnly, "validate-only", false, "check everything and make nothing")
	return c
}

func updateSubscription() *cobra.Command {
	var a asking
	var s specification
	var etag string
	validateOnly := false
	c := &cobra.Command{
		Use: "update NAME", Short: "Change what a subscription is", Args: usage(cobra.ExactArgs(1)),
		Long: `Change the fields that flags name, or all of them to what a file says. Order,
group and start are for good. With --etag a change by somebody else since it
was read is refused, exit code 4.`,
		Example: "  postern subscriptions update mail --lease 30s --etag 5f1c2a9b03d4e6f7\n  postern subscriptions update mail -f mail.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			m, mask, err := s.message(c, args[0])
			if err != nil {
				return err
			}
			if len(mask) == 0 {
				return usageError{errors.New("nothing is to be changed: name the fields by flags, or give a file")}
			}
			if s.file == "" || etag != "" {
				m.Etag = etag
			}
			return a.ask(c, func(ctx context.Context, client posternv1.SubscriptionsClient) error {
				changed, err := client.UpdateSubscription(ctx, &posternv1.UpdateSubscriptionRequest{
					Subscription: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}, ValidateOnly: validateOnly,
				})
				if err != nil {
					return err
				}
				return a.show(c.OutOrStdout(), changed)
			})
		},
	}
	a.flags(c)
	s.flags(c)
	c.Flags().StringVar(&etag, "etag", "", "change it only if this is still its etag")
	c.Flags().BoolVar(&validateOnly, "validate-only", false, "check everything and change nothing")
	return c
}

func deleteSubscription() *cobra.Command {
	var a asking
	var etag string
	c := &cobra.Command{
		Use: "delete NAME", Short: "End a subscription; its position in Kafka and its dead letters stay", Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				if _, err := s.DeleteSubscription(ctx, &posternv1.DeleteSubscriptionRequest{Name: args[0], Etag: etag}); err != nil {
					return err
				}
				if a.format == "table" {
					fmt.Fprintf(c.OutOrStdout(), "%s is deleted.\n", args[0])
				}
				return nil
			})
		},
	}
	a.flags(c)
	c.Flags().StringVar(&etag, "etag", "", "delete it only if this is still its etag")
	return c
}

func steerSubscription(verb, short string) *cobra.Command {
	var a asking
	var etag string
	c := &cobra.Command{
		Use: verb + " NAME", Short: short, Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				var m *posternv1.Subscription
				var err error
				if verb == "pause" {
					m, err = s.PauseSubscription(ctx, &posternv1.PauseSubscriptionRequest{Name: args[0], Etag: etag})
				} else {
					m, err = s.ResumeSubscription(ctx, &posternv1.ResumeSubscriptionRequest{Name: args[0], Etag: etag})
				}
				if err != nil {
					return err
				}
				if a.format == "json" {
					return a.show(c.OutOrStdout(), m)
				}
				fmt.Fprintf(c.OutOrStdout(), "%s is %sd.\n", args[0], verb)
				return nil
			})
		},
	}
	a.flags(c)
	c.Flags().StringVar(&etag, "etag", "", "do it only if this is still its etag")
	return c
}

func seekSubscription() *cobra.Command {
	var a asking
	var to []string
	var topic, etag string
	dryRun := false
	c := &cobra.Command{
		Use: "seek NAME --to WHERE", Short: "Move a subscription's position, forward or back", Args: usage(cobra.ExactArgs(1)),
		Long: `Move a subscription's position. WHERE is earliest, latest, a time
(2026-01-31T10:00:00Z), how long ago (2h), a tail's cursor (c1...), or positions
as TOPIC[PARTITION]@OFFSET, repeatable. --dry-run tells how many events of each
partition would be delivered again or skipped.`,
		Example: "  postern subscriptions seek mail --to 2h --dry-run\n  postern subscriptions seek mail --to 'orders[3]@1042'",
		RunE: func(c *cobra.Command, args []string) error {
			request := &posternv1.SeekSubscriptionRequest{Name: args[0], DryRun: dryRun, Etag: etag}
			if err := seekTo(request, to, topic); err != nil {
				return usageError{err}
			}
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				answer, err := s.SeekSubscription(ctx, request)
				if err != nil {
					return err
				}
				return a.write(c.OutOrStdout(), answer, func(t *tabwriter.Writer) {
					row(t, "PARTITION", "FROM", "TO", "AGAIN", "SKIPPED")
					for _, p := range answer.GetPartitions() {
						from := "-"
						if p.From != nil {
							from = strconv.FormatInt(p.GetFrom(), 10)
						}
						row(t, fmt.Sprintf("%s[%d]", p.GetTopic(), p.GetPartition()), from, p.GetTo(), p.GetRedelivered(), p.GetSkipped())
					}
					what := "are delivered again"
					if dryRun {
						what = "would be delivered again"
					}
					fmt.Fprintf(t, "At most %d events %s, %d skipped.\n", answer.GetRedelivered(), what, answer.GetSkipped())
				})
			})
		},
	}
	a.flags(c)
	c.Flags().StringArrayVar(&to, "to", nil, "where to")
	c.Flags().StringVar(&topic, "topic", "", "the topic of a cursor, when the subscription reads several")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would happen and change nothing")
	c.Flags().StringVar(&etag, "etag", "", "do it only if this is still its etag")
	return c
}

var positionText = regexp.MustCompile(`^([a-zA-Z0-9._-]{1,249})\[([0-9]{1,9})\]@([0-9]{1,18})$`)

// seekTo reads --to.
func seekTo(request *posternv1.SeekSubscriptionRequest, to []string, topic string) error {
	if len(to) == 0 {
		return errors.New("--to is missing: earliest, latest, a time, how long ago, a cursor, or TOPIC[PARTITION]@OFFSET")
	}
	positions := &posternv1.SeekPositions{}
	for _, text := range to {
		m := positionText.FindStringSubmatch(text)
		if m == nil {
			break
		}
		p, err := strconv.ParseInt(m[2], 10, 32)
		if err != nil {
			return fmt.Errorf("--to %s: there is no partition %s", text, m[2])
		}
		o, err := strconv.ParseInt(m[3], 10, 64)
		if err != nil {
			return fmt.Errorf("--to %s: there is no offset %s", text, m[3])
		}
		positions.Positions = append(positions.Positions, &posternv1.Position{Topic: m[1], Partition: int32(p), Offset: o})
	}
	if len(positions.Positions) == len(to) {
		request.To = &posternv1.SeekSubscriptionRequest_Positions{Positions: positions}
		return nil
	}
	if len(to) > 1 {
		return errors.New("several --to must each be TOPIC[PARTITION]@OFFSET")
	}
	if to[0] == "" {
		return errors.New("--to is empty: it is earliest, latest, a time, how long ago, a cursor, or TOPIC[PARTITION]@OFFSET")
	}
	switch start := startOf(to[0]).GetAt().(type) {
	case *posternv1.Start_Edge:
		request.To = &posternv1.SeekSubscriptionRequest_Edge{Edge: start.Edge}
	case *posternv1.Start_Time:
		request.To = &posternv1.SeekSubscriptionRequest_Time{Time: start.Time}
	case *posternv1.Start_Cursor:
		if !strings.HasPrefix(start.Cursor, "c") {
			return fmt.Errorf("--to %s is neither an edge, a time, how long ago, a cursor nor TOPIC[PARTITION]@OFFSET", to[0])
		}
		request.To = &posternv1.SeekSubscriptionRequest_Cursor{Cursor: &posternv1.SeekCursor{Topic: topic, Cursor: start.Cursor}}
	}
	return nil
}

func statusSubscription() *cobra.Command {
	var a asking
	c := &cobra.Command{
		Use: "status NAME", Short: "Show where a subscription stands, partition by partition", Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				m, err := s.GetSubscriptionStatus(ctx, &posternv1.GetSubscriptionStatusRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.write(c.OutOrStdout(), m, func(t *tabwriter.Writer) { statusTable(t, m) })
			})
		},
	}
	a.flags(c)
	return c
}

func statusTable(t *tabwriter.Writer, m *posternv1.SubscriptionStatus) {
	fmt.Fprintf(t, "%s is %s; lag %d", m.GetName(), enum(m.GetState(), "SUBSCRIPTION_STATE_"), m.GetLag())
	if m.GetOldestUnsettledAge() != nil {
		fmt.Fprintf(t, ", the oldest %s old", howLong(m.GetOldestUnsettledAge()))
	}
	fmt.Fprintf(t, "; asked %s\n", m.GetInstance())
	fmt.Fprintf(t, "%s: %s\n", enum(m.GetCause().GetKind(), "CAUSE_KIND_"), oneLine(m.GetCause().GetSummary()))
	if len(m.GetPartitions()) > 0 {
		fmt.Fprintln(t)
		row(t, "PARTITION", "POSITION", "END", "LAG", "OLDEST", "IN HAND", "WAITING", "PARKED", "BLOCKED KEYS")
	}
	for _, p := range m.GetPartitions() {
		position := ""
		if p.Position != nil {
			position = strconv.FormatInt(p.GetPosition(), 10)
		}
		row(t, fmt.Sprintf("%s[%d]", p.GetTopic(), p.GetPartition()), position, p.GetEndOffset(), p.GetLag(), howLong(p.GetOldestUnsettledAge()),
			p.GetOutstanding(), p.GetWaiting(), p.GetParked(), len(p.GetBlockedKeys()))
	}
	if len(m.GetConsumers()) > 0 {
		fmt.Fprintln(t)
		row(t, "CONSUMER", "KIND", "IN HAND", "WINDOW", "LONGEST HELD")
	}
	for _, one := range m.GetConsumers() {
		row(t, one.GetClientId(), one.GetKind(), one.GetOutstanding(), one.GetWindow(), howLong(one.GetOldestLeaseAge()))
	}
}

// timeOf reads a time, or how long ago.
func timeOf(text string) (*timestamppb.Timestamp, error) {
	if t := startOf(text).GetTime(); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%q is neither a time such as 2026-01-31T10:00:00Z nor how long ago (5m)", text)
}
