// SPDX-License-Identifier: MIT

package vpn

import (
	"crypto/x509"
	"log/slog"
	"net/netip"
	"testing"

	"mesh.internal/mesh/vpn/identity"
)

// testNode is a node that does not run, with its mesh's CA.
func testNode(t testing.TB, name string) (*Node, *identity.CA) {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	return nodeOf(t, ca, name, 1), ca
}

func nodeOf(t testing.TB, ca *identity.CA, name string, i byte) *Node {
	k, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	a6, err := ca.Addr6(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, i}), a6}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{Identity: id, Log: slog.New(slog.DiscardHandler), Locals: func() ([]netip.Addr, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.announce(0)
	n.mu.Unlock()
	return n
}

// TestDigests compares what two nodes know: what differs is found, and nothing else.
func TestDigests(t *testing.T) {
	n, ca := testNode(t, "n0")
	known := map[string]*identity.Record{"n0": n.Records()[0]}
	for _, name := range []string{"a", "b", "c", "zz"} {
		known[name] = nodeOf(t, ca, name, 2).Records()[0]
	}
	var all []*identity.Record
	for _, r := range known {
		all = append(all, r)
	}
	for _, d := range digests(all) {
		if push, want := compare(d.Digest, known); len(push)+len(want) != 0 {
			t.Errorf("the same on both sides: push %v, want %v", push, want)
		}
	}
	var pushed int
	for _, d := range digests(nil) {
		push, _ := compare(d.Digest, known)
		pushed += len(push)
	}
	if pushed != len(known) {
		t.Errorf("%d records for somebody who knows nobody, want %d", pushed, len(known))
	}
	var wanted int
	for _, d := range digests(all) {
		_, want := compare(d.Digest, map[string]*identity.Record{"a": known["a"]})
		wanted += len(want)
	}
	if wanted != len(known)-1 {
		t.Errorf("who knows one asks for %d, want %d", wanted, len(known)-1)
	}
}

// FuzzMessage gives a node control messages of a member that is hostile. It must stay as it is.
func FuzzMessage(f *testing.F) {
	n, ca := testNode(f, "n0")
	other := nodeOf(f, ca, "evil", 2)
	if err := n.Learn(other.Records()[0].Bytes()); err != nil {
		f.Fatal(err)
	}
	from := other.cfg.Identity.Node.Addrs[1]
	for _, m := range []message{{Record: other.Records()[0].Bytes()}, {Want: []string{"n0", "x"}}, digests(n.Records())[0]} {
		b, err := encMode.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n.receive(from, b)
		if r := n.Records(); len(r) != 2 || r[0].Node.Name != "n0" || r[1].Node.Name != "evil" {
			t.Fatalf("records are %v", r)
		}
	})
}

// FuzzPacket gives the seam packets of the engine and of the kernel.
func FuzzPacket(f *testing.F) {
	a := netip.MustParseAddr("fd00::1")
	f.Add(packet(a, a, []byte("x")))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		from, ok := source(b)
		if isControl(b) && (!ok || !from.Is6()) {
			t.Fatalf("a control packet from %v", from)
		}
	})
}
