package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery/webhook"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func webhooksCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "webhooks",
		Short: "See, try, stop and restart the endpoints that events are pushed to",
	}
	command.AddCommand(webhooksList(), webhooksShow(), webhooksTest(), webhooksEnable(), webhooksDisable(), webhooksResend(), webhooksRecover(), webhooksKeygen())
	return command
}

// onEndpoints makes a command that calls the service Endpoints.
func onEndpoints(use, short, example string, args cobra.PositionalArgs, call func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error) *cobra.Command {
	var c client
	command := &cobra.Command{
		Use: use, Short: short, Example: example, Args: args,
		RunE: func(command *cobra.Command, args []string) error {
			conn, err := c.connect()
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			err = call(command.Context(), posternv1.NewEndpointsClient(conn), command.OutOrStdout(), args)
			var told toldError
			if usage := (usageError{}); errors.As(err, &usage) || errors.As(err, &told) {
				return err
			}
			return c.explain(command.Context(), err)
		},
	}
	c.flags(command)
	return command
}

// toldError is a result that is a failure though the call was not.
type toldError struct{ error }

func webhooksList() *cobra.Command {
	var output string
	command := onEndpoints("list", "List the endpoints and how they are doing", "  postern webhooks list", cobra.NoArgs,
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, _ []string) error {
			all := &posternv1.ListEndpointsResponse{}
			for token := ""; ; {
				answer, err := c.ListEndpoints(ctx, &posternv1.ListEndpointsRequest{PageToken: token})
				if err != nil {
					return err
				}
				all.Endpoints = append(all.Endpoints, answer.Endpoints...)
				if token = answer.NextPageToken; token == "" {
					break
				}
			}
			if output == "json" {
				return printMessage(w, all)
			}
			printEndpoints(w, all.Endpoints...)
			return nil
		})
	outputFlag(command, &output)
	return command
}

func webhooksShow() *cobra.Command {
	var output string
	command := onEndpoints("show NAME", "Show one endpoint", "  postern webhooks show mail", cobra.ExactArgs(1),
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error {
			e, err := c.GetEndpoint(ctx, &posternv1.GetEndpointRequest{Name: args[0]})
			if err != nil {
				return err
			}
			if output == "json" {
				return printMessage(w, e)
			}
			printEndpoints(w, e)
			return nil
		})
	outputFlag(command, &output)
	return command
}

func printEndpoints(out io.Writer, endpoints ...*posternv1.Endpoint) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tHOST\tSTATE\tUNTIL\tIN FLIGHT\tFAILING SINCE\tREASON")
	at := func(t *timestamppb.Timestamp) string {
		if t == nil {
			return "-"
		}
		return t.AsTime().Format(time.RFC3339)
	}
	for _, e := range endpoints {
		flight := "-"
		if e.GetRunning() {
			flight = fmt.Sprintf("%d/%d", e.GetInFlight(), e.GetLimit())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.GetName(), orDash(e.GetHost()), strings.TrimPrefix(e.GetState().String(), "ENDPOINT_STATE_"),
			at(e.GetUntil()), flight, at(e.GetFailingSince()), orDash(e.GetReason()))
	}
	_ = w.Flush() // to the terminal
}

func webhooksTest() *cobra.Command {
	var data, contentType string
	command := onEndpoints("test NAME", "Send an endpoint one signed sample and tell what it answers", "  postern webhooks test mail\n  postern webhooks test mail --data '{\"order\":1}'", cobra.ExactArgs(1),
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error {
			request := &posternv1.TestEndpointRequest{Name: args[0]}
			if data != "" {
				request.Event = &posternv1.Event{Data: []byte(data), ContentType: contentType}
			}
			answer, err := c.TestEndpoint(ctx, request)
			if err != nil {
				return err
			}
			return tellAttempt(w, answer.GetAttempt())
		})
	command.Flags().StringVarP(&data, "data", "d", "", "what to send instead of the sample")
	command.Flags().StringVar(&contentType, "content-type", "application/json", "of the data")
	return command
}

// tellAttempt prints one attempt; a failure is the command's.
func tellAttempt(w io.Writer, a *posternv1.Attempt) error {
	fmt.Fprintf(w, "%s  %s  in %s\n  webhook-id %s", a.GetHost(), attemptResult(a), timings(a), a.GetWebhookId())
	if len(a.GetKeys()) > 0 {
		fmt.Fprintf(w, "  signed with %s", strings.Join(a.GetKeys(), ", "))
	}
	fmt.Fprintln(w)
	if a.GetAction() != "ack" {
		return toldError{errors.New(a.GetDetail())}
	}
	return nil
}

func webhooksEnable() *cobra.Command {
	return webhooksSwitch("enable NAME", "Begin an endpoint anew, whatever stopped it", "  postern webhooks enable mail --reason 'the receiver is back'",
		func(ctx context.Context, c posternv1.EndpointsClient, name, why string) (*posternv1.Endpoint, error) {
			return c.EnableEndpoint(ctx, &posternv1.EnableEndpointRequest{Name: name, Reason: why})
		})
}

func webhooksDisable() *cobra.Command {
	return webhooksSwitch("disable NAME", "Push nothing to an endpoint until it is enabled; its events wait", "  postern webhooks disable mail --reason maintenance",
		func(ctx context.Context, c posternv1.EndpointsClient, name, why string) (*posternv1.Endpoint, error) {
			return c.DisableEndpoint(ctx, &posternv1.DisableEndpointRequest{Name: name, Reason: why})
		})
}

// webhooksSwitch turns an endpoint on or off, with a reason.
func webhooksSwitch(use, short, example string, turn func(ctx context.Context, c posternv1.EndpointsClient, name, why string) (*posternv1.Endpoint, error)) *cobra.Command {
	var why string
	command := onEndpoints(use, short, example, cobra.ExactArgs(1),
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error {
			e, err := turn(ctx, c, args[0], why)
			if err != nil {
				return err
			}
			printEndpoints(w, e)
			return nil
		})
	command.Flags().StringVar(&why, "reason", "", "why, for whoever looks later")
	return command
}

var placeForm = regexp.MustCompile(`^([a-zA-Z0-9._-]{1,249})\[(\d{1,9})\]@(\d{1,18})$`)

// parsePlace reads orders[0]@12.
func parsePlace(text string) (*posternv1.Position, error) {
	m := placeForm.FindStringSubmatch(text)
	if m == nil {
		return nil, usageError{fmt.Errorf("%q is no place of an event: write it as orders[0]@12", text)}
	}
	partition, err1 := strconv.ParseInt(m[2], 10, 32)
	offset, err2 := strconv.ParseInt(m[3], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return nil, usageError{err}
	}
	return &posternv1.Position{Topic: m[1], Partition: int32(partition), Offset: offset}, nil
}

func webhooksResend() *cobra.Command {
	return onEndpoints("resend NAME PLACE", "Push one event once more, under the same webhook id", "  postern webhooks resend mail 'orders[0]@12'", cobra.ExactArgs(2),
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error {
			at, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			answer, err := c.ResendEvent(ctx, &posternv1.ResendEventRequest{Name: args[0], Position: at})
			if err != nil {
				return err
			}
			return tellAttempt(w, answer.GetAttempt())
		})
}

func webhooksRecover() *cobra.Command {
	var since time.Duration
	var rate float64
	var all, dry bool
	command := onEndpoints("recover NAME", "Push what failed since a time once more, at a rate",
		"  postern webhooks recover mail --since 6h --dry-run\n  postern webhooks recover mail --since 6h --rate 50", cobra.ExactArgs(1),
		func(ctx context.Context, c posternv1.EndpointsClient, w io.Writer, args []string) error {
			if since <= 0 {
				return usageError{errors.New("say since when, such as --since 6h")}
			}
			stream, err := c.RecoverEndpoint(ctx, &posternv1.RecoverEndpointRequest{
				Name: args[0], Since: timestamppb.New(time.Now().Add(-since)), RequestsPerSecond: rate, All: all, DryRun: dry,
			})
			if err != nil {
				return err
			}
			return followRecovery(w, stream.Recv, dry)
		})
	command.Flags().DurationVar(&since, "since", 0, "how long ago to begin, such as 6h")
	command.Flags().Float64Var(&rate, "rate", 10, "most requests a second")
	command.Flags().BoolVar(&all, "all", false, "every event of the subscription's topics, not only those whose last attempt failed")
	command.Flags().BoolVar(&dry, "dry-run", false, "only count")
	return command
}

// followRecovery prints progress: on one line of a terminal, else at the end only.
func followRecovery(w io.Writer, receive func() (*posternv1.RecoverEndpointResponse, error), dry bool) error {
	info, err := os.Stderr.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	for {
		m, err := receive()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%d of %d pushed, %d failed, %d not in Kafka any more", m.GetSucceeded(), m.GetTotal(), m.GetFailed(), m.GetMissing())
		switch {
		case m.GetDone() && dry:
			fmt.Fprintf(w, "%d events would be pushed once more\n", m.GetTotal())
			return nil
		case m.GetDone():
			if terminal {
				fmt.Fprintln(os.Stderr)
			}
			fmt.Fprintln(w, line)
			if f := m.GetLastFailure(); f != nil {
				return toldError{fmt.Errorf("%d failed; the last: %s", m.GetFailed(), f.GetDetail())}
			}
			return nil
		case terminal:
			fmt.Fprintf(os.Stderr, "\r%s", line)
		}
	}
}

func webhooksKeygen() *cobra.Command {
	asymmetric := false
	command := &cobra.Command{
		Use:     "keygen",
		Short:   "Make a key that signs webhooks",
		Example: "  postern webhooks keygen\n  postern webhooks keygen --asymmetric",
		Args:    cobra.NoArgs,
		Run: func(command *cobra.Command, _ []string) {
			if !asymmetric {
				fmt.Fprintln(command.OutOrStdout(), webhook.GenerateSecret())
				return
			}
			private, public := webhook.GenerateKeyPair()
			fmt.Fprintf(command.OutOrStdout(), "%s\n%s\n", private, public)
		},
	}
	command.Flags().BoolVar(&asymmetric, "asymmetric", false, "an ed25519 key: the private one for the gateway, and the public one for receivers")
	return command
}
