// SPDX-License-Identifier: MIT

package vpn_test

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"mesh.internal/mesh/vpn"
)

// cut loses what goes between the nodes of a pair, both ways.
type cut struct {
	mu    sync.Mutex
	pairs map[[2]netip.Addr]bool
}

func (c *cut) set(a, b *node, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pairs[[2]netip.Addr{a.addr.Addr(), b.addr.Addr()}] = on
	c.pairs[[2]netip.Addr{b.addr.Addr(), a.addr.Addr()}] = on
}

func (c *cut) lost(from, to netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pairs[[2]netip.Addr{from.Addr(), to.Addr()}]
}

// chain is a mesh in which each node reaches only the next one.
func chain(t *testing.T, n int, taps ...func(from, to netip.AddrPort, b []byte)) (*mesh, *cut, []*node) {
	m := newMesh(t)
	m.net.Taps = taps
	c := &cut{pairs: map[[2]netip.Addr]bool{}}
	m.net.Lose(c.lost)
	var nodes []*node
	for i := range n {
		x := m.node(i + 1)
		for j, y := range nodes {
			if j < i-1 {
				c.set(x, y, true)
			}
		}
		nodes = append(nodes, x)
		if i > 0 {
			x.introduce(t, nodes[i-1])
			nodes[i-1].introduce(t, x)
		}
	}
	for _, x := range nodes {
		x.wait(t, n)
	}
	return m, c, nodes
}

func (n *node) way(t *testing.T, to *node) vpn.PeerStatus {
	for _, p := range n.Peers() {
		if p.Name == to.id.Node.Name {
			return p
		}
	}
	t.Fatalf("%s does not know %s", n.id.Node.Name, to.id.Node.Name)
	return vpn.PeerStatus{}
}

func TestRelay(t *testing.T) {
	_, c, n := chain(t, 3)
	t.Logf("first packet after %s", ping(t, n[0], n[2], 5*time.Second))
	t.Logf("back after %s", ping(t, n[2], n[0], 5*time.Second))
	if w := n[0].way(t, n[2]); len(w.Via) != 1 || w.Via[0] != "n2" {
		t.Errorf("n1 reaches n3 by %+v", w)
	}
	c.set(n[0], n[2], false)
	end := time.After(10 * time.Second)
	for !n[0].way(t, n[2]).Endpoint.IsValid() {
		select {
		case <-end:
			t.Fatal("the direct way is not taken")
		default:
			ping(t, n[0], n[2], time.Second)
		}
	}
	c.set(n[0], n[2], true)
	t.Logf("round the cut after %s", ping(t, n[0], n[2], time.Second))
}

func TestRelayOfSeveral(t *testing.T) {
	_, _, n := chain(t, 5)
	t.Logf("first packet after %s", ping(t, n[0], n[4], 10*time.Second))
	ping(t, n[4], n[0], 5*time.Second)
	if w := n[0].way(t, n[4]); len(w.Via) != 3 {
		t.Errorf("n1 reaches n5 by %+v", w)
	}
}

// TestRelaySeesNothing watches what goes through a relay, and sends it again, changed and from elsewhere.
func TestRelaySeesNothing(t *testing.T) {
	evil := netip.MustParseAddrPort("203.0.113.66:1")
	type dg struct {
		from, to netip.AddrPort
		b        []byte
	}
	seen := make(chan dg, 10000)
	m, _, n := chain(t, 3, func(from, to netip.AddrPort, b []byte) {
		if to == evil && len(b) > 92 {
			t.Errorf("%d bytes were sent to a stranger", len(b))
		}
		if from != evil && len(seen) < cap(seen) {
			seen <- dg{from, to, append([]byte(nil), b...)}
		}
	})
	ping(t, n[0], n[2], 5*time.Second)
	ping(t, n[2], n[0], 5*time.Second)
	relayed := 0
	for k := len(seen); k > 0; k-- {
		d := <-seen
		if len(d.b) > 4 && d.b[1] != 0 {
			relayed++
			for i := range d.b { // one bit of the trailer after the other
				if i >= len(d.b)-21 {
					c := append([]byte(nil), d.b...)
					c[i] ^= 1
					m.net.Send(evil, d.to, c)
				}
			}
		}
		m.net.Send(evil, d.to, d.b)
	}
	if relayed == 0 {
		t.Fatal("nothing went through the relay")
	}
	ping(t, n[0], n[2], 5*time.Second)
	for _, x := range n { // each packet was delivered once
		marks := map[uint32]int{}
		for len(x.tun.In) > 0 {
			if p := <-x.tun.In; len(p) == 28 {
				marks[binary.BigEndian.Uint32(p[20:])]++
			}
		}
		for k, v := range marks {
			if v > 1 {
				t.Errorf("packet %x was delivered %d times", k, v)
			}
		}
	}
}
