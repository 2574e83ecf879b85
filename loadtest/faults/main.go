// Command faults tries the promises with real processes: gateways, one or three
// Kafka brokers, and links between them that can be broken. It starts a Kafka of its
// own, runs package prove on it with faults of brokers, links and disks beside
// those of gateways, and prints what was broken, what that showed, and how long
// the worst recovery took. It fails when a promise was broken.
//
// With -dev it is postern dev instead, one process with the broker in it, on a disk
// that is full or fails; what it acknowledged must be there after the kill at the end.
//
//	faults [-dev] [-brokers 1|3] [-gateways 3] [-duration 3m] [-seed N] [-without WORDS] [-json FILE] [-history FILE]
//
// The disk faults need root (a tmpfs is mounted) and strace; -without disk leaves them out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/prove"
)

type settings struct {
	dev      bool
	program  string
	kafka    string // folder of the scripts
	brokers  int
	gateways int
	duration time.Duration
	seed     uint64
	without  string
	jsonFile string
	history  string
}

func main() {
	var s settings
	flag.StringVar(&s.program, "gateway", "bin/postern", "the gateway's program")
	flag.BoolVar(&s.dev, "dev", false, "postern dev on a bad disk, instead of gateways and Kafka")
	flag.StringVar(&s.kafka, "kafka", "tools/kafka", "the folder of the scripts that start Kafka")
	flag.IntVar(&s.brokers, "brokers", 1, "1, or 3: a topic then has three replicas")
	flag.IntVar(&s.gateways, "gateways", 3, "1 to 3")
	flag.DurationVar(&s.duration, "duration", 3*time.Minute, "of load and faults")
	flag.Uint64Var(&s.seed, "seed", 0, "of faults and clients (default: drawn, and printed)")
	flag.StringVar(&s.without, "without", "", "leave out the faults whose names contain one of these `words`, separated by commas")
	flag.StringVar(&s.jsonFile, "json", "", "write the result to this file")
	flag.StringVar(&s.history, "history", "", "write all that the clients saw to this file, as lines of JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	if s.gateways < 1 || s.gateways > maxGateways {
		return fmt.Errorf("-gateways %d is out of range: 1 to %d", s.gateways, maxGateways)
	}
	if s.brokers != 1 && s.brokers != 3 {
		return fmt.Errorf("-brokers %d is not offered: 1 or 3", s.brokers)
	}
	options, stop, err := begin(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	options.Program, options.Duration, options.Seed = []string{s.program}, s.duration, s.seed
	options.Progress = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	options.Faults = slices.DeleteFunc(options.Faults, func(f prove.Fault) bool {
		return slices.ContainsFunc(strings.Split(s.without, ","), func(word string) bool { return word != "" && strings.Contains(f.Name, word) })
	})
	if s.history != "" {
		file, err := os.Create(s.history)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		options.History = file
	}
	result, err := prove.Run(ctx, options)
	if err != nil {
		return err
	}
	fmt.Print(result.Text())
	if s.jsonFile != "" {
		text, err := json.MarshalIndent(result, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.jsonFile, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	for _, f := range options.Faults {
		if result.Broken[f.Name] == 0 {
			err = errors.Join(err, fmt.Errorf("%q never came: the run was too short to show anything about it", f.Name))
		}
	}
	if !result.OK() {
		err = errors.Join(err, errors.New("a promise was broken"))
	}
	return err
}

// begin starts what the run is about.
func begin(ctx context.Context, s settings) (o prove.Options, stop func() error, err error) {
	if s.dev {
		d, err := newDev()
		if err != nil {
			return o, nil, err
		}
		if o, err = d.options(); err != nil {
			return o, nil, errors.Join(err, d.stop())
		}
		return o, d.stop, nil
	}
	k, err := startCluster(ctx, s, !strings.Contains(s.without, "disk"))
	if err != nil {
		return o, nil, err
	}
	return prove.Options{Brokers: k.addresses, Through: k.through, Gateways: s.gateways, Faults: k.faults()}, k.stop, nil
}
