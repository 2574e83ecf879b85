package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func whyCommand() *cobra.Command {
	var a asking
	c := &cobra.Command{
		Use:   "why SUBSCRIPTION",
		Short: "Name the one cause of a subscription's lag, with the figures behind it",
		Long: `Name the one cause of a subscription's lag to look at first, with the figures
behind it.
` + exitCodes,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				m, err := s.GetSubscriptionStatus(ctx, &posternv1.GetSubscriptionStatusRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.write(c.OutOrStdout(), m.GetCause(), func(t *tabwriter.Writer) { whyTable(t, m) })
			})
		},
	}
	a.flags(c)
	return c
}

func whyTable(t *tabwriter.Writer, m *posternv1.SubscriptionStatus) {
	cause := m.GetCause()
	fmt.Fprintf(t, "%s: %s\n", strings.ToUpper(enum(cause.GetKind(), "CAUSE_KIND_")), oneLine(cause.GetSummary()))
	if cause.GetSince() != nil {
		row(t, "since", when(cause.GetSince()))
	}
	row(t, "lag", m.GetLag())
	if m.GetOldestUnsettledAge() != nil {
		row(t, "oldest unsettled", howLong(m.GetOldestUnsettledAge()))
	}
	for _, name := range slices.Sorted(maps.Keys(cause.GetFigures())) {
		row(t, strings.ReplaceAll(name, "_", " "), cause.GetFigures()[name])
	}
	if b := cause.GetBlocked(); b != nil {
		p := b.GetPosition()
		row(t, "blocked by", fmt.Sprintf("%s[%d]@%d key=%q", p.GetTopic(), p.GetPartition(), p.GetOffset(), b.GetKey()))
		row(t, "blocked since", when(b.GetSince()))
		row(t, "attempts", b.GetAttempts())
		row(t, "next attempt", when(b.GetNextAttempt()))
		row(t, "waiting behind it", b.GetWaiting())
		row(t, "error", b.GetError())
	}
}
