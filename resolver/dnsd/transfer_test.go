// SPDX-License-Identifier: MIT

package dnsd

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// TestZoneIsWhatIsAnswered holds that a transferred zone says of every name and type what the server itself answers, and that
// the server answers for no others.
func TestZoneIsWhatIsAnswered(t *testing.T) {
	s := quiet(Config{})
	for _, z := range newIndex(sharedView).zones {
		sets := map[string][]string{}
		for rr := range records(sharedView, z, s.ttl()) {
			if rr.Header().Rrtype != dns.TypeCNAME {
				key := rr.Header().Name + " " + dns.TypeToString[rr.Header().Rrtype]
				sets[key] = append(sets[key], rr.String())
			}
		}
		for key, want := range sets {
			m := s.Answer(sharedView, query(key), localhost)
			var got []string
			for _, rr := range m.Answer {
				rr.Header().Name = strings.Fields(key)[0]
				got = append(got, rr.String())
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: answered\n%s\nin the zone\n%s", key, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		for _, c := range conformance {
			q := query(c.query)
			m := s.Answer(sharedView, q, localhost)
			name, _, _ := strings.Cut(c.query, " ")
			wild := strings.HasSuffix(name, "any.bkero.mesh.internal.")
			if zz := newIndex(sharedView).zoneOf(trim(name)); zz == nil || zz.name != z.name || len(m.Answer) == 0 || wild || m.Answer[0].Header().Rrtype == dns.TypeCNAME ||
				m.Answer[0].Header().Rrtype == dns.TypeHINFO || m.Answer[0].Header().Rrtype == dns.TypeSOA {
				continue
			}
			found := false
			for key := range sets {
				found = found || strings.EqualFold(strings.Join(labels(strings.Fields(key)[0]), "/")+" "+strings.Fields(key)[1], strings.Join(labels(name), "/")+" "+dns.TypeToString[q.Question[0].Qtype])
			}
			if !found {
				t.Errorf("%s is answered and not in the zone", c.query)
			}
		}
	}
}

// changing is a View that tests change.
type changing struct {
	mu      sync.Mutex
	view    *resolver.View
	changed chan struct{}
}

func (c *changing) View() *resolver.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) set(v *resolver.View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view = v
	if c.changed != nil {
		close(c.changed)
	}
	c.changed = make(chan struct{})
}

// hosts is a View of hosts of bkero's.
func hosts(rev int64, names ...string) *resolver.View {
	p := resolver.Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}, Revision: rev, Built: time.Unix(0, 0),
		Nodes: []resolver.Node{{Name: "bkero", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}}}}
	for i, n := range names {
		p.Hosts = append(p.Hosts, resolver.Static{Host: resolver.Host{Name: n, Owner: "bkero", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 1, byte(i + 1)})}}})
	}
	return resolver.Build(p)
}

// TestTransfer is a secondary: it is told of changes, and gets the zone and what has changed in it; nobody else does.
func TestTransfer(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("there is no second loopback address here: %v", err)
	}
	told := make(chan *dns.Msg, 64)
	secondary := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		told <- q
		w.WriteMsg(new(dns.Msg).SetReply(q))
	}), MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }}
	go secondary.ActivateAndServe()
	t.Cleanup(func() { secondary.Shutdown() })

	names := &changing{}
	names.set(hosts(1, "a", "b"))
	addr := free(t)
	run(t, Config{Addrs: []netip.AddrPort{addr}, View: names.View, Changed: names.Changed, Secondaries: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}})
	notified := func(zone string, serial uint32) {
		t.Helper()
		for deadline := time.After(10 * time.Second); ; {
			select {
			case m := <-told:
				if soa, ok := m.Answer[0].(*dns.SOA); m.Opcode == dns.OpcodeNotify && m.Authoritative && ok && m.Question[0].Name == zone && soa.Serial == serial {
					return
				}
			case <-deadline:
				t.Fatalf("nobody was told of %s %d", zone, serial)
			}
		}
	}
	transfer := func(from string, q *dns.Msg) (out []string) {
		t.Helper()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from + ":0")), Timeout: 5 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		tr := &dns.Transfer{Conn: &dns.Conn{Conn: c}}
		defer tr.Close()
		envelopes, err := tr.In(q, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		for e := range envelopes {
			if e.Error != nil {
				return append(out, e.Error.Error())
			}
			for _, rr := range e.RR {
				switch rr := rr.(type) {
				case *dns.SOA:
					out = append(out, "SOA "+time.Unix(int64(rr.Serial), 0).UTC().Format("5"))
				case *dns.A:
					out = append(out, rr.Hdr.Name+rr.A.String())
				case *dns.PTR:
					out = append(out, rr.Hdr.Name+rr.Ptr)
				}
			}
		}
		return out
	}
	same := func(what string, got []string, want ...string) {
		t.Helper()
		got = slices.DeleteFunc(got, func(s string) bool {
			return strings.Contains(s, "_dns-sd") || strings.Contains(s, "bkero.") || strings.HasPrefix(s, "dns.")
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	axfr, reverse := new(dns.Msg).SetAxfr("mesh.internal."), new(dns.Msg).SetAxfr("11.10.in-addr.arpa.")
	ixfr := func(serial uint32) *dns.Msg {
		return new(dns.Msg).SetIxfr("mesh.internal.", serial, "dns.mesh.internal.", "hostmaster.mesh.internal.")
	}
	notified("mesh.internal.", 1)
	same("the zone", transfer("127.0.0.2", axfr), "SOA 1", "a.mesh.internal.10.11.1.1", "b.mesh.internal.10.11.1.2", "SOA 1")
	same("the reverse zone", transfer("127.0.0.2", reverse), "SOA 1", "1.1.11.10.in-addr.arpa.a.mesh.internal.", "2.1.11.10.in-addr.arpa.b.mesh.internal.", "SOA 1")
	if got := transfer("127.0.0.1", axfr); len(got) != 1 || !strings.Contains(got[0], "5") { // REFUSED
		t.Errorf("somebody else: %q", got)
	}
	names.set(hosts(3, "a", "c"))
	notified("mesh.internal.", 3)
	notified("11.10.in-addr.arpa.", 3)
	same("a change", transfer("127.0.0.2", ixfr(1)), "SOA 3", "SOA 1", "b.mesh.internal.10.11.1.2", "SOA 3", "c.mesh.internal.10.11.1.2", "SOA 3")
	names.set(hosts(5, "a", "c", "d"))
	notified("mesh.internal.", 5)
	same("two", transfer("127.0.0.2", ixfr(1)), "SOA 5", "SOA 1", "b.mesh.internal.10.11.1.2", "SOA 3", "c.mesh.internal.10.11.1.2", "SOA 3", "SOA 5", "d.mesh.internal.10.11.1.3", "SOA 5")
	same("the last one", transfer("127.0.0.2", ixfr(3)), "SOA 5", "SOA 3", "SOA 5", "d.mesh.internal.10.11.1.3", "SOA 5")
	same("nothing new", transfer("127.0.0.2", ixfr(5)), "SOA 5")
	same("a version that is not known", transfer("127.0.0.2", ixfr(2)), "SOA 5", "a.mesh.internal.10.11.1.1", "c.mesh.internal.10.11.1.2", "d.mesh.internal.10.11.1.3", "SOA 5")
	if m := ask(t, addr, "udp", ixfr(1)); len(m.Answer) > 0 { // from 127.0.0.1
		t.Errorf("by UDP to somebody else: %v", m)
	}
}

// TestVersions holds what is kept of a zone's past.
func TestVersions(t *testing.T) {
	tr := newTransfers(Config{})
	var all []string
	h := func() *history { return tr.zones["mesh.internal"] }
	for i := range 150 {
		all = append(all, "h"+strings.Repeat("x", i%50)+string(rune('a'+i/50)))
		tr.update(hosts(int64(i+1), all...))
	}
	if n := len(h().deltas); n != maxVersions || h().deltas[n-1].to != 150 || h().deltas[0].from != 50 {
		t.Errorf("%d versions", n)
	}
	if changed := tr.update(hosts(151, all...)); len(changed) != 0 || h().serial != 150 || tr.current("mesh.internal", 151) != 150 {
		t.Errorf("a revision without a change: %v", changed)
	}
	if changed := tr.update(hosts(150, all[1:]...)); len(changed) != 2 || len(h().deltas) != 0 {
		t.Errorf("a change without a revision: %v, %d versions", changed, len(h().deltas))
	}
	if tr.update(hosts(3, all...)); len(h().deltas) != 0 || h().serial != 3 {
		t.Error("versions of a store that was set back")
	}
	for _, c := range []struct {
		a, b uint32
		want bool
	}{{1, 0, true}, {0, 1, false}, {1, 1, false}, {0, 0xffffffff, true}, {0xffffffff, 0, false}, {0x7fffffff, 0, true}} {
		if newer(c.a, c.b) != c.want {
			t.Errorf("RFC 1982: %d after %d is not %v", c.a, c.b, c.want)
		}
	}
}

// TestZoneFile has BIND read the zone as a file, with metadata that would be lines of their own.
func TestZoneFile(t *testing.T) {
	v := sharedView
	text := ZoneFile(v, 0)
	for _, want := range []string{"; the mesh at revision", "\nbkero.mesh.internal.\t10\tIN\tA\t10.11.0.2\n", "\nlp.mesh.internal.\t10\tIN\tCNAME\t", "\n*.bkero.mesh.internal.", "_http._tcp.mesh.internal.", "\tSRV\t", "\tTXT\t", "bkero.node.mesh.internal."} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	hostile := resolver.Build(resolver.Parts{Zone: "mesh.internal", Prefixes: v.Prefixes, Revision: 42, Nodes: []resolver.Node{{Name: "bkero", Key: "k", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.2")}}},
		Hosts: []resolver.Static{{Host: resolver.Host{Owner: "bkero", Name: "printer", Addrs: []netip.Addr{netip.MustParseAddr("10.11.0.77")}, Meta: map[string]string{"a": "x\"\n$INCLUDE /etc/passwd\nevil IN A 10.11.0.66", "b": "\\; ("}}}}})
	path := filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(path, []byte(ZoneFile(hostile, 0)), 0o644); err != nil {
		t.Fatal(err)
	}
	n := 0
	parser := dns.NewZoneParser(strings.NewReader(ZoneFile(hostile, 0)), "mesh.internal.", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		n++
		if strings.HasPrefix(rr.Header().Name, "evil") {
			t.Error(rr)
		}
	}
	if parser.Err() != nil || n < 8 {
		t.Errorf("%d records, %v", n, parser.Err())
	}
	check, err := exec.LookPath("named-checkzone")
	if err != nil {
		t.Skip(err, ": it was read by our own parser only")
	}
	for _, text := range []string{text, ZoneFile(hostile, 0)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), check, "-k", "ignore", "mesh.internal", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "OK") {
			t.Errorf("%v: %s", err, out)
		}
	}
}
