// SPDX-License-Identifier: MIT

package link

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// path chooses the way on which one peer is reached. It is a machine without clock, socket or lock: events and the
// time go in, frames to send come out.
//
//	       send            pong
//	Idle ───────▶ Probing ───────▶ in use ──┐ while something is sent, the way in use is pinged (beatEvery); if an answer
//	  ▲              │                ▲     │ is overdue all are asked, and the best that answers is used instead
//	  └──────────────┘                └─────┘
//	  no answer and nothing to send
//
// A way is used only after our own ping on it was answered with the peer's key, so nobody can draw traffic away by
// replaying what the peer once sent. The cheapest way wins (see cost): round trip and loss, direct before relayed.
type path struct {
	cands     map[Way]*candidate
	best      *candidate // nil: none is confirmed
	keep      bool       // a neighbour: kept warm
	kept      time.Time  // when the peer said last that we are its neighbour
	asking    bool       // the peer is to begin a handshake
	full      int        // bytes of the largest packets that the engine makes
	lastSend  time.Time  // the peer was needed, see Peer.Needed
	carried   time.Time  // see Peer.carries
	lastHeard time.Time  // an authentic packet of the peer came in
	nextPing  time.Time  // all that can be are pinged then, not before
	beat      time.Time  // when the way in use was last pinged
	beats     int        // how often because something was sent
	searched  int        // of these when all were last pinged
	round     int        // pings sent to all since the last change for the better
	run       uint32     // of the peer, as it said last; 0: not known
	reason    string     // of the last choice
	forgiven  time.Time
	open      time.Time // until then it may change at once: who answers first need not be the best
}

type candidate struct {
	way       Way
	known     bool           // from the peer's record, from itself, or from the map; others were only seen
	seen      time.Time      // when a frame last came this way
	pings     [pingsOut]ping // the last ones that were not answered, the newest first
	pinged    time.Time      // when it was last, answered or not
	waiting   time.Time      // since when an answer is waited for; zero: none is
	missed    int            // answers overdue one after the other
	failed    time.Time      // when it was left for that
	good      int            // answers one after the other
	better    int            // the same at which it was much cheaper than the way in use, counted once a betterEvery
	betterAt  time.Time
	answered  time.Time
	mapped    netip.AddrPort // where the peer saw this node then
	confirmed bool
	rtt       time.Duration // smoothed (RFC 6298 section 2)
	loss      float64       // smoothed share of pings without an answer, 0 to 1
	mtu       int           // the largest datagram known to pass, trailer included; 0: not measured
	ask       int           // the size whose measurement goes on; 0: none
	asked     int           // how often
	askedAt   time.Time
	checked   int       // path.beats when mtu was known to pass
	raised    time.Time // when more was tried
}

// ping is a question that may still be answered.
type ping struct {
	txid uint64
	at   time.Time
	size int // 0: the shortest
}

// Time constants of a path.
const (
	beatEvery     = 300 * time.Millisecond // if something was sent since
	answersIn     = 80 * time.Millisecond  // and one and a half round trips
	againEvery    = 100 * time.Millisecond // when the way in use has become suspect
	probeEvery    = 400 * time.Millisecond
	probeSlow     = time.Second      // after probeFast rounds
	probeIdle     = 5 * time.Second  // the same for a neighbour to whom nothing is to be sent, doubling up to
	probeRarely   = 80 * time.Second // this
	probeFast     = 10
	searchBeats   = 30 // then all are asked for something better: a word now and then is not worth it
	goneAfter     = 3  // answers missed in a row
	pingsOut      = 4  // so that a round trip of pingsOut*probeEvery can be measured
	demandLasts   = 10 * time.Second
	keepEvery     = 20 * time.Second
	seenLasts     = 3 * time.Minute
	forgiveEvery  = 3 * time.Second
	maxRTT        = 2 * time.Second // an answer that took longer tells of this machine, not of the path
	maxDirect     = 16
	maxVia        = 6
	mtuBeats      = 7               // beats: do large packets still pass?
	mtuRaise      = 5 * time.Minute // do larger ones pass now?
	distrustLasts = time.Minute     // after a failure
	betterEvery   = time.Second     // a way that works is left only for one that has been better
	betterTimes   = 4               // so many times
	openFor       = 2 * time.Second // at first it is left for any
)

// mtuSteps are datagram sizes worth trying, in bytes without IP and UDP headers: RFC 8899's search, over the MTUs that
// links really have (Ethernet, PPPoE, DS-Lite and tunnels, IPv6's least).
var mtuSteps = []int{1472, 1452, 1444, 1424, 1412, 1392, 1372, 1352, 1332, 1312, 1292, 1272, 1252, 1232}

// out is a frame that a path wants sent.
type out struct {
	to Way
	p  probe
}

func newPath(full int) *path { return &path{cands: map[Way]*candidate{}, full: full} }

// setKnown replaces the ways that the peer is said to have.
func (p *path) setKnown(ways []Way) {
	for _, c := range p.cands {
		c.known = false
	}
	for _, w := range ways {
		n := len(p.cands)
		if c := p.add(w); c != nil {
			c.known = true
			if len(p.cands) > n && p.round > 0 { // something new to try
				p.round, p.nextPing = 0, time.Time{}
			}
		}
	}
}

func (p *path) add(w Way) *candidate {
	if c := p.cands[w]; c != nil {
		return c
	}
	n, limit := 0, maxDirect
	if w.relayed() {
		limit = maxVia
	}
	var worst *candidate
	for _, c := range p.cands {
		if c.way.relayed() != w.relayed() {
			continue
		}
		n++
		if !c.known && c != p.best && (worst == nil || c.seen.Before(worst.seen)) {
			worst = c
		}
	}
	if n >= limit {
		if worst == nil {
			return nil
		}
		delete(p.cands, worst.way)
	}
	c := &candidate{way: w}
	p.cands[w] = c
	return c
}

// drop takes a way away at once: a stream that was closed.
func (p *path) drop(w Way) {
	if c := p.cands[w]; c != nil {
		delete(p.cands, w)
		if c == p.best {
			p.best = nil
			p.choose(time.Time{}, "its stream was closed")
			p.round, p.nextPing = 0, time.Time{}
		}
	}
}

// ask says whether the peer is to begin a handshake, which its next ping tells it.
func (p *path) ask(on bool) {
	if on && !p.asking {
		p.nextPing = time.Time{}
	}
	p.asking = on
}

// cost compares ways: the round trip, a second for certain loss, and what relays and TCP take from others.
func (c *candidate) cost() time.Duration {
	d := c.rtt + time.Duration(max(c.loss-0.04, 0)*float64(time.Second)) // one lost ping is nothing
	if n := c.way.Via.Len(); n > 0 {
		d += d/5 + time.Duration(n)*10*time.Millisecond
	}
	if c.way.Stream {
		d += 4 * time.Millisecond // less than a relay, which takes from others
	}
	return d
}

// udp reports whether a way is direct and over UDP, which is what is wanted.
func (w Way) udp() bool { return w.Addr.IsValid() }

// usable reports whether a candidate may be chosen in place of another that works.
func (c *candidate) usable(now time.Time) bool {
	switch {
	case !c.confirmed || c.missed > 0:
		return false
	case !c.failed.IsZero() && now.Sub(c.failed) < distrustLasts:
		return c.good >= 5
	}
	return true
}

// choose makes the cheapest way that answered since (or ever) the one in use.
func (p *path) choose(since time.Time, reason string) {
	var found *candidate
	for _, c := range p.cands {
		if c.confirmed && c != p.best && c.answered.After(since) && (found == nil || c.cost() < found.cost()) {
			found = c
		}
	}
	if found != nil {
		p.use(found, reason)
		p.round = 0
	}
}

// tick does what time asks for, and returns the frames to send and when to be called again (zero: on an event only).
func (p *path) tick(now time.Time) (outs []out, next time.Time) {
	for w, c := range p.cands {
		if !c.known && c != p.best && now.Sub(c.seen) > seenLasts {
			delete(p.cands, w)
			continue
		}
		if c.overdue(now) {
			c.missed++
			c.good, c.better = 0, 0
			c.waiting = time.Time{}
			if c.missed < goneAfter && !c.answered.IsZero() { // more in a row is not loss but a cut, and before the first answer nobody may be there
				c.loss += (1 - c.loss) / 32
			}
			if c == p.best && c.missed == 1 {
				p.round, p.nextPing = 0, now
			}
		}
	}
	if b := p.best; b != nil && b.missed > 1 {
		p.choose(latest(b.answered, now.Add(-time.Second)), "the one before did not answer")
		if p.best != b {
			b.failed = now
		}
	}
	suspect := p.best != nil && p.best.missed > 0
	demand := now.Sub(p.lastSend) < demandLasts
	if !demand && !p.keep && now.Sub(p.carried) > 2*keepEvery {
		return nil, next
	}
	beat := p.best != nil && demand && p.lastSend.After(p.beat) && !now.Before(p.beat.Add(beatEvery))
	if beat {
		p.beats++
	}
	all := p.beats-p.searched >= searchBeats
	if !now.Before(p.nextPing) {
		every := p.every(demand, suspect)
		p.nextPing = now.Add(every - every/8 + rand.N(every/4))
		switch {
		case p.best == nil, suspect, p.round == 0 && demand:
			all = true
		case !p.best.way.udp():
			all = all || !demand || p.round < 5*probeFast || p.beats > p.searched
		}
		beat = p.best != nil
		p.round++
	}
	switch {
	case all:
		outs = p.pingAll(now, false)
		p.beat, p.searched = now, p.beats
	case beat:
		outs = append(outs, p.ping(p.best, now))
		p.beat = now
	}
	next = p.nextPing
	if p.best == nil {
		return outs, next
	}
	if due := p.beat.Add(beatEvery); demand && due.After(now) {
		next = sooner(next, due) // something may be sent until then
	}
	for _, c := range p.cands {
		if !c.waiting.IsZero() && (c == p.best || suspect) {
			next = sooner(next, c.due())
		}
	}
	outs = append(outs, p.measure(now)...)
	if c := p.best; c.ask > 0 && c.missed == 0 {
		next = sooner(next, c.askedAt.Add(answersIn+c.rtt*3/2))
	}
	return outs, next
}

// every says how long to wait until something is pinged though nothing is sent, or better ways are looked for.
func (p *path) every(demand, suspect bool) time.Duration {
	fast := p.round < probeFast
	switch {
	case suspect && fast:
		return againEvery
	case demand && p.asking && p.round < 4*probeFast:
		return probeEvery
	case p.best != nil && !suspect && (!demand || p.best.way.udp()):
		return keepEvery
	case fast:
		return probeEvery
	case demand && (p.best == nil || suspect):
		return probeSlow
	case demand:
		return probeEvery * 5
	}
	return min(probeIdle<<min(p.round-probeFast, 8), probeRarely)
}

// sooner is the earlier of two times of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// due is when an answer that is waited for should be there.
func (c *candidate) due() time.Time { return c.waiting.Add(answersIn + c.rtt*3/2) }

func (c *candidate) overdue(now time.Time) bool { return !c.waiting.IsZero() && !now.Before(c.due()) }

func (p *path) pingAll(now time.Time, moved bool) (outs []out) {
	for _, c := range p.cands {
		o := p.ping(c, now)
		o.p.moved = moved
		outs = append(outs, o)
	}
	return outs
}

func (p *path) ping(c *candidate, now time.Time) out {
	c.note(ping{rand.Uint64(), now, 0})
	if c.waiting.IsZero() {
		c.waiting = now
	}
	return out{c.way, probe{kind: kindPing, txid: c.pings[0].txid, keep: p.keep}}
}

func (c *candidate) note(q ping) {
	copy(c.pings[1:], c.pings[:])
	c.pings[0], c.pinged = q, q.at
}

// measure looks for the largest datagram that the way in use takes (RFC 8899): when it has been chosen, and again and
// again while something is sent, since a path may begin to swallow large packets at any time.
func (p *path) measure(now time.Time) []out {
	c := p.best
	want := p.full + c.way.Via.trailerSize()
	if c.ask == 0 {
		switch {
		case c.mtu == 0 || c.mtu < want && now.Sub(c.raised) > mtuRaise:
			c.ask, c.raised = want, now
		case p.beats-c.checked >= mtuBeats:
			c.ask = c.mtu
		default:
			return nil
		}
		c.asked = 0
	}
	if c.missed > 0 || c.asked > 0 && now.Before(c.askedAt.Add(answersIn+c.rtt*3/2)) {
		return nil
	}
	if c.asked >= 3 { // too large
		c.asked = 0
		i := slices.IndexFunc(mtuSteps, func(s int) bool { return s < c.ask })
		if i < 0 {
			c.ask = 0 // not even the least that IP promises: it is not the size
			c.checked = p.beats
			return nil
		}
		c.ask = mtuSteps[i]
		if c.mtu == 0 || c.mtu > c.ask {
			c.mtu = c.ask
		}
	}
	c.asked, c.askedAt = c.asked+1, now
	c.note(ping{rand.Uint64(), now, c.ask})
	return []out{{c.way, probe{kind: kindPing, txid: c.pings[0].txid, keep: p.keep, size: c.ask - c.way.Via.trailerSize()}}}
}

// handle takes an authentic frame of the peer that came on a way. It reports whether the peer wants a session, and whether
// it was started anew, so has none; both only by an answer to our own ping, since everything else may be replayed.
func (p *path) handle(f probe, from Way, now time.Time) (outs []out, wants, anew bool) {
	switch f.kind {
	case kindPing:
		outs = append(outs, out{from, probe{kind: kindPong, txid: f.txid, seen: from.Addr}})
		c := p.add(from)
		if c == nil {
			return outs, false, false
		}
		c.seen = now
		if f.keep {
			p.kept = now
		}
		if f.moved { // all that was measured is void; the old way stays in use until another is confirmed
			for _, c := range p.cands {
				c.confirmed = false
			}
		}
		if c == p.best && !f.want {
			break
		}
		// The peer looks for a way, or sends from elsewhere, or wants something: see where it is.
		for _, x := range p.cands {
			if (x == c || x == p.best) && now.Sub(x.pinged) > probeEvery/2 && (!x.confirmed || now.Sub(x.answered) > probeSlow || f.want) {
				outs = append(outs, p.ping(x, now))
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
		q := c.pings[i]
		clear(c.pings[i:]) // each counts once, and none after a newer one
		p.answer(c, now.Sub(q.at), now)
		c.mapped = f.seen
		if q.size > 0 && q.size == c.ask {
			c.mtu, c.ask, c.checked = q.size, 0, p.beats
		}
		p.heard(now)
		wants, anew = f.want, p.run != 0 && p.run != f.run
		p.run = f.run
	}
	return outs, wants, anew
}

// answer notes that a candidate has answered after so long, and chooses it where it is better.
func (p *path) answer(c *candidate, sample time.Duration, now time.Time) {
	sample = min(sample, maxRTT)
	switch {
	case c.rtt == 0:
		c.rtt = sample
	case sample > 2*c.rtt || sample < c.rtt/2: // loaded of late, or no more
		c.rtt += (sample - c.rtt) / 2
	default:
		c.rtt += (sample - c.rtt) / 8
	}
	c.waiting, c.answered, c.seen, c.confirmed, c.missed = time.Time{}, now, now, true, 0
	c.good++
	c.loss -= c.loss / 32
	b := p.best
	switch {
	case b == c:
	case b == nil || !b.confirmed:
		p.use(c, "the first that answered")
		p.round, p.open = min(p.round, 1), now.Add(openFor)
	case b.missed > 1:
		b.failed = now
		p.use(c, "the one before did not answer")
		p.round = 0
	case !b.known && !c.known && c.way.udp() && b.way.udp() && c.way.Addr.Addr() == b.way.Addr.Addr():
		p.use(c, "its port has changed") // as a NAT's mapping does: the old one is nobody's now
	case !c.usable(now):
	case c.way.udp() && !b.way.udp() && c.cost() < b.cost():
		p.use(c, "direct")
	case c.cost() >= b.cost()*4/5-2*time.Millisecond:
		c.better = 0
	case now.Before(p.open) || now.Sub(c.betterAt) >= betterEvery:
		c.better, c.betterAt = c.better+1, now
		if now.Before(p.open) || c.better >= betterTimes {
			p.use(c, "better")
		}
	}
}

// use makes a candidate the way in use.
func (p *path) use(c *candidate, reason string) {
	p.best, p.reason = c, reason
	for _, c := range p.cands {
		c.better = 0 // than the one before
	}
}

// heard notes that the peer is there.
func (p *path) heard(now time.Time) { p.lastHeard = now }

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

// direct is the cheapest way that needs no other node, for what this node sends on for others. Nil: there is none.
func (p *path) direct() (found *candidate) {
	for _, c := range p.cands {
		if c.confirmed && c.missed < goneAfter && !c.way.relayed() && (found == nil || c.cost() < found.cost()) {
			found = c
		}
	}
	return found
}

// late forgives answers that are late only because this machine was: asleep, or busy elsewhere.
func (p *path) late(now time.Time) {
	if now.Sub(p.forgiven) < forgiveEvery { // a machine that is always late must judge all the same
		return
	}
	p.forgiven = now
	for _, c := range p.cands {
		if !c.waiting.IsZero() {
			c.waiting = now
		}
	}
	p.beat = now.Add(-beatEvery)
}

// dead reports whether the way in use does not answer, and no other does.
func (p *path) dead() bool { return p.best == nil || p.best.missed >= goneAfter }

// mtu is the largest datagram, without a trailer, that the way in use takes. 0: not known.
func (p *path) mtu() int {
	if p.best == nil || p.best.mtu == 0 {
		return 0
	}
	return p.best.mtu - p.best.way.Via.trailerSize()
}
