// SPDX-License-Identifier: MIT

package ip

import (
	"encoding/binary"
	"errors"
)

// VNetHead is the length of the header before each packet of a TUN device with IFF_VNET_HDR: struct virtio_net_hdr of
// linux/virtio_net.h, in the machine's order of bytes.
const VNetHead = 10

// Flags and kinds of that header.
const (
	needsSum = 1
	gsoNone  = 0
	gsoTCP4  = 1
	gsoTCP6  = 4
	gsoUDP   = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
)

// GSO says how a super-packet is to be cut into packets. The zero value is that of a packet that is whole.
type GSO struct {
	Size  int // bytes of payload in each packet but the last; 0: whole
	head  int // bytes of all headers
	at    int // where the transport header begins
	proto byte
}

var errVNet = errors.New("the TUN device gave a packet whose header is not possible")

// ParseVNet takes what was read from a TUN device with IFF_VNET_HDR apart. The packet's checksum is completed where the
// kernel left that to a network card, and is left to Cut where there is something to cut.
func ParseVNet(b []byte) (pkt []byte, g GSO, err error) {
	if len(b) < VNetHead+head4 {
		return nil, g, errVNet
	}
	flags, kind := b[0], b[1]
	size, at, offset := int(binary.NativeEndian.Uint16(b[4:])), int(binary.NativeEndian.Uint16(b[6:])), int(binary.NativeEndian.Uint16(b[8:]))
	pkt = b[VNetHead:]
	six := pkt[0]>>4 == 6
	if !six && pkt[0]>>4 != 4 || six && len(pkt) < head6 {
		return nil, g, errVNet
	}
	if kind == gsoNone {
		if flags&needsSum != 0 {
			if at+offset+2 > len(pkt) {
				return nil, g, errVNet
			}
			putSum(pkt[at+offset:], sum(pkt[at:], 0)) // what is in its place is the pseudo-header's
			if offset == 6 {
				noZero(pkt[at+offset:])
			}
		}
		return pkt, g, nil
	}
	g = GSO{Size: size, at: at}
	switch kind {
	case gsoTCP4, gsoTCP6:
		if g.proto = tcp; (kind == gsoTCP6) != six || len(pkt) < at+headTCP {
			return nil, g, errVNet
		}
		// hdr_len may be the length of the whole first packet: only the TCP header's own is to be believed.
		words := int(pkt[at+12] >> 4)
		if g.head = at + 4*words; words < 5 {
			return nil, g, errVNet
		}
	case gsoUDP:
		g.proto, g.head = udp, at+headUDP
	default:
		return nil, g, errVNet
	}
	if proto, t, ok := Transport(pkt); size < 1 || !ok || proto != g.proto || t != at || g.head > len(pkt) {
		return nil, g, errVNet
	}
	return pkt, g, nil
}

// Len returns how long the longest packet is that Cut will make of pkt.
func (g GSO) Len(pkt []byte) int {
	if g.Size == 0 {
		return len(pkt)
	}
	return min(len(pkt), g.head+g.Size)
}

// Count returns how many packets Cut will make of pkt, 1 or more.
func (g GSO) Count(pkt []byte) int {
	if g.Size == 0 {
		return 1
	}
	return max(1, (len(pkt)-g.head+g.Size-1)/g.Size)
}

// Shrink makes the packets of a TCP super-packet no longer than mtu, and reports whether that can be.
func (g *GSO) Shrink(mtu int) bool {
	if g.proto != tcp || mtu <= g.head {
		return false
	}
	g.Size = min(g.Size, mtu-g.head)
	return true
}

// Cut writes the i-th packet of pkt, from 0 to Count-1, and returns its length; dst has room for Len.
func (g GSO) Cut(dst, pkt []byte, i int) int {
	if g.Size == 0 {
		return copy(dst, pkt)
	}
	from := min(g.head+i*g.Size, len(pkt))
	to := min(from+g.Size, len(pkt))
	n := g.head + to - from
	dst = dst[:n]
	copy(dst, pkt[:g.head])
	copy(dst[g.head:], pkt[from:to])
	if pkt[0]>>4 == 4 {
		binary.BigEndian.PutUint16(dst[2:], uint16(n))
		binary.BigEndian.PutUint16(dst[4:], binary.BigEndian.Uint16(pkt[4:])+uint16(i)) // identification
		putHeadSum4(dst)
	} else {
		binary.BigEndian.PutUint16(dst[4:], uint16(n-head6))
	}
	t, place := dst[g.at:], 16
	if g.proto == tcp {
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(pkt[g.at+4:])+uint32(i*g.Size))
		if to != len(pkt) {
			t[13] &^= 1 | 8 // FIN and PSH are the last one's
		}
	} else {
		place = 6
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	}
	t[place], t[place+1] = 0, 0
	putSum(t[place:], sum(t, pseudo(dst, g.proto, len(t))))
	if g.proto == udp {
		noZero(t[6:])
	}
	return n
}

// noZero makes UDP's checksum of 0, which would mean that there is none, the other 0 (RFC 768).
func noZero(b []byte) {
	if b[0] == 0 && b[1] == 0 {
		b[0], b[1] = 0xff, 0xff
	}
}
