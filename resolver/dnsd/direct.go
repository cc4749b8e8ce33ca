// SPDX-License-Identifier: MIT

package dnsd

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// direct answers the queries that nearly all are, for the addresses of a name in the mesh's zone, without taking them apart into
// messages of package dns. What it says Answer says too, of every query (TestDirect, FuzzAnswer); it returns nil for one that it
// leaves to Answer. The answer is made in out's memory where it has room.
func (s *Server) direct(v *resolver.View, query, out []byte) []byte {
	end := questionEnd(query)
	if end < 0 || query[2]&0xfe != 0 || query[3]&^0x30 != 0 || binary.BigEndian.Uint32(query[6:]) != 0 {
		return nil // not a query, or with more than a question
	}
	qtype := binary.BigEndian.Uint16(query[end-4:])
	if qtype != dns.TypeA && qtype != dns.TypeAAAA || binary.BigEndian.Uint16(query[end-2:]) != dns.ClassINET {
		return nil
	}
	size, edns, do := dns.MinMsgSize, false, byte(0)
	switch rest := query[end:]; binary.BigEndian.Uint16(query[10:]) {
	case 0:
		if len(rest) > 0 {
			return nil
		}
	case 1: // RFC 6891 section 6.1.2: a name, the type, the size, an extended code, the version, flags, a length; with options it is left to Answer
		if len(rest) != 11 || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT || rest[5] != 0 || rest[6] != 0 || rest[9] != 0 || rest[10] != 0 {
			return nil
		}
		size, edns, do = min(max(int(binary.BigEndian.Uint16(rest[3:])), dns.MinMsgSize), udpSize), true, rest[7]&0x80
	default:
		return nil
	}
	var buf [255]byte
	name := buf[:0]
	for i := headerSize; query[i] != 0; {
		n := int(query[i])
		for _, c := range query[i+1 : i+1+n] {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			if c != '-' && !digit(c) && (c < 'a' || c > 'z') {
				return nil // of services, wildcards, or no host's at all
			}
			name = append(name, c)
		}
		name = append(name, '.')
		if i += n + 1; query[i] == 0 {
			name = name[:len(name)-1]
		}
	}
	full := string(name)
	rel, ok := strings.CutSuffix(full, "."+v.Zone)
	if !ok || rel == "" {
		return nil
	}
	switch rel[strings.LastIndexByte(rel, '.')+1:] {
	case "dns", "node", "service":
		return nil
	}
	h, known := v.Lookup(full)
	switch {
	case h == nil && !known && len(v.Wildcards()) > 0, h != nil && (h.Service || h.Name != rel):
		return nil
	}
	b := append(out[:0], query[:end]...)
	b[2] = 0x80 | 0x04 | query[2]&1 // QR, AA, RD
	b[3] = query[3] & 0x10          // CD
	if s.forward != nil {
		b[3] |= 0x80 // RA
	}
	clear(b[6:headerSize])
	answers := 0
	if h != nil {
		for _, a := range h.Addrs {
			if a.Is4() != (qtype == dns.TypeA) {
				continue
			}
			answers++
			b = append(b, 0xc0, headerSize, byte(qtype>>8), byte(qtype), 0, dns.ClassINET) // the name is that of the question
			b = binary.BigEndian.AppendUint32(b, s.ttl())
			b = append(b, 0, byte(a.BitLen()/8))
			b = append(b, a.AsSlice()...)
		}
	}
	binary.BigEndian.PutUint16(b[6:], uint16(answers))
	if answers == 0 { // RFC 2308 section 2
		if !known {
			b[3] |= dns.RcodeNameError
		}
		b[9] = 1
		zone := uint16(0xc000 | headerSize + len(rel) + 1) // where its name is in the question
		b = binary.BigEndian.AppendUint16(b, zone)
		b = append(b, 0, byte(dns.TypeSOA), 0, dns.ClassINET)
		negative := min(s.ttl(), negativeTTL)
		b = binary.BigEndian.AppendUint32(b, negative)
		b = append(b, 0, 6+13+20, 3, 'd', 'n', 's')
		b = binary.BigEndian.AppendUint16(b, zone)
		b = append(append(b, 10), "hostmaster"...)
		b = binary.BigEndian.AppendUint16(b, zone)
		for _, n := range [...]uint32{uint32(v.Revision), soaRefresh, soaRetry, soaExpire, negative} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
	}
	if edns {
		b[11] = 1
		b = append(b, 0, 0, byte(dns.TypeOPT), udpSize>>8, udpSize&0xff, 0, 0, do, 0, 0, 0)
	}
	if len(b) > size {
		return nil
	}
	return b
}
