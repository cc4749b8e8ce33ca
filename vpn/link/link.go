// SPDX-License-Identifier: MIT

// Package link carries sealed WireGuard packets between nodes: it is the wireguard-go conn.Bind in which a peer's
// endpoint is the node, not an address. For each node it chooses the address (type path) by probing; probes share the
// UDP port. Batches pass through as they come (GSO, GRO).
//
// Packets from anywhere are handed to the engine, which authenticates them; the engine's answers go to the node's
// path. The package knows nothing of records, names or what is inside the packets.
//
// Run owns the goroutine that probes. Open and Close are the engine's.
package link

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Link is the one UDP link of a node. It implements conn.Bind.
type Link struct {
	conn.Bind
	key  *ecdh.PrivateKey
	self string // its public half in hexadecimal

	poke   chan struct{} // capacity 1: a path wants to be ticked
	byAddr sync.Map      // netip.AddrPort → *Peer, one address a peer

	mu    sync.RWMutex // guards the maps, not the peers
	byKey map[string]*Peer
	byTag map[tag]*Peer
}

// Peer is a node as the engine's endpoint: one object for as long as the node is known.
type Peer struct {
	Name string

	link *Link
	key  string // hexadecimal WireGuard key
	send half   // from this node
	recv half   // from the peer

	best     atomic.Pointer[conn.StdNetEndpoint] // what path.best says
	lastSend atomic.Int64                        // Unix nanoseconds; carried into the path at its next tick
	heardAt  atomic.Int64

	mu     sync.Mutex // guards the fields below
	path   *path
	parked [][]byte       // the last handshake, while there is nowhere to send it
	from   netip.AddrPort // where the last authentic probe came from; its key in Link.byAddr
	init   []byte         // our handshake that waits for an answer
	initAt time.Time
}

// Status is what is known of the way to a peer.
type Status struct {
	Endpoint  netip.AddrPort // zero: none is confirmed
	RTT       time.Duration  // smoothed
	LastHeard time.Time      // zero: never
}

// New returns a link over bind for the node with this WireGuard key.
func New(bind conn.Bind, key *ecdh.PrivateKey) *Link {
	return &Link{Bind: bind, key: key, self: hex.EncodeToString(key.PublicKey().Bytes()), poke: make(chan struct{}, 1), byKey: map[string]*Peer{}, byTag: map[tag]*Peer{}}
}

// Peer makes a node known, or returns it.
func (l *Link) Peer(name string, pub *ecdh.PublicKey) (*Peer, error) {
	k := hex.EncodeToString(pub.Bytes())
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.byKey[k]; p != nil {
		return p, nil
	}
	send, err1 := newHalf(l.key, pub, l.key.PublicKey(), pub)
	recv, err2 := newHalf(l.key, pub, pub, l.key.PublicKey())
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("WireGuard key of %s: %w", name, err)
	}
	p := &Peer{Name: name, link: l, key: k, send: send, recv: recv, path: newPath()}
	l.byKey[k] = p
	l.byTag[recv.tag] = p
	return p, nil
}

// Forget takes a node away.
func (l *Link) Forget(p *Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byKey, p.key)
	delete(l.byTag, p.recv.tag)
	p.mu.Lock()
	l.byAddr.Delete(p.from)
	p.mu.Unlock()
}

// Set says where a peer may be, and whether it is to be kept warm.
func (p *Peer) Set(addrs []netip.AddrPort, keep bool) {
	p.mu.Lock()
	p.path.setKnown(addrs)
	p.path.keep = keep
	p.mu.Unlock()
	p.link.wake()
}

// Heard notes that the engine has authenticated a packet of the peer.
func (p *Peer) Heard(now time.Time) { p.heardAt.Store(now.UnixNano()) }

// Status returns what is known of the way to the peer.
func (p *Peer) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sync()
	s := Status{Endpoint: p.path.best, LastHeard: p.path.lastHeard}
	if c := p.path.cands[p.path.best]; c != nil {
		s.RTT = c.rtt
	}
	return s
}

// sync carries what the hot path has noted into the machine. p.mu is held.
func (p *Peer) sync() {
	if t := p.lastSend.Load(); t != 0 {
		if at := time.Unix(0, t); at.After(p.path.lastSend) {
			p.path.lastSend = at
		}
	}
	if t := p.heardAt.Load(); t != 0 {
		if at := time.Unix(0, t); at.After(p.path.lastHeard) {
			p.path.heard(at)
		}
	}
}

// publish makes the machine's choice the hot path's. p.mu is held.
func (p *Peer) publish() {
	if old := p.best.Load(); p.path.best.IsValid() && (old == nil || old.AddrPort != p.path.best) {
		p.best.Store(&conn.StdNetEndpoint{AddrPort: p.path.best})
	}
}

func (l *Link) wake() {
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// Run probes until ctx ends.
func (l *Link) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.poke:
		case <-timer.C:
		}
		now := time.Now()
		var next time.Time
		for _, p := range l.peers() {
			p.mu.Lock()
			p.sync()
			outs, at := p.path.tick(now)
			p.publish()
			p.mu.Unlock()
			p.transmit(outs)
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), 10*time.Millisecond))
		}
	}
}

func (l *Link) peers() []*Peer {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]*Peer, 0, len(l.byKey))
	for _, p := range l.byKey {
		out = append(out, p)
	}
	return out
}

// Moved tells every peer in use that this node's addresses have changed.
func (l *Link) Moved() {
	now := time.Now()
	for _, p := range l.peers() {
		p.mu.Lock()
		p.sync()
		outs := p.path.moved(now)
		p.mu.Unlock()
		p.transmit(outs)
	}
	l.wake()
}

func (p *Peer) transmit(outs []out) {
	for _, o := range outs {
		// A candidate that cannot be reached from here is nothing to speak of: it is pinged again.
		p.link.Bind.Send([][]byte{p.send.seal(o.p)}, &conn.StdNetEndpoint{AddrPort: o.to})
	}
}

// Open implements conn.Bind.
func (l *Link) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := l.Bind.Open(port)
	for i, fn := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(bufs, sizes, eps)
			for i := range n {
				b := bufs[i][:sizes[i]]
				ep, ok := eps[i].(*conn.StdNetEndpoint)
				switch {
				case !ok:
				case isProbe(b):
					l.probe(b, ep.AddrPort)
					sizes[i] = 0 // the engine passes it over
				case isHandshake(b) && l.crossed(b, ep.AddrPort):
					sizes[i] = 0
				}
			}
			return n, err
		}
	}
	return fns, port, err
}

// WireGuard's two handshake messages.
const (
	initiation, initiationSize = 1, 148
	response, responseSize     = 2, 92
)

func isHandshake(b []byte) bool {
	return len(b) == initiationSize && b[0] == initiation || len(b) == responseSize && b[0] == response
}

// crossing is how long after our own handshake another may cross it.
const crossing = 2 * time.Second

// crossed settles handshakes that both sides have begun at once: WireGuard would drop both answers and begin again after
// five seconds. The side with the smaller key stays the one that asks: it drops the other's handshake, and repeats its own, in case the other did not know it yet when it came. It reports whether b is dropped.
func (l *Link) crossed(b []byte, from netip.AddrPort) bool {
	v, ok := l.byAddr.Load(unmap(from))
	if !ok {
		return false
	}
	p := v.(*Peer)
	p.mu.Lock()
	mine := p.init
	if b[0] == response || time.Since(p.initAt) > crossing {
		p.init = nil
		mine = nil
	}
	p.mu.Unlock()
	if mine == nil || l.self > p.key {
		return false
	}
	l.Bind.Send([][]byte{mine}, &conn.StdNetEndpoint{AddrPort: from})
	return true
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// probe takes a frame that came in.
func (l *Link) probe(b []byte, from netip.AddrPort) {
	l.mu.RLock()
	p := l.byTag[frameTag(b)]
	l.mu.RUnlock()
	if p == nil {
		return // a stranger gets no answer
	}
	f, ok := p.recv.open(b)
	if !ok {
		return
	}
	from = unmap(from)
	p.mu.Lock()
	if p.from != from {
		l.byAddr.Delete(p.from)
		l.byAddr.Store(from, p)
		p.from = from
	}
	p.sync()
	outs := p.path.handle(f, from, time.Now())
	p.publish()
	parked := p.parked
	p.parked = nil
	p.mu.Unlock()
	p.transmit(outs)
	if parked != nil {
		l.Bind.Send(parked, &conn.StdNetEndpoint{AddrPort: from})
	}
	l.wake()
}

// Send implements conn.Bind.
func (l *Link) Send(bufs [][]byte, ep conn.Endpoint) error {
	p, ok := ep.(*Peer)
	if !ok {
		return l.Bind.Send(bufs, ep) // an answer to somebody not authenticated, as a cookie
	}
	if len(bufs) == 1 && len(bufs[0]) == initiationSize && bufs[0][0] == initiation {
		p.mu.Lock()
		p.init, p.initAt = bytes.Clone(bufs[0]), time.Now()
		p.mu.Unlock()
	}
	was := p.lastSend.Swap(time.Now().UnixNano())
	if best := p.best.Load(); best != nil {
		if was == 0 || time.Since(time.Unix(0, was)) > silentAfter/2 {
			l.wake() // so that silence is noticed
		}
		return l.deliver(bufs, best)
	}
	if len(bufs) == 0 || len(bufs[0]) == 0 || bufs[0][0] > 2 {
		l.wake()
		return nil // no way yet, and no session without one
	}
	p.mu.Lock()
	p.sync()
	outs, _ := p.path.tick(time.Now())
	to := make([]netip.AddrPort, 0, maxCandidates)
	for a := range p.path.cands {
		to = append(to, a)
	}
	if p.parked = nil; len(to) == 0 {
		for _, b := range bufs {
			p.parked = append(p.parked, bytes.Clone(b))
		}
	}
	p.mu.Unlock()
	p.transmit(outs) // first, so that whoever gets the handshake knows where to answer it
	for _, a := range to {
		l.Bind.Send(bufs, &conn.StdNetEndpoint{AddrPort: a})
	}
	l.wake()
	return nil
}

// deliver sends a batch; where one packet is too large for the way, the others still go.
func (l *Link) deliver(bufs [][]byte, ep *conn.StdNetEndpoint) error {
	err := l.Bind.Send(bufs, ep)
	if !errors.Is(err, syscall.EMSGSIZE) || len(bufs) == 1 {
		return err
	}
	for i := range bufs {
		if e := l.Bind.Send(bufs[i:i+1], ep); e == nil {
			err = nil
		}
	}
	return err
}

// ParseEndpoint implements conn.Bind: an endpoint is a node's key in hexadecimal.
func (l *Link) ParseEndpoint(s string) (conn.Endpoint, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if p := l.byKey[s]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no node with key %s is known", s)
}

// Peer implements conn.Endpoint. The engine's rate limiter sees a node as its best address.

// ClearSrc implements conn.Endpoint.
func (p *Peer) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (p *Peer) SrcToString() string { return "" }

// DstToString implements conn.Endpoint.
func (p *Peer) DstToString() string { return p.key }

// DstToBytes implements conn.Endpoint.
func (p *Peer) DstToBytes() []byte { return []byte(p.key) }

// DstIP implements conn.Endpoint.
func (p *Peer) DstIP() netip.Addr {
	if b := p.best.Load(); b != nil {
		return b.AddrPort.Addr()
	}
	return netip.Addr{}
}

// SrcIP implements conn.Endpoint.
func (p *Peer) SrcIP() netip.Addr { return netip.Addr{} }
