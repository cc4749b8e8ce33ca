// SPDX-License-Identifier: MIT

package queue

import "mesh.internal/mesh/vpn/ip"

// MaxPacket is the longest that can be asked of Packet: a super-packet and what a TUN device puts before it.
const MaxPacket = 1<<16 + 64

const (
	smallPacket = 2048 // a packet that is no super-packet
	keepLarge   = 16   // of those that are free, when nothing waits
	keepSmall   = 256
)

// pool is the memory of packets that are free: as much as was in use at once since the queue was last empty.
type pool[P any] struct{ large, small []*Packet[P] }

// Buf is the packet's memory.
func (p *Packet[P]) Buf() []byte { return p.buf }

// Large reports whether the packet has memory for MaxPacket bytes.
func (p *Packet[P]) Large() bool { return len(p.buf) > smallPacket }

// Packet returns a packet with memory for n bytes, at most MaxPacket.
func (q *Queue[P]) Packet(n int) *Packet[P] {
	list, size := &q.pool.small, smallPacket
	if n > size {
		list, size = &q.pool.large, MaxPacket
	}
	if last := len(*list) - 1; last >= 0 {
		p := (*list)[last]
		*list = (*list)[:last]
		return p
	}
	return &Packet[P]{buf: make([]byte, size)}
}

// Free takes a packet back that nobody uses any more.
func (q *Queue[P]) Free(p *Packet[P]) {
	p.Data, p.Peer, p.next, p.GSO, p.Next = nil, nil, nil, ip.GSO{}, 0
	list, keep := &q.pool.small, keepSmall
	if p.Large() {
		list, keep = &q.pool.large, keepLarge
	}
	if q.bytes == 0 && len(*list) >= keep {
		clear((*list)[keep-1:])
		*list = (*list)[:keep-1]
	}
	*list = append(*list, p)
}
