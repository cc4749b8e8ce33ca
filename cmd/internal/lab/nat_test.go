// SPDX-License-Identifier: MIT

package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestNAT holds every kind of NAT against what RFC 4787 calls it: mapping (section 4.1), filtering (5), hairpinning (6).
func TestNAT(t *testing.T) {
	Require(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("skipped: %v", err)
	}
	l := New(testLog(t))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	prefix := netip.MustParsePrefix
	internet, err := l.Router("internet")
	must(err)
	far, err := internet.Subnet(prefix("198.18.1.0/24"))
	must(err)
	near, err := internet.Subnet(prefix("198.18.2.0/24"))
	must(err)
	home, err := l.Router("home")
	must(err)
	uplink, err := near.Plug(home)
	must(err)
	lan, err := home.Subnet(prefix("192.168.1.0/24"))
	must(err)
	plug := func(name string, s *Subnet) (*Host, *Link) {
		h, err := l.Host(name)
		must(err)
		link, err := s.Plug(h)
		must(err)
		return h, link
	}
	inside, _ := plug("inside", lan)
	inside2, _ := plug("inside2", lan)
	one, oneLink := plug("one", far)
	two, twoLink := plug("two", far)

	listen := func(h *Host, port int) (c *net.UDPConn) {
		must(h.Do(func() (err error) {
			c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
			return err
		}))
		t.Cleanup(func() { c.Close() })
		return c
	}
	send := func(c *net.UDPConn, to netip.AddrPort) {
		t.Helper()
		_, err := c.WriteToUDPAddrPort([]byte("x"), to)
		must(err)
	}
	from := func(c *net.UDPConn) (a netip.AddrPort) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, a, err := c.ReadFromUDPAddrPort(make([]byte, 8))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	port := 5000
	for _, c := range []struct {
		NAT
		same, fromPort, fromAddr bool // one mapping for two destinations; lets in from another port, another address
	}{
		{NAT{Kind: FullCone}, true, true, true},
		{NAT{Kind: FullCone, Hairpin: true}, true, true, true},
		{NAT{Kind: AddressRestricted}, true, true, false},
		{NAT{Kind: PortRestricted}, true, false, false},
		{NAT{Kind: PortRestricted, Hairpin: true}, true, false, false},
		{NAT{Kind: Symmetric}, false, false, false},
		{NAT{Kind: Blocked}, false, false, false},
	} {
		port += 10
		must(uplink.NAT(c.NAT))
		in, in2 := listen(inside, port), listen(inside2, port+1)
		one1, one2, two1 := listen(one, port), listen(one, port+1), listen(two, port)
		at := func(l *Link, c *net.UDPConn) netip.AddrPort {
			return netip.AddrPortFrom(l.Addr4, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		}
		send(in, at(oneLink, one1))
		mapped := from(one1)
		if through := mapped.Addr() == uplink.Addr4; through == (c.Kind == Blocked) {
			t.Errorf("%+v: mapped to %s", c.NAT, mapped)
		}
		if c.Kind == Blocked {
			continue
		}
		let := func(c *net.UDPConn) bool {
			send(c, mapped)
			return from(in).Port() != 0
		}
		if !let(one1) {
			t.Errorf("%+v: no answer came back", c.NAT)
		}
		if got := let(one2); got != c.fromPort {
			t.Errorf("%+v: from another port: %v", c.NAT, got)
		}
		if got := let(two1); got != c.fromAddr {
			t.Errorf("%+v: from another address: %v", c.NAT, got)
		}
		send(in, at(twoLink, two1))
		if got := from(two1) == mapped; got != c.same {
			t.Errorf("%+v: the same mapping for another destination: %v", c.NAT, got)
		}
		if got := let(two1); got == (c.Kind == Symmetric) {
			t.Errorf("%+v: from the address, now that it was sent to: %v", c.NAT, got)
		}
		send(in2, mapped) // from inside to the outside address
		if got := from(in); got.Port() != 0 != c.Hairpin || c.Hairpin && got.Addr() != uplink.Addr4 {
			t.Errorf("%+v: hairpin: from %s", c.NAT, got)
		}
		if c.Kind == Symmetric {
			continue
		}
		must(uplink.Rebind())
		send(in, at(oneLink, one1))
		again := from(one1)
		send(in, at(twoLink, two1))
		if other := from(two1); again == mapped || again.Port() == 0 || other != again {
			t.Errorf("%+v: mapped to %s, after it was restarted to %s and %s", c.NAT, mapped, again, other)
		}
		mapped = again
		if !let(one1) {
			t.Errorf("%+v: no answer came back after a restart", c.NAT)
		}
	}

	must(internet.Lose(uplink.Addr4, oneLink.Addr4))
	must(uplink.NAT(NAT{Kind: PortRestricted}))
	in, one1, two1 := listen(inside, 6000), listen(one, 6000), listen(two, 6000)
	lost := func(c *net.UDPConn, l *Link) bool {
		send(in, netip.AddrPortFrom(l.Addr4, 6000))
		return from(c).Port() == 0
	}
	if !lost(one1, oneLink) || lost(two1, twoLink) {
		t.Error("Lose loses something else")
	}
	must(internet.Pass(uplink.Addr4, oneLink.Addr4))
	if lost(one1, oneLink) {
		t.Error("Pass does not end what Lose did")
	}
}
