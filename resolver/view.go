// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"net/netip"
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

// Others are the names beside Name by which a host is found, relative to the zone: its aliases, and a node's in Consul's tree.
func (h *Host) Others() []string {
	if h.Node {
		return append([]string{h.Name + nodeTree}, h.Aliases...)
	}
	return h.Aliases
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

	hosts  []*Host                  // sorted by name
	wild   []*Host                  // wildcards, sorted by name; in byName too
	byName table[string, *Host]     // relative names and aliases
	below  table[string, int]       // how many names there are below a name, which exists therefore (RFC 8020)
	byAddr table[netip.Addr, *Host] // the one host that an address leads back to
	groups []*Group                 // sorted by name

	services     []*Service       // see compareServices
	standIns     []*Host          // names of services, sorted
	byService    map[string]*Host // the same by name
	emptyService map[string]bool  // names above these, and those of services of which none is usable
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

// Hosts returns every host, sorted by name.
func (v *View) Hosts() []*Host { return v.hosts }

// Wildcards returns the hosts that stand for all names below a name that do not exist ("*.bkero"; RFC 4592), sorted by name. They
// are for DNS alone: NSS, and all that lists hosts, has names and no rules, so Hosts does not have them, and no address leads back
// to one. Lookup finds one by its own name only.
func (v *View) Wildcards() []*Host { return v.wild }

// nodeTree is where Consul's users find nodes: "bkero.node.mesh.internal".
const nodeTree = ".node"

// Lookup finds a name: short ("bkero") or full ("bkero.mesh.internal"), in any case, with or without a final dot. known
// with no host means that the name exists but has no addresses of its own: the zone itself, or a name between others.
func (v *View) Lookup(name string) (h *Host, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == v.Zone {
		return nil, true
	}
	name = strings.TrimSuffix(name, "."+v.Zone)
	if h := v.byName.get(name); h != nil {
		return h, true
	}
	if h := v.byService[name]; h != nil {
		return h, true
	}
	if n, ok := strings.CutSuffix(name, nodeTree); ok {
		if h := v.byName.get(n); h != nil && h.Node {
			return h, true
		}
	}
	return nil, v.below.get(name) > 0 || v.emptyService[name]
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
	h := v.byAddr.get(a.Unmap().WithZone(""))
	return h, h != nil
}

// InPrefixes reports whether a is an address of the mesh.
func (v *View) InPrefixes(a netip.Addr) bool {
	_, ok := in(a.Unmap(), v.Prefixes)
	return ok
}

// FQDN is the canonical name of a host, without a final dot.
func (v *View) FQDN(h *Host) string { return h.Name + "." + v.Zone }
