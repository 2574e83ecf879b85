package subscription

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Registry says which subscriptions this gateway serves: those of its
// configuration file and those kept in Kafka.
//
// Of one that is in both, the file stands here. Two gateways with different files,
// as in a rolling deploy, both serve theirs, and say so in `note`; but a name whose
// order or group differs is served by nobody but those who declared it first: half
// of its events would be in another order, or all of them delivered twice. So a
// gateway keeps in Kafka what its file declares, without secrets. Who declares a
// name first is decided by the store's order. To change order or group of a name
// for good, stop the gateways that have the old file, delete the subscription (its
// record; the position stays the group's), and go on with the new one.
//
// Desired state, paused and sought, is in the same record for both kinds.
type Registry struct {
	store *Store // nil: the configuration is all there is
	log   *slog.Logger

	mu        sync.Mutex
	file      map[string]Spec
	declare   map[string]bool // of the file: still to be kept in Kafka, as this gateway has them
	entries   map[string]*Entry
	notified  map[string]*Entry
	changed   map[string]bool   // to be told to watchers
	begun     map[string]uint64 // begun.go: to be kept
	begunWake chan struct{}
	wake      chan struct{}
	ready     chan struct{} // closed when watchers were told of everything that was there at the start
	news      uint64        // counts what there was to tell watchers of
	told      uint64        // as many of news as they were told of
	telling   chan struct{} // closed, and made anew, when told grows
	over      chan struct{} // closed when nobody tells them any more
	watchers  []func(name string, was, is *Entry)
}

// Entry is one subscription as this gateway sees it. It is not changed once it is there.
type Entry struct {
	Spec                 Spec // compiled, when Problem is nil
	DeclaredIn           posternv1.DeclaredIn
	Etag                 string
	Generation           uint64
	Created, Updated     time.Time // zero: unknown
	Desired              delivery.Desired
	Problem              error // why it is not served here
	Note                 string
	kept, elsewhereFirst bool
}

// NewRegistry makes a registry of the file's specifications, which are valid. A
// nil ledger keeps nothing in Kafka.
func NewRegistry(file []Spec, ledger Ledger, log *slog.Logger) (*Registry, error) {
	r := &Registry{
		log: log, entries: map[string]*Entry{}, notified: map[string]*Entry{}, changed: map[string]bool{}, begun: map[string]uint64{}, begunWake: make(chan struct{}, 1), wake: make(chan struct{}, 1), ready: make(chan struct{}),
		telling: make(chan struct{}), over: make(chan struct{}),
	}
	if ledger != nil {
		r.store = NewStore(ledger, log, r.refresh)
	}
	return r, r.SetFile(file)
}

// SetFile puts the specifications of a configuration file in force, in place of
// those before. Those that did not change are not disturbed.
func (r *Registry) SetFile(specs []Spec) error {
	file := make(map[string]Spec, len(specs))
	for _, s := range specs {
		compiled, err := s.Compiled()
		if err != nil {
			return fmt.Errorf("subscription %s: %w", s.Name, err)
		}
		file[s.Name] = compiled
	}
	r.mu.Lock()
	names := slices.Collect(maps.Keys(r.file))
	r.declare = map[string]bool{}
	for name := range file {
		names = append(names, name)
		r.declare[name] = true
	}
	r.file = file
	r.mu.Unlock()
	r.refresh(names)
	return nil
}

// Watch has each change told to watcher, from one goroutine of Run's, beginning
// with what is there when Run begins. was and is are nil where there is none. What
// changes again before it was told is told once.
func (r *Registry) Watch(watcher func(name string, was, is *Entry)) {
	r.watchers = append(r.watchers, watcher)
}

// Run keeps the registry current until ctx ends. What it returns is for people to
// mend, and is returned only when the file declares subscriptions: others do not
// need Kafka's word.
func (r *Registry) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(r.over)
	var failed error
	var work sync.WaitGroup
	if r.store != nil {
		work.Go(func() {
			if err := r.store.Run(ctx); err != nil {
				if r.hasFile() {
					failed = fmt.Errorf("the subscriptions of the configuration need their state in Kafka (or subscriptions_api: {disabled: true}): %w", err)
					cancel()
					return
				}
				r.log.Warn("subscriptions are not kept in Kafka", "error", err)
			}
		})
		work.Go(func() { r.keepBegun(ctx) })
		work.Go(func() {
			if err := r.declareFile(ctx); err != nil {
				failed = err
				cancel()
			}
		})
	}
	for isReady := r.store == nil; ; {
		loaded := r.isLoaded()
		r.tell()
		if loaded && !isReady {
			isReady = true
			close(r.ready)
		}
		select {
		case <-ctx.Done():
			work.Wait()
			return failed
		case <-r.wake:
		}
	}
}

// isLoaded reports whether what is kept in Kafka was read.
func (r *Registry) isLoaded() bool {
	if r.store == nil {
		return true
	}
	select {
	case <-r.store.Loaded():
		return true
	default:
		return false
	}
}

func (r *Registry) hasFile() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.file) > 0
}

// tell calls the watchers for what changed since the last time.
func (r *Registry) tell() {
	r.mu.Lock()
	news := r.news
	names := slices.Sorted(maps.Keys(r.changed))
	clear(r.changed)
	type change struct {
		name    string
		was, is *Entry
	}
	var changes []change
	for _, name := range names {
		c := change{name, r.notified[name], r.entries[name]}
		if c.was == c.is {
			continue
		}
		if c.is == nil {
			delete(r.notified, name)
		} else {
			r.notified[name] = c.is
		}
		changes = append(changes, c)
	}
	r.mu.Unlock()
	for _, c := range changes {
		for _, watcher := range r.watchers {
			watcher(c.name, c.was, c.is)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told != news {
		r.told = news
		close(r.telling)
		r.telling = make(chan struct{})
	}
}

// Update changes what is kept under name, as Store.Update does. Once it returns, the
// change is in force on this gateway; the others follow within a second.
func (r *Registry) Update(ctx context.Context, name string, change func(old *Kept) (*State, error)) error {
	if _, err := r.store.Update(ctx, name, change); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for news := r.news; r.told < news; {
		telling := r.telling
		r.mu.Unlock()
		select {
		case <-telling:
		case <-r.over: // it stops: nothing is delivered any more
		case <-ctx.Done(): // it is kept, whether the caller waits or not
		}
		r.mu.Lock()
		if telling == r.telling {
			break
		}
	}
	return nil
}

// refresh finds out anew what is to be said of names.
func (r *Registry) refresh(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		var kept *Kept
		if r.store != nil {
			kept = r.store.Get(name)
		}
		var declared *Spec
		if s, ok := r.file[name]; ok {
			declared = &s
			if kept == nil {
				r.declare[name] = true // somebody deleted its record
			}
		}
		e := merge(declared, kept)
		if e == nil {
			delete(r.entries, name)
		} else {
			if before := r.entries[name]; before != nil && (before.Problem == nil) != (e.Problem == nil) || e.Problem != nil && r.entries[name] == nil {
				r.logProblem(name, e)
			}
			r.entries[name] = e
		}
		r.changed[name] = true
		r.news++
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Registry) logProblem(name string, e *Entry) {
	switch {
	case fault.Is(e.Problem, fault.UnknownSubscription):
		r.log.Debug("subscription is of another gateway's file", "subscription", name)
	case e.Problem != nil:
		r.log.Warn("subscription is not served by this gateway", "subscription", name, "error", e.Problem)
	default:
		r.log.Info("subscription is served again", "subscription", name)
	}
}

// merge says what a subscription is of what the file declares (nil: nothing) and
// what is kept (nil: nothing).
func merge(declared *Spec, kept *Kept) *Entry {
	switch {
	case declared == nil && kept == nil:
		return nil
	case kept == nil:
		return &Entry{Spec: *declared, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE, Etag: fileEtag(declared, ""), Generation: 1}
	case kept.Err != nil && declared == nil:
		return &Entry{Spec: Spec{Name: kept.Name}, Etag: kept.Etag, Problem: unreadable(kept.Name, kept.Err), kept: true}
	case kept.Err != nil:
		e := &Entry{Spec: *declared, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE, Etag: fileEtag(declared, kept.Etag), Generation: 1, kept: true}
		e.Problem = unreadable(kept.Name, kept.Err)
		return e
	case declared == nil:
		return mergeKept(kept)
	}
	s := kept.State
	e := &Entry{
		Spec: *declared, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE, Etag: fileEtag(declared, kept.Etag), Generation: s.Generation,
		Created: s.Created, Updated: s.Updated, Desired: s.Desired, kept: true,
	}
	where := "the file of another gateway"
	if s.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_API {
		where = "the API"
	}
	switch {
	case s.Spec.Order != declared.Order || s.Spec.group() != declared.group():
		e.elsewhereFirst = true
		e.Problem = fault.New(fault.SubscriptionMismatch,
			"subscription %s is declared here with order %s and group %s, and by %s before with order %s and group %s: make them the same, or delete the subscription where it was declared and then its record (postern subscriptions delete %s)",
			declared.Name, declared.Order, declared.group(), where, s.Spec.Order, s.Spec.group(), declared.Name).With("subscription", declared.Name)
	case !proto.Equal(comparison(*declared), comparison(s.Spec)):
		e.Note = "it is declared otherwise by " + where + ": this gateway serves what its own file says"
	case s.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_API:
		e.Note = "it was created through the API too: this gateway serves what its file says"
	}
	return e
}

// mergeKept is merge of a subscription that the file does not declare.
func mergeKept(kept *Kept) *Entry {
	s := kept.State
	e := &Entry{
		Spec: s.Spec, DeclaredIn: s.DeclaredIn, Etag: kept.Etag, Generation: s.Generation, Created: s.Created, Updated: s.Updated, Desired: s.Desired, kept: true,
	}
	if s.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE {
		e.Problem = fault.New(fault.UnknownSubscription,
			"subscription %s is declared in a configuration file, and not in this gateway's: ask a gateway that has it, declare it here too, or forget it when none has it any more (postern subscriptions delete %s)", kept.Name, kept.Name).With("subscription", kept.Name)
		return e
	}
	compiled, err := s.Spec.Compiled()
	if err != nil {
		e.Problem = fault.New(fault.NewerFormat, "subscription %s cannot be served by this version: %w", kept.Name, err).With("subscription", kept.Name)
		return e
	}
	e.Spec = compiled
	return e
}

// comparison is what of a specification other gateways' files are compared by:
// secrets are counted, not told.
func comparison(s Spec) *posternv1.Subscription {
	m := s.ToProto()
	hideFile(m)
	for _, r := range referencesOf(m) {
		r.Name = ""
	}
	return m
}

// publicURL is what of a file's URL may be told: some services put their secret
// into the path or the query.
func publicURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}).String()
}

// fileEtag is the etag of one that a file declares: it changes with the file and with the record.
func fileEtag(declared *Spec, record string) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(comparison(*declared))
	if err != nil {
		b = []byte(declared.Name)
	}
	return etagOf(append(b, record...))
}

// Known gives what there is under name, nil without, and waits for nothing.
func (r *Registry) Known(name string) *Entry { return r.get(name) }

// get gives the entry of name, nil without one.
func (r *Registry) get(name string) *Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries[name]
}

// Find gives the specification that is served under name, or says why none is.
// When the gateway has just started it waits a little for Kafka's word.
func (r *Registry) Find(ctx context.Context, name string) (Spec, error) {
	e, err := r.Entry(ctx, name)
	if err != nil {
		return Spec{}, err
	}
	return e.Spec, e.Problem
}

// Entry gives what there is under name, served or not; UNKNOWN_SUBSCRIPTION without.
func (r *Registry) Entry(ctx context.Context, name string) (*Entry, error) {
	unread := r.await(ctx)
	if e := r.get(name); e != nil {
		return e, nil // of the file, when Kafka has not said anything yet
	}
	if unread != nil {
		return nil, unread
	}
	return nil, fault.New(fault.UnknownSubscription,
		"no subscription is called %q: declare it under subscriptions: in the configuration, create it (postern subscriptions create), or open it inline with its topics", name).With("subscription", name)
}

// await waits until what is kept in Kafka is read and was told to watchers, so
// that what is paused is not delivered at a start; the error says that it is not.
func (r *Registry) await(ctx context.Context) error {
	if r.store == nil {
		return nil
	}
	return r.store.awaitThat(ctx, r.ready)
}

// List gives all, by name.
func (r *Registry) List() []*Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Entry, 0, len(r.entries))
	for _, name := range slices.Sorted(maps.Keys(r.entries)) {
		all = append(all, r.entries[name])
	}
	return all
}

// Changed reports whether what is delivered, or how, differs between a and b.
func Changed(a, b *Entry) bool { return !SameQueue(a.Spec.Queue(), b.Spec.Queue()) }

// WebhookChanged reports whether a webhook must be started anew.
func WebhookChanged(a, b *Entry) bool {
	return !reflect.DeepEqual(a.Spec.Webhook, b.Spec.Webhook) || !reflect.DeepEqual(a.Spec.Push, b.Spec.Push) || !reflect.DeepEqual(a.Spec.References, b.Spec.References)
}
