// SPDX-License-Identifier: MIT

package dnsd

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// The names of services, below the zone:
//
//	_TYPE._PROTO                     SRV (RFC 2782), and PTR to the instances (RFC 6763 section 4)
//	INSTANCE._TYPE._PROTO            SRV, TXT (RFC 6763 sections 5 and 6)
//	_services._dns-sd._udp           PTR to the types (RFC 6763 section 9)
//	{b,db,lb}._dns-sd._udp           PTR to the zone, which is the one to browse (RFC 6763 section 11)
//	[TAG.]TYPE.service               A, AAAA, SRV: Consul's
//	_TYPE._TAG.service               SRV: Consul's; tcp and udp are protocols and not tags
//	TYPE                             A, AAAA
//
// A name is there for as long as there is such a service, whatever its health; only what is usable is in answers.

// service answers for a name of services. mine is false for one that is none.
func (a *answer) service(full string, rel []string) (known, mine bool) {
	n := len(rel)
	last := rel[n-1]
	switch {
	case last == "service" && n > 1 && rel[n-2][0] == '_': // _http._tag.service
		tag := rel[n-2][1:]
		match := func(s *resolver.Service) bool { return slices.Contains(s.Tags, tag) }
		if tag == "tcp" || tag == "udp" {
			match = func(s *resolver.Service) bool { return s.Proto == tag }
		}
		switch {
		case n == 2:
			return slices.ContainsFunc(a.v.Services(), match), true
		case n == 3 && rel[0][0] == '_':
			those := filter(a.v.ServicesOf(rel[0][1:]), match)
			a.srv(those)
			return len(those) > 0, true
		}
		return false, true
	case last == "service": // tag.http.service: the View has the name and its addresses
		known := a.host(full)
		if known && n > 1 {
			those := a.v.ServicesOf(rel[n-2])
			if n == 3 {
				those = filter(those, func(s *resolver.Service) bool { return slices.Contains(s.Tags, rel[0]) })
			}
			a.srv(those)
		}
		return known, true
	case last != "_tcp" && last != "_udp":
		return false, false
	case n == 1:
		return last == "_udp" || slices.ContainsFunc(a.v.Services(), func(s *resolver.Service) bool { return s.Proto == "tcp" }), true
	case last == "_udp" && rel[n-2] == "_dns-sd":
		return n == 2 || n == 3 && a.browse(rel[0]), true
	case rel[n-2][0] != '_' || n > 3:
		return false, true
	}
	proto := last[1:]
	those := filter(a.v.ServicesOf(rel[n-2][1:]), func(s *resolver.Service) bool { return s.Proto == proto })
	if n == 2 {
		a.srv(those)
		if a.qtype == dns.TypePTR {
			for _, s := range those {
				if s.Usable() {
					a.add(&dns.PTR{Hdr: a.headerOf(a.name, dns.TypePTR, a.ttlOf(those)), Ptr: instance(s, a.v.Zone)})
				}
			}
		}
		return len(those) > 0, true
	}
	those = filter(those, func(s *resolver.Service) bool { return lower([]byte(s.Instance())) == rel[0] })
	a.srv(those)
	if a.qtype == dns.TypeTXT {
		for _, s := range those {
			a.add(&dns.TXT{Hdr: a.headerOf(a.name, dns.TypeTXT, a.ttlOf(those)), Txt: serviceText(s)})
		}
	}
	return len(those) > 0, true
}

// browse answers where browsers of DNS-SD begin.
func (a *answer) browse(name string) (known bool) {
	switch name {
	case "_services":
		if a.qtype == dns.TypePTR {
			for _, t := range types(a.v) {
				a.add(&dns.PTR{Hdr: a.header(dns.TypePTR), Ptr: t + "." + a.v.Zone + "."})
			}
		}
	case "b", "db", "lb":
		if a.qtype == dns.TypePTR {
			a.add(&dns.PTR{Hdr: a.header(dns.TypePTR), Ptr: a.v.Zone + "."})
		}
	default:
		return false
	}
	return true
}

// types are those of which there is a service, as "_http._tcp".
func types(v *resolver.View) (out []string) {
	for _, s := range v.Services() {
		if t := "_" + s.Type + "._" + s.Proto; len(out) == 0 || out[len(out)-1] != t {
			out = append(out, t)
		}
	}
	return out
}

// srv adds SRV records, if they were asked for, and the addresses of their targets.
func (a *answer) srv(those []*resolver.Service) {
	if a.qtype != dns.TypeSRV {
		return
	}
	ttl := a.ttlOf(those)
	those = usable(a.v, those)
	rand.Shuffle(len(those), func(i, j int) { those[i], those[j] = those[j], those[i] })
	if a.s.cfg.Near != nil {
		slices.SortStableFunc(those, func(x, y *resolver.Service) int {
			return int(min(1, max(-1, a.s.distance(x.Owner)-a.s.distance(y.Owner))))
		})
	}
	seen := map[string]bool{}
	for _, s := range those {
		a.add(srvRR(a.name, s, a.v.Zone, ttl))
		if !seen[s.Host] {
			seen[s.Host] = true
			for _, addr := range s.Addrs {
				a.Extra = append(a.Extra, addrRR(s.Host+"."+a.v.Zone+".", addr, a.s.ttl()))
			}
		}
	}
}

// usable are those of services of one type that belong into answers, in a slice of their own. Where the View has addresses for
// the type though none is usable, all that are not offline do: its owner wants them as a last resort.
func usable(v *resolver.View, those []*resolver.Service) []*resolver.Service {
	out := filter(those, (*resolver.Service).Usable)
	if len(out) == 0 && len(those) > 0 {
		typ := those[0].Type
		if h, _ := v.Lookup(typ + ".service." + v.Zone); h != nil && !slices.ContainsFunc(v.ServicesOf(typ), (*resolver.Service).Usable) {
			out = filter(those, func(s *resolver.Service) bool { return s.Health.State != resolver.Offline })
		}
	}
	return out
}

func srvRR(name string, s *resolver.Service, zone string, ttl uint32) dns.RR {
	return &dns.SRV{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: ttl},
		Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: s.Host + "." + zone + "."}
}

// instance is the name of a service's instance, in presentation form.
func instance(s *resolver.Service, zone string) string {
	return label(s.Instance()) + "._" + s.Type + "._" + s.Proto + "." + zone + "."
}

// serviceText are the strings of an instance's TXT record: its metadata, without what has no room in one string (RFC 6763
// section 6.1), and one that is empty where there is nothing to say.
func serviceText(s *resolver.Service) (out []string) {
	for _, k := range sortedKeys(s.Meta) {
		if kv := k + "=" + s.Meta[k]; len(kv) <= 255 {
			out = append(out, text(kv))
		}
	}
	if len(out) == 0 {
		out = []string{""}
	}
	return out
}

// ttlOf is how long an answer about these services holds: as long as that about the one that changes most often.
func (a *answer) ttlOf(those []*resolver.Service) uint32 { return ttlOf(those, a.s.ttl()) }

func ttlOf(those []*resolver.Service, none uint32) uint32 {
	ttl := uint32(0)
	for _, s := range those {
		t := none
		if s.TTL > 0 {
			t = uint32(s.TTL / time.Second)
		}
		if ttl == 0 || t < ttl {
			ttl = t
		}
	}
	if ttl == 0 {
		return none
	}
	return ttl
}

// typeOf is the type in a name that stands for services.
func typeOf(name string) string {
	name = strings.TrimSuffix(name, ".service")
	return name[strings.LastIndexByte(name, '.')+1:]
}

func filter(those []*resolver.Service, keep func(*resolver.Service) bool) (out []*resolver.Service) {
	for _, s := range those {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}
