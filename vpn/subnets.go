// SPDX-License-Identifier: MIT

package vpn

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// A subnet belongs to one of the nodes that carry it at a time, as the engine's allowed IPs do: to the one with the least
// weight that can be reached. Each node decides that for itself. Addresses of nodes, being longer prefixes, win over
// subnets.

// Event is something that happens on the mesh, as this node sees it.
type Event struct {
	Kind   string          // "host-up", "host-down", "subnet-up", "subnet-down"
	Node   string          // whose
	Remote netip.AddrPort  // host events: where it was reached directly; zero: through others
	Subnet identity.Subnet // subnet events
}

func (n *Node) tellEvent(e Event) {
	if n.cfg.Event != nil {
		n.cfg.Event(e)
	}
}

// owners says whose an address is.
type owners struct {
	addrs   map[netip.Addr]*link.Peer // of peers
	names   map[string]*link.Peer
	subnets []owned // the longest first
}

type owned struct {
	prefix netip.Prefix
	name   string
	peer   *link.Peer // nil: it is none
}

// peer is the one whose address a is.
func (o *owners) peer(a netip.Addr) *link.Peer {
	if p := o.addrs[a]; p != nil {
		return p
	}
	for _, s := range o.subnets {
		if s.prefix.Contains(a) {
			return s.peer
		}
	}
	return nil
}

// subnet is the router of the subnet that a is in.
func (o *owners) subnet(a netip.Addr) string {
	for _, s := range o.subnets {
		if s.prefix.Contains(a) {
			return s.name
		}
	}
	return ""
}

// setOwners makes the table of whose which address is anew. n.mu is held.
func (n *Node) setOwners() {
	o := &owners{addrs: map[netip.Addr]*link.Peer{}, names: maps.Clone(n.peers)}
	for name, p := range n.peers {
		for _, a := range n.records[name].Node.Addrs {
			o.addrs[a] = p
		}
	}
	for prefix, name := range n.routers {
		o.subnets = append(o.subnets, owned{prefix, name, n.peers[name]})
	}
	slices.SortFunc(o.subnets, func(a, b owned) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	n.owners.Store(o)
}

// allowed are the addresses that a peer may use. n.mu is held.
func (n *Node) allowed(name string) (out []netip.Prefix) {
	for _, a := range n.records[name].Node.Addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	for prefix, router := range n.routers {
		if router == name {
			out = append(out, prefix)
		}
	}
	return out
}

// carrier is a node that carries a subnet.
type carrier struct {
	name string
	identity.Subnet
}

// assign gives each subnet to the node that has it now. n.mu is held.
func (n *Node) assign() {
	all := map[netip.Prefix][]carrier{}
	for name, r := range n.records {
		for _, s := range r.Subnets {
			all[s.Prefix] = append(all[s.Prefix], carrier{name, s})
		}
	}
	if len(all) == 0 && len(n.routers) == 0 {
		return
	}
	touched := map[string]bool{}
	give := func(prefix netip.Prefix, to carrier) {
		from := n.routers[prefix]
		if from == to.name {
			return
		}
		if from != "" {
			touched[from] = true
			n.tellEvent(Event{Kind: "subnet-down", Node: from, Subnet: identity.Subnet{Prefix: prefix, Weight: n.weights[prefix]}})
		}
		if to.name == "" {
			delete(n.routers, prefix)
			delete(n.weights, prefix)
			return
		}
		touched[to.name] = true
		n.routers[prefix], n.weights[prefix] = to.name, to.Weight
		n.tellEvent(Event{Kind: "subnet-up", Node: to.name, Subnet: to.Subnet})
		n.cfg.Log.Info("a subnet has a router", "subnet", to.Subnet.String(), "peer", to.name)
	}
	for prefix := range n.routers {
		if all[prefix] == nil {
			give(prefix, carrier{})
		}
	}
	for prefix, c := range all {
		slices.SortFunc(c, func(a, b carrier) int {
			down := func(x carrier) int {
				if n.members[x.name].down && x.name != n.self {
					return 1
				}
				return 0
			}
			own := func(x carrier) int { // what is behind this node is not sent away
				if x.name == n.self {
					return 0
				}
				return 1
			}
			return cmp.Or(cmp.Compare(own(a), own(b)), cmp.Compare(down(a), down(b)), cmp.Compare(a.Weight, b.Weight), cmp.Compare(a.name, b.name))
		})
		give(prefix, c[0])
	}
	if len(touched) == 0 {
		return
	}
	for name := range touched {
		if n.peers[name] != nil {
			if err := n.engine.set(n.records[name].WG, n.allowed(name)); err != nil {
				n.cfg.Log.Warn("the tunnel does not take its subnets", "peer", name, "err", err)
			}
		}
	}
	n.setOwners()
	poke(n.rerouted)
}

// watch notes who can be reached and who cannot, and says so. n.mu is held.
func (n *Node) watch(now time.Time) {
	for name, p := range n.peers {
		m, s := n.members[name], p.Status()
		way := s.Way != (link.Way{})
		lost := !way && (m.up || now.Sub(m.since) > 3*time.Second) // from the beginning it takes a moment
		if way != m.up && (way || lost) {
			m.up = way
			kind := "host-down"
			if way {
				kind = "host-up"
			}
			n.tellEvent(Event{Kind: kind, Node: name, Remote: s.Way.Addr})
		}
		if router := len(n.records[name].Subnets) > 0; router && m.down != lost {
			m.down = lost
			n.refresh(name)
		}
	}
}

// Subnets returns the subnets of the mesh with their routers, as this node uses them.
func (n *Node) Subnets() map[netip.Prefix]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[netip.Prefix]string{}
	for p, name := range n.routers {
		out[p] = name
	}
	return out
}

// outside are the subnets of others that the interface's own prefixes do not cover: the kernel needs routes to them.
// n.mu is held.
func (n *Node) outside() (out []netip.Prefix) {
	for prefix, name := range n.routers {
		inside := slices.ContainsFunc(n.cfg.Prefixes, func(p netip.Prefix) bool { return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) })
		if name != n.self && !inside {
			out = append(out, prefix)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}
