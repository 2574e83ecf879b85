package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// compare prints two runs' cells side by side: medians, and whether their ranges
// part. It compares what both have, and says what only one has.
func compare(out io.Writer, before, after string) error {
	a, errA := readCells(before)
	b, errB := readCells(after)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	type place struct{ scenario, contender string }
	var order []place
	sides := [2]map[place][]cell{{}, {}}
	for side, cells := range [2][]cell{a, b} {
		for _, c := range cells {
			at := place{c.Scenario, c.Contender}
			if !slices.Contains(order, at) {
				order = append(order, at)
			}
			sides[side][at] = append(sides[side][at], c)
		}
	}
	figures := []struct {
		name string
		of   func(cell) float64
	}{
		{"CPU s/M", func(c cell) float64 { return c.CPU }},
		{"events/s", func(c cell) float64 { return c.PerSecond }},
		{"p50 ms", func(c cell) float64 { return c.P50 }},
		{"p99 ms", func(c cell) float64 { return c.P99 }},
		{"p99.9 ms", func(c cell) float64 { return c.P999 }},
		{"RSS MiB", func(c cell) float64 { return float64(c.RSS) }},
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tcontender\tfigure\tbefore\tafter\tafter/before\tranges")
	both := 0
	for _, at := range order {
		old, now := sides[0][at], sides[1][at]
		if len(old) == 0 || len(now) == 0 {
			fmt.Fprintf(w, "%s\t%s\tonly in one of the two\n", at.scenario, at.contender)
			continue
		}
		both++
		for _, f := range figures {
			x, y := values(old, f.of), values(now, f.of)
			if x[len(x)-1] == 0 && y[len(y)-1] == 0 {
				continue // not measured here
			}
			quotient := "-"
			if m := x[len(x)/2]; m > 0 {
				quotient = fmt.Sprintf("%.2f", y[len(y)/2]/m)
			}
			verdict := "overlap"
			if x[len(x)-1] < y[0] || y[len(y)-1] < x[0] {
				verdict = "part"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", at.scenario, at.contender, f.name, show(x), show(y), quotient, verdict)
		}
	}
	if both == 0 {
		return fmt.Errorf("%s and %s have no cell in common", before, after)
	}
	return w.Flush()
}

func values(cells []cell, f func(cell) float64) []float64 {
	var all []float64
	for _, c := range cells {
		all = append(all, f(c))
	}
	slices.Sort(all)
	return all
}

func readCells(path string) ([]cell, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	var all []cell
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var c cell
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil || c.Scenario == "" {
			return nil, fmt.Errorf("%s:%d is no cell: write it with -json (%w)", path, n, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.Join(fmt.Errorf("%s has no cells", path), lines.Err())
	}
	return all, lines.Err()
}
