// SPDX-License-Identifier: MIT

package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/vpntest"
)

// Sizes of a scenario.
const (
	nodesMin, nodesMax   = 3, 12
	eventsMin, eventsMax = 6, 16
	eventEvery           = 12 * time.Second // on average
	pairsMax             = 4
)

// network makes the places nodes are at.
type network struct {
	w     *World
	hosts int
	boxes int
	nats  []*vpntest.NAT
}

// public returns an unused address of the internet.
func (n *network) public() netip.Addr {
	n.hosts++
	return netip.AddrFrom4([4]byte{198, 18, byte(n.hosts >> 8), byte(n.hosts)})
}

func (n *network) public6() netip.Addr {
	n.hosts++
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n.hosts >> 8), 15: byte(n.hosts)})
}

// nat makes a NAT box with a LAN. Most LANs have the same prefix, as at home.
func (n *network) nat(outer *vpntest.Segment, kind vpntest.Kind) *vpntest.NAT {
	n.boxes++
	third := byte(1)
	addr := netip.Addr{}
	if outer == n.w.Net.Internet {
		addr = n.public()
	} else { // behind another NAT, whose LAN it must not have
		third, addr = 50, netip.AddrFrom4([4]byte{192, 168, 1, byte(100 + n.boxes)})
	}
	box := outer.NAT(addr, n.link(), kind, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, third, 0}), 24))
	n.nats = append(n.nats, box)
	return box
}

// link is that of an ordinary subscriber.
func (n *network) link() vpntest.Link {
	r := n.w.Rand
	l := vpntest.Link{Delay: time.Duration(1+r.IntN(40)) * time.Millisecond, Jitter: time.Duration(r.IntN(6)) * time.Millisecond}
	if r.IntN(4) == 0 {
		n.w.judge.lossyLinks()
		l.Loss, l.Duplicate, l.Reorder = 0.02*r.Float64(), 0.02*r.Float64(), 0.05*r.Float64()
	}
	n.w.judge.slow(4 * (l.Delay + l.Jitter))
	return l
}

// inside returns an unused address of a box's LAN.
func (n *network) inside(box *vpntest.NAT) (addr netip.Addr) {
	n.hosts++
	p := box.Prefix().Addr().As4()
	p[3] = byte(2 + n.hosts%90)
	return netip.AddrFrom4(p)
}

// kinds that a scenario draws from.
func (n *network) kind() vpntest.Kind {
	k := []vpntest.Kind{vpntest.FullCone, vpntest.AddressRestricted, vpntest.PortRestricted, vpntest.PortRestricted, vpntest.Symmetric}[n.w.Rand.IntN(5)]
	k.Hairpin = n.w.Rand.IntN(2) == 0
	k.NoUDP = n.w.Rand.IntN(10) == 0
	k.Timeout = []time.Duration{30 * time.Second, 2 * time.Minute}[n.w.Rand.IntN(2)]
	return k
}

// place puts a node somewhere: on the internet, behind a NAT of its own, behind one that others are behind, or behind two.
func (n *network) place(node *Node, public bool) {
	r := n.w.Rand
	if public {
		a := n.public()
		node.Host.Attach(n.w.Net.Internet, a, n.link())
		if r.IntN(3) == 0 {
			node.Host.Attach(n.w.Net.Internet, n.public6(), n.link())
		}
		return
	}
	seg, addr, behind := n.lan()
	node.NATs = behind
	node.Host.Attach(seg, addr, vpntest.Link{Delay: time.Millisecond})
}

// lan picks an address of a LAN, old or new.
func (n *network) lan() (*vpntest.Segment, netip.Addr, []*vpntest.NAT) {
	r := n.w.Rand
	switch i := r.IntN(10); {
	case i < 3 && len(n.nats) > 0:
		box := n.nats[r.IntN(len(n.nats))]
		return box.Inside, n.inside(box), n.chain(box)
	case i < 5:
		box := n.nat(n.nat(n.w.Net.Internet, n.kind()).Inside, n.kind())
		return box.Inside, n.inside(box), n.chain(box)
	}
	box := n.nat(n.w.Net.Internet, n.kind())
	return box.Inside, n.inside(box), n.chain(box)
}

// chain is a box and those it is behind.
func (n *network) chain(box *vpntest.NAT) (out []*vpntest.NAT) {
	for b := box; b != nil; b = b.Outer() {
		out = append(out, b)
	}
	return out
}

// Scenario plays what the world's seed says: it makes some nodes in some places, lets some of them talk, does things to them
// for some minutes, heals everything, and waits until it must have become quiet.
func Scenario(w *World) error {
	r := w.Rand
	net := &network{w: w}
	count := nodesMin + r.IntN(nodesMax-nodesMin+1)
	publics := 1 + r.IntN(1+count/2)
	if r.IntN(4) == 0 {
		publics = count
	}
	for i := range count { // all of them first: what runs takes from the same randomness as keys
		n, err := w.Node(w.Net.Host(fmt.Sprintf("n%d", i)))
		if err != nil {
			return err
		}
		net.place(n, i < publics)
		n.Batch = []int{1, 1, 8}[r.IntN(3)]
	}
	var later []*Node  // join in the course of it
	var hosts []string // who invites: public, and running
	for i, n := range w.nodes {
		if i > 1 && r.IntN(6) == 0 {
			later = append(later, n)
			continue
		}
		if i > 0 {
			n.Connect = []string{hosts[r.IntN(len(hosts))]}
		}
		if i < publics {
			hosts = append(hosts, n.Name)
		}
		if err := n.Start(); err != nil {
			return err
		}
		if err := w.join(n); err != nil {
			return err
		}
		w.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
	}
	stranger := w.Stranger(net.public())
	pairs := 0
	for _, i := range r.Perm(count * count) {
		a, b := w.nodes[i/count], w.nodes[i%count]
		if i/count >= i%count {
			continue
		}
		if pairs++; pairs > pairsMax {
			break
		}
		w.Talk(a, b, []int{0, 0, 200, 1300}[r.IntN(4)])
	}
	w.Sleep(10 * time.Second)
	for range eventsMin + r.IntN(eventsMax-eventsMin+1) {
		if err := w.happen(net, &later); err != nil {
			return err
		}
		w.Sleep(eventEvery/4 + time.Duration(r.Int64N(int64(eventEvery)*3/2)))
		a, b, c := w.anyone(), w.anyone(), w.anyone()
		a.Forge(b, c)
		stranger.Replay()
	}
	return w.Calm(later...)
}

func (w *World) anyone() *Node { return w.nodes[w.Rand.IntN(len(w.nodes))] }

// join introduces a node that runs to one that runs, as an invitation does: to the one it connects to if there is a direct
// way, else to any to which there is one, else to the one it connects to.
func (w *World) join(n *Node) error {
	if n.running() == nil {
		return nil
	}
	var best *Node
	rank := 0
	for _, m := range w.nodes {
		if m == n || m.running() == nil {
			continue
		}
		mine, linked := slices.Contains(n.Connect, m.Name), w.judge.linked(n, m, true)
		switch {
		case mine && linked:
			return Introduce(n, m)
		case linked && rank < 2:
			best, rank = m, 2
		case mine && rank < 1:
			best, rank = m, 1
		}
	}
	if best == nil {
		return nil
	}
	return Introduce(n, best)
}

// happen lets one thing happen.
func (w *World) happen(net *network, later *[]*Node) error {
	r := w.Rand
	a, b := w.anyone(), w.anyone()
	switch r.IntN(14) {
	case 0, 1: // a cable is cut
		if a != b {
			w.Cut(a, b)
			w.Cut(b, a)
		}
	case 2: // in one direction
		if a != b {
			w.Cut(a, b)
		}
	case 3, 4:
		w.healAll()
	case 5: // a machine loses its network for a while
		a.Unplug(true)
		w.Sleep(time.Duration(r.IntN(15000)) * time.Millisecond)
		a.Unplug(false)
	case 6: // a power cut
		if a.running() != nil {
			if err := a.Crash(r.IntN(4) == 0); err != nil {
				return err
			}
			w.Sleep(time.Duration(r.IntN(10000)) * time.Millisecond)
			if err := a.Start(); err != nil {
				return err
			}
			return w.join(a) // who lost its disk has what joining left there
		}
	case 7: // a restart
		if a.running() != nil {
			a.Stop()
			return a.Start()
		}
	case 8: // somebody moves
		if len(a.Public) == 0 && a != w.nodes[0] {
			if r.IntN(3) == 0 {
				a.Move(w.Net.Internet, net.public(), net.link())
			} else {
				seg, addr, behind := net.lan()
				a.Move(seg, addr, vpntest.Link{Delay: time.Millisecond}, behind...)
			}
		}
	case 9, 10: // a NAT box is restarted
		if len(net.nats) > 0 {
			box := net.nats[r.IntN(len(net.nats))]
			addr := netip.Addr{}
			if r.IntN(2) == 0 && box.Outer() == nil {
				addr = net.public()
			}
			w.Rebind(box, addr)
		}
	case 11: // two halves
		i := 1 + r.IntN(len(w.nodes)-1)
		w.Part(w.nodes[:i], w.nodes[i:])
		w.Sleep(time.Duration(r.IntN(30000)) * time.Millisecond)
		w.Rejoin(w.nodes[:i], w.nodes[i:])
	case 12: // an hour's sleep
		if r.IntN(8) == 0 {
			w.quietHour(a)
		}
	case 13:
		if len(*later) > 0 {
			n := (*later)[0]
			*later = (*later)[1:]
			return w.late(n)
		}
	}
	return nil
}

// late lets a node join.
func (w *World) late(n *Node) error {
	n.Connect = []string{w.nodes[0].Name}
	if err := n.Start(); err != nil {
		return err
	}
	return w.join(n)
}

func (w *World) healAll() {
	for _, x := range w.nodes {
		for _, y := range w.nodes {
			if w.judge.isCut(x, y) {
				w.Heal(x, y)
			}
		}
	}
}

// quietHour suspends a machine for an hour in which nobody talks. A mesh that has nothing to do must become quiet.
func (w *World) quietHour(n *Node) {
	w.hush(true)
	n.Suspend(true)
	w.Sleep(10 * time.Minute)
	before := w.judge.sent()
	w.Sleep(50 * time.Minute)
	if rate := float64(w.judge.sent()-before) / (50 * time.Minute).Seconds() / float64(len(w.nodes)); rate > idleMost {
		w.judge.wrong("each node sends %.0f B/s while nobody talks", rate)
	}
	n.Suspend(false)
	w.hush(false)
}

func (w *World) hush(on bool) {
	w.judge.mu.Lock()
	defer w.judge.mu.Unlock()
	for _, d := range w.judge.dirs {
		d.paused = on
	}
}

// Calm heals everything, lets those join who have not, starts everybody, and waits until the judge has seen that all have what they must have.
func (w *World) Calm(later ...*Node) error {
	w.healAll()
	for _, n := range later {
		if err := w.late(n); err != nil {
			return err
		}
	}
	for _, n := range w.nodes {
		if n.running() == nil {
			if err := n.Start(); err != nil {
				return err
			}
			if err := w.join(n); err != nil {
				return err
			}
		}
	}
	w.Sleep(convergeIn + time.Second)
	w.judge.bounded(len(w.nodes))
	return nil
}
