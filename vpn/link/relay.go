// SPDX-License-Identifier: MIT

package link

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A packet that goes through other nodes is the sealed packet as it is, with the whole route behind it. Its sender
// chooses the route (source routing), each relay takes one step, so no packet can go round in circles and no relay decides
// anything. Behind the packet, all lengths fixed along the way so that batches stay whole:
//
//	slots   2 to 4 IDs: at first the origin, the relays after the first, the destination; each relay puts its own ID where
//	        it found that of the next, so that the destination reads origin and relays, which is the way back
//	grant   8 bytes that the receiver of this step has given its sender in a sealed pong: nobody else is relayed for
//	tail    1 byte: number of slots << 4 | slots done
//
// and the second byte of the packet, zero in WireGuard's messages and our probes, is relayMark until it arrives.
//
// A grant is not a signature: who can watch a link can use its grant for some minutes to send junk, which the destination
// drops, at one packet for one. Forging costs as much as breaking into the path; checking costs one comparison per packet.
const (
	relayMark  = 0x6d
	maxRelays  = 3
	idSize     = len(ID{})
	fixedTail  = 8 + 1
	maxTrailer = (maxRelays+1)*idSize + fixedTail

	grantLasts = 2 * time.Minute // and as long again while the next is given out
	rateBurst  = 100 * time.Millisecond
)

// Route is the relays on the way to a node, the nearest first: comparable, none at the end of a shorter one.
type Route [maxRelays]ID

// Len is the number of relays.
func (r Route) Len() int {
	if i := slices.Index(r[:], ID{}); i >= 0 {
		return i
	}
	return maxRelays
}

// reversed is the way back.
func (r Route) reversed() (back Route) {
	n := r.Len()
	for i := range n {
		back[i] = r[n-1-i]
	}
	return back
}

// trailer is what goes behind a packet from one node to another on this route. The grant is to be filled in.
func (r Route) trailer(from, to ID) []byte {
	n := r.Len()
	b := make([]byte, 0, (n+1)*idSize+fixedTail)
	b = append(b, from[:]...)
	for _, id := range r[1:max(n, 1)] {
		b = append(b, id[:]...)
	}
	b = append(b, to[:]...)
	b = append(b, make([]byte, 8)...)
	return append(b, byte(n+1)<<4|1)
}

// trailerSize is how many bytes a route adds to each packet.
func (r Route) trailerSize() int {
	if n := r.Len(); n > 0 {
		return (n+1)*idSize + fixedTail
	}
	return 0
}

// step is a trailer as a node finds it.
type step struct {
	b    []byte // the trailer, in the packet
	n    int    // slots
	done int    // 1 to n
}

// parseStep finds the trailer of a marked packet.
func parseStep(b []byte) (s step, ok bool) {
	if len(b) < 1 {
		return s, false
	}
	tail := b[len(b)-1]
	s.n, s.done = int(tail>>4), int(tail&15)
	size := s.n*idSize + fixedTail
	if s.n < 2 || s.n > maxRelays+1 || s.done < 1 || s.done > s.n || len(b) < size+4 {
		return s, false
	}
	s.b = b[len(b)-size:]
	return s, true
}

func (s step) slot(i int) ID { return ID(s.b[i*idSize:]) }
func (s step) grant() uint64 { return binary.LittleEndian.Uint64(s.b[s.n*idSize:]) }

// last reports whether the packet has arrived, as far as it says.
func (s step) last() bool { return s.done == s.n }

// back is the way to the origin of a packet that has arrived.
func (s step) back() (origin ID, r Route) {
	for i := 1; i < s.n; i++ {
		r[i-1] = s.slot(i)
	}
	return s.slot(0), r.reversed()
}

// advance makes it what self sends on, under the grant of the next.
func (s step) advance(self ID, grant uint64) {
	copy(s.b[s.done*idSize:], self[:])
	binary.LittleEndian.PutUint64(s.b[s.n*idSize:], grant)
	s.b[len(s.b)-1] = byte(s.n)<<4 | byte(s.done+1)
}

// grants are what this node has given out.
type grants struct {
	mu sync.RWMutex
	by map[uint64]*Peer
}

// of returns what p is to put into packets that this node relays or takes for others, making all anew now and then.
func (g *grants) of(p *Peer, now time.Time) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(p.grantAt) > grantLasts {
		delete(g.by, p.grantOld)
		p.grantOld, p.grantNew, p.grantAt = p.grantNew, 1+rand.Uint64N(1<<63), now
		g.by[p.grantNew] = p
	}
	return p.grantNew
}

// forget takes a peer's grants back.
func (g *grants) forget(p *Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.by, p.grantOld)
	delete(g.by, p.grantNew)
}

func (g *grants) holder(grant uint64) *Peer {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.by[grant]
}

// allowance is how much one peer may have relayed: a token bucket.
type allowance struct {
	mu   sync.Mutex
	at   time.Time
	left float64 // bytes
}

func (a *allowance) take(n int, rate float64, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = min(a.left+now.Sub(a.at).Seconds()*rate, rate*rateBurst.Seconds()+1<<17)
	a.at = now
	if a.left < float64(n) {
		return false
	}
	a.left -= float64(n)
	return true
}

// sorter is one receive call's work on relayed packets: consecutive ones of one sender to one next node stay a batch.
type sorter struct {
	l     *Link
	now   time.Time
	grant uint64 // of the packet before
	from  *Peer  // its sender
	next  *Peer
	batch [][]byte
	data  bool // some of it is more than probes
}

// sort takes a marked packet. If it has arrived, it returns it as it was before relays, with its way.
func (s *sorter) sort(b []byte) (inner []byte, w Way, origin ID, arrived bool) {
	st, ok := parseStep(b)
	if !ok {
		return nil, w, origin, false
	}
	if g := st.grant(); g != s.grant || s.from == nil {
		s.grant, s.from = g, s.l.grants.holder(g)
	}
	if s.from == nil || s.from.id != st.slot(st.done-1) {
		return nil, w, origin, false
	}
	if st.last() {
		origin, w.Via = st.back()
		b[1] = 0
		return b[:len(b)-len(st.b)], w, origin, true
	}
	next := s.next
	if id := st.slot(st.done); next == nil || next.id != id {
		next = s.l.byIDPeer(id)
	}
	if next == nil || next == s.from || !s.l.relays.Load() || next.direct.Load() == nil {
		return nil, w, origin, false
	}
	g := next.granted.Load()
	if rate := s.l.rate.Load(); g == 0 || rate > 0 && !s.from.relayed.take(len(b), float64(rate), s.now) {
		return nil, w, origin, false
	}
	if next != s.next {
		s.flush()
		s.next = next
	}
	st.advance(s.l.id, g)
	s.batch = append(s.batch, b)
	s.data = s.data || b[0] < kindPing
	s.l.relayedBytes.Add(uint64(len(b)))
	return nil, w, origin, false
}

// flush sends what has been collected.
func (s *sorter) flush() {
	if len(s.batch) > 0 {
		s.next.carries(s.now, s.data)
		if d := s.next.direct.Load(); d != nil {
			s.l.put(s.batch, d)
		}
		s.batch, s.data = s.batch[:0], false
	}
}

// Way is how packets get to a peer: to an address over UDP, over a stream, or through relays. The zero Way is none.
type Way struct {
	Addr   netip.AddrPort
	Via    Route
	Stream bool
}

func (w Way) valid() bool   { return w != Way{} }
func (w Way) relayed() bool { return w.Via != Route{} }

// route is a Way as the hot path needs it.
type route struct {
	way     Way
	ep      *conn.StdNetEndpoint // UDP
	stream  string               // the peer's name
	first   *Peer                // the first relay
	trailer []byte
}

// String is how a way is shown where names are not known.
func (w Way) String() string {
	switch {
	case w.relayed():
		var s []string
		for _, id := range w.Via[:w.Via.Len()] {
			s = append(s, hex.EncodeToString(id[:]))
		}
		return "via " + strings.Join(s, ", ")
	case w.Stream:
		return "tls"
	case w.valid():
		return w.Addr.String()
	}
	return "none"
}
