package webhook

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// guard decides which addresses may be dialled. It is asked with the address
// itself, after every look-up and right before connecting, so that no name can
// change its mind between the check and the dial.
type guard struct {
	allowed  []netip.Prefix
	guardian *ssrf.Guardian
}

// loopback are the addresses of this machine that allow_loopback permits.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func newGuard(o Options) (*guard, error) {
	g := &guard{guardian: ssrf.New(ssrf.WithAnyPort())}
	if o.AllowLoopback {
		g.allowed = append(g.allowed, loopback...)
	}
	for _, c := range o.AllowCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("allow_cidrs: %w", err)
		}
		g.allowed = append(g.allowed, p.Masked())
	}
	return g, nil
}

// refusedError is an address the guard does not let through.
type refusedError struct{ address string }

func (e *refusedError) Error() string {
	return "the address " + e.address + " is not one webhooks may reach: it is private, local or special; allow its range with allow_cidrs (or allow_loopback)"
}

// check refuses what is not a public unicast address, unless it is allowed.
func (g *guard) check(address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return &refusedError{address}
	}
	ip := to.Addr()
	if ip.Zone() != "" {
		return &refusedError{address}
	}
	// A v4-mapped address reaches the v4 one: it is judged as that.
	for _, p := range g.allowed {
		if p.Contains(ip.Unmap()) {
			return nil
		}
	}
	if g.guardian.SafeAddr(ip.Unmap()) != nil || ip.Is4In6() {
		return &refusedError{address}
	}
	return nil
}

// dialer dials through the guard. With dial given (a test's network), the
// guard is asked about the address it is handed.
func (g *guard) dialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	if dial != nil {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if err := g.check(address); err != nil {
				return nil, err
			}
			return dial(ctx, network, address)
		}
	}
	d := &net.Dialer{
		Timeout: connectTimeout,
		Control: func(network, address string, _ syscall.RawConn) error {
			if network != "tcp4" && network != "tcp6" {
				return &refusedError{network + " " + address}
			}
			return g.check(address)
		},
	}
	return d.DialContext
}

const (
	connectTimeout = 5 * time.Second
	tlsTimeout     = 5 * time.Second
)
