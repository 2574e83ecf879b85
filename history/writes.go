package history

import "time"

// publish is what became of one value.
type publish struct {
	value   string
	invoked int32 // index of its first entry
	last    int32 // index of the last answer; -1: none
	unknown bool
	sentAt  time.Duration // of the latest try
}

// lane is where the order of publishes is kept: a key's on one topic, or all of
// a partition on one connection.
type lane struct {
	key, topic, connection string
	partition              int32
}

// writes judges publishes against the log.
func (c *checker) writes() {
	index := make(map[string]int32, len(c.log))
	publishes := make([]publish, 0, len(c.log))
	for i := range c.h.Entries {
		e := &c.h.Entries[i]
		switch e.Kind {
		case Invoked:
			if _, retry := index[e.Value]; !retry {
				index[e.Value] = int32(len(publishes))
				publishes = append(publishes, publish{value: e.Value, invoked: int32(i), last: -1})
			}
			publishes[index[e.Value]].sentAt = e.At
		case OK, Failed, Unknown:
			n, ok := index[e.Value]
			if !ok {
				continue
			}
			p := &publishes[n]
			p.last = int32(i)
			p.unknown = p.unknown || e.Kind == Unknown
			if c.rules.Wait > 0 && e.At-p.sentAt > c.rules.Wait {
				c.found(LateAnswer, "%s was answered %s after %s, %s are allowed", e.Value, e.Kind, e.At-p.sentAt, c.rules.Wait)
			}
		}
	}
	order := map[lane]int32{} // the publish before it
	requests := map[string][2]int{}
	for n := range publishes {
		p := &publishes[n]
		c.write(p)
		invoked := &c.h.Entries[p.invoked]
		if invoked.Request != "" {
			counts := requests[invoked.Request]
			counts[0]++
			if _, stored := c.copies[p.value]; stored {
				counts[1]++
			}
			requests[invoked.Request] = counts
		}
		if p.last < 0 || c.h.Entries[p.last].Kind != OK || len(c.again[p.value]) > 0 {
			continue
		}
		c.inOrder(order, lane{key: invoked.Key, topic: c.h.Entries[p.last].Topic, partition: c.h.Entries[p.last].Partition}, publishes, n)
		if invoked.Connection != "" {
			c.inOrder(order, lane{connection: invoked.Connection, topic: c.h.Entries[p.last].Topic, partition: c.h.Entries[p.last].Partition}, publishes, n)
		}
	}
	for request, counts := range requests {
		if counts[1] != 0 && counts[1] != counts[0] {
			c.found(TornRequest, "of atomic request %s %d of %d events are in the log", request, counts[1], counts[0])
		}
	}
}

// write judges one publish.
func (c *checker) write(p *publish) {
	c.report.Published++
	if p.unknown || p.last < 0 {
		c.report.Unknowns++
	}
	first, stored := c.copies[p.value]
	if p.last >= 0 {
		switch last := &c.h.Entries[p.last]; last.Kind {
		case OK:
			if !stored {
				c.found(LostWrite, "%s was answered %s and is not in the log", p.value, last.at())
			} else if at := c.lookup(last.Topic, last.Partition, last.Offset); at < 0 || c.log[at].Value != p.value {
				c.found(WrongPosition, "%s was answered %s, which holds %s", p.value, last.at(), c.valueAt(at))
			}
		case Failed:
			if !p.unknown && stored {
				c.found(AbortedRead, "%s was answered failed and is at %s", p.value, c.log[first].at())
			}
		}
	}
	if again := c.again[p.value]; len(again) > 0 && (!p.unknown && p.last >= 0 || c.rules.Deduplicated) {
		c.found(DuplicateWrite, "%s is at %s and at %s", p.value, c.log[first].at(), c.log[again[0]].at())
	}
}

// inOrder compares publish n, which is stored once, with the one before it in its lane.
func (c *checker) inOrder(order map[lane]int32, l lane, publishes []publish, n int) {
	before, ok := order[l]
	order[l] = int32(n)
	if !ok {
		return
	}
	a, b := &publishes[before], &publishes[n]
	answer, next := &c.h.Entries[a.last], &c.h.Entries[b.last]
	sent := &c.h.Entries[b.invoked]
	if answer.Offset <= next.Offset {
		return
	}
	switch {
	case l.connection != "" && !a.unknown && !b.unknown:
		c.found(ConnectionOrder, "%s was sent after %s on connection %s, and lies before it: %s, %s", b.value, a.value, l.connection, next.at(), answer.at())
	case l.connection == "" && answer.At < sent.At:
		c.found(ConnectionOrder, "%s was sent after %s was answered, and lies before it: %s, %s", b.value, a.value, next.at(), answer.at())
	}
}
