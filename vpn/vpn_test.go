// SPDX-License-Identifier: MIT

package vpn_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/vpntest"
)

var prefix4 = netip.MustParsePrefix("10.11.0.0/16")

// mesh is nodes in memory.
type mesh struct {
	t   *testing.T
	ca  *identity.CA
	net *vpntest.Net

	allow  []netip.Prefix    // subnets in the certificates of the next nodes
	config func(*vpn.Config) // changes the configuration of the next nodes
}

type node struct {
	*vpn.Node
	id   *identity.Identity
	dir  string
	addr netip.AddrPort
	bind *vpntest.Bind
	tun  *vpntest.TUN
	stop func()
}

func newMesh(t *testing.T) *mesh {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{t: t, ca: ca, net: vpntest.NewNet()}
}

func (m *mesh) node(i int, connect ...string) *node {
	m.t.Helper()
	return m.nodeIn(i, m.t.TempDir(), connect...)
}

func (m *mesh) nodeIn(i int, dir string, connect ...string) *node {
	m.t.Helper()
	name := fmt.Sprintf("n%d", i)
	k, wg, err := identity.NewKeys()
	if err != nil {
		m.t.Fatal(err)
	}
	a6, err := m.ca.Addr6(&k.PublicKey)
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := m.ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(i)}), a6}, &k.PublicKey, m.allow...)
	if err != nil {
		m.t.Fatal(err)
	}
	id, err := identity.New(m.ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		m.t.Fatal(err)
	}
	n := &node{id: id, dir: dir, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7655)}
	m.start(n, connect...)
	return n
}

func (m *mesh) start(n *node, connect ...string) {
	m.t.Helper()
	n.bind, n.tun = m.net.Bind(n.addr), vpntest.NewTUN()
	var err error
	c := vpn.Config{Identity: n.id, Prefixes: []netip.Prefix{prefix4, m.ca.Prefix6()}, Port: 7655, Connect: connect,
		StateDir: n.dir, MTU: 1380, TUN: n.tun, Bind: n.bind, Log: slog.New(slog.DiscardHandler),
		Locals: func() ([]netip.Addr, error) { return []netip.Addr{n.addr.Addr()}, nil }, Socket: m.socketAt(n.addr.Addr())}
	if m.config != nil {
		m.config(&c)
	}
	n.Node, err = vpn.New(c)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			m.t.Error(err)
		}
	}
	m.t.Cleanup(n.stop)
	<-n.Ready()
}

func (n *node) introduce(t *testing.T, other *node) {
	t.Helper()
	if err := n.Learn(other.Records()[0].Bytes()); err != nil {
		t.Fatal(err)
	}
}

func ipv4(src, dst netip.Addr, mark uint32) []byte {
	b := make([]byte, 28)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint32(b[20:], mark)
	return b
}

func (n *node) v4() netip.Addr { return n.id.Node.Addrs[0] }

// ping sends a packet from a to b, again each 100 ms as ping does, until b's kernel has it.
func ping(t *testing.T, a, b *node, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	mark := uint32(start.UnixNano())
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	limit := time.After(within)
	for {
		a.tun.Out <- ipv4(a.v4(), b.v4(), mark)
		for wait := true; wait; {
			select {
			case p := <-b.tun.In:
				if len(p) == 28 && binary.BigEndian.Uint32(p[20:]) == mark {
					return time.Since(start)
				}
			case <-again.C:
				wait = false
			case <-limit:
				t.Fatalf("%s does not reach %s within %s", a.id.Node.Name, b.id.Node.Name, within)
			}
		}
	}
}

// wait waits until the node knows as many nodes.
func (n *node) wait(t *testing.T, known int) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		c := n.Changed()
		if len(n.Records()) >= known {
			return
		}
		select {
		case <-c:
		case <-limit:
			t.Fatalf("%s knows %d nodes, want %d", n.id.Node.Name, len(n.Records()), known)
		}
	}
}

func TestTwoWhoNeverMet(t *testing.T) {
	m := newMesh(t)
	spencer := m.node(1)
	bkero, nibz := m.node(2, "n1"), m.node(3, "n1")
	for _, n := range []*node{bkero, nibz} { // what joining does
		n.introduce(t, spencer)
		spencer.introduce(t, n)
	}
	bkero.wait(t, 3)
	nibz.wait(t, 3)
	t.Logf("first packet after %s", ping(t, bkero, nibz, 5*time.Second))
	ping(t, nibz, bkero, 5*time.Second)
	spencer.stop()
	ping(t, bkero, nibz, 5*time.Second)
	for _, p := range bkero.Peers() {
		if p.Name == "n3" && (p.Endpoint != nibz.addr || p.RX == 0 || p.TX == 0) {
			t.Errorf("bkero's way to nibz: %+v", p)
		}
	}
	// A restart knows everybody from the disk, with nobody to ask.
	nibz.stop()
	if _, err := os.Stat(filepath.Join(nibz.dir, "records.cbor")); err != nil {
		t.Fatal(err)
	}
	m.start(nibz, "n1")
	if len(nibz.Records()) != 3 {
		t.Fatalf("after a restart nibz knows %d nodes", len(nibz.Records()))
	}
	ping(t, nibz, bkero, 20*time.Second)
}

func TestRoaming(t *testing.T) {
	m := newMesh(t)
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	ping(t, a, b, 5*time.Second)
	b.bind.Move(netip.MustParseAddrPort("198.51.100.7:4242")) // as behind a NAT that has forgotten: b itself notices nothing
	t.Logf("b reaches a after %s", ping(t, b, a, 10*time.Second))
	t.Logf("a reaches b after %s", ping(t, a, b, 10*time.Second))
}

// TestRestart restarts one of two who talk, with new sessions and the same keys: the other, who still has the old
// session, notices by its probes.
func TestRestart(t *testing.T) {
	m := newMesh(t)
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	ping(t, a, b, 5*time.Second)
	ping(t, b, a, 5*time.Second)
	for _, n := range []*node{a, b} { // one of them begins handshakes, the other does not
		other := a
		if n == a {
			other = b
		}
		n.stop()
		m.start(n)
		t.Logf("%s is reached after %s", n.id.Node.Name, ping(t, other, n, 12*time.Second))
		ping(t, n, other, time.Second)
	}
}

// retained are the engine's peers of tests in bubbles, whose finalizers would read the bubbles' channels from outside.
var retained sync.Map

// TestClockGoesBack has a node's clock put back by an hour, and the node begun anew: what it begins its handshakes with is earlier
// than what the other has seen, which refuses them until it sets the peer up anew.
func TestClockGoesBack(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.config = func(c *vpn.Config) {
			c.Retain = func(peer any) { retained.Store(peer, true) }
		}
		for i := range dirs { // with a round trip of more than nothing
			at := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
			m.net.Host(at.String()).Attach(m.net.Internet, at, vpntest.Link{Delay: 5 * time.Millisecond})
		}
		a, b := m.nodeIn(1, dirs[0]), m.nodeIn(2, dirs[1])
		a.introduce(t, b)
		b.introduce(t, a)
		ping(t, a, b, 5*time.Second)
		begins, other := a, b // by the smaller key
		if bytes.Compare(a.id.WG.PublicKey().Bytes(), b.id.WG.PublicKey().Bytes()) > 0 {
			begins, other = b, a
		}
		other.SawLater(begins.id.WG.PublicKey(), time.Now().Add(time.Hour))
		begins.stop()
		m.start(begins)
		took := ping(t, other, begins, 30*time.Second)
		t.Logf("reached after %s", took)
		if took < 5*time.Second {
			t.Error("the handshake was not refused: this tests nothing")
		}
		ping(t, begins, other, 5*time.Second)
		a.stop()
		b.stop()
	})
}

func TestForgedSource(t *testing.T) {
	m := newMesh(t)
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	ping(t, a, b, 5*time.Second)
	a.tun.Out <- ipv4(netip.MustParseAddr("10.11.0.99"), b.v4(), 666)
	ping(t, a, b, 5*time.Second) // in order: had the forged one passed, it would have come first
	for {
		select {
		case p := <-b.tun.In:
			if binary.BigEndian.Uint32(p[20:]) == 666 {
				t.Fatal("a packet from an address that is not the sender's came through")
			}
			continue
		default:
		}
		break
	}
}

// TestReplay sends every datagram of a conversation again, from elsewhere: nothing may be drawn there.
func TestReplay(t *testing.T) {
	m := newMesh(t)
	evil := netip.MustParseAddrPort("203.0.113.66:1")
	type dg struct {
		to netip.AddrPort
		b  []byte
	}
	seen := make(chan dg, 10000)
	m.net.Taps = append(m.net.Taps, func(from, to netip.AddrPort, b []byte) {
		switch {
		case from == evil:
		case to == evil && len(b) != 92:
			t.Errorf("%d bytes were sent to whoever replayed", len(b))
		default:
			select {
			case seen <- dg{to, append([]byte(nil), b...)}:
			default:
			}
		}
	})
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	ping(t, a, b, 5*time.Second)
	ping(t, b, a, 5*time.Second)
	for n := len(seen); n > 0; n-- {
		d := <-seen
		m.net.Send(evil, d.to, d.b)
	}
	ping(t, a, b, 5*time.Second)
	ping(t, b, a, 5*time.Second)
	if e := a.Peers()[0].Endpoint; e != b.addr {
		t.Errorf("a sends to %s", e)
	}
}

func TestDamagedRecords(t *testing.T) {
	m := newMesh(t)
	n := m.node(1)
	n.stop()
	f := filepath.Join(n.dir, "records.cbor")
	if err := os.WriteFile(f, []byte("\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start(n)
	if _, err := os.Stat(f + ".bad"); err != nil {
		t.Error(err)
	}
}
