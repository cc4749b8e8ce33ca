// SPDX-License-Identifier: MIT

package dnsd

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// mostServers bounds the nodes that are named as servers of a zone.
const mostServers = 8

// Seconds of SOA records, for secondaries that nobody tells of changes.
const (
	soaRefresh = 60
	soaRetry   = 10
	soaExpire  = 86400
)

// index is what answers need of a View beside its names. Its View does not change, so neither does it.
type index struct {
	view  *resolver.View
	zones []zone

	sort  sync.Once
	addrs []netip.Addr // of all hosts, sorted: made when somebody asks for a reverse name that is the end of others
}

// zone is one of ours.
type zone struct {
	name    string       // lower case, without a final dot
	reverse netip.Prefix // whose reverse names it has; not valid for the mesh's own zone
}

func newIndex(v *resolver.View) *index {
	ix := &index{view: v, zones: []zone{{name: v.Zone}}}
	for _, p := range v.Prefixes {
		z := zone{reverseZone(p), p}
		if !slices.ContainsFunc(ix.zones, func(o zone) bool { return o.name == z.name }) {
			ix.zones = append(ix.zones, z)
		}
	}
	return ix
}

// zoneOf returns the zone of ours that a name lies in, nil for none.
func (ix *index) zoneOf(name string) *zone {
	for i := range ix.zones {
		z := &ix.zones[i]
		if n := len(name) - len(z.name); name == z.name || n > 1 && name[n-1] == '.' && name[n-2] != '\\' && name[n:] == z.name { // that dot is in a label
			return z
		}
	}
	return nil
}

// index returns that of a View, of which there is mostly one only.
func (s *Server) index(v *resolver.View) *index {
	if ix := s.last.Load(); ix != nil && ix.view == v {
		return ix
	}
	ix := newIndex(v)
	s.last.Store(ix)
	return ix
}

// permitted reports whether an address may ask: it is this machine's own, the mesh's, or the configuration says so.
func (s *Server) permitted(v *resolver.View, from netip.Addr) bool {
	return from.IsLoopback() || v.InPrefixes(from) || slices.ContainsFunc(s.cfg.Allow, func(p netip.Prefix) bool { return p.Contains(from) }) || s.secondary(from)
}

// answer is one that is being made.
type answer struct {
	*dns.Msg
	s     *Server
	v     *resolver.View
	name  string // of the records: as it was asked for, in that case
	qtype uint16
	ttl   uint32
}

// reply is an answer to q without content. ok is false for a query that has its answer by its form alone.
func reply(q *dns.Msg) (m *dns.Msg, ok bool) {
	m = new(dns.Msg)
	m.SetReply(q)
	m.Compress = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(udpSize, o.Do()) // RFC 3225 section 3
		if o.Version() != 0 {
			m.Rcode = dns.RcodeBadVers // RFC 6891 section 6.1.3
			return m, false
		}
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
		return m, false
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
		return m, false
	}
	return m, true
}

// Answer returns the answer to q, which from has asked, of what the View has alone: it forwards nothing and transfers no zone.
func (s *Server) Answer(v *resolver.View, q *dns.Msg, from netip.Addr) *dns.Msg {
	m, ok := reply(q)
	if !ok {
		return m
	}
	question := q.Question[0]
	full := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	ix := s.index(v)
	z := ix.zoneOf(full)
	single := z == nil && s.single(v, full)
	refused := z == nil && !single || question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR
	if refused || !s.permitted(v, from) {
		m.Rcode = dns.RcodeRefused
		return m
	}
	// Also of a single label, which is in no zone of ours: without it programs take an answer without records for that of a
	// server that knows nothing.
	m.Authoritative = true
	a := &answer{Msg: m, s: s, v: v, name: question.Name, qtype: question.Qtype, ttl: s.ttl()}
	zoneName := v.Zone
	if z != nil {
		zoneName = z.name
	}
	var known bool
	switch {
	case single:
		known = a.host(full)
	case full == z.name:
		known = true
		switch question.Qtype {
		case dns.TypeSOA:
			own := a.soa(z.name)
			own.Hdr.Name, own.Hdr.Ttl = question.Name, a.ttl
			if s.transfers != nil {
				own.Serial = s.transfers.current(z.name, own.Serial)
			}
			a.add(own)
		case dns.TypeNS:
			a.add(&dns.NS{Hdr: a.header(dns.TypeNS), Ns: "dns." + v.Zone + "."})
		}
	case z.reverse.IsValid():
		known = a.reverse(ix, full)
	default:
		rel := labels(strings.TrimSuffix(question.Name, "."))
		rel = rel[:len(rel)-strings.Count(z.name, ".")-1]
		known = a.inZone(full, rel)
	}
	if known && question.Qtype == dns.TypeANY && len(m.Answer) == 0 { // RFC 8482 section 4.2
		a.add(&dns.HINFO{Hdr: a.header(dns.TypeHINFO), Cpu: "RFC8482"})
	}
	if n := len(m.Answer); n == 0 || m.Answer[n-1].Header().Rrtype == dns.TypeCNAME && question.Qtype != dns.TypeCNAME && question.Qtype != dns.TypeANY {
		m.Ns = append(m.Ns, a.soa(zoneName)) // RFC 2308 section 2
		if !known {
			m.Rcode = dns.RcodeNameError
		}
	}
	if o := m.IsEdns0(); o != nil && m.Extra[len(m.Extra)-1] != o { // it goes last
		m.Extra = append(slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr == dns.RR(o) }), o)
	}
	return m
}

// single reports whether a name is a single label that is answered.
func (s *Server) single(v *resolver.View, name string) bool {
	if !s.cfg.SingleLabels || name == "" || strings.Contains(name, ".") {
		return false
	}
	_, known := v.Lookup(name)
	return known
}

func (s *Server) ttl() uint32 {
	if s.cfg.TTL <= 0 {
		return uint32(DefaultTTL / time.Second)
	}
	return uint32(s.cfg.TTL / time.Second)
}

func (a *answer) header(t uint16) dns.RR_Header { return a.headerOf(a.name, t, a.ttl) }

func (a *answer) headerOf(name string, t uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

func (a *answer) add(rr dns.RR) { a.Msg.Answer = append(a.Msg.Answer, rr) }

// soa is that of a zone as negative answers have it.
func (a *answer) soa(zone string) *dns.SOA { return soa(a.v, zone, a.ttl) }

func soa(v *resolver.View, zone string, ttl uint32) *dns.SOA {
	negative := min(ttl, negativeTTL)
	return &dns.SOA{Hdr: dns.RR_Header{Name: zone + ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negative},
		Ns: "dns." + v.Zone + ".", Mbox: "hostmaster." + v.Zone + ".", Serial: uint32(v.Revision), Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: negative}
}

// inZone answers for a name in the mesh's zone, of which rel are the labels before it. It reports whether there is such a name.
func (a *answer) inZone(full string, rel []string) (known bool) {
	n := len(rel)
	switch last := rel[n-1]; {
	case last == "dns" && n == 1:
		a.addrs(a.name, servers(a.v))
		return true
	case last == "node" && n <= 2:
		if n == 1 {
			return len(a.v.Hosts()) > 0
		}
		h := a.v.Host(full)
		if known = h != nil && h.Node; known {
			a.data(a.name, h)
		}
		return known
	case last[0] == '_', last == "service":
		if known, mine := a.service(full, rel); mine {
			return known
		}
	}
	if a.host(full) {
		return true
	}
	// RFC 4592 section 3.3.1: the name that exists and is nearest to this one may have a wildcard below it.
	for rest := full; len(rest) > len(a.v.Zone); {
		_, rest, _ = strings.Cut(rest, ".")
		if h := a.v.Host("*." + rest); h != nil {
			a.found(h, "*."+rest)
			return true
		}
		if _, exists := a.v.Lookup(rest); exists {
			break
		}
	}
	return false
}

// host answers for a name that the View may have.
func (a *answer) host(full string) (known bool) {
	h, known := a.v.Lookup(full)
	if h != nil && full != a.v.Zone {
		a.found(h, full)
	}
	return known
}

// found answers for a host that has been found by a name: with what it has, or with its name where that is another.
func (a *answer) found(h *resolver.Host, by string) {
	switch {
	case h.Service:
		those := a.v.ServicesOf(typeOf(h.Name))
		a.ttl = a.ttlOf(those)
		a.addrs(a.name, a.order(h.Addrs, those))
	case h.Name != strings.TrimSuffix(by, "."+a.v.Zone):
		target := a.v.FQDN(h) + "."
		a.add(&dns.CNAME{Hdr: a.header(dns.TypeCNAME), Target: target})
		if a.qtype != dns.TypeANY && a.qtype != dns.TypeCNAME {
			a.data(target, h)
		}
	default:
		a.data(a.name, h)
	}
}

// data adds the records of a host that were asked for, under a name.
func (a *answer) data(name string, h *resolver.Host) {
	if a.qtype == dns.TypeTXT {
		for _, t := range metaText(h.Meta) {
			a.add(&dns.TXT{Hdr: a.headerOf(name, dns.TypeTXT, a.ttl), Txt: t})
		}
	}
	a.addrs(name, h.Addrs)
}

// addrs adds A or AAAA records.
func (a *answer) addrs(name string, addrs []netip.Addr) {
	if a.qtype != dns.TypeA && a.qtype != dns.TypeAAAA {
		return
	}
	for _, addr := range addrs {
		if addr.Is4() == (a.qtype == dns.TypeA) {
			a.add(addrRR(name, addr, a.ttl))
		}
	}
}

func addrRR(name string, addr netip.Addr, ttl uint32) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: ttl}, AAAA: addr.AsSlice()}
}

// metaText are a host's metadata as TXT records, one for each key (RFC 1464); as with Consul, of a key "rfc1035-…" there is the
// value alone.
func metaText(meta map[string]string) (out [][]string) {
	for _, k := range sortedKeys(meta) {
		t := k + "=" + meta[k]
		if strings.HasPrefix(k, "rfc1035-") {
			t = meta[k]
		}
		var parts []string
		for ; len(t) > 255; t = t[255:] {
			parts = append(parts, text(t[:255]))
		}
		out = append(out, append(parts, text(t)))
	}
	return out
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// servers are the addresses of the name that all zones have as their server. Every node answers DNS.
func servers(v *resolver.View) (out []netip.Addr) {
	n := 0
	for _, h := range v.Hosts() {
		if h.Node && n < mostServers {
			n++
			out = append(out, h.Addrs...)
		}
	}
	return out
}

// order is these addresses, of hosts that offer the same, in the order in which a client is to try them.
func (a *answer) order(addrs []netip.Addr, those []*resolver.Service) []netip.Addr {
	out := slices.Clone(addrs)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	if a.s.cfg.Near == nil {
		return out
	}
	far := make(map[netip.Addr]time.Duration, len(out))
	for _, svc := range those {
		d := a.s.distance(svc.Owner)
		for _, addr := range svc.Addrs {
			if old, ok := far[addr]; !ok || d < old {
				far[addr] = d
			}
		}
	}
	slices.SortStableFunc(out, func(x, y netip.Addr) int { return int(min(1, max(-1, far[x]-far[y]))) })
	return out
}

// distance is the round trip to a node; a node to which there is none measured comes last.
func (s *Server) distance(node string) time.Duration {
	if d := s.cfg.Near(node); d >= 0 {
		return d
	}
	return time.Hour
}

// reverse answers for a reverse name.
func (a *answer) reverse(ix *index, full string) (known bool) {
	addr, whole, ok := addrOf(full)
	if !whole {
		return ok && ix.below(full)
	}
	h, found := a.v.Reverse(addr)
	if known = found && a.v.InPrefixes(addr); known && a.qtype == dns.TypePTR {
		a.add(&dns.PTR{Hdr: a.header(dns.TypePTR), Ptr: a.v.FQDN(h) + "."})
	}
	return known
}

// reverseZone is the smallest zone of reverse names, at a whole label, that holds a prefix.
func reverseZone(p netip.Prefix) string {
	arpa, _ := dns.ReverseAddr(p.Masked().Addr().String())
	labels := strings.Split(strings.TrimSuffix(arpa, "."), ".")
	bits, per := p.Bits(), 8
	if p.Addr().Is6() {
		per = 4
	}
	drop := p.Addr().BitLen()/per - bits/per
	return strings.Join(labels[drop:], ".")
}

// addrOf reads a reverse name; whole is false for one that is only the end of some: a then is the first of them.
func addrOf(name string) (a netip.Addr, whole, ok bool) {
	p, ok := prefixOf(name)
	return p.Addr(), ok && p.IsSingleIP(), ok
}

// prefixOf reads the addresses whose reverse names end in a name.
func prefixOf(name string) (p netip.Prefix, ok bool) {
	if s, v4 := strings.CutSuffix(name, ".in-addr.arpa"); v4 {
		l := strings.Split(s, ".")
		if len(l) > 4 {
			return p, false
		}
		var b [4]byte
		for i := range l {
			d := l[len(l)-1-i]
			n := 0
			for _, c := range []byte(d) {
				if !digit(c) {
					return p, false
				}
				n = n*10 + int(c-'0')
			}
			if len(d) < 1 || len(d) > 3 || n > 255 || len(d) > 1 && d[0] == '0' {
				return p, false
			}
			b[i] = byte(n)
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*len(l)), true
	}
	s, v6 := strings.CutSuffix(name, ".ip6.arpa")
	l := strings.Split(s, ".")
	if !v6 || len(l) > 32 {
		return p, false
	}
	var b [16]byte
	for i := range l {
		d := l[len(l)-1-i]
		if len(d) != 1 {
			return p, false
		}
		n := strings.IndexByte("0123456789abcdef", d[0])
		if n < 0 {
			return p, false
		}
		b[i/2] |= byte(n) << (4 - 4*(i%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(l)), true
}

// below reports whether a host's address has a reverse name below name (RFC 8020: such a name exists, without data).
func (ix *index) below(name string) bool {
	p, ok := prefixOf(name)
	if !ok {
		return false
	}
	ix.sort.Do(func() {
		for _, h := range ix.view.Hosts() {
			for _, a := range h.Addrs {
				if ix.view.InPrefixes(a) {
					ix.addrs = append(ix.addrs, a)
				}
			}
		}
		slices.SortFunc(ix.addrs, netip.Addr.Compare)
	})
	i, _ := slices.BinarySearchFunc(ix.addrs, p.Addr(), netip.Addr.Compare)
	return i < len(ix.addrs) && p.Contains(ix.addrs[i])
}
