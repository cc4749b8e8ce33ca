// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/export"
	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/dnsd"
	"mesh.internal/mesh/resolver/project"
)

// TestAllDoorsAgree has a mesh churn, and asks every door for every name and every address that any of them knows: the file of
// NSS, the DNS server over its socket, hosts text, the zone file, and both projections into etcd. That a zone transfer says
// what the DNS server answers is tested in resolver/dnsd.
func TestAllDoorsAgree(t *testing.T) {
	const zone, server = "mesh.internal", "127.0.0.1:0"
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &churn{rand: rand.New(rand.NewPCG(seed, 1)), prefixes: prefixes, zone: zone}
	var now atomic.Pointer[resolver.View]
	now.Store(c.view())

	l, err := net.ListenPacket("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	at := l.LocalAddr().(*net.UDPAddr).AddrPort()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := dnsd.New(dnsd.Config{Addrs: []netip.AddrPort{at}, View: now.Load, Log: slog.New(slog.DiscardHandler)}).Run(ctx); err != nil {
			t.Error(err)
		}
	})
	dns := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at.String())
	}}
	for { // until it listens
		if d := new(net.DNSError); !errors.As(second(dns.LookupNetIP(ctx, "ip", zone+".")), &d) || d.IsNotFound {
			break
		}
	}
	path := filepath.Join(t.TempDir(), "hosts.db")
	checked := 0
	for round := range 40 {
		v := c.view()
		now.Store(v)
		doors := map[string]map[string]string{"hosts text": hostsText(t, v), "zone file": zoneFile(t, v), "etcd, as CoreDNS reads it": skyDNS(t, v, prefixes)}
		names := map[string]bool{"nobody." + zone: true, "service." + zone: true, "node." + zone: true, "nobody.node." + zone: true, "printer.node." + zone: true, "x.bkero.node." + zone: true, "bkero.node." + zone: true, "com.node." + zone: true}
		for _, d := range doors {
			for n := range d {
				names[n] = true
			}
		}
		set := new(Sets).Of(v, nil)
		if err := nss.WriteFile(path, set); err != nil {
			t.Fatal(err)
		}
		for _, h := range set.Hosts {
			for _, n := range append([]string{h.Name}, h.Aliases...) {
				if strings.HasSuffix(n, "."+zone) {
					names[n] = true
				}
			}
		}
		for _, n := range slices.Sorted(maps.Keys(names)) {
			checked++
			want := ""
			if h, _ := v.Lookup(n); h != nil {
				want = list(h.Addrs)
			}
			h, ok, err := nss.LookupName(path, n)
			if err != nil {
				t.Fatal(err)
			}
			says := map[string]string{"NSS": list(h.Addrs)}
			if !ok {
				says["NSS"] = ""
			}
			addrs, err := dns.LookupNetIP(ctx, "ip", n+".")
			if d := new(net.DNSError); err != nil && (!errors.As(err, &d) || !d.IsNotFound) {
				t.Fatalf("round %d: %s over DNS: %v", round, n, err)
			}
			says["DNS"] = list(addrs)
			for door, d := range doors {
				says[door] = d[n]
			}
			for door, got := range says {
				if got != want {
					t.Errorf("round %d: %s says of %s %q, and the View %q", round, door, n, got, want)
				}
			}
		}
		// Back: every address that any name has.
		keys := map[string]string{}
		for _, l := range (project.SkyDNS{Path: "/skydns", TTL: 60}).Layouts(zone, prefixes) {
			for k, value := range l.Encode(v) {
				keys[l.Prefix+k] = value
			}
		}
		for a := range c.addrs {
			checked++
			want := ""
			if h, ok := v.Reverse(a); ok {
				want = v.FQDN(h)
			}
			h, ok, err := nss.LookupAddr(path, a)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.Name; !ok && want != "" || ok && got != want {
				t.Errorf("round %d: NSS says of %s %q, and the View %q", round, a, got, want)
			}
			back, _ := dns.LookupAddr(ctx, a.String())
			if got := strings.TrimSuffix(strings.Join(back, " "), "."); got != want {
				t.Errorf("round %d: DNS says of %s %q, and the View %q", round, a, got, want)
			}
			var r struct{ Host string }
			json.Unmarshal([]byte(keys[arpaKey(a)]), &r)
			if got := strings.TrimSuffix(r.Host, "."); got != want {
				t.Errorf("round %d: etcd says of %s %q, and the View %q", round, a, got, want)
			}
		}
	}
	if checked < 500 {
		t.Errorf("only %d names and addresses were looked at", checked)
	}
	t.Logf("%d names and addresses, through every door", checked)
}

func second[T any](_ T, err error) error { return err }

// churn makes Views as they may follow each other.
type churn struct {
	rand     *rand.Rand
	prefixes []netip.Prefix
	zone     string
	revision int64
	addrs    map[netip.Addr]bool // of the last View
}

func (c *churn) some(of ...string) string { return of[c.rand.IntN(len(of))] }

func (c *churn) addr() netip.Addr {
	if c.rand.IntN(3) > 0 {
		return netip.AddrFrom4([4]byte{10, 11, 0, byte(1 + c.rand.IntN(40))})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: byte(1 + c.rand.IntN(40))})
}

// view is of some of five nodes, with hosts, aliases and services that they fight about.
func (c *churn) view() *resolver.View {
	c.revision++
	p := resolver.Parts{Zone: c.zone, Prefixes: c.prefixes, Revision: c.revision, LastResort: c.rand.IntN(2) == 0, Built: time.Now()}
	nodes := []string{"bkero", "spencer", "nibz", "com", "http"}
	for i, n := range nodes {
		if c.rand.IntN(4) > 0 {
			p.Nodes = append(p.Nodes, resolver.Node{Name: n, Key: n, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(1 + i)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: byte(1 + i)})}})
		}
	}
	for range c.rand.IntN(12) {
		owner := c.some(nodes...)
		h := resolver.Host{Owner: owner, Name: c.some("printer", "ssh", "nas."+owner, "x.y."+owner, "y."+owner, "smtp"), Addrs: []netip.Addr{c.addr()}}
		for range c.rand.IntN(3) {
			h.Addrs = append(h.Addrs, c.addr())
			h.Aliases = append(h.Aliases, c.some("laser", "ink", "files."+owner, "http", "printer"))
		}
		p.Hosts = append(p.Hosts, resolver.Static{Host: h, Standing: resolver.Standing{Created: c.rand.Int64N(100), Claimed: c.rand.IntN(4) == 0}})
	}
	for i := range c.rand.IntN(12) {
		owner, typ := c.some(nodes...), c.some("http", "ssh", "smtp", "ipp", "dns")
		s := resolver.Service{Name: fmt.Sprint(typ, i), Type: typ, Proto: c.some("tcp", "udp"), Port: 80, Owner: owner, Host: c.some(owner, "nas."+owner),
			Health: resolver.Health{State: resolver.State(c.some("passing", "warning", "critical", "unknown", "offline"))}}
		if c.rand.IntN(2) == 0 {
			s.Tags = []string{c.some("blue", "green")}
		}
		p.Services = append(p.Services, resolver.StaticService{Service: s, Holder: c.some("", "", owner, "nibz")})
	}
	v := resolver.Build(p)
	c.addrs = map[netip.Addr]bool{netip.MustParseAddr("10.11.0.200"): true}
	for h := range v.All() {
		for _, a := range h.Addrs {
			c.addrs[a] = true
		}
	}
	return v
}

// list is a set of addresses as text.
func list(addrs []netip.Addr) string {
	addrs = slices.Clone(addrs)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(slices.Compact(addrs)), "[]")
}

// gather adds an address to a name's.
func gather(all map[string][]netip.Addr, name, addr string) {
	all[name] = append(all[name], netip.MustParseAddr(addr))
}

func lists(all map[string][]netip.Addr) map[string]string {
	out := map[string]string{}
	for n, addrs := range all {
		out[n] = list(addrs)
	}
	return out
}

// exported is what a View is as the API says it.
func exported(t *testing.T, v *resolver.View, format string) string {
	t.Helper()
	m := export.Mesh{Hosts: api.Hosts{Revision: v.Revision, Domain: v.Zone, Prefixes: v.Prefixes}}
	for _, h := range v.Hosts() {
		m.Hosts.Hosts = append(m.Hosts.Hosts, hostOf(v, h))
	}
	for _, h := range v.ServiceHosts() {
		m.Services = append(m.Services, hostOf(v, h))
	}
	var b strings.Builder
	if err := export.Write(&b, format, m, export.Options{}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func hostsText(t *testing.T, v *resolver.View) map[string]string {
	all := map[string][]netip.Addr{}
	for line := range strings.Lines(exported(t, v, "hosts")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "#" {
			for _, n := range f[1:] {
				if strings.HasSuffix(n, "."+v.Zone) {
					gather(all, n, f[0])
				}
			}
		}
	}
	return lists(all)
}

func zoneFile(t *testing.T, v *resolver.View) map[string]string {
	all := map[string][]netip.Addr{}
	aliases := map[string]string{}
	for line := range strings.Lines(dnsd.ZoneFile(v, 0)) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] == "dns."+v.Zone+"." || strings.HasPrefix(f[0], "_") || strings.Contains(f[0], "._") {
			continue
		}
		switch name, data := strings.TrimSuffix(f[0], "."), strings.TrimSuffix(f[4], "."); f[3] {
		case "A", "AAAA":
			gather(all, name, data)
		case "CNAME":
			aliases[name] = data
		}
	}
	for name, target := range aliases {
		all[name] = all[target]
	}
	return lists(all)
}

// skyDNS is what CoreDNS finds: of everything below a name's key, those of the group with the shortest keys.
func skyDNS(t *testing.T, v *resolver.View, prefixes []netip.Prefix) map[string]string {
	all := map[string][]netip.Addr{}
	for _, l := range (project.SkyDNS{Path: "/skydns", TTL: 60}).Layouts(v.Zone, prefixes)[:1] {
		for k, value := range l.Encode(v) {
			var r struct{ Host, Text string }
			if err := json.Unmarshal([]byte(value), &r); err != nil {
				t.Fatal(err)
			}
			if _, err := netip.ParseAddr(r.Host); err != nil || strings.HasPrefix(k, "dns/") {
				continue // SRV, and the zone itself
			}
			labels := strings.Split(k, "/")
			labels = labels[:len(labels)-1]
			slices.Reverse(labels)
			gather(all, strings.Join(labels, ".")+"."+v.Zone, r.Host)
		}
	}
	return lists(all)
}

// arpaKey is an address's key in the layout of SkyDNS.
func arpaKey(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("/skydns/arpa/in-addr/%d/%d/%d/%d", b[0], b[1], b[2], b[3])
	}
	out := "/skydns/arpa/ip6"
	for _, b := range a.As16() {
		out += fmt.Sprintf("/%x/%x", b>>4, b&15)
	}
	return out
}
