package webhook

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// guard decides which addresses may be dialled. It is asked with the address
// itself, after every look-up and right before connecting, so that no name can
// change its mind between the check and the dial. Endpoints, token endpoints and
// proxies are dialled through it.
//
// Refused are the special-purpose addresses of IANA's registries, everything
// outside IPv6's global unicast, and every way to write an IPv4 address inside
// an IPv6 one (mapped, compatible, NAT64, 6to4, Teredo, ISATAP), whatever the
// IPv4 address is: none of them is needed to reach a public host.
type guard struct {
	denied   []netip.Prefix // by whoever runs the gateway: they win over allowed
	allowed  []netip.Prefix
	ports    []uint16
	guardian *ssrf.Guardian
	resolver *net.Resolver // nil is the system's
}

// loopback are the addresses of this machine that allow_loopback permits.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// firstFreePort is where ports begin on which no system service is expected:
// mail, SSH and the like are below, and speaking HTTP to them is an attack.
const firstFreePort = 1024

func newGuard(o Options, denied []netip.Prefix) (*guard, error) {
	g := &guard{guardian: ssrf.New(ssrf.WithAnyPort()), denied: denied, ports: []uint16{443}}
	if o.AllowHTTP {
		g.ports = append(g.ports, 80)
	}
	for _, p := range o.AllowPorts {
		g.ports = append(g.ports, uint16(p))
	}
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
type refusedError struct{ address, why string }

func (e *refusedError) Error() string {
	return "webhooks may not reach " + e.address + ": " + e.why
}

// check refuses what is not a public unicast address on a port for webhooks,
// unless its range is allowed.
func (g *guard) check(address string) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return &refusedError{address, "it is not an address and a port"}
	}
	if to.Addr().Zone() != "" {
		return &refusedError{address, "an address with a zone is of the local network"}
	}
	// A v4-mapped address reaches the v4 one: it is judged as that.
	ip := to.Addr().Unmap()
	for _, p := range g.denied {
		if p.Contains(ip) {
			return &refusedError{address, "the gateway's configuration denies its range (webhooks.deny_cidrs)"}
		}
	}
	for _, p := range g.allowed {
		if p.Contains(ip) {
			return nil
		}
	}
	if g.guardian.SafeAddr(ip) != nil || to.Addr().Is4In6() || isISATAP(ip) {
		return &refusedError{address, "the address is private, local or special; allow its range with allow_cidrs (or allow_loopback)"}
	}
	if to.Port() < firstFreePort && !slices.Contains(g.ports, to.Port()) {
		return &refusedError{address, "the port is a system service's; allow it with allow_ports"}
	}
	return nil
}

// isISATAP reports whether an IPv6 address stands for an IPv4 one of the local
// network (RFC 5214): its interface id is 0:5efe or 200:5efe and that address.
func isISATAP(ip netip.Addr) bool {
	b := ip.As16()
	return ip.Is6() && b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// dialer dials through the guard. With dial given (a test's network), the
// guard is asked about the address it is handed.
func (g *guard) dialer(timeout time.Duration, dial Dial) Dial {
	if dial != nil {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if err := g.check(address); err != nil {
				return nil, err
			}
			return dial(ctx, network, address)
		}
	}
	d := &net.Dialer{
		Timeout: timeout, Resolver: g.resolver,
		Control: func(network, address string, _ syscall.RawConn) error {
			if network != "tcp4" && network != "tcp6" {
				return &refusedError{network + " " + address, "it is not TCP"}
			}
			return g.check(address)
		},
	}
	return d.DialContext
}

// Dial opens a connection.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)
