package delivery

// leaseTable finds entries by the id of their lease. Ids are counted up, so the
// leases of the moment mostly have their low bits for themselves: a slot each,
// and a map only for those that meet an older one in theirs. Half the cost of a
// map alone, which was a tenth of a delivery's.
type leaseTable struct {
	slots []*entry // a power of two of them, or none
	more  map[ID]*entry
	count int
}

const leaseSlotsMin = 64

// get finds id's entry; nil when it is not lent.
func (t *leaseTable) get(id ID) *entry {
	if len(t.slots) == 0 {
		return nil
	}
	if e := t.slots[int(id)&(len(t.slots)-1)]; e != nil && e.lease == id {
		return e
	}
	return t.more[id]
}

// add puts e in under its lease.
func (t *leaseTable) add(e *entry) {
	if 2*t.count >= len(t.slots) {
		t.resize(max(leaseSlotsMin, 2*len(t.slots)))
	}
	t.count++
	t.put(e)
}

func (t *leaseTable) put(e *entry) {
	if at := &t.slots[int(e.lease)&(len(t.slots)-1)]; *at == nil {
		*at = e
		return
	}
	if t.more == nil {
		t.more = map[ID]*entry{}
	}
	t.more[e.lease] = e
}

// remove takes e out, whose lease has ended.
func (t *leaseTable) remove(e *entry) {
	at := &t.slots[int(e.lease)&(len(t.slots)-1)]
	switch {
	case *at == e:
		*at = nil
	case t.more[e.lease] == e:
		delete(t.more, e.lease)
	default:
		return
	}
	t.count--
	if t.count == 0 && len(t.slots) > leaseSlotsMin {
		t.slots = nil // a queue that rests weighs little
	}
}

func (t *leaseTable) resize(n int) {
	old := t.all()
	t.slots, t.more = make([]*entry, n), nil
	for _, e := range old {
		t.put(e)
	}
}

// all gives the entries, in no order.
func (t *leaseTable) all() []*entry {
	all := make([]*entry, 0, t.count)
	for _, e := range t.slots {
		if e != nil {
			all = append(all, e)
		}
	}
	for _, e := range t.more {
		all = append(all, e)
	}
	return all
}
