// Package push owns carrying events to an application over gRPC: the service
// EventHandler, which the application serves and the gateway calls.
//
// It is a webhook in everything but the wire: how many calls may be under way,
// states, retries and the log of attempts are package endpoint's. The guard on
// addresses is not: an application is usually on this machine or in this
// network, and is named by whoever runs the gateway.
package push

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// Options is an application as people declare it.
type Options struct {
	// Address of the application's gRPC server: host:port, or unix:/path/to.sock.
	Address string `yaml:"address"`
	// TLS towards it; absent means plaintext, which is for this machine or a mesh.
	TLS *webhook.TLS `yaml:"tls"`
	// Timeout bounds one attempt. Default 30s.
	Timeout time.Duration `yaml:"timeout"`
	// Concurrency is how many calls may be under way at most. Default 64.
	Concurrency int `yaml:"concurrency"`
	// RequestsPerSecond is a limit. Default: none.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	// Batch has events sent together, with HandleBatch. Absent: one by one, with Handle.
	Batch *endpoint.Batch `yaml:"batch"`
	// DisableAfter is how long no call may succeed before the application is disabled. Default: never.
	DisableAfter time.Duration `yaml:"disable_after"`
	// Metadata is sent with each call.
	Metadata map[string]setting.Secret `yaml:"metadata"`
	// View is raw (default) or json: events are shown as JSON, whatever the topic holds.
	View webhook.View `yaml:"view"`
}

const (
	defaultTimeout     = 30 * time.Second
	maxTimeout         = 10 * time.Minute
	defaultConcurrency = 64
	maxConcurrency     = 10_000
	// maxAnswer bounds an application's answer; a batch's has a result for each event.
	maxAnswer = 4 << 20
)

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.Batch != nil {
		b := o.Batch.WithDefaults()
		o.Batch = &b
	}
	return o
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() []error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: "push." + path, Message: fmt.Sprintf(format, args...)})
	}
	if _, port, err := net.SplitHostPort(o.Address); !strings.HasPrefix(o.Address, "unix:") && (err != nil || port == "") {
		bad("address", "%q is not host:port or unix:/path", o.Address)
	}
	if o.Timeout < 0 || o.Timeout > maxTimeout {
		bad("timeout", "%s is out of range: at most %s", o.Timeout, maxTimeout)
	}
	if o.Concurrency < 0 || o.Concurrency > maxConcurrency {
		bad("concurrency", "%d is out of range: 1 to %d", o.Concurrency, maxConcurrency)
	}
	if o.RequestsPerSecond < 0 || o.RequestsPerSecond > 1e6 {
		bad("requests_per_second", "%g is out of range: at most 1000000", o.RequestsPerSecond)
	}
	if o.View != "" && o.View != webhook.ViewRaw && o.View != webhook.ViewJSON {
		bad("view", "%q is not offered: use raw or json", o.View)
	}
	if o.Batch != nil {
		o.Batch.Validate(func(path, format string, args ...any) { bad("batch."+path, format, args...) })
	}
	if o.TLS != nil {
		if _, err := o.TLS.Open(); err != nil {
			bad("tls", "%v", err)
		}
	}
	for name := range o.Metadata {
		if name == "" || strings.HasPrefix(name, "grpc-") || strings.HasPrefix(name, ":") || strings.HasSuffix(name, "-bin") ||
			strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			bad("metadata", "%q may not be set: names are lower-case letters, digits, dots, dashes and underscores, and grpc- is gRPC's own", name)
		}
	}
	return errs
}

// Environment is what a push works with that nobody configures for it alone.
type Environment struct {
	// Retry is the subscription's policy.
	Retry    delivery.Retry
	Endpoint endpoint.Environment
	// View shows a record as JSON, for applications with view: json.
	View endpoint.View
	// Dial opens connections; nil is gRPC's own. Tests pass a virtual network.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// New makes the pusher of an application of valid options.
func New(subscription string, o Options, env Environment) (*endpoint.Pusher, error) {
	o = o.WithDefaults()
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, err
	}
	conn, err := connect(o, env.Dial)
	if err != nil {
		return nil, err
	}
	c := &carrier{subscription: subscription, conn: conn, timeout: o.Timeout, client: posternv1.NewEventHandlerClient(conn)}
	var secrets []string
	for name, value := range o.Metadata {
		c.metadata = append(c.metadata, name, value.Reveal())
		secrets = append(secrets, value.Reveal())
	}
	c.scrub = setting.NewScrubber(secrets...)
	settings := endpoint.Options{
		Subscription: subscription, Host: o.Address, Timeout: o.Timeout, Concurrency: o.Concurrency, Rate: o.RequestsPerSecond,
		DisableAfter: o.DisableAfter, Retry: env.Retry,
	}
	if o.Batch != nil {
		settings.Batch, c.batch = *o.Batch, true
	}
	if o.View == webhook.ViewJSON {
		settings.View = env.View
	}
	return endpoint.New(settings, c, env.Endpoint), nil
}

// certificates are credentials whose files are read again when they change: each
// handshake has those of its time.
type certificates struct {
	credentials.TransportCredentials // as they were first
	files                            *webhook.Certificates
}

// ClientHandshake makes a connection secure.
func (c *certificates) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.files.Config(time.Now())).ClientHandshake(ctx, authority, conn)
}

// Clone makes another that reads the same files.
func (c *certificates) Clone() credentials.TransportCredentials {
	return &certificates{c.TransportCredentials.Clone(), c.files}
}

func connect(o Options, dial func(context.Context, string) (net.Conn, error)) (*grpc.ClientConn, error) {
	secure := insecure.NewCredentials()
	if o.TLS != nil {
		files, err := o.TLS.Open()
		if err != nil {
			return nil, err
		}
		secure = &certificates{TransportCredentials: credentials.NewTLS(files.Config(time.Now())), files: files}
	}
	target := o.Address
	if !strings.HasPrefix(target, "unix:") {
		target = "dns:///" + target
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secure),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), // retrying is the subscription's
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		// An application that restarts is back soon: gRPC's own two minutes would leave it idle.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if dial != nil {
		target = "passthrough:///" + o.Address
		options = append(options, grpc.WithContextDialer(dial))
	}
	return grpc.NewClient(target, options...)
}
