package prove

import (
	"strings"
	"time"

	"github.com/postern-dev/postern/history"
)

// mended begins the note that says when a fault's cause was gone.
const mended = "mended: "

type place struct {
	topic     string
	partition int32
	offset    int64
}

// recovery gives for each fault the longest time from its mending until, in each
// partition that was written to later, an event stored after the mending was
// settled. A fault that follows soon adds to it. One after which nothing was
// stored any more has none.
func recovery(entries []history.Entry) map[string]time.Duration {
	type wait struct {
		fault      string
		since      time.Duration
		partitions map[place]bool // that have recovered; their offset is 0
	}
	stored := map[place]time.Duration{}
	worst := map[string]time.Duration{}
	var waits []*wait
	for _, e := range entries {
		switch e.Kind {
		case history.Note:
			if name, ok := strings.CutPrefix(e.Value, mended); ok {
				waits = append(waits, &wait{name, e.At, map[place]bool{}})
			}
		case history.OK:
			stored[place{e.Topic, e.Partition, e.Offset}] = e.At
		case history.Accepted, history.Committed:
			at, ok := stored[place{e.Topic, e.Partition, e.Offset}]
			if !ok {
				continue
			}
			for _, w := range waits {
				if p := (place{topic: e.Topic, partition: e.Partition}); at > w.since && !w.partitions[p] {
					w.partitions[p] = true
					worst[w.fault] = max(worst[w.fault], e.At-w.since)
				}
			}
		}
	}
	return worst
}
