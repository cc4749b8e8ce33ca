// SPDX-License-Identifier: MIT

// Package vpntest has doubles for the two ends of a node, so that whole meshes run in one process: a network of UDP
// sockets in memory, and a TUN device whose kernel is the test.
//
//	Host ── Segment (a LAN) ── NAT ── Segment (the internet) ── Host
//
// A Net carries datagrams between hosts, through NAT boxes, over links that delay, lose, reorder and repeat them. It
// starts no goroutine: datagrams that take no time arrive while Send runs, the others by a timer, ordered by time and
// then by when they were sent; so in a testing/synctest bubble a network of many hours takes moments. What becomes of the nth datagram
// between two hosts follows from the seed alone. All types are safe for concurrent use.
package vpntest

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Net is a network in memory.
type Net struct {
	Internet *Segment
	Seed     uint64                                    // of everything random; set before use
	Taps     []func(from, to netip.AddrPort, b []byte) // see every datagram as it is sent, also those that get lost; set before use
	Watch    func(Sight)                               // sees what becomes of each; must not call back nor keep B; set before use

	mu      sync.Mutex // guards everything below and in hosts, segments and NAT boxes
	lost    func(from, to netip.AddrPort) bool
	last    int // id given last
	pairs   map[flow]Link
	dice    map[flow]*dice
	flights flights
	sent    uint64
	alarm   *time.Timer
}

// Sight is a step of a datagram.
type Sight struct {
	From, To *Host // nil: not one of ours; To is known on arrival only
	Src, Dst netip.AddrPort
	B        []byte
	Fate     string // Sent, Arrived, or why it is lost
}

// Fates of a datagram that are no loss.
const (
	Sent     = "sent"
	Repeated = "repeated" // on the way; from here on there is one more of it
	Arrived  = "arrived"
)

// Link says what happens to datagrams on their way through one attachment, in either direction, or between two hosts.
type Link struct {
	Delay     time.Duration
	Jitter    time.Duration // up to so much more
	Loss      float64       // of 1
	Duplicate float64       // of 1; the second comes with another jitter
	Reorder   float64       // of 1 are late by Delay/2 + Jitter, and others may overtake them; without it nothing does
	Rate      int           // bytes per second; 0: no limit. What would wait longer than queueFor is lost.
	MTU       int           // bytes of an IP packet; 0: 1500. Hosts get EMSGSIZE for their own; elsewhere larger ones vanish.
	Down      bool          // nothing passes
}

const (
	queueFor   = 100 * time.Millisecond
	defaultMTU = 1500
)

// Segment is a network whose members reach each other directly: the internet, or the inside of a NAT box.
type Segment struct {
	net    *Net
	prefix netip.Prefix // invalid: the internet, where every address may be
	at     map[netip.Addr]*attachment
	nat    *NAT // leads out; nil: nothing does
}

// attachment is where a host or a NAT box touches a segment.
type attachment struct {
	id   int
	seg  *Segment
	addr netip.Addr
	link Link
	busy [2]time.Time // the rate's queue, upwards and downwards
	host *Host        // or
	nat  *NAT
}

// Host is a machine.
type Host struct {
	Name  string
	net   *Net
	id    int
	at    []*attachment
	socks map[uint16]*Bind

	listens map[uint16]*Listener
	tcpPort uint16 // given last
}

// flow is what one sequence of fates is kept for: two attachments, or two hosts.
type flow struct{ from, to int }

type dice struct {
	*rand.Rand
	last time.Time // when the last one arrives
}

// NewNet returns an empty network.
func NewNet() *Net {
	n := &Net{pairs: map[flow]Link{}, dice: map[flow]*dice{}}
	n.Internet = &Segment{net: n, at: map[netip.Addr]*attachment{}}
	return n
}

// Lose sets which datagrams are lost, by the addresses they are sent from and to.
func (n *Net) Lose(f func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = f
}

// SetWatch replaces Watch while the network is in use.
func (n *Net) SetWatch(f func(Sight)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Watch = f
}

func (n *Net) id() int {
	n.last++
	return n.last
}

// Host returns a new machine without any cable.
func (n *Net) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &Host{Name: name, net: n, id: n.id(), socks: map[uint16]*Bind{}, listens: map[uint16]*Listener{}}
}

// Attach gives the host an address on a segment, behind a link.
func (h *Host) Attach(seg *Segment, addr netip.Addr, link Link) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.at = append(h.at, seg.attach(&attachment{addr: addr, link: link, host: h}))
}

// attach is called with net.mu held.
func (s *Segment) attach(a *attachment) *attachment {
	a.id, a.seg = s.net.id(), s
	s.at[a.addr] = a
	return a
}

// Detach takes all addresses away.
func (h *Host) Detach() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.detach()
}

func (h *Host) detach() {
	for _, a := range h.at {
		if a.seg.at[a.addr] == a {
			delete(a.seg.at, a.addr)
		}
	}
	h.at = nil
}

// SetLink changes the links of all of the host's addresses.
func (h *Host) SetLink(change func(*Link)) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, a := range h.at {
		change(&a.link)
	}
}

// Addrs returns the host's addresses, sorted.
func (h *Host) Addrs() []netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	var out []netip.Addr
	for _, a := range h.at {
		out = append(out, a.addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Pair sets what happens to all that goes from one host to another, besides what happens on their links. The zero Link
// is nothing.
func (n *Net) Pair(from, to *Host, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l == (Link{}) {
		delete(n.pairs, flow{from.id, to.id})
	} else {
		n.pairs[flow{from.id, to.id}] = l
	}
}

// Reaches returns the host that a datagram to this address would get to if it were not lost, or with tcp the beginning of a
// connection, sent by a host that nothing has been sent to before; nil if none. NAT boxes let it in only where a port is
// forwarded.
func (n *Net) Reaches(from *Host, to netip.AddrPort, tcp bool) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.walk(from, to, !tcp)
	if p == nil || n.pairs[flow{from.id, p.to.id}].Down {
		return nil
	}
	return p.to
}

// way is the attachment that leads to an address; nil if none does. net.mu is held.
func (h *Host) way(to netip.Addr) *attachment {
	for _, a := range h.at {
		if a.seg.prefix.IsValid() && a.seg.prefix.Contains(to) && a.addr.Is4() == to.Is4() {
			return a
		}
	}
	for _, a := range h.at {
		if (!a.seg.prefix.IsValid() || a.seg.nat != nil) && a.addr.Is4() == to.Is4() {
			return a
		}
	}
	return nil
}

// Send puts a datagram onto the internet as if it came from a socket with the address from.
func (n *Net) Send(from, to netip.AddrPort, b []byte) {
	n.tap(from, to, b)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.launch(nil, n.Internet, from, to, b, nil)
}

func (n *Net) tap(from, to netip.AddrPort, b []byte) {
	for _, t := range n.Taps {
		t(from, to, b)
	}
}

// send is Bind's.
func (h *Host) send(port uint16, to netip.AddrPort, b []byte) error {
	n := h.net
	n.mu.Lock()
	a := h.way(to.Addr())
	if a == nil {
		n.mu.Unlock()
		return syscall.ENETUNREACH
	}
	if size(to.Addr(), b) > a.link.mtu() {
		n.mu.Unlock()
		return syscall.EMSGSIZE
	}
	from := netip.AddrPortFrom(a.addr, port)
	n.mu.Unlock()
	n.tap(from, to, b)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.launch(h, a.seg, from, to, b, []leg{{a, 0}})
	return nil
}

// size is that of the IP packet of a datagram: RFC 791, RFC 8200, RFC 768.
func size(to netip.Addr, b []byte) int {
	if to.Is4() {
		return len(b) + 28
	}
	return len(b) + 48
}

func (l Link) mtu() int {
	if l.MTU == 0 {
		return defaultMTU
	}
	return l.MTU
}

// leg is a passage through an attachment, upwards (0) or downwards (1).
type leg struct {
	*attachment
	dir int
}

// flight is a datagram on its way to an address of a segment.
type flight struct {
	at       time.Time
	n        uint64
	seg      *Segment
	src, dst netip.AddrPort
	b        []byte
	from     *Host
	paired   bool // what is between the two hosts has been passed
}

func (n *Net) see(f *flight, to *Host, fate string) {
	if n.Watch != nil {
		n.Watch(Sight{f.from, to, f.src, f.dst, f.b, fate})
	}
}

// launch takes a datagram out through NAT boxes to the segment that has its destination. n.mu is held.
func (n *Net) launch(h *Host, seg *Segment, src, dst netip.AddrPort, b []byte, legs []leg) {
	f := &flight{seg: seg, src: src, dst: dst, b: slices.Clone(b), from: h}
	n.see(f, nil, Sent)
	if n.lost != nil && n.lost(src, dst) {
		n.see(f, nil, "lost by the test")
		return
	}
	for f.seg.at[dst.Addr()] == nil {
		nat := f.seg.nat
		if nat == nil || f.seg.prefix.Contains(dst.Addr()) {
			n.see(f, nil, "there is no such address")
			return
		}
		if nat.Kind.NoUDP {
			n.see(f, nil, "UDP is blocked")
			return
		}
		f.src = nat.outward(f.src, dst)
		f.seg = nat.out.seg
		if dst.Addr() == nat.out.addr { // hairpin (RFC 4787 section 6)
			if !nat.Kind.Hairpin {
				n.see(f, nil, "no hairpin")
				return
			}
			break
		}
		legs = append(legs, leg{nat.out, 0})
	}
	n.fly(f, append(legs, leg{f.seg.at[dst.Addr()], 1}))
}

// fly decides what happens to a datagram on some legs. n.mu is held.
func (n *Net) fly(f *flight, legs []leg) {
	now := time.Now()
	var delay time.Duration
	l := Link{MTU: legs[0].link.mtu()}
	pass := 1.0
	for _, g := range legs {
		if g.link.Down {
			n.see(f, nil, "a link is down")
			return
		}
		if size(f.dst.Addr(), f.b) > g.link.mtu() {
			n.see(f, nil, "it is too large")
			return
		}
		if g.link.Rate > 0 {
			busy := &g.busy[g.dir]
			if busy.Before(now) {
				*busy = now
			}
			if busy.Sub(now) > queueFor {
				n.see(f, nil, "a queue is full")
				return
			}
			*busy = busy.Add(time.Duration(size(f.dst.Addr(), f.b)) * time.Second / time.Duration(g.link.Rate))
			delay += busy.Sub(now)
		}
		l.Delay += g.link.Delay
		l.Jitter += g.link.Jitter
		l.Duplicate += g.link.Duplicate
		l.Reorder += g.link.Reorder
		pass *= 1 - g.link.Loss
	}
	l.Loss = 1 - pass
	n.roll(f, l, delay, flow{legs[0].id, legs[len(legs)-1].id})
}

// roll lets chance have its part of a datagram, and sends it on. n.mu is held.
func (n *Net) roll(f *flight, l Link, delay time.Duration, k flow) {
	delay += l.Delay
	if l.Jitter == 0 && l.Loss == 0 && l.Duplicate == 0 && l.Reorder == 0 {
		n.arriveAfter(f, delay)
		return
	}
	d := n.roller(k)
	lost, twice, late := d.Float64() < l.Loss, d.Float64() < l.Duplicate, d.Float64() < l.Reorder
	jitter, again := time.Duration(d.Float64()*float64(l.Jitter)), time.Duration(d.Float64()*float64(l.Jitter))
	if lost {
		n.see(f, nil, "lost")
		return
	}
	if twice {
		g := *f
		n.see(&g, nil, Repeated)
		n.arriveAfter(&g, delay+jitter+again)
	}
	delay += jitter
	if late {
		delay += l.Delay/2 + l.Jitter
	} else { // not before what was sent before
		at := time.Now().Add(delay)
		if at.Before(d.last) {
			delay += d.last.Sub(at)
			at = d.last
		}
		d.last = at
	}
	n.arriveAfter(f, delay)
}

// roller is what chance has for a flow. n.mu is held.
func (n *Net) roller(k flow) *dice {
	d := n.dice[k]
	if d == nil {
		d = &dice{Rand: rand.New(rand.NewPCG(n.Seed, uint64(k.from)<<32|uint64(uint32(k.to))))}
		n.dice[k] = d
	}
	return d
}

func (n *Net) arriveAfter(f *flight, delay time.Duration) {
	if delay <= 0 {
		n.arrive(f)
		return
	}
	n.sent++
	f.at, f.n = time.Now().Add(delay), n.sent
	heap.Push(&n.flights, f)
	if n.flights[0] == f {
		n.setAlarm()
	}
}

func (n *Net) setAlarm() {
	if n.alarm != nil {
		n.alarm.Stop()
	}
	n.alarm = time.AfterFunc(time.Until(n.flights[0].at), n.land)
}

// land lets arrive what is due.
func (n *Net) land() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for now := time.Now(); len(n.flights) > 0 && !n.flights[0].at.After(now); {
		n.arrive(heap.Pop(&n.flights).(*flight))
	}
	if len(n.flights) > 0 {
		n.setAlarm()
	}
}

// arrive hands a datagram to whoever has its destination by now. n.mu is held.
func (n *Net) arrive(f *flight) {
	a := f.seg.at[f.dst.Addr()]
	switch {
	case a == nil:
		n.see(f, nil, "the address is gone")
	case a.link.Down:
		n.see(f, nil, "a link is down")
	case a.nat != nil:
		dst, why := a.nat.inward(f.src, f.dst.Port())
		if why != "" {
			n.see(f, nil, why)
			return
		}
		f.seg, f.dst = a.nat.Inside, dst
		if t := f.seg.at[dst.Addr()]; t != nil {
			n.fly(f, []leg{{t, 1}})
		} else {
			n.see(f, nil, "the address behind the NAT is gone")
		}
	default:
		if k := (flow{-1, a.host.id}); f.from != nil && !f.paired {
			f.paired = true
			k.from = f.from.id
			if l, ok := n.pairs[k]; ok {
				switch {
				case l.Down:
					n.see(f, a.host, "cut")
				case size(f.dst.Addr(), f.b) > l.mtu():
					n.see(f, a.host, "it is too large")
				default:
					n.roll(f, l, 0, k)
				}
				return
			}
		}
		s := a.host.socks[f.dst.Port()]
		if s == nil {
			n.see(f, a.host, "nobody listens")
			return
		}
		select {
		case s.in <- datagram{f.src, f.b}:
			n.see(f, a.host, Arrived)
		default:
			n.see(f, a.host, "the socket's buffer is full")
		}
	}
}

// flights is a heap by time of arrival, then by order of sending.
type flights []*flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].at.Before(f[j].at) || f[i].at.Equal(f[j].at) && f[i].n < f[j].n
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(*flight)) }
func (f *flights) Pop() any {
	old := *f
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*f = old[:len(old)-1]
	return x
}
