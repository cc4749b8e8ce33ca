// SPDX-License-Identifier: MIT

package dnsd

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// batchSize is how many packets are read and sent in one system call, at most: under load most of the time of a query is the
// system's.
const batchSize = 16

// batch reads queries from a socket and sends answers.
type batch struct {
	conn interface {
		ReadBatch(ms []ipv4.Message, flags int) (int, error)
		WriteBatch(ms []ipv4.Message, flags int) (int, error)
	}
	in, out []ipv4.Message
	n       int // answers in out
}

func newBatch(pc *net.UDPConn) *batch {
	b := &batch{conn: ipv4.NewPacketConn(pc), in: make([]ipv4.Message, batchSize), out: make([]ipv4.Message, batchSize)}
	if pc.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is6() {
		b.conn = ipv6.NewPacketConn(pc)
	}
	for i := range b.in {
		b.in[i].Buffers = [][]byte{make([]byte, querySize)}
		b.out[i].Buffers = [][]byte{make([]byte, 0, udpSize)}
	}
	return b
}

// read waits for queries and returns how many there are.
func (b *batch) read() (int, error) { return b.conn.ReadBatch(b.in, 0) }

// query returns one of them.
func (b *batch) query(i int) ([]byte, netip.AddrPort) {
	return b.in[i].Buffers[0][:b.in[i].N], b.in[i].Addr.(*net.UDPAddr).AddrPort()
}

// room is where the next answer may be made.
func (b *batch) room() []byte { return b.out[b.n].Buffers[0][:0] }

// answer puts the answer to a query with the others.
func (b *batch) answer(i int, p []byte) {
	b.out[b.n].Buffers[0], b.out[b.n].Addr = p, b.in[i].Addr
	b.n++
}

// send sends the answers. One that cannot be sent is left out.
func (b *batch) send() (err error) {
	for rest := b.out[:b.n]; len(rest) > 0; {
		n, err1 := b.conn.WriteBatch(rest, 0)
		if err1 != nil {
			err, n = err1, max(n, 0)+1
		}
		rest = rest[min(n, len(rest)):]
	}
	b.n = 0
	return err
}
