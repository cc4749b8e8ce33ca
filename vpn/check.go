// SPDX-License-Identifier: MIT

package vpn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/link"
	"mesh.internal/mesh/vpn/netcheck"
	"mesh.internal/mesh/vpn/portmap"
)

// A check finds out what kind of network this node is in, by members that it reaches directly over UDP. It sends from
// sockets of its own, so that nothing that a NAT remembers of the tunnels blurs the picture: one asks several members
// where they see it, which tells how a NAT maps; another speaks to one member only, and that one answers from another
// port and others from where nothing was sent to, which tells how it filters.
//
// What a member may have others send is little: a frame of 92 bytes for one of its own or a control message, once a second
// for each member and checksFast a second in all, and only to the address it asks from, or, where it names one, to an IP
// address at which this node itself reaches that member.

// Netcheck is what a check has found.
type Netcheck struct {
	IPv4, IPv6 Outside
	Peers      []PeerCheck      // by name; at most maxChecked
	Routers    []portmap.Answer // which protocols they speak
	RoutersErr error            // why there are no answers; ErrNotAsked if none are wanted
	Mapped     []netip.AddrPort // what they pass on to this node now
}

// ErrNotAsked says that routers are not to be asked for port mappings.
var ErrNotAsked = errors.New("it is switched off")

// Outside is one address family of the network outside.
type Outside struct {
	Addrs     []netip.Addr           // this machine's
	Seen      []netcheck.Observation // of the port of the tunnels
	Answered  int                    // addresses of members that answered directly
	Asked     int                    // of so many
	Mapping   netcheck.Behaviour     // of another port
	Filtering netcheck.Behaviour     // the same; Unknown where nobody could be asked
}

// PeerCheck is a member as the check found it.
type PeerCheck struct {
	PeerStatus
	Direct4, Direct6 time.Duration // round trip of the best direct way of each kind; 0: none
	NoRelay          bool
}

const (
	maxChecked   = 32 // nodes that a check talks to
	maxObservers = 6  // of an address family
	askEvery     = 200 * time.Millisecond
	askTimes     = 4
	checkEvery   = time.Second // for one member
	checksFast   = 8           // for all in a second
	filterRounds = 3           // a little longer than checkEvery each
)

// checkRequest asks a member to send a frame to where it has not been spoken to from.
type checkRequest struct {
	To     []byte `cbor:"1,keyasint"`
	Number uint64 `cbor:"2,keyasint"`
}

// checks is what a node keeps of its own checks and those that it helps with.
type checks struct {
	running   sync.Mutex     // while one of its own goes on
	elsewhere chan elsewhere // from the link's goroutines
	others    pacer          // guarded by Node.mu, as is
	last      *Netcheck
}

// elsewhere is a frame to be sent from another port.
type elsewhere struct {
	id    link.ID
	frame []byte
	to    netip.AddrPort
}

// mayCheck reports whether something is to be sent for a member's check. n.mu is held.
func (n *Node) mayCheck(name string, to netip.AddrPort) bool {
	m, now := n.members[name], time.Now()
	return m != nil && probeable(to) && to.Addr().IsGlobalUnicast() && m.checks.may(now, checkEvery, 1) &&
		n.checks.others.may(now, time.Second/checksFast, checksFast)
}

// askedElsewhere takes a member's wish for a frame from another port; when too many wait, it is dropped.
func (n *Node) askedElsewhere(p *link.Peer, frame []byte, to netip.AddrPort) {
	select {
	case n.checks.elsewhere <- elsewhere{p.ID(), frame, to}:
	default:
	}
}

// answerElsewhere sends what members ask for from another port, until ctx ends.
func (n *Node) answerElsewhere(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-n.checks.elsewhere:
			n.mu.Lock()
			may := n.mayCheck(n.byID[e.id], e.to)
			n.mu.Unlock()
			if !may {
				continue
			}
			s, err := n.socket(family(e.to.Addr()))
			if err != nil {
				n.cfg.Log.Debug("no socket for a member's check", "err", err)
				continue
			}
			s.WriteTo(e.frame, net.UDPAddrFromAddrPort(e.to))
			s.Close()
		}
	}
}

// check does what a member's check asks for: one frame to an address that is its own as far as this node can tell. It returns
// what that has cost. n.mu is held.
func (n *Node) check(sender string, q *checkRequest) (cost int) {
	var to netip.AddrPort
	if q == nil || to.UnmarshalBinary(q.To) != nil {
		return 0
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	p := n.peers[sender]
	if p == nil || !slices.ContainsFunc(p.Ways(), func(w link.WayStatus) bool { return w.Confirmed && w.Way.Addr.Addr() == to.Addr() }) || !n.mayCheck(sender, to) {
		return costAnswer
	}
	p.Tell(q.Number, netip.AddrPort{}, to)
	n.send(sender, message{Echoed: q.Number})
	return costVerify
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

func (n *Node) socket(network string) (net.PacketConn, error) {
	if n.cfg.Socket != nil {
		return n.cfg.Socket(network)
	}
	return net.ListenPacket(network, ":0")
}

// Netcheck checks the network, which takes up to 7 s. It makes up to maxChecked nodes peers.
func (n *Node) Netcheck(ctx context.Context) (out Netcheck, err error) {
	if !n.checks.running.TryLock() {
		return out, errors.New("a check of the network goes on already: try again in some seconds")
	}
	defer n.checks.running.Unlock()
	names := n.checked()
	if len(names) == 0 {
		return out, errors.New("there is no other node yet to check the network with")
	}
	if err := n.look(ctx, names); err != nil {
		return out, err
	}
	locals, err := n.cfg.Locals()
	if err != nil {
		return out, err
	}
	var see [2][]observer
	of := func(a netip.Addr) (int, *Outside) {
		if a.Is4() {
			return 0, &out.IPv4
		}
		return 1, &out.IPv6
	}
	for _, a := range locals {
		_, o := of(a)
		o.Addrs = append(o.Addrs, a)
	}
	n.mu.Lock()
	l, mapper := n.link, n.mapper
	out.Mapped = n.mapped()
	for _, name := range names {
		r, p := n.records[name], n.peers[name]
		if r == nil || p == nil {
			continue
		}
		c := PeerCheck{PeerStatus: n.statusOf(name, nil), NoRelay: r.NoRelay}
		for _, w := range p.Ways() {
			a := w.Way.Addr
			if !a.IsValid() {
				continue
			}
			i, o := of(a.Addr())
			o.Asked++
			if !w.Confirmed || w.Missed > 0 {
				continue
			}
			o.Answered++
			best := [...]*time.Duration{&c.Direct4, &c.Direct6}[i]
			if *best == 0 || w.RTT < *best {
				*best = w.RTT
			}
			if w.Mapped.IsValid() {
				o.Seen = append(o.Seen, netcheck.Observation{Peer: name, Local: n.localOf(locals, nil, a, w.Mapped), Observer: a, Mapped: w.Mapped})
			}
			see[i] = append(see[i], observer{name, p, a})
		}
		out.Peers = append(out.Peers, c)
	}
	n.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		if mapper == nil {
			out.RoutersErr = ErrNotAsked
			return
		}
		out.Routers, out.RoutersErr = mapper.Probe(ctx)
	})
	for i, o := range []*Outside{&out.IPv4, &out.IPv6} {
		slices.SortFunc(o.Seen, func(a, b netcheck.Observation) int {
			return cmp.Or(a.Mapped.Compare(b.Mapped), strings.Compare(a.Peer, b.Peer))
		})
		if len(see[i]) > 0 {
			wg.Go(func() {
				k := kinds{n: n, link: l, locals: locals, network: []string{"udp4", "udp6"}[i], see: observers(see[i])}
				if err := k.find(ctx); err != nil {
					n.cfg.Log.Debug("the kind of network is not known", "err", err)
				}
				o.Mapping, o.Filtering = netcheck.Mapping(k.seen), netcheck.Filtering(k.probes)
				if o.Mapping == netcheck.Unknown { // members of an older version
					o.Mapping = netcheck.Mapping(o.Seen)
				}
			})
		}
	}
	wg.Wait()
	n.mu.Lock()
	n.checks.last = &out
	n.mu.Unlock()
	return out, ctx.Err()
}

// Found is the last check's result, nil if there was none.
func (n *Node) Found() *Netcheck {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.checks.last
}

// checked chooses the nodes to check with: peers first, then those that say they are public, then the rest, by name.
func (n *Node) checked() (names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range n.records {
		if name != n.self {
			names = append(names, name)
		}
	}
	rank := func(name string) int {
		switch {
		case n.peers[name] != nil:
			return 0
		case Public(n.records[name]):
			return 1
		}
		return 2
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
	names = names[:min(len(names), maxChecked)]
	slices.Sort(names)
	return names
}

// localOf is the address that a packet to an observer leaves from: that of the socket, or, nil, of the tunnels' port.
func (n *Node) localOf(locals []netip.Addr, s net.PacketConn, to, mapped netip.AddrPort) netip.AddrPort {
	at := netip.AddrPortFrom(netip.Addr{}, uint16(n.cfg.Port))
	if s != nil {
		at = s.LocalAddr().(*net.UDPAddr).AddrPort()
		at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() {
		return at
	}
	if slices.Contains(locals, mapped.Addr()) {
		return netip.AddrPortFrom(mapped.Addr(), at.Port())
	}
	c, err := net.Dial(family(to.Addr()), to.String()) // sends nothing; the kernel looks for a route
	if err != nil {
		return at
	}
	defer c.Close()
	return netip.AddrPortFrom(c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), at.Port())
}

// observer is a member that this node reaches directly.
type observer struct {
	name string
	peer *link.Peer
	addr netip.AddrPort
}

// observers chooses some, each at another IP address, those in the Internet first.
func observers(all []observer) (out []observer) {
	near := func(a netip.Addr) int {
		if a.IsPrivate() || sharedSpace.Contains(a) {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b observer) int {
		return cmp.Or(near(a.addr.Addr())-near(b.addr.Addr()), strings.Compare(a.name, b.name), a.addr.Compare(b.addr))
	})
	for _, o := range all {
		if len(out) < maxObservers && !slices.ContainsFunc(out, func(x observer) bool { return x.addr.Addr() == o.addr.Addr() }) {
			out = append(out, o)
		}
	}
	return out
}

// kinds is a check of one address family.
type kinds struct {
	n       *Node
	link    *link.Link
	network string
	locals  []netip.Addr
	see     []observer
	seen    []netcheck.Observation
	probes  []netcheck.Probe
}

// told is what came to a socket.
type told struct {
	number uint64
	from   *link.Peer
	seen   netip.AddrPort
}

// open makes a socket, and gives what comes to it to a channel until it is closed.
func (k *kinds) open(wg *sync.WaitGroup) (net.PacketConn, <-chan told, error) {
	s, err := k.n.socket(k.network)
	if err != nil {
		return nil, nil, fmt.Errorf("a socket for the check: %w", err)
	}
	in := make(chan told, 64)
	wg.Go(func() {
		for b := make([]byte, 2048); ; {
			size, _, err := s.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil { // of a packet sent before
				continue
			}
			if from, number, seen, ok := k.link.Told(b[:size]); ok {
				select {
				case in <- told{number, from, seen}:
				default:
				}
			}
		}
	})
	return s, in, nil
}

// ask asks observers from a socket until all have answered or askTimes is over.
func (k *kinds) ask(ctx context.Context, s net.PacketConn, in <-chan told, see []observer) (seen []netcheck.Observation) {
	open := map[uint64]observer{}
	for _, o := range see {
		open[rand.Uint64()] = o
	}
	for range askTimes {
		for number, o := range open {
			s.WriteTo(o.peer.Ask(number, false), net.UDPAddrFromAddrPort(o.addr))
		}
		timer := time.NewTimer(askEvery)
		for wait := true; wait && len(open) > 0; {
			select {
			case t := <-in:
				if o, ok := open[t.number]; ok && o.peer == t.from && t.seen.IsValid() {
					delete(open, t.number)
					seen = append(seen, netcheck.Observation{Peer: o.name, Local: k.n.localOf(k.locals, s, o.addr, t.seen), Observer: o.addr, Mapped: t.seen})
				}
			case <-timer.C:
				wait = false
			case <-ctx.Done():
				return seen
			}
		}
		timer.Stop()
		if len(open) == 0 {
			break
		}
	}
	return seen
}

func (k *kinds) find(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	s, in, err := k.open(&wg)
	if err != nil {
		return err
	}
	defer s.Close()
	k.seen = k.ask(ctx, s, in, k.see)
	for _, o := range k.seen { // one beyond the NAT, if there is any, is to send from elsewhere
		if o.Mapped != o.Local || netcheck.Mapping(k.seen) == netcheck.NoNAT {
			i := slices.IndexFunc(k.see, func(x observer) bool { return x.addr == o.Observer })
			return k.filter(ctx, &wg, k.see[i])
		}
	}
	return nil
}

// filter has frames sent to a fresh socket that has spoken to one observer only.
func (k *kinds) filter(ctx context.Context, wg *sync.WaitGroup, first observer) error {
	s, in, err := k.open(wg)
	if err != nil {
		return err
	}
	defer s.Close()
	seen := k.ask(ctx, s, in, []observer{first})
	if len(seen) == 0 {
		return nil
	}
	to, _ := seen[0].Mapped.MarshalBinary()
	port, numbers := rand.Uint64(), map[uint64]observer{}
	sent, arrived := map[string]bool{}, map[bool]bool{}
	acks := make(chan string, maxObservers)
	for range filterRounds {
		s.WriteTo(first.peer.Ask(port, true), net.UDPAddrFromAddrPort(first.addr))
		round, cancel := context.WithTimeout(ctx, checkEvery*11/10)
		var others sync.WaitGroup
		for _, o := range k.see {
			if o.addr.Addr() == first.addr.Addr() {
				continue
			}
			number, ack, err := k.n.echoes.begin()
			if err != nil {
				continue
			}
			numbers[number] = o
			k.n.mu.Lock()
			k.n.send(o.name, message{Check: &checkRequest{To: to, Number: number}})
			k.n.mu.Unlock()
			others.Go(func() {
				defer k.n.echoes.end(number)
				select {
				case <-ack:
					select {
					case acks <- o.name:
					default:
					}
				case <-round.Done():
				}
			})
		}
		for round.Err() == nil && !arrived[true] {
			select {
			case t := <-in:
				if o, ok := numbers[t.number]; ok && o.peer == t.from {
					arrived[true] = true
				} else if t.number == port && t.from == first.peer {
					arrived[false] = true
				}
			case name := <-acks:
				sent[name] = true
			case <-round.Done():
			}
		}
		cancel()
		others.Wait()
		if arrived[true] || ctx.Err() != nil {
			break
		}
	}
	k.probes = append(k.probes, netcheck.Probe{Arrived: arrived[false]})
	if len(sent) > 0 || arrived[true] {
		k.probes = append(k.probes, netcheck.Probe{OtherAddress: true, Arrived: arrived[true]})
	}
	return nil
}
