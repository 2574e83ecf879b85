package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/gateway"
)

// connectTimeout bounds what is asked of Kafka.
const connectTimeout = 15 * time.Second

func checkCommand() *cobra.Command {
	load := &loader{}
	connect := false
	c := &cobra.Command{
		Use:     "check",
		Short:   "Check a configuration and report everything wrong with it at once",
		Example: "  postern check --config gateway.yaml\n  postern check --config gateway.yaml --connect",
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
			if !connect {
				return nil
			}
			return checkConnected(c, settings)
		},
	}
	load.flags(c)
	c.Flags().BoolVar(&connect, "connect", false, "ask Kafka too: the subscriptions' topics, and the settings of share groups")
	return c
}

// checkConnected tells what must change in Kafka, and changes nothing.
func checkConnected(c *cobra.Command, settings config.Config) error {
	ctx, cancel := context.WithTimeout(c.Context(), connectTimeout)
	defer cancel()
	all, err := gateway.Connect(ctx, settings)
	if err != nil {
		return err
	}
	wrong := 0
	for _, found := range all {
		fmt.Fprintln(c.OutOrStdout(), found)
		if !found.ByGateway {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of Kafka's answers do not fit the configuration", wrong)
	}
	fmt.Fprintln(c.OutOrStdout(), "Kafka answers, and has what the configuration needs.")
	return nil
}
