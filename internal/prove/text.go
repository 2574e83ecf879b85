package prove

import (
	"fmt"
	"strings"
	"time"
)

// Text writes r for people.
func (r Result) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d events published (%d of unknown outcome), %d stored, %d deliveries (%d again), %d settled, %d dead letters, in %s; seed %d\n",
		r.Report.Published, r.Report.Unknowns, r.Report.Stored, r.Report.Deliveries, r.Report.Redelivered, r.Report.Settled, r.Report.DeadLetters, r.Took.Round(time.Second), r.Seed)
	for _, name := range sortedKeys(r.Broken) {
		fmt.Fprintf(&b, "  %2d x %-62s back after %.1f s at worst\n", r.Broken[name], name, r.Recovery[name].Seconds())
	}
	fmt.Fprintln(&b)
	for _, p := range r.Promises {
		verdict := "held"
		if !p.Held {
			verdict = fmt.Sprintf("BROKEN %d times", len(p.Broken))
		}
		fmt.Fprintf(&b, "  %-68s %s\n", p.Text, verdict)
		for i, a := range p.Broken {
			if i == 5 {
				fmt.Fprintf(&b, "      ... and %d more\n", len(p.Broken)-5)
				break
			}
			fmt.Fprintf(&b, "      %s: %s\n", a.Kind, a.What)
		}
	}
	for _, odd := range r.Odd {
		fmt.Fprintf(&b, "  odd: %s\n", odd)
	}
	return b.String()
}
