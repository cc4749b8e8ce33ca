// SPDX-License-Identifier: MIT

package link

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// path chooses the address at which one peer is reached. It is a machine without clock, socket or lock: events and the
// time go in, frames to send come out.
//
//	       send            pong
//	Idle ───────▶ Probing ───────▶ Direct ──┐ silent: candidates are pinged; if the address in use does not answer
//	  ▲              │                ▲     │ in time and another does, that one is used
//	  └──────────────┘                └─────┘
//	  no answer and nothing to send
//
// An address is used only after our own ping to it was answered with the peer's key, so nobody can draw traffic away by
// replaying what the peer once sent.
type path struct {
	cands     map[netip.AddrPort]*candidate
	best      netip.AddrPort // zero: none is confirmed
	keep      bool           // a neighbour: kept warm
	asking    bool           // the peer is to begin a handshake
	lastSend  time.Time      // something for the peer was handed in
	lastHeard time.Time      // an authentic packet of the peer came in
	nextPing  time.Time      // not before this
	round     int            // pings sent to all since something was heard
	run       uint32         // of the peer, as it said last; 0: not known
}

type candidate struct {
	addr      netip.AddrPort
	known     bool           // from the peer's record or its public name; others were only seen
	seen      time.Time      // when a frame last came from there
	pings     [pingsOut]ping // the last ones, the newest first
	waiting   time.Time      // since when an answer is waited for; zero: none is
	answered  time.Time
	confirmed bool
	rtt       time.Duration // smoothed (RFC 6298 section 2)
}

// ping is a question that may still be answered.
type ping struct {
	txid uint64
	at   time.Time
}

// Time constants of a path.
const (
	silentAfter   = 500 * time.Millisecond // sent but nothing heard for so long: ask; twice that, if nothing was sent since
	answersIn     = 100 * time.Millisecond // and twice the round trip
	probeEvery    = 400 * time.Millisecond
	probeSlow     = 5 * time.Second // after probeFast rounds
	probeFast     = 10
	pingsOut      = 4 // so that a round trip of pingsOut*probeEvery can be measured
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

// ask says whether the peer is to begin a handshake, which its next ping tells it.
func (p *path) ask(on bool) {
	if on && !p.asking {
		p.nextPing = time.Time{}
	}
	p.asking = on
}

// tick does what time asks for, and returns the frames to send and when to be called again (zero: on an event only).
func (p *path) tick(now time.Time) (outs []out, next time.Time) {
	for a, c := range p.cands {
		if !c.known && a != p.best && now.Sub(c.seen) > seenLasts {
			delete(p.cands, a)
		}
	}
	b := p.cands[p.best]
	if b != nil && b.overdue(now) {
		if other := p.answeredSince(b.waiting); other != nil {
			p.best, b = other.addr, other
		}
	}
	demand := now.Sub(p.lastSend) < demandLasts
	every, start := p.interval(demand)
	switch {
	case every == 0:
	case now.Before(start):
		next = start
		if demand { // what is sent meanwhile does not wake us
			next = sooner(next, now.Add(silentAfter))
		}
	case now.Before(p.nextPing):
		next = p.nextPing
	default:
		outs = p.pingAll(now, false)
		p.round++
		p.nextPing = now.Add(every - every/8 + rand.N(every/4))
		next = p.nextPing
	}
	if b != nil && !b.waiting.IsZero() && !b.overdue(now) {
		next = sooner(next, b.due())
	}
	return outs, next
}

// interval says how often to ping all candidates (0: not at all) and from when on.
func (p *path) interval(demand bool) (every time.Duration, start time.Time) {
	fast := probeFast
	switch {
	case !p.best.IsValid() && (demand || p.keep):
	case !p.best.IsValid():
		return 0, start
	case demand && p.asking:
		fast = 4 * probeFast
	case demand && p.lastSend.After(p.lastHeard):
		fast, start = 4*probeFast, p.lastHeard.Add(silentAfter)
	case demand: // the peer may have lost us, and only we can tell it where we are
		start = p.lastHeard.Add(2 * silentAfter)
	case p.keep:
		start = p.lastHeard.Add(keepEvery)
	default:
		return 0, start
	}
	if p.round >= fast {
		return probeSlow, start
	}
	return probeEvery, start
}

// sooner is the earlier of two times of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// due is when an answer that is waited for should be there.
func (c *candidate) due() time.Time { return c.waiting.Add(answersIn + 2*c.rtt) }

func (c *candidate) overdue(now time.Time) bool { return !c.waiting.IsZero() && !now.Before(c.due()) }

// answeredSince is the nearest candidate of those that have answered since.
func (p *path) answeredSince(since time.Time) (best *candidate) {
	for _, c := range p.cands {
		if c.confirmed && !c.answered.Before(since) && (best == nil || c.rtt < best.rtt) {
			best = c
		}
	}
	return best
}

func (p *path) pingAll(now time.Time, moved bool) (outs []out) {
	for _, c := range p.cands {
		outs = append(outs, p.ping(c, now, moved))
	}
	return outs
}

func (p *path) ping(c *candidate, now time.Time, moved bool) out {
	copy(c.pings[1:], c.pings[:])
	c.pings[0] = ping{rand.Uint64(), now}
	if c.waiting.IsZero() {
		c.waiting = now
	}
	return out{c.addr, probe{kind: kindPing, txid: c.pings[0].txid, moved: moved}}
}

// handle takes an authentic frame of the peer. It reports whether the peer wants a session, and whether it was started
// anew, so has none; both only by an answer to our own ping, since everything else may be replayed.
func (p *path) handle(f probe, from netip.AddrPort, now time.Time) (outs []out, wants, anew bool) {
	switch f.kind {
	case kindPing:
		outs = append(outs, out{from, probe{kind: kindPong, txid: f.txid}})
		c := p.add(from)
		if c == nil {
			return outs, false, false
		}
		c.seen = now
		if f.moved { // all that was measured is void; the old way stays in use until another is confirmed
			for _, c := range p.cands {
				c.confirmed = false
			}
		}
		if from == p.best && !f.want {
			break
		}
		// The peer looks for a way, or sends from elsewhere, or wants something: see where it is.
		for _, c := range p.cands {
			if (c.addr == from || c.addr == p.best) && now.Sub(c.pings[0].at) > probeEvery/2 {
				outs = append(outs, p.ping(c, now, false))
			}
		}
	case kindPong:
		c := p.cands[from]
		i := -1
		if c != nil {
			i = slices.IndexFunc(c.pings[:], func(q ping) bool { return q.txid == f.txid && !q.at.IsZero() })
		}
		if i < 0 {
			return nil, false, false // not asked, or not there: an answer to a ping sent elsewhere confirms nothing
		}
		sample := now.Sub(c.pings[i].at)
		clear(c.pings[i:]) // each counts once, and none after a newer one
		if c.rtt == 0 {
			c.rtt = sample
		} else {
			c.rtt += (sample - c.rtt) / 8
		}
		c.waiting, c.answered, c.seen, c.confirmed = time.Time{}, now, now, true
		if b := p.cands[p.best]; b == nil || !b.confirmed || b.overdue(now) || c.rtt < b.rtt*4/5-2*time.Millisecond {
			p.best = c.addr
		}
		p.heard(now)
		wants, anew = f.want, p.run != 0 && p.run != f.run
		p.run = f.run
	}
	return outs, wants, anew
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
