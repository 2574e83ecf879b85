// Package broker owns everything that is Kafka: it is the only importer of the
// Kafka client. The rest of the program sees event.Record, event.Position and
// fault reasons.
//
//   - [Client] is a connection to a cluster, from which the others are made;
//   - [Producer] writes records, idempotently, and says where each went;
//   - [Consumer] is a member of a consumer group with explicit commits that
//     carry metadata;
//   - [Reader] reads a topic without a group;
//   - faults.go turns Kafka's error codes into reasons, in one table.
//
// When an event counts as settled, in which order events are delivered and
// when to commit are package delivery's.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/postern-dev/postern/internal/setting"
)

// Options says how to reach Kafka.
type Options struct {
	// Brokers to ask first, host:port.
	Brokers []string `yaml:"brokers"`
	// TLS towards the brokers; absent means plaintext.
	TLS *TLS `yaml:"tls"`
	// SASL authentication; absent means none.
	SASL *SASL `yaml:"sasl"`
	// ClientID is how we appear in the brokers' logs and quotas. Default "postern".
	ClientID string `yaml:"client_id"`
	// TransactionalIDPrefix begins the transactional ids of atomic publishing, for
	// Kafka's access rules: PREFIX-<random>-<0 to 3>. Default "postern".
	TransactionalIDPrefix string `yaml:"transactional_id_prefix"`
	// PublishBuffer bounds the bytes of events waiting for Kafka, each with 512 bytes
	// for what it costs beside its own. One topic gets at most half. Default 64MiB.
	PublishBuffer setting.Bytes `yaml:"publish_buffer"`
	// SessionTimeout after which Kafka gives the partitions of a gateway that died
	// without a word to others: the gap a crash leaves in delivery. Default 10s
	// (Kafka's clients take 45s, for the sake of pauses that this program does not
	// have); at least what the broker allows, 6s by default.
	SessionTimeout time.Duration `yaml:"session_timeout"`

	// GroupProtocol is classic (default; cooperative-sticky) or consumer (KIP-848,
	// where the broker offers it): rebalances then stop nobody, but the broker says
	// how soon a dead member is missed (group.consumer.session.timeout.ms, 45s).
	GroupProtocol string `yaml:"group_protocol"`
	// StaticMembership is a name that this gateway has again after a restart, such as
	// a StatefulSet's pod: it then gets its partitions back without a rebalance if it
	// is there again within session_timeout, and they wait for it meanwhile.
	StaticMembership string `yaml:"static_membership"`

	// MaxEventBytes bounds one event: the largest that publishing admits. Default 976KiB.
	MaxEventBytes setting.Bytes `yaml:"-"`
	// EventLimit tells it of one topic; nil: MaxEventBytes for all.
	EventLimit func(topic string) int `yaml:"-"`
	// AutoCreateTopics lets a publish to an unknown topic create it (`postern dev` only).
	AutoCreateTopics bool `yaml:"-"`
	// Dial opens connections; nil is net.Dialer, with TLS as told. Tests pass a virtual network.
	Dial Dial `yaml:"-"`
	// Logger takes what the Kafka client has to say at warning and above.
	Logger *slog.Logger `yaml:"-"`
}

// Dial opens a connection.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// TLS settings towards the brokers.
type TLS = setting.ClientTLS

// SASL settings.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
	Mechanism string         `yaml:"mechanism"`
	Username  string         `yaml:"username"`
	Password  setting.Secret `yaml:"password"`
}

// Defaults of Options.
const (
	DefaultPublishBuffer = 64 << 20
	// DefaultMaxEventBytes fits, with its batch around it, what a topic of Kafka's defaults
	// takes and the client's own limit of a batch.
	DefaultMaxEventBytes = 976 << 10
	// DefaultSessionTimeout is short, because a gateway that was killed is back
	// within a second and waits for it.
	DefaultSessionTimeout = 10 * time.Second
	// heartbeats are sent in a session timeout: one that is late, or lost, costs
	// nothing. No longer apart than Kafka's default: they bring the word of a rebalance.
	heartbeats   = 6
	maxHeartbeat = 3 * time.Second
)

// WithDefaults returns o with empty settings filled in.
func (o Options) WithDefaults() Options {
	if o.ClientID == "" {
		o.ClientID = "postern"
	}
	if o.TransactionalIDPrefix == "" {
		o.TransactionalIDPrefix = "postern"
	}
	if o.PublishBuffer == 0 {
		o.PublishBuffer = DefaultPublishBuffer
	}
	if o.MaxEventBytes == 0 {
		o.MaxEventBytes = DefaultMaxEventBytes
	}
	if o.SessionTimeout == 0 {
		o.SessionTimeout = DefaultSessionTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// HeartbeatInterval is how often a member of a group tells that it lives, and hears
// of a rebalance.
func (o Options) HeartbeatInterval() time.Duration {
	return min(o.SessionTimeout/heartbeats, maxHeartbeat)
}

// Validate reports everything wrong with o, each as a *setting.Error.
func (o Options) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, &setting.Error{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if len(o.Brokers) == 0 {
		bad("brokers", "no broker is named: give at least one host:port")
	}
	for i, b := range o.Brokers {
		if _, port, err := net.SplitHostPort(b); err != nil || port == "" {
			bad(fmt.Sprintf("brokers[%d]", i), "%q is not host:port", b)
		}
	}
	if o.SASL != nil {
		if _, err := o.SASL.mechanism(); err != nil {
			bad("sasl.mechanism", "%v", err)
		}
		if o.SASL.Username == "" {
			bad("sasl.username", "a SASL mechanism needs a username")
		}
		if o.SASL.Password.IsZero() {
			bad("sasl.password", "a SASL mechanism needs a password")
		}
	}
	if o.TLS != nil {
		if (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
			bad("tls.cert_file", "cert_file and key_file go together")
		} else if _, err := o.TLS.Config(); err != nil {
			bad("tls", "%v", err)
		}
	}
	if o.SessionTimeout < 0 || o.SessionTimeout > 0 && o.SessionTimeout < time.Second {
		bad("session_timeout", "%s is too short: at least 1s, and what the brokers allow (group.min.session.timeout.ms)", o.SessionTimeout)
	}
	if p := o.GroupProtocol; p != "" && p != "classic" && p != "consumer" {
		bad("group_protocol", "%q is not offered: use classic or consumer", p)
	}
	if len(o.StaticMembership) > 200 {
		bad("static_membership", "a member's name has at most 200 bytes")
	}
	if o.PublishBuffer < 0 || o.PublishBuffer > 0 && o.PublishBuffer < 1<<20 {
		bad("publish_buffer", "%s is too small: at least 1MiB", o.PublishBuffer)
	}
	return errors.Join(errs...)
}

func (s *SASL) mechanism() (kgo.Opt, error) {
	switch s.Mechanism {
	case "PLAIN":
		return kgo.SASL(plain.Auth{User: s.Username, Pass: s.Password.Reveal()}.AsMechanism()), nil
	case "SCRAM-SHA-256":
		return kgo.SASL(scram.Auth{User: s.Username, Pass: s.Password.Reveal()}.AsSha256Mechanism()), nil
	case "SCRAM-SHA-512":
		return kgo.SASL(scram.Auth{User: s.Username, Pass: s.Password.Reveal()}.AsSha512Mechanism()), nil
	}
	return nil, fmt.Errorf("%q is not offered: use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", s.Mechanism)
}

// Client is a connection to one Kafka cluster.
type Client struct {
	options Options
	base    []kgo.Opt
	dial    Dial
	kgo     *kgo.Client // for requests that belong to no producer and no group
	admin   *kadm.Client
}

// metadataMinAge is how often the client may ask for metadata. Its default of
// 5 s stalls a publish to a just-created topic for that long; 250 ms costs at
// most four small requests a second while something is missing.
const metadataMinAge = 250 * time.Millisecond

// metadataMaxAge is how soon a new partition of a topic is read and written;
// the client's default is 5 minutes. A small request a minute for each client.
const metadataMaxAge = time.Minute

// New makes a Client. It connects lazily: a cluster that is down is no error here.
func New(o Options) (*Client, error) {
	o = o.WithDefaults()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("kafka settings: %w", err)
	}
	base := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID(o.ClientID),
		kgo.MinVersions(kversion.V2_4_0()),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.MetadataMaxAge(metadataMaxAge),
		kgo.WithLogger(logger{o.Logger}),
		kgo.DisableClientMetrics(), // KIP-714 would push our internals to the cluster's operators unasked
	}
	dial, err := o.dialer()
	if err != nil {
		return nil, err
	}
	base = append(base, kgo.Dialer(dial))
	if o.SASL != nil {
		m, err := o.SASL.mechanism()
		if err != nil {
			return nil, fmt.Errorf("kafka.sasl: %w", err)
		}
		base = append(base, m)
	}
	cl, err := kgo.NewClient(base...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return &Client{options: o, base: base, dial: dial, kgo: cl, admin: kadm.NewClient(cl)}, nil
}

// dialTimeout bounds the making of a connection, TLS included; the Kafka client's default.
const dialTimeout = 10 * time.Second

// dialer is what opens connections.
func (o Options) dialer() (Dial, error) {
	if o.Dial != nil {
		return o.Dial, nil
	}
	plain := &net.Dialer{Timeout: dialTimeout}
	if o.TLS == nil {
		return plain.DialContext, nil
	}
	c, err := o.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("kafka.tls: %w", err)
	}
	return (&tls.Dialer{NetDialer: plain, Config: c}).DialContext, nil
}

// Ping asks any broker for an answer.
func (c *Client) Ping(ctx context.Context) error {
	if err := c.kgo.Ping(ctx); err != nil {
		return toFault(err, "reach Kafka")
	}
	return nil
}

// Close ends the connections of c itself; producers, consumers and readers have their own Close.
func (c *Client) Close() { c.kgo.Close() }

// logger hands the client's own words to slog.
type logger struct{ log *slog.Logger }

func (l logger) Level() kgo.LogLevel {
	switch ctx := context.Background(); {
	case l.log.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo // its debug level prints every request
	case l.log.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	default:
		return kgo.LogLevelError
	}
}

func (l logger) Log(level kgo.LogLevel, msg string, kv ...any) {
	to := slog.LevelDebug // what it retries, it retries; whoever must act is told by the gateway
	if level == kgo.LogLevelError {
		to = slog.LevelInfo
	}
	l.log.Log(context.Background(), to, "kafka client: "+msg, kv...)
}
