// SPDX-License-Identifier: MIT

// Package lan finds members of the mesh on the same link, without any server: each announces itself, and answers those
// that do. An announcement carries the sender's signed record (vpn/identity), so that it introduces nodes that nobody knew,
// and the port of its tunnels; with the datagram's source that makes an address to try.
//
// Announcements go to UDP port 7656, by IPv4 to 255.255.255.255 and to the group 239.255.76.56, by IPv6 to the link-local
// group ff12::ed65:7368 (transient: RFC 4291 section 2.7, RFC 3307 section 4.3), so that a link that filters one of them
// is no obstacle; at the start, after Poke, and every 60 to 120 s. They leave on every interface that is up, other than the
// mesh's own, loopback, and point-to-point ones.
//
// What strangers on the link see: that somebody here uses port 7656. Every datagram is sealed under a key derived from
// the mesh's root certificate, has a fresh nonce and always Size bytes, so neither the mesh nor the node is told from
// another by those who do not know that certificate. It is no secret of members alone: who was evicted has it, and a node
// that takes invitations shows it to whoever connects. So the seal only hides, and what is inside counts since it is signed
// by the node it speaks of.
//
// What strangers can do: nothing that is not sealed and from this link (TTL 255, RFC 5082, and a source in a subnet of
// the interface) has any effect. A recorded datagram counts again only where nothing newer of its sender has been heard for
// ten minutes, and not after a day where both clocks are right. Then it causes one answer, to a port 7656, not larger than
// the question; and one call of Found, which is a suggestion: whoever acts on it must ping the address with authentication
// first (vpn/link does). All there is to be learnt by that is whether a member of the recorded mesh is here.
// A flood, of members too, costs a bounded part of a core: the reader rests when a second's share is used up.
//
// New starts nothing. Run owns every goroutine and socket.
package lan

import (
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"mesh.internal/mesh/vpn/identity"
)

// Port is the UDP port of announcements; a firewall on a node must let it in.
const Port = 7656

const (
	announceEvery = time.Minute // plus up to as much again
	pokeEvery     = 5 * time.Second
	settleFor     = 500 * time.Millisecond
	hops          = 255 // a router would make it less
	maxInterfaces = 32

	// Limits for a second.
	maxRead   = 500 // datagrams, 1 ms of a core's time unless sealed
	maxOpened = 20  // of members, 0.3 ms each; copies, that come by broadcast and multicast, not counted
	maxAnswer = 5

	rememberFor = 10 * time.Minute // what a node has sent; its clock may be put back
	foundEvery  = 30 * time.Second // the same of a node is told once
	answerEvery = 10 * time.Second // to one address
	maxAddrs    = 8                // of a node in foundEvery
	maxKnown    = 1000             // nodes and addresses that are remembered
	maxCopies   = 64
)

var (
	broadcast = netip.MustParseAddr("255.255.255.255")
	group4    = netip.MustParseAddr("239.255.76.56")
	group6    = netip.MustParseAddr("ff12::ed65:7368")
)

// Config is what a Finder needs.
type Config struct {
	Identity  *identity.Identity
	Interface string        // the mesh's own, not announced on
	Port      uint16        // of this node's tunnels, announced
	Record    func() []byte // this node's record

	// Found is told that the node of a verified record may be reached at an address, which has a zone if it is link-local.
	// It must not block.
	Found func(record *identity.Record, at netip.AddrPort)

	Log *slog.Logger
}

// Finder finds members on the same link. Its methods are safe for concurrent use.
type Finder struct {
	cfg  Config
	aead cipher.AEAD
	poke chan struct{} // capacity 1

	mu       sync.Mutex // guards the rest
	opened   bucket
	answers  bucket
	copies   map[[sha256.Size]byte]*identity.Record // verified, by the datagram
	nodes    map[string]*heard                      // by name
	answered map[netip.Addr]time.Time               // when last
}

// heard is what is remembered of a node.
type heard struct {
	sent  time.Time                    // the latest, by the node's clock
	last  time.Time                    // when that was heard
	found map[netip.AddrPort]time.Time // when Found was called
}

// New prepares a Finder.
func New(cfg Config) (*Finder, error) {
	aead, err := key(cfg.Identity.CA)
	if err != nil {
		return nil, err
	}
	return &Finder{cfg: cfg, aead: aead, poke: make(chan struct{}, 1), copies: map[[sha256.Size]byte]*identity.Record{},
		nodes: map[string]*heard{}, answered: map[netip.Addr]time.Time{}, opened: bucket{rate: maxOpened}, answers: bucket{rate: maxAnswer}}, nil
}

// Poke says that the machine's addresses or links may have changed. It does not block.
func (f *Finder) Poke() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// Run announces and listens until ctx ends. Where it cannot, it tries again with every announcement.
func (f *Finder) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	socks := []*sock{{network: "udp4"}, {network: "udp6"}}
	var last time.Time
	for burst := 3; ; { // datagrams get lost, and a link that has just come up loses all
		for _, s := range socks {
			if s.up() {
				continue
			}
			if err := s.open(ctx); err != nil {
				f.cfg.Log.Debug("members on the LAN are not looked for", "network", s.network, "err", err)
				continue
			}
			wg.Go(func() { f.listen(ctx, s) })
		}
		f.announce(socks)
		last = time.Now()
		wait := announceEvery + rand.N(announceEvery)
		if burst--; burst > 0 {
			wait = time.Second + rand.N(time.Second)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-f.poke:
			burst = 3
			timer.Reset(max(settleFor, time.Until(last.Add(pokeEvery))))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// sock is the socket of one family.
type sock struct {
	network string

	mu     sync.Mutex // guards the rest
	conn   *net.UDPConn
	p4     *ipv4.PacketConn
	p6     *ipv6.PacketConn
	joined map[int]bool // interfaces on which it is in the group
}

func (s *sock) up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil
}

func (s *sock) open(ctx context.Context) (err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) {
			err = share(fd)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(ctx, s.network, fmt.Sprintf(":%d", Port))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.joined = conn.(*net.UDPConn), map[int]bool{}
	if s.network == "udp4" {
		s.p4 = ipv4.NewPacketConn(conn)
		err = errors.Join(s.p4.SetControlMessage(ipv4.FlagTTL|ipv4.FlagInterface, true), s.p4.SetTTL(hops), s.p4.SetMulticastTTL(hops),
			s.p4.SetMulticastLoopback(true)) // for other daemons here
	} else {
		s.p6 = ipv6.NewPacketConn(conn)
		err = errors.Join(s.p6.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), s.p6.SetHopLimit(hops),
			s.p6.SetMulticastHopLimit(hops), s.p6.SetMulticastLoopback(true))
	}
	if err != nil {
		conn.Close()
		s.conn = nil
	}
	return err
}

// link is an interface that is announced on.
type link struct {
	net.Interface
	prefixes []netip.Prefix // the addresses of this machine on it
}

// links returns the interfaces to announce on.
func (f *Finder) links() []link {
	all, err := net.Interfaces()
	if err != nil {
		f.cfg.Log.Debug("the machine's interfaces are not known", "err", err)
		return nil
	}
	var out []link
	for _, i := range all {
		const not = net.FlagLoopback | net.FlagPointToPoint
		if i.Flags&net.FlagUp == 0 || i.Flags&not != 0 || i.Flags&(net.FlagBroadcast|net.FlagMulticast) == 0 ||
			i.Name == f.cfg.Interface || len(out) == maxInterfaces {
			continue
		}
		if l, err := linkOf(i); err == nil {
			out = append(out, l)
		}
	}
	return out
}

func linkOf(i net.Interface) (link, error) {
	l := link{Interface: i}
	addrs, err := i.Addrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				ones, _ := n.Mask.Size()
				l.prefixes = append(l.prefixes, netip.PrefixFrom(addr.Unmap(), ones))
			}
		}
	}
	return l, err
}

// announce sends an announcement everywhere.
func (f *Finder) announce(socks []*sock) {
	b, err := f.seal(false)
	if err != nil {
		f.cfg.Log.Debug("this node is not announced on the LAN", "err", err)
		return
	}
	for _, l := range f.links() {
		for _, s := range socks {
			if err := s.announce(b, l); err != nil {
				f.cfg.Log.Debug("this node is not announced on a LAN", "interface", l.Name, "network", s.network, "err", err)
			}
		}
	}
}

// announce sends on one interface, and sees to it that others are heard there.
func (s *sock) announce(b []byte, l link) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	note := func(e error) { err = errors.Join(err, e) }
	for _, p := range l.prefixes {
		switch a := p.Addr(); {
		case a.Is4() && s.p4 != nil:
			if l.Flags&net.FlagMulticast != 0 && !s.joined[l.Index] {
				e := s.p4.JoinGroup(&l.Interface, &net.UDPAddr{IP: group4.AsSlice()})
				s.joined[l.Index] = e == nil || errors.Is(e, syscall.EADDRINUSE)
			}
			cm := &ipv4.ControlMessage{IfIndex: l.Index, Src: a.AsSlice()}
			for _, to := range []netip.Addr{broadcast, group4} {
				_, e := s.p4.WriteTo(b, cm, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, Port)))
				note(e)
			}
		case a.Is6() && a.IsLinkLocalUnicast() && s.p6 != nil:
			if !s.joined[l.Index] {
				e := s.p6.JoinGroup(&l.Interface, &net.UDPAddr{IP: group6.AsSlice()})
				s.joined[l.Index] = e == nil || errors.Is(e, syscall.EADDRINUSE)
			}
			cm := &ipv6.ControlMessage{IfIndex: l.Index, Src: a.AsSlice()}
			_, e := s.p6.WriteTo(b, cm, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group6.WithZone(l.Name), Port)))
			note(e)
		}
	}
	return err
}

// listen reads until ctx ends or the socket fails.
func (f *Finder) listen(ctx context.Context, s *sock) {
	conn := s.conn
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, Size+1)
	second, read := time.Now(), 0
	for {
		n, from, hop, index, err := s.read(b)
		if err != nil {
			break
		}
		if read++; read >= maxRead {
			if rest := time.Until(second.Add(time.Second)); rest > 0 && !sleep(ctx, rest) {
				break
			}
			second, read = time.Now(), 0
		}
		if n == Size && hop == hops {
			f.take(s, b[:n], from, index)
		}
	}
	s.mu.Lock()
	conn.Close()
	s.conn = nil // the next announcement opens it again
	s.mu.Unlock()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// read returns a datagram, its source, its TTL, and the interface it came in on.
func (s *sock) read(b []byte) (n int, from netip.AddrPort, hop, index int, err error) {
	var src net.Addr
	if s.p4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, src, err = s.p4.ReadFrom(b); cm != nil {
			hop, index = cm.TTL, cm.IfIndex
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, src, err = s.p6.ReadFrom(b); cm != nil {
			hop, index = cm.HopLimit, cm.IfIndex
		}
	}
	if u, ok := src.(*net.UDPAddr); ok {
		from = u.AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	return n, from, hop, index, err
}

// take judges a datagram of the right size from this link's TTL.
func (f *Finder) take(s *sock, b []byte, from netip.AddrPort, index int) {
	i, err := net.InterfaceByIndex(index)
	if err != nil || i.Name == f.cfg.Interface || i.Flags&net.FlagPointToPoint != 0 || from.Port() != Port {
		return
	}
	l, err := linkOf(*i)
	if err != nil || !l.has(from.Addr()) {
		return
	}
	a, err := f.open(b)
	if err != nil {
		return // strangers' traffic is no news
	}
	if f.consider(a, from.Addr(), time.Now()) {
		f.answer(s, from, index)
	}
}

// has reports whether an address is on the link.
func (l link) has(a netip.Addr) bool {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	for _, p := range l.prefixes {
		if p.Masked().Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// open reads a datagram, unless too many have been of late.
func (f *Finder) open(b []byte) (announcement, error) {
	a, err := parse(f.aead, b)
	if err != nil {
		return a, err
	}
	id := sha256.Sum256(b)
	f.mu.Lock()
	a.record = f.copies[id]
	ok := a.record != nil || f.opened.take(time.Now())
	f.mu.Unlock()
	if !ok {
		return a, errors.New("too many announcements")
	}
	if a.record != nil {
		return a, nil
	}
	if err := a.verify(f.cfg.Identity.CA); err != nil {
		return a, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	makeRoom(f.copies, maxCopies)
	f.copies[id] = a.record
	return a, nil
}

// consider passes a verified announcement on, if it is news, and reports whether to answer it.
func (f *Finder) consider(a announcement, from netip.Addr, now time.Time) bool {
	name := a.record.Node.Name
	if name == f.cfg.Identity.Node.Name || !a.fresh(now) {
		return false
	}
	f.mu.Lock()
	h := f.nodes[name]
	if h == nil {
		h = &heard{found: map[netip.AddrPort]time.Time{}}
		makeRoom(f.nodes, maxKnown)
		f.nodes[name] = h
	}
	if a.sent.Before(h.sent) && now.Sub(h.last) < rememberFor {
		f.mu.Unlock()
		return false
	}
	h.sent, h.last = a.sent, now
	maps.DeleteFunc(h.found, func(_ netip.AddrPort, t time.Time) bool { return now.Sub(t) >= foundEvery })
	at := netip.AddrPortFrom(from, a.port)
	_, known := h.found[at]
	news := !known && len(h.found) < maxAddrs
	if news {
		h.found[at] = now
	}
	answer := !a.answer && now.Sub(f.answered[from]) >= answerEvery && f.answers.take(now)
	if answer {
		makeRoom(f.answered, maxKnown)
		f.answered[from] = now
	}
	f.mu.Unlock()
	if news {
		f.cfg.Found(a.record, at)
	}
	return answer
}

// makeRoom bounds a map: what goes is any, and can be learnt again.
func makeRoom[K comparable, V any](m map[K]V, most int) {
	for k := range m {
		if len(m) < most {
			return
		}
		delete(m, k)
	}
}

// answer sends an announcement to one that has announced itself.
func (f *Finder) answer(s *sock, to netip.AddrPort, index int) {
	b, err := f.seal(true)
	if err == nil {
		if s.p4 != nil {
			_, err = s.p4.WriteTo(b, &ipv4.ControlMessage{IfIndex: index}, net.UDPAddrFromAddrPort(to))
		} else {
			_, err = s.p6.WriteTo(b, &ipv6.ControlMessage{IfIndex: index}, net.UDPAddrFromAddrPort(to))
		}
	}
	if err != nil {
		f.cfg.Log.Debug("a member on the LAN is not answered", "endpoint", to, "err", err)
	}
}

// bucket admits rate events a second, as many at once.
type bucket struct {
	rate float64
	left float64
	last time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.left = min(b.rate, b.left+now.Sub(b.last).Seconds()*b.rate)
	b.last = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
