// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"mesh.internal/mesh/vpn/link"
)

// A node that is known is a record; one with whom there is something to talk about is a peer: the engine has its keys, and
// the link looks for ways to it. Packets to it, its own probes and being a neighbour make it a peer; silence ends it.

// member is a record with what is derived from it.
type member struct {
	id     link.ID
	rank   uint64                       // as a neighbour of this node
	cands  map[netip.AddrPort]time.Time // where it may be, as it or others told, besides its record; until when
	told   time.Time                    // when this node's candidates were sent to it,
	tells  int                          // how often the same ones,
	said   []netip.AddrPort             // and which
	since  time.Time                    // it is a peer
	missed time.Time                    // something is sent to it, and there is no way
	up     bool                         // it was reached, and that was told
	asked  bool                         // it was asked for a session when sweep came last
	down   bool                         // the router of a subnet, and cannot be reached

	wanted              bool // a stream
	udpSince, noneSince time.Time
	hosts               []netip.AddrPort // its public names, resolved
	echoes, checks      pacer            // answered to it, sent for it
}

const (
	idleAfter   = 5 * time.Minute
	sweepEvery  = 10 * time.Second
	candsLast   = 10 * time.Minute
	tellEvery   = 5 * time.Second
	maxCands    = 8
	maxStranger = 64 // probes of nodes that are no peers yet, waiting
)

// stranger is a probe of a node that is no peer.
type stranger struct {
	id    link.ID
	opens func(*link.Peer) bool
	again func()
}

// knock takes a probe of a node that is no peer; when too many wait, it is dropped, and the node probes again.
func (n *Node) knock(id link.ID, opens func(*link.Peer) bool, again func()) {
	select {
	case n.strangers <- stranger{id, opens, again}:
	default:
	}
}

// admit makes peers of the members whose probes come in, until ctx ends.
func (n *Node) admit(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-n.strangers:
			n.mu.Lock()
			name := n.byID[s.id]
			r, l := n.records[name], n.link
			n.mu.Unlock()
			if r == nil || name == n.self {
				continue
			}
			p, err := l.Peer(name, r.WG)
			if err != nil || !s.opens(p) {
				continue
			}
			n.mu.Lock()
			if n.records[name] == r && n.peers[name] == nil {
				n.activate(name)
				p.Anew()
			}
			n.mu.Unlock()
			s.again()
		}
	}
}

// demand is called before packets for an address are handed to the engine.
func (n *Node) demand(dst netip.Addr) {
	t := n.owners.Load()
	if p := t.peer(dst); p != nil {
		p.Needed(time.Now())
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	name := n.byAddr[dst]
	if name == "" {
		name = t.subnet(dst)
	}
	if name != "" && name != n.self && n.records[name] != nil {
		n.need(name)
	}
}

// need makes a known node a peer to whom somebody wants to send now: the link looks for ways. It returns nil where that
// cannot be. n.mu is held.
func (n *Node) need(name string) *link.Peer {
	p := n.activate(name)
	if p != nil {
		p.Needed(time.Now())
	}
	return p
}

// activate makes a known node a peer. It returns nil where that cannot be. n.mu is held.
func (n *Node) activate(name string) *link.Peer {
	if p := n.peers[name]; p != nil || n.engine == nil {
		return p
	}
	r := n.records[name]
	p, err := n.link.Peer(name, r.WG)
	if err == nil {
		err = n.engine.set(r.WG, n.allowed(name))
	}
	if err != nil {
		n.cfg.Log.Warn("the tunnel cannot be set up", "peer", name, "err", err)
		return nil
	}
	n.peers[name] = p
	n.members[name].since = time.Now()
	n.setOwners()
	n.refresh(name)
	return p
}

// deactivate ends being a peer. n.mu is held.
func (n *Node) deactivate(name string) {
	p := n.peers[name]
	if p == nil || n.engine == nil {
		return
	}
	if err := n.engine.remove(n.records[name].WG); err != nil {
		n.cfg.Log.Warn("the tunnel cannot be taken down", "peer", name, "err", err)
	}
	n.streams.Want(name, nil, false)
	n.link.Forget(p)
	delete(n.peers, name)
	n.members[name].wanted = false
	delete(n.exchanges, name) // what it lacks, a comparison finds again
	n.setOwners()
}

// refresh gives a peer's path what is known of where it is. n.mu is held.
func (n *Node) refresh(name string) {
	p := n.peers[name]
	if p == nil {
		return
	}
	m := n.members[name]
	addrs := append(slices.Clone(m.hosts), n.records[name].Endpoints...)
	now := time.Now()
	for a, until := range m.cands {
		if now.After(until) {
			delete(m.cands, a)
		} else if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	p.Set(addrs, n.routesTo(name, p.Status()), n.isNeighbour(name) || m.down)
}

// sweep ends being a peer where there is nothing to talk about, until ctx ends.
func (n *Node) sweep(ctx context.Context) {
	idle := n.cfg.IdleAfter
	if idle == 0 {
		idle = idleAfter
	}
	for sleep(ctx, sweepEvery) {
		n.mu.Lock()
		for name, p := range n.peers {
			s := p.Status()
			asks := s.Asking && s.RTT > 0
			if asks && n.members[name].asked {
				asks = false
				n.renew(name)
			}
			n.members[name].asked = asks
			if !n.isNeighbour(name) && !s.Kept && !n.members[name].down && time.Since(s.LastSent) > idle && time.Since(s.LastHeard) > idle && time.Since(n.members[name].since) > idle {
				n.deactivate(name)
			}
		}
		n.mu.Unlock()
	}
}

// renew makes the engine forget all of a peer, which answers probes and is asked for a session, and none comes: it may be that
// its clock went back, and the engine takes no handshake with an earlier time than it has seen. n.mu is held.
func (n *Node) renew(name string) {
	r := n.records[name]
	err := n.engine.remove(r.WG)
	if err == nil {
		err = n.engine.set(r.WG, n.allowed(name))
	}
	if err != nil {
		n.cfg.Log.Warn("the tunnel cannot be set up again", "peer", name, "err", err)
		return
	}
	n.cfg.Log.Info("a peer begins no session that is taken; it may begin with an earlier time than before", "peer", name)
}

// suggest takes addresses at which a node may be. n.mu is held.
func (n *Node) suggest(name string, addrs []netip.AddrPort) {
	m := n.members[name]
	if m == nil || name == n.self {
		return
	}
	now := time.Now()
	var fresh []netip.AddrPort
	for _, a := range addrs {
		if !probeable(a) {
			continue
		}
		if _, ok := m.cands[a]; !ok && len(m.cands) >= maxCands {
			var oldest netip.AddrPort
			for b, until := range m.cands {
				if !oldest.IsValid() || until.Before(m.cands[oldest]) {
					oldest = b
				}
			}
			delete(m.cands, oldest)
		}
		m.cands[a] = now.Add(candsLast)
		fresh = append(fresh, a)
	}
	if p := n.peers[name]; p != nil && len(fresh) > 0 {
		n.refresh(name)
		p.Try(fresh...)
	}
}

// probeable reports whether an address may be probed on somebody's word: never this machine's own or everybody's.
func probeable(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.IsValid() && a.Port() != 0 && !ip.IsLoopback() && !ip.IsMulticast() && !ip.IsUnspecified() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Suggest takes an address at which a node was seen, as on the same LAN. It is used when it has answered.
func (n *Node) Suggest(name string, addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.suggest(name, []netip.AddrPort{addr})
}

// tell sends a peer this node's candidates, if it talks to it other than directly; it reports whether it does. n.mu is held.
func (n *Node) tell(name string) bool {
	p, m := n.peers[name], n.members[name]
	s := p.Status()
	if s.Way == (link.Way{}) || s.Way.Addr.IsValid() || time.Since(s.LastSent) > candsLast {
		return false
	}
	cands := n.candidates()
	if !slices.Equal(cands, m.said) {
		m.said, m.tells = cands, 0
	}
	if time.Since(m.told) >= tellEvery<<min(m.tells, 7) { // they are packets like others: at this rate they would never let it be idle
		m.told, m.tells = time.Now(), m.tells+1
		n.send(name, message{Cands: encodeAddrs(cands)})
	}
	return true
}

// candidates are the addresses of this node that its record does not have: as others see it. n.mu is held.
func (n *Node) candidates() (out []netip.AddrPort) {
	own := n.records[n.self].Endpoints
	for _, p := range n.peers {
		if a := p.Status().Seen; a.IsValid() && !slices.Contains(own, a) && !slices.Contains(out, a) && len(out) < maxCands {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

func encodeAddrs(addrs []netip.AddrPort) (out [][]byte) {
	for _, a := range addrs {
		if b, err := a.MarshalBinary(); err == nil {
			out = append(out, b)
		}
	}
	if out == nil {
		out = [][]byte{{}} // none, but the peer is to tell its own
	}
	return out
}

func decodeAddrs(all [][]byte) (out []netip.AddrPort) {
	for _, b := range all[:min(len(all), maxCands)] {
		var a netip.AddrPort
		if a.UnmarshalBinary(b) == nil {
			out = append(out, netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())) // a zone is of the other machine
		}
	}
	return out
}

// PeerStatus is how things stand with another node.
type PeerStatus struct {
	Name      string
	Addrs     []netip.Addr
	Active    bool           // there is a tunnel; others get one with the first packet
	Neighbour bool           // the tunnel is kept
	Endpoint  netip.AddrPort // zero: not directly over UDP now
	Via       []string       // relays, the nearest first
	Stream    bool           // over TLS
	Reason    string         // why this way
	RTT       time.Duration
	Loss      float64 // share of lost probes, 0 to 1
	MTU       int     // bytes of the largest packet inside the tunnel that passes; 0: not measured
	LastHeard time.Time
	Handshake time.Time
	RX, TX    uint64 // bytes
}

// Up reports whether there is a way.
func (s *PeerStatus) Up() bool { return s.Endpoint.IsValid() || s.Stream || len(s.Via) > 0 }

// Peers returns how things stand with every other node, sorted by name.
func (n *Node) Peers() []PeerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var t map[string]traffic
	if n.engine != nil {
		var err error
		if t, err = n.engine.traffic(); err != nil {
			n.cfg.Log.Warn("the tunnels do not tell their traffic", "err", err)
		}
	}
	var out []PeerStatus
	for name := range n.records {
		if name != n.self {
			out = append(out, n.statusOf(name, t))
		}
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// Dropped is how many packets of this machine's programs were dropped since the start: to keep the queue before the tunnels
// short, as any queue that does not grow must, and because it was full.
func (n *Node) Dropped() (late, full uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seam == nil {
		return 0, 0
	}
	return n.seam.dropped()
}

// statusOf is how things stand with a known node; of its traffic, what t has. n.mu is held.
func (n *Node) statusOf(name string, t map[string]traffic) PeerStatus {
	ps := PeerStatus{Name: name, Addrs: n.records[name].Node.Addrs}
	if p := n.peers[name]; p != nil {
		s, tr := p.Status(), t[p.DstToString()]
		ps.Active, ps.Neighbour = true, n.isNeighbour(name) || s.Kept
		ps.Endpoint, ps.Via, ps.Stream = s.Way.Addr, n.names(s.Way.Via), s.Way.Stream
		ps.Reason, ps.RTT, ps.Loss, ps.MTU, ps.LastHeard = s.Reason, s.RTT, s.Loss, inner(s.MTU), s.LastHeard
		ps.Handshake, ps.RX, ps.TX = tr.handshake, tr.rx, tr.tx
	}
	return ps
}

// names are those of a route's relays. n.mu is held.
func (n *Node) names(r link.Route) (out []string) {
	for _, id := range r[:r.Len()] {
		name := n.byID[id]
		if name == "" {
			name = fmt.Sprintf("%x", id)
		}
		out = append(out, name)
	}
	return out
}

// WireGuard's data message around a packet: header and authenticator.
const sealed = 16 + 16

// inner is the largest packet whose sealed form, padded to 16 bytes, has at most size bytes; 0 for 0.
func inner(size int) int {
	if size <= sealed {
		return 0
	}
	return (size - sealed) &^ 15
}

// mtu is the largest packet for an address that passes its way; 0: the interface's.
func (n *Node) mtu(dst netip.Addr) int {
	if p := n.owners.Load().peer(dst); p != nil {
		if mtu := inner(p.MTU()); mtu > 0 && mtu < n.cfg.MTU&^15 {
			return mtu
		}
	}
	return 0
}
