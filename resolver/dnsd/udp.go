// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

const headerSize = 12 // RFC 1035 section 4.1.1

// serveUDP answers what comes to one socket until it is closed. Nothing in it waits; what must wait gets a goroutine of wg.
func (s *Server) serveUDP(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup) error {
	buf := make([]byte, 4096)
	known := &packed{}
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil || n < headerSize || buf[2]&0x80 != 0 { // an answer is never answered
			continue // an error is about something sent before
		}
		addr := from.Addr().Unmap().WithZone("")
		v := s.cfg.View()
		query := buf[:n]
		switch s.limit.allow(addr, v.InPrefixes(addr), time.Now()) {
		case drop:
			continue
		case slip:
			if b := truncated(query); b != nil {
				pc.WriteToUDPAddrPort(b, from)
			}
			continue
		}
		b := known.find(v, query, s.permitted(v, addr))
		if b == nil {
			b = s.answerUDP(ctx, pc, wg, known, v, query, from, addr)
		}
		if b != nil {
			if _, err := pc.WriteToUDPAddrPort(b, from); err != nil && !errors.Is(err, net.ErrClosed) {
				s.cfg.Log.Debug("a DNS answer was not sent", "endpoint", from.String(), "err", err)
			}
		}
	}
}

// answerUDP is the answer to a query, nil if there is none or it comes later.
func (s *Server) answerUDP(ctx context.Context, pc *net.UDPConn, wg *sync.WaitGroup, known *packed, v *resolver.View, query []byte, from netip.AddrPort, addr netip.Addr) []byte {
	defer s.recovered(from.String())
	q := new(dns.Msg)
	if q.Unpack(query) != nil {
		return malformed(query)
	}
	if s.elsewhere(v, q, addr) {
		select {
		case s.slots <- struct{}{}:
		default:
			return nil // the client asks again
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			defer s.recovered(from.String())
			m := s.forward.resolve(ctx, q)
			minimal(m, sizeOf(q))
			if b, err := m.Pack(); err == nil {
				pc.WriteToUDPAddrPort(b, from)
			}
		})
		return nil
	}
	var m *dns.Msg
	fixed := false
	if s.transfers != nil && len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeIXFR && s.secondary(addr) {
		m = s.transfers.serial(q)
	}
	if m == nil {
		m, fixed = s.Answer(v, q, addr)
	}
	m.RecursionAvailable = s.forward != nil
	minimal(m, sizeOf(q))
	b, err := m.Pack()
	if err != nil {
		return malformed(query)
	}
	if fixed {
		known.keep(v, query, b)
	}
	return b
}

// sizeOf is how many bytes an answer by UDP may have.
func sizeOf(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil {
		return min(max(int(o.UDPSize()), dns.MinMsgSize), udpSize)
	}
	return dns.MinMsgSize
}

// malformed is the answer to what cannot be read (RFC 1035 section 4.1.1).
func malformed(query []byte) []byte {
	b := make([]byte, headerSize)
	copy(b, query[:2])
	b[2] = 0x80 | query[2]&0x79 // QR, the opcode, RD
	b[3] = dns.RcodeFormatError
	return b
}

// truncated is an answer that sends a client to TCP: the question, and nothing else. It is nil for what has none.
func truncated(query []byte) []byte {
	end := questionEnd(query)
	if end < 0 {
		return nil
	}
	b := append([]byte(nil), query[:end]...)
	b[2] = 0x80 | 0x02 | query[2]&0x79
	b[3] = 0
	clear(b[6:12])
	return b
}

// questionEnd is where the one question of a query ends, -1 if it has not exactly one, or something else than letters of a name.
func questionEnd(query []byte) int {
	if len(query) < headerSize || binary.BigEndian.Uint16(query[4:]) != 1 {
		return -1
	}
	i := headerSize
	for i < len(query) && query[i] != 0 {
		if query[i] > 63 {
			return -1
		}
		i += int(query[i]) + 1
	}
	if i += 5; i > len(query) || i-headerSize > 255+4 {
		return -1
	}
	return i
}

// packed remembers answers as they were sent, for one goroutine and one View: the next one that asks the same gets a copy. What
// differs between queries with the same answer is patched: the ID, RD and CD, and the name in the case in which it was asked
// for, which all other names in the answer are made of.
type packed struct {
	view    *resolver.View
	answers map[string][]byte
	size    int // bytes, about
	key     []byte
	out     []byte
}

// maxPacked bounds the bytes of what is remembered. There are sockets() of them for each address.
const maxPacked = 2 << 20

// find returns the answer to a query if it is remembered. It is good until the next call.
func (p *packed) find(v *resolver.View, query []byte, permitted bool) []byte {
	if v != p.view {
		p.view, p.answers, p.size = v, map[string][]byte{}, 0
	}
	if !permitted || !p.makeKey(query) {
		return nil
	}
	known, ok := p.answers[string(p.key)]
	if !ok {
		return nil
	}
	b := append(p.out[:0], known...)
	p.out = b
	copy(b, query[:2])
	b[2] = b[2]&^1 | query[2]&1       // RD
	b[3] = b[3]&^0x10 | query[3]&0x10 // CD
	copy(b[headerSize:], query[headerSize:questionEnd(query)])
	return b
}

// keep remembers the answer to a query. Its key has been made by find.
func (p *packed) keep(v *resolver.View, query, answer []byte) {
	if v != p.view || !p.makeKey(query) {
		return
	}
	if p.size += len(p.key) + len(answer) + 100; p.size > maxPacked {
		clear(p.answers)
		p.size = len(p.key) + len(answer) + 100
	}
	p.answers[string(p.key)] = answer
}

// makeKey makes the key of a query: its question in lower case, and what an OPT record says. It reports whether the query is of
// the plain form that programs send.
func (p *packed) makeKey(query []byte) bool {
	end := questionEnd(query)
	if end < 0 || query[2]&0xfe != 0 || query[3]&^0x30 != 0 || binary.BigEndian.Uint32(query[6:]) != 0 {
		return false // not a query, or with more than a question
	}
	p.key = append(p.key[:0], query[headerSize:end]...)
	for i, c := range p.key[:len(p.key)-4] { // a length is never that of a letter
		if 'A' <= c && c <= 'Z' {
			p.key[i] = c + 'a' - 'A'
		}
	}
	rest := query[end:]
	switch binary.BigEndian.Uint16(query[10:]) {
	case 0:
		return len(rest) == 0
	case 1: // RFC 6891 section 6.1.2: a name, the type, the size, an extended code, the version, flags, a length, and options, which we do not know
		if len(rest) < 11 || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT || rest[5] != 0 || rest[6] != 0 ||
			int(binary.BigEndian.Uint16(rest[9:])) != len(rest)-11 {
			return false
		}
		size := min(max(binary.BigEndian.Uint16(rest[3:]), dns.MinMsgSize), udpSize)
		p.key = append(p.key, byte(size>>8), byte(size), rest[7]&0x80)
		return true
	}
	return false
}
