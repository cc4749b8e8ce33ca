// SPDX-License-Identifier: MIT

package vpntest

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// Behaviour is how far a NAT box looks at the other end: RFC 4787 sections 4.1 (mapping) and 5 (filtering).
type Behaviour int

// Behaviours, from the most to the least permissive.
const (
	EndpointIndependent Behaviour = iota
	AddressDependent
	AddressAndPortDependent
)

// Kind is how a NAT box behaves.
type Kind struct {
	Mapping, Filtering Behaviour
	Hairpin            bool          // what is inside reaches what is inside by outside addresses
	Timeout            time.Duration // of a mapping that is not used; 0: two minutes
	NoUDP              bool          // lets no UDP out
}

// The kinds of old (RFC 3489 section 5), in the words of RFC 4787.
var (
	FullCone          = Kind{}
	AddressRestricted = Kind{Filtering: AddressDependent}
	PortRestricted    = Kind{Filtering: AddressAndPortDependent}
	Symmetric         = Kind{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}
)

// NAT is a box with one address outside and a LAN inside. With cone mappings it keeps the inner port where that is free,
// with others ports are random.
type NAT struct {
	Kind   Kind
	Inside *Segment

	net     *Net
	out     *attachment
	rng     *rand.Rand
	byInner map[innerKey]*mapping
	byPort  map[uint16]*mapping
	forward map[uint16]netip.AddrPort
	epoch   int // how often it was started
}

// innerKey is what a mapping is for: an inner address and as much of the outer one as the mapping depends on.
type innerKey struct{ inner, outer netip.AddrPort }

type mapping struct {
	key  innerKey
	port uint16
	used time.Time
	sent map[netip.AddrPort]bool // where the inside has sent to, as much of it as filtering looks at
}

// NAT attaches a NAT box to a segment with an address and a link; inside it has prefix.
func (s *Segment) NAT(addr netip.Addr, link Link, kind Kind, prefix netip.Prefix) *NAT {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	n := &NAT{Kind: kind, net: s.net, forward: map[uint16]netip.AddrPort{}}
	n.Inside = &Segment{net: s.net, prefix: prefix, at: map[netip.Addr]*attachment{}, nat: n}
	n.out = s.attach(&attachment{addr: addr, link: link, nat: n})
	n.rng = rand.New(rand.NewPCG(s.net.Seed, uint64(n.out.id)))
	n.forget()
	return n
}

// Addr is the box's address outside.
func (n *NAT) Addr() netip.Addr {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	return n.out.addr
}

// Prefix is that of the LAN inside.
func (n *NAT) Prefix() netip.Prefix { return n.Inside.prefix }

// Outer is the box that this one is behind; nil: it is on the internet.
func (n *NAT) Outer() *NAT { return n.out.seg.nat }

// Forward lets everybody outside reach an address inside at this port of the box.
func (n *NAT) Forward(port uint16, to netip.AddrPort) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.forward[port] = to
}

// SetLink changes the link outside.
func (n *NAT) SetLink(change func(*Link)) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	change(&n.out.link)
}

// Change changes how the box behaves while it is in use.
func (n *NAT) Change(f func(*Kind)) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	f(&n.Kind)
}

// Rebind forgets all mappings, as a box that is restarted does, and gives it another address outside unless addr is zero.
func (n *NAT) Rebind(addr netip.Addr) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.forget()
	if addr.IsValid() {
		seg := n.out.seg
		delete(seg.at, n.out.addr)
		n.out.addr = addr
		seg.at[addr] = n.out
	}
}

func (n *NAT) forget() {
	n.epoch++
	n.byInner, n.byPort = map[innerKey]*mapping{}, map[uint16]*mapping{}
}

// part is as much of an endpoint as b looks at.
func (b Behaviour) part(a netip.AddrPort) netip.AddrPort {
	switch b {
	case AddressAndPortDependent:
		return a
	case AddressDependent:
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return netip.AddrPort{}
}

func (n *NAT) live(m *mapping) bool {
	timeout := n.Kind.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	if m == nil {
		return false
	}
	if time.Since(m.used) < timeout {
		return true
	}
	delete(n.byInner, m.key)
	delete(n.byPort, m.port)
	return false
}

// outward translates the source of what goes out. net.mu is held.
func (n *NAT) outward(src, dst netip.AddrPort) netip.AddrPort {
	for port, inner := range n.forward {
		if inner == src {
			return netip.AddrPortFrom(n.out.addr, port)
		}
	}
	k := innerKey{src, n.Kind.Mapping.part(dst)}
	m := n.byInner[k]
	if !n.live(m) {
		m = &mapping{key: k, port: src.Port(), sent: map[netip.AddrPort]bool{}}
		for n.Kind.Mapping != EndpointIndependent || n.live(n.byPort[m.port]) || n.forward[m.port].IsValid() {
			m.port = uint16(1024 + n.rng.IntN(1<<16-1024))
			if !n.live(n.byPort[m.port]) && !n.forward[m.port].IsValid() {
				break
			}
		}
		n.byInner[k], n.byPort[m.port] = m, m
	}
	m.used = time.Now()
	m.sent[n.Kind.Filtering.part(dst)] = true
	return netip.AddrPortFrom(n.out.addr, m.port)
}

// inward translates the destination of what comes in, or says why it does not get in. net.mu is held.
func (n *NAT) inward(src netip.AddrPort, port uint16) (dst netip.AddrPort, why string) {
	if n.Kind.NoUDP {
		return dst, "UDP is blocked"
	}
	if to, ok := n.forward[port]; ok {
		return to, ""
	}
	m := n.byPort[port]
	switch {
	case !n.live(m):
		return dst, "the NAT has no mapping"
	case !m.sent[n.Kind.Filtering.part(src)]:
		return dst, "the NAT filters it"
	}
	m.used = time.Now()
	return m.key.inner, ""
}
