package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/schema"
)

// Registry is a schema registry for developing: Confluent's API as serializers,
// Connect and people with curl use it, with compatibility truly checked (package
// schema). No modes, no rule sets, no authentication, one copy on one disk.
type Registry struct {
	store    *store
	server   *http.Server
	listener net.Listener
	served   chan error
}

// RegistryOptions of an embedded schema registry.
type RegistryOptions struct {
	// Dir keeps the data, in a file of its own; the Broker there holds the folder's lock. "" keeps it in memory.
	Dir string
	// Address to listen on. Default 127.0.0.1:7603.
	Address string
}

// maxRegistryBody bounds one request.
const maxRegistryBody = 4 << 20

// StartRegistry opens the registry.
func StartRegistry(o RegistryOptions) (*Registry, error) {
	if o.Address == "" {
		o.Address = "127.0.0.1:7603"
	}
	host, _, err := net.SplitHostPort(o.Address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("--registry-listen %s: the embedded schema registry knows no callers: use an address of this machine such as 127.0.0.1:7603", o.Address)
	}
	path := ""
	if o.Dir != "" {
		path = filepath.Join(o.Dir, "schemas.jsonl")
	}
	r := &Registry{served: make(chan error, 1)}
	if r.store, err = openStore(path); err != nil {
		return nil, err
	}
	if r.listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", o.Address); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the schema registry: %w: choose another with --registry-listen", err), r.store.close())
	}
	r.server = &http.Server{
		Handler: http.MaxBytesHandler(r.routes(), maxRegistryBody), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
	go func() { r.served <- r.server.Serve(r.listener) }()
	return r, nil
}

// URL is where the registry answers.
func (r *Registry) URL() string { return "http://" + r.listener.Addr().String() }

// Close stops the registry and waits for it.
func (r *Registry) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := r.server.Shutdown(ctx)
	if err != nil {
		err = r.server.Close()
	}
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, r.store.close())
}

// apiError is an error of the registry's API.
type apiError struct {
	status, code int
	message      string
}

func (e *apiError) Error() string { return e.message }

func failed(status, code int, format string, args ...any) error {
	return &apiError{status, code, fmt.Sprintf(format, args...)}
}

const mediaRegistry = "application/vnd.schemaregistry.v1+json"

// answer makes a handler of what gives an answer or an error.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		status := http.StatusOK
		if err != nil {
			var api *apiError
			var large *http.MaxBytesError
			switch {
			case errors.As(err, &api):
			case errors.As(err, &large):
				api = &apiError{http.StatusRequestEntityTooLarge, 413, "the request is too large"}
			default:
				api = &apiError{http.StatusInternalServerError, 50001, err.Error()}
			}
			status, v = api.status, map[string]any{"error_code": api.code, "message": api.message}
		}
		w.Header().Set("Content-Type", mediaRegistry)
		if text, ok := v.(rawText); ok {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, string(text)) // the client may be gone
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(status)
		_, _ = w.Write(b)
	}
}

// rawText is an answer that is a schema's own text.
type rawText string

func (r *Registry) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /{$}":                                            func(*http.Request) (any, error) { return map[string]any{}, nil },
		"GET /schemas/types":                                  func(*http.Request) (any, error) { return []string{"JSON", "PROTOBUF", "AVRO"}, nil },
		"GET /contexts":                                       r.contexts,
		"GET /mode":                                           mode,
		"GET /mode/{subject}":                                 mode,
		"GET /subjects":                                       r.subjects,
		"POST /subjects/{subject}":                            r.find,
		"DELETE /subjects/{subject}":                          r.deleteSubject,
		"GET /subjects/{subject}/versions":                    r.versions,
		"POST /subjects/{subject}/versions":                   r.register,
		"GET /subjects/{subject}/versions/{v}":                r.version,
		"GET /subjects/{subject}/versions/{v}/schema":         r.versionText,
		"GET /subjects/{subject}/versions/{v}/referencedby":   r.referencedBy,
		"DELETE /subjects/{subject}/versions/{v}":             r.deleteVersion,
		"GET /schemas/ids/{id}":                               r.byID,
		"GET /schemas/ids/{id}/schema":                        r.textByID,
		"GET /schemas/ids/{id}/subjects":                      r.subjectsByID,
		"GET /schemas/ids/{id}/versions":                      r.versionsByID,
		"GET /config":                                         r.level,
		"PUT /config":                                         r.setLevel,
		"DELETE /config":                                      r.resetLevel,
		"GET /config/{subject}":                               r.level,
		"PUT /config/{subject}":                               r.setLevel,
		"DELETE /config/{subject}":                            r.resetLevel,
		"POST /compatibility/subjects/{subject}/versions":     r.compatible,
		"POST /compatibility/subjects/{subject}/versions/{v}": r.compatible,
	} {
		mux.HandleFunc(pattern, answer(f))
	}
	mux.HandleFunc("/", answer(func(*http.Request) (any, error) { return nil, failed(http.StatusNotFound, 404, "HTTP 404 Not Found") }))
	return inContext(mux)
}

func mode(*http.Request) (any, error) { return map[string]string{"mode": "READWRITE"}, nil }

type contextKey struct{}

// inContext takes /contexts/NAME/ from before a path: subjects are then within that context.
func inContext(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/contexts/")
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		name, _, _ := strings.Cut(rest, "/")
		http.StripPrefix("/contexts/"+name, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, strings.TrimPrefix(name, "."))))
		})).ServeHTTP(w, r)
	})
}

// subjectOf is a request's subject; in a context it begins with :.context:
func subjectOf(r *http.Request) string { return qualify(r, r.PathValue("subject")) }

func qualify(r *http.Request, subject string) string {
	if name, _ := r.Context().Value(contextKey{}).(string); name != "" && !strings.HasPrefix(subject, ":.") {
		return ":." + name + ":" + subject
	}
	return subject
}

func truth(r *http.Request, name string) bool {
	v, _ := strconv.ParseBool(r.URL.Query().Get(name)) // anything else is no
	return v
}

// body is a schema as requests carry it.
type body struct {
	Schema     string             `json:"schema"`
	SchemaType string             `json:"schemaType"`
	References []schema.Reference `json:"references"`
}

func bodyOf(r *http.Request) (*stored, error) {
	var b body
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, err
		}
		return nil, failed(http.StatusUnprocessableEntity, 42201, "the request is not JSON: %v", err)
	}
	f, err := schema.ParseFormat(b.SchemaType)
	if err != nil || b.Schema == "" {
		return nil, failed(http.StatusUnprocessableEntity, 42201, "a schema, and AVRO, JSON or PROTOBUF as its schemaType, are needed")
	}
	s := &stored{Subject: subjectOf(r), Schema: b.Schema, References: b.References, SchemaType: string(f)}
	for i := range s.References {
		s.References[i].Subject = qualify(r, s.References[i].Subject)
	}
	return s, nil
}

// parse compiles a schema; what it refers to must be there. The lock is held.
func (r *Registry) parse(ctx context.Context, s *stored) (*schema.Parsed, error) {
	p, err := schema.Parse(ctx, s.definition(), func(_ context.Context, ref schema.Reference) (schema.Definition, error) {
		for _, known := range r.store.subjects[ref.Subject] {
			if known.Version == ref.Version {
				return known.definition(), nil
			}
		}
		return schema.Definition{}, fault.New(fault.UnknownSchema, "there is no version %d of %s, to which the schema refers as %s", ref.Version, ref.Subject, ref.Name)
	})
	if err != nil {
		return nil, failed(http.StatusUnprocessableEntity, 42201, "%v", err)
	}
	return p, nil
}

func (r *Registry) levelOf(subject string) schema.Level {
	if l, ok := r.store.levels[subject]; ok {
		return l
	}
	if l, ok := r.store.levels[""]; ok {
		return l
	}
	return schema.LevelBackward
}

// incompatible tells what keeps s from following versions. The lock is held.
func (r *Registry) incompatible(ctx context.Context, s *stored, versions []*stored, level schema.Level) ([]string, error) {
	next, err := r.parse(ctx, s)
	if err != nil {
		return nil, err
	}
	if level == schema.LevelNone {
		return nil, nil
	}
	var earlier []schema.Earlier
	for _, v := range versions {
		p, err := r.parse(ctx, v)
		if err != nil {
			return nil, err
		}
		earlier = append(earlier, schema.Earlier{Version: v.Version, Parsed: p})
	}
	var messages []string
	for _, i := range schema.Compatible(level, next, earlier) {
		messages = append(messages, i.String())
	}
	return messages, nil
}

func (r *Registry) register(request *http.Request) (any, error) {
	s, err := bodyOf(request)
	if err != nil {
		return nil, err
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	live := r.store.live(s.Subject)
	for _, known := range live {
		if identity(known) == identity(s) {
			return map[string]int{"id": known.ID}, nil
		}
	}
	if len(r.store.ids) >= maxStored {
		return nil, failed(http.StatusUnprocessableEntity, 42209, "the registry has %d schemas, which is all it keeps", maxStored)
	}
	messages, err := r.incompatible(request.Context(), s, live, r.levelOf(s.Subject))
	if err != nil {
		return nil, err
	}
	if len(messages) > 0 {
		return nil, failed(http.StatusConflict, 409, "Schema being registered is incompatible with an earlier schema for subject %q, level %s: %s", s.Subject, r.levelOf(s.Subject), strings.Join(messages, "; "))
	}
	if all := r.store.subjects[s.Subject]; len(all) > 0 {
		s.Version = all[len(all)-1].Version
	}
	s.Version++
	if s.ID = r.store.same[identity(s)]; s.ID == 0 {
		s.ID = r.store.lastID + 1
	}
	if err := r.store.commit(entry{Register: s}); err != nil {
		return nil, err
	}
	return map[string]int{"id": s.ID}, nil
}

func (r *Registry) compatible(request *http.Request) (any, error) {
	s, err := bodyOf(request)
	if err != nil {
		return nil, err
	}
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	versions := r.store.live(s.Subject)
	if v := request.PathValue("v"); v != "" {
		one, err := r.at(s.Subject, v, false)
		if err != nil {
			return nil, err
		}
		versions = []*stored{one}
	}
	messages, err := r.incompatible(request.Context(), s, versions, r.levelOf(s.Subject))
	if err != nil {
		return nil, err
	}
	reply := map[string]any{"is_compatible": len(messages) == 0}
	if truth(request, "verbose") {
		reply["messages"] = append([]string{}, messages...)
	}
	return reply, nil
}

// at gives a version by its number, latest or -1.
func (r *Registry) at(subject, v string, deleted bool) (*stored, error) {
	all := r.store.live(subject)
	if deleted {
		all = r.store.subjects[subject]
	}
	if len(all) == 0 {
		return nil, failed(http.StatusNotFound, 40401, "Subject '%s' not found.", subject)
	}
	if v == "latest" || v == "-1" {
		return all[len(all)-1], nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return nil, failed(http.StatusUnprocessableEntity, 42202, "The specified version '%s' is not a valid version id. Use a number from 1, or latest.", v)
	}
	i := slices.IndexFunc(all, func(s *stored) bool { return s.Version == n })
	if i < 0 {
		return nil, failed(http.StatusNotFound, 40402, "Version %d not found.", n)
	}
	return all[i], nil
}

// shown is a schema as answers carry it: Avro is not said.
func shown(s *stored) *stored {
	c := *s
	if c.SchemaType == string(schema.Avro) {
		c.SchemaType = ""
	}
	return &c
}

func (r *Registry) version(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	s, err := r.at(subjectOf(request), request.PathValue("v"), truth(request, "deleted"))
	if err != nil {
		return nil, err
	}
	return shown(s), nil
}

func (r *Registry) versionText(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	s, err := r.at(subjectOf(request), request.PathValue("v"), truth(request, "deleted"))
	if err != nil {
		return nil, err
	}
	return rawText(s.Schema), nil
}

func (r *Registry) versions(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	subject := subjectOf(request)
	all := r.store.live(subject)
	if truth(request, "deleted") {
		all = r.store.subjects[subject]
	}
	if len(all) == 0 {
		return nil, failed(http.StatusNotFound, 40401, "Subject '%s' not found.", subject)
	}
	numbers := make([]int, len(all))
	for i, s := range all {
		numbers[i] = s.Version
	}
	return numbers, nil
}

func (r *Registry) subjects(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	names := []string{}
	prefix := qualify(request, strings.TrimPrefix(request.URL.Query().Get("subjectPrefix"), ":*:"))
	for name := range r.store.subjects {
		if strings.HasPrefix(name, prefix) && (truth(request, "deleted") || len(r.store.live(name)) > 0) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (r *Registry) contexts(*http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	names := []string{"."}
	for subject := range r.store.subjects {
		if rest, ok := strings.CutPrefix(subject, ":."); ok {
			if name, _, ok := strings.Cut(rest, ":"); ok && !slices.Contains(names, "."+name) {
				names = append(names, "."+name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func (r *Registry) find(request *http.Request) (any, error) {
	s, err := bodyOf(request)
	if err != nil {
		return nil, err
	}
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	live := r.store.live(s.Subject)
	if len(live) == 0 {
		return nil, failed(http.StatusNotFound, 40401, "Subject '%s' not found.", s.Subject)
	}
	for _, known := range live {
		if identity(known) == identity(s) {
			return shown(known), nil
		}
	}
	return nil, failed(http.StatusNotFound, 40403, "Schema not found")
}

// withID gives the schema with the id in the path, and all that have it.
func (r *Registry) withID(request *http.Request) (*stored, []*stored, error) {
	id, err := strconv.Atoi(request.PathValue("id"))
	if err != nil || r.store.ids[id] == nil {
		return nil, nil, failed(http.StatusNotFound, 40403, "Schema %s not found", request.PathValue("id"))
	}
	var all []*stored
	for _, versions := range r.store.subjects {
		for _, s := range versions {
			if s.ID == id && !s.deleted {
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b *stored) int { return strings.Compare(a.Subject, b.Subject) })
	return r.store.ids[id], all, nil
}

func (r *Registry) byID(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	s, _, err := r.withID(request)
	if err != nil {
		return nil, err
	}
	s = shown(s)
	return struct {
		Schema     string             `json:"schema"`
		SchemaType string             `json:"schemaType,omitempty"`
		References []schema.Reference `json:"references,omitempty"`
	}{s.Schema, s.SchemaType, s.References}, nil
}

func (r *Registry) textByID(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	s, _, err := r.withID(request)
	if err != nil {
		return nil, err
	}
	return rawText(s.Schema), nil
}

func (r *Registry) subjectsByID(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	_, all, err := r.withID(request)
	names := []string{}
	for _, s := range all {
		names = append(names, s.Subject)
	}
	return slices.Compact(names), err
}

func (r *Registry) versionsByID(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	_, all, err := r.withID(request)
	list := []map[string]any{}
	for _, s := range all {
		list = append(list, map[string]any{"subject": s.Subject, "version": s.Version})
	}
	return list, err
}

func (r *Registry) referencedBy(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	s, err := r.at(subjectOf(request), request.PathValue("v"), true)
	if err != nil {
		return nil, err
	}
	return r.usersOf(s), nil
}

// usersOf are the ids of the schemas that refer to s.
func (r *Registry) usersOf(s *stored) []int {
	ids := []int{}
	for _, versions := range r.store.subjects {
		for _, other := range versions {
			if !other.deleted && slices.ContainsFunc(other.References, func(ref schema.Reference) bool { return ref.Subject == s.Subject && ref.Version == s.Version }) {
				ids = append(ids, other.ID)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// remove deletes s; for good only when it was deleted before. The lock is held.
func (r *Registry) remove(s *stored, permanent bool) error {
	if permanent && !s.deleted {
		return failed(http.StatusNotFound, 40407, "Subject '%s' Version %d was not deleted first before being permanently deleted", s.Subject, s.Version)
	}
	if users := r.usersOf(s); len(users) > 0 {
		return failed(http.StatusUnprocessableEntity, 42206, "One or more references exist to the schema {subject=%s,version=%d}: ids %v", s.Subject, s.Version, users)
	}
	return r.store.commit(entry{Delete: &deletedEntry{s.Subject, s.Version, permanent}})
}

func (r *Registry) deleteVersion(request *http.Request) (any, error) {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	permanent := truth(request, "permanent")
	s, err := r.at(subjectOf(request), request.PathValue("v"), permanent)
	if err != nil {
		return nil, err
	}
	n := s.Version
	return n, r.remove(s, permanent)
}

func (r *Registry) deleteSubject(request *http.Request) (any, error) {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	subject, permanent := subjectOf(request), truth(request, "permanent")
	all := r.store.live(subject)
	if permanent {
		all = slices.Clone(r.store.subjects[subject])
	}
	if len(all) == 0 {
		return nil, failed(http.StatusNotFound, 40401, "Subject '%s' not found.", subject)
	}
	numbers := []int{}
	for _, s := range all {
		if err := r.remove(s, permanent); err != nil {
			return nil, err
		}
		numbers = append(numbers, s.Version)
	}
	return numbers, nil
}

func (r *Registry) level(request *http.Request) (any, error) {
	r.store.mu.RLock()
	defer r.store.mu.RUnlock()
	subject := configSubject(request)
	if _, own := r.store.levels[subject]; subject != "" && !own && !truth(request, "defaultToGlobal") {
		return nil, failed(http.StatusNotFound, 40408, "Subject '%s' does not have subject-level compatibility configured", subject)
	}
	return map[string]schema.Level{"compatibilityLevel": r.levelOf(subject)}, nil
}

func configSubject(r *http.Request) string {
	if r.PathValue("subject") == "" {
		return ""
	}
	return subjectOf(r)
}

var levels = []schema.Level{
	schema.LevelNone, schema.LevelBackward, schema.LevelBackwardTransitive, schema.LevelForward,
	schema.LevelForwardTransitive, schema.LevelFull, schema.LevelFullTransitive,
}

func (r *Registry) setLevel(request *http.Request) (any, error) {
	var b struct {
		Compatibility schema.Level `json:"compatibility"`
	}
	if err := json.NewDecoder(request.Body).Decode(&b); err != nil || !slices.Contains(levels, b.Compatibility) {
		return nil, failed(http.StatusUnprocessableEntity, 42203, "Invalid compatibility level. Valid values are none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive")
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return b, r.store.commit(entry{Level: &levelEntry{configSubject(request), b.Compatibility}})
}

func (r *Registry) resetLevel(request *http.Request) (any, error) {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	subject := configSubject(request)
	return map[string]schema.Level{"compatibility": r.levelOf(subject)}, r.store.commit(entry{Level: &levelEntry{Subject: subject}})
}
