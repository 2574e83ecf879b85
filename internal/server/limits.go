package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/authz"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
)

// Limits bound what callers may use.
type Limits struct {
	// PerIdentity bounds each caller; anonymous callers count by address.
	PerIdentity IdentityLimits `yaml:"per_identity"`
}

// IdentityLimits bound one caller. 0 is no limit.
type IdentityLimits struct {
	// RequestsPerSecond counts calls, however they come, with bursts of one second's
	// worth; beyond it they are refused, RATE_LIMITED. A stream counts once.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	// BytesPerSecond counts what requests carry in. A request in excess is served and
	// the next one refused, RATE_LIMITED, until it is made up for; streams are read slower.
	BytesPerSecond setting.Bytes `yaml:"bytes_per_second"`
	// Streams open at once: gRPC streams, server-sent events, lines. Beyond it TOO_MANY_STREAMS.
	Streams int `yaml:"streams"`
}

// Validate reports everything wrong with l, each as a *setting.Error.
func (l Limits) Validate() error {
	var faults setting.Faults
	if l.PerIdentity.RequestsPerSecond < 0 {
		faults.Add("per_identity.requests_per_second", "it cannot be negative: 0 is no limit")
	}
	if l.PerIdentity.BytesPerSecond < 0 {
		faults.Add("per_identity.bytes_per_second", "it cannot be negative: 0 is no limit")
	}
	if l.PerIdentity.Streams < 0 {
		faults.Add("per_identity.streams", "it cannot be negative: 0 is no limit")
	}
	return faults.Err()
}

// limiter keeps the callers' accounts.
type limiter struct {
	limits IdentityLimits

	mu       sync.Mutex
	accounts map[string]*account
}

// maxAccounts bounds the callers that are told apart; those beyond share one
// account. 200 bytes each.
const maxAccounts = 10_000

func newLimiter(l Limits) *limiter {
	if l.PerIdentity == (IdentityLimits{}) {
		return nil // nothing is counted
	}
	return &limiter{limits: l.PerIdentity, accounts: map[string]*account{}}
}

// account is what one caller has used.
type account struct {
	mu       sync.Mutex
	requests bucket
	bytes    bucket
	streams  int
}

// bucket is a token bucket that may go into debt.
type bucket struct {
	balance float64
	at      time.Time
}

// fill adds what came in since, at rate a second, to at most burst.
func (b *bucket) fill(rate, burst float64, now time.Time) {
	if b.at.IsZero() {
		b.balance = burst
	} else {
		b.balance = min(burst, b.balance+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

// wait is how long until the balance is need.
func (b *bucket) wait(rate, need float64) time.Duration {
	if b.balance >= need {
		return 0
	}
	return time.Duration((need - b.balance) / rate * float64(time.Second))
}

func (l *limiter) account(name string, now time.Time) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.accounts[name]; a != nil {
		return a
	}
	if len(l.accounts) >= maxAccounts {
		for other, a := range l.accounts {
			if a.idle(now) {
				delete(l.accounts, other)
			}
		}
		if len(l.accounts) >= maxAccounts {
			name = ""
			if a := l.accounts[name]; a != nil {
				return a
			}
		}
	}
	a := &account{}
	l.accounts[name] = a
	return a
}

// idle reports whether forgetting a changes nothing: no stream, and a minute
// without a request, so that all debts of a second's burst are paid.
func (a *account) idle(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.streams == 0 && now.Sub(a.requests.at) > time.Minute && now.Sub(a.bytes.at) > time.Minute
}

// enter counts a request, or refuses it.
func (l *limiter) enter(a *account, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if rate := float64(l.limits.BytesPerSecond); rate > 0 {
		a.bytes.fill(rate, rate, now)
		if wait := a.bytes.wait(rate, 0); wait > 0 {
			return limited(wait, "bytes", fmt.Sprint(int64(l.limits.BytesPerSecond)))
		}
	}
	if rate := l.limits.RequestsPerSecond; rate > 0 {
		a.requests.fill(rate, max(1, rate), now)
		if wait := a.requests.wait(rate, 1); wait > 0 {
			return limited(wait, "requests", fmt.Sprint(rate))
		}
		a.requests.balance--
	}
	return nil
}

func limited(wait time.Duration, what, limit string) error {
	return fault.New(fault.RateLimited, "you are over your limit of %s %s a second (limits.per_identity): retry after %s", limit, what, wait.Round(time.Millisecond)).
		After(wait).With("limit", limit).With("unit", what)
}

// charge counts bytes that came in, and gives how long a stream should wait
// before it reads on.
func (l *limiter) charge(a *account, n int, now time.Time) time.Duration {
	rate := float64(l.limits.BytesPerSecond)
	if rate == 0 {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bytes.fill(rate, rate, now)
	a.bytes.balance -= float64(n)
	return a.bytes.wait(rate, 0)
}

// open counts a stream, or refuses it. close ends it.
func (l *limiter) open(a *account) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.limits.Streams > 0 && a.streams >= l.limits.Streams {
		return fault.New(fault.TooManyStreams, "you have %d streams open, as many as one caller may (limits.per_identity.streams): use fewer, or retry after 1s", a.streams).
			After(time.Second).With("limit", fmt.Sprint(l.limits.Streams))
	}
	a.streams++
	return nil
}

func (l *limiter) close(a *account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams--
}

// nameOf is the account of a caller: anonymous ones are told apart by address
// where they may come from different hosts.
func nameOf(who authz.Identity, from net.Addr) string {
	if who.Source != "open" {
		return who.Name + "@" + who.Source
	}
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		host = from.String()
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() && !ip.Is4In6() {
		if network, err := ip.WithZone("").Prefix(64); err == nil { // a host has a whole /64 of addresses
			host = network.String()
		}
	}
	return who.Name + "@" + host
}

// call is what one request's account is, in its context.
type call struct {
	limiter *limiter
	account *account
}

type callKey struct{}

// admitCall counts a request whose caller is known.
func (p *passage) admitCall(ctx context.Context, who authz.Identity, from net.Addr) (context.Context, error) {
	if p.limiter == nil {
		return ctx, nil
	}
	now := time.Now()
	a := p.limiter.account(nameOf(who, from), now)
	if err := p.limiter.enter(a, now); err != nil {
		return nil, err
	}
	return context.WithValue(ctx, callKey{}, call{p.limiter, a}), nil
}

// stream counts an open stream; the function given ends it.
func stream(ctx context.Context) (func(), error) {
	c, ok := ctx.Value(callKey{}).(call)
	if !ok {
		return func() {}, nil
	}
	if err := c.limiter.open(c.account); err != nil {
		return nil, err
	}
	return func() { c.limiter.close(c.account) }, nil
}

// countedStream charges the messages of a gRPC stream and reads them no faster than the limit.
type countedStream struct {
	grpc.ServerStream
	call call
}

func (s *countedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if message, ok := m.(proto.Message); ok {
		if wait := s.call.limiter.charge(s.call.account, proto.Size(message), time.Now()); wait > 0 {
			return sleep(s.Context(), wait)
		}
	}
	return nil
}

func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
