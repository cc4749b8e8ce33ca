// SPDX-License-Identifier: MIT

package vpn

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"mesh.internal/mesh/vpn/ip"
	"mesh.internal/mesh/vpn/queue"
)

// deadliner is what interrupts a read of the device: *os.File, or a test's double.
type deadliner interface{ SetReadDeadline(time.Time) error }

// seam is the TUN device as the engine sees it. On the way to the engine packets pass a fair queue, which is where they
// wait: the seam lets only as many into the engine as keep it busy, and counts them out again where they leave it, sealed
// (type counted). So the engine's own queues, which are deep and first come, first served, stay short.
//
//	TUN ─▶ too large? MSS ─▶ queue ─▶ engine ─▶ counted ─▶ link
//	                           ▲ packets of flows without backlog and control packets do not wait for room
//
// The seam has no goroutine: Read does all that, in the engine's.
type seam struct {
	tun.Device
	mtu       int // of the device
	interrupt deadliner
	limit     queue.Limit

	// Hooks, set before the engine is made and called by its goroutines.
	control func(from netip.Addr, payload []byte) // a control packet came in; must not block
	heard   func(from netip.Addr)                 // a batch came in; must not block
	// For the packets of the kernel that Read gets at once the next three are called in this order, before they are handed
	// to the engine, and again only where the destination is not that of the packet before. So they must be cheap; but
	// demand may take its time where it makes dst a peer of the engine, while nothing is read. Any of them may be nil.
	demand  func(dst netip.Addr)
	peerOf  func(dst netip.Addr) conn.Endpoint // to which the engine sends what goes to dst; nil: to none
	pathMTU func(dst netip.Addr) int           // how large a packet to dst may be; 0: as the device's. Write calls it too

	mu       sync.Mutex // guards the fields below
	injected [][]byte
	peers    map[conn.Endpoint]*seamPeer

	outbound
}

type (
	seamPeer   = queue.Peer[queue.Flight]
	seamPacket = queue.Packet[queue.Flight]
)

// outbound is what Read's goroutine alone uses.
type outbound struct {
	reader  *tunReader
	queue   *queue.Queue[queue.Flight]
	nowhere seamPeer    // of packets that have no peer, which the engine drops
	rest    *seamPacket // is being handed to the engine
	spare   *seamPacket // for the next packet
	expiry  *time.Timer
	to      seamRoute
	budget  float64 // of answers that are too large: a token bucket
	refill  time.Time
}

// seamRoute is what is known of the last packet's destination.
type seamRoute struct {
	dst  netip.Addr
	peer *seamPeer
	mtu  int
}

const (
	headroom   = 16      // before a packet that is written to the device: it wants to put a header of its own there
	inEngine   = 1 << 16 // bytes for each processor but one, up to four of them
	atOnce     = 1 << 16 // bytes of flows with a backlog in one Read: one super-packet, as without the queue
	drainReads = 128     // packets of the device, and
	drainBytes = 4 << 16 // bytes, that are read before the engine gets some
	maxKnown   = 1024    // peers; then all are forgotten, with what of theirs is in the engine
	answerRate = 100     // answers a second that packets are too large
)

func newSeam(dev tun.Device, mtu int) (*seam, error) {
	s := &seam{Device: dev, mtu: mtu, peers: map[conn.Endpoint]*seamPeer{}}
	if f := dev.File(); f != nil {
		s.interrupt = f
	} else if d, ok := dev.(deadliner); ok {
		s.interrupt = d
	}
	if s.interrupt == nil || s.interrupt.SetReadDeadline(time.Time{}) != nil {
		return nil, errors.New("reads of this TUN device cannot be interrupted")
	}
	var err error
	if s.reader, err = newTUNReader(dev); err != nil {
		return nil, err
	}
	s.limit.Bytes, s.limit.Wake = inEngine*min(max(1, runtime.GOMAXPROCS(0)-1), 4), s.wake
	s.queue = queue.New[queue.Flight]()
	s.expiry = time.AfterFunc(time.Hour, s.wake)
	s.expiry.Stop()
	return s, nil
}

// wake makes Read look again at what there is to do.
func (s *seam) wake() { s.interrupt.SetReadDeadline(time.Unix(1, 0)) }

// inject hands a control packet to the engine as if it came from the kernel.
func (s *seam) inject(pkt []byte) {
	s.mu.Lock()
	if len(s.injected) < maxQueued {
		s.injected = append(s.injected, pkt)
	}
	s.mu.Unlock()
	s.wake()
}

// dropped is how many packets of the kernel the queue has dropped to stay short, and because it was full.
func (s *seam) dropped() (late, full uint64) {
	return s.queue.Dropped.Late.Load(), s.queue.Dropped.Full.Load()
}

// Read implements tun.Device. One goroutine may call it.
func (s *seam) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for wait := s.rest == nil && s.queue.Empty(); ; wait = true {
		if n := s.takeInjected(bufs, sizes, offset); n > 0 {
			return n, nil
		}
		now, err := s.drain(wait)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// Before anything is looked at: what changes later sets it again.
			s.interrupt.SetReadDeadline(time.Time{})
		} else if err != nil {
			return 0, err
		}
		if n := s.fill(bufs, sizes, offset, now); n > 0 {
			return n, nil
		}
	}
}

func (s *seam) takeInjected(bufs [][]byte, sizes []int, offset int) int {
	s.mu.Lock()
	n := min(len(s.injected), len(bufs))
	taken := s.injected[:n]
	s.injected = s.injected[n:]
	s.mu.Unlock()
	for i, p := range taken {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return n
}

// drain reads what the device has into the queue; with wait, it waits for a packet or an interrupt first. It returns the
// time when there was nothing to wait for any more.
func (s *seam) drain(wait bool) (now time.Time, err error) {
	s.to = seamRoute{}
	if wait && !s.queue.Empty() {
		s.expiry.Reset(queue.Expire)
	}
	for n, bytes := 0, 0; n < drainReads && bytes < drainBytes; n++ {
		if s.spare == nil {
			s.spare = s.queue.Packet(queue.MaxPacket)
		}
		pkt, g, err := s.reader.read(s.spare.Buf(), wait && n == 0)
		if n == 0 {
			now = time.Now()
		}
		if pkt == nil || err != nil {
			return now, err
		}
		bytes += len(pkt)
		s.accept(pkt, g, now)
	}
	return now, nil
}

// accept takes a packet of the device, which lies in s.spare.
func (s *seam) accept(pkt []byte, g ip.GSO, now time.Time) {
	_, dst, ok := ip.Addrs(pkt)
	if !ok || isControl(pkt) { // a program of this machine may not speak for the node
		return
	}
	to := s.route(dst)
	if g.Size == 0 && ip.IsSYN(pkt) {
		ip.ClampMSS(pkt, to.mtu)
	}
	if n := g.Len(pkt); n > to.mtu && !(pkt[0]>>4 == 6 && n <= ip.MinMTU6) {
		if !ip.MayFragment(pkt) {
			s.tooBig(pkt, to.mtu, now)
			return
		}
		if !g.Shrink(to.mtu) {
			s.fragment(pkt, g, now)
			return
		}
	}
	p := s.queue.Packet(len(pkt))
	if p.Large() {
		p, s.spare = s.spare, p
		p.Data = pkt
	} else {
		p.Data = append(p.Buf()[:0], pkt...)
	}
	p.GSO = g
	s.queue.Push(p, to.peer, now)
}

// route looks a destination up.
func (s *seam) route(dst netip.Addr) *seamRoute {
	if s.to.dst == dst {
		return &s.to
	}
	if s.demand != nil {
		s.demand(dst)
	}
	s.to = seamRoute{dst: dst, peer: &s.nowhere, mtu: s.mtuOf(dst)}
	if s.peerOf == nil {
		return &s.to
	}
	if ep := s.peerOf(dst); ep != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		p := s.peers[ep]
		if p == nil {
			if len(s.peers) >= maxKnown {
				clear(s.peers)
			}
			p = &seamPeer{}
			s.peers[ep] = p
		}
		s.to.peer = p
	}
	return &s.to
}

// mtuOf returns how large a packet to or from another may be.
func (s *seam) mtuOf(other netip.Addr) int {
	if s.pathMTU != nil {
		if n := s.pathMTU(other); n > 0 {
			return min(n, s.mtu)
		}
	}
	return s.mtu
}

// fill hands packets to the engine: those of flows without a backlog, or else others as there is room for them.
func (s *seam) fill(bufs [][]byte, sizes []int, offset int, now time.Time) (n int) {
	room := func(p *seamPeer) bool { return s.limit.Room(&p.Value, now) }
	for bulk := 0; n < len(bufs); {
		p := s.rest
		if p == nil {
			p = s.queue.Sparse(now)
		}
		if p == nil && (n == 0 || bulk > 0) && bulk < atOnce {
			if p = s.queue.Bulk(now, room); p != nil {
				bulk += len(p.Data)
			}
		}
		if p == nil {
			break
		}
		bytes := 0
		for count := p.GSO.Count(p.Data); p.Next < count && n < len(bufs); p.Next++ {
			sizes[n] = p.GSO.Cut(bufs[n][offset:], p.Data, p.Next)
			bytes += padded(sizes[n])
			n++
		}
		s.limit.In(&p.Peer.Value, bytes, now)
		if s.rest = p; p.Next >= p.GSO.Count(p.Data) {
			s.queue.Free(p)
			s.rest = nil
		}
	}
	return n
}

// padded is how long a packet is once the engine has padded it, which it does not do beyond the MTU.
func padded(n int) int { return (n + 15) &^ 15 }

// tooBig tells the kernel that a packet is larger than mtu.
func (s *seam) tooBig(pkt []byte, mtu int, now time.Time) {
	s.budget = min(answerRate, s.budget+answerRate*now.Sub(s.refill).Seconds())
	s.refill = now
	if s.budget < 1 {
		return
	}
	b := make([]byte, headroom+ip.MaxTooBig)
	if n := ip.TooBig(b[headroom:], pkt, mtu); n > 0 {
		s.budget--
		s.Device.Write([][]byte{b[:headroom+n]}, headroom) // a device that takes no packets ends Read too
	}
}

// fragment queues the fragments of a packet.
func (s *seam) fragment(pkt []byte, g ip.GSO, now time.Time) {
	whole, scratch := make([]byte, g.Len(pkt)), make([]byte, s.to.mtu)
	for i := range g.Count(pkt) {
		n := g.Cut(whole, pkt, i)
		ip.Fragment(scratch, whole[:n], s.to.mtu, func(f []byte) {
			p := s.queue.Packet(len(f))
			p.Data = append(p.Buf()[:0], f...)
			s.queue.Push(p, s.to.peer, now)
		})
	}
}

// Write implements tun.Device.
func (s *seam) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) > 0 {
		if from, _, ok := ip.Addrs(bufs[0][offset:]); ok { // a batch is of one peer
			s.heard(from)
		}
	}
	kept := bufs[:0]
	for _, b := range bufs {
		p := b[offset:]
		if isControl(p) {
			from, _, _ := ip.Addrs(p)
			s.control(from, p[controlHead:])
			continue
		}
		if ip.IsSYN(p) {
			from, _, _ := ip.Addrs(p)
			ip.ClampMSS(p, s.mtuOf(from))
		}
		kept = append(kept, b)
	}
	if len(kept) == 0 {
		return len(bufs), nil
	}
	_, err := s.Device.Write(kept, offset)
	return len(bufs), err
}

// counted is the link as the engine sees it: it tells the seam what has left the engine.
type counted struct {
	conn.Bind
	seam *seam
}

// transportData is the first byte of WireGuard's messages that have a packet.
const transportData = 4

// Send implements conn.Bind.
func (c counted) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := c.Bind.Send(bufs, ep)
	bytes := 0
	for _, b := range bufs {
		if len(b) > sealed && b[0] == transportData {
			bytes += padded(len(b) - sealed)
		}
	}
	if bytes > 0 {
		c.seam.mu.Lock()
		p := c.seam.peers[ep]
		c.seam.mu.Unlock()
		if p != nil {
			c.seam.limit.Out(&p.Value, bytes, time.Now())
		}
	}
	return err
}
