// SPDX-License-Identifier: MIT

package dnsd

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// upstream is a DNS server of the world: what it is asked decides how it misbehaves.
func upstream(t *testing.T, handle func(w dns.ResponseWriter, q, m *dns.Msg)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		handle(w, q, m)
	})
	for _, s := range []*dns.Server{{Listener: l, Handler: h}, {PacketConn: pc, Handler: h}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

func address(name, addr string, ttl uint32) dns.RR {
	return addrRR(name, netip.MustParseAddr(addr), ttl)
}

func isUDP(w dns.ResponseWriter) bool { return w.RemoteAddr().Network() == "udp" }

// TestForward holds what a client gets from forwarded queries.
func TestForward(t *testing.T) {
	var asked atomic.Int64
	release := make(chan struct{})
	good := upstream(t, func(w dns.ResponseWriter, q, m *dns.Msg) {
		asked.Add(1)
		name := q.Question[0].Name
		switch kind, _, _ := strings.Cut(strings.ToLower(name), "."); kind {
		case "long":
			if isUDP(w) {
				m.Truncated = true
				break
			}
			for i := range 100 {
				m.Answer = append(m.Answer, address(name, fmt.Sprintf("192.0.2.%d", i), 60))
			}
		case "lowercase": // does not keep the case
			m.Question[0].Name = strings.ToLower(name)
			m.Answer = append(m.Answer, address(strings.ToLower(name), "192.0.2.1", 60))
		case "forged":
			if isUDP(w) {
				m.Question[0].Name = "other.example."
			}
			m.Answer = append(m.Answer, address(name, "192.0.2.66", 60))
			if !isUDP(w) {
				m.Answer[0] = address(name, "192.0.2.1", 60)
			}
		case "nobody":
			m.Rcode = dns.RcodeNameError
			m.Ns = append(m.Ns, soa(sharedView, "example", 60))
		case "broken":
			m.Rcode = dns.RcodeServerFailure
		case "slow":
			<-release
			fallthrough
		default:
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: "target.example."}, address("target.example.", "192.0.2.1", 60))
		}
		w.WriteMsg(m)
	})
	corp := upstream(t, func(w dns.ResponseWriter, q, m *dns.Msg) {
		m.Answer = append(m.Answer, address(q.Question[0].Name, "192.0.2.7", 60))
		w.WriteMsg(m)
	})
	refusing := upstream(t, func(w dns.ResponseWriter, q, m *dns.Msg) {
		m.Rcode = dns.RcodeRefused
		w.WriteMsg(m)
	})
	addr := free(t)
	run(t, Config{Addrs: []netip.AddrPort{addr}, View: func() *resolver.View { return sharedView },
		Forward: []Forward{{Servers: []netip.AddrPort{addr, free(t), refusing, good}}, {Zone: "corp.example", Servers: []netip.AddrPort{corp}}}})
	for _, c := range []struct {
		query, want string
		asks        int64 // of the good server
	}{
		{"www.example. A", "NOERROR | CNAME target.example., A 192.0.2.1 | - | -", 1},
		{"wWw.EXAMPLE. A", "NOERROR | CNAME target.example., A 192.0.2.1 | - | -", 0},
		{"www.corp.example. A", "NOERROR | A 192.0.2.7 | - | -", 0},
		{"nobody.example. A", "NXDOMAIN | - | SOA dns.mesh.internal. hostmaster.mesh.internal. 7 60 10 86400 5 | -", 1},
		{"nobody.example. A", "NXDOMAIN | - | SOA dns.mesh.internal. hostmaster.mesh.internal. 7 60 10 86400 5 | -", 0},
		{"lowercase.example. A", "NOERROR | A 192.0.2.1 | - | -", 2},
		{"forged.example. A", "NOERROR | A 192.0.2.1 | - | -", 2},
		{"bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.2 | - | -", 0},
		{"nobody.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -", 0},
		{"9.0.11.10.in-addr.arpa. PTR", "NXDOMAIN aa | - | " + soaData + " | -", 0},
	} {
		before := asked.Load()
		q := query(c.query)
		m := ask(t, addr, "udp", q)
		if got := summary(m); got != c.want || asked.Load()-before != c.asks || !m.RecursionAvailable {
			t.Errorf("%s: %s after %d questions, want %s after %d", c.query, got, asked.Load()-before, c.want, c.asks)
		}
		if len(m.Answer) > 0 && m.Answer[0].Header().Name != q.Question[0].Name {
			t.Errorf("%s: the case of %s is another", c.query, m.Answer[0].Header().Name)
		}
	}
	if m := ask(t, addr, "tcp", query("long.example. A")); len(m.Answer) != 100 {
		t.Errorf("by TCP: %d answers", len(m.Answer))
	}
	if m := ask(t, addr, "udp", query("long.example. A")); !m.Truncated || len(m.Answer) == 0 {
		t.Errorf("by UDP: %v", m)
	}
	if m := ask(t, addr, "udp", query("broken.example. A")); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a server that fails: %v", m)
	}
	q := query("www.example. A")
	q.RecursionDesired = false
	if m := ask(t, addr, "udp", q); m.Rcode != dns.RcodeRefused {
		t.Errorf("without RD: %v", m)
	}
	// Many who ask the same at a time are one question.
	before := asked.Load()
	answers := make(chan *dns.Msg)
	for range 20 {
		go func() {
			c := dns.Client{Net: "tcp", Timeout: 10 * time.Second}
			m, _, _ := c.Exchange(query("slow.example. A"), addr.String())
			answers <- m
		}()
	}
	close(release)
	for range 20 {
		if m := <-answers; m == nil || len(m.Answer) != 2 {
			t.Errorf("one of many: %v", m)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("%d questions for 20 clients", n)
	}
}

// TestLoop lets two servers forward to each other: both answer at once.
func TestLoop(t *testing.T) {
	a, b := free(t), free(t)
	view := func() *resolver.View { return sharedView }
	run(t, Config{Addrs: []netip.AddrPort{a}, View: view, Forward: []Forward{{Servers: []netip.AddrPort{b}}}})
	// As dnsmasq would, it sends on what it gets as it is.
	var passed atomic.Int64
	pc, err := net.ListenPacket("udp", b.String())
	if err != nil {
		t.Fatal(err)
	}
	other := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		passed.Add(1)
		q.Id++
		m, err := dns.Exchange(q, a.String())
		if err == nil {
			m.Id--
			w.WriteMsg(m)
		}
	})}
	go other.ActivateAndServe()
	t.Cleanup(func() { other.Shutdown() })
	begin := time.Now()
	m := ask(t, a, "udp", query("www.example. A"))
	if m.Rcode != dns.RcodeRefused || passed.Load() != 1 || time.Since(begin) > tryFor {
		t.Errorf("%v after %v, %d went round", m, time.Since(begin), passed.Load())
	}
}

// TestCache holds how long answers are remembered, and that memory is bounded.
func TestCache(t *testing.T) {
	rr := func(s string) dns.RR {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	soa := rr("example. 300 IN SOA a. b. 1 1 1 1 30")
	for _, c := range []struct {
		rcode      int
		answer, ns []dns.RR
		want       time.Duration
	}{
		{dns.RcodeSuccess, []dns.RR{rr("a.example. 50 IN A 192.0.2.1"), rr("a.example. 40 IN A 192.0.2.2")}, nil, 40 * time.Second},
		{dns.RcodeSuccess, []dns.RR{rr("a.example. 604800 IN A 192.0.2.1")}, nil, cacheTTL},
		{dns.RcodeSuccess, []dns.RR{rr("a.example. 0 IN A 192.0.2.1")}, nil, 0},
		{dns.RcodeSuccess, nil, []dns.RR{soa}, 30 * time.Second},
		{dns.RcodeNameError, nil, []dns.RR{soa}, 30 * time.Second},
		{dns.RcodeNameError, nil, nil, 0},
		{dns.RcodeServerFailure, nil, nil, cacheFailure},
	} {
		m := &dns.Msg{Answer: c.answer, Ns: c.ns}
		m.Rcode = c.rcode
		if got := holds(m); got != c.want {
			t.Errorf("%v: %v, want %v", m, got, c.want)
		}
	}
	f := newForwarder(Config{})
	m := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	m.Answer = []dns.RR{rr("a.example. 50 IN A 192.0.2.1")}
	f.keep(question{name: "a.example", qtype: dns.TypeA}, m)
	c := f.cached[question{name: "a.example", qtype: dns.TypeA}]
	if got := c.reply(query("A.example. A"), c.at.Add(20*time.Second)).Answer[0]; got.Header().Ttl != 30 || got.Header().Name != "A.example." {
		t.Errorf("after 20 s: %v", got)
	}
	m.Answer = nil
	for i := range 200 {
		m.Answer = append(m.Answer, rr(fmt.Sprintf("a.example. 50 IN A 192.0.2.%d", i)))
	}
	for i := range 5000 {
		if f.keep(question{name: fmt.Sprint(i)}, m); f.size > cacheBytes {
			t.Fatalf("%d bytes are remembered", f.size)
		}
	}
	if len(f.cached) < 100 {
		t.Errorf("%d answers are remembered", len(f.cached))
	}
}

func TestMixed(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		name := mixed(`www.example-\097.org.`)
		if !strings.EqualFold(name, `www.example-\097.org.`) || name == strings.ToLower(name) {
			t.Fatal(name)
		}
		seen[name] = true
	}
	if len(seen) < 90 {
		t.Errorf("%d of 100 differ", len(seen))
	}
	if mixed(".") != "." || mixed("1.") != "1." {
		t.Error("names without letters")
	}
	zones := newForwarder(Config{Forward: []Forward{{Zone: ""}, {Zone: "a.example"}, {Zone: "example"}}})
	var got []string
	for _, n := range []string{"x.a.example", "a.example", "b.example", "ba.example", "org", ""} {
		got = append(got, zones.zone(n).zone)
	}
	if !slices.Equal(got, []string{"a.example", "a.example", "example", "example", "", ""}) {
		t.Errorf("%q", got)
	}
}
