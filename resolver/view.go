// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MaxAddrs bounds the addresses of one host.
const MaxAddrs = 64

// Host is one host of the mesh.
type Host struct {
	Name    string            `json:"name"`  // relative to the zone, lower case: "bkero", "nas.bkero", "printer"
	Owner   string            `json:"owner"` // the node that says so
	Node    bool              `json:"node"`  // a member of the mesh itself, by its certificate
	Addrs   []netip.Addr      `json:"addrs"` // without zones; in the order in which programs get them
	Aliases []string          `json:"aliases,omitempty"`
	Meta    map[string]string `json:"meta,omitempty"` // see CheckMeta
	Service bool              `json:"-"`              // stands for all who offer one: nobody owns it, and no address leads back to it
}

// Conflict is a host, an alias of one, or a group ("@name") that did not enter the View, and why.
type Conflict struct {
	Name   string `json:"name"`
	Owner  string `json:"owner"`
	Reason string `json:"reason"`
}

// View is the whole set of the mesh's names at one moment. It does not change and may be used by any number of
// goroutines; what it returns must not be changed.
type View struct {
	Zone      string         // lower case, without a final dot: "mesh.internal"
	Prefixes  []netip.Prefix // the mesh's IPv4 and IPv6 prefixes
	Revision  int64          // of the store; 0 if it was never seen
	Built     time.Time
	Conflicts []Conflict

	hosts  []Host               // sorted by name
	byName map[string]*Host     // relative names and aliases
	empty  map[string]bool      // names without a host that have names below them (RFC 8020)
	byAddr map[netip.Addr]*Host // the one host that an address leads back to
	groups []*Group             // sorted by name

	services []*Service // see compareServices
	standIns []*Host    // names of services, sorted; in byName too
	wild     []*Host    // wildcards, sorted by name; in byName too
}

// Node is a member of the mesh as its verified certificate says.
type Node struct {
	Name  string
	Addrs []netip.Addr
	Key   string // identifies the certificate: another Key under the same name has what it signed verified anew
}

// Static is a host that a node has put into the store, read from a value that the node signed.
type Static struct {
	Host
	Standing
	Taken map[string]string // names and aliases of it that others had claimed before it was there → who
}

// StaticGroup is a group that a node has put into the store, read from a value that the node signed.
type StaticGroup struct {
	Group
	Standing
}

// Standing decides among several owners who want one name.
type Standing struct {
	Claimed bool  // the owner holds the claim on the name
	Created int64 // store revision at which the value was created
}

// compare puts the holder of the claim first, then the older one.
func (s Standing) compare(t Standing) int {
	if s.Claimed != t.Claimed {
		if s.Claimed {
			return -1
		}
		return 1
	}
	return cmp.Compare(s.Created, t.Created)
}

// Parts are what a View is made of.
type Parts struct {
	Zone       string
	Prefixes   []netip.Prefix
	Nodes      []Node
	Hosts      []Static
	Groups     []StaticGroup
	Services   []StaticService
	LastResort bool  // where none of a service is usable, names lead to all of them that are not offline
	Revision   int64 // of the store
	Built      time.Time
}

// Build makes a View. Of several hosts that want one name a node wins, then the holder of the claim, then the older
// one; of groups likewise; the losers are in Conflicts. An address leads back to the node that has it, else to the first
// host that does.
func Build(p Parts) *View {
	v := &View{Zone: p.Zone, Prefixes: p.Prefixes, Revision: p.Revision, Built: p.Built,
		byName: map[string]*Host{}, empty: map[string]bool{}, byAddr: map[netip.Addr]*Host{}}
	refuse := func(name, owner string, err error) {
		v.Conflicts = append(v.Conflicts, Conflict{name, owner, err.Error()})
	}
	v.hosts = make([]Host, 0, len(p.Nodes)+len(p.Hosts))
	taken := map[string]string{}        // name → owner
	nodeAddr := map[netip.Addr]string{} // a node's address → the node
	for _, n := range p.Nodes {
		if err := CheckName(n.Name, n.Name); err != nil {
			refuse(n.Name, n.Name, err)
			continue
		}
		if _, dup := taken[n.Name]; dup {
			continue
		}
		taken[n.Name] = n.Name
		for _, a := range n.Addrs {
			nodeAddr[a] = n.Name
		}
		v.hosts = append(v.hosts, Host{Name: n.Name, Owner: n.Name, Node: true, Addrs: n.Addrs})
	}
	statics := slices.Clone(p.Hosts)
	slices.SortFunc(statics, func(a, b Static) int {
		return cmp.Or(a.Standing.compare(b.Standing), strings.Compare(a.Owner, b.Owner), strings.Compare(a.Name, b.Name))
	})
	for _, s := range statics {
		h := s.Host
		err := CheckName(h.Name, h.Owner)
		if err == nil {
			err = checkAddrs(h.Addrs, p.Prefixes)
		}
		if by := s.Taken[h.Name]; err == nil && by != "" {
			err = fmt.Errorf("the name is %w: %s has claimed it", ErrTaken, by)
		}
		if by, dup := taken[h.Name]; err == nil && dup {
			err = fmt.Errorf("the name is %w: it belongs to %s", ErrTaken, by)
		}
		for _, a := range h.Addrs {
			if by := nodeAddr[a]; err == nil && by != "" && by != h.Owner {
				err = fmt.Errorf("address %s is %w: it belongs to %s", a, ErrTaken, by)
			}
		}
		if err != nil {
			refuse(h.Name, h.Owner, err)
			continue
		}
		taken[h.Name] = h.Owner
		h.Aliases = nil
		h.Node = false
		size := namesSize(h.Name, p.Zone)
		for _, al := range s.Aliases {
			err := CheckName(al, h.Owner)
			if size += namesSize(al, p.Zone); err == nil && size > maxNames {
				err = fmt.Errorf("%s has more aliases than a host may have: %d bytes in all forms, at most %d", h.Name, size, maxNames)
			}
			if err == nil && (wildcard(al) || wildcard(h.Name)) {
				err = fmt.Errorf("%s has the alias %s: a wildcard is and has none", h.Name, al)
			}
			if by := s.Taken[al]; err == nil && by != "" {
				err = fmt.Errorf("the alias is %w: %s has claimed it", ErrTaken, by)
			}
			if by, dup := taken[al]; err == nil && dup {
				err = fmt.Errorf("the alias is %w: it belongs to %s", ErrTaken, by)
			}
			if err != nil {
				refuse(al, h.Owner, err)
				continue
			}
			taken[al] = h.Owner
			h.Aliases = append(h.Aliases, al)
		}
		v.hosts = append(v.hosts, h)
	}
	var wild []Host
	v.hosts = slices.DeleteFunc(v.hosts, func(h Host) bool {
		if wildcard(h.Name) {
			wild = append(wild, h)
		}
		return wildcard(h.Name)
	})
	// Nodes come first in byAddr, then statics in the order in which they were admitted.
	for i := range v.hosts {
		for _, a := range v.hosts[i].Addrs {
			if _, ok := v.byAddr[a]; !ok {
				v.byAddr[a] = &Host{Name: v.hosts[i].Name}
			}
		}
	}
	slices.SortFunc(v.hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	known := func(h *Host) {
		for _, n := range append([]string{h.Name}, h.Aliases...) {
			v.byName[n] = h
			for {
				_, rest, ok := strings.Cut(n, ".")
				if !ok {
					break
				}
				n = rest
				v.empty[n] = true
			}
		}
	}
	for i := range v.hosts {
		known(&v.hosts[i])
	}
	slices.SortFunc(wild, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	for i := range wild {
		known(&wild[i])
		v.wild = append(v.wild, &wild[i])
	}
	for a, h := range v.byAddr {
		v.byAddr[a] = v.byName[h.Name]
	}
	v.admitGroups(p.Groups, refuse)
	v.admitServices(p.Services, p.LastResort, refuse)
	return v
}

// Hosts returns every host, sorted by name.
func (v *View) Hosts() []Host { return v.hosts }

// Wildcards returns the hosts that stand for all names below a name that do not exist ("*.bkero"; RFC 4592), sorted by name. They
// are for DNS alone: NSS, and all that lists hosts, has names and no rules, so Hosts does not have them, and no address leads back
// to one. Lookup finds one by its own name only.
func (v *View) Wildcards() []*Host { return v.wild }

// Lookup finds a name: short ("bkero") or full ("bkero.mesh.internal"), in any case, with or without a final dot. known
// with no host means that the name exists but has no addresses of its own: the zone itself, or a name between others.
func (v *View) Lookup(name string) (h *Host, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == v.Zone {
		return nil, true
	}
	name = strings.TrimSuffix(name, "."+v.Zone)
	if h := v.byName[name]; h != nil {
		return h, true
	}
	if node, ok := strings.CutSuffix(name, ".node"); ok { // Consul's name of it
		if h := v.byName[node]; h != nil && h.Node && h.Name == node {
			return h, true
		}
	}
	return nil, v.empty[name]
}

// Host finds a host by a name, as Lookup does; nil where there is none, or the name stands for services.
func (v *View) Host(name string) *Host {
	if h, _ := v.Lookup(name); h != nil && !h.Service {
		return h
	}
	return nil
}

// Reverse finds the one host that an address leads back to.
func (v *View) Reverse(a netip.Addr) (*Host, bool) {
	h := v.byAddr[a.Unmap().WithZone("")]
	return h, h != nil
}

// InPrefixes reports whether a is an address of the mesh.
func (v *View) InPrefixes(a netip.Addr) bool {
	_, ok := in(a.Unmap(), v.Prefixes)
	return ok
}

// FQDN is the canonical name of a host, without a final dot.
func (v *View) FQDN(h *Host) string { return h.Name + "." + v.Zone }
