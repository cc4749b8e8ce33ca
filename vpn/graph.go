// SPDX-License-Identifier: MIT

package vpn

import (
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// Graph is the mesh as the nodes' records tell it, with this node's own tunnels as they are now.
type Graph struct {
	Nodes []GraphNode // by name
	Links []GraphLink // by names; A is before B
}

// GraphNode is a node of it.
type GraphNode struct {
	PeerStatus
	Self      bool
	NoRelay   bool
	Reachable bool // from this node, along the links
}

// GraphLink is a direct link between two nodes.
type GraphLink struct {
	A, B string
	Cost time.Duration // round trip, more if it loses packets
	Own  bool          // of this node: measured now
}

// Graph returns the graph as it is now. A link counts if both of its nodes tell of it, or one does and the other's record
// has no room for more: a node that is gone tells of its last links for ever.
func (n *Node) Graph() (g Graph) {
	n.mu.Lock()
	defer n.mu.Unlock()
	type pair struct{ a, b string }
	order := func(a, b string) pair {
		if b < a {
			return pair{b, a}
		}
		return pair{a, b}
	}
	told := map[pair]map[string]time.Duration{} // by which of the two
	for name, r := range n.records {
		for _, l := range r.Links {
			if to := n.byID[link.ID(l.To)]; to != "" && to != name && to != n.self && name != n.self {
				p := order(name, to)
				if told[p] == nil {
					told[p] = map[string]time.Duration{}
				}
				told[p][name] = l.Cost
			}
		}
	}
	full := func(name string) bool { return len(n.records[name].Links) >= identity.MaxLinks }
	for p, by := range told {
		if len(by) > 1 || full(p.a) || full(p.b) {
			g.Links = append(g.Links, GraphLink{A: p.a, B: p.b, Cost: max(by[p.a], by[p.b])})
		}
	}
	for name, p := range n.peers {
		if s := p.Status(); s.Direct {
			o := order(n.self, name)
			g.Links = append(g.Links, GraphLink{A: o.a, B: o.b, Cost: linkCost(s), Own: true})
		}
	}
	slices.SortFunc(g.Links, func(x, y GraphLink) int {
		if c := strings.Compare(x.A, y.A); c != 0 {
			return c
		}
		return strings.Compare(x.B, y.B)
	})

	near := map[string][]string{}
	for _, l := range g.Links {
		near[l.A], near[l.B] = append(near[l.A], l.B), append(near[l.B], l.A)
	}
	reached := map[string]bool{n.self: true}
	for todo := []string{n.self}; len(todo) > 0; todo = todo[1:] {
		for _, name := range near[todo[0]] {
			if !reached[name] {
				reached[name] = true
				todo = append(todo, name)
			}
		}
	}
	for name, r := range n.records {
		x := GraphNode{PeerStatus: n.statusOf(name, nil), Self: name == n.self, NoRelay: r.NoRelay}
		x.Reachable = x.Self || x.Up() || reached[name] && !(x.Active && time.Since(n.members[name].since) > trialLasts)
		g.Nodes = append(g.Nodes, x)
	}
	slices.SortFunc(g.Nodes, func(x, y GraphNode) int { return strings.Compare(x.Name, y.Name) })
	return g
}
