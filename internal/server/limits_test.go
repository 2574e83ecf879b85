package server

import (
	"net"
	"testing"

	"github.com/postern-dev/postern/authz"
)

// A host has a whole /64 of IPv6 addresses: it is one caller all the same.
func TestAnonymousCallersCountByHost(t *testing.T) {
	name := func(source, address string) string {
		return nameOf(authz.Anonymous(source), &net.TCPAddr{IP: net.ParseIP(address), Port: 1234})
	}
	for _, same := range [][2]string{{"2001:db8::1", "2001:db8::ffff:1"}, {"192.0.2.1", "::ffff:192.0.2.1"}} {
		if name("open", same[0]) != name("open", same[1]) {
			t.Errorf("%s and %s are two callers", same[0], same[1])
		}
	}
	for _, two := range [][2]string{{"2001:db8::1", "2001:db8:0:1::1"}, {"192.0.2.1", "192.0.2.2"}} {
		if name("open", two[0]) == name("open", two[1]) {
			t.Errorf("%s and %s are one caller", two[0], two[1])
		}
	}
	if name("loopback", "127.0.0.1") != name("loopback", "127.0.0.2") {
		t.Error("callers of this host are several")
	}
}
