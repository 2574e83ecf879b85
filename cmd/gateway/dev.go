package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/embedded"
	"github.com/postern-dev/postern/internal/gateway"
	"github.com/postern-dev/postern/internal/telemetry"
)

// dev is what `postern dev` is told.
type dev struct {
	memory  bool
	dataDir string
	kafka   string
	schemas string
}

func devCommand() *cobra.Command {
	load, d := &loader{}, &dev{}
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run the gateway with a broker of its own, to try and to develop",
		Long: `Run the gateway with an embedded broker that stands in for Kafka on a real Kafka
port. Topics are created on first use. Data is kept between runs.`,
		Example: "  postern dev\n  postern dev --memory\n  postern dev --config gateway.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return d.run(c.Context(), c, load)
		},
	}
	load.flags(c)
	c.Flags().BoolVar(&d.memory, "memory", false, "keep the data in memory; it is gone at the end")
	c.Flags().StringVar(&d.dataDir, "data-dir", "", "`folder` for the data (default: under your state directory)")
	c.Flags().StringVar(&d.schemas, "registry-listen", "127.0.0.1:7603", "`address` of the embedded schema registry; not started when --schema-registry-urls names another")
	c.Flags().StringVar(&d.kafka, "kafka-listen", "127.0.0.1:19092", "`address` of the embedded broker's Kafka port")
	return c
}

func (d *dev) run(ctx context.Context, c *cobra.Command, load *loader) (err error) {
	began := time.Now()
	if !d.memory && d.dataDir == "" {
		if d.dataDir, err = embedded.DefaultDir(); err != nil {
			return err
		}
	}
	if d.memory {
		d.dataDir = ""
	}
	broker, err := embedded.Start(ctx, embedded.Options{Dir: d.dataDir, Address: d.kafka})
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-broker.Failed():
			fmt.Fprintln(os.Stderr, "postern: the embedded broker's disk has failed, it answers nobody any more: stopping") // Close says more
			stop()
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer stop()
	if err := c.Flags().Set(config.Flag("kafka.brokers"), broker.Addr()); err != nil {
		return err
	}
	registryURL, closeRegistry, err := d.startRegistry(c)
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, closeRegistry()) }()
	read := func() (config.Config, error) {
		settings, err := load.load(c)
		settings.Kafka.AutoCreateTopics = true
		settings.Kafka.TLS, settings.Kafka.SASL = nil, nil // the embedded broker has neither
		// A developer's receiver is on this machine.
		settings.SubscriptionsAPI.AllowHTTP, settings.SubscriptionsAPI.AllowLoopback = true, true
		for i := range settings.Subscriptions {
			if w := settings.Subscriptions[i].Webhook; w != nil {
				w.AllowLoopback, w.AllowHTTP = true, true
			}
		}
		return settings, err
	}
	known := config.ContentOf(load.file)
	settings, err := read()
	if err != nil {
		return err
	}
	log := telemetry.NewLogger(settings.Telemetry.Log)
	return serve(ctx, settings, log, reloading{load.file, known, read}, func(g *gateway.Gateway) {
		d.banner(os.Stdout, g, broker, registryURL, time.Since(began))
	})
}

// startRegistry starts the schema registry of our own, unless another is named.
func (d *dev) startRegistry(c *cobra.Command) (url string, stop func() error, err error) {
	name := "schema_registry.urls"
	if c.Flags().Changed(config.Flag(name)) || os.Getenv(config.Variable(name)) != "" {
		return "", func() error { return nil }, nil
	}
	registry, err := embedded.StartRegistry(embedded.RegistryOptions{Dir: d.dataDir, Address: d.schemas})
	if errors.Is(err, syscall.EADDRINUSE) && !c.Flags().Changed("registry-listen") {
		// Another postern dev has the usual one; the banner tells which this has.
		registry, err = embedded.StartRegistry(embedded.RegistryOptions{Dir: d.dataDir, Address: "127.0.0.1:0"})
	}
	if err != nil {
		return "", nil, err
	}
	return registry.URL(), registry.Close, c.Flags().Set(config.Flag(name), registry.URL())
}

// banner tells where everything is, with commands to copy.
func (d *dev) banner(w io.Writer, g *gateway.Gateway, broker *embedded.Broker, registryURL string, took time.Duration) {
	a := g.Addrs()
	data := "in memory, gone at the end"
	if d.dataDir != "" {
		data = "kept in " + d.dataDir
	}
	if broker.Recovered {
		data += " (the last run did not end in order)"
	}
	schemas := ""
	if registryURL != "" {
		schemas = "\n  Schema registry (Confluent's API)  " + registryURL
	}
	fmt.Fprintf(w, `
  Postern %[1]s, ready in %[2]d ms

  HTTP   http://%[3]s         gRPC   %[4]s
  Admin  http://%[5]s/readyz  Kafka  %[6]s%[9]s

  The Kafka here is a stand-in for developing (data %[7]s).
  One copy on one disk: it does not prove durability, and Java's admin client,
  Connect and Streams do not work with it. Kafka clients of Go, C, Python and
  Java's producer and consumer do.

  Try it (topics are created on first use):

    curl http://%[3]s/v1/topics/orders/events -H 'Content-Type: application/json' -H 'Postern-Key: anna' -d '{"item":"tea"}'
    curl -N 'http://%[3]s/v1/topics/orders/events?from=earliest'
    curl -N 'http://%[3]s/v1/subscriptions/mail/events?topic=orders&ack=on_send'
    grpcurl -plaintext -d '{"topic":"orders","events":[{"key":"YW5uYQ==","data":"dGVh"}]}' %[4]s postern.v1.Publisher/Publish
    postern publish orders --key anna 'more tea'%[8]s
    postern subscribe mail --topic orders%[8]s
    kcat -b %[6]s -t orders -C

  Ctrl-C drains and stops.

`, buildVersion(), took.Milliseconds(), a.HTTP, a.GRPC, a.Admin, broker.Addr(), data, addressFlag(a.GRPC), schemas)
}

// addressFlag is what the client commands need when the gRPC address is not their default.
func addressFlag(grpc string) string {
	if grpc == defaultGRPC {
		return ""
	}
	return " --address " + grpc
}
