// SPDX-License-Identifier: MIT

package vpn_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/netcheck"
)

func TestPing(t *testing.T) {
	_, c, n := chain(t, 3)
	ask := func(name string, wait time.Duration) (vpn.PeerStatus, error) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		rtt, s, err := n[0].Ping(ctx, name)
		if (err == nil) != (rtt > 0) || rtt > wait {
			t.Errorf("ping of %s took %v, %v", name, rtt, err)
		}
		return s, err
	}
	if s, err := ask("n2", 10*time.Second); err != nil || s.Endpoint != n[1].addr {
		t.Errorf("a neighbour: %+v, %v", s, err)
	}
	if s, err := ask("n3", 10*time.Second); err != nil || len(s.Via) != 1 || s.Via[0] != "n2" {
		t.Errorf("through a relay: %+v, %v", s, err)
	}
	for name, want := range map[string]error{"n1": vpn.ErrSelf, "n9": vpn.ErrNoNode} {
		if _, err := ask(name, time.Second); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if name, ok := n[0].NameOf(n[2].v4()); !ok || name != "n3" {
		t.Errorf("the node at %s is %q", n[2].v4(), name)
	}
	p, err := n[0].Paths(t.Context(), "n3")
	if err != nil || len(p.Ways) < 2 || !p.Ways[0].Used || len(p.Ways[0].Via) != 1 || p.Ways[0].Source != vpn.FromMap || !p.Ways[0].Works() {
		t.Errorf("paths: %+v, %v", p, err)
	}
	for _, w := range p.Ways[1:] {
		if w.Endpoint == n[2].addr && (w.Works() || w.Missed == 0 || w.Source != vpn.FromRecord) {
			t.Errorf("the way that is cut: %+v", w)
		}
	}
	c.set(n[0], n[1], true)
	for _, want := range []error{vpn.ErrSilent, vpn.ErrNoWay} { // it is not known to be cut at first
		if _, err = ask("n2", 2*time.Second); !errors.Is(err, want) && !errors.Is(err, vpn.ErrNoWay) {
			t.Errorf("cut: %v, want %v", err, want)
		}
	}
	if !errors.Is(err, vpn.ErrNoWay) {
		t.Errorf("cut for long: %v", err)
	}
}

// TestPingStorm has a member ask for more than its share.
func TestPingStorm(t *testing.T) {
	var answers atomic.Int64
	m := newMesh(t)
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	if _, _, err := a.Ping(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	m.net.Lose(func(from, to netip.AddrPort) bool {
		if from == b.addr {
			answers.Add(1)
		}
		return false
	})
	begin := time.Now()
	for range 4 {
		a.AskEchoes("n2", 100)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		a.Ping(ctx, "n2") // it may be one too many
		cancel()
	}
	if n, most := answers.Load(), 50+50*time.Since(begin).Seconds()+50; n < 50 || float64(n) > most { // and 50 for probes
		t.Errorf("%d answers to 400 echoes", n)
	}
}

func TestGraph(t *testing.T) {
	_, _, n := chain(t, 4)
	ping(t, n[0], n[2], 5*time.Second)
	limit := time.After(30 * time.Second)
	for {
		g := n[0].Graph()
		links := map[[2]string]bool{}
		for _, l := range g.Links {
			if links[[2]string{l.A, l.B}] || l.A >= l.B || l.Own != (l.A == "n1") {
				t.Fatalf("links: %+v", g.Links)
			}
			links[[2]string{l.A, l.B}] = true
		}
		ok := len(g.Nodes) == 4 && len(links) == 3 && links[[2]string{"n1", "n2"}] && links[[2]string{"n2", "n3"}] && links[[2]string{"n3", "n4"}]
		for _, x := range g.Nodes {
			ok = ok && x.Reachable && x.Self == (x.Name == "n1")
		}
		if ok && len(g.Nodes[2].Via) == 1 {
			return
		}
		select {
		case <-limit:
			t.Fatalf("the chain is drawn as %+v", g)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// socket is a net.PacketConn on the network in memory.
type socket struct {
	conn.Bind
	addr    netip.AddrPort
	receive conn.ReceiveFunc
}

// socketAt makes sockets at an IP address, each at another port.
func (m *mesh) socketAt(ip netip.Addr) func(string) (net.PacketConn, error) {
	var port atomic.Uint32
	return func(string) (net.PacketConn, error) {
		a := netip.AddrPortFrom(ip, uint16(40000+port.Add(1)))
		s := &socket{Bind: m.net.Bind(a), addr: a}
		fns, _, err := s.Open(0)
		if err != nil {
			return nil, err
		}
		s.receive = fns[0]
		return s, nil
	}
}

func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	sizes, eps := []int{0}, []conn.Endpoint{nil}
	if _, err := s.receive([][]byte{b}, sizes, eps); err != nil {
		return 0, nil, err
	}
	return sizes[0], net.UDPAddrFromAddrPort(eps[0].(*conn.StdNetEndpoint).AddrPort), nil
}

func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	return len(b), s.Send([][]byte{b}, &conn.StdNetEndpoint{AddrPort: to.(*net.UDPAddr).AddrPort()})
}

func (s *socket) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(s.addr) }
func (s *socket) SetDeadline(time.Time) error      { return nil }
func (s *socket) SetReadDeadline(time.Time) error  { return nil }
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// filter is a firewall before one node that lets packets in from where was sent to.
type filter struct {
	mu   sync.Mutex
	kind netcheck.Behaviour
	at   netip.Addr
	sent map[[2]netip.AddrPort]bool // from, to; with port 0 to any
}

func (f *filter) lost(from, to netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if from.Addr() == f.at {
		f.sent[[2]netip.AddrPort{from, to}] = true
		f.sent[[2]netip.AddrPort{from, netip.AddrPortFrom(to.Addr(), 0)}] = true
		return false
	}
	if to.Addr() != f.at {
		return false
	}
	switch f.kind {
	case netcheck.AddressDependent:
		return !f.sent[[2]netip.AddrPort{to, netip.AddrPortFrom(from.Addr(), 0)}]
	case netcheck.AddressAndPortDependent:
		return !f.sent[[2]netip.AddrPort{to, from}]
	}
	return false
}

func TestNetcheck(t *testing.T) {
	for _, kind := range []netcheck.Behaviour{netcheck.EndpointIndependent, netcheck.AddressDependent, netcheck.AddressAndPortDependent} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			f := &filter{kind: kind, at: netip.MustParseAddr("192.0.2.1"), sent: map[[2]netip.AddrPort]bool{}}
			m.net.Lose(f.lost)
			var nodes []*node
			for i := range 3 {
				nodes = append(nodes, m.node(i+1))
			}
			for _, x := range nodes {
				for _, y := range nodes {
					if x != y {
						x.introduce(t, y)
					}
				}
			}
			me := nodes[0]
			c, err := me.Netcheck(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o := c.IPv4
			if o.Mapping != netcheck.NoNAT || o.Filtering != kind || o.Answered != 2 || o.Asked != 2 || len(o.Seen) != 2 || len(o.Addrs) != 1 {
				t.Errorf("found %+v", o)
			}
			if len(c.Peers) != 2 || c.Peers[0].Name != "n2" || c.Peers[0].Direct4 == 0 || c.Peers[0].Direct6 != 0 {
				t.Errorf("peers: %+v", c.Peers)
			}
			if me.Found() == nil {
				t.Error("nothing is kept")
			}
		})
	}
}

// TestCheckBounds has a member ask another to send to somebody who did not ask, and to itself too often.
func TestCheckBounds(t *testing.T) {
	victim := netip.MustParseAddrPort("203.0.113.66:53")
	var hit, own atomic.Int64
	m := newMesh(t)
	mine := netip.MustParseAddrPort("192.0.2.1:4000")
	m.net.Taps = append(m.net.Taps, func(from, to netip.AddrPort, _ []byte) {
		switch {
		case to == mine:
			own.Add(1)
		case to.Port() != 7655:
			hit.Add(1)
		}
	})
	a, b := m.node(1), m.node(2)
	a.introduce(t, b)
	b.introduce(t, a)
	if _, _, err := a.Ping(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		for _, to := range []netip.AddrPort{victim, netip.MustParseAddrPort("255.255.255.255:9"), netip.MustParseAddrPort("224.0.0.1:9"), netip.MustParseAddrPort("127.0.0.1:9"), {}} {
			a.AskCheck("n2", to)
		}
	}
	if _, _, err := a.Ping(t.Context(), "n2"); err != nil { // all came before this
		t.Fatal(err)
	}
	for range 20 {
		a.AskCheck("n2", mine)
	}
	if _, _, err := a.Ping(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if n := hit.Load(); n != 0 {
		t.Errorf("%d frames to others than who asked", n)
	}
	if n := own.Load(); n != 1 {
		t.Errorf("%d frames at once to who asked", n)
	}
}
