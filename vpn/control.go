// SPDX-License-Identifier: MIT

package vpn

import (
	"encoding/binary"
	"net/netip"
)

// Control messages travel inside the tunnels as IPv6 packets between the nodes' ULA addresses, with the protocol number
// for experiments (RFC 3692), and never touch the kernel: seam puts them between its packets on the way to the engine
// and takes them out on the way back. The engine has checked by then that the source address is the sender's.
const (
	controlProtocol = 253
	controlHead     = 40   // an IPv6 header (RFC 8200 section 3)
	maxControl      = 1280 // bytes of a whole packet
	maxQueued       = 256  // control packets that wait for the engine; more are dropped, repair brings them again
)

func isControl(b []byte) bool {
	return len(b) >= controlHead && b[0]>>4 == 6 && b[6] == controlProtocol
}

// packet makes a control packet. It returns nil if payload is too large for one.
func packet(src, dst netip.Addr, payload []byte) []byte {
	if controlHead+len(payload) > maxControl {
		return nil
	}
	b := make([]byte, controlHead, controlHead+len(payload))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = controlProtocol, 1
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}
