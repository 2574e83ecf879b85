package delivery

// recent remembers the latest of what was added to it; the oldest are forgotten.
type recent[K comparable] struct {
	most int
	met  map[K]struct{}
	ring []K
	at   int
}

// add remembers k; false if it is remembered already.
func (r *recent[K]) add(k K) bool {
	if r.has(k) {
		return false
	}
	if r.met == nil {
		r.met = map[K]struct{}{}
	}
	if len(r.ring) < r.most {
		r.ring = append(r.ring, k)
	} else {
		delete(r.met, r.ring[r.at])
		r.ring[r.at] = k
		r.at = (r.at + 1) % r.most
	}
	r.met[k] = struct{}{}
	return true
}

func (r *recent[K]) has(k K) bool {
	_, met := r.met[k]
	return met
}
