// SPDX-License-Identifier: MIT

package sim

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"time"

	"mesh.internal/mesh/vpn/vpntest"
)

// A marked packet is IPv4 with a UDP header, 8 bytes of magic, where it is from and to (nodes by number), its sequence in
// that direction, padding, and a checksum of all that.
const (
	markedHead = 28
	markedMin  = markedHead + 8 + 4 + 4 + 8 + 8
	talkSize   = 160 // bytes of an inner packet unless told otherwise
	talkEvery  = 75 * time.Millisecond
)

var magic = []byte("sim mark")

type marked struct {
	from, to int
	seq      uint64
}

func (m marked) packet(src, dst netip.Addr, size int) []byte {
	b := make([]byte, max(size, markedMin))
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	p := b[markedHead:]
	copy(p, magic)
	binary.BigEndian.PutUint32(p[8:], uint32(m.from))
	binary.BigEndian.PutUint32(p[12:], uint32(m.to))
	binary.BigEndian.PutUint64(p[16:], m.seq)
	binary.BigEndian.PutUint64(b[len(b)-8:], sum(b[:len(b)-8]))
	return b
}

func sum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

// parseMarked reads a packet that a node gave to its kernel; whole reports whether its checksum is right.
func parseMarked(b []byte) (m marked, src, dst netip.Addr, whole, ok bool) {
	if len(b) < markedMin || b[0] != 0x45 || !bytes.Equal(b[markedHead:markedHead+8], magic) {
		return m, src, dst, false, false
	}
	p := b[markedHead:]
	m = marked{int(binary.BigEndian.Uint32(p[8:])), int(binary.BigEndian.Uint32(p[12:])), binary.BigEndian.Uint64(p[16:])}
	return m, netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])),
		binary.BigEndian.Uint64(b[len(b)-8:]) == sum(b[:len(b)-8]), true
}

// Conversation is two nodes that talk all the time, both ways.
type Conversation struct {
	a, b *direction
}

// Talk lets two nodes talk, with inner packets of size bytes (0: 160), each every 75 ms on average, until the world ends.
func (w *World) Talk(a, b *Node, size int) *Conversation {
	if size == 0 {
		size = talkSize
	}
	c := &Conversation{w.judge.direction(a, b, size), w.judge.direction(b, a, size)}
	w.trace.add("event", "%s and %s talk", a.Name, b.Name)
	for i, d := range []*direction{c.a, c.b} {
		seed := w.Rand.Uint64() + uint64(i)
		w.wg.Go(func() {
			for {
				seed = seed*6364136223846793005 + 1442695040888963407
				t := time.NewTimer(talkEvery*2/3 + time.Duration(seed>>33)%(talkEvery*2/3))
				select {
				case <-w.ctx.Done():
					t.Stop()
					return
				case <-t.C:
				}
				w.judge.talk(d)
			}
		})
	}
	return c
}

// Pause lets the two be silent, or talk again.
func (c *Conversation) Pause(on bool) {
	c.a.judge.mu.Lock()
	defer c.a.judge.mu.Unlock()
	c.a.paused, c.b.paused = on, on
}

// Resize changes how many bytes an inner packet has.
func (c *Conversation) Resize(size int) {
	c.a.judge.mu.Lock()
	defer c.a.judge.mu.Unlock()
	c.a.size, c.b.size = size, size
}

// Count returns how many packets the two have sent each other so far, and how many have come.
func (c *Conversation) Count() (sent, came int) {
	c.a.judge.mu.Lock()
	defer c.a.judge.mu.Unlock()
	return int(c.a.seq + c.b.seq), c.a.got + c.b.got
}

// Direct reports whether in the last second both got datagrams of the size of talk (160 bytes) from the other's host itself.
func (w *World) Direct(a, b *Node) bool {
	w.judge.mu.Lock()
	defer w.judge.mu.Unlock()
	return time.Since(w.judge.direct[[2]*vpntest.Host{a.Host, b.Host}]) < time.Second &&
		time.Since(w.judge.direct[[2]*vpntest.Host{b.Host, a.Host}]) < time.Second
}

// Forge lets a program on the node send a packet with a source that is not the node's, from and to other nodes.
func (n *Node) Forge(from, to *Node) {
	if l := n.running(); l != nil && from != n {
		select {
		case l.tun.Out <- marked{-1, -1, n.w.Rand.Uint64()}.packet(from.Addr(), to.Addr(), talkSize):
		default:
		}
	}
}
