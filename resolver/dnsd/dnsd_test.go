// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

func view() *resolver.View {
	a := netip.MustParseAddr
	many := resolver.Static{Host: resolver.Host{Name: "many", Owner: "bkero"}}
	for i := range 60 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 11, 1, byte(1 + i)}))
	}
	return resolver.Build(resolver.Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}, Revision: 7,
		Nodes: []resolver.Node{{Name: "bkero", Addrs: []netip.Addr{a("10.11.0.2"), a("fd00:1::2")}}},
		Hosts: []resolver.Static{{Host: resolver.Host{Name: "printer", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.77")}}},
			{Host: resolver.Host{Name: "x.y.bkero", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.78")}}}, many}})
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name, from string
		qtype      uint16
		rcode      int
		answer     string // of the first record; empty: none, and the SOA in the authority section
	}{
		{"bkero.mesh.internal.", "10.11.0.9", dns.TypeA, dns.RcodeSuccess, "10.11.0.2"},
		{"bKeRo.MESH.internal.", "127.0.0.1", dns.TypeAAAA, dns.RcodeSuccess, "fd00:1::2"},
		{"printer.mesh.internal.", "::1", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"printer.mesh.internal.", "fd00:1::9", dns.TypeMX, dns.RcodeSuccess, ""},
		{"nobody.mesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeNameError, ""},
		{"x.y.bkero.mesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeSuccess, "10.11.0.78"},
		{"y.bkero.mesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeSuccess, ""},
		{"z.bkero.mesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeNameError, ""},
		{"mesh.internal.", "127.0.0.1", dns.TypeSOA, dns.RcodeSuccess, "dns.mesh.internal. hostmaster.mesh.internal. 7 "},
		{"mesh.internal.", "127.0.0.1", dns.TypeNS, dns.RcodeSuccess, "dns.mesh.internal."},
		{"mesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeSuccess, ""},
		{"bkero.mesh.internal.", "127.0.0.1", dns.TypeANY, dns.RcodeSuccess, "RFC8482"},
		{"2.0.11.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeSuccess, "bkero.mesh.internal."},
		{"2.0.11.10.in-addr.arpa.", "127.0.0.1", dns.TypeA, dns.RcodeSuccess, ""},
		{"3.0.11.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeNameError, ""},
		{"0.11.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeSuccess, ""},
		{"9.11.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeNameError, ""},
		{"1.2.0.11.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeNameError, ""},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeSuccess, "bkero.mesh.internal."},
		{"google.com.", "127.0.0.1", dns.TypeA, dns.RcodeRefused, ""},
		{"2.0.12.10.in-addr.arpa.", "127.0.0.1", dns.TypePTR, dns.RcodeRefused, ""},
		{"bkero.mesh.internal.", "192.0.2.1", dns.TypeA, dns.RcodeRefused, ""},
		{"notmesh.internal.", "127.0.0.1", dns.TypeA, dns.RcodeRefused, ""},
	} {
		q := new(dns.Msg).SetQuestion(c.name, c.qtype)
		m := Answer(view(), q, netip.MustParseAddr(c.from))
		what := fmt.Sprintf("%s %s from %s", c.name, dns.TypeToString[c.qtype], c.from)
		if m.Rcode != c.rcode {
			t.Errorf("%s: %s, want %s", what, dns.RcodeToString[m.Rcode], dns.RcodeToString[c.rcode])
			continue
		}
		switch {
		case c.rcode == dns.RcodeRefused:
			if len(m.Answer)+len(m.Ns) > 0 || m.Authoritative {
				t.Errorf("%s: a refusal with content: %v", what, m)
			}
		case c.answer == "":
			if len(m.Answer) > 0 || len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA || !m.Authoritative {
				t.Errorf("%s: %v", what, m)
			}
		case len(m.Answer) == 0 || !strings.Contains(m.Answer[0].String(), c.answer) || m.Answer[0].Header().Name != c.name || len(m.Ns) > 0:
			t.Errorf("%s: %v, want %s", what, m, c.answer)
		}
	}
}

func TestServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	s := New(Config{Addrs: []netip.AddrPort{addr}, View: view, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	ask := func(network, name string, edns uint16) *dns.Msg {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if edns > 0 {
			q.SetEdns0(edns, false)
		}
		c := dns.Client{Net: network, Timeout: 200 * time.Millisecond, UDPSize: 4096}
		for deadline := time.Now().Add(5 * time.Second); ; {
			m, _, err := c.Exchange(q, addr.String())
			if err == nil {
				return m
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	if m := ask("tcp", "many.mesh.internal.", 0); len(m.Answer) != 60 || m.Truncated {
		t.Errorf("TCP: %d answers", len(m.Answer))
	}
	if m := ask("udp", "many.mesh.internal.", 0); !m.Truncated || len(m.Answer) == 0 {
		t.Errorf("UDP without EDNS: %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
	if m := ask("udp", "many.mesh.internal.", 4096); m.IsEdns0() == nil || len(m.Answer) != 60 {
		t.Errorf("UDP with EDNS: %d answers", len(m.Answer))
	}
	if err := New(s.cfg).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another DNS server") {
		t.Errorf("a second server: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func FuzzAnswer(f *testing.F) {
	b, _ := new(dns.Msg).SetQuestion("bkero.mesh.internal.", dns.TypeA).Pack()
	f.Add(b)
	v := view()
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := Answer(v, q, netip.MustParseAddr("127.0.0.1"))
		m.Truncate(512)
		if _, err := m.Pack(); err != nil && len(q.Question) == 1 {
			t.Skip(err)
		}
	})
}
