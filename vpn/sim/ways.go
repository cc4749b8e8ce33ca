// SPDX-License-Identifier: MIT

package sim

import (
	"net/netip"
	"slices"

	"mesh.internal/mesh/vpn/vpntest"
)

// ways is which nodes can reach which, as the network is and as they know each other.
type ways struct {
	lives  []*life // nil: it does not run
	asleep []bool
	at     [][]netip.AddrPort    // where a node is
	udp    [][]int               // those to whom packets go directly, over UDP
	tcp    [][]int               // or over TCP
	known  []map[int]knownRecord // by observer, then by node
	dist   [][]int               // links between two nodes, over nodes that know each other; none: far
	quick  [][]int               // the same where all links are over UDP
}

// knownRecord is what one node knows of another.
type knownRecord struct {
	seq uint64
	at  []netip.AddrPort
}

const far = 1 << 20

// survey finds the direct ways: one of two nodes can send to an address that the other announces, and the answer can come
// back. What needs a hole punched does not count. NAT mappings are taken to be fresh.
func (j *judge) survey(nodes []*Node) *ways {
	n := len(nodes)
	w := &ways{lives: make([]*life, n), asleep: make([]bool, n), at: make([][]netip.AddrPort, n), udp: make([][]int, n), tcp: make([][]int, n),
		known: make([]map[int]knownRecord, n), dist: make([][]int, n), quick: make([][]int, n)}
	for i, x := range nodes {
		x.mu.Lock()
		w.lives[i], w.asleep[i] = x.life, x.suspended
		x.mu.Unlock()
		w.known[i], w.at[i] = map[int]knownRecord{}, x.addresses()
	}
	for i, a := range nodes {
		for k, b := range nodes {
			switch {
			case i == k || w.lives[i] == nil || w.lives[k] == nil || j.isCut(a, b) || j.isCut(b, a):
			case j.reaches(a, b, false):
				w.udp[i] = append(w.udp[i], k)
			case j.reaches(a, b, true):
				w.tcp[i] = append(w.tcp[i], k)
			}
		}
	}
	return w
}

// measure counts links, when it is known who knows whom.
func (w *ways) measure() {
	links := func(out [][]int, of [][]int) {
		for i := range of {
			for _, k := range of[i] {
				if w.finds(i, k) && w.knows(k, i) {
					out[i], out[k] = append(out[i], k), append(out[k], i)
				}
			}
		}
	}
	count := func(dist, links [][]int) {
		for i := range dist {
			dist[i] = slices.Repeat([]int{far}, len(dist))
			dist[i][i] = 0
			for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
				at := queue[0]
				for _, k := range links[at] {
					if dist[i][k] == far {
						dist[i][k] = dist[i][at] + 1
						queue = append(queue, k)
					}
				}
			}
		}
	}
	all := make([][]int, len(w.lives))
	links(all, w.udp)
	count(w.quick, all)
	links(all, w.tcp)
	count(w.dist, all)
}

// finds reports whether one node knows where another is: who has moved out of everybody's reach is found by nobody.
func (w *ways) finds(i, k int) bool {
	return slices.ContainsFunc(w.known[i][k].at, func(a netip.AddrPort) bool { return slices.Contains(w.at[k], a) })
}

// linked reports whether two nodes have a direct way.
func (j *judge) linked(a, b *Node, tcp bool) bool {
	j.mu.Lock()
	cut := j.cuts[[2]*vpntest.Host{a.Host, b.Host}] || j.cuts[[2]*vpntest.Host{b.Host, a.Host}]
	j.mu.Unlock()
	return !cut && (j.reaches(a, b, tcp) || j.reaches(b, a, tcp))
}

func (j *judge) reaches(a, b *Node, tcp bool) bool {
	for _, ap := range b.addresses() {
		if j.net.Reaches(a.Host, ap, tcp) == b.Host {
			return true
		}
	}
	return false
}

// addresses returns what the node announces.
func (n *Node) addresses() (out []netip.AddrPort) {
	for _, p := range n.Public {
		if ap, err := netip.ParseAddrPort(p); err == nil {
			out = append(out, ap)
		}
	}
	for _, a := range n.Host.Addrs() {
		out = append(out, netip.AddrPortFrom(a, Port))
	}
	return out
}

func (w *ways) life(i int) *life {
	if i >= len(w.lives) {
		return nil // made since
	}
	return w.lives[i]
}

func (w *ways) hops(i, k int) int { return w.dist[i][k] }

func (w *ways) learn(i, k int, r knownRecord) {
	if i < len(w.known) {
		w.known[i][k] = r
	}
}

func (w *ways) knows(i, k int) bool { return w.known[i][k].seq != 0 }

// complete reports whether every two that run have a direct way.
func (w *ways) complete() bool {
	for i, row := range w.dist {
		for k, d := range row {
			if w.lives[i] != nil && w.lives[k] != nil && d > 1 {
				return false
			}
		}
	}
	return true
}
