package schema

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/postern-dev/postern/fault"
)

// source is where schemas come from; Client is one.
type source interface {
	ByID(ctx context.Context, id int) (Definition, error)
	At(ctx context.Context, subject string, version int) (Registered, error)
	Find(ctx context.Context, subject string, d Definition) (Registered, error)
	Register(ctx context.Context, subject string, d Definition) (int, error)
	Versions(ctx context.Context, subject string) ([]int, error)
}

// Registry gives compiled schemas, and asks its source as rarely as it can: by
// id and by version once, since neither ever changes; for a subject's latest
// version once in a TTL.
type Registry struct {
	source source
	close  context.CancelFunc
	work   sync.WaitGroup

	ids        *cache[int, *compiled]
	latest     *cache[string, version]
	versions   *cache[subjectVersion, version]
	members    *cache[membership, int]
	registered *cache[registration, int]
}

// compiled is a schema with its codec.
type compiled struct {
	id int
	codec
	definition Definition

	mu      sync.Mutex
	readers map[int]*resolution // as other schemas read it, by their ids
}

// version is a compiled schema as a subject has it.
type version struct {
	subject string
	number  int
	*compiled
}

type subjectVersion struct {
	subject string
	version int
}

type membership struct {
	subject string
	id      int
}

type registration struct {
	subject string
	format  Format
	text    string
}

// Bounds of what is kept. A compiled schema weighs some ten times its text.
const (
	mostSchemas  = 2_000
	mostSubjects = 10_000
)

// NewRegistry makes a Registry over source.
func NewRegistry(from source, latestTTL time.Duration) *Registry {
	life, cancel := context.WithCancel(context.Background())
	r := &Registry{source: from, close: cancel}
	r.ids = newCache(life, &r.work, 0, mostSchemas, r.fetchID)
	r.latest = newCache(life, &r.work, latestTTL, mostSubjects, func(ctx context.Context, subject string) (version, error) {
		return r.fetchVersion(ctx, subjectVersion{subject, Latest})
	})
	r.versions = newCache(life, &r.work, 0, mostSubjects, r.fetchVersion)
	r.members = newCache(life, &r.work, 0, mostSubjects, func(ctx context.Context, m membership) (int, error) {
		one, err := r.ids.get(ctx, m.id)
		if err != nil {
			return 0, err
		}
		found, err := r.source.Find(ctx, m.subject, one.definition)
		return found.Version, err
	})
	r.registered = newCache(life, &r.work, 0, mostSubjects, func(ctx context.Context, g registration) (int, error) {
		return r.source.Register(ctx, g.subject, Definition{Format: g.format, Text: g.text})
	})
	return r
}

// Close ends what is being fetched and waits for it.
func (r *Registry) Close() {
	r.close()
	r.work.Wait()
	if c, ok := r.source.(interface{ Close() }); ok {
		c.Close()
	}
}

func (r *Registry) byID(ctx context.Context, id int) (*compiled, error) { return r.ids.get(ctx, id) }

// at gives a version of a subject; Latest is the newest within the TTL.
func (r *Registry) at(ctx context.Context, subject string, n int) (version, error) {
	if n == Latest {
		return r.latest.get(ctx, subject)
	}
	return r.versions.get(ctx, subjectVersion{subject, n})
}

// versionOf tells as which version a subject has a schema.
func (r *Registry) versionOf(ctx context.Context, subject string, id int) (int, error) {
	// The latest version is known anyway, and most events are of it.
	if v, err := r.latest.get(ctx, subject); err == nil && v.id == id {
		return v.number, nil
	}
	return r.members.get(ctx, membership{subject, id})
}

// register stores a schema under a subject, once, and gives it.
func (r *Registry) register(ctx context.Context, subject string, format Format, text string) (version, error) {
	id, err := r.registered.get(ctx, registration{subject, format, text})
	if err != nil {
		return version{}, err
	}
	one, err := r.byID(ctx, id)
	if err != nil {
		return version{}, err
	}
	n, err := r.versionOf(ctx, subject, id)
	return version{subject, n, one}, err
}

func (r *Registry) fetchID(ctx context.Context, id int) (*compiled, error) {
	d, err := r.source.ByID(ctx, id)
	if err != nil {
		return nil, err
	}
	return r.compile(ctx, id, d)
}

func (r *Registry) fetchVersion(ctx context.Context, of subjectVersion) (version, error) {
	found, err := r.source.At(ctx, of.subject, of.version)
	if err != nil {
		return version{}, err
	}
	if one, known := r.ids.peek(found.ID); known {
		return version{found.Subject, found.Version, one}, nil
	}
	one, err := r.compile(ctx, found.ID, found.Definition)
	if err != nil {
		return version{}, err
	}
	return version{found.Subject, found.Version, r.ids.keep(found.ID, one)}, nil
}

// compile fetches what d refers to and makes its codec.
func (r *Registry) compile(ctx context.Context, id int, d Definition) (*compiled, error) {
	parts, err := gather(ctx, d, func(ctx context.Context, ref Reference) (Definition, error) {
		found, err := r.source.At(ctx, ref.Subject, ref.Version)
		return found.Definition, err
	})
	if err != nil {
		return nil, err
	}
	c, err := compile(d.Format, d.Text, parts)
	if err != nil {
		return nil, fault.New(fault.SchemaUnusable, "the schema with the id %d cannot be used: %s", id, excerptLong(err.Error())).With("schema_id", fmt.Sprint(id))
	}
	return &compiled{id: id, codec: c, definition: d}, nil
}

// gather fetches all that a schema refers to, in the order of dependency.
func gather(ctx context.Context, d Definition, fetch func(context.Context, Reference) (Definition, error)) ([]part, error) {
	var parts []part
	seen := map[Reference]bool{}
	size := 0
	var visit func(refs []Reference, depth int) error
	visit = func(refs []Reference, depth int) error {
		for _, ref := range refs {
			if seen[ref] {
				continue
			}
			seen[ref] = true
			if depth > maxDepth || len(seen) > maxReferences {
				return fault.New(fault.SchemaUnusable, "the schema refers to more than %d others", maxReferences)
			}
			found, err := fetch(ctx, ref)
			if err != nil {
				return err
			}
			if size += len(found.Text); size > maxClosure {
				return fault.New(fault.SchemaUnusable, "the schema and what it refers to have more than %d bytes", maxClosure)
			}
			if err := visit(found.References, depth+1); err != nil {
				return err
			}
			parts = append(parts, part{ref.Name, found.Text})
		}
		return nil
	}
	if err := visit(d.References, 0); err != nil {
		return nil, err
	}
	return parts, nil
}
