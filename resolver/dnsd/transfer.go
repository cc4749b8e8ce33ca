// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// Bounds of transfers.
const (
	changeEvery = 500 * time.Millisecond // at most one version of a zone in this time
	maxVersions = 100                    // versions from which a zone can be brought up to date
	maxChanges  = 20_000                 // records in all of them: beyond, the whole zone is sent
	atOnce      = 200                    // records in a message of a transfer
	notifyTries = 5
)

// transfers keeps the zones as secondaries have them, and what has changed in them (RFC 1995), and tells secondaries of it (RFC
// 1996). A version's serial number is the revision of the store at which the zone last changed: a store has many that change no
// name. What changes without one (a node that is known by gossip alone) comes with the next that does.
type transfers struct {
	cfg Config
	ttl uint32

	mu    sync.Mutex // guards zones
	zones map[string]*history
}

// history is a zone and how it came to be.
type history struct {
	serial  uint32
	view    *resolver.View
	records []record // sorted by key
	deltas  []delta  // the oldest first; each begins where the one before ends
}

type record struct {
	key string // the whole record as text
	rr  dns.RR
}

type delta struct {
	from, to   uint32
	gone, came []dns.RR
}

func newTransfers(cfg Config) *transfers {
	s := Server{cfg: cfg}
	return &transfers{cfg: cfg, ttl: s.ttl(), zones: map[string]*history{}}
}

// run follows the View and tells secondaries until ctx ends.
func (t *transfers) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	kicks := make([]chan string, len(t.cfg.Secondaries))
	for i, a := range t.cfg.Secondaries {
		kicks[i] = make(chan string, 64)
		wg.Go(func() { t.tell(ctx, a, kicks[i]) })
	}
	for {
		changed := t.cfg.Changed()
		for _, zone := range t.update(t.cfg.View()) {
			for _, k := range kicks {
				select {
				case k <- zone:
				default: // it is being told of so many already, and asks for all of them in time
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		wait := time.NewTimer(changeEvery)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// update brings the zones up to date and returns those that have changed.
func (t *transfers) update(v *resolver.View) (changed []string) {
	for _, z := range newIndex(v).zones {
		if z.reverse.IsValid() && z.reverse.Bits() == 0 {
			continue
		}
		var now []record
		for rr := range records(v, z, t.ttl) {
			now = append(now, record{rr.String(), rr})
		}
		slices.SortFunc(now, func(a, b record) int { return strings.Compare(a.key, b.key) })
		now = slices.CompactFunc(now, func(a, b record) bool { return a.key == b.key })
		t.mu.Lock()
		h := t.zones[z.name]
		if h == nil {
			h = &history{}
			t.zones[z.name] = h
			changed = append(changed, z.name)
		} else if d := compare(h.records, now); len(d.gone)+len(d.came) > 0 {
			h.advance(d, uint32(v.Revision))
			changed = append(changed, z.name)
		} else {
			t.mu.Unlock()
			continue
		}
		h.serial, h.view, h.records = uint32(v.Revision), v, now
		t.mu.Unlock()
	}
	return changed
}

// advance adds a version.
func (h *history) advance(d delta, serial uint32) {
	if !newer(serial, h.serial) { // other records in one version, or a store that is older than it was
		h.deltas = nil
		return
	}
	d.from, d.to = h.serial, serial
	h.deltas = append(h.deltas, d)
	size := 0
	for i := len(h.deltas) - 1; i >= 0; i-- {
		if size += len(h.deltas[i].gone) + len(h.deltas[i].came); size > maxChanges || len(h.deltas)-i > maxVersions {
			h.deltas = slices.Clone(h.deltas[i+1:])
			break
		}
	}
}

// current is the serial number of a zone.
func (t *transfers) current(zone string, revision uint32) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.zones[zone]; h != nil {
		return h.serial
	}
	return revision
}

// newer compares serial numbers (RFC 1982 section 3.2).
func newer(a, b uint32) bool { return int32(a-b) > 0 }

// compare is what must go and come to make b of a.
func compare(a, b []record) (d delta) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].key < b[0].key:
			d.gone = append(d.gone, a[0].rr)
			a = a[1:]
		case len(a) == 0 || b[0].key < a[0].key:
			d.came = append(d.came, b[0].rr)
			b = b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return d
}

// serial is the answer to a query for a transfer by UDP: the SOA record alone, so that who is behind asks by TCP (RFC 1995 section
// 2). It is nil where there is no such zone.
func (t *transfers) serial(q *dns.Msg) *dns.Msg {
	zone := trim(q.Question[0].Name)
	m, ok := reply(q)
	t.mu.Lock()
	h := t.zones[zone]
	t.mu.Unlock()
	if !ok || h == nil {
		return nil
	}
	m.Authoritative = true
	m.Answer = []dns.RR{h.soa(zone, h.serial, t.ttl)}
	return m
}

func (h *history) soa(zone string, serial, ttl uint32) dns.RR {
	rr := soa(h.view, zone, ttl)
	rr.Hdr.Ttl = ttl
	rr.Serial = serial
	return rr
}

// serve sends a zone, or what has changed in it. It reports whether q was a query for that.
func (t *transfers) serve(w dns.ResponseWriter, q *dns.Msg) bool {
	kind := q.Question[0].Qtype
	if kind != dns.TypeAXFR && kind != dns.TypeIXFR || q.Question[0].Qclass != dns.ClassINET {
		return false
	}
	zone := trim(q.Question[0].Name)
	t.mu.Lock()
	var h history
	if z := t.zones[zone]; z != nil {
		h = *z
	}
	t.mu.Unlock()
	if h.view == nil {
		return false
	}
	var send []dns.RR
	what := "a secondary has taken a zone"
	if kind == dns.TypeIXFR {
		what = "a secondary has taken what has changed in a zone"
	}
	m, _ := reply(q)
	m.Authoritative = true
	for rr := range h.transfer(zone, q, t.ttl) {
		send = append(send, rr)
		if len(send) == atOnce {
			m.Answer = send
			if w.WriteMsg(m) != nil {
				return true
			}
			send = send[:0]
		}
	}
	if len(send) > 0 {
		m.Answer = send
		w.WriteMsg(m)
	}
	t.cfg.Log.Info(what, "endpoint", w.RemoteAddr().String(), "key", zone, "rev", h.serial)
	return true
}

// transfer yields the records of an answer to q.
func (h *history) transfer(zone string, q *dns.Msg, ttl uint32) iter.Seq[dns.RR] {
	return func(yield func(dns.RR) bool) {
		now := h.soa(zone, h.serial, ttl)
		if !yield(now) {
			return
		}
		if q.Question[0].Qtype == dns.TypeIXFR && len(q.Ns) == 1 {
			if has, ok := q.Ns[0].(*dns.SOA); ok {
				if !newer(h.serial, has.Serial) {
					return // it is up to date
				}
				for i := range h.deltas {
					if h.deltas[i].from == has.Serial {
						h.changes(zone, h.deltas[i:], ttl, yield)
						return
					}
				}
			}
		}
		for _, r := range h.records {
			if !yield(r.rr) {
				return
			}
		}
		yield(now)
	}
}

// changes yields an incremental transfer (RFC 1995 section 4) but for its first record.
func (h *history) changes(zone string, deltas []delta, ttl uint32, yield func(dns.RR) bool) {
	for _, d := range deltas {
		for _, part := range [][]dns.RR{{h.soa(zone, d.from, ttl)}, d.gone, {h.soa(zone, d.to, ttl)}, d.came} {
			for _, rr := range part {
				if !yield(rr) {
					return
				}
			}
		}
	}
	yield(h.soa(zone, h.serial, ttl))
}

// tell tells one secondary of changes (RFC 1996 section 3): again, after 1, 2, 4… s, until it has answered.
func (t *transfers) tell(ctx context.Context, secondary netip.AddrPort, zones <-chan string) {
	for {
		var zone string
		select {
		case <-ctx.Done():
			return
		case zone = <-zones:
		}
		t.mu.Lock()
		h := t.zones[zone]
		m := new(dns.Msg)
		m.SetNotify(zone + ".")
		m.Answer = []dns.RR{h.soa(zone, h.serial, t.ttl)}
		t.mu.Unlock()
		c := dns.Client{Net: "udp", Timeout: time.Second}
		for range notifyTries {
			_, _, err := c.ExchangeContext(ctx, m, secondary.String())
			if err == nil || ctx.Err() != nil {
				break
			}
			if t.cfg.Log.Enabled(ctx, slog.LevelDebug) {
				t.cfg.Log.Debug("a secondary was not told", "endpoint", secondary.String(), "key", zone, "err", err)
			}
			if e, ok := err.(net.Error); !ok || !e.Timeout() { // it said at once that nobody is there
				wait := time.NewTimer(c.Timeout)
				select {
				case <-ctx.Done():
				case <-wait.C:
				}
				wait.Stop()
			}
			c.Timeout *= 2
		}
	}
}

// records yields everything in a zone but its SOA record. It says what Answer says, name by name (TestZoneIsWhatIsAnswered).
func records(v *resolver.View, z zone, ttl uint32) iter.Seq[dns.RR] {
	return func(yield func(dns.RR) bool) {
		out := func(rr dns.RR) bool { return yield(rr) }
		head := func(name string, t uint16) dns.RR_Header {
			return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
		}
		if !out(&dns.NS{Hdr: head(z.name+".", dns.TypeNS), Ns: "dns." + v.Zone + "."}) {
			return
		}
		if z.reverse.IsValid() {
			for _, h := range v.Hosts() {
				for _, a := range h.Addrs {
					arpa, _ := dns.ReverseAddr(a.String())
					back, ok := v.Reverse(a)
					if !ok || back.Name != h.Name || !v.InPrefixes(a) || !strings.HasSuffix(arpa, "."+z.name+".") {
						continue
					}
					if !out(&dns.PTR{Hdr: head(arpa, dns.TypePTR), Ptr: v.FQDN(back) + "."}) {
						return
					}
				}
			}
			return
		}
		origin := "." + v.Zone + "."
		addrs := func(name string, addrs []netip.Addr, ttl uint32) bool {
			for _, a := range addrs {
				if !out(addrRR(name, a, ttl)) {
					return false
				}
			}
			return true
		}
		data := func(name string, h *resolver.Host) bool {
			for _, t := range metaText(h.Meta) {
				if !out(&dns.TXT{Hdr: head(name, dns.TypeTXT), Txt: t}) {
					return false
				}
			}
			return addrs(name, h.Addrs, ttl)
		}
		if !addrs("dns"+origin, servers(v), ttl) {
			return
		}
		for _, h := range v.Hosts() {
			if !data(h.Name+origin, h) || h.Node && !data(h.Name+".node"+origin, h) {
				return
			}
			for _, al := range h.Aliases {
				if !out(&dns.CNAME{Hdr: head(al+origin, dns.TypeCNAME), Target: h.Name + origin}) {
					return
				}
			}
		}
		for _, h := range v.Wildcards() {
			if !data(h.Name+origin, h) {
				return
			}
		}
		for _, h := range v.ServiceHosts() {
			if !addrs(h.Name+origin, h.Addrs, ttlOf(v.ServicesOf(typeOf(h.Name)), ttl)) {
				return
			}
		}
		for _, name := range []string{"b", "db", "lb"} {
			if !out(&dns.PTR{Hdr: head(name+"._dns-sd._udp"+origin, dns.TypePTR), Ptr: origin[1:]}) {
				return
			}
		}
		for _, t := range types(v) {
			if !out(&dns.PTR{Hdr: head("_services._dns-sd._udp"+origin, dns.TypePTR), Ptr: t + origin}) {
				return
			}
		}
		for _, set := range serviceSets(v) {
			setTTL := ttlOf(set.all, ttl)
			for _, s := range usable(v, set.all) {
				if !out(srvRR(set.name+origin, s, v.Zone, setTTL)) {
					return
				}
				if set.browse && s.Usable() && !out(&dns.PTR{Hdr: dns.RR_Header{Name: set.name + origin, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: setTTL}, Ptr: instance(s, v.Zone)}) {
					return
				}
			}
			if set.text && !out(&dns.TXT{Hdr: dns.RR_Header{Name: set.name + origin, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: setTTL}, Txt: serviceText(set.all[0])}) {
				return
			}
		}
	}
}

// serviceSet is a name that leads to services.
type serviceSet struct {
	name         string // relative to the zone
	all          []*resolver.Service
	browse, text bool
}

// serviceSets are all names with SRV records.
func serviceSets(v *resolver.View) (out []serviceSet) {
	at := map[string]int{}
	add := func(name string, s *resolver.Service, browse, text bool) {
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name] = i
			out = append(out, serviceSet{name: name, browse: browse, text: text})
		}
		out[i].all = append(out[i].all, s)
	}
	for _, s := range v.Services() {
		t := "_" + s.Type + "._" + s.Proto
		add(t, s, true, false)
		add(label(s.Instance())+"."+t, s, false, true)
		add(s.Type+".service", s, false, false)
		add("_"+s.Type+"._"+s.Proto+".service", s, false, false)
		for _, tag := range s.Tags {
			add(tag+"."+s.Type+".service", s, false, false)
			if tag != "tcp" && tag != "udp" {
				add("_"+s.Type+"._"+tag+".service", s, false, false)
			}
		}
	}
	return out
}
