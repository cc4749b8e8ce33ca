// SPDX-License-Identifier: MIT

// Package queue is the fair queue in front of the tunnel engine. It is FQ-CoDel (RFC 8290) with three changes: flows
// share what their peer gets, and peers share the engine alike; a flow is found in a set-associative table, as in Linux's
// sch_cake, so that two flows are hardly ever taken for one; and what is dropped is one packet of a super-packet.
//
//	fresh: flows that had nothing waiting ── first, whatever the engine has to do
//	peers: each a ring of flows with a backlog ── in turn (deficit round robin), as far as the engine has room (Limit)
//
// A Queue knows no clock and no lock: it is used by one goroutine, which says what time it is. A Limit is safe for
// concurrent use.
package queue

import (
	"hash/maphash"
	"math"
	"sync/atomic"
	"time"

	"mesh.internal/mesh/vpn/ip"
)

// CoDel's two constants (RFC 8289): the first is the time that a packet may wait in a standing queue, and the second is as
// long as a round trip. They are a fifth and a tenth of what is usual on the Internet's bottlenecks: this queue stands when
// this machine's processor is the bottleneck, at Gbit/s, and the round trip is that of a LAN.
const (
	Target   = time.Millisecond
	Interval = 10 * time.Millisecond
)

const (
	maxBytes = 8 << 20 // of memory, in all flows; then the longest flow loses packets
	sparse   = 3000    // bytes that a flow without backlog may send before all others
	quantum  = 1 << 16 // bytes of a turn, of a flow and of a peer: one super-packet
	sets     = 64      // of ways flows each
	ways     = 8
)

// Packet is a packet or super-packet that waits.
type Packet[P any] struct {
	Data []byte // the packet
	GSO  ip.GSO
	Next int // of its packets, the first that Cut has still to make
	Peer *Peer[P]

	buf   []byte // what Data lies in
	since time.Time
	next  *Packet[P]
}

// Peer is one node's share of the queue. Value is the caller's.
type Peer[P any] struct {
	Value P

	flows   ring[P] // that have, or just had, a backlog
	deficit int
	next    *Peer[P]
	queued  bool
}

type flow[P any] struct {
	tag         uint64 // hash of the conversation
	peer        *Peer[P]
	head, tail  *Packet[P]
	bytes       int
	deficit     int
	state       state
	next        *flow[P]
	aboveSince  time.Time // CoDel: first_above_time less Interval; zero: not above Target
	dropNext    time.Time
	drops, last int
	dropping    bool
}

type state byte

const (
	idle state = iota
	fresh
	old
)

// ring is a list of flows, each in one list at most.
type ring[P any] struct{ head, tail *flow[P] }

func (r *ring[P]) push(f *flow[P]) {
	if f.next = nil; r.head == nil {
		r.head = f
	} else {
		r.tail.next = f
	}
	r.tail = f
}

func (r *ring[P]) pop() *flow[P] {
	f := r.head
	r.head = f.next
	return f
}

// Queue is a fair queue for the packets of peers, of which the caller keeps a P each.
type Queue[P any] struct {
	seed  maphash.Seed
	flows [sets * ways]flow[P]
	fresh ring[P]
	peers struct{ head, tail *Peer[P] }
	bytes int // of memory
	// Dropped counts packets that were dropped to keep the queue short, and because it was full. Any goroutine may read it.
	Dropped struct{ Late, Full atomic.Uint64 }
	pool    pool[P]
}

// New returns an empty queue.
func New[P any]() *Queue[P] { return &Queue[P]{seed: maphash.MakeSeed()} }

// Push takes a packet that came at now, for a peer. Its Data is kept until it is given to Free.
func (q *Queue[P]) Push(p *Packet[P], peer *Peer[P], now time.Time) {
	p.Peer, p.since, p.next, p.Next = peer, now, nil, 0
	f := q.find(p.Data, peer)
	if f.head == nil {
		f.head = p
	} else {
		f.tail.next = p
	}
	f.tail = p
	f.bytes += len(p.Data)
	if f.state == idle {
		f.peer, f.dropping, f.aboveSince = peer, false, time.Time{}
		if f.deficit = sparse; len(p.Data) <= sparse {
			f.state = fresh
			q.fresh.push(f)
		} else {
			q.turn(f)
		}
	}
	if q.bytes += len(p.buf); q.bytes > maxBytes {
		q.overflow()
	}
}

// find returns the flow of a packet: the one that has its tag, or an idle one, or, if a set has none, another's.
func (q *Queue[P]) find(data []byte, peer *Peer[P]) *flow[P] {
	key, _ := ip.FlowOf(data)
	h := maphash.Comparable(q.seed, key)
	set := q.flows[h%sets*ways:][:ways]
	var free *flow[P]
	for i := range set {
		if f := &set[i]; f.state != idle && f.tag == h && f.peer == peer {
			return f
		} else if f.state == idle && free == nil {
			free = f
		}
	}
	if free == nil {
		return &set[h>>32%ways]
	}
	free.tag = h
	return free
}

// turn puts a flow at the end of its peer's ring, and the peer at the end of the peers'.
func (q *Queue[P]) turn(f *flow[P]) {
	f.state = old
	f.peer.flows.push(f)
	if p := f.peer; !p.queued {
		p.queued, p.deficit = true, quantum
		q.pushPeer(p)
	}
}

func (q *Queue[P]) pushPeer(p *Peer[P]) {
	if p.next = nil; q.peers.head == nil {
		q.peers.head = p
	} else {
		q.peers.tail.next = p
	}
	q.peers.tail = p
}

// Sparse returns the next packet of a flow that had nothing waiting, or nil.
func (q *Queue[P]) Sparse(now time.Time) *Packet[P] {
	for q.fresh.head != nil {
		f := q.fresh.head
		if f.deficit <= 0 || f.head != nil && len(f.head.Data) > sparse {
			q.fresh.pop()
			q.turn(f)
			continue
		}
		if p := q.take(f, now); p != nil {
			f.deficit -= len(p.Data)
			return p
		}
		// It may not be fresh again until its peer's others have had their turn (RFC 8290 section 4.2).
		q.fresh.pop()
		q.turn(f)
	}
	return nil
}

// Bulk returns the next packet of a flow with a backlog, of a peer for which room is true, or nil. A flow whose last
// packet has been taken counts as one with a backlog until there was room for its peer again: what it has sent may be
// what fills the engine.
func (q *Queue[P]) Bulk(now time.Time, room func(*Peer[P]) bool) *Packet[P] {
	var last *Peer[P] // the first peer that had no room: all others have been asked when it comes again
	for q.peers.head != nil && q.peers.head != last {
		peer := q.peers.head
		if peer.deficit <= 0 {
			peer.deficit += quantum // more than any packet took: next time it may send
			q.rotate()
			last = nil
			continue
		}
		if !room(peer) {
			if last == nil {
				last = peer
			}
			q.rotate()
			continue
		}
		if !q.backlogged(peer) {
			q.peers.head = peer.next
			peer.queued = false
			continue
		}
		f := peer.flows.head
		if p := q.take(f, now); p != nil {
			f.deficit -= len(p.Data)
			peer.deficit -= len(p.Data)
			return p
		}
	}
	return nil
}

func (q *Queue[P]) rotate() {
	p := q.peers.head
	q.peers.head = p.next
	q.pushPeer(p)
}

// backlogged brings a flow that may send to the head of the peer's ring, and reports whether there is one.
func (q *Queue[P]) backlogged(p *Peer[P]) bool {
	for p.flows.head != nil {
		f := p.flows.head
		switch {
		case f.head == nil:
			p.flows.pop()
			f.state = idle
		case f.deficit <= 0:
			f.deficit += quantum
			p.flows.pop()
			p.flows.push(f)
		default:
			return true
		}
	}
	return false
}

// take takes a flow's first packet that CoDel does not drop; it drops one packet of a super-packet and returns the others.
func (q *Queue[P]) take(f *flow[P], now time.Time) *Packet[P] {
	for f.head != nil {
		p := f.head
		f.head = p.next
		f.bytes -= len(p.Data)
		q.bytes -= len(p.buf)
		if !f.late(p, now) {
			return p
		}
		q.Dropped.Late.Add(1)
		if p.Next++; p.Next < p.GSO.Count(p.Data) {
			return p
		}
		q.Free(p)
	}
	f.dropping = false
	return nil
}

// late is CoDel: it reports whether a packet is to be dropped (RFC 8289 section 5.6).
func (f *flow[P]) late(p *Packet[P], now time.Time) bool {
	if now.Sub(p.since) < Target || f.head == nil { // one super-packet may always wait
		f.aboveSince, f.dropping = time.Time{}, false
		return false
	}
	if f.aboveSince.IsZero() {
		f.aboveSince = now
	}
	switch {
	case f.dropping:
		if now.Before(f.dropNext) {
			return false
		}
		f.drops++
		f.dropNext = f.dropNext.Add(law(f.drops))
	case now.Sub(f.aboveSince) < Interval:
		return false
	default:
		f.dropping = true
		// Where dropping has just ended, the rate that was right then is near to what is right now.
		if n := f.drops - f.last; n > 1 && now.Sub(f.dropNext) < 16*Interval {
			f.drops = n
		} else {
			f.drops = 1
		}
		f.last = f.drops
		f.dropNext = now.Add(law(f.drops))
	}
	return true
}

// law is CoDel's control law: TCP's rate falls with the square root of the losses.
func law(drops int) time.Duration {
	return time.Duration(float64(Interval) / math.Sqrt(float64(drops)))
}

// overflow drops packets from the head of the longest flow until it is half as long (RFC 8290 section 4.1.2, as in Linux).
func (q *Queue[P]) overflow() {
	longest := &q.flows[0]
	for i := range q.flows {
		if f := &q.flows[i]; f.bytes > longest.bytes {
			longest = f
		}
	}
	for half := longest.bytes / 2; longest.head != nil && longest.bytes > half; {
		p := longest.head
		longest.head = p.next
		longest.bytes -= len(p.Data)
		q.bytes -= len(p.buf)
		q.Dropped.Full.Add(1)
		q.Free(p)
	}
}

// Empty reports whether no packet waits.
func (q *Queue[P]) Empty() bool { return q.bytes == 0 }
