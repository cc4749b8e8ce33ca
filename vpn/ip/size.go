// SPDX-License-Identifier: MIT

package ip

import "encoding/binary"

// MayFragment reports whether a router may cut the packet: it is of IPv4 and "don't fragment" is not set.
func MayFragment(b []byte) bool { return len(b) >= head4 && b[0]>>4 == 4 && b[6]&0x40 == 0 }

// MaxTooBig is the most bytes that TooBig writes.
const MaxTooBig = MinMTU6

// TooBig writes the answer of a router that cannot pass pkt on because it is larger than mtu: fragmentation needed (RFC
// 1191 section 4) or packet too big (RFC 4443 section 3.2), and returns its length. It is 0 for what must not be answered:
// errors of ICMP, later fragments, multicast (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
//
// The answer's source is the packet's destination, not this node: it goes to this machine's own kernel, and Linux takes no
// packet from outside that has one of its own addresses as the source.
func TooBig(answer, pkt []byte, mtu int) int {
	src, dst, ok := Addrs(pkt)
	if !ok || len(answer) < MaxTooBig || !src.IsValid() || src.IsUnspecified() || src.IsMulticast() || dst.IsMulticast() {
		return 0
	}
	proto, at, ok := Transport(pkt)
	if !ok {
		return 0
	}
	if pkt[0]>>4 == 4 {
		if proto == icmp4 && (len(pkt) <= at || pkt[at] != 0 && pkt[at] != 8) {
			return 0
		}
		n := head4 + 8 + copy(answer[head4+8:576], pkt) // RFC 1812 section 4.3.2.3
		clear(answer[:head4+8])
		answer[0], answer[8], answer[9] = 0x45, 64, icmp4
		binary.BigEndian.PutUint16(answer[2:], uint16(n))
		copy(answer[12:], pkt[16:20])
		copy(answer[16:], pkt[12:16])
		putHeadSum4(answer)
		m := answer[head4:n]
		m[0], m[1] = 3, 4
		binary.BigEndian.PutUint16(m[6:], uint16(min(mtu, 0xffff)))
		putSum(m[2:], sum(m, 0))
		return n
	}
	if proto == icmp6 && (len(pkt) <= at || pkt[at] < 128) {
		return 0
	}
	n := head6 + 8 + copy(answer[head6+8:MinMTU6], pkt)
	clear(answer[:head6+8])
	answer[0], answer[6], answer[7] = 6<<4, icmp6, 64
	binary.BigEndian.PutUint16(answer[4:], uint16(n-head6))
	copy(answer[8:], pkt[24:40])
	copy(answer[24:], pkt[8:24])
	m := answer[head6:n]
	m[0] = 2
	binary.BigEndian.PutUint32(m[4:], uint32(max(mtu, MinMTU6)))
	putSum(m[2:], sum(m, pseudo(answer, icmp6, len(m))))
	return n
}

// Fragment cuts an IPv4 packet into fragments of at most mtu bytes (RFC 791 section 3.2) and hands each to emit, in
// scratch, which has room for mtu bytes. It reports false, and does nothing, where that cannot be: the packet may not be
// cut, its lengths are wrong, or mtu is below what RFC 791 demands of every link, 68.
func Fragment(scratch, pkt []byte, mtu int, emit func(fragment []byte)) bool {
	if !MayFragment(pkt) || mtu < 68 || len(scratch) < mtu || int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) {
		return false
	}
	head := headLen(pkt)
	if head < head4 || head > len(pkt) {
		return false
	}
	word := binary.BigEndian.Uint16(pkt[6:])
	offset, more := int(word&0x1fff), word&0x2000 != 0
	if offset+(len(pkt)-head)/8 > 0x1fff {
		return false
	}
	hlen := copy(scratch, pkt[:head])
	for rest := pkt[head:]; ; {
		n, last := (mtu-hlen)&^7, false
		if len(rest) <= mtu-hlen {
			n, last = len(rest), true
		}
		f := scratch[:hlen+n]
		copy(f[hlen:], rest[:n])
		w := uint16(offset)
		if !last || more {
			w |= 0x2000
		}
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[6:], w)
		putHeadSum4(f)
		emit(f)
		if last {
			return true
		}
		rest, offset = rest[n:], offset+n/8
		if hlen == head { // only the first fragment has all options
			hlen = copiedOptions(scratch, pkt[:head])
		}
	}
}

// copiedOptions writes a header with those options only that go into every fragment, and returns its length.
func copiedOptions(dst, head []byte) int {
	n := head4
	for i := head4; i < len(head) && head[i] != 0; {
		size := 1
		if head[i] != 1 {
			if i+1 >= len(head) || head[i+1] < 2 || i+int(head[i+1]) > len(head) {
				break
			}
			size = int(head[i+1])
		}
		if head[i]&0x80 != 0 {
			n += copy(dst[n:], head[i:i+size])
		}
		i += size
	}
	for ; n%4 != 0; n++ {
		dst[n] = 0
	}
	dst[0] = 4<<4 | byte(n/4)
	return n
}
