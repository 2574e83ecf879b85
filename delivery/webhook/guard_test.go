package webhook

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// special are IANA's registries of special-purpose addresses (iana-ipv4-special-registry
// and iana-ipv6-special-registry, as of 2026), multicast, and what is outside of
// IPv6's global unicast. Left out are the few blocks that are globally reachable
// anycast services, which nobody attacks anything by.
var special = []string{
	"0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29",
	"192.0.0.8/32", "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
	"::1/128", "::/128", "::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/32", "2001:2::/48", "2001:10::/28",
	"2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "4000::/2", "8000::/1",
}

func TestEveryAddressOfTheSpecialRegistriesIsRefused(t *testing.T) {
	g, err := newGuard(Options{AllowHTTP: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range special {
		p := netip.MustParsePrefix(text)
		first, last := p.Masked().Addr(), lastOf(p)
		for _, ip := range []netip.Addr{first, first.Next(), last, last.Prev()} {
			if !ip.IsValid() || !p.Contains(ip) {
				continue
			}
			if g.check(netip.AddrPortFrom(ip, 443).String()) == nil {
				t.Errorf("%s of %s is let through", ip, p)
			}
		}
	}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestNoWayToWriteAnIPv4AddressInsideAnIPv6OneIsLetThrough(t *testing.T) {
	g, err := newGuard(Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v4 := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "8.8.8.8"} {
		b := netip.MustParseAddr(v4).As4()
		hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
		flipped := fmt.Sprintf("%02x%02x:%02x%02x", ^b[0], ^b[1], ^b[2], ^b[3])
		for way, ip := range map[string]string{
			"mapped": "::ffff:" + hex, "compatible": "::" + hex, "translated": "::ffff:0:" + hex, "NAT64": "64:ff9b::" + hex, "local NAT64": "64:ff9b:1::" + hex,
			"6to4": "2002:" + hex + "::1", "Teredo": "2001:0:4136:e378:8000:63bf:" + flipped, "ISATAP": "2a00:1450:4001:81b:0:5efe:" + hex, "ISATAP, global": "2a00:1450:4001:81b:200:5efe:" + hex,
			"link-local ISATAP": "fe80::5efe:" + hex,
		} {
			if g.check(net.JoinHostPort(ip, "443")) == nil {
				t.Errorf("%s as %s (%s) is let through", v4, way, ip)
			}
		}
	}
}

func TestPortsOfSystemServicesAreNotForWebhooks(t *testing.T) {
	for _, c := range []struct {
		options Options
		port    string
		allowed bool
	}{
		{Options{}, "443", true},
		{Options{}, "80", false},
		{Options{AllowHTTP: true}, "80", true},
		{Options{}, "8443", true},
		{Options{}, "22", false},
		{Options{}, "25", false},
		{Options{}, "0", false},
		{Options{}, "1023", false},
		{Options{AllowPorts: []int{587}}, "587", true},
		{Options{AllowPorts: []int{587}}, "25", false},
	} {
		g, err := newGuard(c.options, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.check("8.8.8.8:" + c.port); (err == nil) != c.allowed {
			t.Errorf("port %s with %+v: %v", c.port, c.options, err)
		}
	}
}

func TestWhatTheGatewayDeniesNoEndpointCanAllow(t *testing.T) {
	g, err := newGuard(Options{AllowCIDRs: []string{"0.0.0.0/0", "::/0"}, AllowLoopback: true}, Settings{DenyCIDRs: []string{"169.254.0.0/16", "203.0.113.0/24"}}.Deny())
	if err != nil {
		t.Fatal(err)
	}
	for ip, allowed := range map[string]bool{"169.254.169.254": false, "::ffff:169.254.169.254": false, "203.0.113.9": false, "10.0.0.1": true, "8.8.8.8": true} {
		if err := g.check(net.JoinHostPort(ip, "443")); (err == nil) != allowed {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

// nameServer answers every question with the address of the moment.
func nameServer(t *testing.T, address func() [4]byte) *net.Resolver {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if m.Questions[0].Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
					Body:   &dnsmessage.AResource{A: address()},
				}}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = l.WriteTo(b, from) // the asker asks again
			}
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", l.LocalAddr().String())
	}}
}

func TestNameThatChangesItsMindIsCaughtAtTheDial(t *testing.T) {
	// 127.0.0.2 stands for a public address, and 127.0.0.1 for what must not be reached.
	open, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("this machine has no 127.0.0.2: ", err)
	}
	_, port, _ := net.SplitHostPort(open.Addr().String())
	inner, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Skip("the port is taken: ", err)
	}
	var reached atomic.Int32
	public := &httptest.Server{Listener: open, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}}
	secret := &httptest.Server{Listener: inner, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) })}}
	public.Start()
	secret.Start()
	defer public.Close()
	defer secret.Close()

	var turned atomic.Bool
	o := Options{URL: "http://rebinding.example.com:" + port + "/", AllowHTTP: true, AllowCIDRs: []string{"127.0.0.2/32"}}.WithDefaults()
	c := carrierTo(t, o.URL, func(with *Options) { with.AllowLoopback, with.AllowCIDRs = false, o.AllowCIDRs })
	g, err := newGuard(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.resolver = nameServer(t, func() [4]byte {
		if turned.Load() {
			return [4]byte{127, 0, 0, 1}
		}
		return [4]byte{127, 0, 0, 2}
	})
	c.transport.Load().DialContext = g.dialer(time.Second, nil)
	if a := c.Carry(t.Context(), parcel()); a.Class != "ok" || a.Timings.DNS == 0 {
		t.Fatalf("%+v", a)
	}
	turned.Store(true)
	c.transport.Load().CloseIdleConnections()
	if a := c.Carry(t.Context(), parcel()); a.Class != "guard" || reached.Load() != 0 {
		t.Errorf("%+v; it was reached %d times", a, reached.Load())
	}
}

func FuzzGuard(f *testing.F) {
	for _, s := range append(special, forbidden...) {
		f.Add(s + ":443")
	}
	g, err := newGuard(Options{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, address string) {
		if g.check(address) != nil {
			return
		}
		// What is let through is global unicast by everyone's reading.
		ip := netip.MustParseAddrPort(address).Addr()
		if ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip.Is4In6() || ip.Zone() != "" || !ip.IsGlobalUnicast() {
			t.Errorf("%s is let through", address)
		}
	})
}
