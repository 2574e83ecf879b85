// Package server owns the listeners and what every request passes: who is
// calling, the checks on Host and Origin, request validation, the span, and the
// way of an error to its caller. What requests mean is in the packages whose
// services and routes it is given.
//
// The same functions serve gRPC interceptors and HTTP middleware. Annotated
// RPCs come to HTTP through grpc-gateway over an in-memory connection, so that
// they pass the interceptors too.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // callers may compress their messages; the size limit holds for what comes out
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	"github.com/postern-dev/postern/internal/setting"
	"github.com/postern-dev/postern/internal/wire"
)

// Options says where to listen and who may come in.
type Options struct {
	// HTTP address: host:port, or unix:/path/to.sock. Default 127.0.0.1:7600.
	HTTP string `yaml:"http"`
	// GRPC address, likewise. Default 127.0.0.1:7601.
	GRPC string `yaml:"grpc"`
	// Admin address: health, metrics, pprof. Default 127.0.0.1:7602.
	Admin string `yaml:"admin"`
	// TLS for the HTTP and gRPC addresses; absent means plaintext. HTTP/2 either way.
	TLS *TLS `yaml:"tls"`
	// MaxConnections bounds the connections of each address for callers; further ones
	// wait to be accepted. Default 16384.
	MaxConnections int `yaml:"max_connections"`
	// AllowedOrigins are the web origins whose pages may call the HTTP address.
	AllowedOrigins []string `yaml:"allowed_origins"`
	// AllowedHosts are further names by which callers may address the HTTP listener.
	AllowedHosts []string `yaml:"allowed_hosts"`

	// Listen opens listeners; nil is net.Listen. Tests pass a virtual network.
	Listen func(network, address string) (net.Listener, error) `yaml:"-"`
	// Open admits callers on addresses that are neither loopback nor unix sockets (authz.mode: open).
	Open bool `yaml:"-"`
}

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	for _, d := range []struct {
		at      *string
		address string
	}{{&o.HTTP, "127.0.0.1:7600"}, {&o.GRPC, "127.0.0.1:7601"}, {&o.Admin, "127.0.0.1:7602"}} {
		if *d.at == "" {
			*d.at = d.address
		}
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 16384
	}
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	o = o.WithDefaults()
	var errs []error
	for _, l := range []struct{ name, address string }{{"http", o.HTTP}, {"grpc", o.GRPC}, {"admin", o.Admin}} {
		network, address := split(l.address)
		if network == "unix" {
			continue
		}
		host, _, err := net.SplitHostPort(address)
		switch {
		case err != nil:
			errs = append(errs, &setting.Error{Path: l.name, Message: fmt.Sprintf("%q is not host:port or unix:/path", l.address)})
		case !isLoopback(host) && !o.Open && l.name != "admin":
			errs = append(errs, &setting.Error{Path: l.name, Message: fmt.Sprintf(
				"%s is not a loopback address, and callers are not authenticated: listen on 127.0.0.1 or a unix socket, or say authz: {mode: open} to admit everyone who can reach it", l.address)})
		}
	}
	if o.MaxConnections < 0 {
		errs = append(errs, &setting.Error{Path: "max_connections", Message: "it cannot be negative"})
	}
	if o.TLS != nil {
		if o.TLS.CertFile == "" || o.TLS.KeyFile == "" {
			errs = append(errs, &setting.Error{Path: "tls.cert_file", Message: "cert_file and key_file are both needed"})
		} else if _, err := o.TLS.config(); err != nil {
			errs = append(errs, &setting.Error{Path: "tls", Message: err.Error()})
		}
	}
	return errors.Join(errs...)
}

func split(address string) (network, rest string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", address
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Route is a hand-written HTTP route, in net/http's pattern syntax.
type Route struct {
	Pattern string
	Handle  func(http.ResponseWriter, *http.Request) error // an error that is returned before anything is written becomes a problem
	Stream  func(*http.Request) bool                       // whether a request is one of the caller's streams; nil: none is
}

// Parts are the services and routes to serve.
type Parts struct {
	Register  func(grpc.ServiceRegistrar)
	Gateway   []GatewayRegister // grpc-gateway's RegisterXHandler
	Routes    []Route
	Admin     http.Handler // metrics and whatever else operators see
	Validator protovalidate.Validator
	MaxBody   int64
	Bodies    int64 // bounds the bytes of all HTTP bodies in work; 0: nothing does
	Limits    Limits
	Log       *slog.Logger
}

// Server is the gateway's listeners.
type Server struct {
	options  Options
	log      *slog.Logger
	grpc     *grpc.Server
	health   *health.Server
	http     *http.Server
	admin    *http.Server
	memory   *bufconn.Listener
	loop     *grpc.ClientConn
	ready    readiness
	Addrs    Addrs // once Listen has succeeded
	listener struct{ http, grpc, admin net.Listener }
}

// Addrs are the addresses really listened on.
type Addrs struct{ HTTP, GRPC, Admin string }

// Limits of connections. A slow client costs a connection, never a goroutine for ever.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// maxHeaderBytes has room for a CloudEvent whose 64 KiB, which everybody on the way
	// must forward (spec, size limits), are all attributes, and for HTTP's own headers.
	maxHeaderBytes = 80 << 10
	// readHeaderBytes is what net/http reads before it answers with bare text:
	// beyond maxHeaderBytes and up to there a caller gets our reason.
	readHeaderBytes = 2 << 20
	maxStreams      = 1000 // per HTTP/2 connection
	memoryPipeBytes = 256 << 10
	// streamWorkers serve gRPC calls without growing a new goroutine's stack
	// each time, which was 15 % of a unary publish.
	streamWorkers = 64
)

// New builds the servers; Listen opens their addresses.
func New(o Options, p Parts) (*Server, error) {
	o = o.WithDefaults()
	s := &Server{options: o, log: p.Log, health: health.NewServer(), memory: bufconn.Listen(memoryPipeBytes)}
	buffers := &wire.Buffers{}
	pass := &passage{validator: p.Validator, log: p.Log, open: o.Open, limiter: newLimiter(p.Limits), bodies: bodies{limit: p.Bodies}}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(pass.unary),
		grpc.StreamInterceptor(pass.stream),
		grpc.InTapHandle(expect),
		grpc.MaxRecvMsgSize(int(p.MaxBody)),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		experimental.BufferPool(buffers),
		grpc.ForceServerCodecV2(wire.NewCodec(buffers)),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	p.Register(s.grpc)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)

	loop, err := grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.memory.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return nil, fmt.Errorf("in-memory gRPC connection: %w", err)
	}
	s.loop = loop
	mux, err := newMux(pass, o, p, loop)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: readHeaderBytes,
		Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug), ConnState: noteIdle,
	}
	s.admin = &http.Server{Handler: s.adminMux(p.Admin), ReadHeaderTimeout: readHeaderTimeout, ErrorLog: s.http.ErrorLog}
	return s, nil
}

// Listen opens the three addresses, so that a port that is taken is known before anything else starts.
func (s *Server) Listen() error {
	for _, l := range []struct {
		name, address string
		listener      *net.Listener
		at            *string
	}{
		{"http", s.options.HTTP, &s.listener.http, &s.Addrs.HTTP},
		{"grpc", s.options.GRPC, &s.listener.grpc, &s.Addrs.GRPC},
		{"admin", s.options.Admin, &s.listener.admin, &s.Addrs.Admin},
	} {
		network, address := split(l.address)
		if network == "unix" {
			if err := removeStale(address); err != nil {
				return err
			}
		}
		listener, err := s.options.Listen(network, address)
		if err != nil {
			s.closeListeners()
			return fmt.Errorf("listen.%s: %w: is another gateway running? choose another address with --listen-%s", l.name, err, l.name)
		}
		*l.at = listener.Addr().String()
		if l.name != "admin" {
			listener = netutil.LimitListener(listener, s.options.MaxConnections)
		}
		if l.name == "grpc" && s.options.TLS != nil {
			config, err := s.options.TLS.config("h2")
			if err != nil {
				s.closeListeners()
				return fmt.Errorf("listen.tls: %w", err)
			}
			listener = tls.NewListener(listener, config)
		}
		if l.name == "http" && s.options.TLS == nil {
			listener = newRestListener(listener)
		}
		*l.listener = listener
		if network == "unix" {
			*l.at = l.address
		}
	}
	return nil
}

// removeStale removes a unix socket that nobody listens on any more.
func removeStale(path string) error {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	if c, err := net.Dial("unix", path); err == nil {
		return errors.Join(c.Close(), fmt.Errorf("the socket %s is in use by another process", path))
	}
	return os.Remove(path)
}

func (s *Server) closeListeners() {
	for _, l := range []net.Listener{s.listener.http, s.listener.grpc, s.listener.admin} {
		if l != nil {
			_ = l.Close() // never served
		}
	}
}

// Run serves until Stop. An error is a listener's that broke.
func (s *Server) Run() error {
	failed := make(chan error, 4)
	go func() { failed <- s.grpc.Serve(s.listener.grpc) }()
	go func() { failed <- s.grpc.Serve(s.memory) }()
	go func() { failed <- ignoreClosed(s.serveHTTP()) }()
	go func() { failed <- ignoreClosed(s.admin.Serve(s.listener.admin)) }()
	var errs []error
	for range cap(failed) {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

func (s *Server) serveHTTP() error {
	if s.options.TLS == nil {
		return s.http.Serve(s.listener.http)
	}
	config, err := s.options.TLS.config() // the protocols are the server's
	if err != nil {
		return fmt.Errorf("listen.tls: %w", err)
	}
	s.http.TLSConfig = config
	return s.http.ServeTLS(s.listener.http, "", "")
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Stop ends the servers: new calls are refused, those under way finish until
// ctx ends, then everything is cut.
func (s *Server) Stop(ctx context.Context) {
	s.health.Shutdown()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // the deadline passed: cut
	}
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
	_ = s.loop.Close()        // its server is gone
	_ = s.admin.Shutdown(ctx) // the last to answer probes
	_ = s.admin.Close()
}
