package subscription

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

const (
	// declareEvery is how soon a record of a file's subscription that somebody
	// deleted is written again, and one that could not be written.
	declareEvery = time.Second
	// declareTogether bounds the records of one write: with a KiB or two each they
	// fit a request.
	declareTogether = 200
)

// declareFile keeps in Kafka what the file declares, until ctx ends. Being without
// the right to from the beginning is an error.
func (r *Registry) declareFile(ctx context.Context) error {
	said, could := false, false
	for {
		err := r.declareOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			said, could = false, true
		case !could && (fault.Is(err, fault.KafkaNotAuthorized) || fault.Is(err, fault.KafkaRefused)):
			return fmt.Errorf("the subscriptions of the configuration cannot be kept in Kafka, where their pauses and seeks are (or subscriptions_api: {disabled: true}): %w", err)
		case !said:
			said = true
			r.log.Warn("what the configuration declares is not kept in Kafka yet; trying on", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(declareEvery):
		}
	}
}

// declareOnce writes what is to be written.
func (r *Registry) declareOnce(ctx context.Context) error {
	r.mu.Lock()
	todo := len(r.declare)
	r.mu.Unlock()
	if todo == 0 {
		return nil
	}
	select {
	case <-r.store.Loaded():
	case <-ctx.Done():
		return nil
	}
	r.mu.Lock()
	names := slices.Sorted(maps.Keys(r.declare))
	file := r.file
	r.mu.Unlock()
	var write []string
	for _, name := range names {
		if spec, ok := file[name]; ok && declares(&spec, r.store.Get(name)) {
			write = append(write, name)
		}
	}
	for part := range slices.Chunk(write, declareTogether) {
		err := r.store.UpdateAll(ctx, part, func(name string, kept *Kept) (*State, error) {
			spec := file[name]
			if !declares(&spec, kept) {
				return kept.state(), nil
			}
			state := State{Spec: declarable(spec), DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_FILE, Generation: 1}
			if old := kept.state(); old != nil {
				state.Generation, state.Desired = old.Generation+1, old.Desired
			}
			return &state, nil
		})
		if err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		delete(r.declare, name)
	}
	return nil
}

// state is what k says; nil when there is nothing, or nothing readable.
func (k *Kept) state() *State {
	if k == nil {
		return nil
	}
	return k.State
}

// declares reports whether this gateway's declaration is to be kept in place of
// what is: nothing, or one of another file that may be served beside it.
func declares(declared *Spec, kept *Kept) bool {
	if kept == nil {
		return true
	}
	s := kept.State
	return s != nil && s.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE &&
		s.Spec.Order == declared.Order && s.Spec.group() == declared.group() && !proto.Equal(comparison(*declared), comparison(s.Spec))
}

// declarable is what of a specification others may know: no secrets, only how
// many, the headers' names, and the endpoint's host.
func declarable(s Spec) Spec {
	if s.Webhook == nil && s.Push == nil {
		return s
	}
	told, err := FromProto(comparison(s))
	if err != nil { // ToProto writes nothing that FromProto does not take
		s.Webhook, s.Push = nil, nil
		return s
	}
	s.Webhook, s.Push, s.References = told.Webhook, told.Push, told.References
	return s
}
