package delivery

// expiredLeases remembers the latest leases that ran out, so that a late
// settlement is told LEASE_EXPIRED and not merely STALE. Bounded: the oldest
// are forgotten.
type expiredLeases struct {
	ids  map[ID]struct{}
	ring []ID
	at   int
}

const maxExpired = 4096

func (x *expiredLeases) add(id ID) {
	if x.ids == nil {
		x.ids = map[ID]struct{}{}
	}
	if len(x.ring) < maxExpired {
		x.ring = append(x.ring, id)
	} else {
		delete(x.ids, x.ring[x.at])
		x.ring[x.at] = id
		x.at = (x.at + 1) % maxExpired
	}
	x.ids[id] = struct{}{}
}

func (x *expiredLeases) has(id ID) bool {
	_, ok := x.ids[id]
	return ok
}
