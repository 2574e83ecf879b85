package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

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
environment (POSTERN_KAFKA_BROKERS), then from flags (--kafka-brokers).

When the file changes, and on SIGHUP, it is read anew: its subscriptions are put in
force without disturbing those that did not change. A file that is wrong is told
in the log, and the last good one stands. Other settings need a restart.`,
		Example: "  postern run --config gateway.yaml\n  postern run --kafka-brokers kafka-1:9092,kafka-2:9092",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			known := config.ContentOf(load.file)
			settings, err := load.load(c)
			if err != nil {
				return err
			}
			log := telemetry.NewLogger(settings.Telemetry.Log)
			reload := reloading{load.file, known, func() (config.Config, error) { return load.load(c) }}
			return serve(c.Context(), settings, log, reload, func(g *gateway.Gateway) {
				log.Info("postern is up", "version", buildVersion(), "instance", g.Instance(),
					"http", g.Addrs().HTTP, "grpc", g.Addrs().GRPC, "admin", g.Addrs().Admin, "kafka", settings.Kafka.Brokers)
			})
		},
	}
	load.flags(c)
	return c
}

// serve builds the gateway, tells that it is up, and runs it until ctx ends.
func serve(ctx context.Context, settings config.Config, log *slog.Logger, r reloading, up func(*gateway.Gateway)) error {
	g, err := gateway.New(ctx, settings, gateway.Options{Version: buildVersion(), Log: log, TendMemory: os.Getenv("GOGC") == ""})
	if err != nil {
		return err
	}
	up(g)
	watching, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { r.run(watching, log, g.Reload) })
	defer work.Wait()
	defer stop()
	return g.Run(ctx)
}

// reloading reads the configuration anew when its file changes, and on SIGHUP.
type reloading struct {
	file  string         // "": there is none
	known config.Content // what it held before it was last read
	load  func() (config.Config, error)
}

func (r reloading) run(ctx context.Context, log *slog.Logger, use func(config.Config) error) {
	wanted := make(chan struct{}, 1)
	want := func() {
		select {
		case wanted <- struct{}{}:
		default:
		}
	}
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	var work sync.WaitGroup
	defer work.Wait()
	if r.file != "" {
		work.Go(func() {
			if err := config.Watch(ctx, r.file, r.known, want); err != nil {
				log.Warn("the configuration's file is not watched: send SIGHUP after a change", "error", err)
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangUp:
			want()
			continue
		case <-wanted:
		}
		settings, err := r.load()
		if err == nil {
			err = use(settings)
		}
		if err != nil {
			log.Error("the configuration that was read anew is wrong; the last good one stands", "error", err)
		}
	}
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
