// SPDX-License-Identifier: MIT

package vpn_test

import (
	"crypto/x509"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
)

// until waits until cond holds, looking again whenever a node's records change, and returns how long that took.
func (n *node) until(t *testing.T, what string, within time.Duration, cond func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	limit := time.After(within)
	for {
		c := n.Changed()
		if cond() {
			return time.Since(begin)
		}
		select {
		case <-c:
		case <-limit:
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

func (n *node) knows(name string) bool {
	for _, r := range n.Records() {
		if r.Node.Name == name {
			return true
		}
	}
	return false
}

// deaf demands that nothing of a reaches b, while ping shows that others do.
func deaf(t *testing.T, a, b, other *node) {
	t.Helper()
	const mark = 0xdead
	for range 5 {
		a.tun.Out <- ipv4(a.v4(), b.v4(), mark)
		ping(t, other, b, 5*time.Second)
	}
	for {
		select {
		case p := <-b.tun.In:
			if len(p) == 28 && binary.BigEndian.Uint32(p[20:]) == mark {
				t.Fatalf("a packet of %s came to %s", a.id.Node.Name, b.id.Node.Name)
			}
			continue
		default:
		}
		return
	}
}

// acquainted is a mesh of nodes that know each other; the first is everybody's neighbour.
func acquainted(t *testing.T, count int) (*mesh, []*node) {
	m := newMesh(t)
	nodes := []*node{m.node(1)}
	for i := 2; i <= count; i++ {
		n := m.node(i, "n1")
		n.introduce(t, nodes[0])
		nodes[0].introduce(t, n)
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.wait(t, count)
	}
	return m, nodes
}

// TestEvict cuts a node off that talks with all others, and lets it try everything to come back.
func TestEvict(t *testing.T) {
	m, nodes := acquainted(t, 5)
	first, gone, others := nodes[0], nodes[4], nodes[:4]
	before := first.Records()
	record := gone.Records()[0].Bytes()
	for _, n := range others {
		ping(t, gone, n, 5*time.Second)
		ping(t, n, gone, 5*time.Second)
	}
	away := others[3]
	away.stop() // with the record of who is evicted meanwhile on its disk
	others = others[:3]

	begin := time.Now()
	if _, err := first.Evict("n5", "stolen"); err != nil {
		t.Fatal(err)
	}
	for _, n := range others {
		n.until(t, n.id.Node.Name+" drops n5", 5*time.Second, func() bool { return !n.knows("n5") })
		t.Logf("%s has dropped n5 after %s", n.id.Node.Name, time.Since(begin))
	}
	gone.until(t, "n5 learns it", 5*time.Second, func() bool { return gone.Evicted(gone.id.Node) })
	if x := gone.Tombstones()[0]; x.By != "n1" || x.Reason != "stolen" {
		t.Errorf("n5 learns: %s", x)
	}
	for _, n := range others { // until the tunnel is gone, see partFor
		limit := time.Now().Add(5 * time.Second)
		for n.HasTunnel(gone.id.WG.PublicKey()) {
			if time.Now().After(limit) {
				t.Fatalf("%s keeps the tunnel", n.id.Node.Name)
			}
			ping(t, others[0], others[1], 5*time.Second)
		}
	}
	t.Logf("all tunnels are gone after %s", time.Since(begin))
	for i, n := range others {
		deaf(t, gone, n, others[(i+1)%len(others)])
		if err := n.Learn(record); err == nil {
			t.Error("the old record is taken")
		}
	}

	// A node that was away knows it only by its old records, and is asked first by who was evicted.
	m.start(away, "n1")
	if !away.knows("n5") {
		t.Fatal("this shows nothing")
	}
	gone.tun.Out <- ipv4(gone.v4(), away.v4(), 1)
	t.Logf("who was away has dropped n5 after %s", away.until(t, "n4 drops n5", 5*time.Second, func() bool { return !away.knows("n5") }))
	others = append(others, away)

	// A restart, with the old records put back on the disk.
	second := others[1]
	second.stop()
	if err := vpn.SaveRecords(second.dir, before); err != nil {
		t.Fatal(err)
	}
	m.start(second, "n1")
	if second.knows("n5") || !second.knows("n3") {
		t.Errorf("after a restart with old records n2 knows %v", second.Records())
	}
	// A lost disk, and a friend of the evicted one who puts its record about.
	third := others[2]
	third.stop()
	for _, f := range []string{"records.cbor", "evicted.cbor"} {
		if err := os.Remove(filepath.Join(third.dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	m.start(third, "n1")
	third.introduce(t, first)
	if err := third.Learn(record); err != nil {
		t.Fatal(err) // or this shows nothing
	}
	t.Logf("who lost its disk has dropped n5 after %s", third.until(t, "n3 drops n5", 8*time.Second, func() bool { return third.Evicted(gone.id.Node) && !third.knows("n5") }))
	for _, n := range others {
		if n.knows("n5") {
			t.Errorf("%s knows n5 again", n.id.Node.Name)
		}
	}

	// It restarts with its old certificate, and can reach nobody.
	gone.stop()
	m.start(gone, "n1", "n2")
	if !gone.Evicted(gone.id.Node) {
		t.Error("after a restart n5 does not know that it was evicted")
	}
	deaf(t, gone, others[0], others[3])

	// A new invitation under the same name works, also while the old certificate tries.
	gone.bind.Move(netip.MustParseAddrPort("203.0.113.5:7655"))
	back := m.node(5, "n1")
	back.introduce(t, first)
	first.introduce(t, back)
	for _, n := range others {
		n.until(t, n.id.Node.Name+" knows the new n5", 5*time.Second, func() bool { return n.knows("n5") })
	}
	ping(t, back, others[3], 5*time.Second)
	ping(t, others[2], back, 5*time.Second)
}

// TestEvictErrors says what cannot be evicted.
func TestEvictErrors(t *testing.T) {
	m := newMesh(t)
	a := m.node(1)
	if _, err := a.Evict("n1", ""); err == nil {
		t.Error("a node evicts itself")
	}
	if _, err := a.Evict("n7", ""); err == nil {
		t.Error("a node that is not known is evicted")
	}
	b := m.node(2)
	a.introduce(t, b)
	if _, err := a.Evict("n2", "a\nb"); err == nil || !a.knows("n2") {
		t.Errorf("with a reason of two lines: %v", err)
	}
	id, err := identity.New(&identity.CA{Cert: m.ca.Cert}, []*x509.Certificate{a.id.Chain[0]}, a.id.Key, a.id.WG)
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.id = id
	m.start(a)
	a.introduce(t, b)
	if _, err := a.Evict("n2", ""); err == nil || !a.knows("n2") {
		t.Errorf("without the mesh's key: %v", err)
	}
}

// TestThousand lets a node join one that knows a thousand others, and says what that takes.
func TestThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the time of a thousand key pairs and tunnels, twice")
	}
	m := newMesh(t)
	a, b := m.node(1), m.node(2, "n1")
	const others = 998
	for i := range others {
		k, wg, err := identity.NewKeys()
		if err != nil {
			t.Fatal(err)
		}
		a6, _ := m.ca.Addr6(&k.PublicKey)
		name := "x" + string(rune('a'+i/26/26)) + string(rune('a'+i/26%26)) + string(rune('a'+i%26))
		c, err := m.ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, byte(1 + i/256), byte(i)}), a6}, &k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.New(m.ca, []*x509.Certificate{c}, k, wg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := id.Record(1, identity.Said{})
		if err == nil {
			err = a.Learn(r.Bytes())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a.introduce(t, b)
	begin := time.Now()
	b.introduce(t, a)
	b.until(t, "all are known", 60*time.Second, func() bool { return len(b.Records()) == others+2 })
	t.Logf("%d records after %s", others+2, time.Since(begin))
}
