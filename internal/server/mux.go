package server

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// GatewayRegister is grpc-gateway's RegisterXHandler of one service.
type GatewayRegister func(ctx context.Context, mux *runtime.ServeMux, conn *grpc.ClientConn) error

// newMux serves the hand-written routes, /openapi.json, and grpc-gateway for the rest.
func newMux(pass *passage, o Options, p Parts, loop *grpc.ClientConn) (http.Handler, error) {
	gateway := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: false},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}),
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptReserved),
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
			wire.WriteProblem(w, gatewayFault(r, err))
		}),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
			wire.WriteProblem(w, routingFault(r, code))
		}),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD {
			md := metadata.Pairs(sourceMetadata, authz.FromContext(ctx).Source)
			otel.GetTextMapPropagator().Inject(ctx, metadataCarrier(md))
			return md
		}),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // nothing of a caller's headers is ours to trust
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(func(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
			if md, ok := runtime.ServerMetadataFromContext(ctx); ok {
				if instance := md.HeaderMD.Get(wire.InstanceMetadata); len(instance) == 1 {
					wire.SetInstance(w.Header(), instance[0])
				}
			}
			return nil
		}),
	)
	for _, register := range p.Gateway {
		if err := register(context.Background(), gateway, loop); err != nil {
			return nil, fmt.Errorf("register the HTTP gateway: %w", err)
		}
	}
	mux := http.NewServeMux()
	methods := map[string][]string{} // path pattern -> methods of its hand-written routes
	for _, r := range p.Routes {
		method, path, _ := strings.Cut(r.Pattern, " ")
		methods[path] = append(methods[path], method)
		mux.Handle(r.Pattern, pass.handler(r))
	}
	for path, allowed := range methods {
		slices.Sort(allowed)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			wire.WriteProblem(w, fault.New(fault.MethodNotAllowed, "%s is not offered on %s: use %s", r.Method, r.URL.Path, strings.Join(allowed, " or ")))
		})
	}
	spec, err := openAPI()
	if err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(spec) // the client may be gone
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if err := waitAsPreferred(r); err != nil {
			wire.WriteProblem(w, err)
			return
		}
		kept := &keptFault{ReadCloser: http.MaxBytesReader(w, r.Body, p.MaxBody)}
		r.Body = kept
		gateway.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keptFaultKey{}, kept)))
	})
	return pass.admit(o, cleanPaths(mux)), nil
}

// cleanPaths answers for paths that http.ServeMux would redirect to their clean
// form: a delivery is never answered with a redirection (CloudEvents webhooks,
// section 2.2), and a client that follows one may have lost its body.
func cleanPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		escaped := r.URL.EscapedPath()
		if clean := path.Clean(escaped); clean != escaped && clean+"/" != escaped {
			wire.WriteProblem(w, routingFault(r, http.StatusNotFound))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// keptFault keeps what reading a body failed with: grpc-gateway passes on its text only.
type keptFault struct {
	io.ReadCloser
	err error
}

type keptFaultKey struct{}

func (k *keptFault) Read(into []byte) (int, error) {
	n, err := k.ReadCloser.Read(into)
	if err != nil && !errors.Is(err, io.EOF) {
		k.err = err
	}
	return n, err
}

// waitAsPreferred lets Prefer: wait= (RFC 7240, section 4.3) bound a publish as
// it does on the events route. grpc-gateway reads Grpc-Timeout itself.
func waitAsPreferred(r *http.Request) error {
	if !isPublish(r) || r.Header.Get("Grpc-Timeout") != "" {
		return nil
	}
	wait, err := wire.WaitOf(r.Header)
	if wait > 0 {
		r.Header.Set("Grpc-Timeout", strconv.FormatInt(int64(wait/time.Second), 10)+"S")
	}
	return err
}

func isPublish(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ":publish") }

// gatewayFault reads what a call through grpc-gateway failed with: a status
// from our own interceptors, or a complaint of gRPC's or grpc-gateway's about
// the request.
func gatewayFault(r *http.Request, err error) error {
	if kept, ok := r.Context().Value(keptFaultKey{}).(*keptFault); ok && kept.err != nil {
		var large *http.MaxBytesError
		var own *fault.Error
		switch {
		case errors.As(kept.err, &large):
			return fault.New(fault.BodyTooLarge, "the body is larger than %d bytes: split the batch", large.Limit)
		case errors.As(kept.err, &own):
			return own
		}
	}
	s, ok := status.FromError(err)
	if !ok {
		return fault.Of(err)
	}
	f := wire.FromStatus(s.Proto())
	if f.Reason == fault.InvalidArgument && len(f.Violations) == 0 {
		f.Reason = fault.InvalidBody
	}
	if isPublish(r) && len(s.Details()) == 0 && (f.Reason == fault.DeadlineExceeded || f.Reason == fault.Cancelled) {
		// gRPC's own word: the call was cut before the publisher's answer was there.
		f.Reason, f.Message = fault.OutcomeUnknown, "the wait ended before the answer was there: the events may or may not be stored"
	}
	return f
}

func routingFault(r *http.Request, code int) error {
	if code == http.StatusMethodNotAllowed {
		return fault.New(fault.MethodNotAllowed, "%s is not offered on %s: see /openapi.json", r.Method, r.URL.Path)
	}
	if code == http.StatusBadRequest {
		return fault.New(fault.InvalidArgument, "the path %s cannot be read", r.URL.Path)
	}
	return fault.New(fault.UnknownRoute, "there is nothing at %s: see /openapi.json", r.URL.Path)
}

// handler serves a hand-written route: an error before the answer has begun
// becomes a problem, a later one cuts the connection so that the client cannot
// take what it got for everything.
func (p *passage) handler(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &answerStarted{ResponseWriter: w}
		defer func() {
			rec := recover()
			if rec == nil {
				return
			}
			if rec == http.ErrAbortHandler { //nolint:errorlint // the very value is the contract of net/http
				panic(rec)
			}
			p.fail(r.Context(), out, route.Pattern, p.recovered(r.Context(), route.Pattern, rec))
		}()
		if route.Stream != nil && route.Stream(r) {
			done, err := stream(r.Context())
			if err != nil {
				p.fail(r.Context(), out, route.Pattern, err)
				return
			}
			defer done()
			if body, ok := r.Body.(*body); ok {
				body.stream = true
			}
		}
		if err := route.Handle(out, r); err != nil {
			p.fail(r.Context(), out, route.Pattern, err)
		}
	})
}

func (p *passage) fail(ctx context.Context, out *answerStarted, what string, err error) {
	f := fault.Of(err)
	p.note(ctx, what, f)
	if out.started {
		panic(http.ErrAbortHandler)
	}
	wire.WriteProblem(out, f)
}

// admit checks where a request comes from and puts the caller and the trace into its context.
func (p *passage) admit(o Options, next http.Handler) http.Handler {
	network, address := split(o.HTTP)
	listenHost, _, _ := net.SplitHostPort(address)
	// Names matter where a web page could reach us under a name of its own:
	// on loopback. A listener opened to others is called by names we cannot know.
	checkHost := network == "tcp" && (isLoopback(listenHost) || len(o.AllowedHosts) > 0)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if n := headerBytes(r.Header); n > maxHeaderBytes {
			wire.WriteProblem(w, fault.New(fault.HeadersTooLarge, "the headers have %d bytes, at most %d are allowed: send large record headers by gRPC or NDJSON", n, maxHeaderBytes))
			return
		}
		if checkHost && !hostAllowed(o, listenHost, r.Host) {
			wire.WriteProblem(w, fault.New(fault.HostRefused, "Host %q is not this gateway's: call it by %s, or add the name to listen.allowed_hosts", r.Host, o.HTTP))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			if !slices.Contains(o.AllowedOrigins, origin) {
				wire.WriteProblem(w, fault.New(fault.OriginRefused, "pages of %s may not call this gateway: add the origin to listen.allowed_origins", origin))
				return
			}
			if allowOrigin(w, r, origin) {
				return
			}
		}
		who, err := p.identify(remoteAddr(r, local))
		if err != nil {
			wire.WriteProblem(w, err)
			return
		}
		ctx, err := p.admitCall(authz.NewContext(r.Context(), who), who, remoteAddr(r, local))
		if err != nil {
			wire.WriteProblem(w, err)
			return
		}
		ctx = otel.GetTextMapPropagator().Extract(ctx, propagation.HeaderCarrier(r.Header))
		r = r.WithContext(ctx)
		body, err := openBody(w, r, &p.bodies)
		if err != nil {
			wire.WriteProblem(w, err)
			return
		}
		defer body.release()
		next.ServeHTTP(w, r)
	})
}

func headerBytes(h http.Header) int {
	n := 0
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

// allowOrigin writes the CORS headers and answers a preflight.
func allowOrigin(w http.ResponseWriter, r *http.Request, origin string) (answered bool) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", origin)
	h.Add("Vary", "Origin")
	h.Set("Access-Control-Expose-Headers", "Postern-Instance, Retry-After, Idempotent-Replayed")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

func hostAllowed(o Options, listenHost, host string) bool {
	name := host
	if u, err := url.Parse("//" + host); err == nil && u.Hostname() != "" {
		name = u.Hostname()
	}
	return isLoopback(name) || name == listenHost || slices.Contains(o.AllowedHosts, name) || slices.Contains(o.AllowedHosts, host)
}

// remoteAddr is where the connection comes from; net/http keeps it as text.
func remoteAddr(r *http.Request, local net.Addr) net.Addr {
	if _, unix := local.(*net.UnixAddr); unix {
		return local
	}
	return textAddr(r.RemoteAddr)
}

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

//go:embed openapi
var openAPIFiles embed.FS

// openAPI merges the generated documents and the hand-written routes into one OpenAPI 3.1 document.
func openAPI() ([]byte, error) {
	whole := map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "Postern", "version": "v1",
			"description": "Publish and subscribe to Kafka over HTTP. Errors are RFC 9457 problem details with a stable reason.",
		},
	}
	paths, schemas := map[string]any{}, map[string]any{}
	err := fs.WalkDir(openAPIFiles, "openapi", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := openAPIFiles.ReadFile(name)
		if err != nil {
			return err
		}
		var part struct {
			Paths      map[string]map[string]any `json:"paths"`
			Components struct {
				Schemas map[string]any `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(b, &part); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for route, operations := range part.Paths {
			route = plainParameters(route, operations)
			merged, _ := paths[route].(map[string]any)
			if merged == nil {
				merged = map[string]any{}
			}
			for method, operation := range operations {
				merged[method] = operation
			}
			paths[route] = merged
		}
		for schema, content := range part.Components.Schemas {
			schemas[schema] = content
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	whole["paths"], whole["components"] = paths, map[string]any{"schemas": schemas}
	addProblems(paths)
	return json.MarshalIndent(whole, "", "  ")
}

// dotted finds path parameters that name a field of the body's message.
var dotted = regexp.MustCompile(`\{[A-Za-z_.]+\.([A-Za-z_]+)\}`)

// plainParameters names a path's parameters as the other operations on the same path
// do: "{subscription.name}" is "{name}", or the document would have two identical
// paths (OpenAPI 3.1, section 4.8.8), and many tools read no dots there.
func plainParameters(route string, operations map[string]any) string {
	for _, found := range dotted.FindAllStringSubmatch(route, -1) {
		long := strings.Trim(found[0], "{}")
		for _, operation := range operations {
			o, _ := operation.(map[string]any)
			parameters, _ := o["parameters"].([]any)
			for _, p := range parameters {
				if m, _ := p.(map[string]any); m["name"] == long && m["in"] == "path" {
					m["name"] = found[1]
				}
			}
		}
	}
	return dotted.ReplaceAllString(route, "{$1}")
}

// addProblems says on every operation that anything but success is a problem.
func addProblems(paths map[string]any) {
	for _, operations := range paths {
		for _, operation := range operations.(map[string]any) {
			op, ok := operation.(map[string]any)
			if !ok {
				continue
			}
			answers, ok := op["responses"].(map[string]any)
			if !ok {
				continue
			}
			if _, has := answers["default"]; !has {
				answers["default"] = map[string]any{
					"description": "A problem with its stable reason.",
					"content": map[string]any{"application/problem+json": map[string]any{
						"schema": map[string]any{"$ref": "#/components/schemas/Problem"},
					}},
				}
			}
		}
	}
}
