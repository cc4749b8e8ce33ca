// SPDX-License-Identifier: MIT

package dnsd

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// view is a mesh with something of everything.
func view() *resolver.View {
	a := netip.MustParseAddr
	many := resolver.Static{Host: resolver.Host{Name: "many", Owner: "bkero"}}
	for i := range 60 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 11, 1, byte(1 + i)}))
	}
	long := strings.Repeat("x", 300)
	service := func(owner, typ, name, proto string, port uint16, state resolver.State, tags ...string) resolver.StaticService {
		return resolver.StaticService{Service: resolver.Service{Name: name, Type: typ, Proto: proto, Port: port, Owner: owner, Host: owner, Tags: tags, Health: resolver.Health{State: state}}}
	}
	web := service("bkero", "http", "http", "tcp", 80, resolver.Passing, "v1")
	web.Meta, web.Priority, web.Weight, web.TTL = map[string]string{"path": `/a\b`, "note": long}, 5, 7, 3*time.Second
	return resolver.Build(resolver.Parts{Zone: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")},
		Nodes: []resolver.Node{{Name: "bkero", Addrs: []netip.Addr{a("10.11.0.2"), a("fd00:1::2")}}, {Name: "nibz", Addrs: []netip.Addr{a("10.11.0.3")}},
			{Name: "spencer", Addrs: []netip.Addr{a("10.11.0.1"), a("fd00:1::1")}}},
		Hosts: []resolver.Static{
			{Host: resolver.Host{Name: "printer", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.77")}, Aliases: []string{"lp", "www.bkero"}, Meta: map[string]string{"room": "attic", "long": long, "rfc1035-1": "v=spf1 -all"}}},
			{Host: resolver.Host{Name: "x.y.bkero", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.78")}}},
			{Host: resolver.Host{Name: "*.bkero", Owner: "bkero", Addrs: []netip.Addr{a("10.11.0.79")}}}, many},
		Services: []resolver.StaticService{web, service("nibz", "http", "http", "tcp", 8080, resolver.Warning, "v1", "canary"), service("spencer", "http", "http", "tcp", 81, resolver.Critical, "v2"),
			service("spencer", "http", "Größe @ 1. Stock", "tcp", 9000, resolver.Passing), service("nibz", "ntp", "ntp", "udp", 123, resolver.Passing), service("spencer", "ipp", "ipp", "tcp", 631, resolver.Critical, "color")},
		Revision: 7, Built: time.Unix(0, 0)})
}

func quiet(cfg Config) *Server {
	cfg.Log = slog.New(slog.DiscardHandler)
	return New(cfg)
}

const soaData = "SOA dns.mesh.internal. hostmaster.mesh.internal. 7 60 10 86400 5"

// conformance is what the RFCs say, one query a line. The expected answer is: the code, then sections as "answer | ns | extra",
// each the sorted data of its records with commas between; "-" is an empty one.
var conformance = []struct{ rfc, query, want string }{
	{"1035 3.2.1: an address", "bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.2 | - | -"},
	{"1035 2.3.3, 0x20: the case of the question is kept", "bKeRo.MESH.internal. AAAA", "NOERROR aa | AAAA fd00:1::2 | - | -"},
	{"3596 2.1: many addresses", "spencer.mesh.internal. AAAA", "NOERROR aa | AAAA fd00:1::1 | - | -"},
	{"2308 2.2: NODATA is not NXDOMAIN", "nibz.mesh.internal. AAAA", "NOERROR aa | - | " + soaData + " | -"},
	{"2308 2.2: of any type", "nibz.mesh.internal. MX", "NOERROR aa | - | " + soaData + " | -"},
	{"3597: an unknown type", "nibz.mesh.internal. TYPE65280", "NOERROR aa | - | " + soaData + " | -"},
	{"9460: programs ask for HTTPS first", "nibz.mesh.internal. HTTPS", "NOERROR aa | - | " + soaData + " | -"},
	{"2308 2.1: NXDOMAIN with the SOA", "nobody.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"2308 2.1: whatever is asked for", "nobody.mesh.internal. ANY", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"8020: an empty non-terminal", "y.bkero.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"1034 4.3.2: below a host", "x.y.bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.78 | - | -"},
	{"1034 4.2.1: the apex", "mesh.internal. SOA", "NOERROR aa | " + soaData + " | - | -"},
	{"1034 4.2.1: its servers", "mesh.internal. NS", "NOERROR aa | NS dns.mesh.internal. | - | -"},
	{"2308 2.2: NODATA at the apex", "mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"1034 4.2.2: the server has addresses", "dns.mesh.internal. A", "NOERROR aa | A 10.11.0.1, A 10.11.0.2, A 10.11.0.3 | - | -"},
	{"8482 4.2: ANY", "bkero.mesh.internal. ANY", `NOERROR aa | HINFO "RFC8482" "" | - | -`},
	{"8482 4.2: ANY at an empty non-terminal", "y.bkero.mesh.internal. ANY", `NOERROR aa | HINFO "RFC8482" "" | - | -`},
	{"1034 3.6.2: an alias and its target", "lp.mesh.internal. A", "NOERROR aa | CNAME printer.mesh.internal., A 10.11.0.77 | - | -"},
	{"2308 2.2.1: an alias of a name without the type", "lp.mesh.internal. AAAA", "NOERROR aa | CNAME printer.mesh.internal. | " + soaData + " | -"},
	{"1034 3.6.2: the alias itself", "lp.mesh.internal. CNAME", "NOERROR aa | CNAME printer.mesh.internal. | - | -"},
	{"8482 4.3: an alias has nothing else", "lp.mesh.internal. ANY", "NOERROR aa | CNAME printer.mesh.internal. | - | -"},
	{"1034 3.6.2: an alias below a node", "WWW.bkero.mesh.internal. A", "NOERROR aa | CNAME printer.mesh.internal., A 10.11.0.77 | - | -"},
	{"2308 2.2: a host is no alias", "printer.mesh.internal. CNAME", "NOERROR aa | - | " + soaData + " | -"},
	{"1464: metadata", "printer.mesh.internal. TXT", `NOERROR aa | TXT "long=` + strings.Repeat("x", 250) + `" "` + strings.Repeat("x", 50) + `", TXT "room=attic", TXT "v=spf1 -all" | - | -`},
	{"2308 2.2: no metadata", "nibz.mesh.internal. TXT", "NOERROR aa | - | " + soaData + " | -"},
	{"4592 2.1: a wildcard", "any.bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.79 | - | -"},
	{"4592 2.2.1: of many labels", "b.any.bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.79 | - | -"},
	{"4592 2.2.1: NODATA of one", "any.bkero.mesh.internal. AAAA", "NOERROR aa | - | " + soaData + " | -"},
	{"4592 2.1.1: the asterisk itself", "*.bkero.mesh.internal. A", "NOERROR aa | A 10.11.0.79 | - | -"},
	{"4592 3.3.1: not where a name exists", "y.bkero.mesh.internal. AAAA", "NOERROR aa | - | " + soaData + " | -"},
	{"4592 3.3.1: nor below it", "z.y.bkero.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"4592 3.3.1: nor at the node", "bkero.mesh.internal. MX", "NOERROR aa | - | " + soaData + " | -"},
	{"4592 2.2.1: nor at others", "any.nibz.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -"},

	{"1035 3.5: a reverse name", "2.0.11.10.in-addr.arpa. PTR", "NOERROR aa | PTR bkero.mesh.internal. | - | -"},
	{"3596 2.5: of IPv6", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. PTR", "NOERROR aa | PTR bkero.mesh.internal. | - | -"},
	{"3596 2.5: in any case", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.D.F.IP6.ARPA. PTR", "NOERROR aa | PTR bkero.mesh.internal. | - | -"},
	{"2308 2.2: has no address", "2.0.11.10.in-addr.arpa. A", "NOERROR aa | - | SOA dns.mesh.internal. | -"},
	{"2308 2.1: nobody there", "9.0.11.10.in-addr.arpa. PTR", "NXDOMAIN aa | - | SOA dns.mesh.internal. | -"},
	{"8020: the end of some", "0.11.10.in-addr.arpa. PTR", "NOERROR aa | - | SOA dns.mesh.internal. | -"},
	{"8020: the end of none", "9.11.10.in-addr.arpa. PTR", "NXDOMAIN aa | - | SOA dns.mesh.internal. | -"},
	{"8020: the end of some, IPv6", "0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. PTR", "NOERROR aa | - | SOA dns.mesh.internal. | -"},
	{"1035 3.5: too many labels", "1.2.0.11.10.in-addr.arpa. PTR", "NXDOMAIN aa | - | SOA dns.mesh.internal. | -"},
	{"1035 3.5: no number", "02.0.11.10.in-addr.arpa. PTR", "NXDOMAIN aa | - | SOA dns.mesh.internal. | -"},
	{"1035 3.5: the apex", "11.10.in-addr.arpa. SOA", "NOERROR aa | SOA dns.mesh.internal. hostmaster.mesh.internal. 7 60 10 86400 5 | - | -"},
	{"1035 3.5: its servers", "11.10.in-addr.arpa. NS", "NOERROR aa | NS dns.mesh.internal. | - | -"},

	{"5358: other zones", "google.com. A", "REFUSED | - | - | -"},
	{"5358: above", "internal. A", "REFUSED | - | - | -"},
	{"5358: beside", "notmesh.internal. A", "REFUSED | - | - | -"},
	{"5358: networks of others", "2.0.12.10.in-addr.arpa. PTR", "REFUSED | - | - | -"},
	{"5358: a label with a dot in it is not the zone", `x\.mesh.internal. A`, "REFUSED | - | - | -"},
	{"5358: the root", ". NS", "REFUSED | - | - | -"},
	{"5358: single labels", "bkero. A", "REFUSED | - | - | -"},
	{"5936 5: no zones for everybody", "mesh.internal. AXFR", "REFUSED | - | - | -"},
	{"1035 4.1.2: another class", "bkero.mesh.internal. CH A", "REFUSED | - | - | -"},

	{"2782: a service", "_http._tcp.mesh.internal. SRV", "NOERROR aa | SRV 0 0 8080 nibz.mesh.internal., SRV 0 0 9000 spencer.mesh.internal., SRV 5 7 80 bkero.mesh.internal. | - | A 10.11.0.1, A 10.11.0.2, A 10.11.0.3, AAAA fd00:1::1, AAAA fd00:1::2"},
	{"2782: in any case", "_HTTP._tcp.Mesh.internal. SRV", "NOERROR aa | SRV 0 0 8080 nibz.mesh.internal., SRV 0 0 9000 spencer.mesh.internal., SRV 5 7 80 bkero.mesh.internal. | - | A 10.11.0.1, A 10.11.0.2, A 10.11.0.3, AAAA fd00:1::1, AAAA fd00:1::2"},
	{"2782: by UDP", "_ntp._udp.mesh.internal. SRV", "NOERROR aa | SRV 0 0 123 nibz.mesh.internal. | - | A 10.11.0.3"},
	{"2308 2.2: none that is usable", "_ipp._tcp.mesh.internal. SRV", "NOERROR aa | - | " + soaData + " | -"},
	{"2308 2.1: no such service", "_smtp._tcp.mesh.internal. SRV", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"2782: the other protocol", "_http._udp.mesh.internal. SRV", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"2782: the name has no address", "_http._tcp.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"8020: an empty non-terminal of services", "_tcp.mesh.internal. SRV", "NOERROR aa | - | " + soaData + " | -"},
	{"8482: ANY of a service", "_http._tcp.mesh.internal. ANY", `NOERROR aa | HINFO "RFC8482" "" | - | -`},
	{"6763 4: instances", "_http._tcp.mesh.internal. PTR", `NOERROR aa | PTR Gr\195\182\195\159e\ \@\ 1\.\ Stock\ \@\ spencer._http._tcp.mesh.internal., PTR bkero._http._tcp.mesh.internal., PTR nibz._http._tcp.mesh.internal. | - | -`},
	{"6763 5: one", "bkero._http._tcp.mesh.internal. SRV", "NOERROR aa | SRV 5 7 80 bkero.mesh.internal. | - | A 10.11.0.2, AAAA fd00:1::2"},
	{"6763 6.4: what it says", "bkero._http._tcp.mesh.internal. TXT", `NOERROR aa | TXT "path=/a\\b" | - | -`},
	{"6763 6.1: it always says something", "nibz._http._tcp.mesh.internal. TXT", `NOERROR aa | TXT "" | - | -`},
	{"6763 4.1.3: any text, in any case", `GR\195\182\195\159E\032@\0321\.\032stock\032@\032spencer._http._tcp.mesh.internal. SRV`, "NOERROR aa | SRV 0 0 9000 spencer.mesh.internal. | - | A 10.11.0.1, AAAA fd00:1::1"},
	{"6763 5: one that is not usable", "spencer._http._tcp.mesh.internal. SRV", "NOERROR aa | - | " + soaData + " | -"},
	{"6763 5: none", "printer._http._tcp.mesh.internal. SRV", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"6763 9: types", "_services._dns-sd._udp.mesh.internal. PTR", "NOERROR aa | PTR _http._tcp.mesh.internal., PTR _ipp._tcp.mesh.internal., PTR _ntp._udp.mesh.internal. | - | -"},
	{"6763 11: where to browse", "b._dns-sd._udp.mesh.internal. PTR", "NOERROR aa | PTR mesh.internal. | - | -"},
	{"6763 11: by default", "db._dns-sd._udp.mesh.internal. PTR", "NOERROR aa | PTR mesh.internal. | - | -"},
	{"6763 11: the old way", "lb._dns-sd._udp.mesh.internal. PTR", "NOERROR aa | PTR mesh.internal. | - | -"},
	{"6763 11: not where to register", "r._dns-sd._udp.mesh.internal. PTR", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"8020: above them", "_dns-sd._udp.mesh.internal. PTR", "NOERROR aa | - | " + soaData + " | -"},

	{"Consul: a service", "http.service.mesh.internal. A", "NOERROR aa | A 10.11.0.1, A 10.11.0.2, A 10.11.0.3 | - | -"},
	{"Consul: IPv6", "http.service.mesh.internal. AAAA", "NOERROR aa | AAAA fd00:1::1, AAAA fd00:1::2 | - | -"},
	{"Consul: SRV", "http.service.mesh.internal. SRV", "NOERROR aa | SRV 0 0 8080 nibz.mesh.internal., SRV 0 0 9000 spencer.mesh.internal., SRV 5 7 80 bkero.mesh.internal. | - | A 10.11.0.1, A 10.11.0.2, A 10.11.0.3, AAAA fd00:1::1, AAAA fd00:1::2"},
	{"Consul: a tag", "canary.http.service.mesh.internal. A", "NOERROR aa | A 10.11.0.3 | - | -"},
	{"Consul: a tag, SRV", "canary.http.service.mesh.internal. SRV", "NOERROR aa | SRV 0 0 8080 nibz.mesh.internal. | - | A 10.11.0.3"},
	{"Consul: a tag of nobody usable", "v2.http.service.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"Consul: no such tag", "v3.http.service.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"Consul: RFC 2782 and a tag", "_http._v1.service.mesh.internal. SRV", "NOERROR aa | SRV 0 0 8080 nibz.mesh.internal., SRV 5 7 80 bkero.mesh.internal. | - | A 10.11.0.2, A 10.11.0.3, AAAA fd00:1::2"},
	{"Consul: RFC 2782 and a protocol", "_ntp._udp.service.mesh.internal. SRV", "NOERROR aa | SRV 0 0 123 nibz.mesh.internal. | - | A 10.11.0.3"},
	{"Consul: the other protocol", "_ntp._tcp.service.mesh.internal. SRV", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"Consul: nobody usable", "ipp.service.mesh.internal. SRV", "NOERROR aa | - | " + soaData + " | -"},
	{"Consul: no such service", "smtp.service.mesh.internal. SRV", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"8020: service", "service.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"8020: _tag.service", "_v1.service.mesh.internal. SRV", "NOERROR aa | - | " + soaData + " | -"},
	{"Consul: a node", "bkero.node.mesh.internal. A", "NOERROR aa | A 10.11.0.2 | - | -"},
	{"Consul: a node, IPv6", "bkero.node.mesh.internal. AAAA", "NOERROR aa | AAAA fd00:1::2 | - | -"},
	{"Consul: a node's metadata", "bkero.node.mesh.internal. TXT", "NOERROR aa | - | " + soaData + " | -"},
	{"Consul: a host is none", "printer.node.mesh.internal. A", "NXDOMAIN aa | - | " + soaData + " | -"},
	{"8020: node", "node.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
	{"the short name of a service", "ntp.mesh.internal. A", "NOERROR aa | A 10.11.0.3 | - | -"},
	{"of nobody usable", "ipp.mesh.internal. A", "NOERROR aa | - | " + soaData + " | -"},
}

// query is a question in the form of the table.
func query(s string) *dns.Msg {
	f := strings.Fields(s)
	qtype, ok := dns.StringToType[f[len(f)-1]]
	if !ok {
		qtype = 65280
	}
	q := new(dns.Msg).SetQuestion(f[0], qtype)
	if len(f) == 3 {
		q.Question[0].Qclass = dns.StringToClass[f[1]]
	}
	return q
}

var localhost = netip.MustParseAddr("127.0.0.1")

// TestConformance holds the server to the table.
func TestConformance(t *testing.T) {
	for _, c := range conformance {
		f := strings.Fields(c.query)
		q := query(c.query)
		m := quiet(Config{}).Answer(view(), q, localhost)
		got := summary(m)
		want := strings.Split(c.want, " | ")
		for i, g := range strings.Split(got, " | ") {
			if g != want[i] && !(strings.HasPrefix(want[i], "SOA") && strings.HasPrefix(g, want[i])) {
				t.Errorf("RFC %s: %s\n got %s\nwant %s", c.rfc, c.query, got, c.want)
				break
			}
		}
		for i, rr := range m.Answer {
			if cname := i > 0 && m.Answer[0].Header().Rrtype == dns.TypeCNAME; !cname && rr.Header().Name != f[0] && !strings.Contains(f[0], `\`) {
				t.Errorf("%s: the answer is about %s", c.query, rr.Header().Name)
			}
		}
		if b, err := m.Pack(); err != nil {
			t.Errorf("%s: %v", c.query, err)
		} else if err := new(dns.Msg).Unpack(b); err != nil {
			t.Errorf("%s: %v", c.query, err)
		}
	}
}

// summary is an answer in TestConformance's form. Where there is an alias it stays first.
func summary(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	if m.Authoritative {
		out[0] += " aa"
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var data []string
		for _, rr := range section {
			data = append(data, dns.TypeToString[rr.Header().Rrtype]+" "+strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		if len(section) > 0 && section[0].Header().Rrtype == dns.TypeCNAME {
			slices.Sort(data[1:])
		} else {
			slices.Sort(data)
		}
		if len(data) == 0 {
			data = []string{"-"}
		}
		out = append(out, strings.Join(data, ", "))
	}
	return strings.Join(out, " | ")
}
