// SPDX-License-Identifier: MIT

package ip

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// ipv4 and ipv6 make packets with valid headers and checksums.
func ipv4(proto byte, dont bool, options, payload []byte) []byte {
	b := make([]byte, head4+len(options), head4+len(options)+len(payload))
	b[0], b[8], b[9] = 4<<4|byte(len(b)/4), 64, proto
	if dont {
		b[6] = 0x40
	}
	binary.BigEndian.PutUint16(b[4:], 7)
	copy(b[12:], []byte{10, 11, 0, 1, 10, 11, 0, 2})
	copy(b[head4:], options)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	putHeadSum4(b)
	return b
}

func ipv6(proto byte, payload []byte) []byte {
	b := make([]byte, head6, head6+len(payload))
	b[0], b[6], b[7] = 6<<4, proto, 64
	b[8], b[23], b[24], b[39] = 0xfd, 1, 0xfd, 2
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	return append(b, payload...)
}

// segment makes a TCP segment; options are padded.
func segment(flags byte, options, payload []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, headTCP, 60)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], 22)
	binary.BigEndian.PutUint32(b[4:], 0xfffffff0) // wraps
	b[12], b[13] = byte(headTCP+len(options))<<2, flags
	return append(append(b, options...), payload...)
}

// withSum completes the checksum of TCP or UDP.
func withSum(b []byte) []byte {
	proto, at, _ := Transport(b)
	place := at + 16
	if proto == udp {
		place = at + 6
	}
	b[place], b[place+1] = 0, 0
	putSum(b[place:], sum(b[at:], pseudo(b, proto, len(b)-at)))
	return b
}

// slowSum is RFC 1071 word by word: valid data adds up to 0xffff.
func slowSum(parts ...[]byte) uint32 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			s += w
			s = s>>16 + s&0xffff
		}
	}
	return s
}

// valid checks the checksums of a packet.
func valid(b []byte) bool {
	if b[0]>>4 == 4 && slowSum(b[:headLen(b)]) != 0xffff {
		return false
	}
	proto, at, ok := Transport(b)
	if !ok {
		return b[0]>>4 == 4
	}
	n := len(b) - at
	head := []byte{0, 0, byte(n >> 8), byte(n), 0, 0, 0, proto}
	var addrs []byte
	switch {
	case proto == icmp4:
		return slowSum(b[at:]) == 0xffff
	case b[0]>>4 == 4:
		addrs = b[12:20]
	default:
		addrs = b[8:40]
	}
	return slowSum(addrs, head, b[at:]) == 0xffff
}

func TestClampMSS(t *testing.T) {
	mss := func(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }
	const syn, synAck, ack = 2, 18, 16
	// Hop-by-hop, routing and destination options, and a first fragment.
	ext := append([]byte{routing6, 0, 1, 4, 0, 0, 0, 0, options6, 0, 0, 0, 0, 0, 0, 0, frag6, 0, 1, 4, 0, 0, 0, 0}, tcp, 0, 0, 1, 0, 0, 0, 9)
	later := append([]byte{tcp, 0, 0, 8, 0, 0, 0, 9}, segment(syn, mss(1460), nil)...)
	for _, c := range []struct {
		name string
		pkt  []byte
		mtu  int
		want uint16 // 0: untouched
	}{
		{"IPv4 SYN", ipv4(tcp, true, nil, segment(syn, mss(1460), nil)), 1380, 1340},
		{"IPv4 SYN-ACK", ipv4(tcp, true, nil, segment(synAck, mss(1460), nil)), 1380, 1340},
		{"IPv4 with options", ipv4(tcp, true, []byte{1, 1, 1, 0}, segment(syn, mss(1460), nil)), 1380, 1340},
		{"after other options", ipv4(tcp, true, nil, segment(syn, append([]byte{1, 1, 4, 2}, mss(1460)...), nil)), 1380, 1340},
		{"at an odd place", ipv4(tcp, true, nil, segment(syn, append([]byte{1}, mss(1460)...), nil)), 1380, 1340},
		{"IPv6", ipv6(tcp, segment(syn, mss(1440), nil)), 1380, 1320},
		{"small enough", ipv4(tcp, true, nil, segment(syn, mss(1340), nil)), 1380, 0},
		{"not a SYN", ipv4(tcp, true, nil, segment(ack, mss(1460), nil)), 1380, 0},
		{"no MSS", ipv4(tcp, true, nil, segment(syn, []byte{1, 1, 4, 2}, nil)), 1380, 0},
		{"after the end of options", ipv4(tcp, true, nil, segment(syn, append([]byte{0}, mss(1460)...), nil)), 1380, 0},
		{"an option of no length", ipv4(tcp, true, nil, segment(syn, append([]byte{8, 0}, mss(1460)...), nil)), 1380, 0},
		{"an option too long", ipv4(tcp, true, nil, segment(syn, []byte{1, 1, 2, 40}, nil)), 1380, 0},
		{"UDP", ipv4(udp, true, nil, segment(syn, mss(1460), nil)), 1380, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := withSum(c.pkt)
			before := bytes.Clone(b)
			if got := ClampMSS(b, c.mtu); got != (c.want != 0) {
				t.Fatalf("clamped: %v", got)
			}
			if !valid(b) {
				t.Error("the checksum is wrong")
			}
			if c.want == 0 {
				if !bytes.Equal(b, before) {
					t.Error("it was changed")
				}
				return
			}
			at := bytes.Index(b, []byte{2, 4, byte(c.want >> 8), byte(c.want)})
			if at < 0 {
				t.Fatalf("no MSS of %d in %x", c.want, b)
			}
			copy(before[at:], b[at:at+4])
			_, tcpAt, _ := Transport(b)
			copy(before[tcpAt+16:], b[tcpAt+16:tcpAt+18])
			if !bytes.Equal(before, b) {
				t.Error("something else was changed")
			}
			if ClampMSS(b, c.mtu) {
				t.Error("clamped twice")
			}
		})
	}
	seg := segment(syn, mss(1440), nil)
	b := ipv6(0, append(ext, seg...))
	proto, at, ok := Transport(b)
	if !ok || proto != tcp || at != head6+len(ext) || !ClampMSS(b, 1380) {
		t.Errorf("behind extension headers: %d at %d, %v", proto, at, ok)
	}
	if _, _, ok := Transport(ipv6(frag6, later)); ok {
		t.Error("a later fragment has a transport header")
	}
	// A wrong checksum must not be made right.
	b = withSum(ipv4(tcp, true, nil, segment(syn, mss(1460), nil)))
	b[head4+16] ^= 1
	if ClampMSS(b, 1380); valid(b) {
		t.Error("a wrong checksum was made right")
	}
}

func TestTooBig(t *testing.T) {
	answer := make([]byte, MaxTooBig)
	big4, big6 := ipv4(udp, true, nil, make([]byte, 1300)), ipv6(udp, make([]byte, 1400))
	n := TooBig(answer, big4, 1200)
	a := answer[:n]
	if !valid(a) || n > 576 || a[9] != icmp4 || a[20] != 3 || a[21] != 4 || binary.BigEndian.Uint16(a[26:]) != 1200 || !bytes.HasPrefix(big4, a[28:]) {
		t.Errorf("the answer to IPv4 is %x", a)
	}
	if src, dst, _ := Addrs(a); src != netip.MustParseAddr("10.11.0.2") || dst != netip.MustParseAddr("10.11.0.1") {
		t.Errorf("the answer goes from %v to %v", src, dst)
	}
	for mtu, want := range map[int]uint32{1300: 1300, 1000: 1280} {
		n = TooBig(answer, big6, mtu)
		a = answer[:n]
		if !valid(a) || n > 1280 || a[6] != icmp6 || a[40] != 2 || binary.BigEndian.Uint32(a[44:]) != want || !bytes.HasPrefix(big6, a[48:]) {
			t.Errorf("the answer to IPv6 is %x", a)
		}
	}
	multicast, fragment := bytes.Clone(big4), bytes.Clone(big4)
	multicast[16], fragment[7] = 224, 9
	for name, b := range map[string][]byte{"an ICMP error": ipv4(icmp4, true, nil, []byte{3, 4, 0, 0, 0, 0, 0, 0}), "an ICMPv6 error": ipv6(icmp6, []byte{2, 0, 0, 0}),
		"multicast": multicast, "a later fragment": fragment, "nothing": nil} {
		if n := TooBig(answer, b, 1200); n != 0 {
			t.Errorf("%s is answered", name)
		}
	}
	if TooBig(answer, ipv4(icmp4, true, nil, append([]byte{8, 0, 0, 0}, make([]byte, 1300)...)), 1200) == 0 {
		t.Error("ping is not answered")
	}
}

// reassemble puts fragments together, in order.
func reassemble(t *testing.T, whole []byte, mtu int, fragments [][]byte) (payload []byte) {
	first := int(binary.BigEndian.Uint16(whole[6:]) & 0x1fff)
	for i, f := range fragments {
		w := binary.BigEndian.Uint16(f[6:])
		more := i < len(fragments)-1 || whole[6]&0x20 != 0
		if slowSum(f[:headLen(f)]) != 0xffff || len(f) > mtu || int(binary.BigEndian.Uint16(f[2:])) != len(f) ||
			int(w&0x1fff) != first+len(payload)/8 || len(payload)%8 != 0 || w&0x2000 != 0 != more {
			t.Fatalf("fragment %d of %d is %x", i, len(fragments), f)
		}
		payload = append(payload, f[headLen(f):]...)
	}
	return payload
}

func TestFragment(t *testing.T) {
	scratch := make([]byte, 1500)
	data := make([]byte, 3000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	options := []byte{0x83, 3, 4, 7, 3, 4, 1, 0} // loose source route, which is copied; record route, which is not
	for _, mtu := range []int{68, 576, 1281} {
		var fragments [][]byte
		b := ipv4(udp, false, options, data)
		if !Fragment(scratch, b, mtu, func(f []byte) { fragments = append(fragments, bytes.Clone(f)) }) {
			t.Fatal("not cut")
		}
		if got := reassemble(t, b, mtu, fragments); !bytes.Equal(got, data) {
			t.Error("the payload differs")
		}
		if !bytes.Equal(fragments[0][20:28], options) || headLen(fragments[1]) != 24 || !bytes.Equal(fragments[1][20:24], []byte{0x83, 3, 4, 0}) {
			t.Errorf("options are %x and %x", fragments[0][20:28], fragments[1][20:24])
		}
	}
	for name, b := range map[string][]byte{"don't fragment": ipv4(udp, true, nil, data), "IPv6": ipv6(udp, data), "a wrong length": ipv4(udp, false, nil, data)[:2000]} {
		if Fragment(scratch, b, 576, func([]byte) { t.Errorf("%s: cut", name) }) {
			t.Errorf("%s: true", name)
		}
	}
}

// vnet puts a header of the TUN device before a packet whose checksum has the pseudo-header only, as the kernel does.
func vnet(kind byte, size int, pkt []byte) []byte {
	proto, at, _ := Transport(pkt)
	place := 16
	if proto == udp {
		place = 6
	}
	h := make([]byte, VNetHead, VNetHead+len(pkt))
	h[0], h[1] = needsSum, kind
	binary.NativeEndian.PutUint16(h[2:], uint16(len(pkt))) // not to be believed
	binary.NativeEndian.PutUint16(h[4:], uint16(size))
	binary.NativeEndian.PutUint16(h[6:], uint16(at))
	binary.NativeEndian.PutUint16(h[8:], uint16(place))
	putSum(pkt[at+place:], pseudo(pkt, proto, len(pkt)-at))
	pkt[at+place], pkt[at+place+1] = ^pkt[at+place], ^pkt[at+place+1]
	return append(h, pkt...)
}

func TestCut(t *testing.T) {
	data := make([]byte, 10000)
	for i := range data {
		data[i] = byte(i * 31)
	}
	udpHead := []byte{1, 2, 3, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		name string
		kind byte
		size int
		pkt  []byte
	}{
		{"TCP4", gsoTCP4, 1340, ipv4(tcp, true, nil, segment(16|8|1, []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, data))},
		{"TCP6", gsoTCP6, 1320, ipv6(tcp, segment(16|8, nil, data))},
		{"UDP4", gsoUDP, 1000, ipv4(udp, false, nil, append(bytes.Clone(udpHead), data...))},
		{"UDP6", gsoUDP, 999, ipv6(udp, append(bytes.Clone(udpHead), data...))},
		{"whole", gsoNone, 0, ipv4(tcp, true, nil, segment(16, nil, data[:1000]))},
		{"whole UDP", gsoNone, 0, ipv6(udp, append(bytes.Clone(udpHead), data[:999]...))},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := bytes.Clone(c.pkt)
			pkt, g, err := ParseVNet(vnet(c.kind, c.size, c.pkt))
			if err != nil {
				t.Fatal(err)
			}
			_, at, _ := Transport(want)
			head, count := at+headUDP, g.Count(pkt)
			if want[at-1] == tcp || c.kind == gsoTCP4 || c.kind == gsoTCP6 || c.name == "whole" {
				head = at + int(want[at+12]>>4)*4
			}
			if n := max(1, (len(want)-head+max(c.size, 1)-1)/max(c.size, 1)); c.size > 0 && count != n || c.size == 0 && count != 1 {
				t.Errorf("%d packets", count)
			}
			var payload []byte
			for i := range count {
				dst := make([]byte, g.Len(pkt))
				s := dst[:g.Cut(dst, pkt, i)]
				if !valid(s) {
					t.Errorf("packet %d has a wrong checksum", i)
				}
				if s[0]>>4 == 4 && (int(binary.BigEndian.Uint16(s[2:])) != len(s) || int(binary.BigEndian.Uint16(s[4:])) != 7+i) ||
					s[0]>>4 == 6 && int(binary.BigEndian.Uint16(s[4:])) != len(s)-head6 {
					t.Errorf("packet %d has the header %x", i, s[:at])
				}
				if g.proto == tcp {
					seq := uint32(0xfffffff0)
					if got := binary.BigEndian.Uint32(s[at+4:]); got != seq+uint32(len(payload)) {
						t.Errorf("packet %d has the sequence number %d", i, got)
					}
					if f := s[at+13]; i == count-1 && f != want[at+13] || i < count-1 && f != want[at+13]&^9 {
						t.Errorf("packet %d has the flags %x", i, f)
					}
				}
				payload = append(payload, s[head:]...)
			}
			if !bytes.Equal(payload, want[head:]) {
				t.Error("the payload differs")
			}
		})
	}
}

func TestNoAllocation(t *testing.T) {
	data := make([]byte, 50000)
	b := vnet(gsoTCP4, 1340, ipv4(tcp, true, nil, segment(16, nil, data)))
	dst := make([]byte, 1500)
	if n := testing.AllocsPerRun(100, func() {
		pkt, g, err := ParseVNet(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range g.Count(pkt) {
			n := g.Cut(dst, pkt, i)
			IsSYN(dst[:n])
			ClampMSS(dst[:n], 1380)
			FlowOf(dst[:n])
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzPacket gives every function any bytes.
func FuzzPacket(f *testing.F) {
	f.Add(withSum(ipv4(tcp, true, nil, segment(2, []byte{1, 2, 4, 5, 180}, nil))), 1380)
	f.Add(withSum(ipv6(tcp, segment(18, []byte{2, 4, 5, 180}, nil))), 1280)
	f.Add(ipv4(udp, false, []byte{0x83, 3, 4, 7, 3, 4, 1, 0}, make([]byte, 300)), 100)
	f.Add(ipv6(0, []byte{60, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0}), 1380)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		proto, at, ok := Transport(b)
		right := ok && proto == tcp && len(b) >= at+headTCP && valid(b)
		answer := make([]byte, MaxTooBig)
		if n := TooBig(answer, b, mtu); n > 0 && !valid(answer[:n]) {
			t.Fatalf("the answer has a wrong checksum: %x", answer[:n])
		}
		if 0 < mtu && mtu < 1<<16 {
			var fragments [][]byte
			whole := bytes.Clone(b)
			if Fragment(make([]byte, mtu), b, mtu, func(f []byte) { fragments = append(fragments, bytes.Clone(f)) }) {
				if got := reassemble(t, b, mtu, fragments); !bytes.Equal(got, b[headLen(b):]) {
					t.Fatal("the payload differs")
				}
			}
			if !bytes.Equal(b, whole) {
				t.Fatal("the packet was changed")
			}
		}
		FlowOf(b)
		if ClampMSS(b, mtu); right && !valid(b) {
			t.Fatalf("the checksum became wrong: %x", b)
		}
	})
}

// FuzzVNet gives the super-packets' functions any bytes.
func FuzzVNet(f *testing.F) {
	f.Add(vnet(gsoTCP4, 100, ipv4(tcp, true, nil, segment(16, nil, make([]byte, 1000)))), 600)
	f.Add(vnet(gsoUDP, 100, ipv6(udp, make([]byte, 1000))), 600)
	f.Add(vnet(gsoNone, 0, ipv6(tcp, segment(16, nil, nil))), 600)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		if len(b) > VNetHead+1<<16 {
			return
		}
		pkt, g, err := ParseVNet(b)
		if err != nil {
			return
		}
		if g.Size > 0 && g.Len(pkt) > mtu && g.Shrink(mtu) && g.Len(pkt) > mtu {
			t.Fatal("shrunk, and too large still")
		}
		dst, total := make([]byte, g.Len(pkt)), 0
		for i := range g.Count(pkt) {
			total += g.Cut(dst, pkt, i) - g.head
		}
		if total != len(pkt)-g.head {
			t.Fatalf("%d bytes of %d", total, len(pkt)-g.head)
		}
	})
}

func BenchmarkCut(b *testing.B) {
	raw := vnet(gsoTCP4, 1340, ipv4(tcp, true, nil, segment(16, nil, make([]byte, 60000))))
	dst := make([]byte, 1500)
	b.SetBytes(60000)
	for b.Loop() {
		pkt, g, _ := ParseVNet(raw)
		for i := range g.Count(pkt) {
			g.Cut(dst, pkt, i)
		}
	}
}
