// SPDX-License-Identifier: MIT

package project

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"mesh.internal/mesh/resolver"
)

// SkyDNS is where the layout of SkyDNS is written, which CoreDNS's plugin etcd reads.
//
//	PATH/internal/mesh/bkero/v4            {"host":"10.11.0.2",…}              of bkero.mesh.internal
//	PATH/internal/mesh/bkero/nas/v4        {"host":"10.11.0.80",…}             of nas.bkero.mesh.internal
//	PATH/internal/mesh/dns/apex/x          {"text":…}                          for the zone itself, which has no address
//	PATH/internal/mesh/dns/ns/spencer/v4   {"host":"10.11.0.1",…}              the zone's name server
//	PATH/internal/mesh/http/v4             {"host":"10.11.0.2",…}              of a host that offers http, and is well
//	PATH/internal/mesh/_tcp/_http/0        {"host":"bkero.mesh.internal",…}    with its port, for SRV
//	PATH/arpa/in-addr/10/11/0/2            {"host":"bkero.mesh.internal.",…}   for reverse look-ups, which want this very key
//
// CoreDNS answers with everything below a name's key. So every name is a group: of what it finds CoreDNS takes the group
// with the shortest keys, and nas is not among bkero's addresses. An alias has its host's addresses, not a CNAME, of which
// CoreDNS finds nothing where there are names below it. The apex is there so that the zone is not the sum of all names.
type SkyDNS struct {
	Path   string // as "/skydns"
	TTL    int    // seconds
	Server string // node whose DNS server is named as the zone's
}

// record is a value. Text must be empty where Host is a name, or CoreDNS makes no CNAME of it and no PTR.
type record struct {
	Host        string `json:"host,omitempty"`
	Port        uint16 `json:"port,omitempty"`
	Priority    uint16 `json:"priority,omitempty"` // of 0 CoreDNS makes 10
	Weight      uint16 `json:"weight,omitempty"`   // of 0 CoreDNS makes 100
	Text        string `json:"text,omitempty"`
	TTL         int    `json:"ttl,omitempty"`
	TargetStrip int    `json:"targetstrip,omitempty"` // labels that the name of a target does not have of the key
	Group       string `json:"group,omitempty"`
}

// groupMark begins the groups of what this package writes, and so tells it from what others write.
const groupMark = "mesh:"

func (r record) text() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

func ourRecord(value string) bool {
	var r record
	return json.Unmarshal([]byte(value), &r) == nil && strings.HasPrefix(r.Group, groupMark)
}

// Layouts are the zone and the reverse zones of the mesh's prefixes.
func (s SkyDNS) Layouts(zone string, prefixes []netip.Prefix) []Layout {
	out := []Layout{{Prefix: s.Path + "/" + reversed(zone) + "/", Encode: s.forward, Ours: ourRecord}}
	for _, p := range prefixes {
		above := arpa(p.Addr())[:prefixLabels(p)]
		under := s.Path + "/arpa/" + arpaTree(p.Addr()) + "/" + strings.Join(append(above, ""), "/")
		out = append(out, Layout{Prefix: under, Ours: ourRecord, Encode: func(v *resolver.View) map[string]string { return s.reverse(v, p, len(above)) }})
	}
	return out
}

// reversed are the labels of a name, the last one first, as in a key.
func reversed(name string) string {
	labels := strings.Split(name, ".")
	slices.Reverse(labels)
	return strings.Join(labels, "/")
}

func (s SkyDNS) forward(v *resolver.View) map[string]string {
	out := map[string]string{}
	addrs := func(key, name string, addrs []netip.Addr) {
		n4, n6 := 0, 0
		for _, a := range addrs {
			leaf, n := "v4", &n4
			if a.Is6() {
				leaf, n = "v6", &n6
			}
			if *n++; *n > 1 {
				leaf += "-" + strconv.Itoa(*n)
			}
			out[key+"/"+leaf] = record{Host: a.String(), TTL: s.TTL, TargetStrip: 1, Group: groupMark + name + "." + v.Zone}.text()
		}
	}
	for h := range v.All() {
		for _, n := range append([]string{h.Name}, h.Others()...) {
			addrs(reversed(n), n, h.Addrs)
		}
	}
	for i, x := range v.Services() {
		if x.Usable() {
			name := "_" + x.Type + "._" + x.Proto
			out[reversed(name)+"/"+strconv.Itoa(i)] = record{Host: x.Host + "." + v.Zone, Port: x.Port, Priority: cmp.Or(x.Priority, 1), Weight: cmp.Or(x.Weight, 1), TTL: s.TTL, TargetStrip: 1,
				Group: groupMark + name + "." + v.Zone}.text()
		}
	}
	out["dns/apex/x"] = record{Text: "names of a mesh, written by meshd", TTL: s.TTL, Group: groupMark + "apex.dns." + v.Zone}.text()
	if h, _ := v.Lookup(s.Server); h != nil {
		addrs("dns/ns/"+s.Server, "ns.dns", h.Addrs)
	}
	return out
}

// reverse are the keys of addresses in p, without the labels that all of them have.
func (s SkyDNS) reverse(v *resolver.View, p netip.Prefix, common int) map[string]string {
	out := map[string]string{}
	for _, h := range v.Hosts() {
		for _, a := range h.Addrs {
			if r, _ := v.Reverse(a); !p.Contains(a) || r == nil || r.Name != h.Name {
				continue
			}
			labels := arpa(a)
			out[strings.Join(labels[common:], "/")] = record{Host: v.FQDN(h) + ".", TTL: s.TTL, Group: groupMark + v.FQDN(h)}.text()
		}
	}
	return out
}

// arpaTree is the label below arpa that an address's kind has.
func arpaTree(a netip.Addr) string {
	if a.Is4() {
		return "in-addr"
	}
	return "ip6"
}

// arpa are the labels of an address in its reverse zone, the topmost first: bytes, or half bytes (RFC 1035 section 3.5,
// RFC 3596 section 2.5).
func arpa(a netip.Addr) (labels []string) {
	for _, b := range a.AsSlice() {
		if a.Is4() {
			labels = append(labels, strconv.Itoa(int(b)))
		} else {
			labels = append(labels, strconv.FormatInt(int64(b>>4), 16), strconv.FormatInt(int64(b&15), 16))
		}
	}
	return labels
}

// prefixLabels is how many labels all addresses of p have in common.
func prefixLabels(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits() / 8
	}
	return p.Bits() / 4
}
