package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func attemptsCommand() *cobra.Command {
	var c client
	var subscription, webhookID, output string
	var failed bool
	var since time.Duration
	var limit int32
	command := &cobra.Command{
		Use:   "attempts [EVENT-ID]",
		Short: "Show every attempt to push an event to an endpoint",
		Long: `Show the attempts to push an event, found by its CloudEvents id or by the
webhook id its receiver saw: when, what was answered, how long each part took, and
the trace. The log keeps seven days.`,
		Example: "  postern attempts order-1234\n  postern attempts --webhook-id msg_J4QO...\n  postern attempts --subscription mail --failed --since 1h",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			request := &posternv1.ListAttemptsRequest{WebhookId: webhookID, Subscription: subscription, Failed: failed, Limit: limit}
			if len(args) == 1 {
				request.EventId = args[0]
			}
			if request.EventId == "" && webhookID == "" && subscription == "" {
				return usageError{fmt.Errorf("say which attempts: an event's id, --webhook-id or --subscription")}
			}
			if since > 0 {
				request.Since = timestamppb.New(time.Now().Add(-since))
			}
			conn, err := c.connect()
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			answer, err := posternv1.NewEndpointsClient(conn).ListAttempts(ctx, request)
			if err != nil {
				return c.explain(ctx, err)
			}
			if output == "json" {
				return printMessage(command.OutOrStdout(), answer)
			}
			if len(answer.Attempts) == 0 {
				fmt.Fprintln(command.OutOrStdout(), "no attempts are logged")
				return nil
			}
			printAttempts(command.OutOrStdout(), answer.Attempts)
			if answer.Truncated {
				fmt.Fprintf(command.OutOrStdout(), "only the last %d are shown: see --limit\n", len(answer.Attempts))
			}
			return nil
		},
	}
	c.flags(command)
	command.Flags().StringVarP(&subscription, "subscription", "s", "", "only attempts of this subscription")
	command.Flags().StringVar(&webhookID, "webhook-id", "", "the webhook-id header the receiver saw")
	command.Flags().BoolVar(&failed, "failed", false, "only attempts that did not succeed")
	command.Flags().DurationVar(&since, "since", 0, "only attempts of this last `time`, such as 2h")
	command.Flags().Int32VarP(&limit, "limit", "n", 0, "at most this many, the latest (default 100)")
	outputFlag(command, &output)
	return command
}

func outputFlag(command *cobra.Command, output *string) {
	command.Flags().StringVarP(output, "output", "o", "table", "table or json")
	before := command.PreRunE
	command.PreRunE = func(c *cobra.Command, args []string) error {
		if *output != "table" && *output != "json" {
			return usageError{fmt.Errorf("--output %s: use table or json", *output)}
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
}

func printMessage(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(m)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n", b)
	return nil
}

func printAttempts(out io.Writer, attempts []*posternv1.Attempt) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tSUBSCRIPTION\tEVENT\tATTEMPT\tRESULT\tTOOK\tTRACE\tDETAIL")
	for _, a := range attempts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.GetTime().AsTime().Format(time.RFC3339), a.GetSubscription(), place(a.GetPosition()),
			attemptNumber(a), attemptResult(a), timings(a), orDash(a.GetTraceId()), a.GetDetail())
	}
	_ = w.Flush() // to the terminal
}

func place(p *posternv1.Position) string {
	return fmt.Sprintf("%s[%d]@%d", p.GetTopic(), p.GetPartition(), p.GetOffset())
}

func attemptNumber(a *posternv1.Attempt) string {
	if a.GetReplay() {
		return "resent"
	}
	return fmt.Sprint(a.GetNumber())
}

func attemptResult(a *posternv1.Attempt) string {
	if a.GetStatus() == 0 {
		return a.GetAction() + " (" + a.GetClass() + ")"
	}
	return fmt.Sprintf("%s (%s %d)", a.GetAction(), a.GetClass(), a.GetStatus())
}

// timings says how long all of it took, and of what that was made.
func timings(a *posternv1.Attempt) string {
	var parts []string
	for _, part := range []struct {
		name string
		took time.Duration
	}{
		{"dns", a.GetDns().AsDuration()},
		{"connect", a.GetConnect().AsDuration()},
		{"tls", a.GetTls().AsDuration()},
		{"first byte", a.GetFirstByte().AsDuration()},
	} {
		if part.took > 0 {
			parts = append(parts, part.name+" "+rounded(part.took))
		}
	}
	total := rounded(a.GetTotal().AsDuration())
	if len(parts) == 0 {
		return total
	}
	return total + " (" + strings.Join(parts, ", ") + ")"
}

func rounded(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
