// SPDX-License-Identifier: MIT

//go:build !linux

package dnsd

import (
	"net"
	"net/netip"
)

// batch reads queries from a socket and sends answers: one at a time, where the system has no call for more.
type batch struct {
	pc      *net.UDPConn
	in, out []byte
	n       int
	from    netip.AddrPort
}

func newBatch(pc *net.UDPConn) *batch {
	return &batch{pc: pc, in: make([]byte, querySize), out: make([]byte, 0, udpSize)}
}

func (b *batch) read() (n int, err error) {
	b.out = b.out[:0]
	b.n, b.from, err = b.pc.ReadFromUDPAddrPort(b.in)
	return 1, err
}

func (b *batch) query(int) ([]byte, netip.AddrPort) { return b.in[:b.n], b.from }
func (b *batch) room() []byte                       { return b.out[:0] }
func (b *batch) answer(_ int, p []byte)             { b.out = p }

func (b *batch) send() (err error) {
	if len(b.out) > 0 {
		_, err = b.pc.WriteToUDPAddrPort(b.out, b.from)
	}
	return err
}
