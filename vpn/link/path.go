// SPDX-License-Identifier: MIT

package link

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// path chooses the address at which one peer is reached. It is a machine without clock, socket or lock: events and the
// time go in, frames to send come out.
//
//	       send            pong
//	Idle ───────▶ Probing ───────▶ Direct ──┐ silent: candidates are pinged, the first that answers is used
//	  ▲              │                ▲     │
//	  └──────────────┘                └─────┘
//	  no answer and nothing to send
//
// An address is used only after our own ping to it was answered with the peer's key, so nobody can draw traffic away by
// replaying what the peer once sent. Until one is confirmed, handshakes go to every candidate.
type path struct {
	cands     map[netip.AddrPort]*candidate
	best      netip.AddrPort // zero: none is confirmed
	keep      bool           // a neighbour: kept warm
	lastSend  time.Time      // something for the peer was handed in
	lastHeard time.Time      // an authentic packet of the peer came in
	nextPing  time.Time      // not before this
	round     int            // pings sent to all since something was heard
}

type candidate struct {
	addr      netip.AddrPort
	known     bool // from the peer's record or its public name; others were only seen
	seen      time.Time
	txid      uint64
	sent      time.Time // of the ping txid; zero: answered
	lost      int       // pings in a row without an answer
	confirmed bool
	rtt       time.Duration // smoothed (RFC 6298 section 2)
}

// Time constants of a path.
const (
	silentAfter   = 2 * time.Second // sent but nothing heard for so long: ask
	probeEvery    = 400 * time.Millisecond
	probeSlow     = 5 * time.Second // after probeFast rounds
	probeFast     = 10
	demandLasts   = 10 * time.Second
	keepEvery     = 20 * time.Second
	seenLasts     = 3 * time.Minute
	maxCandidates = 12
)

// out is a frame that a path wants sent.
type out struct {
	to netip.AddrPort
	p  probe
}

func newPath() *path { return &path{cands: map[netip.AddrPort]*candidate{}} }

// setKnown replaces the addresses that the peer is said to have.
func (p *path) setKnown(addrs []netip.AddrPort) {
	for _, c := range p.cands {
		c.known = false
	}
	for _, a := range addrs {
		if c := p.add(a); c != nil {
			c.known = true
		}
	}
}

func (p *path) add(a netip.AddrPort) *candidate {
	if c := p.cands[a]; c != nil {
		return c
	}
	if len(p.cands) >= maxCandidates {
		var worst *candidate
		for _, c := range p.cands {
			if !c.known && c.addr != p.best && (worst == nil || c.seen.Before(worst.seen)) {
				worst = c
			}
		}
		if worst == nil {
			return nil
		}
		delete(p.cands, worst.addr)
	}
	c := &candidate{addr: a}
	p.cands[a] = c
	return c
}

// tick does what time asks for, and returns the frames to send and when to be called again (zero: on an event only).
func (p *path) tick(now time.Time) (outs []out, next time.Time) {
	for a, c := range p.cands {
		if !c.known && a != p.best && now.Sub(c.seen) > seenLasts {
			delete(p.cands, a)
		}
	}
	demand := now.Sub(p.lastSend) < demandLasts
	var every time.Duration
	switch {
	case !p.best.IsValid() && (demand || p.keep):
		every = probeEvery
		if p.round >= probeFast {
			every = probeSlow
		}
	case p.best.IsValid() && demand && p.lastSend.After(p.lastHeard) && now.Sub(p.lastHeard) >= silentAfter:
		every = probeEvery
		if p.round >= 4*probeFast {
			every = probeSlow
		}
	case p.best.IsValid() && demand:
		return nil, now.Add(silentAfter / 2)
	case p.best.IsValid() && p.keep:
		if now.Sub(p.lastHeard) < keepEvery {
			return nil, p.lastHeard.Add(keepEvery)
		}
		every = probeEvery
		if p.round >= probeFast {
			every = probeSlow
		}
	default:
		return nil, time.Time{}
	}
	if now.Before(p.nextPing) {
		return nil, p.nextPing
	}
	outs = p.pingAll(now, false)
	p.round++
	p.nextPing = now.Add(every - every/8 + rand.N(every/4))
	return outs, p.nextPing
}

func (p *path) pingAll(now time.Time, moved bool) (outs []out) {
	for _, c := range p.cands {
		outs = append(outs, p.ping(c, now, moved))
	}
	return outs
}

func (p *path) ping(c *candidate, now time.Time, moved bool) out {
	if !c.sent.IsZero() {
		c.lost++
	}
	c.txid, c.sent = rand.Uint64(), now
	return out{c.addr, probe{kind: kindPing, txid: c.txid, moved: moved}}
}

// handle takes an authentic frame of the peer.
func (p *path) handle(f probe, from netip.AddrPort, now time.Time) (outs []out) {
	switch f.kind {
	case kindPing:
		outs = append(outs, out{from, probe{kind: kindPong, txid: f.txid}})
		c := p.add(from)
		if c == nil {
			return outs
		}
		c.seen = now
		if f.moved { // all that was measured is void; the old way stays in use until another is confirmed
			for _, c := range p.cands {
				c.confirmed = false
			}
		}
		if (!c.confirmed || p.silent(now)) && now.Sub(c.sent) > probeEvery/2 {
			outs = append(outs, p.ping(c, now, false))
		}
	case kindPong:
		c := p.cands[from]
		if c == nil || c.sent.IsZero() || c.txid != f.txid {
			return nil // not asked, or not there: an answer to a ping sent elsewhere confirms nothing
		}
		sample := now.Sub(c.sent)
		if c.rtt == 0 {
			c.rtt = sample
		} else {
			c.rtt += (sample - c.rtt) / 8
		}
		c.sent, c.lost, c.confirmed, c.seen = time.Time{}, 0, true, now
		// The first to answer while the address in use is silent takes over; otherwise only one that is clearly nearer.
		if b := p.cands[p.best]; b == nil || !b.confirmed || b.lost >= 2 || p.silent(now) || c.rtt < b.rtt*4/5-2*time.Millisecond {
			p.best = c.addr
		}
		p.heard(now)
	}
	return outs
}

func (p *path) silent(now time.Time) bool {
	return p.lastSend.After(p.lastHeard) && now.Sub(p.lastHeard) > silentAfter
}

// heard notes that the peer is there.
func (p *path) heard(now time.Time) {
	p.lastHeard, p.round = now, 0
}

// moved starts over because this node's own addresses have changed.
func (p *path) moved(now time.Time) []out {
	if !p.keep && now.Sub(p.lastSend) > demandLasts && now.Sub(p.lastHeard) > time.Minute {
		return nil
	}
	for _, c := range p.cands {
		c.confirmed = false
	}
	p.round = 0
	p.nextPing = now.Add(probeEvery)
	return p.pingAll(now, true)
}
