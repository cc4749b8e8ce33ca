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
	udp    [][]int          // those to whom there is a direct way over UDP
	linked [][]int          // and those to whom there is one over TCP
	seqs   []map[int]uint64 // by observer, then by node: the sequence of the record it has
	dist   [][]int          // links between two nodes, over nodes that know each other; none: far
	quick  [][]int          // the same where all links are over UDP
}

const far = 1 << 20

// survey finds the direct ways: one of two nodes can send to an address that the other announces, and the answer can come
// back. What needs a hole punched does not count. NAT mappings are taken to be fresh.
func (j *judge) survey(nodes []*Node) *ways {
	n := len(nodes)
	w := &ways{lives: make([]*life, n), asleep: make([]bool, n), udp: make([][]int, n), linked: make([][]int, n), seqs: make([]map[int]uint64, n), dist: make([][]int, n), quick: make([][]int, n)}
	for i, x := range nodes {
		x.mu.Lock()
		w.lives[i], w.asleep[i] = x.life, x.suspended
		x.mu.Unlock()
		w.seqs[i] = map[int]uint64{}
	}
	for i := range nodes {
		for k := range i {
			if w.lives[i] == nil || w.lives[k] == nil {
				continue
			}
			if j.linked(nodes[i], nodes[k], false) {
				w.udp[i], w.udp[k] = append(w.udp[i], k), append(w.udp[k], i)
				w.linked[i], w.linked[k] = append(w.linked[i], k), append(w.linked[k], i)
			} else if j.linked(nodes[i], nodes[k], true) {
				w.linked[i], w.linked[k] = append(w.linked[i], k), append(w.linked[k], i)
			}
		}
	}
	return w
}

// measure counts links, when seqs are known.
func (w *ways) measure() {
	count := func(dist, links [][]int) {
		for i := range dist {
			dist[i] = slices.Repeat([]int{far}, len(dist))
			dist[i][i] = 0
			for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
				at := queue[0]
				for _, k := range links[at] {
					if dist[i][k] == far && w.knows(at, k) && w.knows(k, at) {
						dist[i][k] = dist[i][at] + 1
						queue = append(queue, k)
					}
				}
			}
		}
	}
	count(w.dist, w.linked)
	count(w.quick, w.udp)
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

func (w *ways) learn(i, k int, seq uint64) {
	if i < len(w.seqs) {
		w.seqs[i][k] = seq
	}
}

func (w *ways) knows(i, k int) bool { return w.seqs[i][k] != 0 }

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
