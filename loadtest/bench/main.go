// Command bench measures the gateway against floors and against the Kafka
// client, on a real Kafka, in interleaved rounds of one run.
//
// Every contender is a process of its own: the gateway (bin/postern), the floor
// (this program as "floor": the barest net/http and grpc-go handlers that
// produce and wait), and, as the limit, the Kafka client driven directly
// ("direct", in a process of its own too). What counts is a contender's CPU
// seconds per million events, read from the system, and events per second; a
// claim is a ratio within one run. Each cell asserts how many events were
// stored or delivered: one that did nothing fails.
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
	"text/tabwriter"
	"time"
)

// settings of a run.
type settings struct {
	bootstrap string
	gateway   string
	rounds    int
	cell      time.Duration
	drain     int
	only      string
	jsonFile  string
	profiles  string
}

func main() {
	var s settings
	quick := false
	flag.StringVar(&s.bootstrap, "bootstrap", os.Getenv("KAFKA_BOOTSTRAP"), "Kafka to measure on")
	flag.StringVar(&s.gateway, "gateway", "bin/postern", "the gateway's program")
	flag.IntVar(&s.rounds, "rounds", 5, "interleaved rounds")
	flag.DurationVar(&s.cell, "cell", 2*time.Second, "length of a publish cell")
	flag.IntVar(&s.drain, "drain", 200_000, "events of a drain cell")
	flag.StringVar(&s.only, "only", "", "only scenarios whose name contains this")
	flag.StringVar(&s.jsonFile, "json", "", "append one JSON line for each cell to this file")
	flag.StringVar(&s.profiles, "profile", "", "write a CPU profile of the gateway for each of its cells into this folder")
	against := flag.String("compare", "", "compare the cells of this `file` (written by -json) with those of the file given as argument, and measure nothing")
	flag.BoolVar(&quick, "quick", false, "three rounds of 1 s cells: under 3 minutes")
	weigh := flag.Bool("footprint", false, "measure start, idle memory, connections and growth instead of the speed tables")
	push := flag.Bool("webhooks", false, "measure pushing to webhooks instead of the speed tables")
	many := flag.Int("crowd", 0, "measure what this many subscriptions of one gateway cost instead of the speed tables")
	role := flag.String("role", "", "used by the program itself: floor, direct, poster or groups")
	flag.Parse()
	if quick {
		s.rounds, s.cell, s.drain = 3, time.Second, 100_000
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch *role {
	case "":
		switch {
		case *against != "":
			err = compare(os.Stdout, *against, flag.Arg(0))
		case s.bootstrap == "":
			err = errors.New("no Kafka is named: set KAFKA_BOOTSTRAP, or use tools/bench, which starts one")
		case *weigh:
			err = footprint(ctx, s)
		case *push:
			err = webhooks(ctx, s)
		case *many > 0:
			err = crowd(ctx, s, *many)
		default:
			err = run(ctx, s)
		}
	case "floor":
		err = serveFloor(ctx, s.bootstrap)
	case "poster":
		err = servePoster(ctx, s.bootstrap)
	case "direct":
		err = serveDirect(ctx, s.bootstrap)
	case "groups":
		err = serveGroups(ctx, s.bootstrap, s.only, *many)
	default:
		err = fmt.Errorf("unknown role %q", *role)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// cell is one measurement.
type cell struct {
	Scenario  string  `json:"scenario"`
	Contender string  `json:"contender"`
	Round     int     `json:"round"`
	Events    int64   `json:"events"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"events_per_second"`
	CPU       float64 `json:"cpu_seconds_per_million"`
	Generator float64 `json:"generator_cpu_seconds_per_million"` // of this process, which shares the cores with what it measures
	P50       float64 `json:"p50_ms,omitempty"`
	P99       float64 `json:"p99_ms,omitempty"`
	P999      float64 `json:"p999_ms,omitempty"`
	RSS       int64   `json:"rss_mib"`
}

func run(ctx context.Context, s settings) error {
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	defer b.close()
	var scenarios []scenario
	for _, sc := range all {
		if strings.Contains(sc.name, s.only) {
			scenarios = append(scenarios, sc)
		}
	}
	if len(scenarios) == 0 {
		return fmt.Errorf("no scenario is called %q", s.only)
	}
	fmt.Fprintln(os.Stderr, "warming the broker")
	if err := b.warm(ctx); err != nil {
		return err
	}
	var cells []cell
	total, done := 0, 0
	info, err := os.Stderr.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	for _, sc := range scenarios {
		total += s.rounds * len(sc.contenders)
	}
	for round := range s.rounds {
		for _, sc := range scenarios {
			// The order turns with the rounds, so that none always comes first.
			for i := range sc.contenders {
				contender := sc.contenders[(i+round)%len(sc.contenders)]
				c, err := b.measure(ctx, sc, contender)
				if err != nil {
					return fmt.Errorf("%s by %s: %w", sc.name, contender, err)
				}
				c.Round = round
				cells = append(cells, c)
				done++
				if terminal {
					fmt.Fprintf(os.Stderr, "\r%3d of %d cells  %-40s", done, total, sc.name+" "+contender)
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr)
	table(scenarios, cells)
	return writeJSON(s.jsonFile, cells)
}

func writeJSON(path string, cells []cell) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for _, c := range cells {
		err = errors.Join(err, e.Encode(c))
	}
	return errors.Join(err, f.Close())
}

// table prints median (min-max) over the rounds, and the ratio of the gateway
// to the floor taken round by round.
func table(scenarios []scenario, cells []cell) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tcontender\tCPU s/M\tgenerator's\tevents/s\tp50 ms\tp99 ms\tp99.9 ms\tRSS MiB\tCPU ratio\tevents/s ratio")
	for _, sc := range scenarios {
		by := map[string][]cell{}
		for _, c := range cells {
			if c.Scenario == sc.name {
				by[c.Contender] = append(by[c.Contender], c)
			}
		}
		for _, contender := range sc.contenders {
			pick := func(f func(cell) float64) string { return spread(by[contender], f) }
			cpu, speed := "", ""
			if contender != sc.contenders[0] { // the first is what the others are measured by
				cpu = ratio(by[contender], by[sc.contenders[0]], func(c cell) float64 { return c.CPU })
				speed = ratio(by[contender], by[sc.contenders[0]], func(c cell) float64 { return c.PerSecond })
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", sc.name, contender,
				pick(func(c cell) float64 { return c.CPU }), pick(func(c cell) float64 { return c.Generator }), pick(func(c cell) float64 { return c.PerSecond }),
				pick(func(c cell) float64 { return c.P50 }), pick(func(c cell) float64 { return c.P99 }), pick(func(c cell) float64 { return c.P999 }),
				pick(func(c cell) float64 { return float64(c.RSS) }), cpu, speed)
		}
	}
	_ = w.Flush() // to the terminal
}

func spread(cells []cell, f func(cell) float64) string {
	var values []float64
	for _, c := range cells {
		values = append(values, f(c))
	}
	return show(values)
}

func ratio(a, b []cell, f func(cell) float64) string {
	var values []float64
	for i := range min(len(a), len(b)) {
		if f(b[i]) > 0 {
			values = append(values, f(a[i])/f(b[i]))
		}
	}
	return show(values)
}

func show(values []float64) string {
	if len(values) == 0 {
		return "-"
	}
	slices.Sort(values)
	format := func(v float64) string {
		switch {
		case v == 0:
			return "-"
		case v < 10:
			return fmt.Sprintf("%.2f", v)
		case v < 1000:
			return fmt.Sprintf("%.1f", v)
		}
		return fmt.Sprintf("%.0f", v)
	}
	if values[0] == 0 && values[len(values)-1] == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s-%s)", format(values[len(values)/2]), format(values[0]), format(values[len(values)-1]))
}
