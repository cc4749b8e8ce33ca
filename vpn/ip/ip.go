// SPDX-License-Identifier: MIT

// Package ip is arithmetic on IP packets: what a router does to those it passes on (RFC 791, 792, 1191, 4443, 8200), and
// what a network card does to a TCP or UDP super-packet (segmentation offload). All functions are pure, take any bytes,
// and write to the memory that they are given. Nothing allocates.
package ip

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Protocol numbers (IANA) and header sizes.
const (
	icmp4    = 1
	tcp      = 6
	udp      = 17
	routing6 = 43
	frag6    = 44
	icmp6    = 58
	options6 = 60

	head4   = 20
	head6   = 40
	headTCP = 20
	headUDP = 8

	// MinMTU6 is what every path of IPv6 carries (RFC 8200 section 5).
	MinMTU6 = 1280
)

// Addrs returns a packet's source and destination. ok is false if b is too short for its header.
func Addrs(b []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(b) >= head4 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), true
	case len(b) >= head6 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), true
	}
	return src, dst, false
}

// Transport finds the header after those of IP: its protocol and where it begins. IPv6's extension headers that do not
// hide it are passed over. ok is false for what cannot be read and for fragments but the first.
func Transport(b []byte) (proto byte, at int, ok bool) {
	switch {
	case len(b) >= head4 && b[0]>>4 == 4:
		at = int(b[0]&15) * 4
		return b[9], at, at >= head4 && at <= len(b) && binary.BigEndian.Uint16(b[6:])&0x1fff == 0
	case len(b) >= head6 && b[0]>>4 == 6:
		proto, at = b[6], head6
		for range 8 { // nobody sends more
			if proto != 0 && proto != routing6 && proto != frag6 && proto != options6 {
				return proto, at, at <= len(b)
			}
			if len(b) < at+8 {
				return 0, 0, false
			}
			next := 8 * (1 + int(b[at+1]))
			if proto == frag6 {
				if next = 8; binary.BigEndian.Uint16(b[at+2:])&0xfff8 != 0 {
					return 0, 0, false
				}
			}
			proto, at = b[at], at+next
		}
	}
	return 0, 0, false
}

// Flow is what tells one conversation from another.
type Flow struct {
	Src, Dst netip.Addr
	Ports    uint32
	Proto    byte
}

// FlowOf returns a packet's flow. Of fragments the ports are 0, so that all of one packet are in one flow.
func FlowOf(b []byte) (f Flow, ok bool) {
	if f.Src, f.Dst, ok = Addrs(b); !ok {
		return f, false
	}
	if b[0]>>4 == 4 {
		f.Proto = b[9]
		if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // more fragments, or an offset
			return f, true
		}
	} else {
		f.Proto = b[6]
	}
	if at := headLen(b); (f.Proto == tcp || f.Proto == udp) && len(b) >= at+4 {
		f.Ports = binary.BigEndian.Uint32(b[at:])
	}
	return f, true
}

// headLen is the length of the header of IP without extensions.
func headLen(b []byte) int {
	if b[0]>>4 == 4 {
		return int(b[0]&15) * 4
	}
	return head6
}

// tcpOf returns where a TCP header begins.
func tcpOf(b []byte) (at int, ok bool) {
	proto, at, ok := Transport(b)
	return at, ok && proto == tcp && len(b) >= at+headTCP
}

// IsSYN reports whether a packet begins a TCP connection or answers one that does.
func IsSYN(b []byte) bool {
	at, ok := tcpOf(b)
	return ok && b[at+13]&2 != 0
}

// ClampMSS lowers the maximum segment size that a TCP SYN announces to what fits into packets of mtu bytes, and reports
// whether it did. The checksum is updated by the difference (RFC 1624), so a wrong one stays wrong.
func ClampMSS(b []byte, mtu int) bool {
	at, ok := tcpOf(b)
	if !ok || b[at+13]&2 == 0 {
		return false
	}
	most := mtu - head4 - headTCP
	if b[0]>>4 == 6 {
		most = mtu - head6 - headTCP
	}
	end := at + int(b[at+12]>>4)*4
	if end > len(b) || most < 1 || most > 0xffff {
		return false
	}
	for i := at + headTCP; i < end; {
		switch {
		case b[i] == 0: // end of options
			return false
		case b[i] == 1: // no operation
			i++
			continue
		case i+1 >= end || b[i+1] < 2 || i+int(b[i+1]) > end:
			return false
		case b[i] == 2 && b[i+1] == 4:
			old := binary.BigEndian.Uint16(b[i+2:])
			if int(old) <= most {
				return false
			}
			binary.BigEndian.PutUint16(b[i+2:], uint16(most))
			m, m1 := old, uint16(most)
			if (i+2-at)%2 != 0 { // the words of the checksum lie across its bytes
				m, m1 = bits.ReverseBytes16(m), bits.ReverseBytes16(m1)
			}
			update(b[at+16:], m, m1)
			return true
		}
		i += int(b[i+1])
	}
	return false
}

// update changes a checksum for a word that was m and is m1 (RFC 1624 equation 3).
func update(sum []byte, m, m1 uint16) {
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^m) + uint32(m1)
	s = s>>16 + s&0xffff
	binary.BigEndian.PutUint16(sum, ^uint16(s>>16+s))
}

// sum adds up b as RFC 1071 says, without the complement. The memory's own order of bytes is used (section 2.B).
func sum(b []byte, initial uint64) uint64 {
	s := initial
	var c uint64
	for len(b) >= 32 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s += c
		b = b[32:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	var rest uint64
	for i, x := range b {
		rest |= uint64(x) << (8 * i)
	}
	s, c = bits.Add64(s, rest, 0)
	return s + c
}

// putSum writes the complement of a sum.
func putSum(b []byte, s uint64) {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	binary.LittleEndian.PutUint16(b, ^uint16(s))
}

// pseudo is the sum of the pseudo-header of an upper protocol of n bytes (RFC 9293 section 3.1, RFC 8200 section 8.1).
func pseudo(b []byte, proto byte, n int) uint64 {
	var w [4]byte
	binary.BigEndian.PutUint16(w[:], uint16(n))
	w[3] = proto
	if b[0]>>4 == 4 {
		return sum(b[12:20], uint64(binary.LittleEndian.Uint32(w[:])))
	}
	return sum(b[8:40], uint64(binary.LittleEndian.Uint32(w[:])))
}

// putHeadSum4 writes the checksum of an IPv4 header.
func putHeadSum4(b []byte) {
	b[10], b[11] = 0, 0
	putSum(b[10:], sum(b[:headLen(b)], 0))
}
