package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/internal/embedded"
	"github.com/postern-dev/postern/internal/prove"
)

// proving is what `postern prove` is told.
type proving struct {
	brokers  []string
	duration time.Duration
	gateways int
	seed     uint64
	output   string
	history  string
}

func proveCommand() *cobra.Command {
	p := &proving{}
	c := &cobra.Command{
		Use:   "prove",
		Short: "Break gateways on purpose, under load, and check what is promised",
		Long: `Start gateways of this program with a broker of their own, put load on them, kill,
freeze and restart them, and then check what every client saw against what is
promised: nothing acknowledged is lost, nothing is skipped, order per key holds.

The broker is the one of postern dev: it proves nothing about a disk. Name a test
cluster with --kafka-brokers to prove on it; a topic and a group whose names begin
with prove- are made there, and the topic is removed at the end.

Exit codes: 0 all promises held, 1 one was broken or the run could not be made.`,
		Example: "  postern prove\n  postern prove --duration 5m --gateways 3\n  postern prove --kafka-brokers kafka-1:9092 --output json",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return p.run(c.Context(), os.Stdout, os.Stderr) },
	}
	c.Flags().StringSliceVar(&p.brokers, "kafka-brokers", nil, "`addresses` of a test cluster (default: a broker of its own, in memory)")
	c.Flags().DurationVar(&p.duration, "duration", 30*time.Second, "how long to load and break; at least 10s")
	c.Flags().IntVar(&p.gateways, "gateways", 2, "how many gateways, 1 to 9")
	c.Flags().Uint64Var(&p.seed, "seed", 0, "of faults and clients (default: drawn, and printed)")
	c.Flags().StringVar(&p.output, "output", "table", "table or json")
	c.Flags().StringVar(&p.history, "history", "", "`file` for all that the clients saw, as lines of JSON")
	return c
}

func (p *proving) run(ctx context.Context, out, progress io.Writer) (err error) {
	switch {
	case p.output != "table" && p.output != "json":
		return usageError{fmt.Errorf("--output %s is not offered: use table or json", p.output)}
	case p.gateways < 1 || p.gateways > 9:
		return usageError{fmt.Errorf("--gateways %d is out of range: 1 to 9", p.gateways)}
	case p.duration < 10*time.Second:
		return usageError{fmt.Errorf("--duration %s is too short to break anything: at least 10s", p.duration)}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	options := prove.Options{
		Brokers: p.brokers, Program: []string{self}, Gateways: p.gateways, Duration: p.duration, Seed: p.seed,
		Progress: func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) },
	}
	if len(p.brokers) == 0 {
		own, err := embedded.Start(ctx, embedded.Options{Address: "127.0.0.1:0"})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, own.Close()) }()
		options.Brokers = []string{own.Addr()}
	}
	if p.history != "" {
		file, err := os.Create(p.history)
		if err != nil {
			return usageError{err}
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		options.History = file
	}
	result, err := prove.Run(ctx, options)
	if err != nil {
		return err
	}
	if p.output == "json" {
		to := json.NewEncoder(out)
		to.SetIndent("", "  ")
		if err := to.Encode(result); err != nil {
			return err
		}
	} else {
		fmt.Fprint(out, result.Text())
	}
	if !result.OK() {
		return errors.New("a promise was broken: keep the history (--history FILE) and report it")
	}
	return nil
}
