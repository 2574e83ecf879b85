package delivery

// End stops the queue called name on this instance, if it runs: nothing more is
// lent, what is lent may be settled as when a partition is revoked, positions are
// committed and the group is left. Whoever is attached gets why. A queue opened
// under the name meanwhile is a new one.
func (qs *Queues) End(name string, why error) {
	qs.mu.Lock()
	r := qs.running[name]
	if r == nil || qs.draining {
		qs.mu.Unlock()
		return
	}
	delete(qs.running, name)
	if r.linger != nil {
		r.linger.Stop()
	}
	qs.closing.Add(1)
	qs.mu.Unlock()
	go func() {
		defer qs.closing.Done()
		<-r.opened
		if r.err == nil {
			r.queue.closeFor(why)
		}
	}()
}
