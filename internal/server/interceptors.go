package server

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
)

// passage is what every request goes through, whichever way it comes.
type passage struct {
	validator protovalidate.Validator
	log       *slog.Logger
	open      bool
	limiter   *limiter // nil: nothing is limited
	bodies    bodies
}

// sourceMetadata carries an HTTP caller's identity source over the in-memory
// connection. It is read from that connection only.
const sourceMetadata = "postern-source"

// identify tells who is calling from where the connection comes from.
func (p *passage) identify(addr net.Addr) (authz.Identity, error) {
	switch a := addr.(type) {
	case *net.UnixAddr:
		return authz.Anonymous("unix"), nil
	case *net.TCPAddr:
		if a.IP.IsLoopback() {
			return authz.Anonymous("loopback"), nil
		}
	case nil:
		return authz.Identity{}, fault.New(fault.Unauthenticated, "the connection has no address")
	default:
		if isLoopbackText(addr.String()) {
			return authz.Anonymous("loopback"), nil
		}
	}
	if p.open {
		return authz.Anonymous("open"), nil
	}
	return authz.Identity{}, fault.New(fault.Unauthenticated, "callers from %s are not admitted: the gateway admits its own host only", addr)
}

func isLoopbackText(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && isLoopback(host)
}

// enter puts the caller and the caller's trace into the call's context.
func (p *passage) enter(ctx context.Context) (context.Context, error) {
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md["traceparent"]) > 0 {
		ctx = otel.GetTextMapPropagator().Extract(ctx, metadataCarrier(md))
	}
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "the connection has no address")
	}
	if from.Addr.Network() == "bufconn" {
		if source := metadata.ValueFromIncomingContext(ctx, sourceMetadata); len(source) == 1 {
			return authz.NewContext(ctx, authz.Anonymous(source[0])), nil // counted when it came by HTTP
		}
	}
	who, err := p.identify(from.Addr)
	if err != nil {
		return nil, err
	}
	return p.admitCall(authz.NewContext(ctx, who), who, from.Addr)
}

// metadataCarrier reads trace headers from a call's metadata.
type metadataCarrier metadata.MD

func (c metadataCarrier) Get(name string) string {
	if v := c[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c metadataCarrier) Set(name, value string) { c[name] = []string{value} }

func (c metadataCarrier) Keys() []string { return slices.Collect(maps.Keys(c)) }

// unary is the interceptor of unary calls.
func (p *passage) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	arrived(ctx)
	defer func() {
		if r := recover(); r != nil {
			err = p.recovered(ctx, info.FullMethod, r)
		}
		if err != nil {
			answer, err = nil, p.leave(ctx, info.FullMethod, err)
		}
	}()
	if ctx, err = p.enter(ctx); err != nil {
		return nil, err
	}
	if m, ok := request.(proto.Message); ok {
		if c, ok := ctx.Value(callKey{}).(call); ok {
			c.limiter.charge(c.account, proto.Size(m), time.Now())
		}
		if err := p.validator.Validate(m); err != nil {
			return nil, wire.Invalid(err)
		}
	}
	return handle(ctx, request)
}

// stream is the interceptor of streaming calls. Client streams check each
// frame themselves; the one request of a server stream is checked here.
func (p *passage) stream(srv any, incoming grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx := incoming.Context()
	if info.IsClientStream { // its messages come when they come
		arrived(ctx)
	}
	defer func() {
		if r := recover(); r != nil {
			err = p.recovered(ctx, info.FullMethod, r)
		}
		if err != nil {
			err = p.leave(ctx, info.FullMethod, err)
		}
	}()
	if ctx, err = p.enter(ctx); err != nil {
		return err
	}
	done, err := stream(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c, ok := ctx.Value(callKey{}).(call); ok {
		incoming = &countedStream{incoming, c}
	}
	return handle(srv, &checkedStream{incoming, ctx, p.validator, !info.IsClientStream})
}

type checkedStream struct {
	grpc.ServerStream
	ctx       context.Context
	validator protovalidate.Validator
	check     bool
}

func (s *checkedStream) Context() context.Context { return s.ctx }

func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	arrived(s.ctx)
	if message, ok := m.(proto.Message); ok && s.check {
		return wire.Invalid(s.validator.Validate(message))
	}
	return nil
}

// leave turns an error into what the caller gets. Failures of ours are logged;
// those of callers are theirs to see.
func (p *passage) leave(ctx context.Context, what string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err // grpc's own: a broken stream
	}
	f := fault.Of(err)
	p.note(ctx, what, f)
	return status.FromProto(wire.Status(f)).Err()
}

func (p *passage) note(ctx context.Context, what string, f *fault.Error) {
	if f.Kind() == fault.KindInternal {
		p.log.ErrorContext(ctx, "request failed", "request", what, "reason", f.Reason, "error", f)
	}
}

func (p *passage) recovered(ctx context.Context, what string, r any) error {
	p.log.ErrorContext(ctx, "panic", "request", what, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "the gateway met a fault of its own; it is logged")
}

// answerStarted tells whether an HTTP answer has begun, so that an error may still become a problem.
type answerStarted struct {
	http.ResponseWriter
	started bool
}

func (w *answerStarted) WriteHeader(code int) {
	w.started = true
	w.ResponseWriter.WriteHeader(code)
}

func (w *answerStarted) Write(b []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answerStarted) Unwrap() http.ResponseWriter { return w.ResponseWriter }
