package broker

// The room for events is shared out among the brokers that are read. A fetch that
// finds nothing holds what it was given until it ends, so no broker may have all
// of it while another waits, and when there is less than one each, they take turns.

// shareTurn is a broker's place among those that want room. Guarded by the consumer's mu.
type shareTurn struct {
	served  int64 // when it was last given room, in turns
	waiting bool  // it wants some, and there was none for it
}

// shareOut gives how much of free one of the brokers gets, none if those that wait
// longer need it all. others are all that are read; now is this turn.
func (t *shareTurn) shareOut(free int, now int64, others []*shareTurn) int {
	longer, waiting := 0, 0
	for _, o := range others {
		if o == t || !o.waiting {
			continue
		}
		waiting++
		if o.served < t.served {
			longer++
		}
	}
	if t.waiting = free <= longer; t.waiting {
		return 0
	}
	t.served = now
	return max(1, min(shareFetchMost, free/(waiting+1)))
}

// plan gives what to fetch, and how many events.
func (n *shareNode) plan() (map[sharePart]bool, int) {
	c := n.consumer
	room := c.options.Room()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(n.wanted) == 0 {
		n.turn.waiting = false
		return nil, 0
	}
	turns := make([]*shareTurn, 0, len(c.nodes))
	for _, other := range c.nodes {
		if len(other.wanted) > 0 {
			turns = append(turns, &other.turn)
		}
	}
	c.turns++
	got := n.turn.shareOut(room-c.asked, c.turns, turns)
	c.asked += got
	return n.wanted, got
}

// fetched gives back what a fetch was given; those that wait look again.
func (s *ShareConsumer) fetched(room int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked -= room
	for _, n := range s.nodes {
		if n.turn.waiting {
			poke(n.wake)
		}
	}
}
