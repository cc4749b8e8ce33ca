// SPDX-License-Identifier: MIT

package vpn

import (
	"math/rand/v2"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// A node may be the neighbour of a thousand others: all that have joined through it have it in Connect. Were each statement pushed
// along each of these links, it would send a thousand copies and get a thousand back. Since the others have neighbours among
// themselves, it is enough that some of them get it, or give it, as long as those are some in each part of the mesh that would be
// apart without this node. Records tell who has whom as a neighbour, so both ends of a link can tell the same. Who is left
// out compares sums with the node soon.

const (
	crowded  = 16 // neighbours; who has more is left out by some
	enough   = 2  // others that are not crowded has who may be left out
	fanout   = 8  // pushes of a statement over such a node's links, each way, into each part of the mesh, on average
	mapLasts = 10 * time.Second
)

// crowd is a node with more than crowded neighbours: in which the parts that the mesh has without it each of them is.
type crowd struct {
	part map[string]int // none: it is never left out
	size []int
}

// crowds is what was found out of whom; it is not looked at again for mapLasts.
type crowds struct {
	at     time.Time
	degree map[link.ID]int // how many records tell of a link to it
	of     map[string]*crowd
}

// fan chooses to whom of its neighbours this node pushes. n.mu is held.
func (n *Node) fan(near []string) []string {
	var out []string
	self := n.crowd(n.self, near)
	for _, name := range near {
		if self.may(name) && n.crowd(name, nil).may(n.self) {
			out = append(out, name)
		}
	}
	return out
}

// may throws the dice for a link between the crowded node and one of its neighbours.
func (c *crowd) may(name string) bool {
	if c == nil {
		return true
	}
	i, ok := c.part[name]
	return !ok || c.size[i] <= fanout || rand.IntN(c.size[i]) < fanout
}

// crowd returns what was found out of a node's neighbours, nil if they are few; near are this node's own. n.mu is held.
func (n *Node) crowd(name string, near []string) *crowd {
	if name == n.self && len(near) <= crowded {
		return nil
	}
	now := time.Now()
	if n.crowds.of == nil || now.Sub(n.crowds.at) > mapLasts {
		n.crowds = crowds{now, degrees(n.records), map[string]*crowd{}}
	}
	if name != n.self && n.crowds.degree[n.members[name].id] <= crowded {
		return nil
	}
	c, ok := n.crowds.of[name]
	if !ok {
		c = newCrowd(name, near, n.crowds.degree, n.records, n.members, n.byID)
		n.crowds.of[name] = c
	}
	return c
}

func tells(r *identity.Record, of link.ID) bool {
	return slices.ContainsFunc(r.Links, func(l identity.Link) bool { return link.ID(l.To) == of })
}

func degrees(records map[string]*identity.Record) map[link.ID]int {
	degree := map[link.ID]int{}
	for _, r := range records {
		for _, l := range r.Links {
			degree[link.ID(l.To)]++
		}
	}
	return degree
}

// newCrowd finds out which of the neighbours of a node are connected without it: near, or where that is nil, those whose records tell
// that they are neighbours. Other links count if both ends tell of them, or one does and the other's record has no room for
// more: a node that is gone tells of its last links for ever. It returns nil if the neighbours are few.
func newCrowd(hub string, near []string, degree map[link.ID]int, records map[string]*identity.Record, members map[string]*member, byID map[link.ID]string) *crowd {
	id := members[hub].id
	if near == nil {
		for name, r := range records {
			if tells(r, id) {
				near = append(near, name)
			}
		}
	}
	if len(near) <= crowded {
		return nil
	}
	up := make(map[string]string, len(records)) // union-find
	root := func(name string) string {
		for {
			next, ok := up[name]
			if !ok {
				return name
			}
			if far, ok := up[next]; ok {
				up[name] = far
			}
			name = next
		}
	}
	for name, r := range records {
		if name == hub {
			continue
		}
		for _, l := range r.Links {
			to := byID[link.ID(l.To)]
			if to == "" || to == hub || to == name || !tells(records[to], members[name].id) && len(records[to].Links) < identity.MaxLinks {
				continue
			}
			if a, b := root(name), root(to); a != b {
				up[a] = b
			}
		}
	}
	c := &crowd{part: make(map[string]int, len(near))}
	parts := map[string]int{}
	for _, name := range near {
		others := 0
		for _, l := range records[name].Links {
			if to := link.ID(l.To); to != id && degree[to] <= crowded {
				others++
			}
		}
		if others < enough {
			continue
		}
		r := root(name)
		i, ok := parts[r]
		if !ok {
			i = len(c.size)
			parts[r] = i
			c.size = append(c.size, 0)
		}
		c.part[name] = i
		c.size[i]++
	}
	return c
}
