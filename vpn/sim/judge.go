// SPDX-License-Identifier: MIT

package sim

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/vpntest"
)

// What must be true, and how long it may take.
const (
	stallIn    = time.Second            // a pair that talks and has a way is never without traffic for longer, whatever happens,
	firstIn    = 3 * time.Second        // from the moment both know each other and there is a way to their first packet
	returnIn   = 7 * time.Second        // the same for a pair whose last way was lost, since the slow probes come every 5 s
	tcpIn      = 8 * time.Second        // more, where all ways lead over TCP: UDP is tried first,
	tcpRetry   = time.Minute            // and who could not be connected to is tried once a minute
	slack      = 400 * time.Millisecond // more for all of them, and two round trips: the time between packets, and of a packet
	convergeIn = 90 * time.Second       // from the last event until all who have a way know the same records
	spreadIn   = 5 * time.Second        // and a record may be on its way for so long
	copiesMax  = 3                      // of one sealed packet, sent by its origin
	wrongsMax  = 20                     // are kept
	forget     = 2 * time.Minute        // of marks and sealed packets
	lookEvery  = 50 * time.Millisecond
	idleMost   = 2000 // bytes per second that a node may send on average while nobody talks
)

// What so many nodes may have at most.
const (
	heapBase, heapNode, heapPeer                   = 16 << 10, 4 << 10, 256 // KiB; what is retained of former runs is in the base
	goroutinesBase, goroutinesNode, goroutinesPeer = 30, 25, 4              // the engine has workers for each processor besides
)

// judge watches a world and notes what is wrong:
//
//   - a packet that a kernel gets is the one that was sent, whole, to this node, by the node whose address it bears, and
//     comes once
//   - a pair that talks and has a way has traffic, see the times above; ways are what the network allows (network.direct)
//   - a sealed packet passes no node twice
//   - a stranger gets no more bytes than it has sent (Config.Reflect times as many)
//   - no record that a node has is replaced by an older one, and in the end those who have a way know the same
//
// Its methods are safe for concurrent use.
type judge struct {
	net   *vpntest.Net
	trace *trace
	cfg   Config

	heap, goroutines int // before

	mu        sync.Mutex // taken after the network's: nothing of the network may be called with it held
	nodes     []*Node
	byHost    map[*vpntest.Host]*Node
	byAddr    map[netip.Addr]int
	dirs      []*direction
	byPair    map[[2]int]*direction
	cuts      map[[2]*vpntest.Host]bool
	strangers map[*vpntest.Host]*account
	trips     map[sealedID]*trip
	seen      map[seenKey]seenRecord
	last      event
	lossy     bool          // some links lose datagrams
	roundTrip time.Duration // of a link between two nodes, at most
	quiet     bool          // what must be true in the end has been looked at since the last event
	wrongs    []string
	more      int
	gaps      map[string][]time.Duration // by kind of event: until traffic flowed again
	wire      map[*vpntest.Host]int      // bytes of UDP payload that a host has sent
	direct    map[[2]*vpntest.Host]time.Time
}

type event struct {
	at   time.Time
	n    int
	kind string
}

// account is of a stranger's bytes.
type account struct {
	from, to int
	told     bool
}

// direction is one of two nodes talking to another.
type direction struct {
	judge  *judge
	a, b   *Node
	ia, ib int
	size   int

	seq     uint64
	sent    map[uint64]sending // the last ones
	paused  bool
	up      bool // there is a way, they know each other, and one talks
	before  bool // so it has been before
	lives   [2]*life
	last    time.Time // when the newest packet that arrived was sent
	limit   time.Time // nothing is demanded before
	event   event     // the last one taken notice of
	waiting bool      // for the first packet since
	got     int
}

type sending struct {
	at   time.Time
	size int
	came bool
}

// sealedID is the part of a sealed WireGuard data packet that is its own: receiver index and counter (WireGuard paper, section
// 5.4.6), and the beginning of what is sealed. What relays need comes behind it.
type sealedID [24]byte

// sealed returns the identity of a WireGuard data packet, however it travels.
func sealed(b []byte) (id sealedID, ok bool) {
	if len(b) < 32 || b[0] != 4 || b[2] != 0 || b[3] != 0 {
		return id, false
	}
	id = sealedID(b[:24])
	id[1] = 0 // relays mark it
	return id, true
}

// trip is what was seen of a sealed packet.
type trip struct {
	at     time.Time
	origin *vpntest.Host
	extra  int // copies that the network or a stranger made
	sends  map[*vpntest.Host]int
}

type seenKey struct {
	observer *life
	subject  string
}

type seenRecord struct {
	serial *big.Int
	seq    uint64
	since  time.Time
	before uint64 // the sequence until then
}

func newJudge(net *vpntest.Net, t *trace, cfg Config) *judge {
	j := &judge{net: net, trace: t, cfg: cfg, byHost: map[*vpntest.Host]*Node{}, byAddr: map[netip.Addr]int{}, byPair: map[[2]int]*direction{},
		cuts: map[[2]*vpntest.Host]bool{}, strangers: map[*vpntest.Host]*account{}, trips: map[sealedID]*trip{}, seen: map[seenKey]seenRecord{},
		gaps: map[string][]time.Duration{}, wire: map[*vpntest.Host]int{}, direct: map[[2]*vpntest.Host]time.Time{}}
	j.heap, j.goroutines = uses()
	return j
}

func (j *judge) wrong(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.note(format, args...)
}

// note is wrong with mu held.
func (j *judge) note(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	j.trace.add("WRONG", "%s", what)
	if len(j.wrongs) < wrongsMax {
		j.wrongs = append(j.wrongs, fmt.Sprintf("%.3f s: %s", time.Since(j.trace.start).Seconds(), what))
	} else {
		j.more++
	}
}

func (j *judge) err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.wrongs) == 0 {
		return nil
	}
	out := strings.Join(j.wrongs, "\n")
	if j.more > 0 {
		out += fmt.Sprintf("\nand %d more", j.more)
	}
	return errors.New(out)
}

func (j *judge) add(n *Node) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.byHost[n.Host] = n
	j.byAddr[n.Addr()] = len(j.nodes)
	j.nodes = append(j.nodes, n)
}

// event notes that something happens to the world: from here on the times count.
func (j *judge) event(kind, what string) {
	j.trace.add("event", "%s %s", kind, what)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = event{time.Now(), j.last.n + 1, kind}
	j.quiet = false
}

func (j *judge) cut(from, to *vpntest.Host, on bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cuts[[2]*vpntest.Host{from, to}] = on
}

// lossyLinks tells that some links lose datagrams.
func (j *judge) lossyLinks() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lossy = true
}

// slow tells that a round trip between two nodes may take so long.
func (j *judge) slow(rtt time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.roundTrip = max(j.roundTrip, rtt)
}

func (j *judge) isCut(a, b *Node) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cuts[[2]*vpntest.Host{a.Host, b.Host}]
}

// stranger makes a host known that is no member's.
func (j *judge) stranger(h *vpntest.Host) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.strangers[h] = &account{}
}

func (j *judge) direction(a, b *Node, size int) *direction {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := &direction{judge: j, a: a, b: b, ia: j.byAddr[a.Addr()], ib: j.byAddr[b.Addr()], size: size, sent: map[uint64]sending{}}
	j.dirs = append(j.dirs, d)
	j.byPair[[2]int{d.ia, d.ib}] = d
	return d
}

// talk sends a direction's next packet.
func (j *judge) talk(d *direction) {
	d.a.mu.Lock()
	l, asleep := d.a.life, d.a.suspended
	d.a.mu.Unlock()
	j.mu.Lock()
	if l == nil || asleep || d.paused {
		j.mu.Unlock()
		return
	}
	d.seq++
	m, size := marked{d.ia, d.ib, d.seq}, d.size
	d.sent[d.seq] = sending{at: time.Now(), size: size}
	j.mu.Unlock()
	select {
	case l.tun.Out <- m.packet(d.a.Addr(), d.b.Addr(), size):
	default: // the kernel's queue is full
	}
}

// delivered takes a packet that a node gave to its kernel.
func (j *judge) delivered(n *Node, b []byte) {
	m, src, dst, whole, ok := parseMarked(b)
	j.mu.Lock()
	defer j.mu.Unlock()
	if !ok {
		if len(b) >= 20 && (b[0]>>4 == 4 && b[9] == 1 || b[0]>>4 == 6 && b[6] == 58) {
			return // ICMP of the node itself
		}
		j.note("%s was given %d bytes that nobody sent: %x", n.Name, len(b), b[:min(len(b), 64)])
		return
	}
	d := j.byPair[[2]int{m.from, m.to}]
	switch {
	case d == nil || d.a.Addr() != src || d.b.Addr() != dst:
		j.note("%s was given a forged packet from %s to %s", n.Name, src, dst)
		return
	case d.b != n:
		j.note("%s was given a packet for %s", n.Name, d.b.Name)
		return
	}
	s, ok := d.sent[m.seq]
	switch {
	case !ok || s.came:
		j.note("%s was given packet %d of %s twice, or %s after it was sent", n.Name, m.seq, d.a.Name, forget)
		return
	case !whole || len(b) != s.size:
		j.note("%s was given packet %d of %s, but not as it was sent", n.Name, m.seq, d.a.Name)
		return
	}
	s.came = true
	d.sent[m.seq] = s
	d.got++
	if s.at.After(d.last) {
		d.last = s.at
	}
	if d.waiting && !s.at.Before(d.event.at) {
		d.waiting = false
		j.gaps[d.event.kind] = append(j.gaps[d.event.kind], time.Since(d.event.at))
	}
}

// saw watches the network. It is called with the network's lock held.
func (j *judge) saw(s vpntest.Sight) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cfg.Packets {
		name := func(h *vpntest.Host) string {
			if h == nil {
				return ""
			}
			return h.Name
		}
		j.trace.add("packet", "%s -> %s: %s -> %s, kind %x, %d bytes, %s", name(s.From), name(s.To), s.Src, s.Dst, s.B[:1], len(s.B), s.Fate)
	}
	switch s.Fate {
	case vpntest.Sent:
		if j.byHost[s.From] != nil {
			j.wire[s.From] += size(s)
		}
		if a := j.strangers[s.From]; a != nil {
			a.from += len(s.B)
		}
	case vpntest.Arrived:
		if a := j.strangers[s.To]; a != nil && s.From != s.To {
			if a.to += len(s.B); a.to > a.from*j.cfg.Reflect && !a.told {
				a.told = true
				j.note("a stranger was sent %d bytes, and has sent %d", a.to, a.from)
			}
		}
	}
	id, ok := sealed(s.B)
	if !ok {
		return
	}
	if s.Fate == vpntest.Arrived {
		if len(s.B) == (talkSize+15)/16*16+32 {
			j.direct[[2]*vpntest.Host{s.From, s.To}] = time.Now()
		}
		return
	}
	t := j.trips[id]
	switch {
	case s.Fate == vpntest.Repeated || s.Fate == vpntest.Sent && j.byHost[s.From] == nil:
		if t != nil {
			t.extra++
		}
	case s.Fate == vpntest.Sent && t == nil:
		j.trips[id] = &trip{time.Now(), s.From, 0, map[*vpntest.Host]int{s.From: 1}}
	case s.Fate == vpntest.Sent:
		t.sends[s.From]++
		n := t.sends[s.From]
		if s.From == t.origin && n > copiesMax+t.extra {
			j.note("%s sent one sealed packet %d times", s.From.Name, n)
		}
		if s.From != t.origin && n > t.sends[t.origin]+t.extra {
			j.note("a packet of %s goes round: it passed %s %d times, and there are %d of it", t.origin.Name, s.From.Name, n, t.sends[t.origin]+t.extra)
		}
	}
}

// size is that of a datagram's IP packet.
func size(s vpntest.Sight) int {
	if s.Dst.Addr().Is6() {
		return len(s.B) + 48
	}
	return len(s.B) + 28
}

// run looks at the whole again and again until ctx ends.
func (j *judge) run(ctx context.Context) {
	var ways *ways
	wait := lookEvery
	for i := 0; ; i++ {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		now := time.Now()
		j.mu.Lock()
		last, nodes := j.last, slices.Clone(j.nodes)
		j.mu.Unlock()
		fresh := ways == nil || now.Sub(last.at) < 3*lookEvery
		if fresh {
			ways = j.survey(nodes)
		}
		if fresh || i%4 == 0 {
			j.records(nodes, ways)
			ways.measure()
		}
		if wait = lookEvery; !j.traffic(now, ways) && now.Sub(last.at) > time.Minute {
			wait = 20 * lookEvery // a long silence
		}
		if i%100 == 0 {
			j.prune(now)
		}
		if now.Sub(last.at) >= convergeIn {
			j.converged(nodes, ways)
		}
	}
}

// traffic holds every direction against the times it may take, and reports whether there is any.
func (j *judge) traffic(now time.Time, w *ways) (any bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.dirs {
		lives := [2]*life{w.life(d.ia), w.life(d.ib)}
		up := !d.paused && lives[0] != nil && lives[1] != nil && !w.asleep[d.ia] && w.knows(d.ia, d.ib) && w.knows(d.ib, d.ia) &&
			w.hops(d.ia, d.ib) <= j.cfg.Hops
		again := up && (!d.up || lives != d.lives)
		d.up, d.lives = up, lives
		if !up {
			d.waiting = false
			continue
		}
		// Whoever waits for an answer waits for a round trip, over a link more than there must be, say.
		more, retry := slack+2*time.Duration(w.hops(d.ia, d.ib)+1)*j.roundTrip, time.Duration(0)
		if w.quick[d.ia][d.ib] > j.cfg.Hops {
			more, retry = more+tcpIn, tcpRetry
		}
		if j.lossy {
			retry += j.cfg.Lenient
		}
		switch {
		case again && d.before:
			d.limit, d.event, d.waiting = now.Add(returnIn+retry+more), event{now, j.last.n, "a way again"}, true
		case again:
			d.limit, d.event, d.waiting = now.Add(firstIn+retry+more), event{now, j.last.n, "first contact"}, true
		case d.event.n != j.last.n:
			if limit := j.last.at.Add(stallIn + more); limit.After(d.limit) {
				d.limit = limit
			}
			d.event, d.waiting = j.last, true
		}
		d.before, any = true, true
		if now.After(d.limit) && now.Sub(d.last) > stallIn+more {
			ago := "nothing yet"
			if d.got > 0 {
				ago = fmt.Sprintf("nothing for %.3f s", now.Sub(d.last).Seconds())
			}
			j.note("nothing of %s reaches %s: %s, %.3f s after %s (way of %d links)", d.a.Name, d.b.Name, ago, now.Sub(d.event.at).Seconds(), d.event.kind, w.hops(d.ia, d.ib))
			d.limit = now.Add(returnIn)
		}
	}
	return any
}

// records looks at what every node knows.
func (j *judge) records(nodes []*Node, w *ways) {
	for i, n := range nodes {
		l := n.running()
		if l == nil {
			continue
		}
		all := l.Records()
		j.mu.Lock()
		for _, r := range all {
			k := seenKey{l, r.Node.Name}
			old, ok := j.seen[k]
			if ok && (r.Node.Serial.Cmp(old.serial) < 0 || r.Node.Serial.Cmp(old.serial) == 0 && r.Seq < old.seq) {
				j.note("%s replaced the record of %s by an older one: sequence %d by %d", n.Name, r.Node.Name, old.seq, r.Seq)
			}
			if !ok || old.seq != r.Seq {
				j.seen[k] = seenRecord{r.Node.Serial, r.Seq, time.Now(), old.seq}
			}
			if k, ok := j.byAddr[r.Node.Addrs[0]]; ok {
				w.learn(i, k, knownRecord{r.Seq, r.Endpoints})
			}
		}
		j.mu.Unlock()
	}
}

// sent is how many bytes members have sent.
func (j *judge) sent() (sum int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.wire {
		sum += n
	}
	return sum
}

// converged holds against each other, once after each event, what those know who have a way.
func (j *judge) converged(nodes []*Node, w *ways) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.quiet {
		return
	}
	j.quiet = true
	if j.cfg.Hops == 1 && !w.complete() {
		return // without relays those who know each other are not those who have a way
	}
	for i := range nodes {
		for k := range nodes {
			if i == k || w.life(i) == nil || w.life(k) == nil || w.hops(i, k) > j.cfg.Hops {
				continue
			}
			got, want := w.known[i][k].seq, w.known[k][k].seq
			if own := j.seen[seenKey{w.life(k), nodes[k].Name}]; time.Since(own.since) < spreadIn && got == own.before {
				continue // on its way: a node tells of its links when they change, which is no event
			}
			if got != want {
				j.note("%s knows the record of %s with sequence %d, %s after the last event; its own is %d", nodes[i].Name, nodes[k].Name, got, convergeIn, want)
			}
		}
	}
}

// uses returns how many KiB of heap and how many goroutines this process has. A sync.Pool keeps what nobody uses until the
// second collection, and the engine's hold buffers of 64 KiB.
func uses() (heap, goroutines int) {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc) >> 10, runtime.NumGoroutine()
}

// bounded holds against its limits what this process has more than when the world began, with so many nodes.
func (j *judge) bounded(nodes int) {
	heap, goroutines := uses()
	heap, goroutines = heap-j.heap, goroutines-j.goroutines
	j.trace.add("event", "%d nodes: %d KiB of heap, %d goroutines", nodes, heap, goroutines)
	if most := heapBase + nodes*heapNode + nodes*nodes*heapPeer; heap > most {
		j.wrong("%d nodes have %d KiB of heap, more than %d", nodes, heap, most)
	}
	if most := goroutinesBase + nodes*(goroutinesNode+3*runtime.NumCPU()) + nodes*nodes*goroutinesPeer; goroutines > most {
		j.wrong("%d nodes have %d goroutines, more than %d", nodes, goroutines, most)
	}
}

func (j *judge) prune(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.dirs {
		for seq, s := range d.sent {
			if now.Sub(s.at) > forget {
				delete(d.sent, seq)
			}
		}
	}
	for id, t := range j.trips {
		if now.Sub(t.at) > forget {
			delete(j.trips, id)
		}
	}
}
