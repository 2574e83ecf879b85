package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func checkCommand() *cobra.Command {
	load := &loader{}
	c := &cobra.Command{
		Use:     "check",
		Short:   "Check a configuration and report everything wrong with it at once",
		Example: "  postern check --config gateway.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			settings, err := load.load(c)
			if err != nil {
				return err
			}
			webhooks := 0
			for _, s := range settings.Subscriptions {
				if s.Webhook != nil {
					webhooks++
				}
			}
			fmt.Fprintf(c.OutOrStdout(), "The configuration is good: %d subscriptions, %d of them webhooks, on %v.\n", len(settings.Subscriptions), webhooks, settings.Kafka.Brokers)
			return nil
		},
	}
	load.flags(c)
	return c
}
