// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// free is an address of this machine that nobody listens at.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// run runs a server until the test ends, and returns when it answers.
func run(t *testing.T, cfg Config) (s *Server, stop func()) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	ask(t, cfg.Addrs[0], "udp", new(dns.Msg).SetQuestion("mesh.internal.", dns.TypeSOA))
	return s, stop
}

// ask asks until there is an answer.
func ask(t *testing.T, addr netip.AddrPort, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 500 * time.Millisecond, UDPSize: 4096}
	for deadline := time.Now().Add(10 * time.Second); ; {
		m, _, err := c.Exchange(q, addr.String())
		if err == nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestServer(t *testing.T) {
	addr := free(t)
	s, stop := run(t, Config{Addrs: []netip.AddrPort{addr}, View: func() *resolver.View { return sharedView }})
	many := func(network string, edns uint16) *dns.Msg {
		q := query("many.mesh.internal. A")
		if edns > 0 {
			q.SetEdns0(edns, false)
		}
		return ask(t, addr, network, q)
	}
	if m := many("tcp", 0); len(m.Answer) != 60 || m.Truncated {
		t.Errorf("TCP: %d answers", len(m.Answer))
	}
	if m := many("udp", 0); !m.Truncated || len(m.Answer) == 0 {
		t.Errorf("UDP without EDNS: %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
	if m := many("udp", 4096); m.IsEdns0() == nil || len(m.Answer) != 60 || m.IsEdns0().UDPSize() != 1232 {
		t.Errorf("UDP with EDNS: %d answers", len(m.Answer))
	}
	// An answer has the ID, the flags and the case of who asks.
	for _, name := range []string{"lp.mesh.internal.", "LP.mesh.INTERNAL.", "lP.MESH.internal."} {
		for _, rd := range []bool{true, false} {
			q := query(name + " A")
			q.RecursionDesired, q.CheckingDisabled = rd, !rd
			m := ask(t, addr, "udp", q)
			if m.Id != q.Id || m.RecursionDesired != rd || m.CheckingDisabled == rd || m.Question[0].Name != name || len(m.Answer) != 2 || m.Answer[0].Header().Name != name ||
				!strings.EqualFold(m.Answer[1].Header().Name, "printer.mesh.internal.") || m.RecursionAvailable {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
	if err := New(s.cfg).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another DNS server") {
		t.Errorf("a second server: %v", err)
	}
	other := free(t)
	var missing []netip.AddrPort
	_, stopOther := run(t, Config{Addrs: []netip.AddrPort{other, addr}, View: s.cfg.View, Problem: func(a netip.AddrPort, err error) { missing = append(missing, a) }})
	stopOther()
	if !slices.Equal(missing, []netip.AddrPort{addr}) {
		t.Errorf("one of two addresses taken: %v", missing)
	}
	stop()
}

var sharedView = view()

// TestDirect holds that a direct answer is the answer.
func TestDirect(t *testing.T) {
	from := netip.MustParseAddrPort("127.0.0.1:5353")
	direct := 0
	for _, v := range []*resolver.View{sharedView, hosts(9, "a", "b.bkero")} {
		for _, s := range []*Server{quiet(Config{}), quiet(Config{TTL: 2 * time.Second}), quiet(Config{Forward: []Forward{{Zone: "example"}}})} {
			queries := []string{"A.mesh.internal. A", "b.bkero.mesh.internal. AAAA", "c.mesh.internal. A", "a-b.c.MESH.internal. AAAA", "dns.mesh.internal. A", "x.dns.mesh.internal. A", "node.mesh.internal. A", "mesh.internal.mesh.internal. A"}
			for _, c := range conformance {
				queries = append(queries, c.query)
			}
			for i, c := range queries {
				q := query(c)
				q.RecursionDesired, q.CheckingDisabled = i%2 == 0, i%3 == 0
				if i%4 > 0 {
					q.SetEdns0(uint16(300*(i%4)), i%2 == 0)
				}
				b, _ := q.Pack()
				got := s.direct(v, b, nil)
				if got == nil {
					continue
				}
				direct++
				x, y := new(dns.Msg), new(dns.Msg)
				if err := x.Unpack(got); err != nil {
					t.Errorf("%s: %v", c, err)
				}
				y.Unpack(s.answerUDP(t.Context(), nil, nil, v, b, from, localhost))
				if !strings.EqualFold(x.String(), y.String()) {
					t.Errorf("%s: directly\n%v\nwhere it is\n%v", c, x, y)
				}
			}
		}
	}
	if direct < 90 {
		t.Errorf("only %d", direct)
	}
}

// TestWhoMayAsk holds that it is no open resolver.
func TestWhoMayAsk(t *testing.T) {
	s := quiet(Config{Allow: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}, Secondaries: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}})
	for from, want := range map[string]int{"127.0.0.1": 0, "::1": 0, "127.8.8.8": 0, "10.11.0.9": 0, "fd00:1::9": 0, "172.17.0.2": 0, "192.0.2.53": 0,
		"192.0.2.1": dns.RcodeRefused, "10.12.0.1": dns.RcodeRefused, "fd00:2::1": dns.RcodeRefused, "172.18.0.1": dns.RcodeRefused} {
		m := s.Answer(sharedView, query("bkero.mesh.internal. A"), netip.MustParseAddr(from))
		if m.Rcode != want || want != 0 && len(m.Answer)+len(m.Ns)+len(m.Extra) > 0 {
			t.Errorf("%s: %v", from, m)
		}
	}
}

func TestSingleLabels(t *testing.T) {
	s := quiet(Config{SingleLabels: true})
	for q, want := range map[string]string{
		"bkero. A":   "NOERROR aa | A 10.11.0.2 | - | -",
		"lp. A":      "NOERROR aa | CNAME printer.mesh.internal., A 10.11.0.77 | - | -",
		"nibz. AAAA": "NOERROR aa | - | " + soaData + " | -", // with AA: programs take it for lame otherwise
		"ntp. A":     "NOERROR aa | A 10.11.0.3 | - | -",
		"com. A":     "REFUSED | - | - | -",
		"y.bkero. A": "REFUSED | - | - | -",
		". NS":       "REFUSED | - | - | -",
	} {
		if m := s.Answer(sharedView, query(q), localhost); summary(m) != want {
			t.Errorf("%s: %s, want %s", q, summary(m), want)
		}
	}
}

func TestOddQueries(t *testing.T) {
	s := quiet(Config{})
	edns := query("bkero.mesh.internal. A")
	edns.SetEdns0(4096, true)
	edns.IsEdns0().SetVersion(1)
	notify := query("mesh.internal. SOA")
	notify.Opcode = dns.OpcodeNotify
	two := query("bkero.mesh.internal. A")
	two.Question = append(two.Question, two.Question[0])
	for _, c := range []struct {
		q    *dns.Msg
		want int
	}{{edns, dns.RcodeBadVers}, {notify, dns.RcodeNotImplemented}, {two, dns.RcodeFormatError}, {new(dns.Msg), dns.RcodeFormatError}} {
		if m := s.Answer(sharedView, c.q, localhost); m.Rcode != c.want || len(m.Answer) > 0 {
			t.Errorf("%v: %v", c.q, m)
		}
	}
	do := query("bkero.mesh.internal. A")
	do.SetEdns0(4096, true)
	if m := s.Answer(sharedView, do, localhost); m.IsEdns0() == nil || !m.IsEdns0().Do() {
		t.Error("DO is not copied (RFC 3225 section 3)")
	}
}

// TestOrder holds that those who offer a service take turns, and that the nearest comes first where asked for.
func TestOrder(t *testing.T) {
	s := quiet(Config{})
	first := map[string]int{}
	for range 600 {
		m := s.Answer(sharedView, query("_http._tcp.mesh.internal. SRV"), localhost)
		first[m.Answer[0].(*dns.SRV).Target]++
	}
	for _, n := range first {
		if len(first) != 3 || n < 120 {
			t.Fatalf("first are %v", first)
		}
	}
	far := map[string]time.Duration{"bkero": 20 * time.Millisecond, "nibz": time.Millisecond, "spencer": -1}
	s = quiet(Config{Near: func(node string) time.Duration { return far[node] }})
	for range 20 {
		m := s.Answer(sharedView, query("_http._tcp.mesh.internal. SRV"), localhost)
		var order []string
		for _, rr := range m.Answer {
			order = append(order, rr.(*dns.SRV).Target)
		}
		if want := []string{"nibz.mesh.internal.", "bkero.mesh.internal.", "spencer.mesh.internal."}; !slices.Equal(order, want) {
			t.Fatalf("SRV: %v", order)
		}
		m = s.Answer(sharedView, query("http.service.mesh.internal. A"), localhost)
		if a := m.Answer[0].(*dns.A).A.String(); a != "10.11.0.3" || m.Answer[0].Header().Ttl != 3 {
			t.Fatalf("A: %v", m.Answer)
		}
	}
}

// TestLimit holds that a source gets so many answers a second, half of the others truncated, and this machine all.
func TestLimit(t *testing.T) {
	l := newLimiter(10)
	now := time.Unix(1000, 0)
	count := func(n int, from string, member bool, at time.Time) (out [3]int) {
		for range n {
			out[l.allow(netip.MustParseAddr(from), member, at)]++
		}
		return out
	}
	for i, c := range []struct {
		from   string
		member bool
		after  time.Duration
		want   [3]int
	}{
		{"192.0.2.1", false, 0, [3]int{10, 5, 5}},
		{"192.0.2.200", false, 0, [3]int{0, 10, 10}}, // of the same network
		{"192.0.2.1", false, time.Second, [3]int{10, 5, 5}},
		{"192.0.2.1", false, 1500 * time.Millisecond, [3]int{5, 8, 7}},
		{"127.0.0.1", false, 1500 * time.Millisecond, [3]int{20, 0, 0}},
		{"10.11.0.1", true, 1500 * time.Millisecond, [3]int{10, 5, 5}},
		{"10.11.0.2", true, 1500 * time.Millisecond, [3]int{10, 5, 5}}, // a member for itself
		{"2001:db8::1", false, 1500 * time.Millisecond, [3]int{10, 5, 5}},
		{"2001:db8::ff:0:0:1", false, 1500 * time.Millisecond, [3]int{0, 10, 10}},
	} {
		if got := count(20, c.from, c.member, now.Add(c.after)); got != c.want && !(i == 3 && got[0] == 5) {
			t.Errorf("%d: %s: %v, want %v", i, c.from, got, c.want)
		}
	}
	b, _ := query("bkero.mesh.internal. A").Pack()
	m := new(dns.Msg)
	if err := m.Unpack(truncated(b)); err != nil || !m.Truncated || !m.Response || len(m.Question) != 1 || len(truncated(b)) > len(b) {
		t.Errorf("slip: %v %v", m, err)
	}
}

// FuzzAnswer takes any packet: nothing panics, an answer is not longer than the client wants it, and nobody gets one about names of
// others. What is answered directly is what is answered.
func FuzzAnswer(f *testing.F) {
	for _, c := range conformance {
		q := query(c.query)
		b, _ := q.Pack()
		f.Add(b, true)
		q.SetEdns0(1400, true)
		b, _ = q.Pack()
		f.Add(b, false)
	}
	s := quiet(Config{Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, b []byte, local bool) {
		if len(b) < headerSize || len(b) > 4096 {
			return
		}
		from := netip.MustParseAddrPort("192.0.2.1:53")
		if local {
			from = netip.MustParseAddrPort("127.0.0.1:53")
		}
		truncated(b)
		out := s.answerUDP(t.Context(), nil, nil, sharedView, b, from, from.Addr())
		m, q := new(dns.Msg), new(dns.Msg)
		if err := m.Unpack(out); err != nil || !m.Response || m.Id != uint16(b[0])<<8|uint16(b[1]) {
			t.Fatalf("%v: %v", err, m)
		}
		size := dns.MinMsgSize
		if q.Unpack(b) == nil {
			size = sizeOf(q)
		}
		if len(out) > size {
			t.Fatalf("%d bytes, at most %d", len(out), size)
		}
		if direct := s.direct(sharedView, b, nil); direct != nil && local {
			d := new(dns.Msg)
			if err := d.Unpack(direct); err != nil || len(direct) > size || !strings.EqualFold(d.String(), m.String()) && m.Rcode != dns.RcodeFormatError {
				t.Fatalf("%v: %v\ndirectly %v", err, m, d)
			}
		}
		if len(m.Answer)+len(m.Ns) == 0 {
			return
		}
		if name := strings.ToLower(m.Question[0].Name); !local || !strings.HasSuffix("."+name, ".mesh.internal.") && !strings.HasSuffix(name, ".arpa.") {
			t.Fatalf("an answer about %s: %v", name, m)
		}
	})
}
