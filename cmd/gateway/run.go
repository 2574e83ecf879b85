package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/gateway"
	"github.com/postern-dev/postern/internal/telemetry"
)

func runCommand() *cobra.Command {
	load := &loader{}
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway beside a Kafka",
		Long: `Run the gateway. Settings come from the file given with --config, then from the
environment (POSTERN_KAFKA_BROKERS), then from flags (--kafka-brokers).`,
		Example: "  postern run --config gateway.yaml\n  postern run --kafka-brokers kafka-1:9092,kafka-2:9092",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			settings, err := load.load(c)
			if err != nil {
				return err
			}
			log := telemetry.NewLogger(settings.Telemetry.Log)
			return serve(c.Context(), settings, log, func(g *gateway.Gateway) {
				log.Info("postern is up", "version", buildVersion(), "instance", g.Instance(),
					"http", g.Addrs().HTTP, "grpc", g.Addrs().GRPC, "admin", g.Addrs().Admin, "kafka", settings.Kafka.Brokers)
			})
		},
	}
	load.flags(c)
	return c
}

// serve builds the gateway, tells that it is up, and runs it until ctx ends.
func serve(ctx context.Context, settings config.Config, log *slog.Logger, up func(*gateway.Gateway)) error {
	g, err := gateway.New(ctx, settings, gateway.Options{Version: buildVersion(), Log: log, TendMemory: os.Getenv("GOGC") == ""})
	if err != nil {
		return err
	}
	up(g)
	return g.Run(ctx)
}

// loader reads the configuration a command is given.
type loader struct{ file string }

// flags adds --config and a flag for each setting.
func (l *loader) flags(c *cobra.Command) {
	c.Flags().StringVarP(&l.file, "config", "c", os.Getenv("POSTERN_CONFIG"), "configuration `file` (YAML)")
	for _, name := range config.Settings() {
		c.Flags().String(config.Flag(name), "", "setting "+name+" ("+config.Variable(name)+")")
	}
}

// load reads the configuration; what is wrong with it is the user's to mend.
func (l *loader) load(c *cobra.Command) (config.Config, error) {
	given := map[string]string{}
	byFlag := map[string]string{}
	for _, name := range config.Settings() {
		byFlag[config.Flag(name)] = name
	}
	c.Flags().Visit(func(f *pflag.Flag) {
		if name, ok := byFlag[f.Name]; ok {
			given[name] = f.Value.String()
		}
	})
	settings, err := config.Load(l.file, os.Environ(), given)
	if err != nil {
		return settings, usageError{fmt.Errorf("the configuration is wrong:\n%w", err)}
	}
	return settings, nil
}
