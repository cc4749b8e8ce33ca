// SPDX-License-Identifier: MIT

// Package link carries sealed WireGuard packets between nodes: it is the wireguard-go conn.Bind in which a peer's
// endpoint is the node, not an address. For each node it chooses the way (type path) by probing: to an address over UDP,
// through other nodes (type Route), or over a stream where UDP is blocked. Probes and relayed packets share the UDP port
// with WireGuard; batches pass through as they come (GSO, GRO), also where this node is the relay.
//
// Packets from anywhere are handed to the engine, which authenticates them; the engine's answers go to the node's
// path. Of each pair one node begins the handshakes, and only when it has found a way (see leads). The package knows nothing
// of records, names or what is inside the packets.
//
// Run owns the goroutine that probes. Open and Close are the engine's. Everything else may be called from any goroutine.
package link

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/ecdh"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Link is the one link of a node to all others. It implements conn.Bind.
type Link struct {
	conn.Bind
	key  *ecdh.PrivateKey
	self string // its public half in hexadecimal
	id   ID
	run  uint32 // random, not 0: tells peers of a restart
	full int

	Hooks // set before Open

	relays       atomic.Bool  // this node relays for members
	rate         atomic.Int64 // bytes a second that are relayed for one member; 0: all
	relayedBytes atomic.Uint64
	grants       grants
	streamed     chan streamed

	family sync.RWMutex // see write

	poke chan struct{} // capacity 1: dirty is not empty

	mu     sync.RWMutex // guards the maps, not the peers
	byKey  map[string]*Peer
	byID   map[ID]*Peer
	closed chan struct{} // by Close; nil unless open

	begins begins // Run's

	queue sync.Mutex // guards dirty
	dirty []*Peer    // to be ticked
}

// Hooks are what a link asks of its owner. They are called from the link's goroutines and must not block.
type Hooks struct {
	// Handshake makes the engine begin a handshake with the peer of this key (hexadecimal), if it has begun none in
	// the last five seconds or, with void, in any case: the sessions from before are void.
	Handshake func(key string, void bool)
	// Stranger tells of a probe of a node that is not a peer, or one that the engine does not know yet. The owner makes
	// it one if it likes and the probe opens, and calls again then.
	Stranger func(id ID, opens func(*Peer) bool, again func())
	// Stream sends datagrams over a stream to a peer.
	Stream func(peer string, bufs [][]byte) error
	// Elsewhere is to send a frame to a peer from another port, if that is not asked too often.
	Elsewhere func(p *Peer, frame []byte, to netip.AddrPort)
	// Changed tells that the way to a peer has changed, or that packets to it begin.
	Changed func(p *Peer)
}

// Peer is a node as the engine's endpoint: one object for as long as the node is in use.
type Peer struct {
	Name string

	link *Link
	key  string // hexadecimal WireGuard key
	id   ID
	send half // from this node
	recv half // from the peer

	best     atomic.Pointer[route] // what path.best says
	direct   atomic.Pointer[route] // what path.direct says
	mtu      atomic.Int32          // what path.mtu says
	granted  atomic.Uint64         // by the peer, for what it is to relay or to take from this node as a relay
	lastSend atomic.Int64          // when it was needed, in Unix nanoseconds; carried into the path at its next tick
	carried  atomic.Int64          // when it was last handed a probe of others, the same
	heardAt  atomic.Int64
	want     atomic.Bool // the engine waits for a session; the leader's engine does so by itself
	sealing  atomic.Bool // see Sealing

	relayed allowance

	grantNew, grantOld uint64 // guarded by link.grants.mu
	grantAt            time.Time

	mu    sync.Mutex // guards the fields below
	path  *path
	ready bool                                    // Set was called: the engine knows the peer
	lost  bool                                    // the peer has no session with this node, which leads
	void  bool                                    // and has none because it was started anew
	begun time.Time                               // when the engine made its last initiation
	seen  netip.AddrPort                          // where the peer saw this node last
	eps   map[netip.AddrPort]*conn.StdNetEndpoint // with the address of this machine to which the peer sent: it may have several

	parked []byte // the engine's last initiation, until there is a way

	at    time.Time // when Run is to tick it; Run's
	index int       // in Run's heap, from 1; Run's
	isDue bool      // in dirty; guarded by link.queue
}

// rekeyTimeout is WireGuard's time between two initiations, and until one is repeated.
const rekeyTimeout = 5 * time.Second

// Status is what is known of the way to a peer.
type Status struct {
	Way       Way           // zero: none is confirmed
	Reason    string        // why this one
	RTT       time.Duration // smoothed
	Loss      float64       // share of lost probes, 0 to 1
	MTU       int           // bytes of the largest sealed packet known to pass; 0: not measured
	LastHeard time.Time     // zero: never
	LastSent  time.Time     // when it was needed; zero: never
	Direct    bool          // there is a way that needs no other node
	DirectUDP bool          // that way is not a stream
	DirectRTT time.Duration // of that way
	Lost      float64       // on that way
	Kept      bool          // the peer has chosen this node as its neighbour
	Asking    bool          // there is no session, and the peer is asked to begin one
	Seen      netip.AddrPort
	Ways      []WayStatus
}

// WayStatus is what is known of one way to a peer.
type WayStatus struct {
	Way       Way
	RTT       time.Duration
	Loss      float64
	Confirmed bool
	Missed    int // answers overdue one after the other
	MTU       int
	Mapped    netip.AddrPort // where the peer saw this node when it answered last
}

// New returns a link over bind for the node with this WireGuard key. full is the size in bytes of the largest packets that
// the engine makes.
func New(bind conn.Bind, key *ecdh.PrivateKey, full int) *Link {
	l := &Link{Bind: bind, key: key, self: hex.EncodeToString(key.PublicKey().Bytes()), id: IDOf(key.PublicKey()), run: 1 + rand.Uint32N(math.MaxUint32), full: full,
		streamed: make(chan streamed, 256), poke: make(chan struct{}, 1), byKey: map[string]*Peer{}, byID: map[ID]*Peer{}}
	l.grants.by = map[uint64]*Peer{}
	l.relays.Store(true)
	return l
}

// SetRelay says whether this node relays for others, and how many bytes a second for each (0: as many as can be).
func (l *Link) SetRelay(on bool, rate int64) {
	l.relays.Store(on)
	l.rate.Store(rate)
}

// Relayed is how many bytes were sent on for others.
func (l *Link) Relayed() uint64 { return l.relayedBytes.Load() }

// Peer makes a node a peer, or returns it.
func (l *Link) Peer(name string, pub *ecdh.PublicKey) (*Peer, error) {
	k := hex.EncodeToString(pub.Bytes())
	l.mu.RLock()
	p := l.byKey[k]
	l.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	send, recv, err := newHalves(l.key, pub)
	if err != nil {
		return nil, fmt.Errorf("WireGuard key of %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.byKey[k]; p != nil {
		return p, nil
	}
	p = &Peer{Name: name, link: l, key: k, id: recv.id, send: send, recv: recv, path: newPath(l.full), eps: map[netip.AddrPort]*conn.StdNetEndpoint{}}
	if l.byID[p.id] != nil || p.id == l.id {
		return nil, fmt.Errorf("the WireGuard key of %s has the ID of another node's: let it join again with a new key", name)
	}
	l.byKey[k] = p
	l.byID[p.id] = p
	return p, nil
}

// Forget takes a node away.
func (l *Link) Forget(p *Peer) {
	l.grants.forget(p)
	l.mu.Lock()
	if l.byKey[p.key] == p {
		delete(l.byKey, p.key)
		delete(l.byID, p.id)
	}
	l.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = false
	p.best.Store(nil)
	p.direct.Store(nil)
}

func (l *Link) byIDPeer(id ID) *Peer {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.byID[id]
}

// ID is the node's in frames and on routes.
func (p *Peer) ID() ID { return p.id }

// Set says where a peer may be, through whom it may be reached, and whether it is to be kept warm. The engine must know
// the peer by then.
func (p *Peer) Set(addrs []netip.AddrPort, routes []Route, keep bool) {
	var ways []Way
	for _, a := range addrs {
		ways = append(ways, Way{Addr: a})
	}
	for _, r := range routes {
		ways = append(ways, Way{Via: r})
	}
	p.mu.Lock()
	if w := (Way{Stream: true}); p.path.cands[w] != nil {
		ways = append(ways, w)
	}
	p.path.setKnown(ways)
	if keep && !p.path.keep {
		p.path.nextPing = time.Time{}
	}
	p.path.keep = keep
	p.ready = true
	p.mu.Unlock()
	p.wake()
}

// Try suggests an address that the peer may have, at once.
func (p *Peer) Try(addrs ...netip.AddrPort) {
	now := time.Now()
	var outs []out
	p.mu.Lock()
	for _, a := range addrs {
		if c := p.path.add(Way{Addr: a}); c != nil {
			c.seen = now
			if !c.confirmed && now.Sub(c.pinged) > probeEvery/2 {
				outs = append(outs, p.path.ping(c, now))
			}
		}
	}
	if len(outs) > 0 {
		p.path.round = 0
		p.path.nextPing = now.Add(probeEvery)
	}
	ready, asking := p.ready, p.path.asking
	p.mu.Unlock()
	if ready {
		p.transmit(outs, asking)
		p.wake()
	}
}

// Streaming says whether there is a stream to the peer.
func (p *Peer) Streaming(on bool) {
	p.mu.Lock()
	w := Way{Stream: true}
	if on {
		if c := p.path.add(w); c != nil {
			c.known = true
			p.path.round, p.path.nextPing = 0, time.Time{}
		}
	} else {
		p.path.drop(w)
		p.publish()
	}
	p.mu.Unlock()
	p.wake()
}

// Needed notes that somebody sends to the peer: from here on and for a while its ways are watched, and better ones looked
// for. What the owner sends for itself, as gossip, is not worth that.
func (p *Peer) Needed(now time.Time) {
	was := time.Unix(0, p.lastSend.Swap(now.UnixNano()))
	if now.Sub(was) > beatEvery/2 {
		p.wake() // so that silence is noticed
	}
	if now.Sub(was) > demandLasts && p.link.Changed != nil {
		p.link.Changed(p) // ways to it are needed now
	}
}

// carries notes that the way to the peer is a part of another. Data makes it needed. Probes, which would keep each other going
// then, have it looked at now and then, so that its grant is known, and pinged, so that it knows where this node is.
func (p *Peer) carries(now time.Time, data bool) {
	if data {
		if was := time.Unix(0, p.lastSend.Swap(now.UnixNano())); now.Sub(was) > beatEvery/2 {
			p.wake()
		}
		return
	}
	was := p.carried.Swap(now.UnixNano())
	p.mu.Lock()
	var outs []out
	if c := p.path.direct(); c != nil && now.Sub(c.pinged) > probeEvery {
		outs = append(outs, p.path.ping(c, now))
	}
	asking := p.path.asking
	p.mu.Unlock()
	p.transmit(outs, asking)
	if len(outs) > 0 || now.Sub(time.Unix(0, was)) > keepEvery {
		p.wake()
	}
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

// Anew tells that the engine has no session with the peer, who may believe that there is one.
func (p *Peer) Anew() {
	p.mu.Lock()
	if p.leads() {
		p.lost = true
	} else {
		p.want.Store(true)
	}
	p.mu.Unlock()
	p.wake()
}

// Sealing reports whether the engine has a session to send in, as far as can be seen from here: it has sent sealed packets
// since it last asked for one. What it gets otherwise waits in it.
func (p *Peer) Sealing() bool { return p.sealing.Load() }

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
	s := Status{LastHeard: p.path.lastHeard, LastSent: p.path.lastSend, Kept: time.Since(p.path.kept) < seenLasts, Asking: p.want.Load() && !p.leads(), Seen: p.seen}
	if c := p.path.best; !p.path.dead() {
		s.Way, s.Reason, s.RTT, s.Loss, s.MTU = c.way, p.path.reason, c.rtt, c.loss, p.path.mtu()
	}
	if c := p.path.direct(); c != nil {
		s.Direct, s.DirectUDP, s.DirectRTT, s.Lost = true, c.way.udp(), c.rtt, c.loss
	}
	return s
}

// Ways lists all that is known of the ways to the peer, in no order.
func (p *Peer) Ways() (out []WayStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.path.cands {
		out = append(out, WayStatus{Way: c.way, RTT: c.rtt, Loss: c.loss, Confirmed: c.confirmed, Missed: c.missed,
			MTU: max(c.mtu-c.way.Via.trailerSize(), 0), Mapped: c.mapped})
	}
	return out
}

// MTU is the size in bytes of the largest sealed packet that passes on the way in use; 0: not known.
func (p *Peer) MTU() int { return int(p.mtu.Load()) }

// sync carries what the hot path has noted into the machine. p.mu is held.
func (p *Peer) sync() {
	if t := p.lastSend.Load(); t != 0 {
		if at := time.Unix(0, t); at.After(p.path.lastSend) {
			p.path.lastSend = at
		}
	}
	if t := p.carried.Load(); t != 0 {
		p.path.carried = time.Unix(0, t)
	}
	if t := p.heardAt.Load(); t != 0 {
		if at := time.Unix(0, t); at.After(p.path.lastHeard) {
			p.path.heard(at)
		}
	}
}

// publish makes the machine's choice the hot path's, and reports whether it is another than before. p.mu is held.
func (p *Peer) publish() (changed bool) {
	set := func(at *atomic.Pointer[route], c *candidate) bool {
		old := at.Load()
		var first *Peer
		var ep *conn.StdNetEndpoint
		if c != nil && c.way.udp() {
			ep = p.endpoint(c.way.Addr)
		}
		if c != nil && c.way.relayed() {
			if first = p.link.byIDPeer(c.way.Via[0]); first == nil { // the relay is no peer any more
				c.confirmed = false
				c = nil
			}
		}
		switch {
		case c == nil && old == nil, c != nil && old != nil && c.way == old.way && first == old.first && (ep == nil || ep.SrcIP() == old.ep.SrcIP()):
			return false
		case c == nil:
			at.Store(nil)
			return true
		}
		r := &route{way: c.way, first: first, ep: ep}
		switch {
		case first != nil:
			r.trailer = c.way.Via.trailer(p.link.id, p.id)
		case c.way.Stream:
			r.stream = p.Name
		}
		at.Store(r)
		return old == nil || c.way != old.way
	}
	changed = set(&p.best, p.path.best)
	if set(&p.direct, p.path.direct()) {
		changed = true
	}
	p.mtu.Store(int32(p.path.mtu()))
	return changed
}

// endpoint is how the socket reaches an address of the peer: from where it last sent to us. p.mu is held.
func (p *Peer) endpoint(a netip.AddrPort) *conn.StdNetEndpoint {
	if ep := p.eps[a]; ep != nil {
		return ep
	}
	return &conn.StdNetEndpoint{AddrPort: a}
}

// keepEndpoint remembers an endpoint that a probe came from. p.mu is held.
func (p *Peer) keepEndpoint(ep *conn.StdNetEndpoint) {
	a := unmap(ep.AddrPort)
	if old := p.eps[a]; old != nil && old.SrcIP() == ep.SrcIP() {
		return
	}
	if len(p.eps) > maxDirect {
		clear(p.eps)
	}
	p.eps[a] = ep
}

// wake has Run tick the peer.
func (p *Peer) wake() {
	l := p.link
	l.queue.Lock()
	if !p.isDue {
		p.isDue = true
		l.dirty = append(l.dirty, p)
	}
	l.queue.Unlock()
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// agenda is when which peer is to be ticked.
type agenda []*Peer

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i]; a[i].index, a[j].index = i+1, j+1 }
func (a *agenda) Push(x any)        { p := x.(*Peer); *a = append(*a, p); p.index = len(*a) }
func (a *agenda) Pop() any {
	p := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	p.index = 0
	return p
}

// Run probes until ctx ends.
func (l *Link) Run(ctx context.Context) {
	var due agenda
	timer := time.NewTimer(0)
	defer timer.Stop()
	start, slept := time.Now(), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.poke:
		case <-timer.C:
		}
		now := time.Now()
		// The monotonic clock stands still while the machine sleeps, that of the day does not.
		if s := now.Round(0).Sub(start.Round(0)) - now.Sub(start); s-slept > sleptAfter || slept-s > sleptAfter {
			slept = s
			l.Moved()
		}
		var late bool
		l.queue.Lock()
		work := l.dirty
		l.dirty = nil
		for _, p := range work {
			p.isDue = false
		}
		l.queue.Unlock()
		for len(due) > 0 && !due[0].at.After(now) {
			late = late || now.Sub(due[0].at) > lateAfter
			work = append(work, heap.Pop(&due).(*Peer))
		}
		if late { // this machine slept, or was busy: it is not the others who are late
			for _, p := range l.peers() {
				p.mu.Lock()
				p.path.late(now)
				p.mu.Unlock()
			}
		}
		for _, p := range work {
			next := p.tick(now)
			switch {
			case p.index > 0 && next.IsZero():
				heap.Remove(&due, p.index-1)
			case p.index > 0:
				p.at = next
				heap.Fix(&due, p.index-1)
			case !next.IsZero():
				p.at = next
				heap.Push(&due, p)
			}
		}
		timer.Stop()
		if len(due) > 0 {
			timer.Reset(max(time.Until(due[0].at), 5*time.Millisecond))
		}
	}
}

// begins bounds how many handshakes are begun because peers ask for them or were restarted: who comes back to a mesh of a thousand
// would otherwise begin a thousand at once, whose answers come at once, and each takes 64 KiB while it waits. What somebody sends
// packets for is not bounded here. Only Run's goroutine uses it.
type begins struct {
	left float64
	at   time.Time
}

const (
	beginMost = 32  // at once
	beginRate = 250 // a second: 5 % of a core
	beginWait = 20 * time.Millisecond
)

func (b *begins) take(now time.Time) bool {
	b.left = min(beginMost, b.left+beginRate*now.Sub(b.at).Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// lateAfter is how late Run may be without doubt in its own clock; sleptAfter is how far the clocks may part without the
// machine having slept (or its clock having been set, after which looking for ways anew does no harm).
const (
	lateAfter  = 150 * time.Millisecond
	sleptAfter = 5 * time.Second
)

// tick does what a peer's path asks for, and returns when to do so again (zero: when it is woken).
func (p *Peer) tick(now time.Time) time.Time {
	l := p.link
	p.mu.Lock()
	if !p.ready {
		p.mu.Unlock()
		return time.Time{}
	}
	p.sync()
	p.path.ask(p.want.Load() && !p.leads())
	dead := p.path.dead()
	outs, next := p.path.tick(now)
	if b := p.path.best; b != nil && b.missed > 0 {
		delete(p.eps, b.way.Addr) // the address that it was sent from may be gone
	}
	changed := p.publish() || p.path.dead() != dead
	best, parked := p.best.Load(), p.parked
	if best != nil {
		p.parked = nil
	}
	again, void := p.begun.Add(rekeyTimeout), p.void
	if void {
		again = p.begun.Add(rekeyTimeout / 10) // the last one may have been with the new run
	}
	begin := p.lost && best != nil && !now.Before(again)
	if begin && !l.begins.take(now) {
		begin, again = false, now.Add(beginWait)
	}
	if begin {
		p.lost, p.void = false, false
	} else if p.lost {
		next = sooner(next, again)
	}
	asking := p.path.asking
	p.mu.Unlock()
	p.transmit(outs, asking)
	if best != nil && parked != nil {
		l.put([][]byte{parked}, best)
	}
	if begin {
		l.Handshake(p.key, void)
	}
	if changed && l.Changed != nil {
		l.Changed(p)
	}
	return next
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
		clear(p.eps)
		outs, asking := p.path.moved(now), p.path.asking
		p.mu.Unlock()
		p.transmit(outs, asking)
		p.wake()
	}
}

// transmit sends probes. They say whether the peer is to begin a handshake.
func (p *Peer) transmit(outs []out, asking bool) {
	if len(outs) == 0 {
		return
	}
	grant := p.link.grants.of(p, time.Now())
	for _, o := range outs {
		p.mu.Lock()
		ep := p.endpoint(o.to.Addr)
		p.mu.Unlock()
		o.p.want, o.p.run, o.p.grant = asking, p.link.run, grant
		// A candidate that cannot be reached from here is nothing to speak of: it is pinged again.
		switch {
		case o.to.relayed():
			if first := p.link.byIDPeer(o.to.Via[0]); first != nil {
				p.link.put([][]byte{p.send.seal(o.p)}, &route{first: first, trailer: o.to.Via.trailer(p.link.id, p.id)})
			}
		case o.to.Stream:
			p.link.put([][]byte{p.send.seal(o.p)}, &route{stream: p.Name})
		default:
			p.link.write([][]byte{p.send.seal(o.p)}, ep)
		}
	}
}

// streamed is a datagram that came over a stream.
type streamed struct {
	from *Peer
	b    []byte
}

// Receive takes datagrams that came over a stream from the peer; they are copied. Too many at once are dropped.
func (p *Peer) Receive(bufs [][]byte) {
	for _, b := range bufs {
		select {
		case p.link.streamed <- streamed{p, bytes.Clone(b)}:
		default:
			return
		}
	}
}

// Open implements conn.Bind.
func (l *Link) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := l.Bind.Open(port)
	if err != nil {
		return fns, port, err
	}
	for i, fn := range fns {
		s := sorter{l: l}
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(bufs, sizes, eps)
			s.now = time.Time{}
			for i := range n {
				if b := bufs[i][:sizes[i]]; len(b) > 4 && (b[1] == relayMark || b[0] >= kindPing) {
					ep, ok := eps[i].(*conn.StdNetEndpoint)
					sizes[i] = 0 // the engine passes it over
					if ok {
						sizes[i], eps[i] = l.ours(&s, b, Way{Addr: unmap(ep.AddrPort)}, eps[i])
					}
				}
			}
			s.flush()
			return n, err
		}
	}
	closed := make(chan struct{})
	l.mu.Lock()
	l.closed = closed
	l.mu.Unlock()
	s := sorter{l: l}
	return append(fns, func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case d := <-l.streamed:
			s.now = time.Time{}
			sizes[0], eps[0] = copy(bufs[0], d.b), d.from
			if b := bufs[0][:sizes[0]]; len(b) > 4 && (b[1] == relayMark || b[0] >= kindPing) {
				sizes[0], eps[0] = l.ours(&s, b, Way{Stream: true}, d.from)
				s.flush()
			}
			return 1, nil
		}
	}), port, nil
}

// Close implements conn.Bind.
func (l *Link) Close() error {
	l.mu.Lock()
	if l.closed != nil {
		close(l.closed)
		l.closed = nil
	}
	l.mu.Unlock()
	return l.Bind.Close()
}

// ours takes a packet that is not plain WireGuard: a probe, or one that goes through relays. It returns how much of it the
// engine is to have, and as whose.
func (l *Link) ours(s *sorter, b []byte, w Way, ep conn.Endpoint) (int, conn.Endpoint) {
	if b[1] == relayMark {
		if s.now.IsZero() {
			s.now = time.Now()
		}
		inner, way, origin, arrived := s.sort(b)
		if !arrived {
			return 0, ep
		}
		b, w = inner, way
		if p := l.byIDPeer(origin); p != nil {
			ep = p
		} else if b[0] < kindPing {
			return 0, ep // a session with somebody who is no peer: the engine has none either
		}
	}
	if isProbe(b) {
		var from *conn.StdNetEndpoint
		if w.udp() {
			from, _ = ep.(*conn.StdNetEndpoint)
		}
		if b[0] >= kindAsk {
			l.check(b, from)
		} else {
			l.probe(b, w, from)
		}
		return 0, ep
	}
	return len(b), ep
}

// The first byte of WireGuard's messages.
const (
	initiation = 1
	response   = 2
	cookie     = 3
)

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// probe takes a frame that came in; ep is where from, if it came directly over UDP.
func (l *Link) probe(b []byte, from Way, ep *conn.StdNetEndpoint) {
	p := l.byIDPeer(frameID(b))
	var f probe
	ready := false
	if p != nil {
		var ok bool
		if f, ok = p.recv.open(b); !ok {
			return
		}
		p.mu.Lock()
		ready = p.ready
		p.mu.Unlock()
	}
	if !ready { // an answer would promise that handshakes are answered too
		if l.Stranger != nil {
			b = bytes.Clone(b)
			l.Stranger(frameID(b), func(p *Peer) bool { _, ok := p.recv.open(b); return ok }, func() { l.probe(b, from, ep) })
		}
		return
	}
	now := time.Now()
	p.mu.Lock()
	p.sync()
	if ep != nil {
		p.keepEndpoint(ep)
	}
	kept := p.path.kept
	outs, wants, anew := p.path.handle(f, from, now)
	if f.kind == kindPong && f.seen.IsValid() && from.udp() {
		p.seen = f.seen
	}
	if f.grant != 0 && (f.kind == kindPong || p.granted.Load() == 0) {
		p.granted.Store(f.grant)
	}
	switch {
	case anew && !p.leads():
		p.want.Store(true)
	case anew:
		p.lost, p.void = true, true
	case wants && p.leads() && now.Sub(p.begun) >= rekeyTimeout: // before, it may not have seen the last initiation yet
		p.lost = true
	}
	changed := p.publish() || f.keep && now.Sub(kept) > seenLasts
	asking := p.path.asking
	p.mu.Unlock()
	p.transmit(outs, asking)
	p.wake()
	if changed && l.Changed != nil {
		l.Changed(p)
	}
}

// Send implements conn.Bind. Where there is no way to a peer yet, the engine's packets are lost, as on a cable that is
// not plugged in, except its last initiation, and Run looks for one.
func (l *Link) Send(bufs [][]byte, ep conn.Endpoint) error {
	p, ok := ep.(*Peer)
	if !ok {
		return l.write(bufs, ep) // an answer to somebody not authenticated, as a cookie
	}
	if len(bufs) == 0 || len(bufs[0]) == 0 {
		return nil
	}
	now := time.Now()
	best := p.best.Load()
	kind := bufs[0][0]
	if best == nil || kind == initiation {
		defer p.wake()
	}
	switch {
	case kind > cookie:
		if !p.sealing.Load() {
			p.sealing.Store(true)
		}
	case kind == initiation:
		p.sealing.Store(false)
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
		return l.put(bufs, best)
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
		r := &route{stream: p.Name}
		switch {
		case o.to.udp():
			r = &route{ep: &conn.StdNetEndpoint{AddrPort: o.to.Addr}}
		case o.to.relayed():
			r = &route{first: l.byIDPeer(o.to.Via[0]), trailer: o.to.Via.trailer(l.id, p.id)}
			if r.first == nil {
				continue
			}
		}
		l.put([][]byte{bytes.Clone(bufs[0])}, r)
	}
	return nil
}

// put sends a batch on a route. It may write behind the packets.
func (l *Link) put(bufs [][]byte, r *route) error {
	switch {
	case r.first != nil:
		d, grant := r.first.direct.Load(), r.first.granted.Load()
		if d == nil || grant == 0 {
			return nil // the relay is out of reach for now: pings tell
		}
		r.first.carries(time.Now(), bufs[0][0] < kindPing) // the way to the relay is in use too
		for i, b := range bufs {
			b = append(b, r.trailer...)
			binary.LittleEndian.PutUint64(b[len(b)-fixedTail:], grant)
			b[1] = relayMark
			bufs[i] = b
		}
		return l.put(bufs, d)
	case r.stream != "":
		if l.Stream == nil {
			return nil
		}
		return l.Stream(r.stream, bufs)
	}
	return l.deliver(bufs, r.ep)
}

// write sends a batch. wireguard-go's Bind keeps addresses in a pool, and an IPv6 address that it writes into one that has
// held an IPv4 address gets its first four bytes only (WireGuard/wireguard-go#135); the next user of the same finds it
// mended. So before a batch goes by IPv6 an empty one does, with nobody in between who could take what it puts back.
func (l *Link) write(bufs [][]byte, ep conn.Endpoint) error {
	if !ep.DstIP().Is6() {
		l.family.RLock()
		defer l.family.RUnlock()
		return l.Bind.Send(bufs, ep)
	}
	l.family.Lock()
	defer l.family.Unlock()
	l.Bind.Send(nil, ep)
	return l.Bind.Send(bufs, ep)
}

// deliver sends a batch; where one packet is too large for the way, the others still go.
func (l *Link) deliver(bufs [][]byte, ep *conn.StdNetEndpoint) error {
	err := l.write(bufs, ep)
	if !errors.Is(err, syscall.EMSGSIZE) || len(bufs) == 1 {
		return err
	}
	for i := range bufs {
		if e := l.write(bufs[i:i+1], ep); e == nil {
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
	if b := p.best.Load(); b != nil && b.ep != nil {
		return b.ep.AddrPort.Addr()
	}
	var a [16]byte // one of its own for each peer, from the range for documentation
	copy(a[:], []byte{0x20, 0x01, 0x0d, 0xb8})
	copy(a[10:], p.id[:])
	return netip.AddrFrom16(a)
}

// SrcIP implements conn.Endpoint.
func (p *Peer) SrcIP() netip.Addr { return netip.Addr{} }
