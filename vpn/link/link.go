// SPDX-License-Identifier: MIT

// Package link carries sealed WireGuard packets between nodes: it is the wireguard-go conn.Bind in which a peer's
// endpoint is the node, not an address. For each node it chooses the address (type path) by probing; probes share the
// UDP port. Batches pass through as they come (GSO, GRO).
//
// Packets from anywhere are handed to the engine, which authenticates them; the engine's answers go to the node's
// path. Of each pair one node begins the handshakes, and only when it has found a way (see leads). The package knows nothing
// of records, names or what is inside the packets.
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
	"math"
	"math/rand/v2"
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
	run  uint32 // random, not 0: tells peers of a restart

	// Handshake, set before Open, makes the engine begin a handshake with the peer of this key (hexadecimal), if it has
	// begun none in the last five seconds or, with void, in any case: the sessions from before are void. Run calls it.
	Handshake func(key string, void bool)

	poke chan struct{} // capacity 1: a path wants to be ticked

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
	want     atomic.Bool // the engine waits for a session; the leader's engine does so by itself

	mu     sync.Mutex // guards the fields below
	path   *path
	ready  bool      // Set was called: the engine knows the peer
	lost   bool      // the peer has no session with this node, which leads
	void   bool      // and has none because it was started anew
	parked []byte    // the engine's last initiation, until there is a way
	begun  time.Time // when it made that
}

// rekeyTimeout is WireGuard's time between two initiations, and until one is repeated.
const rekeyTimeout = 5 * time.Second

// Status is what is known of the way to a peer.
type Status struct {
	Endpoint  netip.AddrPort // zero: none is confirmed
	RTT       time.Duration  // smoothed
	LastHeard time.Time      // zero: never
}

// New returns a link over bind for the node with this WireGuard key.
func New(bind conn.Bind, key *ecdh.PrivateKey) *Link {
	return &Link{Bind: bind, key: key, self: hex.EncodeToString(key.PublicKey().Bytes()), run: 1 + rand.Uint32N(math.MaxUint32), poke: make(chan struct{}, 1), byKey: map[string]*Peer{}, byTag: map[tag]*Peer{}}
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
}

// Set says where a peer may be, and whether it is to be kept warm. The engine must know the peer by then.
func (p *Peer) Set(addrs []netip.AddrPort, keep bool) {
	p.mu.Lock()
	p.path.setKnown(addrs)
	p.path.keep = keep
	p.ready = true
	p.mu.Unlock()
	p.link.wake()
}

// Heard notes that the engine has opened a packet of the peer.
func (p *Peer) Heard(now time.Time) {
	p.heardAt.Store(now.UnixNano())
	p.settled()
}

// settled notes that there is a session.
func (p *Peer) settled() {
	if p.want.Load() { // a load is cheaper than a store
		p.want.Store(false)
	}
}

// leads reports whether this node begins the handshakes of the pair: the one with the smaller key does, and the other
// asks for one in its probes. Were both to begin at once, each would drop the other's answer for rekeyTimeout, and
// wireguard-go, whose workers take handshakes side by side, might make a session of which the two ends have different
// keys. For the same reason nothing makes the engine begin one sooner than its own clock allows, except where a peer was
// restarted: then it has a session, as it believes, and begins none by itself.
func (p *Peer) leads() bool { return p.link.self < p.key }

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
			p.path.ask(p.want.Load() && !p.leads())
			outs, at := p.path.tick(now)
			p.publish()
			best, parked := p.best.Load(), p.parked
			if best != nil {
				p.parked = nil
			}
			again, void := p.begun.Add(rekeyTimeout), p.void
			if void {
				again = p.begun.Add(rekeyTimeout / 10) // the last one may have been with the new run
			}
			begin := p.lost && best != nil && !now.Before(again)
			if begin {
				p.lost, p.void = false, false
			} else if p.lost {
				at = sooner(at, again)
			}
			asking := p.path.asking
			p.mu.Unlock()
			p.transmit(outs, asking)
			if best != nil && parked != nil {
				l.Bind.Send([][]byte{parked}, best)
			}
			if begin {
				l.Handshake(p.key, void)
			}
			next = sooner(next, at)
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
		outs, asking := p.path.moved(now), p.path.asking
		p.mu.Unlock()
		p.transmit(outs, asking)
	}
	l.wake()
}

// transmit sends probes. They say whether the peer is to begin a handshake.
func (p *Peer) transmit(outs []out, asking bool) {
	for _, o := range outs {
		o.p.want, o.p.run = asking, p.link.run
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
				if ep, ok := eps[i].(*conn.StdNetEndpoint); ok && isProbe(b) {
					l.probe(b, ep.AddrPort)
					sizes[i] = 0 // the engine passes it over
				}
			}
			return n, err
		}
	}
	return fns, port, err
}

// The first byte of WireGuard's messages.
const (
	initiation = 1
	response   = 2
)

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
	now := time.Now()
	p.mu.Lock()
	if !p.ready {
		p.mu.Unlock()
		return // an answer would promise that handshakes are answered too
	}
	p.sync()
	outs, wants, anew := p.path.handle(f, unmap(from), now)
	switch {
	case anew && !p.leads():
		p.want.Store(true)
	case anew:
		p.lost, p.void = true, true
	case wants && p.leads() && now.Sub(p.begun) >= rekeyTimeout: // before, it may not have seen the last initiation yet
		p.lost = true
	}
	p.publish()
	asking := p.path.asking
	p.mu.Unlock()
	p.transmit(outs, asking)
	l.wake()
}

// Send implements conn.Bind. Where there is no way to a peer yet, the engine's packets are lost, as on a cable that is
// not plugged in, except its last initiation, and Run looks for one.
func (l *Link) Send(bufs [][]byte, ep conn.Endpoint) error {
	p, ok := ep.(*Peer)
	if !ok {
		return l.Bind.Send(bufs, ep) // an answer to somebody not authenticated, as a cookie
	}
	if len(bufs) == 0 || len(bufs[0]) == 0 {
		return nil
	}
	now := time.Now()
	was := p.lastSend.Swap(now.UnixNano())
	best := p.best.Load()
	kind := bufs[0][0]
	if best == nil || kind == initiation || now.Sub(time.Unix(0, was)) > silentAfter/2 {
		defer l.wake() // so that silence is noticed
	}
	switch {
	case kind == initiation && !p.leads():
		p.want.Store(true)
		return nil
	case kind == initiation:
		p.mu.Lock()
		p.begun, p.lost, p.void, p.parked = now, false, false, nil
		if best == nil {
			p.parked = bytes.Clone(bufs[0])
		}
		p.mu.Unlock()
	case kind == response:
		p.settled()
	}
	if best != nil {
		return l.deliver(bufs, best)
	}
	if kind != response {
		return nil
	}
	// The peer has found the way here first.
	p.mu.Lock()
	outs := p.path.pingAll(now, false)
	p.mu.Unlock()
	p.transmit(outs, false)
	for _, o := range outs {
		l.deliver(bufs, &conn.StdNetEndpoint{AddrPort: o.to})
	}
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
